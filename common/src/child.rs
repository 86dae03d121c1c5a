//! The only place that starts a process, and how one is held: by a pidfd, from the first moment.

use crate::error::is_our_want;
use crate::exit::End;
use crate::sys::{self, Forked, Image, Reap, Step, Which};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::unistd::Pid;
use std::ffi::{CString, OsStr};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// A process that we started and have not reaped yet: its pid cannot be reused while we hold it.
#[derive(Debug)]
pub struct Child {
    pid: i32,
    pidfd: OwnedFd,
    failure: Option<std::fs::File>,
    in_cgroup: bool,
}

/// Why a program did not start although the fork succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartFailure {
    /// The step between fork and exec.
    pub step: Step,
    /// Its errno.
    pub errno: i32,
}

impl StartFailure {
    /// As a sentence about `program`: "execute 'x': no such file or directory".
    #[must_use]
    pub fn describe(&self, program: &OsStr) -> String {
        let what = match self.step {
            Step::Group => "make a process group".to_owned(),
            Step::Descriptors => "hand the descriptors down".to_owned(),
            Step::Directory => "change the directory".to_owned(),
            Step::Limit => "set RLIMIT_NOFILE".to_owned(),
            Step::Identity => "change the user".to_owned(),
            Step::Parent => "watch the master".to_owned(),
            Step::Session => "make a session on its terminal".to_owned(),
            Step::Exec => format!("execute '{}'", program.to_string_lossy()),
        };
        let why = crate::error::describe(&io::Error::from_raw_os_error(self.errno));
        format!("cannot {what}: {why}")
    }
}

