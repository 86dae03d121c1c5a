//! What was typed behind `flame`.

use std::path::PathBuf;

/// `replsock flame`
#[derive(Debug, clap::Args)]
pub struct Flame {
    /// What the profiler wrote
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
}
