//! A temporary directory that goes with its owner.

use std::path::{Path, PathBuf};

/// Removed when dropped. Everybody may enter it, so that workers of other users can.
#[derive(Debug)]
pub struct Dir(PathBuf);

impl Dir {
    /// A new one, empty.
    #[must_use]
    #[allow(clippy::new_without_default)]
    pub fn new() -> Dir {
        use std::os::unix::fs::PermissionsExt;
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let path = std::env::temp_dir().join(format!(
            "nirvana-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        ));
        std::fs::create_dir_all(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Dir(path)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file in it, put there in one step, as a deploy does.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let (new, path) = (self.0.join(format!(".{name}.new")), self.0.join(name));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(&new, &path).unwrap();
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
