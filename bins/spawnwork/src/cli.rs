//! What was typed. Nothing is computed here: see plan.rs.

use crate::actions::{OnSignal, on_signal};
use clap::{Parser, ValueEnum};
use common::cli::{count, duration, rate_filter, signal};
use common::event::Format;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  spawnwork -n 4 -- node app.js
  spawnwork -n 2 -l 127.0.0.1:8000 -- gunicorn app:app

Everything else: man spawnwork";

/// run N workers of a program on shared sockets, and never drop a request
#[derive(Debug, Parser)]
#[command(
    name = "spawnwork",
    version,
    about,
    after_help = EXAMPLES,
    override_usage = "spawnwork [options] [--] program [argument...]\n       spawnwork --ctl SOCKET request [argument...]",
    disable_help_subcommand = true,
    args_override_self = false
)]
pub struct Cli {
    /// Workers; auto: the CPUs we may use
    #[arg(short = 'n', long, value_name = "N|auto", env = "SPAWNWORK_WORKERS", hide_env = true, help_heading = "Workers", value_parser = workers, default_value = "auto")]
    pub workers: Workers,
    /// Change to DIR, resolved anew for each generation
    #[arg(
        short = 'C',
        long,
        value_name = "DIR",
        env = "SPAWNWORK_CHDIR",
        hide_env = true,
        help_heading = "Workers"
    )]
    pub chdir: Option<PathBuf>,
    /// Run workers as this user (and group)
    #[arg(
        short = 'u',
        long,
        value_name = "USER[:GROUP]",
        env = "SPAWNWORK_USER",
        hide_env = true,
        help_heading = "Workers"
    )]
    pub user: Option<String>,
    /// Open files a worker may have [default: hard limit]
    #[arg(long, value_name = "N|max", env = "SPAWNWORK_NOFILE", hide_env = true, help_heading = "Workers", value_parser = nofile)]
    pub nofile: Option<NofileArg>,
    /// Set a variable; %i worker, %g generation
    #[arg(long, value_name = "K=V", env = "SPAWNWORK_ENV", hide_env = true, help_heading = "Workers", value_parser = common::cli::env_pair)]
    pub env: Vec<(String, String)>,
    /// Read K=V lines, anew for each generation
    #[arg(
        long,
        value_name = "FILE",
        env = "SPAWNWORK_ENV_FILE",
        hide_env = true,
        help_heading = "Workers"
    )]
    pub env_file: Option<PathBuf>,

    /// Bind before any worker starts; repeatable
    #[arg(
        short = 'l',
        long,
        value_name = "[NAME=]ADDR",
        env = "SPAWNWORK_LISTEN",
        hide_env = true,
        help_heading = "Sockets"
    )]
    pub listen: Vec<String>,
    /// Mode of its unix sockets
    #[arg(long, value_name = "MODE", env = "SPAWNWORK_SOCKET_MODE", hide_env = true, help_heading = "Sockets", value_parser = mode, default_value = "0600")]
    pub socket_mode: u32,
    /// Owner of its unix sockets
    #[arg(
        long,
        value_name = "USER[:GROUP]",
        env = "SPAWNWORK_SOCKET_OWNER",
        hide_env = true,
        help_heading = "Sockets"
    )]
    pub socket_owner: Option<String>,
    /// Connections that may wait
    #[arg(long, value_name = "N", env = "SPAWNWORK_BACKLOG", hide_env = true, help_heading = "Sockets", value_parser = count, default_value = "4096")]
    pub backlog: u32,
    /// Wait for a busy address
    #[arg(long, value_name = "D", env = "SPAWNWORK_BIND_RETRY", hide_env = true, help_heading = "Sockets", value_parser = duration, default_value = "0s")]
    pub bind_retry: Duration,
    /// Or round-robin, slots
    #[arg(
        long,
        value_name = "HOW",
        env = "SPAWNWORK_BALANCE",
        hide_env = true,
        help_heading = "Sockets",
        value_enum,
        hide_possible_values = true,
        default_value = "shared"
    )]
    pub balance: Balance,
    /// Variables of einhorn, server-starter
    #[arg(
        long,
        value_name = "NAMES",
        env = "SPAWNWORK_COMPAT",
        hide_env = true,
        help_heading = "Sockets",
        value_enum,
        value_delimiter = ',',
        hide_possible_values = true
    )]
    pub compat: Vec<Compat>,
    /// Take LISTEN_FDS whatever LISTEN_PID says
    #[arg(
        long,
        env = "SPAWNWORK_NO_LISTEN_PID",
        value_parser = clap::builder::BoolishValueParser::new(),
        hide_env = true,
        help_heading = "Sockets"
    )]
    pub no_listen_pid: bool,

    /// Speak Node's protocol: auto, yes, no
    #[arg(
        long,
        value_name = "WHEN",
        env = "SPAWNWORK_NODE",
        hide_env = true,
        help_heading = "Node",
        value_enum,
        hide_possible_values = true,
        default_value = "auto"
    )]
    pub node: NodeArg,
    /// Bind privileged ports for workers of another user
    #[arg(
        long,
        env = "SPAWNWORK_ALLOW_BIND",
        value_parser = clap::builder::BoolishValueParser::new(),
        hide_env = true,
        help_heading = "Node"
    )]
    pub allow_bind: bool,
    /// Do not load the module that drains keep-alive connections
    #[arg(
        long,
        env = "SPAWNWORK_NO_PRELOAD",
        value_parser = clap::builder::BoolishValueParser::new(),
        hide_env = true,
        help_heading = "Node"
    )]
    pub no_preload: bool,

    /// listen, notify, fd:N, exec:CMD or alive:D
    #[arg(long, value_name = "HOW", env = "SPAWNWORK_READY", hide_env = true, help_heading = "Reload", value_parser = ready)]
    pub ready: Option<Ready>,
    /// Not ready by then is failed
    #[arg(long, value_name = "D", env = "SPAWNWORK_READY_TIMEOUT", hide_env = true, help_heading = "Reload", value_parser = duration, default_value = "60s")]
    pub ready_timeout: Duration,
    /// A new worker's trial, once ready
    #[arg(long, value_name = "D", env = "SPAWNWORK_PROBATION", hide_env = true, help_heading = "Reload", value_parser = duration, default_value = "3s")]
    pub probation: Duration,
    /// Refuse a reload when CMD fails (node --check app.js)
    #[arg(
        long,
        value_name = "CMD",
        env = "SPAWNWORK_CHECK",
        hide_env = true,
        help_heading = "Reload"
    )]
    pub check: Option<String>,
    /// GET it from the first new worker (round-robin)
    #[arg(
        long,
        value_name = "PATH",
        env = "SPAWNWORK_PROBE",
        hide_env = true,
        help_heading = "Reload"
    )]
    pub probe: Option<String>,
    /// New beside old workers; 0: none
    #[arg(long, value_name = "N|P%", env = "SPAWNWORK_SURGE", hide_env = true, help_heading = "Reload", value_parser = surge, default_value = "100%")]
    pub surge: Surge,
    /// Workers that start at once [default: CPUs]
    #[arg(long, value_name = "N", env = "SPAWNWORK_START_PARALLEL", hide_env = true, help_heading = "Reload", value_parser = count)]
    pub start_parallel: Option<u32>,

    /// To stop [default: TERM; Node: channel]
    #[arg(long, value_name = "SIG", env = "SPAWNWORK_STOP_SIGNAL", hide_env = true, help_heading = "Stop and respawn", value_parser = signal)]
    pub stop_signal: Option<i32>,
    /// Then KILL, to its group
    #[arg(long, value_name = "D", env = "SPAWNWORK_STOP_TIMEOUT", hide_env = true, help_heading = "Stop and respawn", value_parser = duration, default_value = "30s")]
    pub stop_timeout: Duration,
    /// Deaths a slot may have
    #[arg(long, value_name = "C/D[:FILTER]", env = "SPAWNWORK_RESPAWN_LIMIT", hide_env = true, help_heading = "Stop and respawn", value_parser = rate_filter, default_value = "5/60s")]
    pub respawn_limit: common::cli::RateFilter,
    /// Wait before the next
    #[arg(long, value_name = "MIN..MAX", env = "SPAWNWORK_BACKOFF", hide_env = true, help_heading = "Stop and respawn", value_parser = backoff, default_value = "100ms..30s")]
    pub backoff: Backoff,
    /// Workers must send WATCHDOG=1 so often
    #[arg(long, value_name = "D", env = "SPAWNWORK_WATCHDOG", hide_env = true, help_heading = "Stop and respawn", value_parser = duration)]
    pub watchdog: Option<Duration>,
    /// Replace a worker that is larger
    #[arg(long, value_name = "SIZE", env = "SPAWNWORK_MAX_RSS", hide_env = true, help_heading = "Stop and respawn", value_parser = max_rss)]
    pub max_rss: Option<u64>,
    /// Replace a worker that is older
    #[arg(long, value_name = "D", env = "SPAWNWORK_MAX_LIFETIME", hide_env = true, help_heading = "Stop and respawn", value_parser = max_lifetime)]
    pub max_lifetime: Option<Duration>,
    /// By so much later, at random
    #[arg(long, value_name = "P%", env = "SPAWNWORK_JITTER", hide_env = true, help_heading = "Stop and respawn", value_parser = percent, default_value = "10%")]
    pub jitter: u32,
    /// Over it: hold or exit
    #[arg(
        long,
        value_name = "WHAT",
        env = "SPAWNWORK_ON_LIMIT",
        hide_env = true,
        help_heading = "Stop and respawn",
        value_enum,
        hide_possible_values = true,
        default_value = "hold"
    )]
    pub on_limit: OnLimit,
    /// Killed: die, drain, adopt
    #[arg(
        long,
        value_name = "HOW",
        env = "SPAWNWORK_ORPHANS",
        hide_env = true,
        help_heading = "Stop and respawn",
        value_enum,
        hide_possible_values = true,
        default_value = "drain"
    )]
    pub orphans: OrphansArg,

    /// lines (through us, whole) or inherit [default: by kind]
    #[arg(
        long,
        value_name = "HOW",
        env = "SPAWNWORK_OUTPUT",
        hide_env = true,
        help_heading = "Output",
        value_enum,
        hide_possible_values = true
    )]
    pub output: Option<OutputArg>,
    /// Before each line: %i worker, %g generation, %p pid
    #[arg(
        long,
        value_name = "TEXT",
        env = "SPAWNWORK_PREFIX",
        hide_env = true,
        help_heading = "Output"
    )]
    pub prefix: Option<String>,
    /// Our pid, locked as long as we live
    #[arg(
        long,
        value_name = "FILE",
        env = "SPAWNWORK_PID_FILE",
        hide_env = true,
        help_heading = "Output"
    )]
    pub pid_file: Option<PathBuf>,
    /// SIG=ACTION: reload, stop, quit, add, forward ...
    #[arg(long, value_name = "SIG=DO", env = "SPAWNWORK_ON_SIGNAL", hide_env = true, help_heading = "Control", value_parser = on_signal)]
    pub on_signal: Vec<OnSignal>,
    /// Say what would be done, and do nothing
    #[arg(
        long,
        env = "SPAWNWORK_CHECK_CONFIG",
        value_parser = clap::builder::BoolishValueParser::new(),
        hide_env = true,
        help_heading = "Control",
        conflicts_with = "ctl"
    )]
    pub check_config: bool,
    /// A socket to be asked over
    #[arg(
        long,
        value_name = "FILE",
        env = "SPAWNWORK_CONTROL",
        hide_env = true,
        help_heading = "Control"
    )]
    pub control: Option<PathBuf>,
    /// Ask the master there: status, reload, stop, help ...
    #[arg(
        long,
        value_name = "FILE",
        env = "SPAWNWORK_CTL",
        hide_env = true,
        help_heading = "Control"
    )]
    pub ctl: Option<PathBuf>,
    /// The state on this descriptor can be taken over
    #[arg(long, value_name = "FD", hide = true)]
    pub check_state: Option<i32>,
    /// For its answer; then 124
    #[arg(long, value_name = "D", env = "SPAWNWORK_TIMEOUT", hide_env = true, help_heading = "Control", value_parser = duration)]
    pub timeout: Option<Duration>,
    /// text, json or journal [default: by stderr]
    #[arg(long, value_name = "F", env = "SPAWNWORK_LOG_FORMAT", hide_env = true, help_heading = "Output", value_parser = format)]
    pub log_format: Option<Format>,
    /// Warnings and errors only
    #[arg(
        short = 'q',
        long,
        env = "SPAWNWORK_QUIET",
        value_parser = clap::builder::BoolishValueParser::new(),
        hide_env = true,
        help_heading = "Output",
        conflicts_with = "verbose"
    )]
    pub quiet: bool,
    /// Each step
    #[arg(
        short = 'v',
        long,
        env = "SPAWNWORK_VERBOSE",
        value_parser = clap::builder::BoolishValueParser::new(),
        hide_env = true,
        help_heading = "Output"
    )]
    pub verbose: bool,

    /// The program and its arguments
    #[arg(
        value_name = "PROGRAM",
        required_unless_present = "ctl",
        trailing_var_arg = true,
        hide = true
    )]
    pub command: Vec<OsString>,
}

