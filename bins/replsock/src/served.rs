//! A session with a command that `serve` runs: this end of its terminal, or of its pipes.

use crate::cli::Reach;
use crate::frames::{self, Hello, Kind, Piece, Stream};
use crate::link::Link;
use crate::modes::Modes;
use crate::serve::Queue;
use crate::terminal;
use common::cli::note;
use common::error::{Doing, Error, Result, describe};
use common::exit::Exit;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use nix::unistd::isatty;
use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// One read.
const BUFFER: usize = 256 << 10;
/// So much waits for a server that does not read; then our input is not read either.
const MOST_WAITING: usize = 256 << 10;
/// `^]`, telnet's habit.
const ESCAPE: u8 = 0x1d;
/// The end of an answer of a shared command cannot be known: nothing came for so long.
const QUIET: Duration = Duration::from_secs(1);

/// What the command is given.
#[derive(Debug)]
pub enum Input {
    /// Our own.
    Stdin,
    /// This, and then its end.
    Given(Vec<u8>),
}

/// What a person at a terminal has asked for, or a script.
#[derive(Debug)]
pub struct Order<'a> {
    /// Whom to.
    pub reach: &'a Reach,
    /// What.
    pub input: Input,
    /// All of it may take so long.
    pub timeout: Option<Duration>,
}

/// How our own end is: raw, with an escape, or as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Raw,
    Cooked,
}

/// The session, until one of both sides ends it.
///
/// # Errors
/// 125: the connection is lost; 124: the time limit; what else the server says.
pub fn run(link: Link, hello: &Hello, order: Order<'_>) -> Result<Exit> {
    let own = isatty(common::sys::standard(0)).unwrap_or(false);
    let mode = if own && hello.terminal && matches!(order.input, Input::Stdin) {
        Mode::Raw
    } else {
        Mode::Cooked
    };
    let peer = link.peer;
    let signals = terminal::guard(&[Signal::SIGWINCH, Signal::SIGTSTP, Signal::SIGCONT])?;
    let (fd, rest) = link.into_parts();
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).doing("talk to the server")?;
    let mut session = Session {
        name: order.reach.target.clone(),
        fd,
        out: Queue::default(),
        stream: Stream::default(),
        mode,
        escaped: false,
        signals,
        interrupts: 0,
        shared: hello.shared,
        input: matches!(order.input, Input::Stdin),
        deadline: order.timeout.map(|limit| Instant::now() + limit),
        modes: Modes::default(),
        quiet: None,
    };
    if mode == Mode::Raw {
        let of = if hello.shared {
            "The shared console"
        } else {
            "A console"
        };
        note(&format!(
            "{of} of {}, user {}. ^] q leaves it.",
            order.reach.target,
            crate::door::user_name(peer.uid)
        ));
        terminal::raw();
    }
    if let Input::Given(bytes) = &order.input {
        for part in bytes.chunks(frames::LONGEST) {
            session.put(Kind::Data, part)?;
        }
        session.put(Kind::Eof, b"")?;
        session.quiet = session.shared.then(Instant::now);
    }
    let end = session.talk(&rest);
    terminal::restore();
    match end {
        Ok(Way::Ended(exit)) => Ok(exit),
        Ok(Way::Detached) => {
            note("detached");
            Ok(Exit::Ok)
        }
        Ok(Way::NobodyReads) => {
            // As any filter whose reader is gone.
            common::sys::die_by(libc::SIGPIPE);
            Ok(Exit::Signal(libc::SIGPIPE))
        }
        Err(error) => Err(error),
    }
}

/// Why it is over.
enum Way {
    Ended(Exit),
    Detached,
    NobodyReads,
}

struct Session {
    name: String,
    fd: OwnedFd,
    out: Queue,
    stream: Stream,
    mode: Mode,
    /// `^]` was typed.
    escaped: bool,
    signals: SignalFd,
    interrupts: u32,
    shared: bool,
    /// There may be more of it.
    input: bool,
    deadline: Option<Instant>,
    /// What the command has switched on in our terminal.
    modes: Modes,
    /// Our input is over, and since then nothing came.
    quiet: Option<Instant>,
}

impl Session {
    fn lost(&self, why: impl std::fmt::Display) -> Error {
        Error::new(&format!("talk to {}", self.name), why)
    }

