//! `--metrics`: the text format of Prometheus, for node_exporter's textfile collector. The file is written
//! by a thread of its own, because a disk may hang; what it cannot take in time is replaced by what is
//! newer.

use crate::judge::State;
use crate::outcome::Reason;
use nix::sys::eventfd::EventFd;
use std::fmt::Write as _;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Upper bounds of the histogram, in seconds: those of Prometheus' own client libraries.
const BOUNDS: [f64; 11] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// What is counted of one target.
#[derive(Clone, Debug, Default)]
struct Target {
    name: String,
    well: bool,
    checks: u64,
    failures: [u64; Reason::ALL.len()],
    buckets: [u64; BOUNDS.len()],
    sum: f64,
}

/// All that is counted.
#[derive(Clone, Debug)]
pub struct Counters {
    targets: Vec<Target>,
    actions: u64,
    failed_actions: u64,
}

impl Counters {
    /// All zero.
    #[must_use]
    pub fn new(names: impl Iterator<Item = String>) -> Counters {
        Counters {
            targets: names
                .map(|name| Target {
                    name,
                    ..Target::default()
                })
                .collect(),
            actions: 0,
            failed_actions: 0,
        }
    }

    /// A check of target `index` has ended.
    pub fn check(&mut self, index: usize, failure: Option<Reason>, latency: Duration) {
        let Some(target) = self.targets.get_mut(index) else {
            return;
        };
        target.checks += 1;
        target.well = failure.is_none();
        if let Some(reason) = failure {
            target.failures[reason as usize] += 1;
        }
        let seconds = latency.as_secs_f64();
        target.sum += seconds;
        for (bucket, bound) in target.buckets.iter_mut().zip(BOUNDS) {
            *bucket += u64::from(seconds <= bound);
        }
    }

    /// An action has begun.
    pub fn action(&mut self) {
        self.actions += 1;
    }

    /// An action has failed.
    pub fn action_failed(&mut self) {
        self.failed_actions += 1;
    }

    /// The whole file.
    #[must_use]
    pub fn text(&self, state: State, gave_up: bool) -> String {
        let mut text = String::with_capacity(4096);
        let head = |text: &mut String, name: &str, kind: &str, help: &str| {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        };
        head(
            &mut text,
            "heartbeat_state",
            "gauge",
            "1 for the state that the service is in.",
        );
        for one in [State::Starting, State::Up, State::Slow, State::Down] {
            let _ = writeln!(
                text,
                "heartbeat_state{{state=\"{}\"}} {}",
                one.name(),
                u8::from(one == state && !gave_up)
            );
        }
        let _ = writeln!(
            text,
            "heartbeat_state{{state=\"gave-up\"}} {}",
            u8::from(gave_up)
        );
        head(
            &mut text,
            "heartbeat_check_success",
            "gauge",
            "Whether the last check passed.",
        );
        for target in &self.targets {
            let name = label(&target.name);
            let well = u8::from(target.well);
            let _ = writeln!(text, "heartbeat_check_success{{target={name}}} {well}");
        }
        head(
            &mut text,
            "heartbeat_check_failures_total",
            "counter",
            "Checks that failed, by their reason.",
        );
        for target in &self.targets {
            let name = label(&target.name);
            for reason in Reason::ALL {
                let count = target.failures[reason as usize];
                if count > 0 {
                    let _ = writeln!(
                        text,
                        "heartbeat_check_failures_total{{target={name},reason=\"{}\"}} {count}",
                        reason.name()
                    );
                }
            }
        }
        let histogram = "heartbeat_check_duration_seconds";
        head(&mut text, histogram, "histogram", "How long checks took.");
        for target in &self.targets {
            let name = label(&target.name);
            for (bucket, bound) in target.buckets.iter().zip(BOUNDS) {
                let _ = writeln!(
                    text,
                    "{histogram}_bucket{{target={name},le=\"{bound}\"}} {bucket}"
                );
            }
            let (checks, sum) = (target.checks, target.sum);
            let _ = writeln!(
                text,
                "{histogram}_bucket{{target={name},le=\"+Inf\"}} {checks}"
            );
            let _ = writeln!(text, "{histogram}_sum{{target={name}}} {sum:.6}");
            let _ = writeln!(text, "{histogram}_count{{target={name}}} {checks}");
        }
        head(
            &mut text,
            "heartbeat_actions_total",
            "counter",
            "Actions that have begun.",
        );
        let _ = writeln!(text, "heartbeat_actions_total {}", self.actions);
        head(
            &mut text,
            "heartbeat_actions_failed_total",
            "counter",
            "Actions that failed.",
        );
        let _ = writeln!(
            text,
            "heartbeat_actions_failed_total {}",
            self.failed_actions
        );
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        head(
            &mut text,
            "heartbeat_last_check_timestamp_seconds",
            "gauge",
            "When the last check ended: old when heartbeat is gone.",
        );
        let _ = writeln!(
            text,
            "heartbeat_last_check_timestamp_seconds {:.3}",
            now.as_secs_f64()
        );
        text
    }
}

