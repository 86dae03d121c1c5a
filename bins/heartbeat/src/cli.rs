//! What was typed. Nothing is computed here: see plan.rs.

use clap::builder::BoolishValueParser;
use clap::{Parser, ValueEnum};
use common::cli::{count, duration, log_format, rate, signal, size};
use common::event;
use common::time::Rate;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  heartbeat --port 3000 --on-fail 'kill -USR2 $PID' --pid-file app.pid
  heartbeat --once --port 3000 || echo 'not well'

Everything else: man heartbeat";

/// is it alive, and if not, act
#[derive(Debug, Parser)]
#[command(
    name = "heartbeat",
    version,
    about,
    after_help = EXAMPLES,
    override_usage = "heartbeat [checks] [options] [--] [command [argument...]]",
    disable_help_subcommand = true,
    args_override_self = false
)]
pub struct Cli {
    /// GET http://localhost:N/
    #[arg(long, value_name = "N", env = "HEARTBEAT_PORT", hide_env = true, value_parser = port, help_heading = "Checks (all must pass)")]
    pub port: Vec<u16>,
    /// GET an http or https URL
    #[arg(
        long,
        value_name = "URL",
        env = "HEARTBEAT_URL",
        hide_env = true,
        help_heading = "Checks (all must pass)"
    )]
    pub url: Vec<String>,
    /// HTTP over a unix socket; @name: abstract
    #[arg(
        long,
        value_name = "PATH",
        env = "HEARTBEAT_UNIX",
        hide_env = true,
        help_heading = "Checks (all must pass)"
    )]
    pub unix: Vec<OsString>,
    /// Connect; with --send, --receive: talk
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "HEARTBEAT_TCP",
        hide_env = true,
        help_heading = "Checks (all must pass)"
    )]
    pub tcp: Vec<String>,
    /// To --tcp or --unix; \r \n \xHH are read
    #[arg(
        long,
        value_name = "TEXT",
        env = "HEARTBEAT_SEND",
        hide_env = true,
        help_heading = "Checks (all must pass)"
    )]
    pub send: Option<String>,
    /// What must come back
    #[arg(
        long,
        value_name = "TEXT",
        env = "HEARTBEAT_RECEIVE",
        hide_env = true,
        help_heading = "Checks (all must pass)"
    )]
    pub receive: Option<String>,
    /// A shell command; status 0 is well
    #[arg(
        long,
        value_name = "CMD",
        env = "HEARTBEAT_EXEC",
        hide_env = true,
        help_heading = "Checks (all must pass)"
    )]
    pub exec: Vec<OsString>,
    /// The process lives; it is $PID
    #[arg(long, value_name = "N", env = "HEARTBEAT_PID", hide_env = true, value_parser = pid, allow_negative_numbers = true, help_heading = "Checks (all must pass)")]
    pub pid: Option<i32>,
    /// The same, by its pid file
    #[arg(
        long,
        value_name = "FILE",
        env = "HEARTBEAT_PID_FILE",
        hide_env = true,
        help_heading = "Checks (all must pass)"
    )]
    pub pid_file: Option<PathBuf>,
    /// Look at each of its children too
    #[arg(long, env = "HEARTBEAT_CHILDREN", hide_env = true, value_parser = BoolishValueParser::new(), help_heading = "Checks (all must pass)")]
    pub children: bool,
    /// An event loop that spins for so long
    #[arg(long, value_name = "D", env = "HEARTBEAT_STUCK", hide_env = true, value_parser = window, help_heading = "Checks (all must pass)")]
    pub stuck: Option<Duration>,
    /// Of one CPU, over D [default of D: 60s]
    #[arg(long, value_name = "P%[:D]", env = "HEARTBEAT_MAX_CPU", hide_env = true, value_parser = cpu, help_heading = "Checks (all must pass)")]
    pub max_cpu: Option<Cpu>,
    /// Memory that is its own
    #[arg(long, value_name = "SIZE", env = "HEARTBEAT_MAX_RSS", hide_env = true, value_parser = positive_size, help_heading = "Checks (all must pass)")]
    pub max_rss: Option<u64>,
    /// Of its limit of descriptors, or so many
    #[arg(long, value_name = "P%|N", env = "HEARTBEAT_MAX_FDS", hide_env = true, value_parser = fds, help_heading = "Checks (all must pass)")]
    pub max_fds: Option<Fds>,

    /// Of --port and --unix [default: /]
    #[arg(
        long,
        value_name = "PATH",
        env = "HEARTBEAT_PATH",
        hide_env = true,
        help_heading = "HTTP"
    )]
    pub path: Option<String>,
    /// GET, HEAD, ...
    #[arg(long, value_name = "NAME", env = "HEARTBEAT_METHOD", hide_env = true, value_parser = method, default_value = "GET", help_heading = "HTTP")]
    pub method: String,
    /// One more, as in 'Accept: text/html'
    #[arg(long, value_name = "LINE", env = "HEARTBEAT_HEADER", hide_env = true, value_parser = header, help_heading = "HTTP")]
    pub header: Vec<String>,
    /// Host header, and name for TLS
    #[arg(long, value_name = "NAME", env = "HEARTBEAT_HOST", hide_env = true, value_parser = host, help_heading = "HTTP")]
    pub host: Option<String>,
    /// Such as 200,500-503,2xx,!404
    #[arg(long, value_name = "LIST", env = "HEARTBEAT_EXPECT", hide_env = true, value_parser = crate::expect::parse, default_value = "200-399", help_heading = "HTTP")]
    pub expect: crate::expect::Expect,
    /// Must match the body
    #[arg(
        long,
        value_name = "RE",
        env = "HEARTBEAT_BODY",
        hide_env = true,
        help_heading = "HTTP"
    )]
    pub body: Option<String>,
    /// Must not
    #[arg(
        long,
        value_name = "RE",
        env = "HEARTBEAT_NOT_BODY",
        hide_env = true,
        help_heading = "HTTP"
    )]
    pub not_body: Option<String>,
    /// Read at most so much
    #[arg(long, value_name = "SIZE", env = "HEARTBEAT_MAX_BODY", hide_env = true, value_parser = positive_size, default_value = "64K", help_heading = "HTTP")]
    pub max_body: u64,
    /// Redirects, on the same host
    #[arg(
        long,
        value_name = "N",
        env = "HEARTBEAT_FOLLOW",
        hide_env = true,
        default_value = "0",
        help_heading = "HTTP"
    )]
    pub follow: u32,
    /// Take any certificate
    #[arg(long, env = "HEARTBEAT_INSECURE", hide_env = true, value_parser = BoolishValueParser::new(), help_heading = "HTTP")]
    pub insecure: bool,
    /// Trust these: an issuer, or the server's
    #[arg(
        long,
        value_name = "FILE",
        env = "HEARTBEAT_CACERT",
        hide_env = true,
        help_heading = "HTTP"
    )]
    pub cacert: Option<PathBuf>,
    /// Slow if the certificate ends within D
    #[arg(long, value_name = "D", env = "HEARTBEAT_CERT_WARN", hide_env = true, value_parser = duration, help_heading = "HTTP")]
    pub cert_warn: Option<Duration>,
    /// IPv4 only
    #[arg(short = '4', long, env = "HEARTBEAT_IPV4", hide_env = true, value_parser = BoolishValueParser::new(), help_heading = "HTTP")]
    pub ipv4: bool,
    /// IPv6 only
    #[arg(short = '6', long, env = "HEARTBEAT_IPV6", hide_env = true, value_parser = BoolishValueParser::new(), conflicts_with = "ipv4", help_heading = "HTTP")]
    pub ipv6: bool,

    /// Before the first check
    #[arg(long, value_name = "D", env = "HEARTBEAT_START_DELAY", hide_env = true, value_parser = duration, default_value = "0", help_heading = "Time and judgement")]
    pub start_delay: Duration,
    /// Failures don't count in it
    #[arg(long, value_name = "D", env = "HEARTBEAT_START_PERIOD", hide_env = true, value_parser = duration, default_value = "30s", help_heading = "Time and judgement")]
    pub start_period: Duration,
    /// Between checks in that time
    #[arg(long, value_name = "D", env = "HEARTBEAT_START_INTERVAL", hide_env = true, value_parser = interval, default_value = "1s", help_heading = "Time and judgement")]
    pub start_interval: Duration,
    /// Between checks
    #[arg(long, value_name = "D", env = "HEARTBEAT_INTERVAL", hide_env = true, value_parser = interval, default_value = "10s", help_heading = "Time and judgement")]
    pub interval: Duration,
    /// While in doubt [default: a fifth]
    #[arg(long, value_name = "D", env = "HEARTBEAT_FAST_INTERVAL", hide_env = true, value_parser = interval, help_heading = "Time and judgement")]
    pub fast_interval: Option<Duration>,
    /// While down [default: --interval]
    #[arg(long, value_name = "D", env = "HEARTBEAT_DOWN_INTERVAL", hide_env = true, value_parser = interval, help_heading = "Time and judgement")]
    pub down_interval: Option<Duration>,
    /// For all of a check
    #[arg(long, value_name = "D", env = "HEARTBEAT_TIMEOUT", hide_env = true, value_parser = limit, default_value = "10s", help_heading = "Time and judgement")]
    pub timeout: Duration,
    /// So much later, by chance
    #[arg(long, value_name = "P%", env = "HEARTBEAT_JITTER", hide_env = true, value_parser = percent, default_value = "10%", help_heading = "Time and judgement")]
    pub jitter: u32,
    /// In a row, or of the last M: down
    #[arg(long, value_name = "N|N/M", env = "HEARTBEAT_FAILS", hide_env = true, value_parser = quorum, default_value = "3", help_heading = "Time and judgement")]
    pub fails: crate::judge::Quorum,
    /// In a row: up again
    #[arg(long, value_name = "N", env = "HEARTBEAT_RISES", hide_env = true, value_parser = count, default_value = "1", help_heading = "Time and judgement")]
    pub rises: u32,
    /// Latency above it is slow
    #[arg(long, value_name = "D", env = "HEARTBEAT_SLOW", hide_env = true, value_parser = limit, help_heading = "Time and judgement")]
    pub slow: Option<Duration>,

    /// When down; $PID, $HEARTBEAT_REASON, ...
    #[arg(
        long,
        value_name = "CMD",
        env = "HEARTBEAT_ON_FAIL",
        hide_env = true,
        help_heading = "Action"
    )]
    pub on_fail: Option<OsString>,
    /// When down: to the process
    #[arg(long, value_name = "SIG", env = "HEARTBEAT_SIGNAL", hide_env = true, value_parser = signal, help_heading = "Action")]
    pub signal: Option<i32>,
    /// Before these: a core, a profile
    #[arg(
        long,
        value_name = "CMD",
        env = "HEARTBEAT_BEFORE_ACTION",
        hide_env = true,
        help_heading = "Action"
    )]
    pub before_action: Option<OsString>,
    /// When up again
    #[arg(
        long,
        value_name = "CMD",
        env = "HEARTBEAT_ON_RECOVER",
        hide_env = true,
        help_heading = "Action"
    )]
    pub on_recover: Option<OsString>,
    /// When slow
    #[arg(
        long,
        value_name = "CMD",
        env = "HEARTBEAT_ON_SLOW",
        hide_env = true,
        help_heading = "Action"
    )]
    pub on_slow: Option<OsString>,
    /// At each change of state
    #[arg(
        long,
        value_name = "CMD",
        env = "HEARTBEAT_ON_CHANGE",
        hide_env = true,
        help_heading = "Action"
    )]
    pub on_change: Option<OsString>,
    /// At each good check
    #[arg(
        long,
        value_name = "CMD",
        env = "HEARTBEAT_ON_OK",
        hide_env = true,
        help_heading = "Action"
    )]
    pub on_ok: Option<OsString>,
    /// When down: end with status 1
    #[arg(long, env = "HEARTBEAT_EXIT_ON_FAIL", hide_env = true, value_parser = BoolishValueParser::new(), help_heading = "Action")]
    pub exit_on_fail: bool,
    /// Of each of these
    #[arg(long, value_name = "D", env = "HEARTBEAT_ACTION_TIMEOUT", hide_env = true, value_parser = limit, default_value = "60s", help_heading = "Action")]
    pub action_timeout: Duration,
    /// A start period after an action
    #[arg(long, value_name = "D", env = "HEARTBEAT_GRACE", hide_env = true, value_parser = duration, default_value = "30s", help_heading = "Action")]
    pub grace: Duration,
    /// Till the next action; doubles
    #[arg(long, value_name = "D", env = "HEARTBEAT_COOLDOWN", hide_env = true, value_parser = duration, default_value = "30s", help_heading = "Action")]
    pub cooldown: Duration,
    /// Up to that
    #[arg(long, value_name = "D", env = "HEARTBEAT_COOLDOWN_MAX", hide_env = true, value_parser = duration, default_value = "15m", help_heading = "Action")]
    pub cooldown_max: Duration,
    /// Actions, then give up; 0: never
    #[arg(long, value_name = "N/D", env = "HEARTBEAT_LIMIT", hide_env = true, value_parser = rate, default_value = "5/10m", help_heading = "Action")]
    pub limit: Rate,
    /// Then end with status 1
    #[arg(long, env = "HEARTBEAT_EXIT_ON_GIVEUP", hide_env = true, value_parser = BoolishValueParser::new(), help_heading = "Action")]
    pub exit_on_giveup: bool,
    /// No action while the hypervisor steals
    #[arg(long, value_name = "P%", env = "HEARTBEAT_SKIP_IF_STEAL", hide_env = true, value_parser = percent, help_heading = "Action")]
    pub skip_if_steal: Option<u32>,

    /// Check once: 0 well, 1 not
    #[arg(long, env = "HEARTBEAT_ONCE", hide_env = true, value_parser = BoolishValueParser::new(), help_heading = "One shot, reports")]
    pub once: bool,
    /// Until well, or 124 after D
    #[arg(long, value_name = "D", env = "HEARTBEAT_WAIT", hide_env = true, value_parser = limit, help_heading = "One shot, reports")]
    pub wait: Option<Duration>,
    /// When a fault would be seen; no check
    #[arg(long, env = "HEARTBEAT_EXPLAIN", hide_env = true, value_parser = BoolishValueParser::new(), help_heading = "One shot, reports")]
    pub explain: bool,
    /// human, json; nagios with --once
    #[arg(
        long,
        value_name = "FORMAT",
        env = "HEARTBEAT_FORMAT",
        hide_env = true,
        value_enum,
        hide_possible_values = true,
        default_value = "human",
        help_heading = "One shot, reports"
    )]
    pub format: Format,
    /// READY=1, WATCHDOG=1 for the service
    #[arg(long, env = "HEARTBEAT_SD_NOTIFY", hide_env = true, value_parser = BoolishValueParser::new(), help_heading = "One shot, reports")]
    pub sd_notify: bool,
    /// Prometheus text, by rename
    #[arg(
        long,
        value_name = "FILE",
        env = "HEARTBEAT_METRICS",
        hide_env = true,
        help_heading = "One shot, reports"
    )]
    pub metrics: Option<PathBuf>,
    /// Our pid; a second one is refused
    #[arg(
        long,
        value_name = "FILE",
        env = "HEARTBEAT_LOCK",
        hide_env = true,
        help_heading = "One shot, reports"
    )]
    pub lock: Option<PathBuf>,
    /// Of events: text, json, journal
    #[arg(long, value_name = "FORMAT", env = "HEARTBEAT_LOG_FORMAT", hide_env = true, value_parser = log_format, help_heading = "One shot, reports")]
    pub log_format: Option<event::Format>,
    /// Only warnings and errors
    #[arg(short, long, env = "HEARTBEAT_QUIET", hide_env = true, value_parser = BoolishValueParser::new(), conflicts_with = "verbose", help_heading = "One shot, reports")]
    pub quiet: bool,
    /// Each check too
    #[arg(short, long, env = "HEARTBEAT_VERBOSE", hide_env = true, value_parser = BoolishValueParser::new(), help_heading = "One shot, reports")]
    pub verbose: bool,

    /// The command and its arguments
    #[arg(trailing_var_arg = true, hide = true)]
    pub words: Vec<OsString>,
}

