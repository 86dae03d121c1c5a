//! What an action is told: pure.

use crate::eye::Via;
use crate::signature::{Change, Seen};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

/// One touched file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Which one.
    pub file: usize,
    /// Its path.
    pub path: PathBuf,
    /// What happened.
    pub change: Change,
    /// How that was learned.
    pub via: Via,
    /// What stands there.
    pub seen: Seen,
    /// Its modification time before.
    pub previous: Option<(i64, u32)>,
}

/// What one run is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Each file once, in the order of the first touch.
    pub items: Vec<Item>,
}

impl Batch {
    /// A further touch; of a file that is there already, what was before it is kept.
    pub fn add(&mut self, item: Item) {
        match self.items.iter_mut().find(|old| old.file == item.file) {
            Some(old) => {
                let previous = old.previous;
                let created = old.change == Change::Created && item.change != Change::Removed;
                *old = item;
                old.previous = previous;
                if created {
                    old.change = Change::Created;
                }
            }
            None => self.items.push(item),
        }
    }
}

/// A time as `date +%s.%N` writes it.
#[must_use]
pub fn seconds((seconds, nanoseconds): (i64, u32)) -> String {
    format!("{seconds}.{nanoseconds:09}")
}

/// Name and value; without one it is unset.
pub type Variable = (&'static str, Option<OsString>);

/// The variables of an action.
#[must_use]
pub fn variables(batch: &Batch, pid: Option<i32>, count: u32, delay: Duration) -> Vec<Variable> {
    let mut list: Vec<Variable> = Vec::new();
    let mut set = |name, value: Option<OsString>| list.push((name, value));
    set("PID", pid.map(|pid| pid.to_string().into()));
    let first = batch.items.first();
    let mtime = first.and_then(|item| match item.seen {
        Seen::There(found) => Some(seconds(found.mtime).into()),
        Seen::Missing => None,
    });
    let previous = first.and_then(|item| item.previous);
    let mut paths = OsString::new();
    for item in &batch.items {
        if !paths.is_empty() {
            paths.push("\n");
        }
        paths.push(&item.path);
    }
    set(
        "WATCHTOUCH_PATH",
        first.map(|item| item.path.clone().into()),
    );
    set("WATCHTOUCH_PATHS", Some(paths));
    set(
        "WATCHTOUCH_EVENT",
        first.map(|item| item.change.name().into()),
    );
    set("WATCHTOUCH_VIA", first.map(|item| item.via.name().into()));
    set("WATCHTOUCH_COUNT", Some(count.to_string().into()));
    set("WATCHTOUCH_MTIME", mtime);
    set(
        "WATCHTOUCH_PREVIOUS_MTIME",
        previous.map(|time| seconds(time).into()),
    );
    set(
        "WATCHTOUCH_DELAY_MS",
        Some(delay.as_millis().to_string().into()),
    );
    list
}

/// The same place between 0 and 1 for the same host and file, each time: FNV-1a, mixed as MurmurHash3
/// ends, for the last letters of names must count as much as the first.
#[must_use]
pub fn place_of(host: &OsStr, path: &OsStr) -> f64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let bytes = host.as_bytes().iter().chain(b"\0").chain(path.as_bytes());
    for byte in bytes {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^= hash >> 33;
    (hash >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_spread_and_stay_where_they_are() {
        let place = |n: u32| place_of(OsStr::new(&format!("web{n}")), OsStr::new("/srv/restart"));
        assert_eq!(place(1), place(1));
        let mut tenths = [0; 10];
        for n in 0..1000 {
            tenths[(place(n) * 10.0) as usize] += 1;
        }
        assert!(
            tenths.iter().all(|count| (60..140).contains(count)),
            "{tenths:?}"
        );
    }

    #[test]
    fn a_batch_has_each_file_once() {
        let item = |file, change| Item {
            file,
            path: "/a".into(),
            change,
            via: Via::Inotify,
            seen: Seen::Missing,
            previous: (file == 0 && change == Change::Touched).then_some((1, 2)),
        };
        let mut batch = Batch::default();
        batch.add(item(0, Change::Touched));
        batch.add(item(1, Change::Created));
        batch.add(item(0, Change::Replaced));
        batch.add(item(1, Change::Touched));
        let got: Vec<_> = batch
            .items
            .iter()
            .map(|i| (i.file, i.change, i.previous))
            .collect();
        assert_eq!(
            got,
            [
                (0, Change::Replaced, Some((1, 2))),
                (1, Change::Created, None)
            ]
        );
        assert_eq!(seconds((5, 7)), "5.000000007");
    }
}
