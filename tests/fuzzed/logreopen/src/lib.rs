//! logreopen's own modules, as they stand in the program, and what the fuzzer does with them.
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

#[path = "../../../../bins/logreopen/src/changes.rs"]
mod changes;
#[path = "../../../../bins/logreopen/src/cli.rs"]
mod cli;
#[path = "../../../../bins/logreopen/src/control.rs"]
mod control;
#[path = "../../../../bins/logreopen/src/cut.rs"]
mod cut;
#[path = "../../../../bins/logreopen/src/events.rs"]
mod events;
#[path = "../../../../bins/logreopen/src/feed.rs"]
mod feed;
#[path = "../../../../bins/logreopen/src/follow.rs"]
mod follow;
#[path = "../../../../bins/logreopen/src/place.rs"]
mod place;
#[path = "../../../../bins/logreopen/src/plan.rs"]
mod plan;
#[path = "../../../../bins/logreopen/src/queue.rs"]
mod queue;
#[path = "../../../../bins/logreopen/src/rotate.rs"]
mod rotate;
#[path = "../../../../bins/logreopen/src/run.rs"]
mod run;
#[path = "../../../../bins/logreopen/src/shared.rs"]
mod shared;
#[path = "../../../../bins/logreopen/src/stamp.rs"]
mod stamp;
#[path = "../../../../bins/logreopen/src/start.rs"]
mod start;
#[path = "../../../../bins/logreopen/src/stream.rs"]
mod stream;
#[path = "../../../../bins/logreopen/src/tell.rs"]
mod tell;
#[path = "../../../../bins/logreopen/src/writer.rs"]
mod writer;

pub mod logreopen_control;
pub mod logreopen_lines;
pub mod logreopen_queue;
pub mod logreopen_rotate;
