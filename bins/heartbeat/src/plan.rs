//! What was meant: read, validated, contradictions refused. Nothing is opened or asked yet.

use crate::cli::{Cli, Format};
use crate::http::Request;
use crate::judge::Rules;
use crate::process::Limits as ProcessLimits;
use crate::url::{Endpoint, Url, check_path, unescape};
use crate::wire::{Dialogue, Family, unix_address};
use common::error::{Error, Result};
use common::event::{self, Level};
use common::limiter::Limits;
use common::socket::Address;
use common::watched::Name;
use regex_lite::Regex;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

/// One check, and its name in the lines.
#[derive(Debug)]
pub struct Check {
    /// `http://localhost:3000/`
    pub target: String,
    /// What it is.
    pub kind: Kind,
}

/// What a check is.
#[derive(Debug)]
pub enum Kind {
    /// HTTP or HTTPS.
    Http(Box<Request>),
    /// A connection, and what is said over it.
    Tcp(Endpoint, Dialogue),
    /// A shell command.
    Exec(OsString),
    /// The process that is watched.
    Process,
}

/// Which process is the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Service {
    /// None is named.
    Nobody,
    /// `--pid`, `--pid-file`
    Named(Name),
    /// The wrapped command.
    Wrapped,
}

/// How long to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// For ever.
    Watch,
    /// `--once`
    Once,
    /// `--wait`
    Wait(Duration),
    /// `--explain`
    Explain,
}

/// When.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// `--start-delay`
    pub start_delay: Duration,
    /// `--start-period`
    pub start_period: Duration,
    /// `--start-interval`
    pub start: Duration,
    /// `--interval`
    pub normal: Duration,
    /// `--fast-interval`
    pub fast: Duration,
    /// `--down-interval`
    pub down: Duration,
    /// `--timeout`
    pub timeout: Duration,
    /// `--jitter`, in percent.
    pub jitter: u32,
    /// `--grace`
    pub grace: Duration,
}

/// What is done.
#[derive(Debug, Default)]
pub struct Actions {
    /// `--on-fail`
    pub fail: Option<OsString>,
    /// `--signal`
    pub signal: Option<i32>,
    /// `--before-action`
    pub before: Option<OsString>,
    /// `--on-recover`
    pub recover: Option<OsString>,
    /// `--on-slow`
    pub slow: Option<OsString>,
    /// `--on-change`
    pub change: Option<OsString>,
    /// `--on-ok`
    pub ok: Option<OsString>,
    /// `--exit-on-fail`
    pub exit_on_fail: bool,
    /// `--exit-on-giveup`
    pub exit_on_giveup: bool,
    /// `--skip-if-steal`, in percent.
    pub skip_if_steal: Option<u32>,
}

impl Actions {
    /// Something is done when the service is down.
    #[must_use]
    pub fn heals(&self) -> bool {
        self.fail.is_some() || self.signal.is_some()
    }
}

/// Everything that running needs.
#[derive(Debug)]
pub struct Plan {
    /// At least one.
    pub checks: Vec<Check>,
    /// Whose `$PID`.
    pub service: Service,
    /// The command to wrap.
    pub command: Vec<OsString>,
    /// What of processes is looked at.
    pub process: ProcessLimits,
    /// How long to go on.
    pub mode: Mode,
    /// When.
    pub times: Times,
    /// The judge's.
    pub rules: Rules,
    /// `--slow`
    pub slow: Option<Duration>,
    /// What is done.
    pub actions: Actions,
    /// `--action-timeout`
    pub action_timeout: Duration,
    /// How often.
    pub limits: Limits,
    /// `-4`, `-6`
    pub family: Family,
    /// Whom TLS trusts; `None`: no check needs it.
    #[cfg(feature = "tls")]
    pub trust: Option<crate::tls::Wish>,
    /// `--format`
    pub format: Format,
    /// `--sd-notify`
    pub sd_notify: bool,
    /// `--metrics`
    pub metrics: Option<PathBuf>,
    /// `--lock`
    pub lock: Option<PathBuf>,
    /// `--log-format`
    pub log_format: Option<event::Format>,
    /// `--quiet`, `--verbose`
    pub threshold: Level,
}

