//! Our own stdout and stderr: written without waiting for their reader, in whole lines, and never torn
//! among those of others.

use crate::lines::{batches, count};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{Mode, SFlag, fstat};
use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Up to PIPE_BUF a write into a pipe is not torn (pipe(7)): lines of ours stay whole among those of
/// the wrappers around us.
const WHOLE: usize = 4096;
/// When so much waits for our reader, in bytes, whoever feeds us waits too.
const FULL: usize = 1 << 20;
/// What one of our own descriptors leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A terminal.
    Terminal,
    /// A regular file.
    File,
    /// The journal, or another socket.
    Socket,
    /// A pipe, /dev/null, and all else.
    Other,
}

/// Looks at descriptor `fd`.
#[must_use]
pub fn kind_of(fd: BorrowedFd<'_>) -> Kind {
    let Ok(stat) = fstat(fd) else {
        return Kind::Other;
    };
    match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFREG => Kind::File,
        SFlag::S_IFSOCK => Kind::Socket,
        SFlag::S_IFCHR if nix::unistd::isatty(fd).unwrap_or(false) => Kind::Terminal,
        _ => Kind::Other,
    }
}

/// Descriptors 1 and 2 are one and the same (`2>&1`): then they must be one output, or a long line of
/// one would end up within a long line of the other.
#[must_use]
pub fn same(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    match (fstat(one), fstat(other)) {
        (Ok(one), Ok(other)) => (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino),
        _ => false,
    }
}

#[derive(Debug)]
enum Writer {
    /// Our own open file description of it: O_NONBLOCK on the inherited one would hit everybody who
    /// shares it.
    Own(OwnedFd),
    /// A socket, with MSG_DONTWAIT.
    Socket(BorrowedFd<'static>),
    /// A regular file, which never says "not now".
    File(BorrowedFd<'static>),
    /// What cannot be opened again: asked for room before each write.
    Asked(BorrowedFd<'static>),
    /// The reader is gone.
    Gone,
}

/// One of our own outputs, with what waits for its reader.
#[derive(Debug)]
pub struct Output {
    writer: Writer,
    queue: VecDeque<Vec<u8>>,
    sent: usize,
    queued: usize,
    lost: u64,
}

impl Output {
    /// The output on descriptor `fd` (1 or 2).
    #[must_use]
    pub fn open(fd: i32) -> Output {
        let standard = crate::sys::standard(fd);
        let writer = match kind_of(standard) {
            Kind::File => Writer::File(standard),
            Kind::Socket => Writer::Socket(standard),
            Kind::Terminal | Kind::Other => {
                let flags =
                    OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
                match nix::fcntl::open(format!("/proc/self/fd/{fd}").as_str(), flags, Mode::empty())
                {
                    Ok(own) => Writer::Own(own),
                    Err(_) => Writer::Asked(standard),
                }
            }
        };
        Output {
            writer,
            queue: VecDeque::new(),
            sent: 0,
            queued: 0,
            lost: 0,
        }
    }

    /// More may come.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.queued < FULL
    }

    /// Something waits for the reader.
    #[must_use]
    pub fn wants_to_write(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Nobody reads it any more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self.writer, Writer::Gone)
    }

    /// The descriptor to wait for; a regular file needs no waiting.
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.writer {
            Writer::Own(fd) => Some(fd.as_fd()),
            Writer::Socket(fd) | Writer::Asked(fd) => Some(*fd),
            Writer::File(_) | Writer::Gone => None,
        }
    }

    /// What waits for the reader.
    #[must_use]
    pub fn waiting(&self) -> Vec<u8> {
        let all: Vec<u8> = self.queue.iter().flatten().copied().collect();
        all[self.sent.min(all.len())..].to_vec()
    }

    /// Lines that could not be passed on since the last call.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// Passes whole lines on, or keeps them until their reader takes them.
    pub fn write(&mut self, run: &[u8]) {
        if matches!(self.writer, Writer::Gone) {
            self.lost += count(run);
            return;
        }
        let mut done = 0;
        if self.queue.is_empty() {
            done = self.write_now(run);
        }
        if done < run.len() && !matches!(self.writer, Writer::Gone) {
            self.queued += run.len() - done;
            self.queue.push_back(run[done..].to_vec());
        }
    }

