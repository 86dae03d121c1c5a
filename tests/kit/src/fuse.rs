//! File systems that behave as those of a network: a client that remembers, a server that hangs.

use crate::mount::need_root;
use crate::{Dir, Run, Running, eventually};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use std::path::{Path, PathBuf};

/// A FUSE mount of a directory, which is its server side.
#[derive(Debug)]
pub struct Fuse {
    path: PathBuf,
    server: PathBuf,
    daemon: Running,
    _dir: Dir,
}

impl Fuse {
    /// bindfs whose client remembers what it has seen for 60 seconds.
    #[must_use]
    pub fn bindfs() -> Fuse {
        Fuse::mounted(|server, path| {
            Run::new("bindfs")
                .args(["-f", "-o", "attr_timeout=60,entry_timeout=60"])
                .arg(server)
                .arg(path)
        })
    }

    /// sshfs, without ssh between: it remembers for 20 seconds, in its own memory.
    #[must_use]
    pub fn sshfs() -> Fuse {
        Fuse::mounted(|server, path| {
            Run::new("socat")
                .arg("EXEC:/usr/lib/openssh/sftp-server")
                .arg(format!(
                    "EXEC:\"sshfs -f -o passive :{} {}\"",
                    server.display(),
                    path.display()
                ))
        })
    }

    fn mounted(how: impl Fn(&Path, &Path) -> Run) -> Fuse {
        need_root();
        let dir = Dir::new();
        let (server, path) = (dir.path().join("server"), dir.path().join("client"));
        std::fs::create_dir(&server).unwrap();
        std::fs::create_dir(&path).unwrap();
        let daemon = how(&server, &path).start();
        let wanted = format!(" {} fuse", path.display());
        eventually("the mount", || {
            let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
            mounts.contains(&wanted).then_some(())
        });
        Fuse {
            path,
            server,
            daemon,
            _dir: dir,
        }
    }

    /// The mount.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its other side, where changes are made behind the client's back.
    #[must_use]
    pub fn server(&self) -> &Path {
        &self.server
    }

    /// The pid of what serves it.
    #[must_use]
    pub fn daemon(&self) -> i32 {
        self.daemon.pid()
    }

    /// The server answers nothing from now on.
    pub fn hang(&mut self) {
        self.daemon.signal(Signal::SIGSTOP);
        let stat = format!("/proc/{}/stat", self.daemon.pid());
        eventually("its stop", || {
            let stat = std::fs::read_to_string(&stat).unwrap();
            stat.contains(") T ").then_some(())
        });
    }

    /// It answers again.
    pub fn resume(&mut self) {
        self.daemon.signal(Signal::SIGCONT);
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        self.daemon.signal(Signal::SIGCONT);
        let _ = umount2(&self.path, MntFlags::MNT_DETACH | MntFlags::MNT_FORCE);
    }
}
