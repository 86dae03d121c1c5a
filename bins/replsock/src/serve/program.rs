//! The command of one session: how it is started, fed, heard, and brought to its end.

use super::client::Watch;
use super::plan::Plan;
use super::queries::Queries;
use super::queue::Queue;
use super::record::Recording;
use common::child::{Child, raw};
use common::error::describe;
use common::exit::End;
use common::sys::{self, Image, Session};
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::termios::{LocalFlags, SpecialCharacterIndices, tcgetattr};
use nix::unistd::{Pid, pipe2};
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::{Duration, Instant};

/// So much input waits for a command that does not read; then its client is not read either.
pub const MOST_INPUT: usize = 64 << 10;
/// Of a pipe: as much as one read of ours takes.
const PIPE: i32 = 256 << 10;
/// A terminal without a size has this one.
pub const USUAL_SIZE: (u16, u16) = (80, 24);
/// An end of file that was typed before the command looked at its terminal may be lost: it is typed again,
/// first so often.
const EOF_SOON: Duration = Duration::from_millis(100);
/// So many times.
const EOF_SOON_TIMES: u32 = 10;
/// And then so often, with a newline before it.
const EOF_LATER: Duration = Duration::from_secs(1);
/// Of these keys each one whose number this divides is a Control-C instead of the newline, for a command that edits its
/// lines: it breaks off what that may be in the middle of. An even number, as a newline's is.
const EOF_BREAK: u32 = 20;

/// What it is given.
#[derive(Clone, Debug)]
pub enum Console {
    /// Pipes.
    Pipes,
    /// A terminal of this size, for a `TERM` of that kind.
    Terminal((u16, u16), String),
}

/// Its descriptors, our ends.
#[derive(Debug)]
pub enum Ends {
    /// Each `None` once it is over.
    Pipes {
        /// Its stdin.
        input: Option<OwnedFd>,
        /// Its stdout.
        output: Option<OwnedFd>,
        /// Its stderr.
        errors: Option<OwnedFd>,
    },
    /// The slave is kept open, so that the master does not fail while the command opens it anew.
    Terminal {
        /// Ours.
        master: OwnedFd,
        /// Its.
        slave: OwnedFd,
        /// All output was read.
        over: bool,
    },
    /// Let go of.
    None,
}

/// Which of its outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// stdout, or the terminal.
    Main,
    /// stderr.
    Errors,
}

/// It runs, or has run and is not all told yet.
#[derive(Debug)]
pub struct Program {
    /// `None` once it is reaped.
    pub child: Option<Child>,
    /// Its pid, which may be somebody else's after that.
    pub pid: i32,
    /// Our ends.
    pub ends: Ends,
    /// Whose it is; `None`: everybody's.
    pub owner: Option<u64>,
    /// How it ended.
    pub end: Option<End>,
    /// And when.
    pub ended_at: Option<Instant>,
    /// Bytes that came after that.
    pub after_end: u64,
    /// It could not be executed.
    pub failure: Option<(u8, String)>,
    /// Input that waits.
    pub pending: Queue,
    /// No input follows.
    pub input_over: bool,
    /// The last byte that it was given was a newline, or there was none.
    pub line_is_whole: bool,
    /// Ends of file typed so far, and when the next one is due.
    pub typed_eof: (u32, Option<Instant>),
    /// It was seen to edit its lines itself.
    pub edits: bool,
    /// When it is hung up, if it is still there.
    pub hang_up_at: Option<Instant>,
    /// When it is killed.
    pub kill_at: Option<Instant>,
    /// What it asks its terminal.
    pub queries: Queries,
    /// Its recording.
    pub recording: Option<Recording>,
    /// Of input or the terminal, output, errors, end.
    pub watches: [Watch; 4],
    /// They could not all be waited for, and are tried again soon.
    pub again: bool,
    /// When it began.
    pub since: Instant,
}

