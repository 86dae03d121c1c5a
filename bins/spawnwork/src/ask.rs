//! `spawnwork --ctl`: asks a running master, and ends with its answer.

pub use common::ask::{Question, run};

/// What there is to ask, for whoever names nothing.
pub const REQUESTS: &str = "status, reload, stop and others: spawnwork --ctl SOCKET help";
