//! Signals as events: blocked before anything else happens, read from one signalfd(2).

use crate::error::{Doing, Result};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::os::fd::{AsFd, BorrowedFd};

/// One signal that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its number.
    pub signal: i32,
    /// Who sent it: a process by kill(2), or the kernel (the terminal, an expired limit).
    pub sender: Sender,
}

/// Where a signal came from (`si_code` of sigaction(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// kill(2), sigqueue(3), tgkill(2) by this pid.
    Process(u32),
    /// The kernel itself: control-C goes to the whole foreground group this way.
    Kernel,
}

/// The blocked signals, and what this process was started with.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
    hup_ignored: bool,
}

/// Signals that report a fault of this very program: blocking them helps nobody.
const FAULTS: [Signal; 7] = [
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGILL,
    Signal::SIGFPE,
    Signal::SIGTRAP,
    Signal::SIGABRT,
    Signal::SIGSYS,
];

impl Signals {
    /// Blocks every signal and opens the signalfd. To be called before any thread exists.
    ///
    /// # Errors
    /// EMFILE, ENOMEM.
    pub fn block() -> Result<Signals> {
        let hup_ignored = crate::sys::is_ignored(Signal::SIGHUP as i32);
        let mut mask = SigSet::all();
        for fault in FAULTS {
            mask.remove(fault);
        }
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None).doing("block signals")?;
        let fd = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .doing("open a signalfd")?;
        Ok(Signals { fd, hup_ignored })
    }

    /// HUP was ignored when we were started (nohup(1)), and stays so.
    #[must_use]
    pub fn hup_ignored(&self) -> bool {
        self.hup_ignored
    }

    /// The next signal, `None` when there is no further one.
    pub fn next(&self) -> Option<Received> {
        loop {
            match self.fd.read_signal() {
                Ok(Some(info)) => {
                    // SI_USER 0, SI_QUEUE -1, SI_TKILL -6: all that processes send is at most 0.
                    let sender = if info.ssi_code <= 0 {
                        Sender::Process(info.ssi_pid)
                    } else {
                        Sender::Kernel
                    };
                    return Some(Received {
                        signal: info.ssi_signo as i32,
                        sender,
                    });
                }
                Err(nix::Error::EINTR) => {}
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Why nobody can act upon this signal, if so: it never comes through the signalfd, or means what
/// nobody may change.
#[must_use]
pub fn out_of_reach(signal: i32) -> Option<&'static str> {
    match Signal::try_from(signal) {
        Ok(Signal::SIGKILL | Signal::SIGSTOP) => Some("the kernel lets nobody catch it"),
        Ok(Signal::SIGCHLD) => Some("it tells of the end of a child"),
        Ok(fault) if FAULTS.contains(&fault) => Some("it reports a fault of the program itself"),
        // nptl(7): SIGCANCEL and SIGSETXID, which sigfillset(3) leaves out.
        Err(_) if matches!(signal, 32 | 33) => Some("the C library keeps it for itself"),
        Ok(_) | Err(_) => None,
    }
}

/// A signal's name without `SIG`, its number where it has none.
#[must_use]
pub fn name(signal: i32) -> String {
    Signal::try_from(signal)
        .map(|signal| signal.as_str().trim_start_matches("SIG").to_owned())
        .unwrap_or_else(|_| signal.to_string())
}
