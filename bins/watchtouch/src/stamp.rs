//! `--since`: what was acted upon last, kept over restarts. Written by a thread of its own, for the stamp
//! may lie on a file system that hangs.

use crate::notice::lock;
use crate::signature::{Seen, Signature};
use common::error::describe;
use nix::sys::eventfd::EventFd;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// What stands in the first line.
const HEAD: &str = "watchtouch-stamp 1";
/// A stamp is never longer.
const LONGEST: u64 = 4 << 20;

/// One file and what was acted upon.
pub type Entry = (PathBuf, Seen);

/// The text of a stamp. Paths are in hexadecimal, whatever bytes they have.
#[must_use]
pub fn text(entries: &[Entry]) -> String {
    let mut text = format!("{HEAD}\n");
    for (path, seen) in entries {
        // Writing to a string does not fail.
        match seen {
            Seen::Missing => text.push_str("missing"),
            Seen::There(found) => {
                let (seconds, nanoseconds) = found.mtime;
                let _ = write!(
                    text,
                    "there {} {} {} {seconds}.{nanoseconds} {}.{}",
                    found.dev, found.ino, found.size, found.ctime.0, found.ctime.1
                );
                match found.btime {
                    Some((seconds, nanoseconds)) => {
                        let _ = write!(text, " {seconds}.{nanoseconds}");
                    }
                    None => text.push_str(" -"),
                }
            }
        }
        text.push(' ');
        for byte in path.as_os_str().as_bytes() {
            let _ = write!(text, "{byte:02x}");
        }
        text.push('\n');
    }
    text
}

/// What a stamp says; `None` when it is none.
#[must_use]
pub fn parse(text: &str) -> Option<Vec<Entry>> {
    let mut lines = text.lines();
    if lines.next() != Some(HEAD) {
        return None;
    }
    lines.map(entry).collect()
}

fn entry(line: &str) -> Option<Entry> {
    let mut words = line.split(' ');
    let seen = match words.next()? {
        "missing" => Seen::Missing,
        "there" => Seen::There(Signature {
            dev: words.next()?.parse().ok()?,
            ino: words.next()?.parse().ok()?,
            size: words.next()?.parse().ok()?,
            mtime: time(words.next()?)?,
            ctime: time(words.next()?)?,
            btime: match words.next()? {
                "-" => None,
                text => Some(time(text)?),
            },
        }),
        _ => return None,
    };
    let hex = words.next()?.as_bytes();
    if hex.len() % 2 != 0 || words.next().is_some() {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let path = hex
        .chunks(2)
        .map(|pair| Some((digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?) as u8))
        .collect::<Option<Vec<u8>>>()?;
    Some((OsString::from_vec(path).into(), seen))
}

fn time(text: &str) -> Option<(i64, u32)> {
    let (seconds, nanoseconds) = text.split_once('.')?;
    Some((seconds.parse().ok()?, nanoseconds.parse().ok()?))
}

/// How reading a stamp went.
pub type Found = Result<Option<Vec<Entry>>, String>;

#[derive(Debug, Default)]
struct State {
    found: Option<Found>,
    wanted: Option<String>,
    writing: bool,
    failed: Option<String>,
}

/// The keeper of a stamp.
#[derive(Debug, Clone)]
pub struct Keeper {
    shared: Arc<(Mutex<State>, Condvar)>,
    bell: Arc<EventFd>,
}

impl Keeper {
    /// Begins to read `path`; then it writes what it is given, the newest only.
    ///
    /// # Errors
    /// EMFILE; EAGAIN: no further thread.
    pub fn open(path: PathBuf) -> io::Result<Keeper> {
        let keeper = Keeper {
            shared: Arc::default(),
            bell: Arc::new(EventFd::from_value_and_flags(
                0,
                nix::sys::eventfd::EfdFlags::EFD_CLOEXEC
                    | nix::sys::eventfd::EfdFlags::EFD_NONBLOCK,
            )?),
        };
        let there = keeper.clone();
        std::thread::Builder::new()
            .name("stamp".to_owned())
            .stack_size(256 << 10)
            .spawn(move || there.keep(&path))?;
        Ok(keeper)
    }

    /// To be waited for.
    #[must_use]
    pub fn bell(&self) -> &EventFd {
        &self.bell
    }

    /// What was read, once.
    pub fn take_found(&self) -> Option<Found> {
        let _ = self.bell.read();
        lock(&self.shared.0).found.take()
    }

    /// Why the last writing failed, once.
    pub fn take_failure(&self) -> Option<String> {
        lock(&self.shared.0).failed.take()
    }

    /// Has this written.
    pub fn write(&self, text: String) {
        lock(&self.shared.0).wanted = Some(text);
        self.shared.1.notify_all();
    }

    /// Waits until all is written, so long at most.
    pub fn finish(&self, patience: Duration) {
        let state = lock(&self.shared.0);
        let busy = |state: &mut State| state.wanted.is_some() || state.writing;
        let _ = self.shared.1.wait_timeout_while(state, patience, busy);
    }

    fn keep(&self, path: &Path) {
        let found = read(path);
        lock(&self.shared.0).found = Some(found);
        let _ = self.bell.write(1);
        loop {
            let mut state = lock(&self.shared.0);
            while state.wanted.is_none() {
                state = self
                    .shared
                    .1
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            let text = state.wanted.take().unwrap_or_default();
            state.writing = true;
            drop(state);
            let written = write(path, &text);
            let mut state = lock(&self.shared.0);
            state.writing = false;
            if let Err(why) = written {
                state.failed = Some(describe(&why));
                let _ = self.bell.write(1);
            }
            self.shared.1.notify_all();
        }
    }
}

fn read(path: &Path) -> Found {
    let mut text = String::new();
    let opened = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    // It would be replaced: /dev/null by a file, for everybody.
    if let Ok(file) = &opened {
        if !file.metadata().is_ok_and(|found| found.is_file()) {
            return Err("it is no regular file".to_owned());
        }
    }
    match opened.and_then(|file| file.take(LONGEST).read_to_string(&mut text)) {
        Ok(_) if text.is_empty() => Ok(None),
        Ok(_) => match parse(&text) {
            Some(entries) => Ok(Some(entries)),
            None => Err("it is no stamp of ours".to_owned()),
        },
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(why) => Err(describe(&why)),
    }
}

/// By way of another name, so that it is never half there.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{:08x}", common::time::random() as u32));
    let temporary = path.with_file_name(name);
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&temporary)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// The entry of a path.
#[must_use]
pub fn of(entries: &[Entry], path: &Path) -> Option<Seen> {
    let mut entries = entries.iter();
    entries
        .find(|(other, _)| other == path)
        .map(|(_, seen)| *seen)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read() {
        let there = Signature {
            dev: 1,
            ino: 2,
            size: 3,
            mtime: (-4, 5),
            btime: Some((6, 7)),
            ctime: (8, 9),
        };
        let entries = vec![
            (PathBuf::from("/a b\n"), Seen::There(there)),
            (
                PathBuf::from(OsString::from_vec(vec![b'/', 0xff])),
                Seen::Missing,
            ),
            (
                PathBuf::from("/c"),
                Seen::There(Signature {
                    btime: None,
                    ..there
                }),
            ),
        ];
        assert_eq!(parse(&text(&entries)), Some(entries));
        for wrong in [
            "",
            "x",
            "watchtouch-stamp 1\nthere",
            "watchtouch-stamp 1\nmissing 0",
        ] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_stands_there_is_read_or_refused(text in "(watchtouch-stamp 1\n)?\\PC{0,60}(\n\\PC{0,60})?") {
            let _ = parse(&text);
        }
    }
}