impl Plan {
    /// # Errors
    /// What contradicts itself, or cannot be meant (2).
    pub fn make(cli: Cli) -> Result<Plan> {
        let service = service(&cli)?;
        let checks = checks(&cli, &service)?;
        check_words(&cli, &service)?;
        let mode = mode(&cli)?;
        if cli.format == Format::Nagios && !matches!(mode, Mode::Once | Mode::Wait(_)) {
            return Err(Error::usage(
                "--format nagios is one answer for one question: with --once or --wait it would do",
            ));
        }
        let secured = checks.iter().any(|check| match &check.kind {
            Kind::Http(request) => request.url.tls,
            Kind::Tcp(..) | Kind::Exec(_) | Kind::Process => false,
        });
        if secured && cfg!(not(feature = "tls")) {
            return Err(Error::usage(
                "--url: this heartbeat was built without TLS; http://, or a build with the feature tls, would do",
            ));
        }
        if !secured && (cli.cacert.is_some() || cli.insecure || cli.cert_warn.is_some()) {
            return Err(Error::usage(
                "--cacert, --insecure and --cert-warn are for https; --url https://... would do",
            ));
        }
        let threshold = match (cli.quiet, cli.verbose) {
            (true, _) => Level::Warning,
            (_, true) => Level::Debug,
            _ => Level::Info,
        };
        let family = family(&cli);
        Ok(Plan {
            checks,
            service,
            process: process_limits(&cli),
            mode,
            times: Times {
                start_delay: cli.start_delay,
                start_period: cli.start_period,
                start: cli.start_interval,
                normal: cli.interval,
                fast: cli
                    .fast_interval
                    .unwrap_or_else(|| (cli.interval / 5).max(Duration::from_millis(10))),
                down: cli.down_interval.unwrap_or(cli.interval),
                timeout: cli.timeout,
                jitter: cli.jitter,
                grace: cli.grace,
            },
            rules: Rules {
                fails: cli.fails,
                rises: cli.rises,
            },
            slow: cli.slow,
            action_timeout: cli.action_timeout,
            limits: Limits {
                cooldown: cli.cooldown,
                cooldown_max: cli.cooldown_max,
                limit: cli.limit,
            },
            family,
            #[cfg(feature = "tls")]
            trust: secured.then(|| crate::tls::Wish {
                insecure: cli.insecure,
                cacert: cli.cacert.clone(),
            }),
            format: cli.format,
            sd_notify: cli.sd_notify,
            metrics: cli.metrics,
            lock: cli.lock,
            log_format: cli.log_format,
            threshold,
            command: cli.words,
            actions: Actions {
                fail: cli.on_fail,
                signal: cli.signal,
                before: cli.before_action,
                recover: cli.on_recover,
                slow: cli.on_slow,
                change: cli.on_change,
                ok: cli.on_ok,
                exit_on_fail: cli.exit_on_fail,
                exit_on_giveup: cli.exit_on_giveup,
                skip_if_steal: cli.skip_if_steal,
            },
        })
    }
}

fn family(cli: &Cli) -> Family {
    match (cli.ipv4, cli.ipv6) {
        (true, _) => Family::V4,
        (_, true) => Family::V6,
        _ => Family::Any,
    }
}

fn mode(cli: &Cli) -> Result<Mode> {
    let mode = match (cli.explain, cli.once, cli.wait) {
        (true, _, _) => return Ok(Mode::Explain),
        (_, true, Some(_)) => {
            return Err(Error::usage("--once and --wait: one of them would do"));
        }
        (_, true, None) => Mode::Once,
        (_, false, Some(length)) => Mode::Wait(length),
        (_, false, None) => Mode::Watch,
    };
    if mode != Mode::Watch && !cli.words.is_empty() {
        return Err(Error::usage(
            "--once and --wait start no command; the checks alone would do",
        ));
    }
    Ok(mode)
}

