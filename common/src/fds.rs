//! Descriptors that come with the start of a program: the standard three, and LISTEN_FDS; and the way
//! up to the supervisor that gave them, NOTIFY_SOCKET.

use crate::error::{Doing, Error, Result};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socket,
};
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

/// The first descriptor of LISTEN_FDS (SD_LISTEN_FDS_START of sd_listen_fds(3)).
pub const FIRST: RawFd = 3;

/// Whether LISTEN_PID must name this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenPid {
    /// As sd_listen_fds(3) says.
    Checked,
    /// A wrapper between the activator and us changed the pid; the user vouches for the sockets.
    Ignored,
}

/// A socket that this process was started with.
#[derive(Debug)]
pub struct Inherited {
    /// Its number.
    pub number: RawFd,
    /// Its name of LISTEN_FDNAMES, else `unknown` (as systemd calls it).
    pub name: String,
    /// The descriptor itself.
    pub fd: OwnedFd,
}

/// Opens /dev/null in place of a standard descriptor that is closed, so that no socket of ours gets
/// its number and is written to by mistake.
///
/// # Errors
/// /dev/null cannot be opened.
pub fn ensure_standard() -> Result<()> {
    loop {
        let null = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
            .doing("open /dev/null")?;
        if null.as_raw_fd() > 2 {
            return Ok(());
        }
        // It took the place of the missing one, and stays there.
        std::mem::forget(null);
    }
}

/// The sockets of LISTEN_FDS, adopted once and close-on-exec from then on.
///
/// # Errors
/// The variables cannot be read as numbers, a descriptor is not open, or (`Checked`) LISTEN_PID names
/// another process.
pub fn inherited(check: ListenPid) -> Result<Vec<Inherited>> {
    let Some(count) = std::env::var_os("LISTEN_FDS") else {
        return Ok(Vec::new());
    };
    let count = count
        .to_str()
        .and_then(|count| count.parse::<usize>().ok())
        .filter(|count| *count <= 1024)
        .ok_or_else(|| Error::new("use LISTEN_FDS", "it is no number up to 1024"))?;
    if check == ListenPid::Checked {
        check_listen_pid()?;
    }
    let mut names = names().into_iter();
    (0..count)
        .map(|index| {
            let number = FIRST + index as RawFd;
            let name = names
                .next()
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| "unknown".to_owned());
            let fd = crate::sys::adopt(number).ok_or_else(|| {
                Error::new("use LISTEN_FDS", format!("descriptor {number} is not open"))
            })?;
            Ok(Inherited { number, name, fd })
        })
        .collect()
}

/// The names of LISTEN_FDNAMES, in the order of the descriptors.
#[must_use]
pub fn names() -> Vec<String> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    names.split(':').map(str::to_owned).collect()
}

/// LISTEN_PID names this process.
///
/// # Errors
/// It names another one, or none.
pub fn check_listen_pid() -> Result<()> {
    let pid = std::env::var("LISTEN_PID").unwrap_or_default();
    if pid.parse::<u32>() == Ok(std::process::id()) {
        return Ok(());
    }
    Err(Error::new(
        "use LISTEN_FDS",
        format!(
            "LISTEN_PID is '{pid}', not our pid {}; --no-listen-pid takes the sockets all the same",
            std::process::id()
        ),
    ))
}

/// The way up: the supervisor's NOTIFY_SOCKET (sd_notify(3)). Not connected, so that a supervisor that
/// made its socket anew is found again.
#[derive(Debug)]
pub struct Upward {
    fd: OwnedFd,
    address: UnixAddr,
}

impl Upward {
    /// By the variable's value: a path, or `@` and an abstract name.
    ///
    /// # Errors
    /// It is neither, or longer than an address can be; EMFILE.
    pub fn open(variable: &OsStr) -> io::Result<Upward> {
        let address = match variable.as_bytes() {
            [b'@', name @ ..] if !name.is_empty() => UnixAddr::new_abstract(name)?,
            [b'/', ..] => UnixAddr::new(variable)?,
            _ => return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
        Ok(Upward { fd, address })
    }

    /// One datagram, with a descriptor or without. Never waits.
    ///
    /// # Errors
    /// EAGAIN when the reader is behind; ENOENT, ECONNREFUSED when there is none.
    pub fn send(&self, text: &str, passed: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let passed: Vec<RawFd> = passed.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&passed)];
        let control = if passed.is_empty() { &[][..] } else { &rights };
        loop {
            let sent = sendmsg(
                self.fd.as_raw_fd(),
                &[IoSlice::new(text.as_bytes())],
                control,
                MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
                Some(&self.address),
            );
            match sent {
                Ok(_) => return Ok(()),
                Err(nix::Error::EINTR) => {}
                Err(why) => return Err(why.into()),
            }
        }
    }
}
