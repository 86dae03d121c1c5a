//! One worker's channel: lines and descriptors over a unix socket pair.
//!
//! Framing: lib/internal/child_process.js (json mode): one JSON text and a newline a message; at most
//! one descriptor, sent with the first byte of its message.

use super::message::{self, Garbage, Message};
use crate::state::{Hex, Open, Taken};
use common::sys;
use common::wait::{Interest, Loop, Rest};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The longest message that a worker may send, in bytes.
pub const LONGEST: usize = 1 << 20;
/// As much may wait for a worker that does not read, in bytes.
const MOST_WAITING: usize = 4 << 20;

/// Why a channel is at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The worker closed it, or is gone.
    Closed,
    /// What came is no message.
    Garbage,
    /// A message longer than [`LONGEST`].
    TooLong,
    /// The worker does not read what it is sent.
    NotRead,
}

impl Ended {
    /// For the event line.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Ended::Closed => "closed by the worker",
            Ended::Garbage => "the worker sent something that is no JSON line",
            Ended::TooLong => "the worker sent a message of more than 1 MiB",
            Ended::NotRead => "the worker does not read its messages",
        }
    }
}

/// How long a worker's channel is left alone when the kernel is short of memory for it, or has too many
/// descriptors under way: neither tells when it is over.
const REST: Duration = Duration::from_millis(50);

/// How far it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Went {
    /// As far as the other end takes it.
    On,
    /// The kernel could not, for now: again a moment later.
    Short,
}

#[derive(Debug)]
struct Waiting {
    bytes: Vec<u8>,
    sent: usize,
    handle: Option<Rc<OwnedFd>>,
}

/// A channel, for another program in our place.
#[derive(Debug, Serialize, Deserialize)]
pub struct SavedChannel {
    fd: RawFd,
    input: Hex,
    output: Vec<(Hex, Option<RawFd>)>,
    seq: u64,
}

/// Our end.
#[derive(Debug)]
pub struct Channel {
    fd: OwnedFd,
    input: Vec<u8>,
    output: VecDeque<Waiting>,
    waiting: usize,
    seq: u64,
    rest: Rest,
}

/// A channel and the end that the worker gets.
///
/// # Errors
/// EMFILE.
pub fn pair() -> io::Result<(Channel, OwnedFd)> {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::Stream,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    Ok((Channel::new(ours)?, theirs))
}