fn service(cli: &Cli) -> Result<Service> {
    let named = (cli.pid, &cli.pid_file, !cli.words.is_empty());
    match named {
        (None, None, false) => Ok(Service::Nobody),
        (Some(pid), None, false) => Ok(Service::Named(Name::Number(pid))),
        (None, Some(file), false) => Ok(Service::Named(Name::File(file.clone()))),
        (None, None, true) => Ok(Service::Wrapped),
        _ => Err(Error::usage(
            "--pid, --pid-file and a command each name the process; one of them would do",
        )),
    }
}

fn process_limits(cli: &Cli) -> ProcessLimits {
    ProcessLimits {
        children: cli.children,
        stuck: cli.stuck,
        cpu: cli.max_cpu,
        rss: cli.max_rss,
        fds: cli.max_fds,
    }
}

/// Words that need a process, and whether there is one.
fn check_words(cli: &Cli, service: &Service) -> Result<()> {
    if *service != Service::Nobody {
        return Ok(());
    }
    const WOULD_DO: &str = "--pid-file FILE, --pid N or a command would do";
    let options = [
        ("--signal", cli.signal.is_some()),
        ("--children", cli.children),
        ("--stuck", cli.stuck.is_some()),
        ("--max-cpu", cli.max_cpu.is_some()),
        ("--max-rss", cli.max_rss.is_some()),
        ("--max-fds", cli.max_fds.is_some()),
    ];
    if let Some((option, _)) = options.iter().find(|(_, given)| *given) {
        return Err(Error::usage(format!(
            "{option}: no process is named; {WOULD_DO}"
        )));
    }
    let commands = [
        ("--on-fail", &cli.on_fail),
        ("--before-action", &cli.before_action),
        ("--on-recover", &cli.on_recover),
        ("--on-slow", &cli.on_slow),
        ("--on-change", &cli.on_change),
        ("--on-ok", &cli.on_ok),
    ];
    for (option, command) in commands {
        if command
            .as_ref()
            .is_some_and(|command| mentions_pid(command))
        {
            return Err(Error::usage(format!(
                "{option} uses $PID, but no process is named; {WOULD_DO}"
            )));
        }
    }
    Ok(())
}

/// `$PID` or `${PID...}`, and not `$PIDS`.
fn mentions_pid(command: &OsStr) -> bool {
    let bytes = command.as_bytes();
    let name =
        |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    (0..bytes.len()).any(|at| {
        let rest = &bytes[at..];
        (rest.starts_with(b"$PID") && !name(rest.get(4)))
            || (rest.starts_with(b"${PID") && !name(rest.get(5)))
    })
}

fn regex(option: &str, text: Option<&String>) -> Result<Option<Regex>> {
    text.map(|text| {
        Regex::new(text).map_err(|why| {
            let why = why.to_string();
            Error::usage(format!(
                "{option} '{}': {why}; a regular expression such as 'ok|ready' would do",
                text.escape_debug()
            ))
        })
    })
    .transpose()
}