/// `--workers`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    /// As many as CPUs may be used.
    Auto,
    /// So many.
    Count(usize),
}

/// `--nofile`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NofileArg {
    /// The hard limit.
    Max,
    /// So many descriptors.
    Count(u64),
}

/// `--node`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NodeArg {
    /// By the program's name.
    Auto,
    /// Always.
    Yes,
    /// Never.
    No,
}

/// `--balance`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Balance {
    /// One socket, accepted from by all workers.
    Shared,
    /// The master accepts and hands over.
    RoundRobin,
    /// A socket of its own for each slot, on the same port.
    Slots,
}

/// `--compat`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compat {
    /// EINHORN_FD_0 and its like.
    Einhorn,
    /// SERVER_STARTER_PORT.
    ServerStarter,
}

/// `--on-limit`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnLimit {
    /// The slot is tried again, at the longest backoff.
    Hold,
    /// The master stops with status 1.
    Exit,
}

/// `--orphans`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OrphansArg {
    /// Nobody is left.
    Die,
    /// They finish what they have begun.
    Drain,
    /// They go on, until the next master takes over.
    Adopt,
}

/// `--output`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputArg {
    /// Pipes of their own, whole lines onward.
    Lines,
    /// Our own descriptors.
    Inherit,
}

/// `--ready`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ready {
    /// Node's `listening`.
    Listen,
    /// READY=1 on NOTIFY_SOCKET.
    Notify,
    /// A newline on this descriptor.
    Fd(i32),
    /// A command that succeeds.
    Exec(String),
    /// So long alive.
    Alive(Duration),
}

