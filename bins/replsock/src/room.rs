//! How much memory a process may still take: what the machine has left, or what its cgroups leave it, which in a
//! container is less. Read from /proc and the groups' files; what cannot be read limits nothing.

use common::cgroup::unescaped;
use std::path::{Component, Path, PathBuf};

/// Bytes, and whose limit it is; `None`: nothing is known.
#[must_use]
pub fn of(pid: i32) -> Option<(u64, &'static str)> {
    let machine = available().map(|free| (free, "on this machine"));
    let group = in_groups(pid).map(|free| (free, "in its cgroup"));
    [machine, group]
        .into_iter()
        .flatten()
        .min_by_key(|(free, _)| *free)
}

/// `MemAvailable` (proc_meminfo(5)), in bytes.
fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}

/// The names of the files (cgroups(7)): version 1 and 2.
pub(crate) struct Names {
    limit: &'static str,
    used: &'static str,
    cache: &'static str,
}

const V1: Names = Names {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    cache: "total_inactive_file",
};
const V2: Names = Names {
    limit: "memory.max",
    used: "memory.current",
    cache: "inactive_file",
};

/// The least that any of the groups that a process is in, from its own to the outermost that is seen, leaves.
fn in_groups(pid: i32) -> Option<u64> {
    let places = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let mut least = None;
    for (point, below, names) in groups(&places, &mounts) {
        let mut group = point.join(&below);
        loop {
            let free = left(&group, names);
            least = [least, free].into_iter().flatten().min();
            if group == point || !group.pop() {
                break;
            }
        }
    }
    least
}

/// Where the groups of a process are: a mount's point, what is below it, and how its files are called.
pub(crate) fn groups(places: &str, mounts: &str) -> Vec<(PathBuf, PathBuf, &'static Names)> {
    let place = |controller: &str| {
        places.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (list, path) = (fields.next()?, fields.next()?);
            list.split(',').any(|one| one == controller).then_some(path)
        })
    };
    let mut found = Vec::new();
    for line in mounts.lines() {
        let Some((head, tail)) = line.split_once(" - ") else {
            continue;
        };
        let mut head = head.split(' ').skip(3);
        let (Some(root), Some(point)) = (head.next(), head.next()) else {
            continue;
        };
        // The name of a unit may hold a backslash, which is written as one of these.
        let (root, point) = (unescaped(root), unescaped(point));
        let mut tail = tail.split(' ');
        let (kind, options) = (tail.next(), tail.nth(1).unwrap_or_default());
        let (place, names) = match kind {
            Some("cgroup2") => (place(""), &V2),
            Some("cgroup") if options.split(',').any(|one| one == "memory") => {
                (place("memory"), &V1)
            }
            _ => continue,
        };
        let below = place.and_then(|place| Path::new(place).strip_prefix(&root).ok());
        // A process outside of our cgroup namespace has a place above it (/../x), which is not seen from here.
        let inside = |path: &&Path| {
            path.components()
                .all(|part| matches!(part, Component::Normal(_)))
        };
        if let Some(below) = below.filter(inside) {
            found.push((point, below.to_owned(), names));
        }
    }
    found
}

/// What a group leaves: up to its limit, and what it can let go of at once.
fn left(group: &Path, names: &Names) -> Option<u64> {
    let number = |name: &str| {
        let text = std::fs::read_to_string(group.join(name)).ok()?;
        text.trim().parse::<u64>().ok()
    };
    // `max` is no number, and no limit.
    let (limit, used) = (number(names.limit)?, number(names.used)?);
    let cache = std::fs::read_to_string(group.join("memory.stat"))
        .ok()
        .and_then(|text| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(names.cache)?.strip_prefix(' '))?;
            line.trim().parse::<u64>().ok()
        })
        .unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(cache)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_and_whoever_is_not_seen() {
        let mounts = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            36 31 0:33 /pod /sys/fs/cgroup/unified rw,relatime shared:4 - cgroup2 cgroup2 rw\n\
            37 31 0:34 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            38 1 8:1 / / rw - ext4 /dev/sda rw\n";
        let seen = |places: &str| -> Vec<(String, String)> {
            let text = |path: &Path| path.to_string_lossy().into_owned();
            groups(places, mounts)
                .iter()
                .map(|(point, below, _)| (text(point), text(below)))
                .collect()
        };
        let place =
            |point: &str, below: &str| (format!("/sys/fs/cgroup/{point}"), below.to_owned());
        assert_eq!(
            seen("4:cpuset,memory:/a/b\n1:cpu:/c\n0::/pod/d:e\n"),
            [place("memory", "a/b"), place("unified", "d:e")]
        );
        assert_eq!(seen("4:memory:/../x\n0::/other\n"), []);
        assert_eq!(seen("0::/pod\nrubbish\n"), [place("unified", "")]);
        let unit = "36 31 0:33 /a\\134x2db.slice /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let found = groups("0::/a\\x2db.slice/c\n", unit);
        let below: Vec<&Path> = found.iter().map(|(_, below, _)| below.as_path()).collect();
        assert_eq!(below, [Path::new("c")]);
    }
}