impl Channel {
    /// Takes a connected socket as channel.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn new(fd: OwnedFd) -> io::Result<Channel> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Channel {
            fd,
            input: Vec::new(),
            output: VecDeque::new(),
            waiting: 0,
            seq: 0,
            rest: Rest::default(),
        })
    }

    /// Takes it down.
    pub fn save(&self, open: &mut Open) -> SavedChannel {
        let waiting = self.output.iter().map(|one| {
            let handle = one.handle.as_ref().map(|handle| open.keep(&**handle));
            (Hex::new(&one.bytes[one.sent..]), handle)
        });
        let output = waiting.collect();
        SavedChannel {
            fd: open.keep(self),
            input: Hex::new(&self.input),
            output,
            seq: self.seq,
        }
    }

    /// Puts it back.
    ///
    /// # Errors
    /// A descriptor is not open.
    pub fn restore(saved: SavedChannel, taken: &mut Taken) -> common::error::Result<Channel> {
        let mut channel = Channel {
            fd: taken.own(saved.fd)?,
            input: saved.input.bytes(),
            output: VecDeque::new(),
            waiting: 0,
            seq: saved.seq,
            rest: Rest::default(),
        };
        for (bytes, handle) in saved.output {
            let bytes = bytes.bytes();
            let handle = match handle {
                Some(number) => Some(taken.shared(number)?),
                None => None,
            };
            channel.waiting += bytes.len();
            channel.output.push_back(Waiting {
                bytes,
                sent: 0,
                handle,
            });
        }
        Ok(channel)
    }

    /// A number for the next message.
    pub fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    /// Something waits to be written.
    #[must_use]
    pub fn wants_to_write(&self) -> bool {
        !self.output.is_empty()
    }

    /// What is to be waited for.
    #[must_use]
    pub fn interest(&self) -> Interest {
        if self.wants_to_write() {
            Interest::Both
        } else {
            Interest::Read
        }
    }

    /// It is left alone for a moment.
    #[must_use]
    pub fn rests(&self) -> bool {
        self.rest.is_on()
    }

    /// From now on it is.
    pub fn rest(&mut self, events: &Loop, now: Instant) {
        self.rest.begin(events, &self.fd, REST, now);
    }

    /// It is waited for again, if the moment is over.
    pub fn wake_if_due(&mut self, events: &Loop, token: u64, now: Instant) {
        let interest = self.interest();
        self.rest.end_if_due(events, &self.fd, token, interest, now);
    }

    /// When it is.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.rest.deadline()
    }

    /// Reads what is there, at most 256 KiB, so that one worker cannot hold the loop.
    ///
    /// # Errors
    /// The channel is at its end; the messages read before it are in `messages`.
    pub fn receive(&mut self, messages: &mut Vec<Message>) -> Result<Went, Ended> {
        let mut buffer = [0u8; 16 << 10];
        for _ in 0..16 {
            let mut space = nix::cmsg_space!([i32; 16]);
            let mut slices = [IoSliceMut::new(&mut buffer)];
            let received = recvmsg::<()>(
                self.fd.as_raw_fd(),
                &mut slices,
                Some(&mut space),
                MsgFlags::MSG_CMSG_CLOEXEC,
            );
            let count = match received {
                Ok(received) => {
                    // A handle that the app sends to its parent: nobody wants it here.
                    for control in received.cmsgs().into_iter().flatten() {
                        if let ControlMessageOwned::ScmRights(fds) = control {
                            fds.into_iter().for_each(|fd| drop(sys::adopt(fd)));
                        }
                    }
                    received.bytes
                }
                Err(nix::Error::EINTR) => continue,
                Err(nix::Error::EAGAIN) => return Ok(Went::On),
                Err(nix::Error::ENOMEM | nix::Error::ENOBUFS) => return Ok(Went::Short),
                Err(_) => return Err(Ended::Closed),
            };
            if count == 0 {
                return Err(Ended::Closed);
            }
            self.split(&buffer[..count], messages)?;
            if count < buffer.len() {
                return Ok(Went::On);
            }
        }
        Ok(Went::On)
    }

    fn split(&mut self, mut bytes: &[u8], messages: &mut Vec<Message>) -> Result<(), Ended> {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            let parsed = if self.input.is_empty() {
                message::parse(line)
            } else {
                self.input.extend_from_slice(line);
                let parsed = message::parse(&self.input);
                self.input = Vec::new();
                parsed
            };
            messages.push(parsed.map_err(|Garbage| Ended::Garbage)?);
            bytes = rest;
        }
        if self.input.len() + bytes.len() > LONGEST {
            self.input = Vec::new();
            return Err(Ended::TooLong);
        }
        self.input.extend_from_slice(bytes);
        Ok(())
    }

    /// Queues one message (complete, with its newline) and writes what goes without waiting.
    ///
    /// # Errors
    /// The channel is at its end.
    pub fn send(&mut self, message: String, handle: Option<Rc<OwnedFd>>) -> Result<Went, Ended> {
        self.waiting += message.len();
        self.output.push_back(Waiting {
            bytes: message.into_bytes(),
            sent: 0,
            handle,
        });
        if self.waiting > MOST_WAITING {
            return Err(Ended::NotRead);
        }
        if self.rest.is_on() {
            return Ok(Went::On);
        }
        self.flush()
    }

    /// Writes what goes without waiting.
    ///
    /// # Errors
    /// The channel is at its end.
    pub fn flush(&mut self) -> Result<Went, Ended> {
        while let Some(front) = self.output.front_mut() {
            let slices = [IoSlice::new(&front.bytes[front.sent..])];
            let fds = front.handle.as_ref().map(|handle| [handle.as_raw_fd()]);
            let rights = fds.as_ref().map(|fds| [ControlMessage::ScmRights(fds)]);
            let control: &[ControlMessage] = rights.as_ref().map_or(&[], |rights| rights);
            match sendmsg::<()>(
                self.fd.as_raw_fd(),
                &slices,
                control,
                MsgFlags::MSG_NOSIGNAL,
                None,
            ) {
                Ok(count) => {
                    front.sent += count;
                    self.waiting -= count;
                    front.handle = None;
                    if front.sent == front.bytes.len() {
                        self.output.pop_front();
                    }
                }
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => return Ok(Went::On),
                // Too many descriptors are under way (unix(7)), or there is no memory. The socket has room,
                // so that to wait for it would be to try again at once.
                Err(nix::Error::ETOOMANYREFS | nix::Error::ENOBUFS | nix::Error::ENOMEM) => {
                    return Ok(Went::Short);
                }
                Err(_) => return Err(Ended::Closed),
            }
        }
        Ok(Went::On)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn messages_arrive_whole_however_they_are_cut() {
        let (mut channel, theirs) = pair().unwrap();
        let mut theirs = UnixStream::from(theirs);
        let mut messages = Vec::new();
        for byte in b"{\"cmd\":\"NODE_CLUSTER\",\"act\":\"online\",\"seq\":0}\n{\"cmd\":\"NODE_HAN"
        {
            theirs.write_all(&[*byte]).unwrap();
            channel.receive(&mut messages).unwrap();
        }
        assert_eq!(messages, [Message::Online]);
        theirs.write_all(b"DLE_ACK\"}\n\"x\"\n").unwrap();
        channel.receive(&mut messages).unwrap();
        assert_eq!(
            messages,
            [Message::Online, Message::HandleAck, Message::Other]
        );
        drop(theirs);
        assert_eq!(channel.receive(&mut messages), Err(Ended::Closed));
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let (mut channel, theirs) = pair().unwrap();
        let mut theirs = UnixStream::from(theirs);
        theirs.set_nonblocking(true).unwrap();
        let mut messages = Vec::new();
        let mut result = Ok(Went::On);
        for _ in 0..300 {
            let _ = theirs.write(&[b'x'; 8192]);
            result = channel.receive(&mut messages);
            if result.is_err() {
                break;
            }
        }
        assert_eq!(result, Err(Ended::TooLong));
    }

    #[test]
    fn a_worker_that_does_not_read_does_not_grow_us() {
        let (mut channel, _theirs) = pair().unwrap();
        let message = format!("\"{}\"\n", "x".repeat(100_000));
        let ended = (0..100).find_map(|_| channel.send(message.clone(), None).err());
        assert_eq!(ended, Some(Ended::NotRead));
    }

    proptest! {
        #[test]
        fn random_bytes_end_the_channel_or_are_messages(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let (mut channel, theirs) = pair().unwrap();
            UnixStream::from(theirs).write_all(&bytes).unwrap();
            let mut messages = Vec::new();
            while channel.receive(&mut messages).is_ok() {}
            let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
            prop_assert!(messages.len() <= lines);
        }
    }
}