/// `--surge`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Surge {
    /// So many workers.
    Count(usize),
    /// So many per cent of the workers, rounded up.
    Percent(u32),
}

/// `--backoff`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The first wait.
    pub min: Duration,
    /// The longest.
    pub max: Duration,
}

fn workers(text: &str) -> Result<Workers, String> {
    if text == "auto" {
        return Ok(Workers::Auto);
    }
    match text.parse::<usize>() {
        Ok(count) if (1..=10_000).contains(&count) => Ok(Workers::Count(count)),
        _ => Err("a number from 1 to 10000, or auto, would do".to_owned()),
    }
}

fn nofile(text: &str) -> Result<NofileArg, String> {
    if text == "max" {
        return Ok(NofileArg::Max);
    }
    match text.parse::<u64>() {
        Ok(count) if count >= 16 => Ok(NofileArg::Count(count)),
        _ => Err("a number from 16 on, or max, would do".to_owned()),
    }
}

fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("an octal mode like 0660 would do".to_owned()),
    }
}

fn ready(text: &str) -> Result<Ready, String> {
    let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
    match (kind, rest) {
        ("listen", "") => Ok(Ready::Listen),
        ("notify", "") => Ok(Ready::Notify),
        ("fd", number) => match number.parse::<i32>() {
            Ok(number) if (3..1024).contains(&number) => Ok(Ready::Fd(number)),
            _ => Err("fd:N takes a number from 3 to 1023".to_owned()),
        },
        ("exec", command) if !command.is_empty() => Ok(Ready::Exec(command.to_owned())),
        ("alive", length) => duration(length).map(Ready::Alive),
        _ => Err("listen, notify, fd:N, exec:CMD or alive:D would do".to_owned()),
    }
}

