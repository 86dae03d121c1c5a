//! On which kind of file system a directory lies, and what that means for watching it.

use nix::sys::statfs::statfs;
use std::collections::HashMap;
use std::path::Path;

/// How changes on a file system are learned of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// inotify sees them.
    Local,
    /// inotify sees what goes through the mount, not what is changed in a layer under it.
    Layered,
    /// inotify sees none that another machine makes, or the daemon behind a FUSE mount, or the kernel.
    Remote,
}

/// By `f_type` of statfs(2): linux/magic.h, and coreutils' stat.c for those that are not in the kernel.
#[must_use]
pub fn class_of(magic: u32) -> Class {
    match magic {
        0x794C_7630 => Class::Layered, // overlay
        0x6969                         // NFS
        | 0x517B                       // SMB
        | 0xFF53_4D42                  // CIFS
        | 0xFE53_4D42                  // SMB2
        | 0x6573_5546                  // FUSE: sshfs, glusterfs, s3fs, bindfs; virtiofs
        | 0x0102_1997                  // 9p
        | 0x00C3_6400                  // ceph
        | 0x5346_414F                  // AFS
        | 0x6B41_4653                  // kAFS
        | 0x7375_7245                  // coda
        | 0x564C                       // NCP
        | 0x7461_636F                  // OCFS2
        | 0x0BD0_0BD0                  // Lustre
        | 0x4750_4653                  // GPFS
        | 0x0116_1970                  // GFS2
        | 0x786F_4256                  // vboxsf
        | 0x0187                       // autofs, not triggered yet
        | 0x9FA0                       // proc
        | 0x6265_6572                  // sysfs
        | 0x0027_E0EB                  // cgroup
        | 0x6367_7270 => Class::Remote, // cgroup2
        _ => Class::Local,
    }
}

/// The classes of devices that were asked for already: on a network file system that is a question to
/// the server.
#[derive(Debug, Default)]
pub struct Places(HashMap<u64, Class>);

impl Places {
    /// The class of the file system with device `dev`, on which `directory` lies.
    pub fn class(&mut self, dev: u64, directory: &Path) -> Class {
        if let Some(class) = self.0.get(&dev) {
            return *class;
        }
        match statfs(directory) {
            Ok(found) => {
                let class = class_of(found.filesystem_type().0 as u32);
                self.0.insert(dev, class);
                class
            }
            // It cannot be asked for (any more): looking is right for every one.
            Err(_) => Class::Remote,
        }
    }

    /// The numbers may mean other file systems by now.
    pub fn forget(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_inotify_is_to_be_trusted() {
        for (magic, class) in [
            (0xEF53, Class::Local),        // ext4
            (0x0102_1994, Class::Local),   // tmpfs
            (0x5846_5342, Class::Local),   // xfs
            (0x9123_683E, Class::Local),   // btrfs
            (0x794C_7630, Class::Layered), // overlay
            (0x6969, Class::Remote),
            (0x6573_5546, Class::Remote),
            (0xFF53_4D42, Class::Remote),
        ] {
            assert_eq!(class_of(magic), class, "{magic:x}");
        }
    }
}
