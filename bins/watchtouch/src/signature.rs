//! What a touch is: pure. The signature of a file, and what its change means.

use common::sys::Attributes;

/// What makes a file look touched: compared by inequality, never by order, so that older times and the
/// skewed clock of another machine count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Device.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Of the content: seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// When it was made, where the file system knows: ext4 gives the number of a removed inode to the next.
    pub btime: Option<(i64, u32)>,
    /// Of the inode; for `--on attr` alone.
    pub ctime: (i64, u32),
}

impl From<Attributes> for Signature {
    fn from(found: Attributes) -> Signature {
        Signature {
            dev: found.dev,
            ino: found.ino,
            size: found.size,
            mtime: found.mtime,
            btime: found.btime,
            ctime: found.ctime,
        }
    }
}

/// What stands at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing: the file, a directory on the way or the target of a link is not there.
    Missing,
    /// A file.
    There(Signature),
}

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was not there before.
    Created,
    /// Its time or size is another.
    Touched,
    /// Another file stands there.
    Replaced,
    /// It is not there any more.
    Removed,
    /// Only the inode has changed.
    Attr,
}

impl Change {
    /// In one word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Change::Created => "created",
            Change::Touched => "touched",
            Change::Replaced => "replaced",
            Change::Removed => "removed",
            Change::Attr => "attr",
        }
    }
}

/// What counts besides a touch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// `--on remove`
    pub remove: bool,
    /// `--on attr`
    pub attr: bool,
}

/// What lies between two looks; `None` when nothing that counts.
#[must_use]
pub fn change(before: &Seen, now: &Seen, wanted: Wanted) -> Option<Change> {
    match (before, now) {
        (Seen::Missing, Seen::Missing) => None,
        (Seen::Missing, Seen::There(_)) => Some(Change::Created),
        (Seen::There(_), Seen::Missing) => wanted.remove.then_some(Change::Removed),
        (Seen::There(before), Seen::There(now)) => {
            let who = |one: &Signature| (one.dev, one.ino, one.btime);
            if who(before) != who(now) {
                Some(Change::Replaced)
            } else if (before.mtime, before.size) != (now.mtime, now.size) {
                Some(Change::Touched)
            } else {
                (wanted.attr && before.ctime != now.ctime).then_some(Change::Attr)
            }
        }
    }
}

/// The same file in the same state, on whatever device: a network file system has another one after each
/// mount, and a disk may have after a boot.
#[must_use]
pub fn same_but_device(one: &Signature, other: &Signature) -> bool {
    let rest = |one: &Signature| (one.ino, one.size, one.mtime, one.btime);
    rest(one) == rest(other)
}

/// Whether the way to the file leads over other file systems than at the last look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// As before.
    Same,
    /// A directory on the way is on another device: something was mounted there, or unmounted.
    Moved,
}

/// One file: what was acted upon last, and what is there now.
#[derive(Clone, Debug)]
pub struct Track {
    /// `None` before the first look.
    base: Option<Seen>,
    now: Seen,
    /// The last file that was there before its file system went away.
    lost: Option<Signature>,
    wanted: Wanted,
}

impl Track {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(wanted: Wanted) -> Track {
        Track {
            base: None,
            now: Seen::Missing,
            lost: None,
            wanted,
        }
    }

    /// What was acted upon before we were started (`--since`): a difference to that is a touch.
    pub fn begin_with(&mut self, base: Seen) {
        self.base = Some(base);
        self.now = base;
    }

    /// What a look has found; true when there is something new that may count.
    pub fn see(&mut self, seen: Seen, ground: Ground) -> bool {
        let Some(base) = self.base else {
            self.base = Some(seen);
            self.now = seen;
            return false;
        };
        if ground == Ground::Moved {
            match (base, seen) {
                // Unmounted: not removed.
                (Seen::There(was), Seen::Missing) => {
                    self.lost = Some(was);
                    if !self.wanted.remove {
                        self.base = Some(Seen::Missing);
                        self.now = Seen::Missing;
                        return false;
                    }
                }
                (Seen::Missing, Seen::There(signature)) => match self.lost.take() {
                    Some(was) if !same_but_device(&was, &signature) => {
                        self.base = Some(Seen::There(was));
                    }
                    // Back as it was, or mounted for the first time: a boot is no touch.
                    Some(_) | None => {
                        self.base = Some(seen);
                        self.now = seen;
                        return false;
                    }
                },
                (Seen::There(was), Seen::There(signature)) if same_but_device(&was, &signature) => {
                    self.base = Some(seen);
                    self.now = seen;
                    return false;
                }
                (Seen::There(_), Seen::There(_)) | (Seen::Missing, Seen::Missing) => {}
            }
        }
        let moved = change(&self.now, &seen, self.wanted).is_some();
        self.now = seen;
        // Gone without that being asked for: what comes next is created, or the same one again.
        moved && self.pending().is_some()
    }

    /// It is gone, and that alone does not count: see [`Track::settle`] for when that lasts.
    #[must_use]
    pub fn gone(&self) -> bool {
        self.now == Seen::Missing
            && matches!(self.base, Some(Seen::There(_)))
            && !self.wanted.remove
    }

    /// What differs from what was acted upon.
    #[must_use]
    pub fn pending(&self) -> Option<Change> {
        change(self.base.as_ref()?, &self.now, self.wanted)
    }