fn surge(text: &str) -> Result<Surge, String> {
    let wrong = || "a number of workers, or a share like 50%, would do".to_owned();
    match text.strip_suffix('%') {
        Some(percent) => match percent.parse::<u32>() {
            Ok(percent) if percent <= 100 => Ok(Surge::Percent(percent)),
            _ => Err(wrong()),
        },
        None => text.parse::<usize>().map(Surge::Count).map_err(|_| wrong()),
    }
}

fn max_rss(text: &str) -> Result<u64, String> {
    match common::cli::size(text)? {
        0 => Err("nobody has no memory; 512M would do".to_owned()),
        size => Ok(size),
    }
}

fn max_lifetime(text: &str) -> Result<Duration, String> {
    let length = duration(text)?;
    if length.is_zero() {
        return Err("nobody lives for no time; 1h would do".to_owned());
    }
    Ok(length)
}

fn percent(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse::<u32>();
    match number {
        Ok(percent) if percent <= 100 => Ok(percent),
        _ => Err("a share from 0% to 100% would do".to_owned()),
    }
}

fn backoff(text: &str) -> Result<Backoff, String> {
    let (min, max) = text
        .split_once("..")
        .ok_or("MIN..MAX like 100ms..30s would do")?;
    let backoff = Backoff {
        min: duration(min)?,
        max: duration(max)?,
    };
    if backoff.min > backoff.max {
        return Err("MIN is longer than MAX".to_owned());
    }
    Ok(backoff)
}

