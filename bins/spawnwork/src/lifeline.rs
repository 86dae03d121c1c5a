//! `--orphans die`: the kernel kills a worker's whole process group when we end, however we end.
//!
//! PR_SET_PDEATHSIG reaches the worker alone. But a pipe that we alone can write to hangs up with our
//! end, whatever ends us, and a read end of it can have a process group for its owner, and KILL for the
//! signal that it gets then. Each worker holds such a read end, and never reads it; what ties its group to it
//! is done before its program runs (`Image::lifeline`).

use crate::state::{Open, Taken};
use common::error::{Doing, Result};
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// A pipe whose write end nobody else gets.
#[derive(Debug)]
pub struct Lifeline {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Lifeline {
    /// # Errors
    /// EMFILE.
    pub fn open() -> Result<Lifeline> {
        let (reader, writer) =
            nix::unistd::pipe2(OFlag::O_CLOEXEC).doing("make a pipe that ends with us")?;
        Ok(Lifeline { reader, writer })
    }

    /// Takes it down, for another program in our place: if it were closed there, all workers would go.
    pub fn save(&self, open: &mut Open) -> [RawFd; 2] {
        [open.keep(&self.reader), open.keep(&self.writer)]
    }

    /// Puts it back.
    ///
    /// # Errors
    /// An end is not open.
    pub fn restore([reader, writer]: [RawFd; 2], taken: &mut Taken) -> Result<Lifeline> {
        Ok(Lifeline {
            reader: taken.own(reader)?,
            writer: taken.own(writer)?,
        })
    }

    /// A read end for one worker. It must be an open file description of its own: the owner belongs to
    /// that. `None` without /proc; then PR_SET_PDEATHSIG alone has to do.
    #[must_use]
    pub fn reader(&self) -> Option<OwnedFd> {
        let path = format!("/proc/self/fd/{}", self.reader.as_raw_fd());
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        nix::fcntl::open(path.as_str(), flags, Mode::empty()).ok()
    }
}
