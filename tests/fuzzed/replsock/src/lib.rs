//! replsock's own modules, as they stand in the program, and what the fuzzer does with them.
#![cfg(not(test))]
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    dead_code,
    missing_docs,
    unused_imports
)]

#[path = "../../../../bins/replsock/src/attach.rs"]
mod attach;
#[path = "../../../../bins/replsock/src/audit.rs"]
mod audit;
#[path = "../../../../bins/replsock/src/cli.rs"]
mod cli;
#[path = "../../../../bins/replsock/src/door.rs"]
mod door;
#[path = "../../../../bins/replsock/src/env.rs"]
mod env;
#[path = "../../../../bins/replsock/src/eval.rs"]
mod eval;
#[path = "../../../../bins/replsock/src/events.rs"]
mod events;
#[path = "../../../../bins/replsock/src/flame/mod.rs"]
mod flame;
#[path = "../../../../bins/replsock/src/frames.rs"]
mod frames;
#[path = "../../../../bins/replsock/src/inject.rs"]
mod inject;
#[path = "../../../../bins/replsock/src/inspector.rs"]
mod inspector;
#[path = "../../../../bins/replsock/src/link.rs"]
mod link;
#[path = "../../../../bins/replsock/src/ls.rs"]
mod ls;
#[path = "../../../../bins/replsock/src/modes.rs"]
mod modes;
#[path = "../../../../bins/replsock/src/room.rs"]
mod room;
#[path = "../../../../bins/replsock/src/run.rs"]
mod run;
#[path = "../../../../bins/replsock/src/serve/mod.rs"]
mod serve;
#[path = "../../../../bins/replsock/src/served.rs"]
mod served;
#[path = "../../../../bins/replsock/src/take.rs"]
mod take;
#[path = "../../../../bins/replsock/src/target.rs"]
mod target;
#[path = "../../../../bins/replsock/src/terminal.rs"]
mod terminal;
#[path = "../../../../bins/replsock/src/whole.rs"]
mod whole;
#[path = "../../../../bins/replsock/src/wire.rs"]
mod wire;

pub mod replsock_proc;