fn format(text: &str) -> Result<Format, String> {
    match text {
        "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        "journal" => Ok(Format::Journal),
        _ => Err("text, json or journal would do".to_owned()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn the_parsers_take_what_the_page_names_and_refuse_the_rest() {
        assert_eq!(workers("auto"), Ok(Workers::Auto));
        assert_eq!(workers("3"), Ok(Workers::Count(3)));
        for wrong in ["0", "-1", "", "many", "1.5", "99999"] {
            assert!(workers(wrong).is_err(), "{wrong}");
        }
        assert_eq!(ready("fd:5"), Ok(Ready::Fd(5)));
        assert_eq!(ready("alive:1s"), Ok(Ready::Alive(Duration::from_secs(1))));
        assert_eq!(
            ready("exec:test -e x:y"),
            Ok(Ready::Exec("test -e x:y".to_owned()))
        );
        for wrong in ["", "fd:", "fd:2", "exec:", "alive:", "listen:3", "soon"] {
            assert!(ready(wrong).is_err(), "{wrong}");
        }
        assert_eq!(surge("50%"), Ok(Surge::Percent(50)));
        assert_eq!(surge("0"), Ok(Surge::Count(0)));
        for wrong in ["101%", "-1", "%", ""] {
            assert!(surge(wrong).is_err(), "{wrong}");
        }
        assert!(backoff("1s..100ms").is_err());
        assert_eq!(mode("0660"), Ok(0o660));
        assert!(mode("999").is_err());
    }
}
