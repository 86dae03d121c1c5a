//! What was meant: looked up, validated, contradictions refused. Nothing is opened yet.

use crate::cli::{Busy, Cli, Format, Kind, SplayBy};
use crate::eye::Way;
use crate::settle::Policy;
use crate::signature::Wanted;
use crate::walk::absolute;
use common::error::{Doing, Error, Result};
use common::event::{Format as LogFormat, Level};
use common::signal::out_of_reach;
use common::watched::Name;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a touch leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// A line on stdout.
    Print(Lines),
    /// A shell command.
    Shell(OsString),
    /// A signal.
    Signal(i32),
}

/// The form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lines {
    /// Time, kind, path.
    Text,
    /// JSON.
    Json,
    /// `-0`
    Null,
}

/// Everything that running needs.
#[derive(Debug)]
pub struct Plan {
    /// Absolute, each once.
    pub files: Vec<PathBuf>,
    /// `--on`
    pub wanted: Wanted,
    /// `--poll`, `--no-poll`
    pub way: Way,
    /// `--interval`
    pub interval: Duration,
    /// `--safety`
    pub safety: Option<Duration>,
    /// When it acts.
    pub policy: Policy,
    /// `--splay`
    pub splay: Duration,
    /// `--splay-by`
    pub splay_by: SplayBy,
    /// `--run-at-start`
    pub run_at_start: bool,
    /// `--since`
    pub since: Option<PathBuf>,
    /// `--once`
    pub once: bool,
    /// `--timeout`
    pub timeout: Option<Duration>,
    /// What is done.
    pub deed: Deed,
    /// `--pid`, `--pid-file`
    pub target: Option<Name>,
    /// `--action-timeout`
    pub action_timeout: Duration,
    /// `--lock`
    pub lock: Option<PathBuf>,
    /// `--ready-fd`
    pub ready_fd: Option<i32>,
    /// `--log-format`
    pub log_format: Option<LogFormat>,
    /// `--quiet`, `--verbose`
    pub threshold: Level,
    /// The wrapped command.
    pub command: Option<Vec<OsString>>,
}

/// Looks that follow each other more closely are of no use, and keep a processor busy.
const SHORTEST: Duration = Duration::from_millis(10);

impl Plan {
    /// # Errors
    /// What contradicts itself (2); the working directory is gone (125).
    pub fn make(cli: Cli) -> Result<Plan> {
        let usage = |text: &str| Err(Error::usage(text));
        if cli.files.is_empty() {
            return usage("no file is named: watchtouch FILE [options] [-- command]");
        }
        let mut files = Vec::new();
        if cli.files.iter().any(|file| file.is_empty()) {
            return usage("a FILE is an empty word: was a variable not set?");
        }
        if cli.interval < SHORTEST {
            return usage("--interval: 10ms or more would do");
        }
        for file in &cli.files {
            let path = absolute(Path::new(file)).doing("find the working directory")?;
            if !files.contains(&path) {
                files.push(path);
            }
        }
        let wraps = !cli.command.is_empty();
        let target = match (cli.pid, cli.pid_file) {
            (Some(pid), _) if pid <= 1 => {
                return usage("--pid: a process from 2 on would do");
            }
            (Some(pid), _) => Some(Name::Number(pid)),
            (None, Some(path)) => Some(Name::File(path)),
            (None, None) => None,
        };
        if wraps && target.is_some() {
            return usage(
                "--pid and --pid-file name a process, and so does the command: one of them",
            );
        }
        if wraps && (cli.once || cli.timeout.is_some()) {
            return usage(
                "--once and --timeout end watchtouch, which with a command ends with that",
            );
        }
        let deed = match (cli.on_touch, cli.signal) {
            (Some(command), _) if command.is_empty() => {
                return usage("--on-touch: the command is empty");
            }
            (Some(command), _) => Deed::Shell(match &cli.lock_with {
                Some(engine) => locked(engine, &command),
                None => command,
            }),
            (None, Some(signal)) => {
                if target.is_none() && !wraps {
                    return usage("--signal: to whom? --pid, --pid-file or a command would do");
                }
                Deed::Signal(signal)
            }
            (None, None) if wraps => {
                return usage(
                    "with a command, which has our standard output, --on-touch or --signal is needed",
                );
            }
            (None, None) => Deed::Print(match (cli.null, cli.format) {
                (true, _) => Lines::Null,
                (false, Format::Json) => Lines::Json,
                (false, Format::Text) => Lines::Text,
            }),
        };
        let shell = matches!(deed, Deed::Shell(_));
        if target.is_some() && matches!(deed, Deed::Print(_)) {
            return usage("--pid and --pid-file are for --on-touch and --signal");
        }
        if (cli.lock.is_some() || cli.lock_with.is_some()) && !shell {
            return usage(
                "--lock and --lock-with hold a lock while --on-touch runs; \
                 a signal and a line take no time",
            );
        }
        // What has no effect was meant to have one.
        if cli.busy != Busy::Queue && !shell {
            return usage("--busy: while --on-touch runs; a signal and a line take no time");
        }
        if cli.retries > 0 && matches!(deed, Deed::Print(_)) {
            return usage("--retries: of --on-touch or --signal; a line does not fail");
        }
        if cli.splay_by != SplayBy::Random && cli.splay.is_zero() {
            return usage("--splay-by says which part of --splay; --splay 30s would do");
        }
        if (cli.null || cli.format != Format::Text) && !matches!(deed, Deed::Print(_)) {
            return usage(
                "-0 and --format are for the lines that are printed without --on-touch and --signal",
            );
        }
        if let Busy::Signal(signal) = cli.busy {
            if let Some(why) = out_of_reach(signal).filter(|_| signal == libc::SIGCHLD) {
                return usage(&format!("--busy: {why}"));
            }
        }
        if cli
            .lock_with
            .as_ref()
            .is_some_and(|engine| engine.is_empty())
        {
            return usage("--lock-with: the command is empty");
        }
        if cli.ready_fd.is_some_and(|fd| fd < 1) {
            return usage("--ready-fd: a descriptor from 1 on would do");
        }
        Ok(Plan {
            files,
            wanted: Wanted {
                remove: cli.on.contains(&Kind::Remove),
                attr: cli.on.contains(&Kind::Attr),
            },
            way: match (cli.poll, cli.no_poll) {
                (true, _) => Way::Poll,
                (_, true) => Way::NoPoll,
                _ => Way::Auto,
            },
            interval: cli.interval,
            safety: Some(cli.safety).filter(|safety| !safety.is_zero()),
            policy: Policy {
                settle: cli.settle,
                settle_max: cli.settle_max.max(cli.settle),
                min_gap: cli.min_gap,
                busy: cli.busy,
                retries: cli.retries,
                may_loop: shell,
            },
            splay: cli.splay,
            splay_by: cli.splay_by,
            run_at_start: cli.run_at_start,
            since: cli.since,
            once: cli.once,
            timeout: cli.timeout,
            deed,
            target,
            action_timeout: cli.action_timeout,
            lock: cli.lock,
            ready_fd: cli.ready_fd,
            log_format: cli.log_format,
            threshold: match (cli.quiet, cli.verbose) {
                (true, _) => Level::Warning,
                (_, true) => Level::Debug,
                _ => Level::Info,
            },
            command: Some(cli.command).filter(|_| wraps),
        })
    }
}

