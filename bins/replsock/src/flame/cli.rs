//! What was typed behind `flame`.

use clap::builder::BoolishValueParser;
use std::path::PathBuf;

/// `replsock flame`
#[derive(Debug, clap::Args)]
pub struct Flame {
    /// What the profiler wrote; without, or -: stdin
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// The graph goes there, not to stdout
    #[arg(
        short,
        long,
        value_name = "FILE",
        env = "REPLSOCK_OUTPUT",
        hide_env = true
    )]
    pub output: Option<PathBuf>,
    /// Stacks and microseconds, a line each
    #[arg(long, env = "REPLSOCK_FOLDED", value_parser = BoolishValueParser::new(), hide_env = true, conflicts_with = "top")]
    pub folded: bool,
    /// A table of functions
    #[arg(long, env = "REPLSOCK_TOP", value_parser = BoolishValueParser::new(), hide_env = true)]
    pub top: bool,
    /// With the time in which nothing ran
    #[arg(long, env = "REPLSOCK_WITH_IDLE", value_parser = BoolishValueParser::new(), hide_env = true)]
    pub with_idle: bool,
}