impl Program {
    /// Starts the plan's command on a console.
    ///
    /// # Errors
    /// What could not be had: EMFILE, EAGAIN, ENOSPC (no more terminals).
    pub fn start(
        plan: &Plan,
        id: u64,
        owner: Option<u64>,
        console: &Console,
        inherited: &[RawFd],
    ) -> Result<Program, String> {
        let said =
            |what: &str, why: nix::Error| format!("cannot {what}: {}", describe(&why.into()));
        let (standard, ends, kept) = match console {
            Console::Pipes => {
                let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(|why| said("make a pipe", why));
                let (input, ours_in) = pipe()?;
                let (ours_out, output) = pipe()?;
                let (ours_err, errors) = pipe()?;
                for fd in [&ours_in, &ours_out] {
                    sys::widen_pipe(fd.as_fd(), PIPE);
                }
                for fd in [&ours_in, &ours_out, &ours_err] {
                    nonblocking(fd).map_err(|why| said("make a pipe", why))?;
                }
                let ends = Ends::Pipes {
                    input: Some(ours_in),
                    output: Some(ours_out),
                    errors: Some(ours_err),
                };
                let standard = [raw(&input), raw(&output), raw(&errors)];
                (standard, ends, vec![input, output, errors])
            }
            Console::Terminal(size, _) => {
                let pair =
                    nix::pty::openpty(None, None).map_err(|why| said("open a terminal", why))?;
                for fd in [&pair.master, &pair.slave] {
                    let closed = FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC);
                    fcntl(fd, closed).map_err(|why| said("open a terminal", why))?;
                }
                nonblocking(&pair.master).map_err(|why| said("open a terminal", why))?;
                let (columns, rows) = usual(*size);
                sys::set_window_size(pair.master.as_fd(), columns, rows);
                let standard = [raw(&pair.slave); 3];
                let ends = Ends::Terminal {
                    master: pair.master,
                    slave: pair.slave,
                    over: false,
                };
                (standard, ends, Vec::new())
            }
        };
        let image = Image {
            candidates: plan.candidates.clone(),
            arguments: plan
                .command
                .iter()
                .filter_map(|word| CString::new(word.as_bytes()).ok())
                .collect(),
            environment: environment(console, owner.is_none()),
            listen_pid: owner.is_none() && std::env::var_os("LISTEN_PID").is_some(),
            descriptors: standard
                .into_iter()
                .zip(0..)
                .chain(inherited.iter().map(|fd| (*fd, *fd)))
                .collect(),
            session: match console {
                Console::Pipes => Session::Own,
                Console::Terminal(..) => Session::OnTerminal,
            },
            nofile: plan.nofile,
            death_signal: Some(libc::SIGHUP),
            ..Image::default()
        };
        let child = Child::start(&image)
            .map_err(|why| format!("cannot start '{}': {}", plan.name(), describe(&why)))?;
        drop(kept);
        let watch = |role: u64| Watch::new(id << 3 | role);
        Ok(Program {
            pid: child.pid(),
            child: Some(child),
            ends,
            owner,
            end: None,
            ended_at: None,
            after_end: 0,
            failure: None,
            pending: Queue::default(),
            input_over: false,
            line_is_whole: true,
            typed_eof: (0, None),
            edits: false,
            hang_up_at: None,
            kill_at: None,
            queries: Queries::default(),
            recording: None,
            watches: [watch(1), watch(2), watch(3), watch(4)],
            again: false,
            since: Instant::now(),
        })
    }

    /// The descriptor that input goes to.
    fn input(&self) -> Option<BorrowedFd<'_>> {
        match &self.ends {
            Ends::Pipes { input, .. } => input.as_ref().map(AsFd::as_fd),
            Ends::Terminal { master, .. } => Some(master.as_fd()),
            Ends::None => None,
        }
    }

    /// The descriptor that output comes from; `None` when all of it came.
    pub fn output(&self, which: Output) -> Option<BorrowedFd<'_>> {
        match (&self.ends, which) {
            (Ends::Pipes { output, .. }, Output::Main) => output.as_ref().map(AsFd::as_fd),
            (Ends::Pipes { errors, .. }, Output::Errors) => errors.as_ref().map(AsFd::as_fd),
            (Ends::Terminal { master, over, .. }, Output::Main) => (!over).then(|| master.as_fd()),
            (Ends::Terminal { .. }, Output::Errors) | (Ends::None, _) => None,
        }
    }

    /// It has a terminal.
    pub fn on_terminal(&self) -> bool {
        matches!(self.ends, Ends::Terminal { .. })
    }

    /// No more comes out of it.
    pub fn silent(&self) -> bool {
        self.output(Output::Main).is_none() && self.output(Output::Errors).is_none()
    }

    /// One of its outputs is at its end.
    pub fn output_over(&mut self, which: Output) {
        match (&mut self.ends, which) {
            (Ends::Pipes { output, .. }, Output::Main) => *output = None,
            (Ends::Pipes { errors, .. }, Output::Errors) => *errors = None,
            (Ends::Terminal { over, .. }, _) => *over = true,
            (Ends::None, _) => {}
        }
    }

    /// It takes more input.
    pub fn has_room(&self) -> bool {
        self.pending.len() < MOST_INPUT
    }

    /// Input, as far as it goes; the rest waits. Once it reads no more, input is nobody's.
    pub fn feed(&mut self, bytes: &[u8]) {
        if let Some(last) = bytes.last() {
            self.line_is_whole = *last == b'\n';
        }
        let mut done = 0;
        if self.pending.is_empty() {
            match self.write(bytes) {
                Some(count) => done = count,
                None => return,
            }
        }
        self.pending.push(bytes.get(done..).unwrap_or_default());
    }

    /// How many went; `None`: nobody reads there.
    fn write(&mut self, bytes: &[u8]) -> Option<usize> {
        let fd = self.input()?;
        match nix::unistd::write(fd, bytes) {
            Ok(count) => Some(count),
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => Some(0),
            Err(_) => {
                self.pending = Queue::default();
                if let Ends::Pipes { input, .. } = &mut self.ends {
                    *input = None;
                }
                None
            }
        }
    }

    /// Gives it what waits, and then the end of its input, if that was reached.
    pub fn flush(&mut self, now: Instant) {
        while !self.pending.is_empty() {
            let waiting = std::mem::take(&mut self.pending);
            let went = self.write(waiting.all());
            let Some(count) = went else { break };
            self.pending = waiting;
            self.pending.advance(count);
            if count == 0 {
                return;
            }
        }
        if !self.input_over {
            return;
        }
        match &mut self.ends {
            Ends::Pipes { input, .. } => *input = None,
            Ends::Terminal { .. } if self.typed_eof == (0, None) => {
                // A line is taken as it is by an end of file typed behind it, and the next one is the end.
                if !self.line_is_whole {
                    let _ = self.write(b"\n");
                }
                self.typed_eof.1 = Some(now + EOF_SOON);
            }
            Ends::Terminal { .. } | Ends::None => {}
        }
    }

    /// Types the end of file, where it is due.
    pub fn type_eof(&mut self, now: Instant) {
        let (times, Some(due)) = self.typed_eof else {
            return;
        };
        if due > now {
            return;
        }
        let Ends::Terminal { master, slave, .. } = &self.ends else {
            return;
        };
        // What was typed before is still to be read: behind that it might be taken for a part of it, when the
        // command changes its terminal's mode meanwhile (readline does; an end of file becomes a NUL then).
        if sys::unread(slave.as_fd()).is_some_and(|count| count > 0) {
            self.typed_eof.1 = Some(now + EOF_SOON);
            return;
        }
        let settings = tcgetattr(master).ok();
        let canonical = settings
            .as_ref()
            .is_none_or(|settings| settings.local_flags.contains(LocalFlags::ICANON));
        let soon = times < EOF_SOON_TIMES;
        if canonical && self.edits && soon {
            // It evaluates, and edits its next line afterwards.
            self.typed_eof = (times + 1, Some(now + EOF_SOON));
            return;
        }
        let key = |at: SpecialCharacterIndices, usual: u8| {
            let all = settings.as_ref().map(|settings| settings.control_chars);
            let set = all.and_then(|all| all.get(at as usize).copied());
            // The usual one where it is switched off.
            set.filter(|key| *key != 0).unwrap_or(usual)
        };
        let end = key(SpecialCharacterIndices::VEOF, 4);
        let (key, pause) = match (soon, times % 2) {
            (true, _) => (end, EOF_SOON),
            // Its editor does not let go of a statement that is not complete (irb).
            (false, 0) if !canonical && times % EOF_BREAK == 0 => {
                (key(SpecialCharacterIndices::VINTR, 3), EOF_SOON)
            }
            // Something may stand before it by now. Each by itself: an editor takes keys that come at once for what
            // was pasted (irb), where a newline ends no input and so the other is no end of it.
            (false, 0) => (b'\n', EOF_SOON),
            (false, _) => (end, EOF_LATER),
        };
        let _ = self.write(&[key]);
        self.typed_eof = (times + 1, Some(now + pause));
    }

    /// Looks whether it edits its lines itself, at a moment at which it may: an end of file that is typed while
    /// it does not is no key of its editor's.
    pub fn look_at_terminal(&mut self) {
        if let (Ends::Terminal { master, .. }, (_, Some(_)), false) =
            (&self.ends, self.typed_eof, self.edits)
        {
            let settings = tcgetattr(master).ok();
            self.edits =
                settings.is_some_and(|settings| !settings.local_flags.contains(LocalFlags::ICANON));
        }
    }

    /// Its terminal has another size.
    pub fn resize(&self, size: (u16, u16)) {
        if let Ends::Terminal { master, .. } = &self.ends {
            let (columns, rows) = usual(size);
            sys::set_window_size(master.as_fd(), columns, rows);
        }
    }

    /// A signal for those of it that have the terminal, or for all of its group.
    pub fn signal(&self, signal: i32) {
        let Some(child) = &self.child else { return };
        if let Ends::Terminal { master, .. } = &self.ends {
            let front = nix::unistd::tcgetpgrp(master).ok();
            if let (Some(group), Ok(signal)) = (front, Signal::try_from(signal)) {
                if group.as_raw() > 1 && nix::sys::signal::killpg(group, signal).is_ok() {
                    return;
                }
            }
        }
        child.signal_group(signal);
    }

    /// Tells all of it that its client is gone; who does not listen is killed at `kill_at`.
    pub fn hang_up(&mut self, kill_at: Instant) {
        self.hang_up_at = None;
        self.kill_at = Some(kill_at);
        let Some(child) = &self.child else { return };
        if let Ends::Terminal { master, .. } = &self.ends {
            if let Ok(front) = nix::unistd::tcgetpgrp(master) {
                if front != Pid::from_raw(child.pid()) && front.as_raw() > 1 {
                    let _ = nix::sys::signal::killpg(front, Signal::SIGHUP);
                    let _ = nix::sys::signal::killpg(front, Signal::SIGCONT);
                }
            }
        }
        child.signal_group(libc::SIGHUP);
        // One that is stopped does not hear it before it goes on.
        child.signal_group(libc::SIGCONT);
    }

    /// The end of those that did not hear.
    pub fn kill(&mut self) {
        self.kill_at = None;
        if let Some(child) = &self.child {
            child.signal_group(libc::SIGKILL);
        }
    }

    /// It has ended: says so once.
    pub fn reap(&mut self, name: &OsStr, now: Instant) -> bool {
        let Some(child) = &mut self.child else {
            return false;
        };
        if child.ended().is_none() {
            return false;
        }
        if let Some(failure) = child.start_failure() {
            let status = if failure.errno == libc::ENOENT {
                127
            } else {
                126
            };
            self.failure = Some((status, failure.describe(name)));
        }
        self.end = self.child.take().and_then(Child::reap);
        self.ended_at = Some(now);
        self.typed_eof.1 = None;
        self.hang_up_at = None;
        self.kill_at = None;
        true
    }
}

