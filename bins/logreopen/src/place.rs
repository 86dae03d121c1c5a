//! Where a file is, and how it is opened: by appending only, never waiting for a FIFO's reader, and made
//! with its mode and owner where there is none.

use common::error::describe;
use common::file::{Identity, fd_identity};
use nix::fcntl::{AtFlags, FlockArg, OFlag};
use nix::sys::stat::{Mode, SFlag};
use nix::unistd::{Gid, Uid};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

/// Whether others may write the file too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Those who only append, as we do.
    Shared,
    /// Nobody who is asked: we rotate it.
    Exclusive,
}

/// A file by its path, and what is to be known when it is made.
#[derive(Clone, Debug)]
pub struct Place {
    /// As it was given.
    pub path: PathBuf,
    /// Of a file that is made.
    pub mode: u32,
    /// Of a file or directory that is made: uid and gid.
    pub owner: Option<(u32, u32)>,
    /// Missing directories are made.
    pub mkdir: bool,
    /// See [`Lock`].
    pub lock: Lock,
    /// We are root and going to be somebody else: a symbolic link in a directory that others can write
    /// is not followed.
    pub wary: bool,
}

/// What was opened.
#[derive(Debug)]
pub struct Opened {
    /// For appending.
    pub file: File,
    /// Who it is.
    pub identity: Identity,
    /// A regular file: it can be moved, truncated and full.
    pub regular: bool,
    /// It was not there before.
    pub made: bool,
    /// It is on a file system where other machines may move it, unseen by inotify(7).
    pub remote: bool,
    /// It does not end with a newline.
    pub ragged: bool,
    /// Its length in bytes.
    pub size: u64,
}

/// The directory that a path stands in.
#[must_use]
pub fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

impl Place {
    /// Opens it, or makes it.
    ///
    /// # Errors
    /// Those of open(2); EISDIR for a directory, ENXIO for a socket or a FIFO that nobody reads.
    pub fn open(&self) -> io::Result<Opened> {
        let mut flags = OFlag::O_WRONLY
            | OFlag::O_APPEND
            | OFlag::O_CLOEXEC
            | OFlag::O_NONBLOCK
            | OFlag::O_NOCTTY;
        // As root nothing is done by a path that somebody else may bend on the way.
        let walked = if self.wary { Some(self.walk()?) } else { None };
        let (at, name) = match (&walked, self.path.file_name()) {
            (Some(directory), Some(name)) => {
                if others_decide(directory) {
                    flags |= OFlag::O_NOFOLLOW;
                }
                (directory.as_fd(), Path::new(name))
            }
            _ => (nix::fcntl::AT_FDCWD, &*self.path),
        };
        let mut tries = 0;
        let (file, made) = loop {
            tries += 1;
            match nix::fcntl::openat(at, name, flags, Mode::empty()) {
                Ok(fd) => break (File::from(fd), false),
                Err(nix::Error::ENOENT) if tries < 10 => {}
                Err(why) => return Err(why.into()),
            }
            // A link that leads nowhere is made where it leads, which O_EXCL would refuse.
            let dangling = !flags.contains(OFlag::O_NOFOLLOW)
                && self
                    .path
                    .symlink_metadata()
                    .is_ok_and(|found| found.is_symlink());
            let make = flags
                | OFlag::O_CREAT
                | if dangling {
                    OFlag::empty()
                } else {
                    OFlag::O_EXCL
                };
            let mode = Mode::from_bits_truncate(self.mode & 0o600);
            match nix::fcntl::openat(at, name, make, mode) {
                Ok(fd) => break (File::from(fd), true),
                // Somebody made it in this moment.
                Err(nix::Error::EEXIST) => {}
                Err(nix::Error::ENOENT) if self.mkdir && tries == 1 => self.make_directories()?,
                Err(why) => return Err(why.into()),
            }
        };
        if made {
            // Whatever the umask: this mode was asked for.
            file.set_permissions(std::fs::Permissions::from_mode(self.mode))?;
            if let Some((uid, gid)) = self.owner {
                nix::unistd::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
            }
        }
        let found = file.metadata()?;
        if found.file_type().is_block_device() {
            return Err(io::Error::from_raw_os_error(nix::libc::ENOTSUP));
        }
        let regular = found.is_file();
        Ok(Opened {
            identity: fd_identity(&file)?,
            regular,
            made,
            remote: regular && is_remote(&file),
            ragged: regular && found.len() > 0 && !ends_with_newline(&file, found.len()),
            size: found.len(),
            file,
        })
    }

