//! heartbeat's own modules, as they stand in the program, and what the fuzzer does with them.
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

#[path = "../../../../bins/heartbeat/src/cli.rs"]
mod cli;
#[path = "../../../../bins/heartbeat/src/expect.rs"]
mod expect;
#[path = "../../../../bins/heartbeat/src/judge.rs"]
mod judge;
#[path = "../../../../bins/heartbeat/src/outcome.rs"]
mod outcome;
#[path = "../../../../bins/heartbeat/src/process.rs"]
mod process;

pub mod heartbeat_command_line;
pub mod heartbeat_proc;
