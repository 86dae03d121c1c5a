//! A disk of one's own, which can be frozen: what is written to it then hangs in the kernel, as with a
//! file server that is gone, until it is thawed. Needs root, mkfs.ext4 and a loop device.

use crate::{Dir, Run};
use std::path::{Path, PathBuf};

/// A small ext4 in a file, mounted.
#[derive(Debug)]
pub struct Disk {
    dir: Dir,
}

impl Disk {
    /// Makes and mounts one of so many MiB.
    ///
    /// # Panics
    /// It cannot be had.
    #[must_use]
    pub fn new(mib: u32) -> Disk {
        let dir = Dir::new();
        let script = format!(
            "truncate -s {mib}M disk && mkfs.ext4 -q -F disk && mkdir mnt && mount -o loop disk mnt"
        );
        let made = Run::new("sh")
            .args(["-c", &script])
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .dir(dir.path())
            .finish();
        assert_eq!(
            made.status, 0,
            "a disk for a test needs root, mkfs.ext4 and a loop device: {}",
            made.err
        );
        Disk { dir }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// From now on, who writes hangs, in D state.
    ///
    /// # Panics
    /// It cannot be frozen.
    pub fn freeze(&self) {
        let frozen = fsfreeze("-f", &self.path());
        assert_eq!(frozen, 0, "cannot freeze {}", self.path().display());
    }

    /// It goes on.
    pub fn thaw(&self) {
        let _ = fsfreeze("-u", &self.path());
    }
}

fn fsfreeze(how: &str, path: &Path) -> i32 {
    let run = Run::new("fsfreeze").args([how]).args([path]);
    run.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .finish()
        .status
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.thaw();
        // Lazily: a process of the test may not have let go yet.
        let _ = Run::new("umount").args(["-l"]).args([self.path()]).finish();
    }
}
