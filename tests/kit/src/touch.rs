//! Touches, and what a watcher that prints a line for each made of them.

use crate::{Run, Running, eventually};
use std::fs::{File, FileTimes, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The time of a file is now, as utimensat(2) sets it: nothing is opened for writing. Made if it is missing.
pub fn touch(path: impl AsRef<Path>) {
    touch_at(path, SystemTime::now());
}

/// The same with another time. Both times are set, as touch(1) does, which inotify calls a change of attributes;
/// the modification time alone would be a write to it.
pub fn touch_at(path: impl AsRef<Path>, time: SystemTime) {
    let path = path.as_ref();
    let file = match File::open(path) {
        Ok(file) => file,
        Err(_) => OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap(),
    };
    let times = FileTimes::new().set_accessed(time).set_modified(time);
    file.set_times(times).unwrap();
}

/// So long ago.
#[must_use]
pub fn ago(seconds: u64) -> SystemTime {
    SystemTime::now() - Duration::from_secs(seconds)
}

/// A watcher that prints a line for each touch, of the files under test and of one more: when that one's
/// line has come, what was made of an earlier touch is known.
#[derive(Debug)]
pub struct Lines {
    /// The watcher.
    pub running: Running,
    end: PathBuf,
    ends: usize,
}

impl Lines {
    /// Starts `run`, which is given `end` as another file to watch, and waits until it is ready.
    #[must_use]
    pub fn start(run: Run, end: &Path) -> Lines {
        let mut running = run.arg(end).start();
        running.event("ready");
        Lines {
            running,
            end: end.to_owned(),
            ends: 0,
        }
    }

    /// The kinds of all touches of paths that end in `name`, in order.
    #[must_use]
    pub fn of(&self, name: &str) -> Vec<String> {
        self.running
            .out()
            .lines()
            .filter(|line| line.ends_with(name))
            .filter_map(|line| line.split(' ').nth(1).map(str::to_owned))
            .collect()
    }

    /// Waits until `count` touches of `name` have come, and then that no further one does.
    pub fn exactly(&mut self, name: &str, count: usize) -> Vec<String> {
        eventually(&format!("{count} touches of {name}"), || {
            (self.of(name).len() >= count).then_some(())
        });
        // Twice: what was seen just before the first has settled with the second at the latest.
        for _ in 0..2 {
            touch(&self.end);
            self.ends += 1;
            let end = self.end.to_string_lossy().into_owned();
            eventually("the line of the last file", || {
                (self.of(&end).len() >= self.ends).then_some(())
            });
        }
        let kinds = self.of(name);
        assert_eq!(kinds.len(), count, "{name}: {kinds:?}");
        kinds
    }
}
