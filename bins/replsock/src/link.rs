//! A connection to an agent: frames out, answers in, each with a deadline.

use crate::door::{self, Peer};
use crate::frames::{Decoder, Frame, Hello, Kind, LONGEST, PREFACE, put};
use crate::wire::{Answer, Lines, Request};
use common::error::{Doing, Error, Result, describe};
use common::exit::Exit;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A socket.
    Unix(PathBuf),
    /// A loopback port, and the secret for it.
    Tcp(std::net::SocketAddr, String),
}

impl std::fmt::Display for Place {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Unix(path) => write!(formatter, "{}", path.display()),
            Place::Tcp(address, _) => write!(formatter, "tcp:{address}"),
        }
    }
}

/// The connection.
#[derive(Debug)]
pub struct Link {
    fd: OwnedFd,
    /// Who is there; of a TCP server it is not known.
    pub peer: Peer,
    decoder: Decoder,
    lines: Lines,
    answers: VecDeque<Answer>,
    hello: Option<Hello>,
    next: u64,
    name: String,
    /// What came first was no frame, or the end.
    garbled: bool,
}

/// What came by a deadline.
#[derive(Debug)]
pub enum Came {
    /// An answer, or something that was not asked for.
    Answer(Box<Answer>),
    /// Nothing.
    Nothing,
}

impl Link {
    /// Connects and says hello; the server's is waited for by whoever needs it.
    ///
    /// # Errors
    /// Those of [`door::connect`].
    pub fn open(place: &Place, hello: &Hello) -> Result<Link> {
        let (fd, peer) = match place {
            Place::Unix(path) => door::connect(path)?,
            Place::Tcp(address, _) => {
                let stream = std::net::TcpStream::connect_timeout(address, Duration::from_secs(5))
                    .map_err(|why| {
                        let exit = if why.kind() == io::ErrorKind::ConnectionRefused {
                            Exit::NotFound
                        } else {
                            Exit::Fault
                        };
                        Error::new(&format!("connect to {address}"), describe(&why)).with_exit(exit)
                    })?;
                let own = nix::unistd::geteuid().as_raw();
                (
                    stream.into(),
                    Peer {
                        pid: 0,
                        uid: own,
                        gid: own,
                    },
                )
            }
        };
        let mut link = Link {
            fd,
            peer,
            decoder: Decoder::new(LONGEST),
            lines: Lines::default(),
            answers: VecDeque::new(),
            hello: None,
            next: 0,
            name: place.to_string(),
            garbled: false,
        };
        let mut hello = hello.clone();
        hello.version = 1;
        if let Place::Tcp(_, token) = place {
            hello.token.clone_from(token);
        }
        let mut bytes = vec![PREFACE];
        put(&mut bytes, Kind::Hello, &hello.body());
        link.write(&bytes)?;
        Ok(link)
    }