    /// A line that is dropped rather than kept when too much waits already.
    pub fn write_or_drop(&mut self, line: &[u8]) {
        if self.queued < FULL + (64 << 10) {
            self.write(line)
        } else {
            self.lost += 1
        }
    }

    /// Writes what goes without waiting.
    pub fn flush(&mut self) {
        while let Some(front) = self.queue.pop_front() {
            let done = self.write_now(&front[self.sent..]);
            self.queued -= done.min(self.queued);
            self.sent += done;
            if matches!(self.writer, Writer::Gone) {
                self.lost += count(&front[self.sent.min(front.len())..]);
                self.lost += self.queue.drain(..).map(|run| count(&run)).sum::<u64>();
                self.queued = 0;
                self.sent = 0;
                return;
            }
            if self.sent < front.len() {
                self.queue.push_front(front);
                return;
            }
            self.sent = 0;
        }
    }

    /// At the end: gives a slow reader up to `patience`, and what it does not take by then is lost.
    pub fn finish(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        loop {
            self.flush();
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(fd) = self.descriptor() else { return };
            if self.queue.is_empty() || left.is_zero() {
                return;
            }
            let timeout =
                PollTimeout::try_from(left.as_millis().max(1)).unwrap_or(PollTimeout::MAX);
            let _ = poll(&mut [PollFd::new(fd, PollFlags::POLLOUT)], timeout);
        }
    }

    /// How many bytes of `run` went.
    fn write_now(&mut self, run: &[u8]) -> usize {
        let limit = if matches!(self.writer, Writer::File(_)) {
            usize::MAX
        } else {
            WHOLE
        };
        let mut done = 0;
        for batch in batches(run, limit) {
            let mut sent = 0;
            while sent < batch.len() {
                match self.write_once(&batch[sent..]) {
                    Ok(count) => sent += count,
                    Err(nix::Error::EINTR) => {}
                    Err(nix::Error::EAGAIN) => return done + sent,
                    Err(
                        why @ (nix::Error::EPIPE
                        | nix::Error::ECONNRESET
                        | nix::Error::EIO
                        | nix::Error::EBADF),
                    ) if !self.may_recover(why) => {
                        self.writer = Writer::Gone;
                        self.lost += count(&run[done + sent..]);
                        return done + sent;
                    }
                    Err(_) => {
                        // ENOSPC and its like, a disk's EIO: this batch is lost, the next may go again.
                        self.lost += count(&batch[sent..]);
                        sent = batch.len();
                    }
                }
            }
            done += batch.len();
        }
        done
    }

    /// EIO of a terminal is its hang-up, and final; that of a disk or a file server may be over with the next
    /// write.
    fn may_recover(&self, why: nix::Error) -> bool {
        why == nix::Error::EIO && matches!(self.writer, Writer::File(_))
    }

    fn write_once(&self, bytes: &[u8]) -> nix::Result<usize> {
        match &self.writer {
            Writer::Own(fd) => nix::unistd::write(fd, bytes),
            Writer::File(fd) => nix::unistd::write(fd, bytes),
            Writer::Socket(fd) => {
                let flags = nix::sys::socket::MsgFlags::MSG_DONTWAIT
                    | nix::sys::socket::MsgFlags::MSG_NOSIGNAL;
                nix::sys::socket::send(fd.as_raw_fd(), bytes, flags)
            }
            Writer::Asked(fd) => {
                let mut asked = [PollFd::new(*fd, PollFlags::POLLOUT)];
                match poll(&mut asked, PollTimeout::ZERO) {
                    Ok(0) => Err(nix::Error::EAGAIN),
                    // A pipe that can be written takes PIPE_BUF bytes without blocking.
                    Ok(_) => nix::unistd::write(fd, &bytes[..bytes.len().min(WHOLE)]),
                    Err(why) => Err(why),
                }
            }
            Writer::Gone => Err(nix::Error::EPIPE),
        }
    }
}