/// `--format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Human,
    /// JSON Lines.
    Json,
    /// A plug-in's line, with performance data.
    Nagios,
}

/// `--max-cpu`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// In percent of one CPU.
    pub percent: u32,
    /// Measured over that.
    pub over: Duration,
}

/// `--max-fds`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fds {
    /// In percent of the soft limit.
    Percent(u32),
    /// So many.
    Count(u64),
}

fn port(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("'{text}' is no port; 1 to 65535 would do")),
    }
}

fn pid(text: &str) -> Result<i32, String> {
    match text.parse::<i32>() {
        Ok(pid) if pid > 1 => Ok(pid),
        Ok(1) => Err("process 1 is the system's; another pid would do".to_owned()),
        _ => Err(format!("'{text}' is no pid; a number from 2 on would do")),
    }
}

/// A time that has to be some: `--timeout`.
fn limit(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        length if length.is_zero() => Err(format!("'{text}' leaves no time; 10s would do")),
        length => Ok(length),
    }
}

/// Not so short that nothing but checks happens.
fn interval(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        length if length < Duration::from_millis(10) => {
            Err(format!("'{text}' is too short; from 10ms on would do"))
        }
        length => Ok(length),
    }
}

/// Processor time is counted in clock ticks of 10 ms, so less than a second says nothing.
fn window(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        length if length < Duration::from_secs(1) => Err(format!(
            "'{text}' is too short to tell; from 1s on would do"
        )),
        length => Ok(length),
    }
}

