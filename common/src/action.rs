//! `--on-WHAT 'shell command'`: in a process group of its own, with a time limit, one at a time.

use crate::child::{Child, candidates, raw};
use crate::exit::End;
use crate::sys::Image;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::{Duration, Instant};

/// Between TERM and KILL.
const GRACE: Duration = Duration::from_secs(5);

/// A shell command that runs.
#[derive(Debug)]
pub struct Action {
    child: Child,
    /// When its group gets TERM; then KILL.
    due: Instant,
    asked: bool,
}

impl Action {
    /// Runs `/bin/sh -c command`, with stdin on /dev/null and stdout where our stderr goes. `variables`
    /// are added to the environment. After `limit` its process group gets TERM, and 5 s later KILL.
    ///
    /// # Errors
    /// A NUL byte in the command or a variable; EMFILE, EAGAIN, ENOMEM.
    pub fn start(
        command: &OsStr,
        variables: &[(&str, &OsStr)],
        limit: Duration,
        now: Instant,
    ) -> io::Result<Action> {
        let variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| (*name, Some(*value)))
            .collect();
        Action::start_into(command, &variables, 2, limit, now)
    }

    /// The same with its stdout and stderr both at descriptor `output` of ours; a variable without a value
    /// is unset.
    ///
    /// # Errors
    /// As [`Action::start`].
    pub fn start_into(
        command: &OsStr,
        variables: &[(&str, Option<&OsStr>)],
        output: RawFd,
        limit: Duration,
        now: Instant,
    ) -> io::Result<Action> {
        let text = |bytes: Vec<u8>| {
            CString::new(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
        };
        let null = std::fs::File::open("/dev/null")?;
        let shell = OsStr::new("/bin/sh");
        let pair = |name: &OsStr, value: &OsStr| {
            let mut pair = name.to_owned().into_vec();
            pair.push(b'=');
            pair.extend_from_slice(value.as_bytes());
            text(pair)
        };
        let mut environment = Vec::new();
        for (name, value) in std::env::vars_os() {
            if !variables.iter().any(|(set, _)| name == *set) {
                environment.push(pair(&name, &value)?);
            }
        }
        for (name, value) in variables {
            if let Some(value) = value {
                environment.push(pair(OsStr::new(name), value)?);
            }
        }
        let image = Image {
            candidates: candidates(shell, None),
            arguments: vec![
                c"sh".to_owned(),
                c"-c".to_owned(),
                text(command.as_bytes().to_vec())?,
            ],
            environment,
            descriptors: vec![(raw(&null), 0), (output, 1), (output, 2)],
            own_group: true,
            borrows_memory: true,
            ..Image::default()
        };
        Ok(Action {
            child: Child::start(&image)?,
            due: now + limit,
            asked: false,
        })
    }

    /// Its pid, which is its group too.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.pid()
    }

    /// When [`Action::expire`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.due
    }

    /// Ends it now as if its time had run out: TERM to its group, and 5 s later KILL.
    pub fn cut_short(&mut self, now: Instant) {
        if !self.asked {
            self.due = now;
            self.expire(now);
        }
    }

    /// Signals its process group.
    pub fn signal(&self, signal: i32) {
        self.child.signal_group(signal);
    }

    /// Its time has run out, and it was asked to end.
    #[must_use]
    pub fn expired(&self) -> bool {
        self.asked
    }

    /// Ends one that takes too long.
    pub fn expire(&mut self, now: Instant) {
        if now < self.due {
            return;
        }
        if self.asked {
            self.child.signal_group(libc::SIGKILL);
        } else {
            self.child.signal_group(libc::SIGTERM);
        }
        self.asked = true;
        self.due = now + GRACE;
    }

    /// Kills it, with its group, and is done with it.
    pub fn kill(self) {
        self.child.signal_group(libc::SIGKILL);
        self.child.reap();
    }

    /// How it ended; `None` while it runs. What it left in its group after a time limit goes too.
    #[must_use]
    pub fn ended(&self) -> Option<End> {
        let end = self.child.ended()?;
        if self.asked {
            self.child.signal_group(libc::SIGKILL);
        }
        Some(end)
    }

    /// Reaps it: its pid is free from now on.
    pub fn reap(self) {
        self.child.reap();
    }
}

impl AsFd for Action {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.child.as_fd()
    }
}
