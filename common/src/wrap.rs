//! To run a command as its wrapper: between whoever started us and the command we are one process, with
//! one pid to signal and one status to read.

use crate::child::{Child, candidates};
use crate::error::{Error, Result, describe};
use crate::exit::{End, Exit};
use crate::signal::{Received, Sender};
use crate::sys::Image;
use nix::sys::signal::Signal;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

/// Executing a program takes that long at most before we go on without having seen it.
const PATIENCE: Duration = Duration::from_secs(5);
/// Descriptors that we add to what the command inherits have numbers from here on: below are those of
/// LISTEN_FDS and of shells.
const ADDED: RawFd = 10;

/// What is run, and with which descriptors.
#[derive(Debug)]
pub struct Order<'a> {
    /// The program and its arguments.
    pub command: &'a [OsString],
    /// Our descriptors that become its standard ones.
    pub standard: [RawFd; 3],
    /// Descriptors that it keeps, under their numbers: see [`inherited`].
    pub inherited: &'a [RawFd],
    /// More that it is to hold, under numbers that nobody uses.
    pub added: &'a [RawFd],
}

/// The descriptors from 3 on that this process was started with and that the command gets untouched: all
/// that are not close-on-exec. To be asked before anything is adopted.
#[must_use]
pub fn inherited() -> Vec<RawFd> {
    let kept = |fd: &RawFd| crate::sys::is_kept_on_exec(*fd);
    let mut list: Vec<RawFd> = match std::fs::read_dir("/proc/self/fd") {
        Ok(entries) => entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|fd| *fd > 2 && kept(fd))
            .collect(),
        // Without /proc: those numbers that anybody uses.
        Err(_) => (3..1024).filter(kept).collect(),
    };
    list.sort_unstable();
    list
}

/// The command, running.
#[derive(Debug)]
pub struct Wrapped {
    child: Child,
    program: OsString,
}

impl Wrapped {
    /// Starts it: with our environment (LISTEN_PID, which names us, names it then), our working directory,
    /// default signal dispositions and an empty mask. If we are killed, it gets TERM. To be called from
    /// the main thread (PR_SET_PDEATHSIG goes by the thread), after any change of the user.
    ///
    /// # Errors
    /// It was not found (127), cannot be executed (126), or no process could be made (125).
    pub fn start(order: &Order<'_>) -> Result<Wrapped> {
        let program = order.command.first().cloned().unwrap_or_default();
        let text = |bytes: &[u8]| {
            CString::new(bytes).map_err(|_| Error::usage("an argument holds a NUL byte"))
        };
        let mut descriptors: Vec<(RawFd, RawFd)> =
            order.standard.iter().copied().zip(0..).collect();
        descriptors.extend(order.inherited.iter().map(|fd| (*fd, *fd)));
        let mut next = ADDED;
        for fd in order.added {
            while order.inherited.contains(&next) {
                next += 1;
            }
            descriptors.push((*fd, next));
            next += 1;
        }
        let ours = |name: &OsStr| name == "LISTEN_PID" || name == "LISTEN_PIDFDID";
        let image = Image {
            candidates: candidates(&program, std::env::var_os("PATH").as_deref()),
            arguments: order
                .command
                .iter()
                .map(|word| text(word.as_bytes()))
                .collect::<Result<_>>()?,
            environment: std::env::vars_os()
                .filter(|(name, _)| !ours(name))
                .map(|(name, value)| {
                    let mut pair = name.into_vec();
                    pair.push(b'=');
                    pair.extend_from_slice(value.as_bytes());
                    text(&pair)
                })
                .collect::<Result<_>>()?,
            listen_pid: std::env::var_os("LISTEN_PID").is_some(),
            descriptors,
            death_signal: Some(libc::SIGTERM),
            ..Image::default()
        };
        let mut child = Child::start(&image).map_err(|why| {
            let doing = format!("start '{}'", program.to_string_lossy());
            Error::new(&doing, describe(&why))
        })?;
        child.let_execute(PATIENCE);
        match child.start_failure() {
            None => Ok(Wrapped { child, program }),
            Some(failure) => {
                let exit = if failure.errno == libc::ENOENT {
                    Exit::NotFound
                } else {
                    Exit::NotExecutable
                };
                child.reap();
                let message = failure.describe(&program);
                Err(Error { message, exit })
            }
        }
    }

    /// The process.
    #[must_use]
    pub fn child(&self) -> &Child {
        &self.child
    }

    /// The program's name, as it was given.
    #[must_use]
    pub fn program(&self) -> &OsStr {
        &self.program
    }

    /// Passes a signal on that the tool does not use itself. What the kernel sent it has sent to the
    /// command too (control-C, a window's new size), or it is about this process alone (SIGXFSZ). At
    /// control-Z we stop as the command does, so that the shell sees the whole job stopped.
    pub fn forward(&self, received: Received) {
        match (received.sender, Signal::try_from(received.signal)) {
            (_, Ok(Signal::SIGCHLD)) => {}
            (Sender::Kernel, Ok(Signal::SIGTSTP)) => stop_like_the_job(),
            (Sender::Kernel, _) => {}
            // SIGPIPE and SIGXFSZ for what we wrote ourselves look like that (send_sig of kernel/signal.c).
            (Sender::Process(pid), _) if pid == std::process::id() => {}
            (Sender::Process(_), _) => self.child.signal(received.signal),
        }
    }

    /// How it ended; `None` while it runs. It is not reaped: its pid stays what it is for as long as we are.
    #[must_use]
    pub fn ended(&self) -> Option<End> {
        self.child.ended()
    }
}

/// Stops this process, as its default disposition of TSTP would, which a blocked signal does not have.
pub fn stop_like_the_job() {
    let _ = nix::sys::signal::raise(Signal::SIGSTOP);
}

/// Ends this process as `exit` says, where a shell needs to see a signal by that signal: what its user
/// stopped by control-C must not look like something that went wrong by itself. Returns for all else, and
/// for process 1 of a container, which no signal ends that way. Nothing may be left to clean up.
pub fn end_by_signal(exit: Exit) {
    if let Exit::Signal(signal) = exit {
        if [libc::SIGINT, libc::SIGQUIT, libc::SIGTERM].contains(&signal) {
            // The core of a wrapper explains nothing.
            let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
            crate::sys::die_by(signal);
        }
    }
}