fn percent(text: &str) -> Result<u32, String> {
    match text.trim().trim_end_matches('%').parse::<u32>() {
        Ok(percent) if percent <= 100 => Ok(percent),
        _ => Err(format!("'{text}' is no share; 0% to 100% would do")),
    }
}

fn cpu(text: &str) -> Result<Cpu, String> {
    let wrong = || format!("'{text}' is no such limit; 90% or 90%:60s would do");
    let (share, over) = text.split_once(':').unwrap_or((text, "60s"));
    let percent = share.trim_end_matches('%').parse().map_err(|_| wrong())?;
    let over = window(over).map_err(|_| wrong())?;
    if percent == 0 {
        return Err(wrong());
    }
    Ok(Cpu { percent, over })
}

fn fds(text: &str) -> Result<Fds, String> {
    let wrong = || format!("'{text}' is no such limit; 90% or 1000 would do");
    match text.strip_suffix('%') {
        Some(share) => match share.parse::<u32>() {
            Ok(percent) if (1..=100).contains(&percent) => Ok(Fds::Percent(percent)),
            _ => Err(wrong()),
        },
        None => match text.parse::<u64>() {
            Ok(count) if count > 0 => Ok(Fds::Count(count)),
            _ => Err(wrong()),
        },
    }
}

fn positive_size(text: &str) -> Result<u64, String> {
    match size(text)? {
        0 => Err("'0' would never do; 64K would".to_owned()),
        size => Ok(size),
    }
}