    /// Its directory, opened by way of its parents, so that it is the one that was looked at: a link in a
    /// directory that others can write leads nowhere. Missing ones are made, if that is wished.
    fn walk(&self) -> io::Result<File> {
        let directory = directory_of(&self.path);
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let start = if directory.is_absolute() { "/" } else { "." };
        let start = nix::fcntl::open(start, flags | OFlag::O_PATH, Mode::empty())?;
        let (mut at, mut made) = (File::from(start), Vec::new());
        for part in directory.components() {
            let name = match part {
                Component::Normal(name) => name,
                Component::ParentDir => OsStr::new(".."),
                Component::Prefix(_) | Component::RootDir | Component::CurDir => continue,
            };
            let follow = if others_decide(&at) {
                OFlag::O_NOFOLLOW
            } else {
                OFlag::empty()
            };
            let next = match nix::fcntl::openat(
                &at,
                name,
                flags | OFlag::O_PATH | follow,
                Mode::empty(),
            ) {
                Ok(next) => File::from(next),
                Err(nix::Error::ENOENT) if self.mkdir => {
                    match nix::sys::stat::mkdirat(&at, name, Mode::from_bits_truncate(0o750)) {
                        Ok(()) => {
                            let open = opened_directory(&at, name)?;
                            made.push(open.try_clone()?);
                            open
                        }
                        // Somebody made it in this moment.
                        Err(nix::Error::EEXIST) => File::from(nix::fcntl::openat(
                            &at,
                            name,
                            flags | OFlag::O_PATH | follow,
                            Mode::empty(),
                        )?),
                        Err(why) => return Err(why.into()),
                    }
                }
                // What open(2) says of a link that is not followed where a directory is wanted.
                Err(nix::Error::ENOTDIR) if !follow.is_empty() && is_link(&at, name) => {
                    return Err(nix::Error::ELOOP.into());
                }
                Err(why) => return Err(why.into()),
            };
            at = next;
        }
        self.give(&made)?;
        Ok(at)
    }

