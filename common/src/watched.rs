//! Another program's process, named by a number or a pid file: held by a pidfd, looked at before it is
//! trusted, and never signalled by a bare number.

use crate::child::{Peer, read_stat, stat};
use crate::error::{describe, is_our_want};
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A pid file may be that much older than its process: the service writes it as one of its first acts,
/// and the kernel counts a start in clock ticks since a boot time that it knows to the second.
const SLACK: Duration = Duration::from_secs(2);

/// Where a pid comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// `--pid`
    Number(i32),
    /// `--pid-file`
    File(PathBuf),
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Number(pid) => write!(formatter, "pid {pid}"),
            Name::File(path) => write!(formatter, "{}", path.display()),
        }
    }
}

/// Why a process was not found, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfound {
    /// No pid file, no number in it, pid 1, no such process, or a process that began after the pid file was
    /// written, so that its number has been used again.
    Gone(String),
    /// For lack of descriptors or memory of our own, or of rights, nobody could look: nothing is known of it.
    Unseen(String),
}

impl Unfound {
    /// What an error on `what` means.
    fn new(what: impl fmt::Display, why: &io::Error) -> Unfound {
        let text = format!("{what}: {}", describe(why));
        if is_our_want(why) {
            Unfound::Unseen(text)
        } else {
            Unfound::Gone(text)
        }
    }

    /// The same, of a pid that stands in a file.
    fn in_file(self, path: &Path) -> Unfound {
        let more = |why: String| format!("{}: {why}", path.display());
        match self {
            Unfound::Gone(why) => Unfound::Gone(more(why)),
            Unfound::Unseen(why) => Unfound::Unseen(more(why)),
        }
    }
}

impl fmt::Display for Unfound {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfound::Gone(why) | Unfound::Unseen(why) => formatter.write_str(why),
        }
    }
}

/// A process that is the one that was meant, as far as anybody can tell.
#[derive(Debug)]
pub struct Watched {
    peer: Peer,
    start: u64,
}

impl Watched {
    /// Finds the process of a name, holds it, and then looks whether it is the one that is meant.
    ///
    /// # Errors
    /// Each of [`Unfound`].
    pub fn find(name: &Name) -> Result<Watched, Unfound> {
        match name {
            Name::Number(pid) => Watched::hold(*pid),
            Name::File(path) => Watched::of_file(path),
        }
    }

    /// Holds a process by its number.
    ///
    /// # Errors
    /// [`Unfound`]: pid 1 or less, no such process, a zombie; or it could not be looked at.
    pub fn hold(pid: i32) -> Result<Watched, Unfound> {
        if pid <= 1 {
            let why = format!("pid {pid} is refused: nobody means that one");
            return Err(Unfound::Gone(why));
        }
        let peer = Peer::open(pid).map_err(|why| match why.raw_os_error() {
            Some(libc::ESRCH | libc::EINVAL) => Unfound::Gone(format!("no process has pid {pid}")),
            _ => Unfound::new(format_args!("pid {pid}"), &why),
        })?;
        let stat = read_stat(pid);
        if !peer.alive() {
            return Err(Unfound::Gone(format!("pid {pid} has ended")));
        }
        match stat {
            Ok(stat) => Ok(Watched {
                peer,
                start: stat.start,
            }),
            Err(why) => Err(Unfound::Unseen(format!(
                "pid {pid}: /proc/{pid}/stat: {}",
                describe(&why)
            ))),
        }
    }

    fn of_file(path: &Path) -> Result<Watched, Unfound> {
        let pid = pid_in(path)?;
        let written = std::fs::metadata(path).map_err(|why| Unfound::new(path.display(), &why))?;
        if !written.is_file() {
            let why = format!("{}: it is no regular file", path.display());
            return Err(Unfound::Gone(why));
        }
        let watched = Watched::hold(pid).map_err(|why| why.in_file(path))?;
        // Anything that makes the file look older than it is has us refuse, which hurts nobody.
        let written = Duration::new(
            u64::try_from(written.mtime()).unwrap_or(0),
            u32::try_from(written.mtime_nsec()).unwrap_or(0),
        );
        match watched.started() {
            Some(started) if started > written + SLACK => Err(Unfound::Gone(format!(
                "{}: pid {pid} was given to another process after the file was written",
                path.display()
            ))),
            Some(_) | None => Ok(watched),
        }
    }

