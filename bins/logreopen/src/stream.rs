//! What is read: the command's stdout or stderr, or our own stdin.

use crate::feed::Feed;
use common::lines::{Pace, Pool, Pump, Run};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What is wanted of a pipe, and the most that the kernel grants to everybody
/// (/proc/sys/fs/pipe-max-size), in bytes.
pub const PIPE: usize = 1 << 20;
/// What is read at once, in bytes: measured, 64 KiB stay in the processor's cache until they are written,
/// and cost 25 % less than 256 KiB do.
pub const BUFFER: usize = 64 << 10;
/// A line longer than this passes in pieces, in bytes.
pub const LONGEST: usize = 256 << 10;
/// The beginning of a line whose end does not come is shown after this: whoever looks for a program that
/// hangs looks for its last words.
pub const SHOWN: Duration = Duration::from_secs(1);

#[derive(Debug)]
enum Source {
    Owned(Arc<OwnedFd>),
    /// Our stdin, whose open file description others may have too: not to be made non-blocking.
    Stdin,
}

/// One stream.
#[derive(Debug)]
pub struct Stream {
    source: Source,
    /// A read may wait, so it is asked before.
    blocking: bool,
    /// A regular file: always ready, and nothing that can be waited for.
    pub always: bool,
    /// The loop waits for it.
    pub registered: bool,
    /// The lines.
    pub pump: Pump,
    pace: Pace,
    size: usize,
    /// Which output it feeds.
    pub output: usize,
    /// Its number among those that feed it.
    pub number: usize,
    /// `--tee`: which of our own descriptors.
    pub tee: Option<usize>,
    /// Not to be read before then.
    pub pause: Option<Instant>,
    /// The output takes nothing; to be asked again then, or when it says so.
    pub held: Option<Option<Instant>>,
    /// The beginning of a line is shown then.
    pub show: Option<Instant>,
    /// The writer reads it itself.
    pub lent: bool,
    /// It has come to its end.
    pub ended: bool,
}

/// What a turn brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// So many bytes, and there may be more at once.
    More(usize),
    /// So many bytes, and nothing is left for now.
    Empty(usize),
    /// All writers are gone.
    End,
}

impl Stream {
    /// The read end of a pipe that is ours.
    pub fn pipe(fd: OwnedFd, output: usize, number: usize) -> Stream {
        let size = common::sys::pipe_size(fd.as_fd()).unwrap_or(PIPE);
        Stream::new(
            Source::Owned(Arc::new(fd)),
            false,
            false,
            size,
            output,
            number,
        )
    }

    /// Our stdin.
    pub fn stdin(output: usize) -> Stream {
        let fd = common::sys::standard(0);
        let size = common::sys::pipe_size(fd);
        if size.is_some() {
            common::sys::widen_pipe(fd, PIPE as i32);
        }
        let kind = common::output::kind_of(fd);
        // A description of our own, that can be made non-blocking without anybody noticing.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
        let own = match size {
            Some(_) => nix::fcntl::open("/proc/self/fd/0", flags, Mode::empty()).ok(),
            None => None,
        };
        let size = common::sys::pipe_size(fd).unwrap_or(64 << 10);
        let always = kind == common::output::Kind::File;
        match own {
            Some(own) => Stream::new(Source::Owned(Arc::new(own)), false, always, size, output, 0),
            None => {
                let already = fcntl(fd, FcntlArg::F_GETFL)
                    .is_ok_and(|flags| OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK));
                Stream::new(Source::Stdin, !already && !always, always, size, output, 0)
            }
        }
    }

    fn new(
        source: Source,
        blocking: bool,
        always: bool,
        size: usize,
        output: usize,
        number: usize,
    ) -> Stream {
        Stream {
            source,
            blocking,
            always,
            registered: false,
            pump: Pump::new(LONGEST),
            pace: Pace::new(),
            size,
            output,
            number,
            tee: None,
            pause: None,
            held: None,
            show: None,
            lent: false,
            ended: false,
        }
    }

    /// What its pipe has room for, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// In the middle of a line.
    #[must_use]
    pub fn is_inside(&self) -> bool {
        !self.ended && (self.pump.inside() || !self.pump.tail().is_empty())
    }

    /// Reads once.
    pub fn read(&mut self, pool: &mut Pool, sink: &mut dyn FnMut(Run)) -> Turn {
        let fd = match &self.source {
            Source::Owned(fd) => fd.as_fd(),
            Source::Stdin => common::sys::standard(0),
        };
        let blocking = self.blocking;
        let mut emptied = false;
        let got = self.pump.fill(
            pool,
            &mut |room| {
                if blocking {
                    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
                    if poll(&mut fds, PollTimeout::ZERO)? == 0 {
                        return Err(nix::Error::EAGAIN);
                    }
                }
                let got = nix::unistd::read(fd, room);
                emptied = got.is_ok_and(|count| count < room.len());
                got
            },
            sink,
        );
        match got {
            Err(nix::Error::EAGAIN) => Turn::Empty(0),
            // EIO: the terminal is gone.
            Ok(0) | Err(_) => Turn::End,
            Ok(count) if emptied => Turn::Empty(count),
            Ok(count) => Turn::More(count),
        }
    }

    /// For the writer, with all that has been read of an unfinished line; `None`: it cannot be lent.
    pub fn lend(&mut self) -> Option<Feed> {
        match &self.source {
            Source::Owned(fd) if !self.always => {
                let pump = std::mem::replace(&mut self.pump, Pump::new(LONGEST));
                Some(Feed::new(Arc::clone(fd), pump, self.pace, self.size))
            }
            Source::Owned(_) | Source::Stdin => None,
        }
    }

    /// Back from the writer.
    pub fn take_back(&mut self, feed: Feed) {
        self.lent = false;
        (self.pump, self.pace) = feed.into_parts();
    }

    /// After a turn that brought `got` bytes and left nothing.
    pub fn emptied(&mut self, got: usize, now: Instant) {
        let pause = if got == 0 {
            None
        } else {
            self.pace.after(got, self.size, now)
        };
        self.pause = pause.map(|pause| now + pause);
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.source {
            Source::Owned(fd) => fd.as_fd(),
            Source::Stdin => common::sys::standard(0),
        }
    }
}
