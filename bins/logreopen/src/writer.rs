//! One file and the thread that writes it: the only one that can hang with the disk. It takes runs of
//! lines out of a queue, and reports what the loop should know.

use crate::cli::Fsync;
use crate::feed::{Fed, Feed, WATCH};
use crate::follow::{Act, Follow, Seen};
use crate::place::{Lock, Opened, Place, explain};
use crate::queue::{Gap, Item};
use crate::shared::{Inner, Reopened, Report, SPARE, Shared};
use common::error::describe;
use common::event::{Level, Log};
use common::file::Identity;
use common::lines::{Buffer, Run, count};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll, ppoll};
use nix::sys::inotify::{AddWatchFlags, Inotify};
use nix::sys::time::TimeSpec;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A file that cannot be written is tried again so often.
const RETRY_WRITE: Duration = Duration::from_millis(200);
/// Another file that cannot be opened is tried again so often.
const RETRY_OPEN: Duration = Duration::from_secs(1);
/// A file that cannot be rotated is tried again so often, with the next line.
const RETRY_ROTATE: Duration = Duration::from_secs(1);
/// A FIFO or terminal that takes nothing is looked at so often for other work.
const LOOK_UP: u16 = 200;
/// What a writer needs of stack, in bytes.
const STACK: usize = 128 << 10;

/// How a file is written.
#[derive(Debug)]
pub struct Options {
    /// `--fsync`
    pub fsync: Fsync,
    /// `--follow`; zero: off.
    pub follow: Duration,
    /// `--max-size` and `--keep`
    pub rotate: Option<(u64, u32)>,
    /// After a rotation the loop runs a command, and says when it is over.
    pub hold_rotation: bool,
    /// Writes the notes that stand in the file itself.
    pub log: Log,
}

/// The open file.
#[derive(Debug)]
struct Sink {
    file: File,
    identity: Identity,
    regular: bool,
    remote: bool,
    /// What is there does not end with a newline, and is not ours.
    ragged: bool,
    /// Where our last write ended; shorter, somebody has truncated it.
    expected: u64,
    /// We are in the middle of a line.
    inside: bool,
    bytes: u64,
    lines: u64,
    dirty: bool,
    watched: bool,
}

impl Sink {
    fn new(opened: Opened) -> Sink {
        Sink {
            file: opened.file,
            identity: opened.identity,
            regular: opened.regular,
            remote: opened.remote,
            ragged: opened.ragged,
            expected: opened.size,
            inside: false,
            bytes: 0,
            lines: 0,
            dirty: false,
            watched: false,
        }
    }
}

/// A run of which `done` bytes are written.
#[derive(Debug)]
struct Current {
    run: Run,
    done: usize,
    /// Counted by the queue; a note of ours is not.
    counted: bool,
}

#[derive(Debug)]
struct Trouble {
    since: Instant,
    retry: Instant,
}

#[derive(Debug)]
struct Wanted {
    request: u64,
    retry: Instant,
    told: bool,
}

enum Todo {
    Write,
    Change(Item),
    Reopen,
    Look,
    Sync,
    End,
}

/// The writer itself.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    /// `None`: a descriptor that we were given, which nobody can open again.
    place: Option<Place>,
    options: Options,
    inotify: Option<Arc<Inotify>>,
    sink: Option<Sink>,
    current: Option<Current>,
    trouble: Option<Trouble>,
    wanted: Option<Wanted>,
    follow: Follow,
    look_at: Option<Instant>,
    /// Our file has no name any more: nothing is written to it.
    nameless: bool,
    sync_at: Option<Instant>,
    /// The last fsync(2) failed.
    unsynced: bool,
    rotate_after: Option<Instant>,
    finished: Option<Current>,
    /// When the loop was last promised that it would hear of us.
    wound: Option<Instant>,
}

