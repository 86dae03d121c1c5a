//! Groups of processes that nothing can leave by forking: control groups, version 2.
//!
//! A process that forks twice and calls setsid(2) has left its process group, and one that clears its
//! environment besides cannot be told from a stranger. But it stays in the cgroup that it was born in,
//! and one write to `cgroup.kill` ends everything in there at once (cgroups(7); cgroup-v2.rst, "Core
//! Interface Files").
//!
//! # Whose cgroup is it?
//! Each cgroup has one writer, which is whoever it was delegated to (systemd, "Control Group APIs and
//! Delegation": the single-writer rule). So [`Base::find`] makes groups below our own cgroup in three
//! cases only, and [`Delegated`] says which:
//!
//! - It bears the extended attribute `trusted.delegate` or `user.delegate` with the value `1`. That is
//!   how systemd tells the payload of a unit with `Delegate=` that it may (the first for root, since
//!   v236; the second can be read by anybody, since v251), and how an administrator can do so by hand.
//! - It is the root of our cgroup namespace, and not that of the whole machine: what a container was
//!   given (cgroup_namespaces(7); cgroup-v2.rst, "Delegation": a namespace is a delegation boundary).
//! - We are not root, the directory and its `cgroup.procs` are ours, and the directory above is not:
//!   delegation by file permissions, just at its boundary (cgroup-v2.rst, "Model of Delegation").
//!   Further in, ownership proves nothing: all units of `systemd --user` are the user's, and they are
//!   managed by that systemd.
//!
//! Never in the root of the hierarchy (which has no `cgroup.type`), nor in a threaded cgroup or below
//! one, where a group could not hold whole processes. And it must be writable: containers get it
//! read-only as a rule.
//!
//! # Why we may stay where we are
//! A cgroup may hold processes and have children as long as no domain controller is enabled for the
//! children (cgroup-v2.rst, "No Internal Process Constraint"). We enable none. For the same reason no
//! group of ours has files of the memory controller: an OOM kill in it is counted above, in the cgroup
//! that has them (memory.events counts for the whole subtree).

use crate::child::Peer;
use crate::sys;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, fstat, fstatat};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};
use nix::unistd::{AccessFlags, UnlinkatFlags};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// What is read of one file at most: a program can fork as often as its limit allows.
const LONGEST: u64 = 1 << 20;
/// So many groups below one of ours are looked at: who may make them could make any number.
const MOST: usize = 256;
/// Names and looks, without an entry's content.
const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_CLOEXEC);

/// By what a cgroup was handed to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delegated {
    /// Its extended attribute.
    Marked,
    /// It is the root of our cgroup namespace.
    Namespace,
    /// It is ours, and the one above is not.
    Owner,
}

/// Why no groups are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no cgroup v2, or ours cannot be seen from here.
    Absent,
    /// It is the root of the hierarchy.
    Root,
    /// It is a threaded one, or below one.
    Threaded,
    /// Nobody has handed it to us.
    NotDelegated,
    /// It may not be written to.
    ReadOnly,
}

/// What is known of our own cgroup, before the decision.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Facts {
    /// `cgroup.type`, which the root of the hierarchy does not have.
    kind: Option<String>,
    marked: bool,
    /// The root of our cgroup namespace, and of the mount that it is seen in.
    namespace: bool,
    /// Our effective uid; the owners of the directory, of its `cgroup.procs`, and of the directory above
    /// where that is a cgroup too.
    uid: u32,
    owners: (u32, u32, Option<u32>),
    writable: bool,
}

/// The rule, as it stands above.
fn decide(facts: &Facts) -> Result<Delegated, Refused> {
    match facts.kind.as_deref() {
        None => return Err(Refused::Root),
        Some("domain") => {}
        Some(_) => return Err(Refused::Threaded),
    }
    let (directory, procs, above) = facts.owners;
    let ours = facts.uid != 0 && directory == facts.uid && procs == facts.uid;
    let by = if facts.marked {
        Delegated::Marked
    } else if facts.namespace {
        Delegated::Namespace
    } else if ours && above.is_some_and(|above| above != facts.uid) {
        Delegated::Owner
    } else {
        return Err(Refused::NotDelegated);
    };
    if facts.writable {
        Ok(by)
    } else {
        Err(Refused::ReadOnly)
    }
}

