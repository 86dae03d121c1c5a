//! What a command writes into a file: whole or not at all.

use common::error::{Doing, Result};
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A new file, for its owner alone, that takes its name when it is whole: who reads it never sees half of it.
/// What is no regular file (a FIFO, /dev/stdout, /dev/null) is written to as it is, and never replaced.
#[derive(Debug)]
pub struct Whole {
    path: PathBuf,
    temporary: Option<PathBuf>,
    file: BufWriter<File>,
}

impl Whole {
    /// Begins it.
    ///
    /// # Errors
    /// It cannot be made there.
    pub fn create(path: &Path) -> Result<Whole> {
        let special = path
            .metadata()
            .is_ok_and(|found| !found.file_type().is_file());
        let mut options = OpenOptions::new();
        options.write(true);
        let temporary = if special {
            None
        } else {
            options.create_new(true).mode(0o600);
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".{:08x}", common::time::random() as u32));
            Some(PathBuf::from(name))
        };
        let file = options
            .open(temporary.as_deref().unwrap_or(path))
            .doing(&format!("write {}", path.display()))?;
        Ok(Whole {
            path: path.to_owned(),
            temporary,
            file: BufWriter::new(file),
        })
    }

    /// All of it at once.
    ///
    /// # Errors
    /// As the others'.
    pub fn put(path: &Path, bytes: &[u8]) -> Result<()> {
        let mut file = Whole::create(path)?;
        file.write(bytes)?;
        file.finish()
    }

    /// More of it.
    ///
    /// # Errors
    /// ENOSPC, EIO, and the like.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let doing = format!("write {}", self.path.display());
        self.file.write_all(bytes).doing(&doing)
    }

    /// It is whole.
    ///
    /// # Errors
    /// ENOSPC, EIO, and the like.
    pub fn finish(mut self) -> Result<()> {
        let doing = format!("write {}", self.path.display());
        self.file.flush().doing(&doing)?;
        match &self.temporary {
            Some(temporary) => std::fs::rename(temporary, &self.path).doing(&doing),
            None => Ok(()),
        }
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        // After a rename there is nothing of that name.
        if let Some(temporary) = &self.temporary {
            let _ = std::fs::remove_file(temporary);
        }
    }
}