impl Writer {
    /// A writer of what was opened; without it (a FIFO that nobody reads) it goes on trying.
    pub fn new(
        shared: Arc<Shared>,
        place: Option<Place>,
        opened: Option<Opened>,
        options: Options,
        inotify: Option<Arc<Inotify>>,
    ) -> Writer {
        let now = Instant::now();
        let mut writer = Writer {
            shared,
            place,
            follow: Follow::new(options.follow),
            options,
            inotify,
            sink: None,
            current: None,
            trouble: None,
            wanted: None,
            look_at: None,
            nameless: false,
            sync_at: None,
            unsynced: false,
            rotate_after: None,
            finished: None,
            wound: None,
        };
        match opened {
            Some(opened) => writer.take(opened),
            None => {
                writer.wanted = Some(Wanted {
                    request: 0,
                    retry: now,
                    told: false,
                });
            }
        }
        writer
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// EAGAIN: too many.
    pub fn start(mut self) -> std::io::Result<()> {
        std::thread::Builder::new()
            .name("writer".to_owned())
            .stack_size(STACK)
            .spawn(move || self.run())
            .map(|_| ())
    }

    fn run(&mut self) {
        self.shared.lock().thread = nix::unistd::gettid().as_raw();
        loop {
            match self.next() {
                Todo::Write => self.write(),
                Todo::Change(Item::Rotate(request)) => self.rotate_now(request),
                Todo::Change(item) => {
                    if let Item::Cut(request) = item {
                        self.reopen(request);
                    }
                }
                Todo::Reopen => self.try_reopen(),
                Todo::Look => self.look(),
                Todo::Sync => self.sync(),
                Todo::End => {
                    if self.options.fsync != Fsync::Never {
                        self.sync();
                    }
                    self.shared.report(Report::Ended);
                    return;
                }
            }
        }
    }

    /// Waits for something to do.
    fn next(&mut self) -> Todo {
        let shared = Arc::clone(&self.shared);
        let mut inner = shared.lock();
        inner.away = None;
        let mut now = Instant::now();
        if let Some(finished) = self.finished.take() {
            if finished.counted {
                inner.queue.written(finished.done, now);
            }
            if let Some(feed) = &mut inner.feed {
                feed.give(finished.run.buffer);
            } else if inner.spare.len() < SPARE {
                inner.spare.push(finished.run.buffer);
            }
            if std::mem::replace(&mut inner.tell, false) {
                shared.tell();
            }
        }
        let todo = loop {
            if std::mem::replace(&mut inner.look, false) || self.look_at.is_some_and(|at| at <= now)
            {
                break Todo::Look;
            }
            if self
                .wanted
                .as_ref()
                .is_some_and(|wanted| wanted.retry <= now)
            {
                break Todo::Reopen;
            }
            let (mut pause, mut pipe) = (None, None);
            let stuck = self.sink.is_none()
                || self.nameless
                || self
                    .trouble
                    .as_ref()
                    .is_some_and(|trouble| trouble.retry > now);
            if stuck {
                if let Some(change) = inner.queue.pop_change() {
                    break Todo::Change(change);
                }
                self.give_back(&mut inner);
            } else if self.current.is_some() {
                break Todo::Write;
            } else {
                match inner.queue.pop() {
                    Some(Item::Run(run)) => {
                        self.current = Some(Current {
                            run,
                            done: 0,
                            counted: true,
                        });
                        break Todo::Write;
                    }
                    Some(Item::Gap(gap)) => {
                        self.shared_report(&mut inner, Report::Lost(gap));
                        self.current = self.note(gap);
                        if self.current.is_some() {
                            break Todo::Write;
                        }
                        continue;
                    }
                    Some(change) => break Todo::Change(change),
                    None if inner.end => break Todo::End,
                    None => match inner.feed.as_mut().map(|feed| feed.read(now)) {
                        Some(Fed::Lines(run)) => {
                            inner.queue.passed_by(run.buffer.filled().len());
                            self.current = Some(Current {
                                run,
                                done: 0,
                                counted: true,
                            });
                            break Todo::Write;
                        }
                        Some(Fed::Part) => {
                            now = Instant::now();
                            continue;
                        }
                        Some(Fed::Wait(until)) => pause = Some(until),
                        Some(Fed::Silent(until)) => {
                            pause = until;
                            pipe = inner.feed.as_ref().map(Feed::pipe);
                        }
                        Some(Fed::Over) => shared.tell(),
                        None => {}
                    },
                }
            }
            if self.sync_at.is_some_and(|at| at <= now) {
                break Todo::Sync;
            }
            let deadlines = [
                self.look_at,
                self.sync_at,
                self.wanted.as_ref().map(|wanted| wanted.retry),
                self.trouble.as_ref().map(|trouble| trouble.retry),
                pause,
            ];
            inner.idle = true;
            drop(inner);
            let length = deadlines
                .into_iter()
                .flatten()
                .min()
                .map(|deadline| deadline.saturating_duration_since(now));
            let ready = self.wait(pipe.as_deref(), length);
            inner = shared.lock();
            if let (true, Some(feed)) = (ready, &mut inner.feed) {
                feed.ready();
            }
            inner.idle = false;
            now = Instant::now();
        };
        inner.away = Some(now);
        if inner.feed.is_some() {
            self.wind(now);
        }
        todo
    }

    /// Waits to be called, for `pipe` if there is one, and no longer than `length`; whether the pipe can be read.
    fn wait(&mut self, pipe: Option<&OwnedFd>, length: Option<Duration>) -> bool {
        if pipe.is_some() && self.wound.take().is_some() {
            // It may be long.
            self.shared.unwind();
        }
        let call = PollFd::new(self.shared.call(), PollFlags::POLLIN);
        let mut fds = [call.clone(), call];
        let mut count = 1;
        if let Some(pipe) = pipe {
            fds[1] = PollFd::new(pipe.as_fd(), PollFlags::POLLIN);
            count = 2;
        }
        let length = length.map(TimeSpec::from_duration);
        // EINTR, or a time that was too long to be waited for: it is looked at again.
        let _ = ppoll(&mut fds[..count], length, None);
        let found = |fd: &PollFd<'_>| fd.any().unwrap_or_default();
        if found(&fds[0]) {
            self.shared.called();
        }
        count == 2 && found(&fds[1])
    }

    /// The loop looks after us if it does not hear of us for a while.
    fn wind(&mut self, now: Instant) {
        let fresh = |wound: Instant| now < wound + WATCH / 4;
        if !self.wound.is_some_and(fresh) {
            self.wound = Some(now);
            self.shared.wind(WATCH);
        }
    }

    /// The stream that we read is the loop's again, which can keep what comes while we cannot write.
    fn give_back(&self, inner: &mut Inner) {
        if let Some(feed) = inner.feed.as_mut().filter(|feed| !feed.is_over()) {
            feed.stop();
            self.shared.tell();
        }
    }

    fn shared_report(&self, inner: &mut Inner, report: Report) {
        inner.reports.push(report);
        self.shared.tell();
    }

    /// A line in the file about the lines that are not there.
    fn note(&self, gap: Gap) -> Option<Current> {
        let line = self.options.log.line(
            Level::Warning,
            crate::events::LINES_LOST,
            &crate::tell::gap_fields(&gap),
        )?;
        Some(Current {
            run: Run {
                buffer: Buffer::from(line.as_slice()),
                starts: true,
                ends: true,
            },
            done: 0,
            counted: false,
        })
    }

    /// Writes once.
    fn write(&mut self) {
        let now = Instant::now();
        let (Some(sink), Some(current)) = (&mut self.sink, &mut self.current) else {
            return;
        };
        let mut size = 0;
        if sink.regular {
            if let Ok(found) = sink.file.metadata() {
                size = found.len();
                if size < sink.expected {
                    self.shared.report(Report::Truncated(sink.expected, size));
                    sink.expected = size;
                    sink.ragged = false;
                    sink.inside = false;
                }
                if found.nlink() == 0 && !self.options.follow.is_zero() && self.place.is_some() {
                    // Nobody could ever read what is written now.
                    self.nameless = true;
                    self.look();
                    return;
                }
            }
        }
        let filled = current.run.buffer.filled();
        let begins = current.done == 0 && current.run.starts;
        if begins && (sink.ragged || sink.inside) {
            if let Err(why) = write_once(&sink.file, b"\n") {
                self.failed(why, now);
                return;
            }
            sink.ragged = false;
            sink.inside = false;
            sink.expected = size + 1;
            sink.bytes += 1;
            size += 1;
        }
        let mut end = filled.len();
        if let (Some((most, _)), true) = (self.options.rotate, sink.regular) {
            let at_line = begins || filled[..current.done].ends_with(b"\n");
            let rest = &filled[current.done..];
            if at_line && size + rest.len() as u64 > most {
                let room = usize::try_from(most.saturating_sub(size)).unwrap_or(usize::MAX);
                let fits = memchr::memrchr(b'\n', &rest[..room.min(rest.len())]);
                let may = self.rotate_after.is_none_or(|after| after <= now)
                    && !self.shared.lock().rotation_held;
                match fits {
                    Some(at) if may => end = current.done + at + 1,
                    None if may && size > 0 => {
                        self.rotate(0);
                        return;
                    }
                    // A line that is longer than a file may be has a file of its own.
                    None if may => {
                        end = current.done
                            + memchr::memchr(b'\n', rest).map_or(rest.len(), |at| at + 1);
                    }
                    Some(_) | None => {}
                }
            }
        }
        let piece = &filled[current.done..end];
        match write_once(&sink.file, piece) {
            Ok(written) => {
                let written = &piece[..written];
                let lines = count(written);
                current.done += written.len();
                sink.expected = size + written.len() as u64;
                sink.inside = !written.ends_with(b"\n");
                sink.ragged = false;
                sink.bytes += written.len() as u64;
                sink.lines += lines;
                sink.dirty = true;
                let whole = current.done == filled.len();
                let bytes = written.len() as u64;
                if let (Fsync::Every(length), None) = (self.options.fsync, self.sync_at) {
                    self.sync_at = Some(now + length);
                }
                let trouble = self.trouble.take();
                let mut inner = self.shared.lock();
                inner.stats.bytes += bytes;
                inner.stats.lines += lines;
                if let Some(trouble) = trouble {
                    inner.stats.trouble = None;
                    let held = inner.queue.held();
                    let after = now.saturating_duration_since(trouble.since);
                    inner.reports.push(Report::Recovered { after, held });
                    drop(inner);
                    self.shared.tell();
                }
                if whole {
                    self.finished = self.current.take();
                }
            }
            Err(why) => self.failed(why, now),
        }
    }

    /// It is tried again; the loop is told once.
    fn failed(&mut self, why: nix::Error, now: Instant) {
        if why == nix::Error::EAGAIN {
            // A FIFO whose reader is slow, a terminal that was stopped.
            if let Some(sink) = &self.sink {
                let mut fds = [PollFd::new(sink.file.as_fd(), PollFlags::POLLOUT)];
                if poll(&mut fds, PollTimeout::from(LOOK_UP)).is_ok_and(|ready| ready > 0) {
                    return;
                }
            }
        }
        let text = if why == nix::Error::EAGAIN {
            "its reader takes nothing".to_owned()
        } else {
            describe(&why.into())
        };
        let retry = now + RETRY_WRITE;
        match &mut self.trouble {
            Some(trouble) => trouble.retry = retry,
            None => {
                self.trouble = Some(Trouble { since: now, retry });
                let mut inner = self.shared.lock();
                inner.stats.trouble = Some(text.clone());
                inner.stats.last_error = Some(text.clone());
                drop(inner);
                self.shared.report(Report::WriteFailed(text));
            }
        }
        let reader_gone = matches!(why, nix::Error::EPIPE | nix::Error::ENXIO);
        // ESTALE: the server has forgotten the file; only its path leads to one again.
        if (reader_gone || why == nix::Error::ESTALE) && self.wanted.is_none() {
            self.want(0, now + RETRY_WRITE);
        }
    }

    fn want(&mut self, request: u64, retry: Instant) {
        let told = self.wanted.as_ref().is_some_and(|wanted| wanted.told);
        self.wanted = Some(Wanted {
            request,
            retry,
            told: told && request == 0,
        });
    }

    /// A request to let the file go.
    fn reopen(&mut self, request: u64) {
        self.want(request, Instant::now());
        self.try_reopen();
    }

    fn try_reopen(&mut self) {
        let began = Instant::now();
        let Some(wanted) = &self.wanted else {
            return;
        };
        let request = wanted.request;
        let Some(place) = &self.place else {
            self.wanted = None;
            self.shared.report(Report::Unchanged(request));
            return;
        };
        let opened = place.open().and_then(|opened| {
            let same = self
                .sink
                .as_ref()
                .is_some_and(|sink| sink.identity == opened.identity && sink.regular);
            if !same && opened.regular {
                place.lock(&opened.file)?;
            }
            Ok((opened, same))
        });
        match opened {
            Ok((_, true)) => {
                self.wanted = None;
                self.nameless = false;
                self.calm();
                match &mut self.trouble {
                    Some(trouble) => trouble.retry = began,
                    // What was wrong was a reopen before this one.
                    None => self.shared.lock().stats.trouble = None,
                }
                self.shared.report(Report::Unchanged(request));
            }
            Ok((opened, false)) => {
                self.wanted = None;
                self.let_go();
                let old = self.sink.take();
                self.take(opened);
                let reopened = self.reopened(request, old.as_ref(), began);
                // The old file is closed before anybody is told.
                drop(old);
                self.shared.report(Report::Reopened(reopened));
            }
            Err(why) => {
                let why = explain(&place.path, &why);
                if self.nameless {
                    // What it held is lost with its name; its space may be what is missing.
                    self.sink = None;
                }
                let wanted = self.wanted.as_mut();
                let again = wanted.is_some_and(|wanted| {
                    wanted.retry = began + RETRY_OPEN;
                    std::mem::replace(&mut wanted.told, true)
                });
                let mut inner = self.shared.lock();
                inner.stats.trouble = Some(why.clone());
                inner.stats.last_error = Some(why.clone());
                drop(inner);
                self.shared.report(Report::ReopenFailed {
                    request,
                    why,
                    again,
                });
            }
        }
    }

    fn reopened(&self, request: u64, old: Option<&Sink>, began: Instant) -> Reopened {
        Reopened {
            request,
            old: old.map_or(0, |old| old.identity.ino),
            new: self.sink.as_ref().map_or(0, |new| new.identity.ino),
            bytes: old.map_or(0, |old| old.bytes),
            lines: old.map_or(0, |old| old.lines),
            took: began.elapsed(),
        }
    }

    /// Makes the old file end where a line ends: a line that could be written only in part goes to the
    /// new file as a whole.
    fn let_go(&mut self) {
        let Some(sink) = &mut self.sink else {
            return;
        };
        if let Some(current) = &mut self.current {
            let written = &current.run.buffer.filled()[..current.done];
            let line = memchr::memrchr(b'\n', written).map_or(0, |at| at + 1);
            let begins = line > 0 || current.run.starts;
            let size = sink.file.metadata().map(|found| found.len());
            // Only what is ours, and the last of the file, can be taken back.
            if sink.inside
                && begins
                && sink.regular
                && size.is_ok_and(|size| size == sink.expected)
                && nix::unistd::ftruncate(
                    &sink.file,
                    (sink.expected - (written.len() - line) as u64) as i64,
                )
                .is_ok()
            {
                current.done = line;
                sink.inside = false;
            }
            // What is done need not be looked at again.
            let done = current.done;
            if done > 0 {
                if current.counted {
                    self.shared.lock().queue.written(done, Instant::now());
                }
                current.run.buffer.cut_front(done);
                current.run.starts = !sink.inside;
                current.done = 0;
            }
        }
        if sink.inside {
            // The loop has seen to a newline, unless the file could not be written to its end.
            let _ = write_once(&sink.file, b"\n");
            self.shared.report(Report::Split);
            if let Some(current) = &mut self.current {
                current.run.starts = true;
            }
        }
        if self.options.fsync != Fsync::Never && sink.dirty {
            let why = nix::unistd::fdatasync(&sink.file).err();
            self.synced(why);
        }
    }

    /// Another file from now on.
    fn take(&mut self, opened: Opened) {
        let mut sink = Sink::new(opened);
        if let (Some(inotify), true) = (&self.inotify, sink.regular && self.place.is_some()) {
            let flags = AddWatchFlags::IN_MOVE_SELF
                | AddWatchFlags::IN_DELETE_SELF
                | AddWatchFlags::IN_ATTRIB;
            // By the descriptor, so that it is this file whatever stands at the path by now.
            let path = format!("/proc/self/fd/{}", sink.file.as_raw_fd());
            let watch = inotify.add_watch(path.as_str(), flags).ok();
            sink.watched = watch.is_some();
            let former = std::mem::replace(&mut self.shared.lock().watch, watch);
            if let Some(former) = former.filter(|former| Some(*former) != watch) {
                // EINVAL: the kernel has removed it with the file.
                let _ = inotify.rm_watch(former);
            }
        }
        self.trouble = None;
        self.nameless = false;
        let mut inner = self.shared.lock();
        inner.stats.inode = sink.identity.ino;
        inner.stats.trouble = None;
        inner.stats.reopens += u64::from(self.sink.is_some() || inner.stats.bytes > 0);
        drop(inner);
        self.sink = Some(sink);
        self.calm();
    }

    /// Our file stands at its path, as far as we know.
    fn calm(&mut self) {
        self.follow.calm();
        let unseen = self
            .sink
            .as_ref()
            .is_some_and(|sink| sink.regular && (sink.remote || !sink.watched));
        // Where the kernel cannot tell us, we have to look.
        self.look_at = (unseen && self.place.is_some() && !self.options.follow.is_zero())
            .then(|| Instant::now() + self.options.follow.max(RETRY_OPEN));
    }

    /// Looks what stands at the path.
    fn look(&mut self) {
        let (Some(place), Some(sink)) = (&self.place, &self.sink) else {
            self.look_at = None;
            return;
        };
        if self.options.follow.is_zero() || !sink.regular || self.wanted.is_some() {
            self.look_at = None;
            return;
        }
        let seen = match place.path.metadata() {
            Ok(found) if (found.dev(), found.ino()) == (sink.identity.dev, sink.identity.ino) => {
                Seen::Ours
            }
            Ok(_) => Seen::Another,
            Err(why) => match why.raw_os_error() {
                Some(nix::libc::ENOENT | nix::libc::ENOTDIR) => Seen::Nothing,
                _ => Seen::Unknown,
            },
        };
        if self.nameless && seen == Seen::Ours {
            self.nameless = false;
        }
        match self.follow.step(seen, Instant::now()) {
            Act::Rest => self.calm(),
            Act::Look(at) => self.look_at = Some(at),
            Act::Reopen => {
                self.look_at = None;
                self.shared.report(Report::Moved);
                self.reopen(0);
            }
        }
    }

    fn sync(&mut self) {
        self.sync_at = None;
        if let Some(sink) = &mut self.sink {
            if std::mem::replace(&mut sink.dirty, false) {
                let why = nix::unistd::fdatasync(&sink.file).err();
                self.synced(why);
            }
        }
    }

    /// The kernel had taken the lines and could not bring them to the disk: that is said here or nowhere (fsync(2),
    /// "EIO"), once until it succeeds again. EINVAL: a pipe or terminal has no disk.
    fn synced(&mut self, why: Option<nix::Error>) {
        match why {
            None | Some(nix::Error::EINVAL) => self.unsynced = false,
            Some(why) => {
                let text = describe(&why.into());
                self.shared.lock().stats.last_error = Some(text.clone());
                if !std::mem::replace(&mut self.unsynced, true) {
                    self.shared.report(Report::SyncFailed(text));
                }
            }
        }
    }

    /// Asked for, whatever the size.
    fn rotate_now(&mut self, request: u64) {
        let empty = self
            .sink
            .as_ref()
            .is_none_or(|sink| sink.file.metadata().is_ok_and(|found| found.len() == 0));
        if self.shared.lock().rotation_held {
            let why = "the command of --on-rotate still runs".to_owned();
            self.shared.report(Report::RotateFailed(request, why));
        } else if empty || self.options.rotate.is_none() {
            self.shared.report(Report::Unchanged(request));
        } else {
            self.rotate(request);
        }
    }

    fn rotate(&mut self, request: u64) {
        let began = Instant::now();
        let (Some(place), Some(sink), Some((_, keep))) =
            (&self.place, &self.sink, self.options.rotate)
        else {
            return;
        };
        let ours = place.path.metadata().is_ok_and(|found| {
            (found.dev(), found.ino()) == (sink.identity.dev, sink.identity.ino)
        });
        if !ours {
            // Somebody else has moved it: that is a rotation too.
            self.reopen(request);
            return;
        }
        let to = match crate::rotate::rotate(&place.path, keep) {
            Ok(to) => to,
            Err(why) => {
                self.rotate_after.get_or_insert(began);
                let first = self.rotate_after == Some(began);
                self.rotate_after = Some(Instant::now() + RETRY_ROTATE);
                if first || request > 0 {
                    let why = describe(&why);
                    self.shared.report(Report::RotateFailed(request, why));
                }
                return;
            }
        };
        self.rotate_after = None;
        let opened = place.open().and_then(|opened| {
            place.lock(&opened.file)?;
            Ok(opened)
        });
        match opened {
            Ok(opened) => {
                self.let_go();
                let old = self.sink.take();
                self.take(opened);
                let reopened = self.reopened(request, old.as_ref(), began);
                drop(old);
                self.shared.lock().rotation_held = self.options.hold_rotation;
                self.shared.report(Report::Rotated(to, reopened));
            }
            // It goes on in the old file under its new name until a new one can be made.
            Err(_) => self.reopen(request),
        }
    }
}

impl Options {
    /// The lock for a file with these options.
    #[must_use]
    pub fn lock(rotate: bool) -> Lock {
        if rotate {
            Lock::Exclusive
        } else {
            Lock::Shared
        }
    }
}

fn write_once(file: &File, bytes: &[u8]) -> nix::Result<usize> {
    loop {
        match nix::unistd::write(file, bytes) {
            Err(nix::Error::EINTR) => {}
            Ok(0) if !bytes.is_empty() => return Err(nix::Error::EIO),
            other => return other,
        }
    }
}
