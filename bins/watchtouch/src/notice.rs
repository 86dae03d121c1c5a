//! inotify, through notify: a watch on every directory on the way to every file. An event means only that
//! somebody should look again, so its kind, its order and whether some were lost do not matter.

use crate::walk::Step;
use notify::event::{AccessKind, EventKind, ModifyKind};
use notify::{ErrorKind, RecommendedWatcher, RecursiveMode, Watcher};
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Events a second in one directory that lead to no look, beyond which looking each interval is cheaper than
/// being woken for each of them. At this rate they cost about half a percent of a processor.
const NOISE: u32 = 1000;
const SECOND: Duration = Duration::from_secs(1);
/// A directory that was too noisy is listened to again after this, and after twice as long each further time.
const SHORTEST_REST: Duration = Duration::from_secs(60);
/// The longest such time. Quiet for as long again, it begins anew.
const LONGEST_REST: Duration = Duration::from_secs(3600);

/// Why somebody should look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cause {
    /// inotify said something.
    pub noticed: bool,
    /// All watches are to be made anew.
    pub rearm: bool,
}

/// Wakes one who looks.
#[derive(Debug, Default)]
pub struct Poke {
    cause: Mutex<Cause>,
    changed: Condvar,
}

/// A thread that panics ends the program (panic = "abort"), so no lock is ever poisoned.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Poke {
    /// Look again.
    pub fn notice(&self) {
        lock(&self.cause).noticed = true;
        self.changed.notify_one();
    }

    /// Look again, and make all watches anew.
    pub fn rearm(&self) {
        lock(&self.cause).rearm = true;
        self.changed.notify_one();
    }

    /// Waits to be woken, until `deadline` at most; `None`: for ever.
    pub fn wait(&self, deadline: Option<Instant>) -> Cause {
        let mut cause = lock(&self.cause);
        while *cause == Cause::default() {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            cause = match left {
                Some(left) if left.is_zero() => break,
                Some(left) => {
                    let waited = self.changed.wait_timeout(cause, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => {
                    let waited = self.changed.wait(cause);
                    waited.unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
        std::mem::take(&mut *cause)
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
        self.second = None;
        true
    }

    fn rests(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

/// What the thread of notify needs. It is never locked while that thread is waited for.
#[derive(Debug, Default)]
struct Interests {
    /// By directory: which names of it matter to which file.
    names: HashMap<PathBuf, Vec<(OsString, usize)>>,
    /// Directories that were watched and are gone from their path.
    lost: HashSet<PathBuf>,
    noise: HashMap<PathBuf, Noise>,
}

/// One watcher of notify, as its thread sees it.
#[derive(Debug, Default)]
struct Ear {
    /// However noisy a directory is.
    always: bool,
    /// Nobody listens to it any more. Its thread takes no orders as long as there is an event to read, so in
    /// a flood it can neither be told to leave a directory alone nor to end: it is left to itself, and
    /// another one made.
    deaf: AtomicBool,
    missed: AtomicU32,
}

impl Ear {
    /// For an event that nobody listens to: slowly, for the queue of the kernel is bounded and costs little,
    /// and quickly enough for the 16384 of a full one to be done in 10 s when the flood is over.
    fn let_pass(&self) {
        if self.missed.fetch_add(1, Ordering::Relaxed) % 32 == 0 {
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

/// A directory that is watched: which one, for another may stand there later.
type Who = (u64, u64, Option<(i64, u32)>);

#[derive(Debug, Default)]
struct Book {
    watcher: Option<RecommendedWatcher>,
    watched: HashMap<PathBuf, Who>,
    ear: Arc<Ear>,
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

/// All watches of the program.
#[derive(Debug)]
pub struct Notices {
    pokes: Vec<Arc<Poke>>,
    interests: Arc<Mutex<Interests>>,
    book: Mutex<Book>,
}

impl Notices {
    /// For files in this order. Nothing is watched yet. With `always` a noisy directory is listened to all
    /// the same.
    #[must_use]
    pub fn new(pokes: Vec<Arc<Poke>>, always: bool) -> Notices {
        let ear = Arc::new(Ear {
            always,
            ..Ear::default()
        });
        Notices {
            pokes,
            interests: Arc::default(),
            book: Mutex::new(Book {
                ear,
                ..Book::default()
            }),
        }
    }

    /// Has the directories of `steps` watched for `file`, and no others. Directories on remote file
    /// systems are left out: there inotify tells nothing of others, and asking may hang. So are those where
    /// too much happens, unless `forced`.
    pub fn want(&self, file: usize, steps: &[Step], rearm: bool, forced: bool) -> Outcome {
        let now = Instant::now();
        let mut book = lock(&self.book);
        let mut noisy: Vec<PathBuf> = Vec::new();
        // Who is asked for first: what happens as soon as a watch stands must find someone to wake.
        let unwanted: Vec<PathBuf> = {
            let mut interests = lock(&self.interests);
            if forced {
                interests.noise.clear();
            }
            for names in interests.names.values_mut() {
                names.retain(|(_, who)| *who != file);
            }
            for step in steps.iter().filter(|step| step.local) {
                let names = interests.names.entry(step.directory.clone()).or_default();
                let name = (step.name.clone(), file);
                if !names.contains(&name) {
                    names.push(name);
                }
            }
            interests.names.retain(|_, names| !names.is_empty());
            let Interests { names, noise, .. } = &mut *interests;
            noise.retain(|path, _| names.contains_key(path));
            let rests = |(path, noise): (&PathBuf, &Noise)| noise.rests(now).then(|| path.clone());
            noisy.extend(noise.iter().filter_map(rests));
            let lost: Vec<PathBuf> = interests.lost.drain().collect();
            for path in lost {
                book.watched.remove(&path);
            }
            let wanted = &interests.names;
            let watched = book.watched.keys();
            watched
                .filter(|path| !wanted.contains_key(*path))
                .cloned()
                .collect()
        };
        if noisy.iter().any(|path| book.watched.contains_key(path)) {
            book.start_anew();
            // Their watches are gone with the noisy one.
            let others = self.pokes.iter().enumerate();
            others
                .filter(|(other, _)| *other != file)
                .for_each(|(_, poke)| poke.notice());
        }
        for path in unwanted {
            book.unwatch(&path);
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
            if known == Some(who) && !rearm {
                continue;
            }
            if known.is_some_and(|known| known != who) {
                book.unwatch(&step.directory);
            }
            match book.watch(&step.directory, &self.interests, &self.pokes) {
                Ok(()) => {
                    book.watched.insert(step.directory.clone(), who);
                    if known != Some(who) {
                        self.wake_others(file, &step.directory);
                        outcome.made();
                    }
                }
                // Gone since the look: the next one sees it.
                Err(why) if is_gone(&why) => outcome.made(),
                Err(why) => {
                    outcome = Outcome::Failed(format!(
                        "inotify on {}: {}",
                        step.directory.display(),
                        described(&why)
                    ));
                }
            }
        }
        outcome
    }

    /// Others may have looked before a watch was made that they take for theirs.
    fn wake_others(&self, file: usize, directory: &Path) {
        let interests = lock(&self.interests);
        let names = interests.names.get(directory).into_iter().flatten();
        for (_, other) in names.filter(|(_, other)| *other != file) {
            if let Some(poke) = self.pokes.get(*other) {
                poke.notice();
            }
        }
    }
}

impl Book {
    fn watch(
        &mut self,
        directory: &Path,
        interests: &Arc<Mutex<Interests>>,
        pokes: &[Arc<Poke>],
    ) -> notify::Result<()> {
        let watcher = match &mut self.watcher {
            Some(watcher) => watcher,
            None => {
                let (interests, pokes) = (interests.clone(), pokes.to_vec());
                let ear = self.ear.clone();
                let made = notify::recommended_watcher(move |event| {
                    if ear.deaf.load(Ordering::Relaxed) {
                        ear.let_pass();
                    } else {
                        heard(event, &interests, &pokes, ear.always);
                    }
                })?;
                self.watcher.insert(made)
            }
        };
        watcher.watch(directory, RecursiveMode::NonRecursive)
    }

    /// Without any watch, and without waiting for the thread of those that were.
    fn start_anew(&mut self) {
        self.ear.deaf.store(true, Ordering::Relaxed);
        self.ear = Arc::new(Ear {
            always: self.ear.always,
            ..Ear::default()
        });
        self.watcher = None;
        self.watched.clear();
    }

    fn unwatch(&mut self, directory: &Path) {
        self.watched.remove(directory);
        if let Some(watcher) = &mut self.watcher {
            // The kernel has often done it already.
            let _ = watcher.unwatch(directory);
        }
    }
}

/// In the thread of notify: who has to look?
fn heard(
    event: notify::Result<notify::Event>,
    interests: &Mutex<Interests>,
    pokes: &[Arc<Poke>],
    always: bool,
) {
    let wake_all = || pokes.iter().for_each(|poke| poke.notice());
    let Ok(event) = event else {
        return wake_all();
    };
    // The queue ran over: anything may have happened.
    if event.need_rescan() {
        return wake_all();
    }
    let (vanished, idle) = match event.kind {
        // Everybody who opens something there; nothing has changed by that.
        EventKind::Access(AccessKind::Open(_) | AccessKind::Read) => (false, true),
        EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) => (true, false),
        EventKind::Access(_)
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Any
        | EventKind::Other => (false, false),
    };
    if idle && always {
        return;
    }
    let mut interests = lock(interests);
    let mut wake: Vec<usize> = Vec::new();
    for path in event.paths.iter().filter(|_| !idle) {
        if let (Some(directory), Some(name)) = (path.parent(), path.file_name()) {
            if let Some(names) = interests.names.get(directory) {
                let wanted = names
                    .iter()
                    .filter(|(wanted, _)| wanted == name || wanted.is_empty());
                wake.extend(wanted.map(|(_, file)| *file));
            }
        }
        if let Some(names) = interests.names.get(path) {
            wake.extend(names.iter().map(|(_, file)| *file));
            if vanished {
                // notify has let its watch go, or will: it must be made anew, whatever stands there.
                interests.lost.insert(path.clone());
            }
        }
    }
    if wake.is_empty() && !always {
        let now = Instant::now();
        for path in &event.paths {
            wake.extend(interests.too_noisy(path, now));
        }
    }
    drop(interests);
    wake.sort_unstable();
    wake.dedup();
    for file in wake {
        if let Some(poke) = pokes.get(file) {
            poke.notice();
        }
    }
}

impl Interests {
    /// An event about `path` was for nothing. Gives those who are to do without further ones.
    fn too_noisy(&mut self, path: &Path, now: Instant) -> Vec<usize> {
        let parent = path
            .parent()
            .filter(|parent| self.names.contains_key(*parent));
        let directory = parent.unwrap_or(path);
        let Some(names) = self.names.get(directory) else {
            return Vec::new();
        };
        // Looked for first: this happens often, and a key is a copy of the path.
        let loud = match self.noise.get_mut(directory) {
            Some(noise) => noise.heard(now),
            None => {
                let mut noise = Noise::default();
                let loud = noise.heard(now);
                self.noise.insert(directory.to_owned(), noise);
                loud
            }
        };
        if loud {
            names.iter().map(|(_, file)| *file).collect()
        } else {
            Vec::new()
        }
    }
}

fn is_gone(why: &notify::Error) -> bool {
    match &why.kind {
        ErrorKind::PathNotFound | ErrorKind::WatchNotFound => true,
        ErrorKind::Io(why) => {
            matches!(
                why.raw_os_error(),
                Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)
            )
        }
        ErrorKind::Generic(_) | ErrorKind::InvalidConfig(_) | ErrorKind::MaxFilesWatch => false,
    }
}

fn described(why: &notify::Error) -> String {
    match &why.kind {
        ErrorKind::MaxFilesWatch => {
            "no watch is left (sysctl fs.inotify.max_user_watches raises that)".to_owned()
        }
        ErrorKind::Io(why) if why.raw_os_error() == Some(libc::EMFILE) => {
            "no instance or descriptor is left (sysctl fs.inotify.max_user_instances, ulimit -n)"
                .to_owned()
        }
        ErrorKind::Io(why) => common::error::describe(why),
        ErrorKind::Generic(text) => text.clone(),
        ErrorKind::PathNotFound | ErrorKind::WatchNotFound | ErrorKind::InvalidConfig(_) => {
            why.to_string()
        }
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