/// `ENGINE /bin/sh -c 'COMMAND'`: what runs under somebody else's lock.
fn locked(engine: &OsStr, command: &OsStr) -> OsString {
    let mut text = engine.to_owned();
    text.push(" /bin/sh -c '");
    for part in command.as_bytes().split_inclusive(|byte| *byte == b'\'') {
        match part.strip_suffix(b"'") {
            Some(part) => {
                text.push(OsStr::from_bytes(part));
                text.push("'\\''");
            }
            None => text.push(OsStr::from_bytes(part)),
        }
    }
    text.push("'");
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use clap::Parser;
    use common::exit::Exit;

    fn plan(words: &[&str]) -> Result<Plan> {
        let words = std::iter::once("watchtouch").chain(words.iter().copied());
        Plan::make(Cli::try_parse_from(words).unwrap())
    }

    #[test]
    fn files_come_first_and_options_may_follow() {
        let plan = plan(&["a", "--signal", "USR2", "/b", "a", "--pid-file", "p"]).unwrap();
        assert_eq!(plan.files.len(), 2);
        assert_eq!(plan.deed, Deed::Signal(libc::SIGUSR2));
        assert_eq!(plan.target, Some(Name::File("p".into())));
        // The same words with what they are for.
        for words in [
            &["a", "--busy", "ignore", "--on-touch", "x"][..],
            &["a", "--busy", "signal=USR1", "--on-touch", "x"],
            &["a", "--busy", "queue"],
            &["a", "--retries", "1", "--signal", "HUP", "--pid", "7"],
            &["a", "--retries", "1", "--on-touch", "x"],
            &["a", "--splay-by", "host", "--splay", "1s"],
            &["a", "--splay-by", "random"],
            &["a", "-0"],
            &["a", "--format", "text", "--on-touch", "x"],
        ] {
            assert!(self::plan(words).is_ok(), "{words:?}");
        }
        let wrapped = self::plan(&["a", "--on-touch", "x", "--", "c", "--once"]).unwrap();
        assert_eq!(wrapped.command.unwrap(), ["c", "--once"]);
        assert_eq!(
            self::plan(&["a", "-0"]).unwrap().deed,
            Deed::Print(Lines::Null)
        );
    }

    #[test]
    fn contradictions_are_refused() {
        for words in [
            &[][..],
            &["a", "--", "c"],
            &["a", "--signal", "HUP"],
            &["a", "--pid", "7"],
            &["a", "--pid", "1", "--signal", "HUP"],
            &["a", "--signal", "HUP", "--pid", "7", "--", "c"],
            &["a", "--on-touch", "x", "--once", "--", "c"],
            &["a", "--on-touch", ""],
            &["a", "--lock", "l"],
            &["a", "--lock-with", "l", "--signal", "HUP", "--pid", "7"],
            &["a", "--ready-fd", "0"],
            &["a", "--busy", "ignore"],
            &["a", "--busy", "restart", "--signal", "HUP", "--pid", "7"],
            &["a", "--busy", "signal=CHLD", "--on-touch", "x"],
            &["a", "--retries", "1"],
            &["a", "--splay-by", "host"],
            &["a", "--splay-by", "host", "--splay", "0"],
            &["a", "-0", "--on-touch", "x"],
            &["a", "--format", "json", "--signal", "HUP", "--pid", "7"],
        ] {
            assert_eq!(plan(words).unwrap_err().exit, Exit::Usage, "{words:?}");
        }
    }

    #[test]
    fn a_command_under_a_lock_stays_what_it_was() {
        let text = locked(
            OsStr::new("etcdctl lock a --"),
            OsStr::new("echo 'a b' \"$PID\""),
        );
        assert_eq!(
            text,
            "etcdctl lock a -- /bin/sh -c 'echo '\\''a b'\\'' \"$PID\"'"
        );
    }
}
