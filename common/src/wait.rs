//! The loop: descriptors and a deadline in, what happened out. Nothing is called back.

use crate::error::{Doing, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// What is waited for on a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Nothing for now (an error or a hang-up is reported all the same).
    Nothing,
    /// Something to read, or a connection to accept.
    Read,
    /// Room to write.
    Write,
    /// Both.
    Both,
}

impl Interest {
    fn flags(self) -> EpollFlags {
        match self {
            Interest::Nothing => EpollFlags::empty(),
            Interest::Read => EpollFlags::EPOLLIN,
            Interest::Write => EpollFlags::EPOLLOUT,
            Interest::Both => EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT,
        }
    }
}

/// One descriptor that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wake {
    /// The token given when it was added.
    pub token: u64,
    /// It can be read, or it has hung up or failed, which reading will tell.
    pub readable: bool,
    /// It can be written, or writing will tell its failure.
    pub writable: bool,
}

/// A descriptor that is left alone for a moment: the kernel is short of what an answer to it takes (memory,
/// descriptors), and does not tell when it is not. Waited for all the same, it would wake us without end.
#[derive(Debug, Default)]
pub struct Rest {
    until: Option<Instant>,
}

impl Rest {
    /// Does not wait for `fd` before so long has passed.
    pub fn begin(&mut self, events: &Loop, fd: impl AsFd, length: Duration, now: Instant) {
        events.remove(fd);
        self.until = Some(now + length);
    }

    /// Waits for it again, if its time is over; where that needs memory that is not there, a little later.
    pub fn end_if_due(
        &mut self,
        events: &Loop,
        fd: impl AsFd,
        token: u64,
        interest: Interest,
        now: Instant,
    ) {
        /// Long enough not to be a load, and short enough for who waits behind it.
        const AGAIN: Duration = Duration::from_millis(50);
        if self.until.is_some_and(|until| until <= now) {
            let waits = events.add(fd, token, interest).is_ok();
            self.until = (!waits).then_some(now + AGAIN);
        }
    }

    /// It is left alone.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.until.is_some()
    }

    /// When [`Rest::end_if_due`] has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.until
    }
}

/// An epoll(7) instance.
#[derive(Debug)]
pub struct Loop {
    epoll: Epoll,
}

impl Loop {
    /// A loop that waits for nothing yet.
    ///
    /// # Errors
    /// EMFILE, ENOMEM.
    pub fn new() -> Result<Loop> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).doing("make an epoll instance")?;
        Ok(Loop { epoll })
    }

    /// Begins to wait for `fd`; its wakes carry `token`.
    ///
    /// # Errors
    /// ENOSPC (max_user_watches), ENOMEM, EPERM for a regular file.
    pub fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> Result<()> {
        self.epoll
            .add(fd, EpollEvent::new(interest.flags(), token))
            .doing("wait for a descriptor")
    }

    /// Changes what is waited for.
    pub fn set(&self, fd: impl AsFd, token: u64, interest: Interest) {
        // It can fail only for a descriptor that was never added, which is a slip of the caller.
        let _ = self
            .epoll
            .modify(fd, &mut EpollEvent::new(interest.flags(), token));
    }

    /// Ends the waiting for `fd`; needed where a copy of the descriptor lives on elsewhere.
    pub fn remove(&self, fd: impl AsFd) {
        let _ = self.epoll.delete(fd);
    }

    /// Waits until something is ready or `deadline` has come (`None`: for ever).
    ///
    /// # Errors
    /// None that the outside world causes; EINTR is waited over.
    pub fn wait(&self, deadline: Option<Instant>, wakes: &mut Vec<Wake>) -> Result<()> {
        wakes.clear();
        let mut events = [EpollEvent::empty(); 128];
        let timeout = match deadline {
            None => EpollTimeout::NONE,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                // Rounded up: a wake-up before the deadline would only be repeated.
                let ms = left.as_nanos().div_ceil(1_000_000).min(86_400_000) as u32;
                EpollTimeout::try_from(ms).unwrap_or(EpollTimeout::MAX)
            }
        };
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(nix::Error::EINTR) => 0,
            Err(why) => return Err(why).doing("wait for events"),
        };
        wakes.extend(events.iter().take(count).map(|event| {
            let flags = event.events();
            let ended = flags.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
            Wake {
                token: event.data(),
                readable: ended || flags.contains(EpollFlags::EPOLLIN),
                writable: ended || flags.contains(EpollFlags::EPOLLOUT),
            }
        }));
        Ok(())
    }
}