fn checks(cli: &Cli, service: &Service) -> Result<Vec<Check>> {
    let http = HttpOptions::new(cli)?;
    let dialogue = dialogue(cli)?;
    let mut checks = Vec::new();
    for port in &cli.port {
        let url = Url {
            tls: false,
            host: "localhost".to_owned(),
            port: *port,
            path: http.path.clone(),
        };
        checks.push(http.check(url.text(), url, Endpoint::Localhost(*port)));
    }
    for text in &cli.url {
        let url = Url::parse(text).map_err(|why| Error::usage(format!("--url {why}")))?;
        let endpoint = Endpoint::new(&url.host, url.port);
        checks.push(http.check(url.text(), url, endpoint));
    }
    for path in &cli.unix {
        let bytes = path.clone().into_vec();
        let endpoint = unix(&bytes)?;
        let name = String::from_utf8_lossy(&bytes).escape_debug().to_string();
        if let (Some(dialogue), true) = (&dialogue, cli.tcp.is_empty()) {
            checks.push(Check {
                target: format!("unix:{name}"),
                kind: Kind::Tcp(endpoint, dialogue.clone()),
            });
        } else {
            let url = Url {
                tls: false,
                host: "localhost".to_owned(),
                port: 80,
                path: http.path.clone(),
            };
            checks.push(http.check(format!("unix:{name}:{}", http.path), url, endpoint));
        }
    }
    for text in &cli.tcp {
        let (host, port) = tcp(text)?;
        let talk = dialogue.clone().unwrap_or(Dialogue {
            send: Vec::new(),
            receive: Vec::new(),
            most: http.max_body,
        });
        checks.push(Check {
            target: format!("tcp://{text}"),
            kind: Kind::Tcp(Endpoint::new(&host, port), talk),
        });
    }
    for command in &cli.exec {
        if command.is_empty() || command.as_bytes().contains(&0) {
            return Err(Error::usage(
                "--exec: no command; 'redis-cli ping' would do",
            ));
        }
        let text = command.to_string_lossy().escape_debug().to_string();
        checks.push(Check {
            target: format!("exec:{}", text.chars().take(60).collect::<String>()),
            kind: Kind::Exec(command.clone()),
        });
    }
    if checks
        .iter()
        .all(|check| !matches!(check.kind, Kind::Http(_)))
    {
        http.refuse_without_http(cli)?;
    } else if cli.path.is_some() && cli.port.is_empty() && cli.unix.is_empty() {
        return Err(Error::usage(
            "--path is for --port and --unix; at the end of the URL it would do",
        ));
    }
    if dialogue.is_some() && cli.tcp.is_empty() && cli.unix.is_empty() {
        return Err(Error::usage(
            "--send and --receive need a connection; --tcp HOST:PORT or --unix PATH would do",
        ));
    }
    if *service != Service::Nobody {
        let target = match service {
            Service::Named(name) => name.to_string(),
            Service::Nobody | Service::Wrapped => {
                let program = cli
                    .words
                    .first()
                    .map(|word| word.to_string_lossy().into_owned());
                program.unwrap_or_default()
            }
        };
        let target = format!("process:{}", target.strip_prefix("pid ").unwrap_or(&target));
        checks.push(Check {
            target,
            kind: Kind::Process,
        });
    }
    if checks.is_empty() {
        return Err(Error::usage(
            "nothing to check; --port 3000, --url, --unix, --tcp, --exec or --pid-file would do (see heartbeat --help)",
        ));
    }
    Ok(checks)
}

/// The options that every HTTP check shares.
struct HttpOptions {
    path: String,
    method: String,
    headers: Vec<(String, String)>,
    host: Option<String>,
    expect: crate::expect::Expect,
    body: Option<Regex>,
    not_body: Option<Regex>,
    max_body: usize,
    follow: u32,
    cert_warn: Option<Duration>,
    family: Family,
}