impl Child {
    /// Starts `image`.
    ///
    /// # Errors
    /// pipe2(2), fork(2), pidfd_open(2): EAGAIN, ENOMEM, EMFILE.
    pub fn start(image: &Image) -> io::Result<Child> {
        let Forked {
            pid,
            failure,
            in_cgroup,
        } = sys::fork_exec(image)?;
        // It is our child and not reaped: the number still means it, even if it has ended already.
        match sys::pidfd_open(pid) {
            Ok(pidfd) => Ok(Child {
                pid,
                pidfd,
                failure: Some(failure.into()),
                in_cgroup,
            }),
            Err(why) => {
                // Without a pidfd we would have to trust a number later; better none at all.
                let _ =
                    nix::sys::signal::kill(Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
                let _ = nix::sys::wait::waitpid(Pid::from_raw(pid), None);
                Err(why)
            }
        }
    }

    /// A child that the program before us in this very process has started, and nobody has reaped.
    ///
    /// # Errors
    /// pidfd_open(2): ESRCH, EMFILE.
    pub fn again(pid: i32) -> io::Result<Child> {
        Ok(Child {
            pid,
            pidfd: sys::pidfd_open(pid)?,
            failure: None,
            in_cgroup: false,
        })
    }

    /// It was born in [`Image::cgroup`]. What was started where that cannot be told moves there by itself
    /// if it can.
    #[must_use]
    pub fn in_cgroup(&self) -> bool {
        self.in_cgroup
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Signals the process alone. An ended one is no error.
    pub fn signal(&self, signal: i32) {
        let _ = sys::pidfd_send_signal(self.pidfd.as_fd(), signal);
    }

    /// Signals its whole process group. Safe by number: as long as it is not reaped, the number of the
    /// group's leader cannot be given to anybody else.
    pub fn signal_group(&self, signal: i32) {
        if let Ok(signal) = nix::sys::signal::Signal::try_from(signal) {
            // Not yet in its own group right after the fork: then the process itself.
            if nix::sys::signal::killpg(Pid::from_raw(self.pid), signal).is_err() {
                self.signal(signal as i32);
            }
        } else {
            self.signal(signal);
        }
    }

    /// How it ended, without reaping it; `None` while it runs.
    #[must_use]
    pub fn ended(&self) -> Option<End> {
        self.wait(Reap::No)
    }

    /// Reaps it: from now on its number may mean another process, so it is consumed.
    pub fn reap(self) -> Option<End> {
        self.wait(Reap::Yes)
    }

    /// Why the program was never executed, if so. Can be asked once.
    #[must_use]
    pub fn start_failure(&mut self) -> Option<StartFailure> {
        let mut message = [0u8; 5];
        self.failure.as_mut()?.read_exact(&mut message).ok()?;
        let [step, a, b, c, d] = message;
        Some(StartFailure {
            step: Step::from_byte(step)?,
            errno: i32::from_ne_bytes([a, b, c, d]),
        })
    }

    /// Waits until it executes its program or has failed to, for `patience` at most: an exec from a
    /// file system that hangs is not to hold us up.
    pub fn let_execute(&self, patience: Duration) {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let Some(failure) = &self.failure else {
            return;
        };
        let mut fds = [PollFd::new(failure.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(patience).unwrap_or(PollTimeout::ZERO);
        // Interrupted or not: it is only a courtesy.
        let _ = poll(&mut fds, timeout);
    }

    fn wait(&self, reap: Reap) -> Option<End> {
        match sys::wait_id(Which::Pidfd(self.pidfd.as_fd()), reap) {
            Ok(ended) => ended.map(|(_, end)| end),
            // ECHILD: somebody else reaped it; it is gone, and nobody knows how.
            Err(_) => Some(End::Exited(0)),
        }
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// The pid of a child that has ended and is not reaped yet; `None` when there is none. SIGCHLD merges:
/// each wake asks until nothing is left, and reaps what it was told before it asks again.
#[must_use]
pub fn next_ended() -> Option<i32> {
    sys::wait_id(Which::Any, Reap::No)
        .ok()
        .flatten()
        .map(|(pid, _)| pid)
}

/// Why execve(2) would answer E2BIG, if it would: one string of the arguments or the environment may have
/// 32 pages, and all of them together, a pointer for each included, a quarter of the stack's limit, at
/// least 128 KiB and at most 6 MiB (execve(2), "Limits on size of arguments and environment";
/// fs/exec.c, bprm_stack_limits).
#[must_use]
pub fn too_large(image: &Image) -> Option<String> {
    use nix::sys::resource::{Resource, getrlimit};
    use nix::unistd::{SysconfVar, sysconf};
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    let longest = 32
        * page
            .and_then(|page| usize::try_from(page).ok())
            .unwrap_or(4096);
    let strings = || image.arguments.iter().chain(&image.environment);
    let size = |text: &CString| text.as_bytes_with_nul().len();
    if let Some(text) = strings().find(|text| size(text) > longest) {
        let start: String = text.to_string_lossy().chars().take(20).collect();
        let size = size(text);
        return Some(format!(
            "'{start}...' has {size} bytes, and a program takes no more than {longest} in one piece"
        ));
    }
    let stack = getrlimit(Resource::RLIMIT_STACK).map_or(u64::MAX, |(soft, _)| soft);
    let most = (stack / 4).clamp(128 << 10, 6 << 20);
    let all = strings()
        .map(|text| (size(text) + size_of::<usize>()) as u64)
        .sum::<u64>();
    (all > most).then(|| {
        format!(
            "arguments and environment have {all} bytes, and a program takes no more than {most}"
        )
    })
}

/// Reaps a child that nobody knows: an orphan that came to us, the subreaper or PID 1.
pub fn reap_stranger(pid: i32) {
    let _ = sys::wait_id(Which::Pid(pid), Reap::Yes);
}

/// A process that we did not start ourselves, held by a pidfd.
#[derive(Debug)]
pub struct Peer {
    pid: i32,
    pidfd: OwnedFd,
}

impl Peer {
    /// Holds the process that has this pid now. Whether it is the one that is meant is to be looked at
    /// afterwards: from then on the number means no other.
    ///
    /// # Errors
    /// ESRCH, EMFILE.
    pub fn open(pid: i32) -> io::Result<Peer> {
        let pidfd = sys::pidfd_open(pid)?;
        Ok(Peer { pid, pidfd })
    }

    /// A process that is a child of ours, though we did not start it; `None` when it is none (any more).
    #[must_use]
    pub fn of_child(pid: i32) -> Option<Peer> {
        let pidfd = sys::pidfd_open(pid).ok()?;
        let own = std::process::id() as i32;
        stat(pid)
            .is_some_and(|stat| stat.parent == own)
            .then_some(Peer { pid, pidfd })
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Signals it; an ended one is no error.
    pub fn signal(&self, signal: i32) {
        let _ = sys::pidfd_send_signal(self.pidfd.as_fd(), signal);
    }

    /// It still exists (and is no zombie): a pidfd is readable from the end of its process on
    /// (pidfd_open(2)). That needs no descriptor, which may be what is short.
    #[must_use]
    pub fn alive(&self) -> bool {
        let mut asked = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        // An error says nothing about it.
        nix::poll::poll(&mut asked, PollTimeout::ZERO).map_or(true, |ended| ended == 0)
    }
}

impl AsFd for Peer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// What /proc/PID/stat says of family (proc_pid_stat(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// One letter: R, S, D, Z, T ...
    pub state: u8,
    /// Its parent.
    pub parent: i32,
    /// Its process group.
    pub group: i32,
    /// When it was started, in clock ticks since boot: with the pid it names one process for ever.
    pub start: u64,
}

/// Reads /proc/PID/stat; `None` without /proc or when it is gone.
#[must_use]
pub fn stat(pid: i32) -> Option<Stat> {
    read_stat(pid).ok()
}

/// The same, and why it is not to be had.
///
/// # Errors
/// ENOENT or ESRCH: there is no such process, or it is hidden (proc(5), `hidepid`); EMFILE, ENFILE, ENOMEM.
pub fn read_stat(pid: i32) -> io::Result<Stat> {
    let text = std::fs::read(format!("/proc/{pid}/stat"))?;
    parse_stat(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The text of it. The command's name may hold anything, parentheses too: everything counts from the last one.
#[must_use]
pub fn parse_stat(text: &[u8]) -> Option<Stat> {
    let close = text.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(text.get(close + 1..)?).ok()?;
    let mut words = rest.split_ascii_whitespace();
    Some(Stat {
        state: *words.next()?.as_bytes().first()?,
        parent: words.next()?.parse().ok()?,
        group: words.next()?.parse().ok()?,
        // The 22nd field; the group is the fifth.
        start: words.nth(16)?.parse().ok()?,
    })
}

/// More threads and processes than this are not looked at to learn whether a program does something.
const LOOKED_AT: usize = 64;

/// Whether a program does something: one of its threads, or of what it has started, runs, is to run, or waits
/// for a disk (proc_pid_stat(5), proc_pid_task_children(5)). `None` without /proc or when it is gone.
#[must_use]
pub fn at_work(pid: i32) -> Option<bool> {
    let mut processes = vec![pid];
    let mut looked_at = 0;
    while let Some(one) = processes.pop() {
        let Ok(threads) = std::fs::read_dir(format!("/proc/{one}/task")) else {
            if one == pid {
                return None;
            }
            continue;
        };
        for thread in threads.flatten() {
            looked_at += 1;
            if looked_at > LOOKED_AT {
                return Some(true);
            }
            let stat = std::fs::read(thread.path().join("stat")).ok();
            if stat
                .and_then(|text| parse_stat(&text))
                .is_some_and(|stat| matches!(stat.state, b'R' | b'D'))
            {
                return Some(true);
            }
            let children = std::fs::read_to_string(thread.path().join("children"));
            let children = children.unwrap_or_default();
            processes.extend(
                children
                    .split_ascii_whitespace()
                    .filter_map(|word| word.parse::<i32>().ok()),
            );
        }
    }
    Some(false)
}

/// The resident set of a process, in bytes (proc_pid_statm(5)); `None` without /proc or when it is gone.
#[must_use]
pub fn rss(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok()??;
    pages.checked_mul(u64::try_from(size).ok()?)
}

/// How many processes of our own cgroup the kernel has killed for lack of memory: `oom_kill` in
/// memory.events of cgroup v2, or in memory.oom_control of v1; `None` where nobody counts.
#[must_use]
pub fn oom_kills() -> Option<u64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path_of = |controller: &str| {
        own.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            (controllers == controller).then(|| path.trim_start_matches('/').to_owned())
        })
    };
    let files = [
        path_of("").map(|path| format!("/sys/fs/cgroup/{path}/memory.events")),
        path_of("memory").map(|path| format!("/sys/fs/cgroup/memory/{path}/memory.oom_control")),
    ];
    files.iter().flatten().find_map(|file| {
        let text = std::fs::read_to_string(file).ok()?;
        let count = text
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill "))?;
        count.trim().parse().ok()
    })
}

/// What to look for after a process has ended.
#[derive(Clone, Debug)]
pub struct Trace {
    /// The process group that it led.
    pub group: i32,
    /// What the environment of its descendants holds.
    pub marks: Vec<String>,
}

/// What processes left behind.
#[derive(Debug, Default)]
pub struct Leftovers {
    /// Each is held by a pidfd, and was looked at again after that.
    pub peers: Vec<Peer>,
    /// There may be more: descriptors or memory did not suffice to look at all of them (EMFILE, ENFILE, ENOMEM).
    pub more: bool,
}

/// Looks through all processes once, for members of those groups, and for orphans that came to us, the subreaper,
/// and whose environment holds all marks of one.
pub fn leftovers(traces: &[Trace], known: impl Fn(i32) -> bool) -> Leftovers {
    let own = std::process::id() as i32;
    let wanted = |pid: i32| -> io::Result<bool> {
        let stat = read_stat(pid)?;
        if stat.state == b'Z' || known(pid) {
            return Ok(false);
        }
        if traces.iter().any(|trace| trace.group == stat.group) {
            return Ok(true);
        }
        if stat.parent != own {
            return Ok(false);
        }
        let all = std::fs::read(format!("/proc/{pid}/environ"))?;
        Ok(traces.iter().any(|trace| has_all(&all, &trace.marks)))
    };
    let held = |pid: i32| -> io::Result<Option<Peer>> {
        if pid == own || !wanted(pid)? {
            return Ok(None);
        }
        let peer = Peer::open(pid)?;
        Ok(wanted(pid)?.then_some(peer))
    };
    let mut found = Leftovers::default();
    let entries = match std::fs::read_dir("/proc") {
        Ok(entries) => entries,
        Err(why) => {
            found.more = is_our_want(&why);
            return found;
        }
    };
    for pid in entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok()) {
        match held(pid) {
            Ok(peer) => found.peers.extend(peer),
            // Most often it has ended meanwhile.
            Err(why) => found.more |= is_our_want(&why),
        }
    }
    found
}

fn has_all(environment: &[u8], marks: &[String]) -> bool {
    let mut pairs = marks.iter();
    pairs.all(|mark| {
        environment
            .split(|byte| *byte == 0)
            .any(|pair| pair == mark.as_bytes())
    })
}

/// The process is `ancestor` or descends from it, as far as 64 generations.
#[must_use]
pub fn descends(mut pid: i32, ancestor: i32) -> bool {
    for _ in 0..64 {
        if pid == ancestor {
            return true;
        }
        match stat(pid) {
            Some(stat) if stat.parent > 1 => pid = stat.parent,
            _ => return false,
        }
    }
    false
}

/// Where execvp(3) would look for `program`: the path itself if it holds a slash, else each directory
/// of `path` (the child's `PATH`; an empty element is the working directory).
#[must_use]
pub fn candidates(program: &OsStr, path: Option<&OsStr>) -> Vec<CString> {
    let bytes = program.as_bytes();
    if bytes.contains(&b'/') || bytes.is_empty() {
        return CString::new(bytes).into_iter().collect();
    }
    let path = path.map_or(&b"/usr/local/bin:/usr/bin:/bin"[..], OsStr::as_bytes);
    path.split(|byte| *byte == b':')
        .map(|directory| {
            if directory.is_empty() {
                &b"."[..]
            } else {
                directory
            }
        })
        .filter_map(|directory| {
            CString::new(
                Path::new(OsStr::from_bytes(directory))
                    .join(program)
                    .into_os_string()
                    .as_bytes(),
            )
            .ok()
        })
        .collect()
}

/// A pipe for what a child writes: both ends close-on-exec, the read end non-blocking, 1 MiB wide where
/// the kernel grants it.
///
/// # Errors
/// EMFILE.
pub fn output_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    sys::widen_pipe(reader.as_fd(), 1 << 20);
    Ok((reader, writer))
}

/// The raw number, for [`Image::descriptors`].
#[must_use]
pub fn raw(fd: impl AsFd) -> i32 {
    fd.as_fd().as_raw_fd()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_parentheses_does_not_shift_the_fields() {
        let stat = parse_stat(b"12 (a) b (c) S 7 9 9 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 4711 99 1")
            .map(|stat| (stat.state, stat.parent, stat.group, stat.start));
        assert_eq!(stat, Some((b'S', 7, 9, 4711)));
        assert_eq!(parse_stat(b"12 (x"), None);
        assert_eq!(parse_stat(b"12 (x) S 7 9"), None);
        assert_eq!(parse_stat(b""), None);
    }

    #[test]
    fn the_path_is_searched_as_execvp_does() {
        let found = candidates(OsStr::new("node"), Some(OsStr::new("/a::/b")));
        let found: Vec<_> = found
            .iter()
            .map(|path| path.to_string_lossy().into_owned())
            .collect();
        assert_eq!(found, ["/a/node", "./node", "/b/node"]);
        assert_eq!(candidates(OsStr::new("./x"), None), [c"./x".to_owned()]);
    }
}
