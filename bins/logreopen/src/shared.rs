//! What the loop and a file's writer have in common: the queue between them, what the one asks, and what the
//! other reports.

use crate::feed::{Feed, WATCH};
use crate::queue::{Gap, Queue, Room};
use common::lines::Buffer;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::WatchDescriptor;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What the loop is told.
#[derive(Debug)]
pub enum Report {
    /// The old file was let go, and another one taken, for all requests up to this one.
    Reopened(Reopened),
    /// The path still leads to the file that is open.
    Unchanged(u64),
    /// Another file could not be opened; it is tried again.
    ReopenFailed {
        /// The request.
        request: u64,
        /// Why.
        why: String,
        /// Said before, of the same request.
        again: bool,
    },
    /// The file was moved or removed, and nobody said so.
    Moved,
    /// It cannot be written.
    WriteFailed(String),
    /// It can be written again.
    Recovered {
        /// After how long.
        after: Duration,
        /// What was held in that moment, in bytes.
        held: usize,
    },
    /// What was written cannot be brought to the disk.
    SyncFailed(String),
    /// Lines were dropped.
    Lost(Gap),
    /// A line was cut in two.
    Split,
    /// Somebody made the file shorter, from so many bytes to so many.
    Truncated(u64, u64),
    /// It was rotated, to this name.
    Rotated(PathBuf, Reopened),
    /// It could not be rotated.
    RotateFailed(u64, String),
    /// All is written, and nothing more will come.
    Ended,
}

/// A file that was changed for another.
#[derive(Debug)]
pub struct Reopened {
    /// The request.
    pub request: u64,
    /// The old file's inode; 0 when there was none.
    pub old: u64,
    /// The new file's.
    pub new: u64,
    /// What was written to the old one.
    pub bytes: u64,
    /// In lines.
    pub lines: u64,
    /// From the moment that it was taken up.
    pub took: Duration,
}

/// What the status says.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Of the file that is open; 0 without one.
    pub inode: u64,
    /// Written since the start.
    pub bytes: u64,
    /// Written since the start.
    pub lines: u64,
    /// How often another file was taken.
    pub reopens: u64,
    /// Why nothing can be written, or no other file opened.
    pub trouble: Option<String>,
    /// The last one, even if it is over.
    pub last_error: Option<String>,
}

/// What the loop and the writer have in common.
#[derive(Debug)]
pub struct Inner {
    /// The lines.
    pub queue: Queue,
    /// The loop wants to hear when something was written.
    pub tell: bool,
    /// Something has happened to the file's name.
    pub look: bool,
    /// The command of `--on-rotate` still has the last old file.
    pub rotation_held: bool,
    /// Nothing more will come.
    pub end: bool,
    /// See [`Stats`].
    pub stats: Stats,
    /// Buffers for the loop's pool.
    pub spare: Vec<Buffer>,
    /// The inotify(7) watch of the file that is open.
    pub watch: Option<WatchDescriptor>,
    /// What the loop has not heard yet.
    pub reports: Vec<Report>,
    /// The writer waits for [`Shared::wake`].
    pub idle: bool,
    /// The writer's thread.
    pub thread: i32,
    /// The stream that the writer reads itself.
    pub feed: Option<Feed>,
    /// Since when the writer does something that may hang.
    pub away: Option<Instant>,
}

impl Inner {
    /// The writer was busy with one thing for so long that it may hang, and does not only want for processor.
    #[must_use]
    pub fn hangs(&self, now: Instant) -> bool {
        let longer_than = |length| self.away.is_some_and(|since| since + length <= now);
        // One that gets no processor for long holds the program up as well.
        longer_than(WATCH) && (longer_than(WATCH * 3) || !is_running(self.thread))
    }
}

fn of_thread(thread: i32, name: &str) -> std::io::Result<Vec<u8>> {
    std::fs::read(format!("/proc/self/task/{thread}/{name}"))
}

/// The thread runs, or waits for the processor.
fn is_running(thread: i32) -> bool {
    of_thread(thread, "stat").is_ok_and(|stat| {
        let name = stat.iter().rposition(|byte| *byte == b')');
        name.and_then(|name| stat.get(name + 2)) == Some(&b'R')
    })
}

/// The writer waits for the processor, for our lock (we may have been the ones who got no processor), or because
/// the kernel makes it, with too much that is not on disk yet: then it goes on by itself. In any other sleep it
/// may be for ever. All that can be read in /proc.
fn is_slow(thread: i32) -> bool {
    let known = [&b"futex_"[..], b"balance_dirty_pages"];
    let waits = |at: Vec<u8>| known.iter().any(|name| at.starts_with(name));
    // Twice, for between the first two looks it may have woken up.
    is_running(thread) || of_thread(thread, "wchan").is_ok_and(waits) || is_running(thread)
}

