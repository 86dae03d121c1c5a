//! What was typed. Nothing is computed here, but that `replsock TARGET` means `replsock attach TARGET`.

use crate::audit::Expressions;
use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand};
use common::cli::{duration, signal, size};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

const EXAMPLES: &str = "\
TARGET: APP, APP/2 (worker 2), APP/PID, a pid, or the path of a socket.
Each command says more: replsock eval --help

Examples:
  replsock env --app shop -- spawnwork -n 4 -- node app.js
  replsock eval --all --compare shop 'process.version'

Everything else: man replsock";

/// a REPL and a profiler inside the running app, for its owner alone
#[derive(Debug, Parser)]
#[command(
    name = "replsock",
    version,
    about,
    after_help = EXAMPLES,
    override_usage = "replsock COMMAND [options]\n       replsock TARGET",
    disable_help_subcommand = true,
    subcommand_required = true,
    args_override_self = false
)]
pub struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// An interactive session (also: replsock TARGET)
    Attach(Attach),
    /// Evaluate an expression, or stdin; print its value
    Eval(Eval),
    /// Who can be reached
    Ls(Ls),
    /// A CPU profile of a live worker
    Prof(Prof),
    /// A heap snapshot, streamed
    Heap(Heap),
    /// The JavaScript stack of a worker that is stuck in a loop
    Stack(Stack),
    /// A flame graph out of a .cpuprofile
    Flame(crate::flame::cli::Flame),
    /// A command with a console of its own, on a socket
    Serve(crate::serve::cli::Serve),
    /// Run a command so that its processes can be reached
    Env(Env),
    /// Of --inject: the process that opens the port, and closes it whatever becomes of us
    #[command(hide = true)]
    ThroughThePort(ThroughThePort),
}

/// What `--inject` starts.
#[derive(Args, Debug)]
pub struct ThroughThePort {
    /// The target
    pub pid: i32,
    /// Its start time, which makes the pid its own
    pub start: u64,
    /// What for
    pub deed: crate::inject::Deed,
}

/// How a target is come to.
#[derive(Args, Clone, Debug)]
pub struct Reach {
    /// APP, APP/2, APP/PID, a pid, a path, tcp:HOST:PORT
    #[arg(value_name = "TARGET")]
    pub target: String,
    /// A node without the agent: by SIGUSR1 and its inspector
    #[arg(long, env = "REPLSOCK_INJECT", value_parser = BoolishValueParser::new(), hide_env = true)]
    pub inject: bool,
    /// Though the port is open to all users for a moment
    #[arg(long, env = "REPLSOCK_YES_OPEN_PORT", value_parser = BoolishValueParser::new(), hide_env = true)]
    pub yes_open_port: bool,
    /// For a target over TCP
    #[arg(
        long,
        value_name = "FILE",
        env = "REPLSOCK_TOKEN_FILE",
        hide_env = true
    )]
    pub token_file: Option<PathBuf>,
    /// What of expressions the audit line shows
    #[arg(
        long,
        value_name = "HOW",
        env = "REPLSOCK_AUDIT_EXPR",
        hide_env = true,
        value_enum,
        hide_possible_values = true,
        default_value = "full"
    )]
    pub audit_expr: Expressions,
    /// Append the audit lines there, not to syslog
    #[arg(long, value_name = "FILE", env = "REPLSOCK_AUDIT", hide_env = true)]
    pub audit: Option<PathBuf>,
}

/// `replsock attach`
#[derive(Args, Debug)]
pub struct Attach {
    #[command(flatten)]
    pub reach: Reach,
    /// For each evaluation; 0: none
    #[arg(long, value_name = "D", env = "REPLSOCK_TIMEOUT", hide_env = true, value_parser = duration, default_value = "5s")]
    pub timeout: Duration,
    /// Nothing with a side effect
    #[arg(long, env = "REPLSOCK_READ_ONLY", value_parser = BoolishValueParser::new(), hide_env = true)]
    pub read_only: bool,
}

/// `replsock eval`
#[derive(Args, Debug)]
pub struct Eval {
    #[command(flatten)]
    pub reach: Reach,
    /// Joined by blanks; without: all of stdin
    #[arg(
        value_name = "EXPR",
        allow_hyphen_values = true,
        trailing_var_arg = true
    )]
    pub expression: Vec<String>,
    /// Each worker of the app
    #[arg(long, env = "REPLSOCK_ALL", value_parser = BoolishValueParser::new(), hide_env = true)]
    pub all: bool,
    /// Group equal answers; 1 if they differ (with --all)
    #[arg(long, env = "REPLSOCK_COMPARE", value_parser = BoolishValueParser::new(), hide_env = true)]
    pub compare: bool,
    /// One JSON object per worker
    #[arg(long, env = "REPLSOCK_JSON", value_parser = BoolishValueParser::new(), hide_env = true, conflicts_with = "compare")]
    pub json: bool,
    /// Then 124; 0: none. Of a served command: none [default: 5s]
    #[arg(long, value_name = "D", env = "REPLSOCK_TIMEOUT", hide_env = true, value_parser = duration)]
    pub timeout: Option<Duration>,
    /// Nothing with a side effect
    #[arg(long, env = "REPLSOCK_READ_ONLY", value_parser = BoolishValueParser::new(), hide_env = true)]
    pub read_only: bool,
    /// Strings without quotes
    #[arg(long, env = "REPLSOCK_RAW", value_parser = BoolishValueParser::new(), hide_env = true)]
    pub raw: bool,
    /// Of an answer, in bytes; 0: all
    #[arg(long, value_name = "SIZE", env = "REPLSOCK_LIMIT", hide_env = true, value_parser = size, default_value = "1M")]
    pub limit: u64,
    /// Even process.exit()
    #[arg(long, env = "REPLSOCK_FORCE", value_parser = BoolishValueParser::new(), hide_env = true)]
    pub force: bool,
}

