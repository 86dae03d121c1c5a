//! Files: who is who, and the pid file.

use crate::error::{Doing, Error, Result};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What makes a file the same file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Its device.
    pub dev: u64,
    /// Its inode.
    pub ino: u64,
}

/// The identity of what stands at `path` (a link itself, not what it points to).
///
/// # Errors
/// Those of lstat(2).
pub fn identity(path: &Path) -> io::Result<Identity> {
    let found = std::fs::symlink_metadata(path)?;
    Ok(Identity {
        dev: found.dev(),
        ino: found.ino(),
    })
}

/// The identity of an open file.
///
/// # Errors
/// Those of fstat(2).
pub fn fd_identity(fd: impl AsFd) -> io::Result<Identity> {
    let found = nix::sys::stat::fstat(fd)?;
    Ok(Identity {
        dev: found.st_dev,
        ino: found.st_ino,
    })
}

/// A pid file, locked for as long as this value lives. It never stands there half written, and its
/// lock, not its number, says whether its process lives.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    file: Flock<File>,
    owner: u32,
}

impl PidFile {
    /// Writes our pid to `path`, by way of a temporary name. A stale file is taken over.
    ///
    /// # Errors
    /// Another process holds it (named), it is no regular file, or the directory cannot be written.
    pub fn create(path: &Path) -> Result<PidFile> {
        let doing = format!("take the pid file {}", path.display());
        // A process that was killed between fork(2) and exec(2) of a child has left its lock there, for as
        // long as the child takes.
        let patience = Instant::now() + Duration::from_secs(1);
        // Two that start at once and both find a stale file: the second to lock finds that the path
        // leads elsewhere by then, and looks again.
        let mut turns = 0;
        while turns < 10 {
            turns += 1;
            let present = match OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
                .open(path)
            {
                // A device (/dev/null) or a FIFO would be replaced by ours, and be gone at the end.
                Ok(file) if !file.metadata().is_ok_and(|found| found.is_file()) => {
                    return Err(Error::new(
                        &doing,
                        "it is no regular file; a file that may be replaced would do",
                    ));
                }
                Ok(file) => match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                    Ok(locked) => {
                        if identity(path).ok() != fd_identity(&*locked).ok() {
                            continue;
                        }
                        Some(locked)
                    }
                    Err((_, nix::Error::EWOULDBLOCK)) => {
                        let pid = std::fs::read_to_string(path).unwrap_or_default();
                        if is_gone(pid.trim()) && Instant::now() < patience {
                            let _ = nix::poll::poll(&mut [], 10u8);
                            turns -= 1;
                            continue;
                        }
                        return Err(Error::new(&doing, format!("pid {} holds it", pid.trim())));
                    }
                    Err((_, why)) => {
                        return Err(Error::new(&doing, crate::error::describe(&why.into())));
                    }
                },
                Err(why) if why.kind() == io::ErrorKind::NotFound => None,
                Err(why) => return Err(Error::new(&doing, crate::error::describe(&why))),
            };
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push(format!(".{:08x}", crate::time::random() as u32));
            let temporary = path.with_file_name(name);
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o644)
                .open(&temporary)
                .doing(&doing)?;
            let written = writeln!(file, "{}", std::process::id());
            let locked = Flock::lock(file, FlockArg::LockExclusiveNonblock);
            let placed = match (&present, written) {
                (_, Err(why)) => Err(why),
                // Over the stale one, whose lock we have: nobody else can be doing the same.
                (Some(_), Ok(())) => std::fs::rename(&temporary, path),
                // link(2) refuses what has come there meanwhile.
                (None, Ok(())) => std::fs::hard_link(&temporary, path),
            };
            let _ = std::fs::remove_file(&temporary);
            match (placed, locked) {
                (Ok(()), Ok(file)) => {
                    return Ok(PidFile {
                        path: path.to_owned(),
                        file,
                        owner: std::process::id(),
                    });
                }
                (Err(why), _) if why.kind() == io::ErrorKind::AlreadyExists => {}
                (Err(why), _) => return Err(Error::new(&doing, crate::error::describe(&why))),
                (_, Err((_, why))) => {
                    return Err(Error::new(&doing, crate::error::describe(&why.into())));
                }
            }
        }
        Err(Error::new(&doing, "others take it again and again"))
    }
}

/// The number is that of no process, or of one that has ended and is not reaped.
fn is_gone(pid: &str) -> bool {
    let Ok(pid) = pid.parse::<i32>() else {
        return false;
    };
    match nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None) {
        Err(nix::Error::ESRCH) => true,
        Ok(()) | Err(_) => crate::child::stat(pid).is_some_and(|stat| stat.state == b'Z'),
    }
}

impl PidFile {
    /// The one at `path` that the program before us in this very process had locked, by way of `fd`.
    ///
    /// # Errors
    /// It is not locked by that.
    pub fn again(path: &Path, fd: OwnedFd) -> Result<PidFile> {
        let doing = format!("keep the pid file {}", path.display());
        match Flock::lock(File::from(fd), FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(PidFile {
                path: path.to_owned(),
                file,
                owner: std::process::id(),
            }),
            Err((_, why)) => Err(Error::new(&doing, crate::error::describe(&why.into()))),
        }
    }
}

impl AsFd for PidFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let ours = self.owner == std::process::id()
            && identity(&self.path).ok() == fd_identity(&*self.file).ok();
        if ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_of_one_who_is_gone_is_waited_for() {
        let directory = std::env::temp_dir().join(format!("pidfile-gone-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("a.pid");
        // No pid is as high as that (proc_sys_kernel(5)).
        std::fs::write(&path, "2000000000\n").unwrap();
        let child = Flock::lock(File::open(&path).unwrap(), FlockArg::LockExclusiveNonblock);
        let thread = std::thread::spawn(move || {
            let _ = nix::poll::poll(&mut [], 100u8);
            drop(child);
        });
        assert!(PidFile::create(&path).is_ok());
        thread.join().unwrap();
        let _other = Flock::lock(
            {
                std::fs::write(&path, "1\n").unwrap();
                File::open(&path).unwrap()
            },
            FlockArg::LockExclusiveNonblock,
        );
        assert!(PidFile::create(&path).is_err());
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn one_at_a_time_and_a_stale_one_is_no_hindrance() {
        let directory = std::env::temp_dir().join(format!("pidfile-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("a.pid");
        std::fs::write(&path, "1\n").unwrap();
        let first = PidFile::create(&path).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap().trim(),
            std::process::id().to_string()
        );
        let refused = PidFile::create(&path).unwrap_err();
        assert!(
            refused
                .message
                .contains(&format!("pid {} holds it", std::process::id())),
            "{refused}"
        );
        // Replaced by somebody else: not ours to remove.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "2\n").unwrap();
        drop(first);
        assert!(path.exists());
        let again = PidFile::create(&path).unwrap();
        drop(again);
        assert!(!path.exists());
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
        std::fs::remove_dir_all(directory).unwrap();
    }
}