/// Our place in the unified hierarchy, by the text of /proc/self/cgroup.
#[must_use]
pub fn place(text: &str) -> Option<&str> {
    let place = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    // Outside of our namespace, or removed.
    let seen =
        place.starts_with('/') && !place.starts_with("/..") && !place.ends_with(" (deleted)");
    seen.then_some(place)
}

/// A mount of the unified hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    root: PathBuf,
    point: PathBuf,
}

/// Those of /proc/self/mountinfo (proc_pid_mountinfo(5)).
#[must_use]
pub fn mounts(text: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (head, tail) = line.split_once(" - ")?;
        let mut fields = head.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (tail.split(' ').next()? == "cgroup2").then(|| Mount {
            root: unescaped(root),
            point: unescaped(point),
        })
    };
    text.lines().filter_map(mount).collect()
}

/// A path of /proc/self/mountinfo: blanks and the like are written as three octal digits there.
#[must_use]
pub fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let digits = after
            .get(..3)
            .filter(|digits| *first == b'\\' && digits.iter().all(u8::is_ascii_digit));
        let byte = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match byte {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

impl Mount {
    /// Where a place is seen in it.
    fn path_of(&self, place: &str) -> Option<PathBuf> {
        let below = Path::new(place).strip_prefix(&self.root).ok()?;
        Some(self.point.join(below))
    }
}

fn own_place() -> Option<String> {
    place(&std::fs::read_to_string("/proc/self/cgroup").ok()?).map(str::to_owned)
}

/// Reads a small file of a group, as far as [`LONGEST`].
fn read(directory: BorrowedFd<'_>, path: &str) -> io::Result<String> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let file = File::from(nix::fcntl::openat(directory, path, flags, Mode::empty())?);
    let mut text = String::new();
    file.take(LONGEST).read_to_string(&mut text)?;
    Ok(text)
}

/// The names of the directories in one, which are its child groups.
fn children(directory: BorrowedFd<'_>) -> Vec<String> {
    // Through /proc: the directory that is open, whatever lies at its path by now.
    let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
    let Ok(entries) = std::fs::read_dir(path) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Our own cgroup, which was delegated to us: groups may be made below it.
#[derive(Clone, Debug)]
pub struct Base {
    directory: Rc<OwnedFd>,
    path: PathBuf,
    place: String,
    by: Delegated,
}

impl Base {
    /// Looks for it; changes nothing.
    ///
    /// # Errors
    /// Why no groups can be made, or may not be.
    pub fn find() -> Result<Base, Refused> {
        let place = own_place().ok_or(Refused::Absent)?;
        let mounted = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut refused = Refused::Absent;
        for mount in mounts(&mounted) {
            let Some(path) = mount.path_of(&place) else {
                continue;
            };
            let Some((directory, facts)) = look(&path, &mount, &place) else {
                continue;
            };
            match decide(&facts) {
                Ok(by) => {
                    return Ok(Base {
                        directory: Rc::new(directory),
                        path,
                        place,
                        by,
                    });
                }
                // The same cgroup may be mounted elsewhere in a way that it can be written to.
                Err(why) => refused = why,
            }
        }
        Err(refused)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// By what it is ours.
    #[must_use]
    pub fn by(&self) -> Delegated {
        self.by
    }

    /// We are in it still: who moved us wants what we start to be elsewhere, too.
    #[must_use]
    pub fn holds_us(&self) -> bool {
        own_place().is_some_and(|place| place == self.place)
    }

    /// Makes a group.
    ///
    /// # Errors
    /// EEXIST; EAGAIN at `cgroup.max.descendants` or `cgroup.max.depth`; EACCES, EROFS, ENODEV.
    pub fn make(&self, name: &str) -> io::Result<Group> {
        nix::sys::stat::mkdirat(&*self.directory, name, Mode::from_bits_truncate(0o755))?;
        Ok(self.group(name))
    }

    /// A group that is there, or was.
    #[must_use]
    pub fn group(&self, name: &str) -> Group {
        Group {
            base: Rc::clone(&self.directory),
            name: name.to_owned(),
            certain: false,
        }
    }

    /// The names of all groups here.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        children(self.directory.as_fd())
    }
}

/// Opens a directory and looks whether it is our cgroup, and what can be said of it.
fn look(path: &Path, mount: &Mount, place: &str) -> Option<(OwnedFd, Facts)> {
    let directory = nix::fcntl::open(path, DIRECTORY, Mode::empty()).ok()?;
    // Something else may be mounted over it; and another namespace's path could lead elsewhere.
    if fstatfs(&directory).ok()?.filesystem_type() != CGROUP2_SUPER_MAGIC {
        return None;
    }
    let kind = read(directory.as_fd(), "cgroup.type").ok();
    let kind = kind.map(|kind| kind.trim().to_owned());
    let own = std::process::id();
    let here = match read(directory.as_fd(), "cgroup.procs") {
        Ok(pids) => pids.lines().any(|pid| pid.parse() == Ok(own)),
        // A threaded one does not tell (cgroups(7)), and is refused for that below.
        Err(_) => kind.is_some(),
    };
    if !here {
        return None;
    }
    let delegate = |name| sys::extended_attribute(directory.as_fd(), name);
    let marked = [c"trusted.delegate", c"user.delegate"]
        .into_iter()
        .any(|name| delegate(name).as_deref() == Some(b"1"));
    let owner = |path: &str| {
        fstatat(&directory, path, AtFlags::empty()).map_or(u32::MAX, |found| found.st_uid)
    };
    // At the mount's root the directory above is none of the hierarchy.
    let above = Path::new(place) != mount.root;
    let may_write = |path: &str| {
        nix::unistd::faccessat(&directory, path, AccessFlags::W_OK, AtFlags::AT_EACCESS).is_ok()
    };
    let facts = Facts {
        kind,
        marked,
        namespace: place == "/" && mount.root == Path::new("/"),
        uid: nix::unistd::geteuid().as_raw(),
        owners: (
            fstat(&directory).ok()?.st_uid,
            owner("cgroup.procs"),
            above.then(|| owner("..")),
        ),
        writable: may_write(".") && may_write("cgroup.procs"),
    };
    Some((directory, facts))
}

/// Whether a group is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It is, or nothing is left in it and it cannot be removed.
    Done,
    /// Something lives in it.
    Busy,
}

/// A group below [`Base`].
#[derive(Debug)]
pub struct Group {
    base: Rc<OwnedFd>,
    name: String,
    certain: bool,
}

impl Group {
    /// Its name in the directory of [`Base`].
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process that was started for it was born in it, and all that it starts is.
    #[must_use]
    pub fn certain(&self) -> bool {
        self.certain
    }

    /// What [`crate::child::Child::in_cgroup`] says.
    #[must_use]
    pub fn with_certainty(self, certain: bool) -> Group {
        Group { certain, ..self }
    }

    /// For a process that is to start in it.
    ///
    /// # Errors
    /// It is gone; EMFILE.
    pub fn open(&self) -> io::Result<OwnedFd> {
        Ok(nix::fcntl::openat(
            &*self.base,
            self.name.as_str(),
            DIRECTORY,
            Mode::empty(),
        )?)
    }

    /// All processes in it and below, each held by a pidfd; no zombies.
    #[must_use]
    pub fn members(&self) -> Vec<Peer> {
        let peers: Vec<Peer> = self
            .pids()
            .into_iter()
            .filter_map(|pid| Peer::open(pid).ok())
            .collect();
        // Looked at again, now that the numbers can mean no other processes.
        let again = if peers.is_empty() {
            Vec::new()
        } else {
            self.pids()
        };
        let there = |peer: &Peer| again.contains(&peer.pid());
        peers.into_iter().filter(there).collect()
    }

    fn pids(&self) -> Vec<i32> {
        let texts = self.tree().into_iter();
        let texts =
            texts.filter_map(|path| read(self.base.as_fd(), &format!("{path}/cgroup.procs")).ok());
        let mut pids = Vec::new();
        for text in texts {
            // 0 is a process of another pid namespace: nothing that we could hold.
            let here = text.lines().filter_map(|pid| pid.parse::<i32>().ok());
            pids.extend(here.filter(|pid| *pid > 0));
        }
        pids
    }

    /// The paths of this group and of those that its members made below it, outer ones first.
    fn tree(&self) -> Vec<String> {
        let mut all = vec![self.name.clone()];
        let mut next = 0;
        while next < all.len() {
            let opened =
                nix::fcntl::openat(&*self.base, all[next].as_str(), DIRECTORY, Mode::empty());
            let names = opened.map(|directory| children(directory.as_fd()));
            for name in names.unwrap_or_default() {
                if all.len() < MOST {
                    all.push(format!("{}/{name}", all[next]));
                }
            }
            next += 1;
        }
        all
    }

    /// SIGKILL to everything in it, whatever it forks meanwhile. It is not waited for.
    pub fn kill(&self) {
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let path = format!("{}/cgroup.kill", self.name);
        match nix::fcntl::openat(&*self.base, path.as_str(), flags, Mode::empty()) {
            Ok(fd) => {
                if File::from(fd).write_all(b"1").is_err() {
                    self.kill_each();
                }
            }
            // Before Linux 5.14; or the group is gone.
            Err(_) => self.kill_each(),
        }
    }

    /// One by one, until nobody is new.
    fn kill_each(&self) {
        const ROUNDS: usize = 32;
        let mut killed = std::collections::BTreeSet::new();
        for _ in 0..ROUNDS {
            let new: Vec<Peer> = self
                .members()
                .into_iter()
                .filter(|peer| killed.insert(peer.pid()))
                .collect();
            if new.is_empty() {
                return;
            }
            new.iter().for_each(|peer| peer.signal(9));
        }
    }

    /// Removes it, if nothing lives in it any more.
    pub fn remove(&self) -> Removal {
        match self.remove_one(&self.name) {
            Ok(()) | Err(Errno::ENOENT) => Removal::Done,
            Err(_) if self.populated() => Removal::Busy,
            Err(_) => {
                // Empty groups that its members made stand in the way; the inner ones first.
                for path in self.tree().iter().rev() {
                    let _ = self.remove_one(path);
                }
                if self.populated() {
                    Removal::Busy
                } else {
                    Removal::Done
                }
            }
        }
    }

    fn remove_one(&self, path: &str) -> nix::Result<()> {
        nix::unistd::unlinkat(&*self.base, path, UnlinkatFlags::RemoveDir)
    }

    /// Something lives in it or below.
    fn populated(&self) -> bool {
        read(self.base.as_fd(), &format!("{}/cgroup.events", self.name))
            .is_ok_and(|text| text.lines().any(|line| line == "populated 1"))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn whose_cgroup_it_is() {
        let facts = Facts {
            kind: Some("domain".to_owned()),
            marked: false,
            namespace: false,
            uid: 0,
            owners: (0, 0, Some(0)),
            writable: true,
        };
        type Change = fn(&mut Facts);
        let cases: [(Change, Result<Delegated, Refused>); 17] = [
            // root in a cgroup of root's: every system service.
            (|_| {}, Err(Refused::NotDelegated)),
            (|facts| facts.marked = true, Ok(Delegated::Marked)),
            (|facts| facts.namespace = true, Ok(Delegated::Namespace)),
            (
                |facts| (facts.marked, facts.kind) = (true, None),
                Err(Refused::Root),
            ),
            (
                |facts| (facts.namespace, facts.kind) = (true, None),
                Err(Refused::Root),
            ),
            (
                |facts| (facts.marked, facts.kind) = (true, Some("threaded".to_owned())),
                Err(Refused::Threaded),
            ),
            (
                |facts| (facts.marked, facts.kind) = (true, Some("domain threaded".to_owned())),
                Err(Refused::Threaded),
            ),
            (
                |facts| (facts.marked, facts.kind) = (true, Some("domain invalid".to_owned())),
                Err(Refused::Threaded),
            ),
            (
                |facts| (facts.marked, facts.writable) = (true, false),
                Err(Refused::ReadOnly),
            ),
            (
                |facts| (facts.namespace, facts.writable) = (true, false),
                Err(Refused::ReadOnly),
            ),
            // Handed over by chown.
            (
                |facts| (facts.uid, facts.owners) = (7, (7, 7, Some(0))),
                Ok(Delegated::Owner),
            ),
            // A unit of the user's own systemd.
            (
                |facts| (facts.uid, facts.owners) = (7, (7, 7, Some(7))),
                Err(Refused::NotDelegated),
            ),
            // The same, with Delegate=yes.
            (
                |facts| {
                    (facts.uid, facts.owners) = (7, (7, 7, Some(7)));
                    facts.marked = true;
                },
                Ok(Delegated::Marked),
            ),
            (
                |facts| (facts.uid, facts.owners) = (7, (7, 0, Some(0))),
                Err(Refused::NotDelegated),
            ),
            (
                |facts| (facts.uid, facts.owners) = (7, (0, 7, Some(0))),
                Err(Refused::NotDelegated),
            ),
            // A bind mount: nobody knows what is above.
            (
                |facts| (facts.uid, facts.owners) = (7, (7, 7, None)),
                Err(Refused::NotDelegated),
            ),
            // That root owns it says nothing.
            (
                |facts| facts.owners = (0, 0, Some(7)),
                Err(Refused::NotDelegated),
            ),
        ];
        for (index, (change, wanted)) in cases.into_iter().enumerate() {
            let mut facts = facts.clone();
            change(&mut facts);
            assert_eq!(decide(&facts), wanted, "{index}");
        }
    }

    #[test]
    fn where_we_are() {
        let hybrid = "9:name=systemd:/x\n4:memory:/y\n0::/a/b c\n";
        assert_eq!(place(hybrid), Some("/a/b c"));
        assert_eq!(place("0::/\n"), Some("/"));
        for nowhere in [
            "",
            "4:memory:/y\n",
            "0::/../a\n",
            "0::/a (deleted)\n",
            "0::\n",
        ] {
            assert_eq!(place(nowhere), None, "{nowhere}");
        }
    }

    #[test]
    fn where_that_is_seen() {
        let text = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            41 31 0:38 /a /mnt/b\\040c rw,relatime shared:1 master:2 - cgroup2 cgroup2 rw,nsdelegate\n\
            42 31 0:38 /../.. /elsewhere rw - cgroup2 none rw\n\
            broken\n";
        let all = mounts(text);
        let paths = |place: &str| -> Vec<String> {
            all.iter()
                .filter_map(|mount| mount.path_of(place))
                .map(|path| path.display().to_string())
                .collect()
        };
        assert_eq!(all.len(), 2);
        assert_eq!(paths("/a/x"), ["/mnt/b c/x"]);
        assert_eq!(paths("/a"), ["/mnt/b c/"]);
        assert!(paths("/ab").is_empty() && paths("/").is_empty());
        assert_eq!(unescaped("a\\134\\9z\\"), Path::new("a\\\\9z\\"));
    }

    #[test]
    fn to_look_changes_nothing() {
        // Wherever the tests run.
        if let Ok(base) = Base::find() {
            assert!(base.holds_us());
        }
    }
}
