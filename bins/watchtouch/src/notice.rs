//! inotify: a watch on every directory on the way to every file, and one queue that the loop reads itself. An
//! event means only that somebody should look again, so its kind, its order and whether some were lost do
//! not matter.
//!
//! Not by the crate notify: its own thread reads the queue, and a wake-up from thread to thread costs as
//! much here as everything else between a touch and the action; it listens to every open(2); it knows one
//! path only for a directory that is mounted in two places; and it takes no orders while events come.

use crate::walk::Step;
use common::wait::{Interest, Loop};
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Events a second in one directory that lead to no look, beyond which looking each interval is cheaper than
/// being woken for each of them. At this rate they cost about half a percent of a processor.
const NOISE: u32 = 1000;
const SECOND: Duration = Duration::from_secs(1);
/// A directory that was too noisy is listened to again after this, and after twice as long each further time.
const SHORTEST_REST: Duration = Duration::from_secs(60);
/// The longest such time. Quiet for as long again, it begins anew.
const LONGEST_REST: Duration = Duration::from_secs(3600);
/// So often the queue is read before the loop sees to its other descriptors; a full one takes about eight
/// times as many.
const READS: usize = 32;
/// With fewer events than that in one go, of the 128 at most that 4 KiB hold, the queue is empty.
const FEW: usize = 12;

/// Everything that may be a touch, and what may change the way. No open, no read: nothing changes by them. That a
/// directory itself is moved or removed is told by the one above it, and by IN_IGNORED.
fn mask() -> AddWatchFlags {
    AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_ONLYDIR
        | AddWatchFlags::IN_DONT_FOLLOW
}

/// Why somebody should look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cause {
    /// inotify said something.
    pub noticed: bool,
    /// All watches are to be made anew.
    pub rearm: bool,
}

#[derive(Debug, Default)]
struct Rest {
    cause: Cause,
    /// It waits, and has told everything that it saw.
    asleep: bool,
}

/// Wakes one who looks.
#[derive(Debug, Default)]
pub struct Poke {
    rest: Mutex<Rest>,
    changed: Condvar,
}

