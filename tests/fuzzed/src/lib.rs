//! What the fuzzer does with an input, target by target: `tests/fuzz` calls it with what it makes up, and
//! `tests/fuzz_replay.rs` with what was found worth keeping.
// The tests in the programs' files are run with those.
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

pub mod arguments;
pub mod control;
pub mod events;
pub mod heartbeat_url;
pub mod ipc_frame;
pub mod pid_file;
pub mod proc;
pub mod replsock_frames;
pub mod replsock_inspector;
pub mod replsock_lines;
pub mod replsock_profile;
pub mod sd_notify;
mod state;
