//! Descriptors that come with the start of a program: the standard three, and LISTEN_FDS.

use crate::error::{Doing, Error, Result};
use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

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
        let pid = std::env::var("LISTEN_PID").unwrap_or_default();
        if pid.parse::<u32>() != Ok(std::process::id()) {
            return Err(Error::new(
                "use LISTEN_FDS",
                format!(
                    "LISTEN_PID is '{pid}', not our pid {}; --no-listen-pid takes the sockets all the same",
                    std::process::id()
                ),
            ));
        }
    }
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    (0..count)
        .map(|index| {
            let number = FIRST + index as RawFd;
            let name = names
                .next()
                .filter(|name| !name.is_empty())
                .unwrap_or("unknown")
                .to_owned();
            let fd = crate::sys::adopt(number).ok_or_else(|| {
                Error::new("use LISTEN_FDS", format!("descriptor {number} is not open"))
            })?;
            Ok(Inherited { number, name, fd })
        })
        .collect()
}