/// A writer as the loop sees it.
#[derive(Debug)]
pub struct Shared {
    inner: Mutex<Inner>,
    told: EventFd,
    /// The writer waits for it.
    call: EventFd,
    alarm: TimerFd,
    /// Who wants the lock and has not got it. In /proc a thread that has only just fallen asleep for it cannot be
    /// told from one that hangs: the scheduler may keep it in its queue for a while (since Linux 6.12), and then
    /// `wchan` is 0.
    claims: AtomicU32,
}

/// Buffers that the writer keeps for the loop.
pub const SPARE: usize = 64;

impl Shared {
    /// # Errors
    /// EMFILE.
    pub fn new(queue: Queue) -> nix::Result<Shared> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Ok(Shared {
            inner: Mutex::new(Inner {
                queue,
                tell: false,
                look: false,
                rotation_held: false,
                end: false,
                stats: Stats::default(),
                spare: Vec::new(),
                watch: None,
                reports: Vec::new(),
                idle: false,
                thread: 0,
                feed: None,
                away: None,
            }),
            told: EventFd::from_flags(flags)?,
            call: EventFd::from_flags(flags)?,
            alarm: TimerFd::new(
                ClockId::CLOCK_MONOTONIC,
                TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC,
            )?,
            claims: AtomicU32::new(0),
        })
    }

    /// Neither side ever holds it over a system call that can wait.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.claims.fetch_add(1, Ordering::SeqCst);
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        self.claims.fetch_sub(1, Ordering::SeqCst);
        inner
    }

    /// See [`Queue::room`].
    pub fn room(&self, inner: &mut Inner, now: Instant) -> Room {
        let (thread, well) = (inner.thread, inner.stats.trouble.is_none());
        let idle = inner.idle;
        // We hold the lock, so whoever claims it is the writer, which waits for us and nothing else.
        let claimed = || self.claims.load(Ordering::SeqCst) > 0;
        // Asked again after a look into /proc, during which it may have woken up.
        let slow = || idle || claimed() || is_slow(thread) || claimed();
        inner.queue.room(now, &mut || well && slow())
    }

    /// Wakes the writer, if it has nothing to do.
    pub fn wake(&self, mut inner: MutexGuard<'_, Inner>) {
        let idle = std::mem::replace(&mut inner.idle, false);
        drop(inner);
        if idle {
            // It can fail only when the counter is at its end, which wakes the writer as well.
            let _ = self.call.write(1);
        }
    }

    /// What the writer waits for.
    pub fn call(&self) -> BorrowedFd<'_> {
        self.call.as_fd()
    }

    /// The writer has been called.
    pub fn called(&self) {
        let _ = self.call.read();
    }

    /// What wakes the loop when the time of [`Shared::wind`] has come.
    pub fn alarm(&self) -> BorrowedFd<'_> {
        self.alarm.as_fd()
    }

    /// The alarm rings after `length`, whatever was said before.
    pub fn wind(&self, length: Duration) {
        let at = Expiration::OneShot(TimeSpec::from_duration(length));
        let _ = self.alarm.set(at, TimerSetTimeFlags::empty());
    }

    /// The alarm does not ring.
    pub fn unwind(&self) {
        let _ = self.alarm.unset();
    }

    /// The alarm has rung.
    pub fn heard(&self) {
        // EAGAIN: it was set anew in the meantime.
        let _ = self.alarm.wait();
    }

    /// The loop has been woken: what there is to hear.
    pub fn take_reports(&self) -> Vec<Report> {
        // EAGAIN: nothing new; the reports are taken all the same.
        let _ = self.told.read();
        std::mem::take(&mut self.lock().reports)
    }

    /// inotify(7) says that something has happened to this watch's file: whether it is ours.
    pub fn look_if_watched(&self, watch: WatchDescriptor) {
        let mut inner = self.lock();
        if inner.watch == Some(watch) {
            inner.look = true;
            self.wake(inner);
        }
    }

    /// The writer has read the stream for long enough.
    pub fn has_given_back(&self) -> bool {
        self.lock().feed.as_ref().is_some_and(Feed::is_over)
    }

    /// Something for the loop.
    pub fn report(&self, report: Report) {
        let mut inner = self.lock();
        inner.reports.push(report);
        drop(inner);
        self.tell();
    }

    /// Wakes the loop.
    pub fn tell(&self) {
        // It can fail only when the counter is at its end, which wakes the loop as well.
        let _ = self.told.write(1);
    }
}

impl AsFd for Shared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.told.as_fd()
    }
}