    /// When it was started, since 1970; `None` without /proc.
    fn started(&self) -> Option<Duration> {
        let text = std::fs::read_to_string("/proc/uptime").ok()?;
        let uptime: f64 = text.split_ascii_whitespace().next()?.parse().ok()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
        let since_boot = self.start as f64 / ticks as f64;
        let age = Duration::try_from_secs_f64(uptime - since_boot).unwrap_or_default();
        Some(now.saturating_sub(age))
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.peer.pid()
    }

    /// In clock ticks since boot: with the pid it names one process for ever.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.start
    }

    /// It exists, and is no zombie.
    #[must_use]
    pub fn alive(&self) -> bool {
        self.peer.alive()
    }

    /// Signals it through its pidfd.
    ///
    /// # Errors
    /// ESRCH when it has ended, EPERM.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        use std::os::fd::AsFd;
        crate::sys::pidfd_send_signal(self.peer.as_fd(), signal)
    }
}

/// The number that stands in a pid file.
///
/// # Errors
/// [`Unfound`]: no file, no number; or it could not be looked at.
pub fn pid_in(path: &Path) -> Result<i32, Unfound> {
    let text = read_start(path).map_err(|why| Unfound::new(path.display(), &why))?;
    text.trim()
        .parse()
        .map_err(|_| Unfound::Gone(format!("{}: no pid stands there", path.display())))
}

/// The line with the number is never longer, in bytes.
const LONGEST: usize = 64;

/// The first line of a file that holds a number; nothing where that is too long, for a number that is cut short
/// is another one. What stands behind it, as in PostgreSQL's, is not looked at, and need not be text.
fn read_start(path: &Path) -> io::Result<String> {
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;
    let mut bytes = Vec::new();
    // A fifo must not hold us up, nor a file that never ends.
    std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?
        .take(LONGEST as u64 + 1)
        .read_to_end(&mut bytes)?;
    let line = bytes.split(|byte| *byte == b'\n').next();
    let line = line.filter(|line| line.len() <= LONGEST);
    Ok(String::from_utf8_lossy(line.unwrap_or_default()).into_owned())
}

/// The pids of a process's children, of all its threads (proc_pid_task_children(5)); where the kernel does
/// not list them, all processes are asked for their parent.
#[must_use]
pub fn children(pid: i32) -> Vec<i32> {
    let mut list = Vec::new();
    let mut listed = false;
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        if let Ok(text) = std::fs::read_to_string(entry.path().join("children")) {
            listed = true;
            list.extend(
                text.split_ascii_whitespace()
                    .filter_map(|word| word.parse::<i32>().ok()),
            );
        }
    }
    if !listed {
        let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        list = all
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .filter(|other| stat(*other).is_some_and(|stat| stat.parent == pid))
            .collect();
    }
    list.sort_unstable();
    list
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]
mod tests {
    use super::*;

    #[test]
    fn who_is_meant_and_who_is_not() {
        let own = std::process::id() as i32;
        assert_eq!(Watched::hold(own).unwrap().pid(), own);
        for pid in [1, 0, -1] {
            assert!(
                Watched::hold(pid)
                    .unwrap_err()
                    .to_string()
                    .contains("refused")
            );
        }
        // No pid is as high as that (proc_sys_kernel(5)).
        assert!(
            Watched::hold(2_000_000_000)
                .unwrap_err()
                .to_string()
                .contains("no process")
        );
        let directory = std::env::temp_dir().join(format!("watched-{own}"));
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join("pid");
        let name = Name::File(file.clone());
        assert!(
            Watched::find(&name)
                .unwrap_err()
                .to_string()
                .contains("no such file")
        );
        for (text, part) in [
            ("", "no pid"),
            ("x\n", "no pid"),
            ("1\n", "refused"),
            ("-7", "refused"),
        ] {
            std::fs::write(&file, text).unwrap();
            assert!(
                Watched::find(&name).unwrap_err().to_string().contains(part),
                "{text:?}"
            );
        }
        std::fs::write(&file, format!(" {own}\n")).unwrap();
        assert_eq!(Watched::find(&name).unwrap().pid(), own);
        // Lines behind it may hold anything; a number beyond what is read is none, not the half of one.
        std::fs::write(&file, [format!("{own}\n").as_bytes(), &[0xc3; 80]].concat()).unwrap();
        assert_eq!(pid_in(&file), Ok(own));
        std::fs::write(&file, format!("{}{own}", " ".repeat(62))).unwrap();
        assert!(pid_in(&file).unwrap_err().to_string().contains("no pid"));
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn children_are_found() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        assert!(children(std::process::id() as i32).contains(&(child.id() as i32)));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
