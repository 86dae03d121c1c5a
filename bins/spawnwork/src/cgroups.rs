//! The workers' cgroups, where ours was delegated to us: one for each worker, by whose name the next
//! master knows that it is a dead one's. Without that everything goes on as ever: process groups, and
//! what a subreaper finds.

use common::cgroup::{Base, Delegated, Group, Refused, Removal};
use common::child::{self, Peer};
use std::time::{Duration, Instant};

/// Groups of dead masters are looked at again after this, and ever less often up to [`SELDOM`]: their
/// workers may take any time to end, and nothing tells us.
const SOON: Duration = Duration::from_millis(250);
const SELDOM: Duration = Duration::from_secs(30);

/// All names begin with this.
const OURS: &str = "spawnwork-";

/// By what leftovers of workers are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sweep {
    /// Each worker has a cgroup.
    Cgroup,
    /// By its process group, and by its environment among the orphans that come to us.
    Subreaper,
}

impl Sweep {
    /// In one word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Sweep::Cgroup => "cgroup",
            Sweep::Subreaper => "subreaper",
        }
    }
}

/// The cgroups that this master makes.
#[derive(Debug)]
pub struct Cgroups {
    base: Option<Base>,
    /// What the names of ours have in common.
    prefix: String,
    /// The last one could be made.
    works: bool,
    /// When those of dead masters are looked at again, and the wait after that.
    look: Option<(Instant, Duration)>,
}

/// `spawnwork-PID-START-w`: with the time of its start a pid means one process for ever.
fn prefix(pid: i32, start: u64) -> String {
    format!("{OURS}{pid}-{start}-w")
}

/// The master that made a group: its pid, and when it was started.
fn maker(name: &str) -> Option<(i32, u64)> {
    let mut parts = name.strip_prefix(OURS)?.split('-');
    let (pid, start) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let worker: u64 = parts.next()?.strip_prefix('w')?.parse().ok()?;
    // As we write it, to the letter: what merely looks like it is somebody else's.
    let same = parts.next().is_none() && name == format!("{}{worker}", prefix(pid, start));
    same.then_some((pid, start))
}

impl Cgroups {
    /// Looks whether there can be any. What masters before us have left is removed, where it is empty.
    #[must_use]
    pub fn find(now: Instant) -> Cgroups {
        let own = std::process::id() as i32;
        let start = child::stat(own).map(|stat| stat.start);
        // Without /proc there is no way to be told apart from another master with our number.
        let base = start.and_then(|_| Base::find().ok());
        let mut cgroups = Cgroups {
            works: base.is_some(),
            base,
            prefix: prefix(own, start.unwrap_or_default()),
            look: None,
        };
        cgroups.look = cgroups.base.is_some().then_some((now, SOON));
        cgroups.on_time(now);
        cgroups
    }

    /// By what leftovers are found.
    #[must_use]
    pub fn sweep(&self) -> Sweep {
        if self.works {
            Sweep::Cgroup
        } else {
            Sweep::Subreaper
        }
    }

    /// A group for a worker; `None` where it has to do without.
    pub fn make(&mut self, id: u64) -> Option<Group> {
        let base = self.base.as_ref()?;
        let made = base.holds_us().then(|| base.make(&self.name(id)).ok());
        let made = made.flatten();
        self.works = made.is_some();
        made
    }

    /// The group that the program before us, in this very process, has made.
    #[must_use]
    pub fn again(&self, id: u64, certain: bool) -> Option<Group> {
        let base = self.base.as_ref()?;
        Some(base.group(&self.name(id)).with_certainty(certain))
    }

    /// The same for a worker that has ended.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<Group> {
        let ours = maker(name).is_some() && name.starts_with(&self.prefix);
        self.base
            .as_ref()
            .filter(|_| ours)
            .map(|base| base.group(name))
    }

    fn name(&self, id: u64) -> String {
        format!("{}{id}", self.prefix)
    }

    /// Removes what masters that are dead have left empty, when it is time for that.
    pub fn on_time(&mut self, now: Instant) {
        let Some((_, wait)) = self.look.filter(|(at, _)| *at <= now) else {
            return;
        };
        let left = self.remove_stale();
        self.look = (left > 0).then(|| (now + wait, (wait * 2).min(SELDOM)));
    }

    /// When that is.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.look.map(|(at, _)| at)
    }

    /// How many stay, since something lives in them. Nothing is killed: what a dead master's workers do
    /// is up to `--orphans`.
    fn remove_stale(&self) -> usize {
        let Some(base) = &self.base else { return 0 };
        let lives = |(pid, start): (i32, u64)| {
            child::stat(pid).is_some_and(|stat| stat.start == start && stat.state != b'Z')
        };
        let names = base.names().into_iter();
        names
            .filter(|name| maker(name).is_some_and(|maker| !lives(maker)))
            .filter(|name| base.group(name).remove() == Removal::Busy)
            .count()
    }

    /// The end: what can be removed is.
    pub fn finish(&self) {
        self.remove_stale();
        let Some(base) = &self.base else { return };
        for name in base.names() {
            if maker(&name).is_some() && name.starts_with(&self.prefix) {
                let _ = base.group(&name).remove();
            }
        }
    }
}

/// `--check-config`: what a start would do, and why, in words. Nothing is made.
#[must_use]
pub fn describe() -> String {
    match Base::find() {
        Ok(base) => {
            let by = match base.by() {
                Delegated::Marked => "delegated by its attribute",
                Delegated::Namespace => "the root of our cgroup namespace",
                Delegated::Owner => "delegated by its owner",
            };
            format!("cgroup, below {} ({by})", base.path().display())
        }
        Err(why) => {
            let why = match why {
                Refused::Absent => "there is no cgroup v2 to be seen",
                Refused::Root => "our cgroup is the root of all",
                Refused::Threaded => "our cgroup is a threaded one",
                Refused::NotDelegated => "our cgroup is not delegated to us",
                Refused::ReadOnly => "our cgroup cannot be written to",
            };
            format!("subreaper, since {why}")
        }
    }
}

/// What is left of workers that have ended, in their cgroups; empty ones are removed at once.
pub fn left(groups: impl IntoIterator<Item = Group>) -> (Vec<Peer>, Vec<Group>) {
    let mut peers = Vec::new();
    let busy = |group: &Group| group.remove() == Removal::Busy;
    let groups: Vec<Group> = groups.into_iter().filter(busy).collect();
    groups
        .iter()
        .for_each(|group| peers.extend(group.members()));
    (peers, groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_maker() {
        assert_eq!(maker(&format!("{}7", prefix(12, 4711))), Some((12, 4711)));
        for other in [
            "spawnwork-12-4711-w",
            "spawnwork-12-w7",
            "spawnwork-12-4711-w7-1",
            "spawnwork-12-4711-7",
            "spawnwork-+12-4711-w7",
            "spawnwork-012-4711-w7",
            "spawnwork-test-1",
            "xspawnwork-12-4711-w7",
            "",
        ] {
            assert_eq!(maker(other), None, "{other}");
        }
    }
}
