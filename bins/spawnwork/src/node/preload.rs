//! The module that every node worker loads first (drain.cjs), as a file that node can name.

use common::error::{Doing, Result};
use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

const SOURCE: &str = include_str!("drain.cjs");

/// Nobody else decides what stands in it. The variable may have come along from another user's session (su, sudo -E): he
/// could put his own module in the place of ours, and root's workers would load it.
fn is_ours_alone(directory: &Path) -> bool {
    directory.metadata().is_ok_and(|found| {
        found.uid() == nix::unistd::geteuid().as_raw() && found.mode() & 0o022 == 0
    })
}

/// A directory of our own with the module in it; removed with this value, by the process that made it.
///
/// Node resolves a module's real path, so neither a memfd nor /proc/self/fd will do.
#[derive(Debug)]
pub struct Preload {
    directory: PathBuf,
    owner: u32,
}

impl Preload {
    /// Writes the module to $XDG_RUNTIME_DIR, /run or the directory for temporary files. Others may
    /// read it (workers of another user do), and nobody but us can write there.
    ///
    /// # Errors
    /// None of them can be written.
    pub fn write() -> Result<Preload> {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR")
            .map(PathBuf::from)
            .filter(|path| path.is_absolute() && is_ours_alone(path));
        let places = [
            runtime,
            Some(PathBuf::from("/run")),
            Some(std::env::temp_dir()),
        ];
        let mut last = Err(std::io::Error::from(std::io::ErrorKind::NotFound));
        for place in places.into_iter().flatten() {
            // A path with a space cannot be named in NODE_OPTIONS.
            if place.to_string_lossy().contains(char::is_whitespace) {
                continue;
            }
            last = Preload::write_to(&place);
            if last.is_ok() {
                break;
            }
        }
        last.doing("write the preload of node workers (--no-preload does without)")
    }

    fn write_to(place: &Path) -> std::io::Result<Preload> {
        let name = format!(
            "spawnwork-{}-{:08x}",
            std::process::id(),
            common::time::random() as u32
        );
        let directory = place.join(name);
        // mkdir(2) fails on whatever exists, a planted link too.
        DirBuilder::new().mode(0o700).create(&directory)?;
        let preload = Preload {
            directory,
            owner: std::process::id(),
        };
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o444)
            .open(preload.path())?;
        file.write_all(SOURCE.as_bytes())?;
        file.set_permissions(PermissionsExt::from_mode(0o444))?;
        std::fs::set_permissions(&preload.directory, PermissionsExt::from_mode(0o755))?;
        Ok(preload)
    }

    /// The directory of the program before us, with our own module in it: scripts that are still to be
    /// started know its path. Where that was removed meanwhile, a new one.
    ///
    /// # Errors
    /// It cannot be written anywhere.
    pub fn again(directory: PathBuf) -> Result<Preload> {
        let mut preload = Preload {
            directory,
            owner: std::process::id(),
        };
        let replace = || -> std::io::Result<()> {
            let new = preload.directory.join("drain.new");
            let _ = std::fs::remove_file(&new);
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o444)
                .open(&new)?;
            file.write_all(SOURCE.as_bytes())?;
            file.set_permissions(PermissionsExt::from_mode(0o444))?;
            std::fs::rename(&new, preload.path())
        };
        if replace().is_err() {
            // Written anew where it can be; its place is gone or somebody else's.
            preload.owner = 0;
            return Preload::write();
        }
        Ok(preload)
    }

    /// Whoever cleans directories for temporary files, or ends a session and its XDG_RUNTIME_DIR, may have
    /// removed it, and no node starts without a module that it was told to load: then there is a new one, in a
    /// new place, since somebody else may have taken the name meanwhile.
    ///
    /// # Errors
    /// It is gone, and cannot be written anywhere.
    pub fn renew(&mut self) -> Result<()> {
        if !self.is_there() {
            // What lies under the old name by now is not ours to remove.
            self.owner = 0;
            *self = Preload::write()?;
        }
        Ok(())
    }

    fn is_there(&self) -> bool {
        let own = nix::unistd::geteuid().as_raw();
        let ours = std::fs::symlink_metadata(&self.directory)
            .is_ok_and(|found| found.is_dir() && found.uid() == own && found.mode() & 0o022 == 0);
        ours && self.path().is_file()
    }

    /// Where it lies.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The module's path.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.join("drain.cjs")
    }

    /// `NODE_OPTIONS` with the module in front of what the user has there.
    #[must_use]
    pub fn options(path: &str, present: Option<&str>) -> String {
        match present {
            Some(present) if !present.is_empty() => format!("--require={path} {present}"),
            _ => format!("--require={path}"),
        }
    }
}

impl Drop for Preload {
    fn drop(&mut self) {
        if self.owner == std::process::id() {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}