    fn talk(&mut self, rest: &[u8]) -> Result<Way> {
        let mut buffer = vec![0u8; BUFFER];
        if let Some(way) = self.heard(rest)? {
            return Ok(way);
        }
        loop {
            let now = Instant::now();
            if self.deadline.is_some_and(|deadline| deadline <= now) {
                let error = self.lost("the time limit ran out (--timeout)");
                return Err(error.with_exit(Exit::TimedOut));
            }
            let quiet = self.quiet.map(|since| since + QUIET);
            if quiet.is_some_and(|until| until <= now) {
                return Ok(Way::Ended(Exit::Ok));
            }
            let timeout = match self.deadline.into_iter().chain(quiet).min() {
                None => PollTimeout::NONE,
                Some(until) => {
                    let left = (until - now).as_nanos().div_ceil(1_000_000);
                    PollTimeout::try_from(left.min(3_600_000) as i32).unwrap_or(PollTimeout::MAX)
                }
            };
            let mut link = PollFlags::POLLIN;
            if !self.out.is_empty() {
                link |= PollFlags::POLLOUT;
            }
            let stdin = common::sys::standard(0);
            let reads = self.input && self.out.len() < MOST_WAITING;
            let mut fds = vec![
                PollFd::new(self.fd.as_fd(), link),
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            ];
            if reads {
                fds.push(PollFd::new(stdin, PollFlags::POLLIN));
            }
            match poll(&mut fds, timeout) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(why) => return Err(why).doing("wait for the server"),
            }
            let ready = |at: usize| {
                fds.get(at)
                    .and_then(PollFd::revents)
                    .unwrap_or(PollFlags::empty())
            };
            let (link, signal, typed) = (ready(0), ready(1), ready(2));
            if !signal.is_empty() {
                if let Some(way) = self.signalled()? {
                    return Ok(way);
                }
            }
            if link.contains(PollFlags::POLLOUT) {
                self.flush()?;
            }
            if link.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
                match nix::unistd::read(&self.fd, &mut buffer) {
                    Ok(0) => return Err(self.lost("the server closed the connection")),
                    Ok(count) => {
                        if let Some(way) = self.heard(&buffer[..count])? {
                            return Ok(way);
                        }
                    }
                    Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
                    Err(why) => return Err(self.lost(describe(&why.into()))),
                }
            }
            if !typed.is_empty() {
                if let Some(way) = self.typed(&mut buffer)? {
                    return Ok(way);
                }
            }
        }
    }

    /// What the server says.
    fn heard(&mut self, mut bytes: &[u8]) -> Result<Option<Way>> {
        if !bytes.is_empty() && self.quiet.is_some() {
            self.quiet = Some(Instant::now());
        }
        let mut stream = std::mem::take(&mut self.stream);
        let end = loop {
            let piece = match stream.take(&mut bytes) {
                Ok(Some(piece)) => piece,
                Ok(None) => break None,
                Err(bad) => return Err(self.lost(bad)),
            };
            match piece {
                Piece::Data(part) => {
                    if self.mode == Mode::Raw && self.modes.see(part) {
                        terminal::at_rest(self.modes.undo());
                    }
                    if !write_all(1, part)? {
                        break Some(Way::NobodyReads);
                    }
                }
                // Nobody is kept from the rest by a closed standard error.
                Piece::Stderr(part) => {
                    let _ = write_all(2, part);
                }
                Piece::Whole(Kind::Exit, body) => {
                    let exit = match body {
                        [0, status] => Exit::Code(*status),
                        [1, signal] => Exit::Signal(i32::from(*signal)),
                        _ => return Err(self.lost("it ended in an unknown way")),
                    };
                    break Some(Way::Ended(exit));
                }
                Piece::Whole(Kind::Error, body) => {
                    let (status, text) = body.split_first().unwrap_or((&125, b""));
                    let text = common::control::visible(&String::from_utf8_lossy(text));
                    let exit = match status {
                        124 => Exit::TimedOut,
                        126 => Exit::NotExecutable,
                        127 => Exit::NotFound,
                        _ => Exit::Fault,
                    };
                    return Err(self.lost(text).with_exit(exit));
                }
                Piece::Whole(..) => {}
            }
        };
        self.stream = stream;
        Ok(end)
    }

    /// What comes from our side.
    fn typed(&mut self, buffer: &mut [u8]) -> Result<Option<Way>> {
        let count = match nix::unistd::read(common::sys::standard(0), buffer) {
            Ok(count) => count,
            Err(nix::Error::EINTR | nix::Error::EAGAIN) => return Ok(None),
            // The terminal is gone.
            Err(nix::Error::EIO) => 0,
            Err(why) => return Err(why).doing("read standard input"),
        };
        let bytes = buffer.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            self.input = false;
            if self.mode == Mode::Raw {
                return Ok(Some(Way::Detached));
            }
            self.put(Kind::Eof, b"")?;
            self.quiet = self.shared.then(Instant::now);
            return Ok(None);
        }
        if self.mode == Mode::Cooked {
            self.put(Kind::Data, bytes)?;
            return Ok(None);
        }
        let mut from = 0;
        for (at, byte) in bytes.iter().enumerate() {
            if self.escaped {
                self.escaped = false;
                match *byte {
                    b'q' => {
                        self.put(Kind::Data, &[])?;
                        return Ok(Some(Way::Detached));
                    }
                    // Itself, once.
                    ESCAPE => {}
                    _ => self.put(Kind::Data, &[ESCAPE])?,
                }
                from = at;
            } else if *byte == ESCAPE {
                self.put(Kind::Data, bytes.get(from..at).unwrap_or_default())?;
                self.escaped = true;
                from = at + 1;
            }
        }
        self.put(Kind::Data, bytes.get(from..).unwrap_or_default())?;
        Ok(None)
    }

    fn put(&mut self, kind: Kind, body: &[u8]) -> Result<()> {
        if body.is_empty() && kind == Kind::Data {
            return Ok(());
        }
        let head = frames::head(kind, body.len());
        let mut done = 0;
        if self.out.is_empty() {
            match nix::sys::uio::writev(&self.fd, &[IoSlice::new(&head), IoSlice::new(body)]) {
                Ok(count) => done = count,
                Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
                // Why is in what the server has sent before it closed.
                Err(nix::Error::EPIPE | nix::Error::ECONNRESET) => {
                    self.input = false;
                    return Ok(());
                }
                Err(why) => return Err(self.lost(describe(&why.into()))),
            }
        }
        self.out.push(head.get(done..).unwrap_or_default());
        let from = done.saturating_sub(head.len());
        self.out.push(body.get(from..).unwrap_or_default());
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        match nix::unistd::write(&self.fd, self.out.all()) {
            Ok(count) => self.out.advance(count),
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
            Err(nix::Error::EPIPE | nix::Error::ECONNRESET) => {
                self.out = Queue::default();
                self.input = false;
            }
            Err(why) => return Err(self.lost(describe(&why.into()))),
        }
        Ok(())
    }

    fn signalled(&mut self) -> Result<Option<Way>> {
        while let Ok(Some(info)) = self.signals.read_signal() {
            match i32::try_from(info.ssi_signo).unwrap_or(0) {
                libc::SIGINT => {
                    self.interrupts += 1;
                    // Whose command does not listen is not held here.
                    if self.interrupts > 2 {
                        return Ok(Some(Way::Ended(Exit::Signal(libc::SIGINT))));
                    }
                    self.put(Kind::Signal, &[libc::SIGINT as u8])?;
                }
                libc::SIGWINCH => self.tell_size()?,
                libc::SIGTSTP => {
                    terminal::restore();
                    common::wrap::stop_like_the_job();
                }
                libc::SIGCONT if self.mode == Mode::Raw => {
                    terminal::raw();
                    self.tell_size()?;
                }
                _ => {}
            }
        }
        Ok(None)
    }

    fn tell_size(&mut self) -> Result<()> {
        if self.mode == Mode::Raw {
            if let Some((columns, rows)) = common::sys::window_size(common::sys::standard(0)) {
                self.put(Kind::Winch, &frames::size_body(columns, rows))?;
            }
        }
        Ok(())
    }
}

/// Writes all of it; false: nobody reads there any more.
fn write_all(fd: i32, mut bytes: &[u8]) -> Result<bool> {
    let fd = common::sys::standard(fd);
    while !bytes.is_empty() {
        match nix::unistd::write(fd, bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(nix::Error::EINTR) => {}
            // Whoever shares it with us has made it non-blocking.
            Err(nix::Error::EAGAIN) => {
                let _ = poll(
                    &mut [PollFd::new(fd, PollFlags::POLLOUT)],
                    PollTimeout::NONE,
                );
            }
            Err(nix::Error::EPIPE | nix::Error::ECONNRESET) => return Ok(false),
            Err(why) => return Err(why).doing("write to standard output"),
        }
    }
    Ok(true)
}
