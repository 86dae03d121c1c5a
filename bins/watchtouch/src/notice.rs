//! inotify, through notify: a watch on every directory on the way to every file. An event means only that
//! somebody should look again, so its kind, its order and whether some were lost do not matter.

use crate::walk::Step;
use notify::event::{AccessKind, EventKind, ModifyKind};
use notify::{ErrorKind, RecommendedWatcher, RecursiveMode, Watcher};
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

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

/// What the thread of notify needs. It is never locked while that thread is waited for.
#[derive(Debug, Default)]
struct Interests {
    /// By directory: which names of it matter to which file.
    names: HashMap<PathBuf, Vec<(OsString, usize)>>,
    /// Directories that were watched and are gone from their path.
    lost: HashSet<PathBuf>,
}

/// A directory that is watched: which one, for another may stand there later.
type Who = (u64, u64, Option<(i64, u32)>);

#[derive(Debug, Default)]
struct Book {
    watcher: Option<RecommendedWatcher>,
    watched: HashMap<PathBuf, Who>,
}

/// How the wish for watches went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All stand, and stood before.
    Stand,
    /// Some were made just now: what happened before that was not noticed.
    Made,
    /// Some cannot be had, for this reason.
    Failed(String),
}

/// All watches of the program.
#[derive(Debug)]
pub struct Notices {
    pokes: Vec<Arc<Poke>>,
    interests: Arc<Mutex<Interests>>,
    book: Mutex<Book>,
}

impl Notices {
    /// For files in this order. Nothing is watched yet.
    #[must_use]
    pub fn new(pokes: Vec<Arc<Poke>>) -> Notices {
        Notices {
            pokes,
            interests: Arc::default(),
            book: Mutex::default(),
        }
    }

    /// Has the directories of `steps` watched for `file`, and no others. Directories on remote file
    /// systems are left out: there inotify tells nothing of others, and asking may hang.
    pub fn want(&self, file: usize, steps: &[Step], rearm: bool) -> Outcome {
        let mut book = lock(&self.book);
        // Who is asked for first: what happens as soon as a watch stands must find someone to wake.
        let unwanted: Vec<PathBuf> = {
            let mut interests = lock(&self.interests);
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
        for path in unwanted {
            book.unwatch(&path);
        }
        let mut outcome = Outcome::Stand;
        for step in steps.iter().filter(|step| step.local) {
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
                        if outcome == Outcome::Stand {
                            outcome = Outcome::Made;
                        }
                    }
                }
                // Gone since the look: the next one sees it.
                Err(why) if is_gone(&why) => {
                    if outcome == Outcome::Stand {
                        outcome = Outcome::Made;
                    }
                }
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
                let made =
                    notify::recommended_watcher(move |event| heard(event, &interests, &pokes))?;
                self.watcher.insert(made)
            }
        };
        watcher.watch(directory, RecursiveMode::NonRecursive)
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
fn heard(event: notify::Result<notify::Event>, interests: &Mutex<Interests>, pokes: &[Arc<Poke>]) {
    let wake_all = || pokes.iter().for_each(|poke| poke.notice());
    let Ok(event) = event else {
        return wake_all();
    };
    // The queue ran over: anything may have happened.
    if event.need_rescan() {
        return wake_all();
    }
    let vanished = match event.kind {
        // Everybody who opens something there; nothing has changed by that.
        EventKind::Access(AccessKind::Open(_) | AccessKind::Read) => return,
        EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) => true,
        EventKind::Access(_)
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Any
        | EventKind::Other => false,
    };
    let mut interests = lock(interests);
    let mut wake: Vec<usize> = Vec::new();
    for path in &event.paths {
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
    drop(interests);
    wake.sort_unstable();
    wake.dedup();
    for file in wake {
        if let Some(poke) = pokes.get(file) {
            poke.notice();
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