/// A label's value (exposition_formats.md of Prometheus).
fn label(text: &str) -> String {
    let mut out = String::from("\"");
    for letter in text.chars() {
        match letter {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            letter => out.push(letter),
        }
    }
    out.push('"');
    out
}

/// Writes the file.
#[derive(Debug)]
pub struct Writer {
    texts: SyncSender<String>,
    trouble: Arc<Mutex<Option<String>>>,
    /// Says nothing, and closes when the thread ends.
    end: Receiver<()>,
}

impl Writer {
    /// Starts the thread; trouble is told by way of `wake`.
    ///
    /// # Errors
    /// EAGAIN, ENOMEM.
    pub fn start(path: PathBuf, wake: Arc<EventFd>) -> std::io::Result<Writer> {
        let (texts, given) = sync_channel::<String>(1);
        let trouble = Arc::new(Mutex::new(None));
        let told = trouble.clone();
        let (ends, end) = sync_channel::<()>(0);
        std::thread::Builder::new()
            .name("metrics".to_owned())
            .stack_size(64 << 10)
            .spawn(move || {
                let _ends = ends;
                // Said once for as long as it lasts: it would be at each check. What comes again after weeks is
                // said again, and so is another reason.
                let mut last = None;
                while let Ok(text) = given.recv() {
                    let why = put(&path, &text).err();
                    let why = why.map(|why| common::error::describe(&why));
                    if why.is_some() && why != last {
                        told.lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .clone_from(&why);
                        let _ = wake.write(1);
                    }
                    last = why;
                }
            })?;
        Ok(Writer {
            texts,
            trouble,
            end,
        })
    }

    /// Waits until what was handed over is written, but no longer than that; what went wrong.
    #[must_use]
    pub fn finish(self, patience: Duration) -> Option<String> {
        drop(self.texts);
        let _ = self.end.recv_timeout(patience);
        self.trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Hands a text over, unless the one before has not been taken yet.
    pub fn write(&self, text: String) {
        let _ = self.texts.try_send(text);
    }

    /// What went wrong since the last call.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.trouble
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

/// Under another name, which the collector does not take (it wants `.prom`), and renamed: nobody reads
/// half a file. What is no regular file (/dev/null, /dev/stdout) is written to as it is, and never replaced.
fn put(path: &Path, text: &str) -> std::io::Result<()> {
    if !is_bent(path) && path.metadata().is_ok_and(|found| !found.is_file()) {
        let mut file = std::fs::OpenOptions::new().write(true).open(path)?;
        // Not what has come there since.
        if !file.metadata()?.is_file() {
            return std::io::Write::write_all(&mut file, text.as_bytes());
        }
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    // Nobody can know the name, and no link is written through: the directory may be one that others write to.
    name.push(format!(".{:08x}", common::time::random() as u32));
    let temporary = path.with_file_name(name);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&temporary)?;
    let written = std::io::Write::write_all(&mut file, text.as_bytes());
    // Closed first: FUSE cannot remove what is open, but renames it.
    drop(file);
    let done = written.and_then(|()| std::fs::rename(&temporary, path));
    if done.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    done
}

/// A link that somebody may have laid out for root: it is replaced, and leads root to no device.
fn is_bent(path: &Path) -> bool {
    let link = path
        .symlink_metadata()
        .is_ok_and(|found| found.is_symlink());
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    link && nix::unistd::geteuid().is_root()
        && !parent
            .metadata()
            .is_ok_and(|found| found.uid() == 0 && found.mode() & 0o022 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_labels_cannot_be_forged() {
        let mut counters = Counters::new(["a\"b\\\n".to_owned()].into_iter());
        counters.check(0, None, Duration::from_millis(7));
        counters.check(0, Some(Reason::Timeout), Duration::from_secs(20));
        let text = counters.text(State::Up, false);
        for line in [
            "heartbeat_check_duration_seconds_bucket{target=\"a\\\"b\\\\\\n\",le=\"0.005\"} 0",
            "heartbeat_check_duration_seconds_bucket{target=\"a\\\"b\\\\\\n\",le=\"0.01\"} 1",
            "heartbeat_check_duration_seconds_bucket{target=\"a\\\"b\\\\\\n\",le=\"10\"} 1",
            "heartbeat_check_duration_seconds_bucket{target=\"a\\\"b\\\\\\n\",le=\"+Inf\"} 2",
            "heartbeat_check_failures_total{target=\"a\\\"b\\\\\\n\",reason=\"timeout\"} 1",
            "heartbeat_state{state=\"up\"} 1",
            "heartbeat_state{state=\"down\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
