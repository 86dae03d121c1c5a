//! What was meant: looked up, validated, contradictions refused. Nothing is opened yet.

use crate::cli::{Cli, Fsync, OnFull};
use crate::stamp::Head;
use common::ask::Question;
use common::error::{Error, Result};
use common::event::{Format, Level};
use common::privs::{User, look_up};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What there is to ask, for whoever names nothing.
const REQUESTS: &str = "reopen, status, rotate: logreopen --ctl SOCKET help";

/// What is to be done.
#[derive(Debug)]
pub enum Order {
    /// To pump.
    Run(Box<Plan>),
    /// To ask a running one.
    Ask(Question),
}

/// Whose lines.
#[derive(Debug)]
pub enum Input {
    /// The command's; each stream with the index of its file.
    Command {
        /// The program and its arguments.
        words: Vec<OsString>,
        /// Of stdout.
        out: Option<usize>,
        /// Of stderr.
        err: Option<usize>,
    },
    /// Our own stdin.
    Stdin,
}

/// Everything that running needs.
#[derive(Debug)]
pub struct Plan {
    /// Whose lines.
    pub input: Input,
    /// The files, each once.
    pub files: Vec<PathBuf>,
    /// `--tee`
    pub tee: bool,
    /// `--mode`
    pub mode: u32,
    /// Owner of what is made.
    pub owner: Option<(u32, u32)>,
    /// `--user`
    pub user: Option<User>,
    /// `--mkdir`
    pub mkdir: bool,
    /// `--fsync`
    pub fsync: Fsync,
    /// `--stamp`, `--prefix`
    pub head: Option<Head>,
    /// `--buffer`
    pub buffer: usize,
    /// `--on-full`
    pub on_full: OnFull,
    /// `--drain-timeout`
    pub drain_timeout: Duration,
    /// `--follow`
    pub follow: Duration,
    /// `--max-size`, `--keep`
    pub rotate: Option<(u64, u32)>,
    /// `--on-rotate`
    pub on_rotate: Option<OsString>,
    /// `--action-timeout`
    pub action_timeout: Duration,
    /// `--pid-file`
    pub pid_file: Option<PathBuf>,
    /// `--control`
    pub control: Option<PathBuf>,
    /// `--log-format`
    pub log_format: Option<Format>,
    /// `--quiet`, `--verbose`
    pub threshold: Level,
}

impl Order {
    /// # Errors
    /// What contradicts itself (2), or cannot be looked up (125).
    pub fn make(cli: Cli) -> Result<Order> {
        if let Some(path) = cli.ctl {
            return Question::new(path, &cli.words, Some(cli.timeout), REQUESTS).map(Order::Ask);
        }
        let mut files: Vec<PathBuf> = Vec::new();
        let mut file = |path: PathBuf| {
            files
                .iter()
                .position(|known| *known == path)
                .unwrap_or_else(|| {
                    files.push(path);
                    files.len() - 1
                })
        };
        let input = if cli.stdout.is_some() || cli.stderr.is_some() {
            if cli.words.is_empty() {
                return Err(Error::usage(
                    "--stdout and --stderr are for a command, and none is given; \
                     without one: program | logreopen FILE",
                ));
            }
            Input::Command {
                out: cli.stdout.map(&mut file),
                err: cli.stderr.map(&mut file),
                words: cli.words,
            }
        } else {
            match cli.words.as_slice() {
                [] => {
                    return Err(Error::usage(
                        "no file is named: logreopen -l FILE -- command, or program | logreopen FILE",
                    ));
                }
                [path] => {
                    file(PathBuf::from(path));
                    Input::Stdin
                }
                [path, ..] => {
                    let path = path.to_string_lossy();
                    return Err(Error::usage(format!(
                        "'{path}' and more words: without --stdout or --stderr there is one FILE \
                         and no command; logreopen -l {path} -- command would do"
                    )));
                }
            }
        };
        for path in &files {
            check_path(path)?;
        }
        if cli.max_size.is_none() && cli.on_rotate.is_some() {
            return Err(Error::usage(
                "--on-rotate is for our own rotation, which --max-size turns on",
            ));
        }
        let user = cli.user.as_deref().map(look_up).transpose()?;
        let owner = match &cli.owner {
            Some(owner) => {
                let owner = look_up(owner)?;
                Some((owner.uid, owner.gid))
            }
            None => user.as_ref().map(|user| (user.uid, user.gid)),
        };
        Ok(Order::Run(Box::new(Plan {
            input,
            files,
            tee: cli.tee,
            mode: cli.mode,
            owner,
            user,
            mkdir: cli.mkdir,
            fsync: cli.fsync,
            head: Head::new(cli.stamp, cli.prefix.as_deref()),
            buffer: usize::try_from(cli.buffer).unwrap_or(usize::MAX),
            on_full: cli.on_full,
            drain_timeout: cli.drain_timeout,
            follow: cli.follow,
            rotate: cli.max_size.map(|size| (size, cli.keep)),
            on_rotate: cli.on_rotate,
            action_timeout: cli.action_timeout,
            pid_file: cli.pid_file,
            control: cli.control,
            log_format: cli.log_format,
            threshold: match (cli.quiet, cli.verbose) {
                (true, _) => Level::Warning,
                (_, true) => Level::Debug,
                _ => Level::Info,
            },
        })))
    }
}

fn check_path(path: &Path) -> Result<()> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() {
        return Err(Error::usage("a FILE without a name"));
    }
    if bytes.ends_with(b"/") {
        return Err(Error::new(
            &format!("open {}", path.display()),
            "it is a directory; a file in it would do",
        ));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use clap::Parser;
    use common::exit::Exit;

    fn plan(words: &[&str]) -> Result<Plan> {
        let words = std::iter::once("logreopen").chain(words.iter().copied());
        match Order::make(Cli::try_parse_from(words).unwrap())? {
            Order::Run(plan) => Ok(*plan),
            Order::Ask(_) => panic!("a question"),
        }
    }

    #[test]
    fn whose_lines_go_where() {
        let both = plan(&["-l", "a", "-e", "b", "--", "c", "-e"]).unwrap();
        assert!(
            matches!(both.input, Input::Command { ref words, out: Some(0), err: Some(1) } if words.len() == 2)
        );
        let one = plan(&["-l", "a", "-e", "a", "c"]).unwrap();
        assert!(matches!(
            one.input,
            Input::Command {
                out: Some(0),
                err: Some(0),
                ..
            }
        ));
        assert_eq!(one.files.len(), 1);
        let err = plan(&["-e", "a", "c"]).unwrap();
        assert!(matches!(
            err.input,
            Input::Command {
                out: None,
                err: Some(0),
                ..
            }
        ));
        assert!(matches!(plan(&["a"]).unwrap().input, Input::Stdin));
    }

    #[test]
    fn contradictions_are_refused() {
        for words in [
            &[][..],
            &["-l", "a"],
            &["--tee"],
            &["a", "--", "c"],
            &["--on-rotate", "true", "a"],
        ] {
            assert_eq!(plan(words).unwrap_err().exit, Exit::Usage, "{words:?}");
        }
        for words in [
            &["-u", "no-such-user", "a"][..],
            &["--owner", "no-such-user", "a"],
            &["a/"],
        ] {
            assert_eq!(plan(words).unwrap_err().exit, Exit::Fault, "{words:?}");
        }
    }
}