fn method(text: &str) -> Result<String, String> {
    let known = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"];
    let name = text.to_ascii_uppercase();
    if known.contains(&name.as_str()) {
        Ok(name)
    } else {
        Err(format!(
            "'{text}' is no method; {} would do",
            known.join(", ")
        ))
    }
}

fn header(text: &str) -> Result<String, String> {
    let wrong = || {
        format!(
            "'{}' is no header; 'Accept: text/html' would do",
            text.escape_default()
        )
    };
    let (name, value) = text.split_once(':').ok_or_else(wrong)?;
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(token) || value.chars().any(char::is_control) {
        return Err(wrong());
    }
    // They would promise a body that is never sent.
    let framing = ["content-length", "transfer-encoding", "expect"];
    if framing.contains(&name.to_ascii_lowercase().as_str()) {
        return Err(format!(
            "'{name}' is about a body, and none is sent; any other header would do"
        ));
    }
    Ok(text.to_owned())
}

fn host(text: &str) -> Result<String, String> {
    let fine = |letter: char| letter.is_ascii_alphanumeric() || "-._:[]".contains(letter);
    if text.is_empty() || !text.chars().all(fine) {
        return Err(format!("'{text}' is no host; www.example.org would do"));
    }
    Ok(text.to_owned())
}

fn quorum(text: &str) -> Result<crate::judge::Quorum, String> {
    let wrong = || format!("'{text}': 3 (in a row) or 3/5 (of the last five) would do, up to 64");
    let (fails, of) = text.split_once('/').unwrap_or((text, text));
    let (fails, of) = (fails.trim().parse().ok(), of.trim().parse().ok());
    match (fails, of) {
        (Some(fails), Some(of)) if fails > 0 && fails <= of && of <= 64 => {
            Ok(crate::judge::Quorum { fails, of })
        }
        _ => Err(wrong()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_makes_no_sense_is_refused_with_what_would_do() {
        for words in [
            ["--port", "0"],
            ["--port", "65536"],
            ["--pid", "1"],
            ["--pid", "-5"],
            ["--timeout", "0"],
            ["--interval", "0"],
            ["--interval", "5ms"],
            ["--stuck", "10ms"],
            ["--max-cpu", "x"],
            ["--max-fds", "101%"],
            ["--max-rss", "0"],
            ["--expect", "abc"],
            ["--method", "FETCH"],
            ["--header", "no colon"],
            ["--header", "Content-Length: 5"],
            ["--header", "a: b\nc: d"],
            ["--host", "a b"],
            ["--fails", "5/3"],
            ["--fails", "0"],
            ["--fails", "3/65"],
            ["--jitter", "200%"],
            ["--limit", "5"],
            ["--signal", "NOPE"],
        ] {
            let why = Cli::try_parse_from(["heartbeat", words[0], words[1]]).unwrap_err();
            let why = why.to_string();
            assert!(why.contains("would") && why.contains(words[0]), "{why}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_typed_is_read_or_refused(text in "\\PC{0,20}", near in "[0-9%/:smhdKMG. -]{0,10}") {
            for text in [text, near] {
                let refused = [
                    port(&text).err(), pid(&text).err(), limit(&text).err(), interval(&text).err(),
                    window(&text).err(), percent(&text).err(), cpu(&text).err(), fds(&text).err(),
                    positive_size(&text).err(), method(&text).err(), header(&text).err(),
                    host(&text).err(), quorum(&text).err(), crate::expect::parse(&text).err(),
                ];
                for why in refused.into_iter().flatten() {
                    assert!(why.contains("would") && !why.contains('\n'), "{why}");
                }
            }
        }

        #[test]
        fn what_is_meant_comes_back(fails in 1u32..=64, more in 0u32..64, share in 1u32..=100, seconds in 1u64..=100_000) {
            let of = (fails + more).min(64);
            let read = quorum(&format!("{fails}/{of}")).unwrap();
            assert_eq!((read.fails, read.of), (fails, of));
            assert_eq!(quorum(&fails.to_string()).unwrap(), quorum(&format!("{fails}/{fails}")).unwrap());
            let read = cpu(&format!("{share}%:{seconds}s")).unwrap();
            assert_eq!((read.percent, read.over), (share, Duration::from_secs(seconds)));
            assert_eq!(fds(&format!("{share}%")), Ok(Fds::Percent(share)));
            assert_eq!(fds(&seconds.to_string()), Ok(Fds::Count(seconds)));
            assert_eq!(percent(&format!("{share}%")), percent(&share.to_string()));
        }

        #[test]
        fn a_header_that_is_taken_is_one_line(text in "[A-Za-z-]{0,6}[: ]{0,2}[ -~\r\n\t]{0,10}") {
            if let Ok(line) = header(&text) {
                assert!(!line.chars().any(char::is_control));
                let (name, value) = line.split_once(':').unwrap();
                let request = ureq::http::Request::builder().header(name, value.trim());
                assert!(request.body(()).is_ok(), "{line}");
            }
        }
    }
}
