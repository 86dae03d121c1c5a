//! watchtouch's own modules, as they stand in the program, and what the fuzzer does with them.
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

#[path = "../../../../bins/watchtouch/src/notice.rs"]
mod notice;
#[path = "../../../../bins/watchtouch/src/place.rs"]
mod place;
#[path = "../../../../bins/watchtouch/src/signature.rs"]
mod signature;
#[path = "../../../../bins/watchtouch/src/stamp.rs"]
mod stamp;
#[path = "../../../../bins/watchtouch/src/walk.rs"]
mod walk;

pub mod watchtouch_stamp;
