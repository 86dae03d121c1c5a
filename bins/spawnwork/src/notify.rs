//! The workers' private NOTIFY_SOCKET (sd_notify(3)): what they say of themselves stays with us.

use common::error::{Doing, Result};
use common::wait::{Interest, Loop, Rest};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, bind, recvmsg,
    socket,
};
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// What cannot be read for lack of memory is not tried again before that: it would wake us without end.
const REST: Duration = Duration::from_millis(50);

/// An abstract datagram socket: nothing on disk, gone with us.
#[derive(Debug)]
pub struct Notify {
    fd: OwnedFd,
    name: String,
    rest: Rest,
}

/// One datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// Who sent it, as the kernel says.
    pub pid: i32,
    /// It holds `READY=1`.
    pub ready: bool,
    /// It holds a sign of life, or of the contrary.
    pub alive: Option<Alive>,
    /// It holds anything but that.
    pub more: bool,
}

/// What a worker says to its watchdog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alive {
    /// `WATCHDOG=1`
    Yes,
    /// `WATCHDOG=trigger`: it has found itself broken.
    No,
}

impl Notify {
    /// Opens it under a name that nobody can know beforehand.
    ///
    /// # Errors
    /// EMFILE.
    pub fn open() -> Result<Notify> {
        let name = format!(
            "spawnwork-notify-{}-{:016x}",
            std::process::id(),
            common::time::random()
        );
        let open = || -> nix::Result<OwnedFd> {
            let fd = socket(
                AddressFamily::Unix,
                SockType::Datagram,
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                None,
            )?;
            bind(fd.as_raw_fd(), &UnixAddr::new_abstract(name.as_bytes())?)?;
            Ok(fd)
        };
        let fd = open().doing("open the workers' NOTIFY_SOCKET")?;
        common::sys::pass_credentials(fd.as_fd()).doing("open the workers' NOTIFY_SOCKET")?;
        Ok(Notify::again(fd, name))
    }

    /// The same one, in another program.
    #[must_use]
    pub fn again(fd: OwnedFd, name: String) -> Notify {
        let rest = Rest::default();
        Notify { fd, name, rest }
    }

    /// Its abstract name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The variable's value: `@` stands for the NUL of an abstract name.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("@{}", self.name)
    }

    /// Waits for it again, if it was left alone for a moment and that is over.
    pub fn wake_if_due(&mut self, events: &Loop, token: u64, now: Instant) {
        self.rest
            .end_if_due(events, &self.fd, token, Interest::Read, now);
    }

    /// When it is.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.rest.deadline()
    }

    /// The next datagram; `None` when there is no further one, or it cannot be had for now.
    #[must_use]
    pub fn next(&mut self, events: &Loop, now: Instant) -> Option<Said> {
        let mut buffer = [0u8; 4096];
        loop {
            let mut space = nix::cmsg_space!(nix::sys::socket::UnixCredentials, [i32; 16]);
            let mut slices = [IoSliceMut::new(&mut buffer)];
            let received = recvmsg::<()>(
                self.fd.as_raw_fd(),
                &mut slices,
                Some(&mut space),
                MsgFlags::MSG_CMSG_CLOEXEC,
            );
            let (count, pid) = match received {
                Ok(received) => {
                    let mut pid = 0;
                    for control in received.cmsgs().into_iter().flatten() {
                        match control {
                            ControlMessageOwned::ScmCredentials(sender) => pid = sender.pid(),
                            // FDSTORE of a worker: nothing that we keep.
                            ControlMessageOwned::ScmRights(fds) => {
                                fds.into_iter().for_each(|fd| drop(common::sys::adopt(fd)))
                            }
                            _ => {}
                        }
                    }
                    (received.bytes, pid)
                }
                Err(nix::Error::EINTR) => continue,
                Err(nix::Error::EAGAIN) => return None,
                Err(_) => {
                    self.rest.begin(events, &self.fd, REST, now);
                    return None;
                }
            };
            return Some(said(pid, &buffer[..count]));
        }
    }
}

fn said(pid: i32, message: &[u8]) -> Said {
    let mut said = Said {
        pid,
        ready: false,
        alive: None,
        more: false,
    };
    for line in message.split(|byte| *byte == b'\n') {
        match line {
            b"WATCHDOG=1" => said.alive = said.alive.or(Some(Alive::Yes)),
            b"WATCHDOG=trigger" => said.alive = Some(Alive::No),
            b"" => {}
            line => {
                said.more = true;
                said.ready |= line == b"READY=1";
            }
        }
    }
    said
}

impl AsFd for Notify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_a_line_of_its_own() {
        assert!(said(1, b"READY=1").ready);
        assert!(said(1, b"STATUS=up\nREADY=1\n").ready);
        for other in [&b""[..], b"READY=0", b"STATUS=READY=1", b"XREADY=1"] {
            assert!(!said(1, other).ready);
        }
    }

    #[test]
    fn a_sign_of_life_says_nothing_of_readiness() {
        let alive = said(1, b"WATCHDOG=1\n");
        assert_eq!((alive.alive, alive.more), (Some(Alive::Yes), false));
        let both = said(1, b"WATCHDOG=1\nREADY=1\nWATCHDOG=trigger\nWATCHDOG=1");
        assert_eq!(
            (both.alive, both.more, both.ready),
            (Some(Alive::No), true, true)
        );
        assert_eq!(said(1, b"STATUS=WATCHDOG=1").alive, None);
    }
}
