//! `--record`: what a session showed, as asciicast v2 (docs.asciinema.org, "asciicast v2"): a header, and a
//! line of JSON for each output. What was typed is not in it, but for its echo: passwords stay out.
//!
//! A file may hang (a dead file server), so a thread of its own writes; what it cannot take is lost, and
//! that is said in the file.

use common::error::{Doing, Error, Result, describe};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// So many bytes wait for the thread at most.
const MOST_WAITING: usize = 4 << 20;
/// Of the thread: it formats nothing.
const STACK: usize = 64 << 10;

enum Deed {
    Begin(u64, PathBuf, Vec<u8>),
    Write(u64, Vec<u8>),
    End(u64),
}

/// The thread, and the way to it.
pub struct Recorder {
    directory: PathBuf,
    deeds: Option<Sender<Deed>>,
    waiting: Arc<AtomicUsize>,
    failures: Arc<Mutex<Vec<String>>>,
    /// Readable when a failure is there.
    pub wake: Arc<EventFd>,
    thread: Option<std::thread::JoinHandle<()>>,
    over: Receiver<()>,
}

/// One session's recording.
#[derive(Debug)]
pub struct Recording {
    id: u64,
    since: Instant,
    /// The beginning of a letter whose rest has not come.
    letter: Vec<u8>,
    /// Bytes that were lost and not told of yet.
    lost: usize,
}

/// What is in the header.
#[derive(serde::Serialize)]
struct Header<'a> {
    version: u32,
    width: u16,
    height: u16,
    timestamp: u64,
    command: &'a str,
    title: &'a str,
    env: BTreeMap<&'a str, &'a str>,
}

