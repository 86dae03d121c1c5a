//! What was typed. Nothing is computed here: see plan.rs.

use clap::builder::BoolishValueParser;
use clap::{Parser, ValueEnum};
use common::cli::{duration, log_format, signal};
use common::event::Format as LogFormat;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  watchtouch tmp/restart.txt --signal USR2 -- spawnwork -n 4 -- node app.js
  watchtouch --once --timeout 30s flag && echo seen

Everything else: man watchtouch";

/// run an action when a file is touched, on any file system
#[derive(Debug, Parser)]
#[command(
    name = "watchtouch",
    version,
    about,
    after_help = EXAMPLES,
    override_usage = "watchtouch FILE... [options] [-- command [argument...]]",
    disable_help_subcommand = true,
    args_override_self = false
)]
pub struct Cli {
    /// Watched; they need not exist yet
    #[arg(value_name = "FILE", hide = true)]
    pub files: Vec<OsString>,

    /// What else counts: remove, attr
    #[arg(
        long,
        value_name = "KIND,..",
        env = "WATCHTOUCH_ON",
        hide_env = true,
        help_heading = "What counts",
        value_enum,
        value_delimiter = ',',
        hide_possible_values = true,
        default_value = "touch"
    )]
    pub on: Vec<Kind>,
    /// Between looks, where nobody tells us
    #[arg(long, value_name = "D", env = "WATCHTOUCH_INTERVAL", hide_env = true, help_heading = "What counts", value_parser = nonzero, default_value = "1s")]
    pub interval: Duration,
    /// Between looks where inotify does; 0: off
    #[arg(long, value_name = "D", env = "WATCHTOUCH_SAFETY", hide_env = true, help_heading = "What counts", value_parser = duration, default_value = "30s")]
    pub safety: Duration,
    /// Look each interval, without inotify
    #[arg(long, env = "WATCHTOUCH_POLL", value_parser = BoolishValueParser::new(), hide_env = true, help_heading = "What counts", conflicts_with = "no_poll")]
    pub poll: bool,
    /// Only inotify, even on a network
    #[arg(long, env = "WATCHTOUCH_NO_POLL", value_parser = BoolishValueParser::new(), hide_env = true, help_heading = "What counts")]
    pub no_poll: bool,

    /// Quiet for so long before we act
    #[arg(long, value_name = "D", env = "WATCHTOUCH_SETTLE", hide_env = true, help_heading = "When", value_parser = duration, default_value = "100ms")]
    pub settle: Duration,
    /// Act then, quiet or not
    #[arg(long, value_name = "D", env = "WATCHTOUCH_SETTLE_MAX", hide_env = true, help_heading = "When", value_parser = duration, default_value = "2s")]
    pub settle_max: Duration,
    /// From one start to the next
    #[arg(long, value_name = "D", env = "WATCHTOUCH_MIN_GAP", hide_env = true, help_heading = "When", value_parser = duration, default_value = "1s")]
    pub min_gap: Duration,
    /// Up to so long later, by chance
    #[arg(long, value_name = "D", env = "WATCHTOUCH_SPLAY", hide_env = true, help_heading = "When", value_parser = duration, default_value = "0")]
    pub splay: Duration,
    /// Or by host: always the same place
    #[arg(
        long,
        value_name = "HOW",
        env = "WATCHTOUCH_SPLAY_BY",
        hide_env = true,
        help_heading = "When",
        value_enum,
        hide_possible_values = true,
        default_value = "random"
    )]
    pub splay_by: SplayBy,
    /// Act once without a touch
    #[arg(long, env = "WATCHTOUCH_RUN_AT_START", value_parser = BoolishValueParser::new(), hide_env = true, help_heading = "When")]
    pub run_at_start: bool,
    /// Keep what was seen there, over restarts
    #[arg(
        long,
        value_name = "STAMP",
        env = "WATCHTOUCH_SINCE",
        hide_env = true,
        help_heading = "When"
    )]
    pub since: Option<PathBuf>,
    /// End after the first touch
    #[arg(long, env = "WATCHTOUCH_ONCE", value_parser = BoolishValueParser::new(), hide_env = true, help_heading = "When")]
    pub once: bool,
    /// End with 124 after so long without one
    #[arg(long, value_name = "D", env = "WATCHTOUCH_TIMEOUT", hide_env = true, help_heading = "When", value_parser = nonzero)]
    pub timeout: Option<Duration>,

    /// Run by /bin/sh
    #[arg(
        long,
        value_name = "CMD",
        env = "WATCHTOUCH_ON_TOUCH",
        hide_env = true,
        help_heading = "Action"
    )]
    pub on_touch: Option<OsString>,
    /// Sent to the command, or to --pid
    #[arg(long, value_name = "SIG", env = "WATCHTOUCH_SIGNAL", hide_env = true, help_heading = "Action", value_parser = signal, conflicts_with = "on_touch")]
    pub signal: Option<i32>,
    /// The process
    #[arg(
        long,
        value_name = "N",
        env = "WATCHTOUCH_PID",
        hide_env = true,
        help_heading = "Action",
        conflicts_with = "pid_file"
    )]
    pub pid: Option<i32>,
    /// Or what stands there at that time
    #[arg(
        long,
        value_name = "FILE",
        env = "WATCHTOUCH_PID_FILE",
        hide_env = true,
        help_heading = "Action"
    )]
    pub pid_file: Option<PathBuf>,
    /// Or ignore, restart, signal=SIG
    #[arg(long, value_name = "HOW", env = "WATCHTOUCH_BUSY", hide_env = true, help_heading = "Action", value_parser = busy, default_value = "queue")]
    pub busy: Busy,
    /// Then TERM, and 5 s later KILL
    #[arg(long, value_name = "D", env = "WATCHTOUCH_ACTION_TIMEOUT", hide_env = true, help_heading = "Action", value_parser = nonzero, default_value = "60s")]
    pub action_timeout: Duration,
    /// If it fails, after 1s, 2s, 4s
    #[arg(long, value_name = "N", env = "WATCHTOUCH_RETRIES", hide_env = true, help_heading = "Action", value_parser = clap::value_parser!(u32).range(..=1000), default_value = "0")]
    pub retries: u32,
    /// One host at a time, by flock
    #[arg(
        long,
        value_name = "FILE",
        env = "WATCHTOUCH_LOCK",
        hide_env = true,
        help_heading = "Action",
        conflicts_with = "lock_with"
    )]
    pub lock: Option<PathBuf>,
    /// Or by this before it: 'etcdctl lock app --'
    #[arg(
        long,
        value_name = "CMD",
        env = "WATCHTOUCH_LOCK_WITH",
        hide_env = true,
        help_heading = "Action"
    )]
    pub lock_with: Option<OsString>,

    /// The bare path and a NUL for each touch
    #[arg(short = '0', long = "null", env = "WATCHTOUCH_NULL", value_parser = BoolishValueParser::new(), hide_env = true, help_heading = "Output", conflicts_with = "format")]
    pub null: bool,
    /// Of a touch: text, json
    #[arg(
        long,
        value_name = "FORMAT",
        env = "WATCHTOUCH_FORMAT",
        hide_env = true,
        help_heading = "Output",
        value_enum,
        hide_possible_values = true,
        default_value = "text"
    )]
    pub format: Format,
    /// A newline there once the watch stands
    #[arg(
        long,
        value_name = "N",
        env = "WATCHTOUCH_READY_FD",
        hide_env = true,
        help_heading = "Output"
    )]
    pub ready_fd: Option<i32>,
    /// Of events: text, json, journal
    #[arg(long, value_name = "FORMAT", env = "WATCHTOUCH_LOG_FORMAT", hide_env = true, help_heading = "Output", value_parser = log_format)]
    pub log_format: Option<LogFormat>,
    /// Only warnings and errors
    #[arg(short, long, env = "WATCHTOUCH_QUIET", value_parser = BoolishValueParser::new(), hide_env = true, help_heading = "Output", conflicts_with = "verbose")]
    pub quiet: bool,
    /// Each step too
    #[arg(short, long, env = "WATCHTOUCH_VERBOSE", value_parser = BoolishValueParser::new(), hide_env = true, help_heading = "Output")]
    pub verbose: bool,

    /// The command and its arguments
    #[arg(last = true, hide = true)]
    pub command: Vec<OsString>,
}

/// `--on`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Made, written, touched, replaced: always.
    Touch,
    /// Removed or moved away.
    Remove,
    /// chmod, chown, a link more, a touch with the same time.
    Attr,
}

/// `--splay-by`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SplayBy {
    /// Anew for each touch.
    Random,
    /// By a hash of host and file.
    Host,
}

/// `--format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Time, kind, path.
    Text,
    /// JSON Lines.
    Json,
}

/// `--busy`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
    /// Exactly one more run afterwards.
    Queue,
    /// The touch is dropped.
    Ignore,
    /// The running one is ended, and run again.
    Restart,
    /// The running one gets this signal.
    Signal(i32),
}

fn busy(text: &str) -> Result<Busy, String> {
    match text {
        "queue" => Ok(Busy::Queue),
        "ignore" => Ok(Busy::Ignore),
        "restart" => Ok(Busy::Restart),
        _ => match text.strip_prefix("signal=").map(signal) {
            Some(signal) => Ok(Busy::Signal(signal?)),
            None => Err(format!(
                "'{text}': queue, ignore, restart or signal=USR1 would do"
            )),
        },
    }
}

fn nonzero(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err(format!("'{text}' is no time at all; 1s would do")),
        length => Ok(length),
    }
}
