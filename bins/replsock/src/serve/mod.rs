//! `serve`: a command with a console of its own, on a unix socket. One process and one poll loop carry all
//! sessions; nothing that a client or a command does holds up another one.

pub mod cli;
mod client;
mod plan;
mod program;
mod queries;
mod queue;
mod record;
mod replay;
mod run;
mod tell;

pub use queue::Queue;
pub use run::run;
