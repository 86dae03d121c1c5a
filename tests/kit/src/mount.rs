//! File systems that fill up, freeze or become read-only. They need root, and say so.

use crate::{Dir, Run};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::path::{Path, PathBuf};

/// Fails the test without root.
pub fn need_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test mounts file systems or changes users: run it as root"
    );
}

/// A mounted file system, unmounted when dropped.
#[derive(Debug)]
pub struct Mounted {
    path: PathBuf,
    frozen: bool,
    /// What it lies on; unmounted after it.
    below: Option<Box<Mounted>>,
    _dir: Dir,
}

impl Mounted {
    fn on(dir: Dir) -> Mounted {
        let path = dir.path().join("mnt");
        std::fs::create_dir(&path).unwrap();
        Mounted {
            path,
            frozen: false,
            below: None,
            _dir: dir,
        }
    }

    /// A tmpfs of so many bytes.
    #[must_use]
    pub fn tmpfs(bytes: u64) -> Mounted {
        Mounted::tmpfs_with(&format!("size={bytes},mode=0755"))
    }

    /// A tmpfs with these options.
    #[must_use]
    pub fn tmpfs_with(options: &str) -> Mounted {
        need_root();
        let mounted = Mounted::on(Dir::new());
        mount(
            Some("tmpfs"),
            &mounted.path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options),
        )
        .unwrap();
        mounted
    }

    /// An ext4 of 64 MiB in a file.
    #[must_use]
    pub fn ext4() -> Mounted {
        need_root();
        let mounted = Mounted::on(Dir::new());
        let image = mounted._dir.path().join("image");
        std::fs::File::create(&image)
            .unwrap()
            .set_len(64 << 20)
            .unwrap();
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
        for words in [
            vec![
                "mkfs.ext4",
                "-q",
                "-E",
                "lazy_itable_init=0,lazy_journal_init=0",
                image.to_str().unwrap(),
            ],
            vec![
                "mount",
                "-o",
                "loop",
                image.to_str().unwrap(),
                mounted.path.to_str().unwrap(),
            ],
        ] {
            let run = Run::new("/bin/sh")
                .args(["-c", "exec \"$@\"", "sh"])
                .args(&words)
                .env("PATH", &path)
                .finish();
            assert_eq!(run.status, 0, "{words:?}: {}", run.err);
        }
        mounted
    }

    /// An overlay of two directories on a tmpfs: what is made in it lands in [`Mounted::below`].
    #[must_use]
    pub fn overlay() -> Mounted {
        let base = Mounted::tmpfs(64 << 20);
        let mut mounted = Mounted::on(Dir::new());
        let at = |name: &str| base.path.join(name);
        for name in ["lower", "upper", "work"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            at("lower").display(),
            at("upper").display(),
            at("work").display()
        );
        mount(
            Some("overlay"),
            &mounted.path,
            Some("overlay"),
            MsFlags::empty(),
            Some(&*options),
        )
        .unwrap();
        mounted.below = Some(Box::new(base));
        mounted
    }

    /// The upper directory of an overlay.
    #[must_use]
    pub fn below(&self) -> PathBuf {
        self.below.as_ref().unwrap().path.join("upper")
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every write waits from now on.
    pub fn freeze(&mut self) {
        self.fsfreeze("-f");
        self.frozen = true;
    }

    /// They go on.
    pub fn thaw(&mut self) {
        self.fsfreeze("-u");
        self.frozen = false;
    }

    fn fsfreeze(&self, how: &str) {
        let run = Run::new("/usr/sbin/fsfreeze")
            .arg(how)
            .arg(&self.path)
            .finish();
        assert_eq!(run.status, 0, "{}", run.err);
    }

    /// Mounted again, read-only or not.
    pub fn remount(&self, read_only: bool) {
        let mut flags = MsFlags::MS_REMOUNT;
        if read_only {
            flags |= MsFlags::MS_RDONLY;
        }
        mount(None::<&str>, &self.path, None::<&str>, flags, None::<&str>).unwrap();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.frozen {
            self.fsfreeze("-u");
        }
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}
