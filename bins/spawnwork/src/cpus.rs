//! How many CPUs this process may use: affinity, and the quota of its cgroup.

use std::path::Path;

/// At least 1. A quota of one and a half CPUs counts as two.
#[must_use]
pub fn usable() -> usize {
    let affinity = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).map_or(1, |set| {
        (0..nix::sched::CpuSet::count())
            .filter(|cpu| set.is_set(*cpu).unwrap_or(false))
            .count()
    });
    let quota = quota_v2().or_else(quota_v1).unwrap_or(usize::MAX);
    affinity.min(quota).max(1)
}

/// cgroup v2: the least `cpu.max` on the way from our group to the root.
fn quota_v2() -> Option<usize> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = Path::new("/sys/fs/cgroup");
    root.join(own)
        .ancestors()
        .take_while(|path| path.starts_with(root))
        .filter_map(|path| parse_max(&std::fs::read_to_string(path.join("cpu.max")).ok()?))
        .min()
}

/// `QUOTA PERIOD` in microseconds, or `max PERIOD`.
pub(crate) fn parse_max(text: &str) -> Option<usize> {
    let mut words = text.split_ascii_whitespace();
    rounded_up(words.next()?.parse().ok()?, words.next()?.parse().ok()?)
}

/// cgroup v1: `cpu.cfs_quota_us`, -1 for none.
fn quota_v1() -> Option<usize> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let controllers = parts.next()?;
        controllers
            .split(',')
            .any(|name| name == "cpu")
            .then(|| parts.next())?
    })?;
    let read = |group: &str, name: &str| -> Option<i64> {
        let path = format!("/sys/fs/cgroup/cpu{group}/{name}");
        std::fs::read_to_string(path).ok()?.trim().parse().ok()
    };
    // In a container the path of the group is the host's, while its files lie at the root.
    [own, ""].into_iter().find_map(|group| {
        rounded_up(
            read(group, "cpu.cfs_quota_us")?,
            read(group, "cpu.cfs_period_us")?,
        )
    })
}

fn rounded_up(quota: i64, period: i64) -> Option<usize> {
    let (quota, period) = (u64::try_from(quota).ok()?, u64::try_from(period).ok()?);
    if quota == 0 || period == 0 {
        return None;
    }
    usize::try_from(quota.div_ceil(period)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_rounded_up() {
        assert_eq!(parse_max("150000 100000"), Some(2));
        assert_eq!(parse_max("50000 100000"), Some(1));
        assert_eq!(parse_max("200000 100000\n"), Some(2));
        for none in ["max 100000", "", "1", "0 0", "-1 100000"] {
            assert_eq!(parse_max(none), None, "{none}");
        }
        assert!(usable() >= 1);
    }
}
