//! One connection: what it speaks, what waits for it, and when it is over.

use super::queue::Queue;
use super::tell::Visitor;
use crate::frames::{self, Kind, Stream};
use common::wait::{Interest, Loop};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

/// What a descriptor is waited for at the moment, so that epoll is told only what is new. One that nothing
/// is wanted of is taken out: a hang-up of it would wake us without end.
#[derive(Debug)]
pub struct Watch {
    token: u64,
    now: Option<Interest>,
}

impl Watch {
    /// Not yet.
    pub fn new(token: u64) -> Watch {
        Watch { token, now: None }
    }

    /// It is waited for, be it for a hang-up alone.
    pub fn is_on(&self) -> bool {
        self.now.is_some()
    }

    /// From now on. False: the kernel cannot (ENOMEM; ENOSPC by fs.epoll.max_user_watches), and nothing will be
    /// heard of it.
    #[must_use]
    pub fn want(&mut self, events: &Loop, fd: BorrowedFd<'_>, read: bool, write: bool) -> bool {
        let wanted = match (read, write) {
            (true, true) => Some(Interest::Both),
            (true, false) => Some(Interest::Read),
            (false, true) => Some(Interest::Write),
            (false, false) => None,
        };
        if self.now == wanted {
            return true;
        }
        match (self.now, wanted) {
            (None, Some(interest)) => {
                if events.add(fd, self.token, interest).is_err() {
                    return false;
                }
            }
            (Some(_), Some(interest)) => events.set(fd, self.token, interest),
            (Some(_), None) => events.remove(fd),
            (None, None) => {}
        }
        self.now = wanted;
        true
    }

    /// Only a hang-up is waited for. False as with [`Watch::want`].
    #[must_use]
    pub fn want_hang_up(&mut self, events: &Loop, fd: BorrowedFd<'_>) -> bool {
        if self.now == Some(Interest::Nothing) {
            return true;
        }
        if self.now.is_none() {
            if events.add(fd, self.token, Interest::Nothing).is_err() {
                return false;
            }
        } else {
            events.set(fd, self.token, Interest::Nothing);
        }
        self.now = Some(Interest::Nothing);
        true
    }
}

/// What it speaks.
#[derive(Debug)]
pub enum Speech {
    /// It has said nothing yet.
    Unknown,
    /// Bytes in, bytes out.
    Plain,
    /// As replsock-protocol(7) has it.
    Frames(Stream),
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Both ways.
    Open,
    /// What waits for it is its last; one that is not to be waited for has until then.
    Closing(Option<Instant>),
    /// It has everything; what it may still send is thrown away until then, for closing a socket with
    /// unread bytes would take from it what it has not read.
    Over(Instant),
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    /// Non-blocking.
    pub fd: OwnedFd,
    /// Who it is.
    pub visitor: Visitor,
    /// How it talks.
    pub speech: Speech,
    /// What waits for room.
    pub out: Queue,
    /// It is behind: until then it has time to catch up.
    pub slow: Option<Instant>,
    /// What is waited for.
    pub watch: Watch,
    /// How far it is.
    pub phase: Phase,
    /// The program that it talks to.
    pub program: Option<u64>,
    /// It has proved itself, where that is asked for.
    pub trusted: bool,
    /// It is not let in: status and reason, said once it is known how.
    pub refusal: Option<(u8, String)>,
    /// It only looks.
    pub read_only: bool,
    /// It has a terminal.
    pub terminal: bool,
    /// Of that size.
    pub size: (u16, u16),
    /// Of that kind.
    pub term: String,
    /// It will send nothing more.
    pub input_over: bool,
    /// When it came.
    pub since: Instant,
    /// When something moved.
    pub active: Instant,
    /// Bytes from it.
    pub received: u64,
    /// Bytes for it.
    pub sent: u64,
}

/// What came of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// It goes, or waits.
    Fine,
    /// Nobody is there any more.
    Gone,
}

impl Client {
    /// Sends output, or lets it wait. Plain text has one stream for both kinds.
    pub fn send(&mut self, kind: Kind, bytes: &[u8]) -> Sent {
        self.sent += bytes.len() as u64;
        if matches!(self.speech, Speech::Frames(_)) {
            let mut rest = bytes;
            loop {
                let (part, behind) = rest.split_at(rest.len().min(frames::LONGEST));
                let head = frames::head(kind, part.len());
                if self.put(&head, part) == Sent::Gone {
                    return Sent::Gone;
                }
                rest = behind;
                if rest.is_empty() {
                    return Sent::Fine;
                }
            }
        }
        self.put(&[], bytes)
    }

    fn put(&mut self, head: &[u8], body: &[u8]) -> Sent {
        let mut done = 0;
        let length = head.len() + body.len();
        if self.out.is_empty() {
            // As far as it goes; the rest when there is room again.
            let count = if head.is_empty() {
                nix::unistd::write(&self.fd, body)
            } else {
                nix::sys::uio::writev(&self.fd, &[IoSlice::new(head), IoSlice::new(body)])
            };
            match count {
                Ok(count) => done = count,
                Err(nix::Error::EAGAIN | nix::Error::EINTR) => {}
                Err(_) => return Sent::Gone,
            }
        }
        if done < length {
            self.out.push(head.get(done..).unwrap_or_default());
            let from = done.saturating_sub(head.len());
            self.out.push(body.get(from..).unwrap_or_default());
        }
        Sent::Fine
    }

    /// Sends what waits, as far as it goes.
    pub fn flush(&mut self) -> Sent {
        while !self.out.is_empty() {
            match nix::unistd::write(&self.fd, self.out.all()) {
                Ok(count) => self.out.advance(count),
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => break,
                Err(_) => return Sent::Gone,
            }
        }
        Sent::Fine
    }

    /// The other side is closed wholly, not only its writing half.
    pub fn hung_up(&self) -> bool {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::empty())];
        let _ = poll(&mut fds, PollTimeout::ZERO);
        fds[0]
            .revents()
            .is_some_and(|events| events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR))
    }

    /// It speaks frames.
    pub fn framed(&self) -> bool {
        matches!(self.speech, Speech::Frames(_))
    }
}
