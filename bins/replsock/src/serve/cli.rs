//! What was typed behind `serve`.

use clap::Args;
use clap::builder::BoolishValueParser;
use common::cli::{count, duration, log_format};
use common::event::Format;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// `replsock serve`
#[derive(Args, Debug)]
pub struct Serve {
    /// Where it listens; its directory must be closed to others' writes
    #[arg(value_name = "SOCKET")]
    pub socket: PathBuf,
    /// One command for all clients, that outlives them
    #[arg(long, env = "REPLSOCK_SHARED", value_parser = BoolishValueParser::new(), hide_env = true)]
    pub shared: bool,
    /// A terminal for each client
    #[arg(long, env = "REPLSOCK_PTY", value_parser = BoolishValueParser::new(), hide_env = true, conflicts_with = "pipe")]
    pub pty: bool,
    /// Pipes for each client
    #[arg(long, env = "REPLSOCK_PIPE", value_parser = BoolishValueParser::new(), hide_env = true)]
    pub pipe: bool,
    /// Besides ourselves and root: USER or @GROUP
    #[arg(
        long,
        value_name = "WHO",
        env = "REPLSOCK_ALLOW",
        hide_env = true,
        value_delimiter = ','
    )]
    pub allow: Vec<String>,
    /// Listen on loopback, too; needs --token-file
    #[arg(
        long,
        value_name = "PORT",
        env = "REPLSOCK_TCP",
        hide_env = true,
        requires = "token_file"
    )]
    pub tcp: Option<String>,
    /// What clients over TCP prove themselves by; made if missing
    #[arg(
        long,
        value_name = "FILE",
        env = "REPLSOCK_TOKEN_FILE",
        hide_env = true
    )]
    pub token_file: Option<PathBuf>,
    /// Keep what each session showed, as asciicast v2
    #[arg(long, value_name = "DIR", env = "REPLSOCK_RECORD", hide_env = true)]
    pub record: Option<PathBuf>,
    /// As many at once; more are told that it is busy
    #[arg(long, value_name = "N", env = "REPLSOCK_MAX_CLIENTS", hide_env = true, value_parser = count, default_value = "100")]
    pub max_clients: u32,
    /// Leave a client in which nothing moves; 0: never
    #[arg(long, value_name = "D", env = "REPLSOCK_IDLE", hide_env = true, value_parser = duration, default_value = "0")]
    pub idle: Duration,
    /// Of events: text, json, journal
    #[arg(long, value_name = "FORMAT", env = "REPLSOCK_LOG_FORMAT", hide_env = true, value_parser = log_format)]
    pub log_format: Option<Format>,
    /// Only warnings and errors
    #[arg(short, long, env = "REPLSOCK_QUIET", hide_env = true, value_parser = BoolishValueParser::new())]
    pub quiet: bool,
    /// The command and its arguments
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true)]
    pub command: Vec<OsString>,
}
