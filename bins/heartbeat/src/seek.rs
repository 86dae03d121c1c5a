//! The pid file, read by a thread of its own: it may lie on a file server that is dead, and then nobody
//! comes back from it. One thread at most hangs there; what it finds when it comes back is news.

use common::aside::Aside;
use common::watched::{Name, Unfound, Watched, pid_in};
use nix::sys::eventfd::EventFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// It opens a file, and reads a few of /proc.
const STACK: usize = 128 << 10;

/// What was found.
#[derive(Debug)]
pub enum Sought {
    /// The process that is held already.
    Same,
    /// Another one.
    Found(Watched),
    /// None, and why.
    No(Unfound),
}

/// Who reads it.
#[derive(Debug)]
pub struct Seeker {
    path: PathBuf,
    wake: Arc<EventFd>,
    aside: Aside<Option<i32>, Sought>,
    ready: Option<Sought>,
    hangs: bool,
}

impl Seeker {
    /// Has not read it yet. After each answer `wake` is written to.
    #[must_use]
    pub fn new(path: PathBuf, wake: Arc<EventFd>) -> Seeker {
        Seeker {
            path,
            aside: Aside::new("pid-file", STACK, wake.clone()),
            wake,
            ready: None,
            hangs: false,
        }
    }

    /// Begins to read, unless it is being read. `held` is the living process that is known.
    pub fn ask(&mut self, held: Option<i32>) {
        if self.aside.open() {
            return;
        }
        let path = self.path.clone();
        let asked = self.aside.ask(held, || {
            Box::new(move |held, answer| answer(read(&path, held)))
        });
        if asked.is_err() {
            // No thread to be had: better here than not at all.
            self.ready = Some(read(&self.path, held));
            let _ = self.wake.write(1);
        }
    }

    /// What was found, if it has come.
    pub fn answer(&mut self) -> Option<Sought> {
        let found = self.ready.take().or_else(|| self.aside.answer())?;
        self.hangs = false;
        Some(found)
    }

    /// An answer is worth waiting for.
    #[must_use]
    pub fn waits(&self) -> bool {
        !self.hangs
    }

    /// It has been waited for long enough; until it comes nobody waits again. True: that is new.
    pub fn tired(&mut self) -> bool {
        !std::mem::replace(&mut self.hangs, true)
    }
}

fn read(path: &Path, held: Option<i32>) -> Sought {
    if held.is_some_and(|held| pid_in(path).is_ok_and(|pid| pid == held)) {
        return Sought::Same;
    }
    match Watched::find(&Name::File(path.to_owned())) {
        Ok(found) => Sought::Found(found),
        Err(why) => Sought::No(why),
    }
}