    /// What was made, to whoever owns the file. Only when all is made: who owns a directory could put
    /// something else in the place of the next one.
    fn give(&self, made: &[File]) -> io::Result<()> {
        if let Some((uid, gid)) = self.owner {
            for open in made {
                nix::unistd::fchown(open, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
            }
        }
        Ok(())
    }

    /// The missing directories, for whoever owns the file.
    fn make_directories(&self) -> io::Result<()> {
        let mut missing = Vec::new();
        let mut at = directory_of(&self.path);
        while !at.exists() {
            missing.push(at);
            at = directory_of(at);
        }
        let mut made = Vec::new();
        for directory in missing.into_iter().rev() {
            match std::fs::DirBuilder::new().mode(0o750).create(directory) {
                Err(why) if why.kind() == io::ErrorKind::AlreadyExists => continue,
                done => done?,
            }
            made.push(opened_directory(nix::fcntl::AT_FDCWD, directory)?);
        }
        self.give(&made)
    }

    /// Takes the lock that the file is to have.
    ///
    /// # Errors
    /// Another program rotates it, or writes it while we want to.
    pub fn lock(&self, file: &File) -> io::Result<()> {
        let how = match self.lock {
            Lock::Shared => FlockArg::LockSharedNonblock,
            Lock::Exclusive => FlockArg::LockExclusiveNonblock,
        };
        // The owned lock of the library unlocks when it is dropped; this one goes with the descriptor.
        #[allow(deprecated)]
        match nix::fcntl::flock(file.as_raw_fd(), how) {
            Err(nix::Error::EWOULDBLOCK) if self.lock == Lock::Exclusive => Err(io::Error::other(
                "another program writes it and would lose lines by our rotation (flock)",
            )),
            // Where there are no locks (some network file systems), nobody is kept out.
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// What is wrong with opening `path`, and what cures it.
#[must_use]
pub fn explain(path: &Path, why: &io::Error) -> String {
    let cause = describe(why);
    match why.raw_os_error() {
        Some(nix::libc::ENOENT) if !directory_of(path).exists() => {
            match path
                .ancestors()
                .skip(1)
                .find(|part| part.is_symlink() && !part.exists())
            {
                // No --mkdir makes what a link of somebody's is meant to lead to.
                Some(link) => format!("{cause} (the link {} leads nowhere)", link.display()),
                None => format!("{cause} (its directory is missing; --mkdir makes it)"),
            }
        }
        Some(nix::libc::ENXIO) if is_socket(path) => "it is a socket".to_owned(),
        Some(nix::libc::ENXIO) => "nobody reads it".to_owned(),
        Some(nix::libc::ELOOP) => format!(
            "{cause} (a symbolic link in a directory that others can write is not followed as root)"
        ),
        Some(nix::libc::ENOTSUP) => "it is a block device".to_owned(),
        _ => cause,
    }
}

/// A FIFO that nobody reads is like a full disk: it is waited for.
#[must_use]
pub fn may_come(path: &Path, why: &io::Error) -> bool {
    why.raw_os_error() == Some(nix::libc::ENXIO)
        && path
            .metadata()
            .is_ok_and(|found| found.file_type().is_fifo())
}

fn is_socket(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|found| found.file_type().is_socket())
}

/// Somebody else than root may put names into the directory.
fn others_decide(directory: &File) -> bool {
    directory
        .metadata()
        .is_ok_and(|found| found.uid() != 0 || found.mode() & 0o022 != 0)
}

fn is_link(at: impl AsFd, name: &OsStr) -> bool {
    nix::sys::stat::fstatat(at, name, AtFlags::AT_SYMLINK_NOFOLLOW)
        .is_ok_and(|found| found.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFLNK.bits())
}

/// The directory that was just made, with the mode that it is to have whatever the umask; not what somebody may have put
/// in its place, a link above all.
fn opened_directory(at: impl AsFd, name: impl AsRef<Path>) -> io::Result<File> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let open = File::from(nix::fcntl::openat(at, name.as_ref(), flags, Mode::empty())?);
    open.set_permissions(std::fs::Permissions::from_mode(0o750))?;
    Ok(open)
}

/// Unreadable: then nobody knows, and no newline is added.
fn ends_with_newline(file: &File, size: u64) -> bool {
    let mut last = [0u8; 1];
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .and_then(|file| file.read_exact_at(&mut last, size - 1))
        .is_err()
        || last == *b"\n"
}

/// File systems that other machines, or a program, have their hands in (linux/magic.h; f_type of
/// statfs(2)).
fn is_remote(file: &File) -> bool {
    const REMOTE: [u32; 9] = [
        0x6969,      // NFS
        0x517b,      // SMB
        0xff53_4d42, // CIFS
        0xfe53_4d42, // SMB2
        0x6573_5546, // FUSE
        0x0102_1997, // 9p
        0x00c3_6400, // Ceph
        0x5346_414f, // AFS
        0x7375_7245, // Coda
    ];
    nix::sys::statfs::fstatfs(file).is_ok_and(|found| {
        // The kernel's type is as wide as a long; the numbers are 32 bits of it.
        let kind = found.filesystem_type().0 as u32;
        REMOTE.contains(&kind)
    })
}