/// A size that a terminal can have.
pub fn usual((columns, rows): (u16, u16)) -> (u16, u16) {
    if columns == 0 || rows == 0 {
        USUAL_SIZE
    } else {
        (columns, rows)
    }
}

fn nonblocking(fd: &OwnedFd) -> nix::Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(|_| ())
}

/// Ours; with a terminal, what its client's is, and not what ours was. Only a shared command takes over what
/// we were started with (sd_listen_fds(3)).
fn environment(console: &Console, shared: bool) -> Vec<CString> {
    let of_terminal = |name: &OsStr| name == "TERM" || name == "COLUMNS" || name == "LINES";
    let ours = |name: &OsStr| {
        !(name.as_bytes().starts_with(b"LISTEN_") && !(shared && name != "LISTEN_PID")
            || matches!(console, Console::Terminal(..)) && of_terminal(name))
    };
    let mut list: Vec<CString> = std::env::vars_os()
        .filter(|(name, _)| ours(name))
        .filter_map(|(name, value)| {
            let mut pair = name.into_vec();
            pair.push(b'=');
            pair.extend_from_slice(value.as_bytes());
            CString::new(pair).ok()
        })
        .collect();
    if let Console::Terminal(_, term) = console {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._+".contains(&byte);
        let term = if term.is_empty() || term.len() > 64 || !term.bytes().all(plain) {
            "dumb"
        } else {
            term
        };
        list.extend(CString::new(format!("TERM={term}")));
    }
    list
}