impl HttpOptions {
    fn new(cli: &Cli) -> Result<HttpOptions> {
        let path = match &cli.path {
            None => "/".to_owned(),
            Some(path) => check_path(path).map_err(|why| {
                let path = path.escape_debug();
                Error::usage(format!("--path '{path}': {why}; /health would do"))
            })?,
        };
        let headers = cli.header.iter().filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_owned(), value.trim().to_owned()))
        });
        if cli.method == "HEAD" && (cli.body.is_some() || cli.not_body.is_some()) {
            return Err(Error::usage(
                "--body: the answer to HEAD has none; --method GET would do",
            ));
        }
        Ok(HttpOptions {
            path,
            method: cli.method.clone(),
            headers: headers.collect(),
            host: cli.host.clone(),
            expect: cli.expect.clone(),
            body: regex("--body", cli.body.as_ref())?,
            not_body: regex("--not-body", cli.not_body.as_ref())?,
            max_body: usize::try_from(cli.max_body.min(1 << 30)).unwrap_or(1 << 30),
            follow: cli.follow,
            cert_warn: cli.cert_warn,
            family: family(cli),
        })
    }

    fn check(&self, target: String, url: Url, endpoint: Endpoint) -> Check {
        Check {
            target,
            kind: Kind::Http(Box::new(Request {
                url,
                endpoint,
                family: self.family,
                method: self.method.clone(),
                headers: self.headers.clone(),
                host: self.host.clone(),
                expect: self.expect.clone(),
                body: self.body.clone(),
                not_body: self.not_body.clone(),
                max_body: self.max_body,
                follow: self.follow,
                cert_warn: self.cert_warn,
            })),
        }
    }

    fn refuse_without_http(&self, cli: &Cli) -> Result<()> {
        let options = [
            ("--path", cli.path.is_some()),
            ("--header", !self.headers.is_empty()),
            ("--host", self.host.is_some()),
            ("--body", self.body.is_some()),
            ("--not-body", self.not_body.is_some()),
            ("--follow", self.follow > 0),
        ];
        match options.iter().find(|(_, given)| *given) {
            Some((option, _)) => Err(Error::usage(format!(
                "{option} is for HTTP; --port 3000, --url or --unix would do"
            ))),
            None => Ok(()),
        }
    }
}

fn dialogue(cli: &Cli) -> Result<Option<Dialogue>> {
    if cli.send.is_none() && cli.receive.is_none() {
        return Ok(None);
    }
    let read = |option: &str, text: &Option<String>| {
        unescape(text.as_deref().unwrap_or_default())
            .map_err(|why| Error::usage(format!("{option} {why}")))
    };
    Ok(Some(Dialogue {
        send: read("--send", &cli.send)?,
        receive: read("--receive", &cli.receive)?,
        most: usize::try_from(cli.max_body.min(1 << 30)).unwrap_or(1 << 30),
    }))
}

fn unix(path: &[u8]) -> Result<Endpoint> {
    let name = path.strip_prefix(b"@").unwrap_or(path);
    let shown = String::from_utf8_lossy(path);
    if name.is_empty() || name.contains(&0) {
        return Err(Error::usage(format!(
            "--unix '{}' is no path; /run/app.sock or @name would do",
            shown.escape_debug()
        )));
    }
    if path.len() > 107 || unix_address(path).is_err() {
        return Err(Error::usage(format!(
            "--unix: the path is {} bytes long; at most 107 would do (the kernel's limit), from a nearer directory",
            path.len()
        )));
    }
    Ok(Endpoint::Unix(path.to_vec()))
}

fn tcp(text: &str) -> Result<(String, u16)> {
    let wrong = |why: &str| Error::usage(format!("--tcp: {why}; localhost:6379 would do"));
    match common::cli::address(text) {
        Ok(Address::Tcp { port: 0, .. }) => Err(wrong("port 0 is none")),
        Ok(Address::Tcp { host, port }) => {
            Ok((host.unwrap_or_else(|| "localhost".to_owned()), port))
        }
        Ok(Address::Unix(_)) => Err(wrong("that is a unix socket, which --unix takes")),
        Err(_) => Err(wrong(&format!("'{}' is no HOST:PORT", text.escape_debug()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_and_what_only_looks_like_it() {
        for (text, found) in [
            ("kill -USR2 $PID", true),
            ("kill -USR2 ${PID}", true),
            ("kill ${PID:-1}", true),
            ("kill \"$PID\";", true),
            ("echo $PIDS ${PIDFILE} PID", false),
            ("systemctl restart app", false),
        ] {
            assert_eq!(mentions_pid(OsStr::new(text)), found, "{text}");
        }
    }
}