    /// Connects, and waits for the server's hello. One that took us for plain text, since we were held up
    /// between connecting and saying so, hangs up or has begun to speak: then once more.
    ///
    /// # Errors
    /// As [`Link::open`] and [`Link::greeting`].
    pub fn meet(place: &Place, hello: &Hello, deadline: Option<Instant>) -> Result<(Link, Hello)> {
        let mut tries = 3;
        loop {
            let mut link = Link::open(place, hello)?;
            match link.greeting(deadline) {
                Ok(answer) => return Ok((link, answer)),
                Err(_) if link.garbled && tries > 0 => tries -= 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// The connection, and what came after the server's hello.
    #[must_use]
    pub fn into_parts(self) -> (OwnedFd, Vec<u8>) {
        (self.fd, self.decoder.into_rest())
    }

    /// Sends a request; its number.
    ///
    /// # Errors
    /// The connection is lost.
    pub fn ask(&mut self, request: Request) -> Result<u64> {
        self.next += 1;
        let id = self.next;
        let mut bytes = Vec::new();
        put(&mut bytes, Kind::Data, &Request { id, ..request }.line());
        self.write(&bytes)?;
        Ok(id)
    }

    fn lost(&self, why: impl std::fmt::Display) -> Error {
        Error::new(&format!("talk to {}", self.name), why)
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            match nix::unistd::write(&self.fd, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(nix::Error::EINTR) => {}
                // What it said before it closed, or that it closed, is read next.
                Err(nix::Error::EPIPE | nix::Error::ECONNRESET) => return Ok(()),
                Err(why) => return Err(self.lost(describe(&why.into()))),
            }
        }
        Ok(())
    }

    /// The server's hello.
    ///
    /// # Errors
    /// 124: not by then; 125: something else came.
    pub fn greeting(&mut self, deadline: Option<Instant>) -> Result<Hello> {
        loop {
            if let Some(hello) = &self.hello {
                return Ok(hello.clone());
            }
            if !self.fill(deadline)? {
                return Err(self
                    .lost("it does not answer: its event loop is blocked, or it speaks something else")
                    .with_exit(Exit::TimedOut));
            }
        }
    }

    /// What comes next.
    ///
    /// # Errors
    /// The connection is lost (125), or the server refuses (its own status).
    pub fn receive(&mut self, deadline: Option<Instant>) -> Result<Came> {
        loop {
            if let Some(answer) = self.answers.pop_front() {
                return Ok(Came::Answer(Box::new(answer)));
            }
            if !self.fill(deadline)? {
                return Ok(Came::Nothing);
            }
        }
    }

    /// The answer to `id`; others are dropped.
    ///
    /// # Errors
    /// As [`Link::receive`]; 124: not by then.
    pub fn answer(&mut self, id: u64, deadline: Option<Instant>) -> Result<Answer> {
        loop {
            match self.receive(deadline)? {
                Came::Answer(answer) if answer.id == Some(id) => return Ok(*answer),
                Came::Answer(_) => {}
                Came::Nothing => {
                    return Err(self
                        .lost("no answer: its event loop is blocked")
                        .with_exit(Exit::TimedOut));
                }
            }
        }
    }

    /// Reads once, if something comes by then.
    fn fill(&mut self, deadline: Option<Instant>) -> Result<bool> {
        if !wait_for(&[self.fd.as_fd()], deadline)?.contains(&true) {
            return Ok(false);
        }
        self.read()?;
        Ok(true)
    }

    /// Reads what is there; for whoever waits for several.
    ///
    /// # Errors
    /// As [`Link::receive`].
    pub fn read(&mut self) -> Result<()> {
        let mut buffer = vec![0u8; 65536];
        let count = match nix::unistd::read(&self.fd, &mut buffer) {
            Ok(0) => {
                self.garbled |= self.hello.is_none();
                if self
                    .hello
                    .as_ref()
                    .is_some_and(|hello| hello.mode == "serve")
                {
                    return Err(self.lost("a command is served there, and no agent"));
                }
                return Err(self.lost("the process ended, or closed the connection"));
            }
            Ok(count) => count,
            Err(nix::Error::EINTR) => return Ok(()),
            Err(nix::Error::ECONNRESET) => {
                self.garbled |= self.hello.is_none();
                return Err(self.lost("the process ended, or closed the connection"));
            }
            Err(why) => return Err(self.lost(describe(&why.into()))),
        };
        self.decoder.push(&buffer[..count]);
        while self
            .hello
            .as_ref()
            .is_none_or(|hello| hello.mode != "serve")
        {
            let frame = match self.decoder.take() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(bad) => {
                    self.garbled |= self.hello.is_none();
                    return Err(self.lost(bad));
                }
            };
            self.hear(&frame)?;
        }
        Ok(())
    }

    fn hear(&mut self, frame: &Frame) -> Result<()> {
        match frame.kind {
            Kind::Hello => {
                let hello = Hello::read(&frame.body);
                self.hello = Some(hello.ok_or_else(|| self.lost("its hello is none"))?);
            }
            Kind::Data => {
                self.lines.push(&frame.body);
                while let Some(answer) = self.lines.take().map_err(|bad| self.lost(bad))? {
                    self.answers.push_back(answer);
                }
            }
            Kind::Error => {
                let (status, text) = frame.body.split_first().unwrap_or((&125, b""));
                let text = common::control::visible(&String::from_utf8_lossy(text));
                let exit = match status {
                    126 => Exit::NotExecutable,
                    124 => Exit::TimedOut,
                    127 => Exit::NotFound,
                    _ => Exit::Fault,
                };
                return Err(self.lost(text).with_exit(exit));
            }
            Kind::Eof | Kind::Winch | Kind::Signal | Kind::Stderr | Kind::Exit => {}
        }
        Ok(())
    }

    /// An answer that has come already.
    pub fn next_answer(&mut self) -> Option<Answer> {
        self.answers.pop_front()
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Which of these can be read; all `false`: the deadline has come.
///
/// # Errors
/// None that the outside world causes.
pub fn wait_for(fds: &[BorrowedFd<'_>], deadline: Option<Instant>) -> Result<Vec<bool>> {
    let mut list: Vec<PollFd<'_>> = fds
        .iter()
        .map(|fd| PollFd::new(*fd, PollFlags::POLLIN))
        .collect();
    loop {
        let timeout = match deadline {
            None => PollTimeout::NONE,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                let ms = left.as_nanos().div_ceil(1_000_000).min(3_600_000) as i32;
                PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX)
            }
        };
        match poll(&mut list, timeout) {
            Ok(0) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => break,
            Ok(0) | Err(nix::Error::EINTR) => {}
            Ok(_) => break,
            Err(why) => return Err(why).doing("wait for an answer"),
        }
    }
    Ok(list
        .iter()
        .map(|fd| fd.revents().is_some_and(|events| !events.is_empty()))
        .collect())
}
