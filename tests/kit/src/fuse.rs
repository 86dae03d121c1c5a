//! File systems that behave as those of a network: a client that remembers, a server that hangs.

use crate::faults::Faults;
use crate::mount::need_root;
use crate::{Dir, Run, Running, eventually};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A FUSE mount of a directory, which is its server side.
#[derive(Debug)]
pub struct Fuse {
    path: PathBuf,
    server: PathBuf,
    control: PathBuf,
    waiting: PathBuf,
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

    /// bindfs that remembers little and whose own calls fail when that is wanted: what it is refused is what its
    /// clients get from their file system. They are those of `bindfs`: openat, pwrite64, fsync, rename, link, newfstatat
    /// and others.
    #[must_use]
    pub fn faulty(faults: &Faults) -> Fuse {
        Fuse::mounted(|server, path| {
            faults
                .run("bindfs")
                .args(["-f", "-o", "attr_timeout=0,entry_timeout=0"])
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
        // How many requests are on their way: Documentation/filesystems/fuse/fuse.rst, "Control filesystem".
        let control = dir.path().join("control");
        std::fs::create_dir(&control).unwrap();
        let none = None::<&str>;
        mount(none, &control, Some("fusectl"), MsFlags::empty(), none).unwrap();
        let connection = nix::sys::stat::minor(path.metadata().unwrap().dev());
        Fuse {
            waiting: control.join(connection.to_string()).join("waiting"),
            control,
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

    /// The server answers nothing from now on. It has nothing in its hands: a client whose request it had read
    /// already could not even be killed, so none is.
    pub fn hang(&mut self) {
        let stat = format!("/proc/{}/stat", self.daemon.pid());
        eventually("a moment without a request", || {
            self.daemon.signal(Signal::SIGSTOP);
            eventually("its stop", || {
                let stat = std::fs::read_to_string(&stat).unwrap();
                stat.contains(") T ").then_some(())
            });
            let waiting = std::fs::read_to_string(&self.waiting).unwrap();
            if waiting.trim() == "0" {
                return Some(());
            }
            self.daemon.signal(Signal::SIGCONT);
            None
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
        let _ = umount2(&self.control, MntFlags::MNT_DETACH);
    }
}