/// `replsock ls`
#[derive(Args, Debug)]
pub struct Ls {
    /// Only this one
    #[arg(value_name = "APP")]
    pub app: Option<String>,
    /// JSON Lines
    #[arg(long, env = "REPLSOCK_JSON", value_parser = BoolishValueParser::new(), hide_env = true)]
    pub json: bool,
    /// Remove the sockets of processes that are gone
    #[arg(long, env = "REPLSOCK_PRUNE", value_parser = BoolishValueParser::new(), hide_env = true)]
    pub prune: bool,
}

/// `replsock prof`
#[derive(Args, Debug)]
pub struct Prof {
    #[command(flatten)]
    pub reach: Reach,
    /// Profile for so long
    #[arg(long = "for", value_name = "D", env = "REPLSOCK_FOR", hide_env = true, value_parser = duration, default_value = "10s")]
    pub length: Duration,
    /// Begin, and leave it running
    #[arg(long, env = "REPLSOCK_START", value_parser = BoolishValueParser::new(), hide_env = true, conflicts_with = "stop")]
    pub start: bool,
    /// End one that was begun, and fetch it
    #[arg(long, env = "REPLSOCK_STOP", value_parser = BoolishValueParser::new(), hide_env = true)]
    pub stop: bool,
    /// The .cpuprofile
    #[arg(
        short,
        long,
        value_name = "FILE",
        env = "REPLSOCK_OUTPUT",
        hide_env = true
    )]
    pub output: Option<PathBuf>,
    /// A flame graph
    #[arg(long, value_name = "FILE", env = "REPLSOCK_SVG", hide_env = true)]
    pub svg: Option<PathBuf>,
    /// A table of functions on stdout
    #[arg(long, env = "REPLSOCK_TOP", value_parser = BoolishValueParser::new(), hide_env = true)]
    pub top: bool,
    /// Between samples
    #[arg(long = "sampling", value_name = "D", env = "REPLSOCK_SAMPLING", hide_env = true, value_parser = duration, default_value = "1ms")]
    pub sampling: Duration,
}

/// `replsock heap`
#[derive(Args, Debug)]
pub struct Heap {
    #[command(flatten)]
    pub reach: Reach,
    /// The .heapsnapshot
    #[arg(
        short,
        long,
        value_name = "FILE",
        env = "REPLSOCK_OUTPUT",
        hide_env = true
    )]
    pub output: PathBuf,
    /// Though memory is short
    #[arg(long, env = "REPLSOCK_FORCE", value_parser = BoolishValueParser::new(), hide_env = true)]
    pub force: bool,
}

/// `replsock stack`
#[derive(Args, Debug)]
pub struct Stack {
    #[command(flatten)]
    pub reach: Reach,
}

/// `replsock env`
#[derive(Args, Debug)]
pub struct Env {
    /// The name to be reached by
    #[arg(
        long,
        value_name = "NAME",
        env = "REPLSOCK_APP",
        hide_env = true,
        default_value = "app"
    )]
    pub app: String,
    /// Turns the profiler on and off
    #[arg(long, value_name = "SIG", env = "REPLSOCK_PROF_SIGNAL", hide_env = true, value_parser = signal, default_value = "URG")]
    pub prof_signal: i32,
    /// Then a forgotten profile ends
    #[arg(long, value_name = "D", env = "REPLSOCK_PROF_MAX", hide_env = true, value_parser = duration, default_value = "5m")]
    pub prof_max: Duration,
    /// The command and its arguments; without: export lines
    #[arg(value_name = "COMMAND", trailing_var_arg = true)]
    pub command: Vec<OsString>,
}

/// The names of the commands, and what else is none of ours to put `attach` before.
const NAMES: [&str; 10] = [
    "attach",
    "eval",
    "ls",
    "prof",
    "heap",
    "stack",
    "flame",
    "serve",
    "env",
    "through-the-port",
];

/// The words of the command line; `attach` is put in where a target stands alone.
pub fn words(typed: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<OsString> = typed.collect();
    let target = words
        .get(1)
        .and_then(|word| word.to_str())
        .is_some_and(|word| !word.starts_with('-') && !word.is_empty() && !NAMES.contains(&word));
    if target {
        words.insert(1, "attach".into());
    }
    words
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_names_are_those_of_the_commands() {
        let known: Vec<String> = Cli::command()
            .get_subcommands()
            .map(|command| command.get_name().to_owned())
            .collect();
        assert_eq!(known, NAMES);
    }

    #[test]
    fn a_target_alone_is_attached_to() {
        let typed = |line: &str| {
            let words = words(line.split(' ').map(OsString::from));
            words
                .iter()
                .map(|word| word.to_string_lossy().into_owned())
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(typed("replsock shop/2"), "replsock attach shop/2");
        assert_eq!(typed("replsock ./ls"), "replsock attach ./ls");
        for line in ["replsock ls", "replsock --help", "replsock"] {
            assert_eq!(typed(line), line);
        }
    }
}