impl Recorder {
    /// Records into `directory`.
    ///
    /// # Errors
    /// It is none, or others can write there.
    pub fn open(directory: &Path) -> Result<Recorder> {
        crate::door::check(directory)?;
        let doing = format!("record into {}", directory.display());
        nix::unistd::access(directory, nix::unistd::AccessFlags::W_OK).doing(&doing)?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let wake = Arc::new(EventFd::from_flags(flags).doing(&doing)?);
        let (deeds, work) = channel();
        let (ended, over) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let failures = Arc::new(Mutex::new(Vec::new()));
        let (counter, list, bell) = (waiting.clone(), failures.clone(), wake.clone());
        let thread = std::thread::Builder::new()
            .name("record".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                write(&work, &counter, &list, &bell);
                let _ = ended.send(());
            })
            .doing(&doing)?;
        Ok(Recorder {
            directory: directory.to_owned(),
            deeds: Some(deeds),
            waiting,
            failures,
            wake,
            thread: Some(thread),
            over,
        })
    }

    /// Begins one: for the command `pid`, on a terminal of that size.
    pub fn begin(
        &self,
        id: u64,
        pid: i32,
        size: (u16, u16),
        command: &str,
        title: &str,
        term: &str,
    ) -> Recording {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let stamp: String = common::event::rfc3339(now)
            .chars()
            .filter(|letter| letter.is_ascii_alphanumeric())
            .collect();
        let header = Header {
            version: 2,
            width: size.0,
            height: size.1,
            timestamp: now.as_secs(),
            command,
            title,
            env: [("TERM", term)].into(),
        };
        // A structure of numbers and strings can always be written.
        let mut line = serde_json::to_vec(&header).unwrap_or_default();
        line.push(b'\n');
        let path = self.directory.join(format!("{stamp}-{pid}.cast"));
        self.tell(Deed::Begin(id, path, line));
        Recording {
            id,
            since: Instant::now(),
            letter: Vec::new(),
            lost: 0,
        }
    }

    /// Output of one.
    pub fn output(&self, recording: &mut Recording, bytes: &[u8]) {
        let mut all = std::mem::take(&mut recording.letter);
        all.extend_from_slice(bytes);
        let whole = all.len() - unfinished(&all);
        recording.letter = all.split_off(whole);
        if !all.is_empty() {
            self.event(recording, "o", &String::from_utf8_lossy(&all));
        }
    }

    /// Its terminal has another size.
    pub fn resized(&self, recording: &mut Recording, (columns, rows): (u16, u16)) {
        self.event(recording, "r", &format!("{columns}x{rows}"));
    }

    /// Its end.
    pub fn end(&self, mut recording: Recording) {
        let rest = std::mem::take(&mut recording.letter);
        if !rest.is_empty() {
            self.event(&mut recording, "o", &String::from_utf8_lossy(&rest));
        }
        self.tell(Deed::End(recording.id));
    }

    fn event(&self, recording: &mut Recording, kind: &str, text: &str) {
        if self.waiting.load(Ordering::Relaxed) + text.len() > MOST_WAITING {
            recording.lost += text.len();
            return;
        }
        let time = recording.since.elapsed().as_secs_f64();
        let mut lines = String::new();
        if recording.lost > 0 {
            let lost = std::mem::take(&mut recording.lost);
            lines = format!("[{time:.6},\"m\",\"{lost} bytes of output were lost here\"]\n");
        }
        let text = serde_json::to_string(text).unwrap_or_default();
        lines.push_str(&format!("[{time:.6},\"{kind}\",{text}]\n"));
        self.waiting.fetch_add(lines.len(), Ordering::Relaxed);
        self.tell(Deed::Write(recording.id, lines.into_bytes()));
    }

    fn tell(&self, deed: Deed) {
        if let Some(deeds) = &self.deeds {
            // It ends only after us.
            let _ = deeds.send(deed);
        }
    }

    /// What could not be written, since the last call.
    pub fn failures(&self) -> Vec<String> {
        let _ = self.wake.read();
        std::mem::take(&mut self.failures.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets the thread finish; one that hangs is left behind.
    pub fn finish(&mut self, patience: Duration) {
        self.deeds = None;
        if self.over.recv_timeout(patience).is_ok() {
            if let Some(thread) = self.thread.take() {
                let _ = thread.join();
            }
        }
    }
}

/// How many bytes at the end are the beginning of a letter.
fn unfinished(bytes: &[u8]) -> usize {
    for back in 1..=3.min(bytes.len()) {
        let Some(byte) = bytes.get(bytes.len() - back) else {
            break;
        };
        match byte {
            // Goes on.
            0x80..=0xbf => {}
            0xc2..=0xdf => return if back < 2 { back } else { 0 },
            0xe0..=0xef => return if back < 3 { back } else { 0 },
            0xf0..=0xf4 => return back,
            _ => return 0,
        }
    }
    0
}

/// The thread.
fn write(
    work: &Receiver<Deed>,
    waiting: &AtomicUsize,
    failures: &Mutex<Vec<String>>,
    wake: &EventFd,
) {
    let mut files: BTreeMap<u64, (File, PathBuf)> = BTreeMap::new();
    let failed = |path: &Path, why: &std::io::Error| {
        let error = Error::new(&format!("write {}", path.display()), describe(why));
        failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(error.to_string());
        let _ = wake.write(1);
    };
    while let Ok(deed) = work.recv() {
        match deed {
            Deed::Begin(id, path, header) => {
                let made = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&path)
                    .and_then(|mut file| file.write_all(&header).map(|()| file));
                match made {
                    Ok(file) => {
                        files.insert(id, (file, path));
                    }
                    Err(why) => failed(&path, &why),
                }
            }
            Deed::Write(id, lines) => {
                waiting.fetch_sub(lines.len(), Ordering::Relaxed);
                let Some((file, path)) = files.get_mut(&id) else {
                    continue;
                };
                if let Err(why) = file.write_all(&lines) {
                    failed(path, &why);
                    // A recording with a hole that nobody sees is none.
                    files.remove(&id);
                }
            }
            Deed::End(id) => {
                if let Some((file, path)) = files.remove(&id) {
                    if let Err(why) = file.sync_all() {
                        failed(&path, &why);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_not_torn() {
        let text = "aé€𝄞z".as_bytes();
        for end in 0..=text.len() {
            let part = &text[..end];
            let whole = part.len() - unfinished(part);
            assert!(std::str::from_utf8(&part[..whole]).is_ok(), "{end}");
            assert!(part.len() - whole < 4);
        }
        assert_eq!(unfinished(b"\xff"), 0);
        assert_eq!(unfinished(b"\x80\x80\x80"), 0);
    }
}
