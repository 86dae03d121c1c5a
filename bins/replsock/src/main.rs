//! replsock: a REPL and a profiler inside the running app, for its owner alone.
#![forbid(unsafe_code)]

mod attach;
mod audit;
mod cli;
mod door;
mod env;
mod eval;
mod events;
mod flame;
mod frames;
mod inject;
mod inspector;
mod link;
mod ls;
mod modes;
mod room;
mod run;
mod serve;
mod served;
mod take;
mod target;
mod terminal;
mod whole;
mod wire;

fn main() -> std::process::ExitCode {
    common::cli::main_with("replsock", cli::words(std::env::args_os()), run::run)
}