/// A thread that panics ends the program (panic = "abort"), so no lock is ever poisoned.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Poke {
    /// Look again.
    pub fn notice(&self) {
        lock(&self.rest).cause.noticed = true;
        self.changed.notify_one();
    }

    /// Look again, and make all watches anew.
    pub fn rearm(&self) {
        lock(&self.rest).cause.rearm = true;
        self.changed.notify_one();
    }

    /// It neither looks nor is about to, unless its time comes.
    #[must_use]
    pub fn asleep(&self) -> bool {
        let rest = lock(&self.rest);
        rest.asleep && rest.cause == Cause::default()
    }

    /// Waits to be woken, until `deadline` at most; `None`: for ever.
    pub fn wait(&self, deadline: Option<Instant>) -> Cause {
        let mut rest = lock(&self.rest);
        rest.asleep = true;
        while rest.cause == Cause::default() {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            rest = match left {
                Some(left) if left.is_zero() => break,
                Some(left) => {
                    let waited = self.changed.wait_timeout(rest, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    let waited = self.changed.wait(rest);
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
        rest.asleep = false;
        std::mem::take(&mut rest.cause)
    }
}

/// How many events of one directory were for nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Noise {
    second: Option<Instant>,
    count: u32,
    rests: u32,
    /// It is not listened to until then.
    until: Option<Instant>,
}

impl Noise {
    /// One more; true when that is too much.
    fn heard(&mut self, now: Instant) -> bool {
        if self.rests(now) {
            return false;
        }
        if self.second.is_none_or(|begun| now >= begun + SECOND) {
            self.second = Some(now);
            self.count = 0;
        }
        self.count += 1;
        if self.count <= NOISE {
            return false;
        }
        if self.until.is_some_and(|until| now >= until + LONGEST_REST) {
            self.rests = 0;
        }
        let rest = SHORTEST_REST.saturating_mul(1 << self.rests.min(16));
        self.until = Some(now + rest.min(LONGEST_REST));
        self.rests += 1;
        true
    }

    fn rests(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

/// A name that matters to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wish {
    /// In its directory; empty: everything there.
    name: OsString,
    file: usize,
    /// It is the file itself, and no step of the way to it.
    last: bool,
}

/// What the loop asks when it hears of something. Never locked over a call that may hang.
#[derive(Debug, Default)]
struct Interests {
    /// By directory: which names of it matter to which file.
    names: HashMap<PathBuf, Vec<Wish>>,
    /// The paths of what is watched: more than one where a directory is mounted in several places.
    paths: HashMap<WatchDescriptor, Vec<PathBuf>>,
    /// Those that may have ended without our hearing of it, for the queue ran over.
    doubted: HashSet<WatchDescriptor>,
    noise: HashMap<PathBuf, Noise>,
}

/// A directory that is watched: which one, for another may stand there later.
type Who = (u64, u64, Option<(i64, u32)>);

#[derive(Debug, Default)]
struct Book {
    watched: HashMap<PathBuf, (Who, WatchDescriptor)>,
    /// The loop waits for the queue.
    waited_for: bool,
}

/// How the wish for watches went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All stand, and stood before.
    Stand,
    /// Some were made just now: what happened before that was not noticed.
    Made,
    /// Some are not wanted, for this reason: too much happens there.
    Noisy(String),
    /// Some cannot be had, for this reason.
    Failed(String),
}

impl Outcome {
    fn made(&mut self) {
        if !matches!(self, Outcome::Failed(_)) {
            *self = Outcome::Made;
        }
    }
}

/// How a file is to be looked at, by what was heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Heard {
    /// Nothing that matters to it.
    #[default]
    Nothing,
    /// Of the file itself.
    File,
    /// Of the way to it, or of all that may be.
    Way,
}

/// All watches of the program.
#[derive(Debug)]
pub struct Notices {
    pokes: Vec<Arc<Poke>>,
    /// However noisy a directory is.
    always: bool,
    events: Arc<Loop>,
    token: u64,
    queue: OnceLock<Inotify>,
    interests: Mutex<Interests>,
    /// Locked while watches are made, by those who look: never by the loop.
    book: Mutex<Book>,
}

impl Notices {
    /// For files in this order. Nothing is watched yet; when something is, `events` wakes with `token` when
    /// there is something to hear. With `always` a noisy directory is listened to all the same.
    #[must_use]
    pub fn new(pokes: Vec<Arc<Poke>>, always: bool, events: Arc<Loop>, token: u64) -> Notices {
        Notices {
            pokes,
            always,
            events,
            token,
            queue: OnceLock::new(),
            interests: Mutex::default(),
            book: Mutex::default(),
        }
    }

    /// Has the directories of `steps` watched for `file`, and no others. The last one names the file itself
    /// if `whole`. Directories on remote file systems are left out: there inotify tells nothing of others, and
    /// asking may hang. So are those where too much happens, unless `forced`.
    pub fn want(
        &self,
        file: usize,
        steps: &[Step],
        whole: bool,
        rearm: bool,
        forced: bool,
    ) -> Outcome {
        let now = Instant::now();
        let mut book = lock(&self.book);
        let mut noisy: Vec<PathBuf> = Vec::new();
        let doubted: HashSet<WatchDescriptor>;
        // Who is asked for first: what happens as soon as a watch stands must find someone to wake.
        let unwanted: Vec<PathBuf> = {
            let mut interests = lock(&self.interests);
            if forced {
                interests.noise.clear();
            }
            for wishes in interests.names.values_mut() {
                wishes.retain(|wish| wish.file != file);
            }
            for (number, step) in steps.iter().enumerate().filter(|(_, step)| step.local) {
                let wishes = interests.names.entry(step.directory.clone()).or_default();
                let last = whole && number + 1 == steps.len();
                let same = |wish: &&mut Wish| wish.file == file && wish.name == step.name;
                match wishes.iter_mut().find(same) {
                    Some(wish) => wish.last = false,
                    None => wishes.push(Wish {
                        name: step.name.clone(),
                        file,
                        last,
                    }),
                }
            }
            interests.names.retain(|_, wishes| !wishes.is_empty());
            doubted = interests.doubted.clone();
            let Interests {
                names,
                noise,
                paths,
                ..
            } = &mut *interests;
            noise.retain(|path, _| names.contains_key(path));
            let rests = |(path, noise): (&PathBuf, &Noise)| noise.rests(now).then(|| path.clone());
            noisy.extend(noise.iter().filter_map(rests));
            // What the kernel has ended.
            book.watched
                .retain(|_, (_, watch)| paths.contains_key(watch));
            let watched = book.watched.keys();
            watched
                .filter(|path| !names.contains_key(*path) || noisy.contains(path))
                .cloned()
                .collect()
        };
        for path in unwanted {
            self.unwatch(&mut book, &path);
        }
        let mut outcome = Outcome::Stand;
        for step in steps.iter().filter(|step| step.local) {
            if noisy.contains(&step.directory) {
                if outcome == Outcome::Stand {
                    outcome = Outcome::Noisy(format!(
                        "inotify on {}: more than {NOISE} events a second for nothing",
                        step.directory.display()
                    ));
                }
                continue;
            }
            let found = &step.attributes;
            let who = (found.dev, found.ino, found.btime);
            let known = book.watched.get(&step.directory).copied();
            let sure = |(known, watch)| known == who && !doubted.contains(&watch);
            if known.is_some_and(sure) && !rearm {
                continue;
            }
            if known.is_some_and(|(known, _)| known != who) {
                self.unwatch(&mut book, &step.directory);
            }
            match self.watch(&mut book, &step.directory) {
                Ok(watch) => {
                    if known.is_some_and(|(_, known)| known != watch) {
                        // That one has ended.
                        self.unwatch(&mut book, &step.directory);
                    }
                    book.watched.insert(step.directory.clone(), (who, watch));
                    if known != Some((who, watch)) {
                        self.wake_others(file, &step.directory);
                        outcome.made();
                    }
                }
                // Gone since the look: the next one sees it.
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => outcome.made(),
                Err(why) => {
                    outcome = Outcome::Failed(format!(
                        "inotify on {}: {}",
                        step.directory.display(),
                        described(why)
                    ));
                }
            }
        }
        outcome
    }

    fn watch(&self, book: &mut Book, directory: &Path) -> nix::Result<WatchDescriptor> {
        let queue = match self.queue.get() {
            Some(queue) => queue,
            None => {
                let made = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
                self.queue.get_or_init(|| made)
            }
        };
        if !book.waited_for {
            let added = self.events.add(queue.as_fd(), self.token, Interest::Read);
            // The watches of epoll are counted, too.
            added.map_err(|_| Errno::ENOSPC)?;
            book.waited_for = true;
        }
        let watch = queue.add_watch(directory, mask())?;
        let mut interests = lock(&self.interests);
        interests.doubted.remove(&watch);
        let paths = interests.paths.entry(watch).or_default();
        if !paths.iter().any(|path| path == directory) {
            paths.push(directory.to_owned());
        }
        Ok(watch)
    }

    fn unwatch(&self, book: &mut Book, directory: &Path) {
        let Some((_, watch)) = book.watched.remove(directory) else {
            return;
        };
        let over = {
            let mut interests = lock(&self.interests);
            match interests.paths.get_mut(&watch) {
                Some(paths) => {
                    paths.retain(|path| path != directory);
                    let over = paths.is_empty();
                    if over {
                        interests.paths.remove(&watch);
                        interests.doubted.remove(&watch);
                    }
                    over
                }
                None => false,
            }
        };
        if let (Some(queue), true) = (self.queue.get(), over) {
            // The kernel may have done it already.
            let _ = queue.rm_watch(watch);
        }
    }

    /// Others may have looked before a watch was made that they take for theirs.
    fn wake_others(&self, file: usize, directory: &Path) {
        let interests = lock(&self.interests);
        let wishes = interests.names.get(directory).into_iter().flatten();
        for wish in wishes.filter(|wish| wish.file != file) {
            if let Some(poke) = self.pokes.get(wish.file) {
                poke.notice();
            }
        }
    }

    /// For the loop: what there is to hear, by file. What is left is there at the next call.
    #[must_use]
    pub fn hear(&self) -> Vec<Heard> {
        let mut heard = vec![Heard::Nothing; self.pokes.len()];
        let Some(queue) = self.queue.get() else {
            return heard;
        };
        for _ in 0..READS {
            let Ok(events) = queue.read_events() else {
                break;
            };
            let mut interests = lock(&self.interests);
            for event in &events {
                interests.sort(event, self.always, &mut heard);
            }
            if events.len() < FEW {
                break;
            }
        }
        heard
    }
}

fn raise(heard: &mut [Heard], file: usize, to: Heard) {
    if let Some(heard) = heard.get_mut(file) {
        *heard = to.max(*heard);
    }
}

impl Interests {
    /// Who has to look?
    fn sort(&mut self, event: &InotifyEvent, always: bool, heard: &mut [Heard]) {
        // The queue ran over: anything may have happened.
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            heard.fill(Heard::Way);
            self.doubted.extend(self.paths.keys());
            return;
        }
        // Of a directory that nobody wants any more, or of one whose first look is still to come.
        let Some(paths) = self.paths.get(&event.wd) else {
            return;
        };
        let mut for_nothing = true;
        for path in paths {
            for wish in self.names.get(path).into_iter().flatten() {
                let to = match &event.name {
                    // Of the directory itself.
                    None => Heard::Way,
                    Some(name) if *name == wish.name && wish.last => Heard::File,
                    Some(name) if *name == wish.name || wish.name.is_empty() => Heard::Way,
                    Some(_) => continue,
                };
                raise(heard, wish.file, to);
                for_nothing = false;
            }
        }
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            self.paths.remove(&event.wd);
            self.doubted.remove(&event.wd);
        } else if for_nothing && !always {
            let now = Instant::now();
            let Interests {
                names,
                paths,
                noise,
                ..
            } = self;
            for path in paths.get(&event.wd).into_iter().flatten() {
                // Looked for first: this happens often, and a key is a copy of the path.
                let loud = match noise.get_mut(path) {
                    Some(noise) => noise.heard(now),
                    None => noise.entry(path.clone()).or_default().heard(now),
                };
                if loud {
                    // They are to do without further ones.
                    for wish in names.get(path).into_iter().flatten() {
                        raise(heard, wish.file, Heard::Way);
                    }
                }
            }
        }
    }
}