    /// It is acted upon now, or known not to count: what is there is the measure from now on. Gives the
    /// modification time that was the measure before.
    pub fn settle(&mut self) -> Option<(i64, u32)> {
        let before = match self.base {
            Some(Seen::There(before)) => Some(before.mtime),
            Some(Seen::Missing) | None => None,
        };
        if self.base.is_some() {
            self.base = Some(self.now);
        }
        before
    }

    /// What is there now.
    #[must_use]
    pub fn now(&self) -> Seen {
        self.now
    }

    /// What was acted upon.
    #[must_use]
    pub fn base(&self) -> Option<Seen> {
        self.base
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const FILE: Signature = Signature {
        dev: 1,
        ino: 10,
        size: 5,
        mtime: (1000, 1),
        btime: Some((900, 0)),
        ctime: (1000, 1),
    };

    fn there(edit: impl Fn(&mut Signature)) -> Seen {
        let mut signature = FILE;
        edit(&mut signature);
        Seen::There(signature)
    }

    #[test]
    fn the_table_of_changes() {
        let all = Wanted {
            remove: true,
            attr: true,
        };
        let file = Seen::There(FILE);
        for (before, now, by_default, with_all) in [
            (Seen::Missing, Seen::Missing, None, None),
            (
                Seen::Missing,
                file,
                Some(Change::Created),
                Some(Change::Created),
            ),
            (file, Seen::Missing, None, Some(Change::Removed)),
            (file, file, None, None),
            (
                file,
                there(|f| f.mtime.1 = 2),
                Some(Change::Touched),
                Some(Change::Touched),
            ),
            // Older: a skewed clock, touch -d.
            (
                file,
                there(|f| f.mtime = (1, 0)),
                Some(Change::Touched),
                Some(Change::Touched),
            ),
            (
                file,
                there(|f| f.size = 0),
                Some(Change::Touched),
                Some(Change::Touched),
            ),
            (
                file,
                there(|f| f.ino = 11),
                Some(Change::Replaced),
                Some(Change::Replaced),
            ),
            (
                file,
                there(|f| f.dev = 2),
                Some(Change::Replaced),
                Some(Change::Replaced),
            ),
            // The number used again at once, same time and size.
            (
                file,
                there(|f| f.btime = Some((901, 0))),
                Some(Change::Replaced),
                Some(Change::Replaced),
            ),
            (file, there(|f| f.ctime.0 = 1001), None, Some(Change::Attr)),
        ] {
            assert_eq!(
                change(&before, &now, Wanted::default()),
                by_default,
                "{now:?}"
            );
            assert_eq!(change(&before, &now, all), with_all, "{now:?}");
        }
    }

    #[test]
    fn there_and_back_again_is_no_touch() {
        let mut track = Track::new(Wanted::default());
        assert!(!track.see(Seen::There(FILE), Ground::Same));
        assert!(track.see(there(|f| f.ino = 11), Ground::Same));
        assert_eq!(track.pending(), Some(Change::Replaced));
        // The same again is not news.
        assert!(!track.see(there(|f| f.ino = 11), Ground::Same));
        track.see(Seen::There(FILE), Ground::Same);
        assert_eq!(track.pending(), None);
    }

    #[test]
    fn removed_and_made_again_fires_once() {
        let mut track = Track::new(Wanted::default());
        track.see(Seen::There(FILE), Ground::Same);
        assert!(!track.see(Seen::Missing, Ground::Same));
        assert!(track.see(there(|f| f.ino = 11), Ground::Same));
        assert_eq!(track.pending(), Some(Change::Replaced));
        assert_eq!(track.settle(), Some(FILE.mtime));
        assert_eq!(track.pending(), None);
    }

    #[test]
    fn mounts_are_no_touch_and_hide_none() {
        let elsewhere = there(|f| f.dev = 7);
        let touched = there(|f| {
            f.dev = 7;
            f.mtime.0 = 2000;
        });
        // Not mounted at the start: the first file is the measure.
        let mut track = Track::new(Wanted::default());
        track.see(Seen::Missing, Ground::Same);
        assert!(!track.see(elsewhere, Ground::Moved));
        // Away, and back on another device.
        assert!(!track.see(Seen::Missing, Ground::Moved));
        assert!(!track.see(Seen::There(FILE), Ground::Moved));
        // Away, touched meanwhile, and back.
        assert!(!track.see(Seen::Missing, Ground::Moved));
        assert!(track.see(touched, Ground::Moved));
        assert_eq!(track.pending(), Some(Change::Replaced));
        // Something else mounted over it.
        track.settle();
        assert!(!track.see(
            there(|f| {
                f.dev = 9;
                f.mtime.0 = 2000;
            }),
            Ground::Moved
        ));
        assert!(track.see(there(|f| f.dev = 8), Ground::Moved));
    }

    #[test]
    fn what_was_touched_while_nobody_watched() {
        let mut track = Track::new(Wanted::default());
        track.begin_with(Seen::There(FILE));
        assert!(track.see(there(|f| f.mtime.0 = 1), Ground::Same));
        let mut track = Track::new(Wanted::default());
        track.begin_with(Seen::Missing);
        assert!(!track.see(Seen::Missing, Ground::Same));
        assert!(track.see(Seen::There(FILE), Ground::Same));
    }
}
