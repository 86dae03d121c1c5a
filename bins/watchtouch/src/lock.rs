//! `--lock FILE`: flock(2) on a shared file, waited for by a thread of its own, since the wait may be long
//! and the file server away.

use crate::notice::lock;
use common::error::describe;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

#[derive(Debug, Default)]
struct State {
    wanted: bool,
    /// Another one holds it.
    waiting: bool,
    held: Option<Result<(), String>>,
    release: bool,
}

/// The thread that holds the lock.
#[derive(Debug, Clone)]
pub struct Locker {
    shared: Arc<(Mutex<State>, Condvar)>,
    bell: Arc<EventFd>,
}

/// What the thread has to say.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// Another one holds it.
    Waiting,
    /// It is ours.
    Taken,
    /// It cannot be had.
    Failed(String),
}

impl Locker {
    /// Takes nothing yet.
    ///
    /// # Errors
    /// EMFILE; EAGAIN: no further thread.
    pub fn open(path: PathBuf) -> io::Result<Locker> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let locker = Locker {
            shared: Arc::default(),
            bell: Arc::new(EventFd::from_value_and_flags(0, flags)?),
        };
        let there = locker.clone();
        std::thread::Builder::new()
            .name("lock".to_owned())
            .stack_size(256 << 10)
            .spawn(move || there.hold(&path))?;
        Ok(locker)
    }

    /// To be waited for.
    #[must_use]
    pub fn bell(&self) -> &EventFd {
        &self.bell
    }

    /// Begins to take it.
    pub fn take(&self) {
        let mut state = lock(&self.shared.0);
        state.wanted = true;
        state.release = false;
        self.shared.1.notify_all();
    }

    /// Lets it go.
    pub fn release(&self) {
        lock(&self.shared.0).release = true;
        self.shared.1.notify_all();
    }

    /// What has happened since the last call.
    pub fn news(&self) -> Option<News> {
        let _ = self.bell.read();
        let mut state = lock(&self.shared.0);
        // Taken meanwhile: that it was waited for is no news any more.
        let waiting = std::mem::take(&mut state.waiting);
        match state.held.take() {
            Some(Ok(())) => Some(News::Taken),
            Some(Err(why)) => Some(News::Failed(why)),
            None => waiting.then_some(News::Waiting),
        }
    }

    fn hold(&self, path: &Path) {
        loop {
            let mut state = lock(&self.shared.0);
            while !state.wanted {
                state = self.wait(state);
            }
            state.wanted = false;
            drop(state);
            let taken = self.try_take(path);
            let mut state = lock(&self.shared.0);
            state.held = Some(taken.as_ref().map(|_| ()).map_err(describe));
            let _ = self.bell.write(1);
            if taken.is_ok() {
                while !state.release {
                    state = self.wait(state);
                }
            }
            drop(state);
            // Closed without the state locked: that may hang too.
            drop(taken);
        }
    }

    fn wait<'a>(
        &self,
        state: std::sync::MutexGuard<'a, State>,
    ) -> std::sync::MutexGuard<'a, State> {
        let waited = self.shared.1.wait(state);
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    fn try_take(&self, path: &Path) -> io::Result<Flock<File>> {
        // For writing: over NFS an exclusive flock(2) is a write lock of fcntl(2).
        let mut how_to_open = std::fs::OpenOptions::new();
        how_to_open
            .read(true)
            .write(true)
            .mode(0o666)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        // What is not there is made where it was named, and never where a link leads that somebody has laid out.
        let file = match how_to_open.open(path) {
            Err(why) if why.kind() == io::ErrorKind::NotFound => {
                match how_to_open.clone().create_new(true).open(path) {
                    // Another one has made it in this moment.
                    Err(why) if why.kind() == io::ErrorKind::AlreadyExists => {
                        how_to_open.open(path)?
                    }
                    made => made?,
                }
            }
            opened => opened?,
        };
        let (mut file, mut how) = (file, FlockArg::LockExclusiveNonblock);
        loop {
            match Flock::lock(file, how) {
                Ok(taken) => return Ok(taken),
                Err((back, nix::Error::EWOULDBLOCK)) if how == FlockArg::LockExclusiveNonblock => {
                    lock(&self.shared.0).waiting = true;
                    let _ = self.bell.write(1);
                    (file, how) = (back, FlockArg::LockExclusive);
                }
                Err((back, nix::Error::EINTR)) => file = back,
                Err((_, why)) => return Err(why.into()),
            }
        }
    }
}