fn described(why: Errno) -> String {
    match why {
        Errno::ENOSPC => {
            "no watch is left (sysctl fs.inotify.max_user_watches raises that)".to_owned()
        }
        Errno::EMFILE => {
            "no instance or descriptor is left (sysctl fs.inotify.max_user_instances, ulimit -n)"
                .to_owned()
        }
        why => common::error::describe(&why.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_rests_when_it_is_too_noisy_and_longer_each_time() {
        let zero = Instant::now();
        let mut noise = Noise::default();
        // As many as may be in each second, for ten seconds.
        for n in 0..10 * NOISE {
            assert!(!noise.heard(zero + SECOND / NOISE * n));
        }
        let loud =
            |noise: &mut Noise, now: Instant| (0..=NOISE).filter(|_| noise.heard(now)).count();
        let mut now = zero + SECOND * 20;
        for rest in [60, 120, 240, 480, 960, 1920, 3600, 3600] {
            assert_eq!(loud(&mut noise, now), 1, "{rest}");
            let before = now + SECOND * (rest - 1);
            assert!(
                noise.rests(before) && loud(&mut noise, before) == 0,
                "{rest}"
            );
            now += SECOND * rest;
            assert!(!noise.rests(now), "{rest}");
        }
        // Quiet for long: it begins anew.
        now += LONGEST_REST;
        assert_eq!(loud(&mut noise, now), 1);
        assert!(!noise.rests(now + SHORTEST_REST));
    }
}
