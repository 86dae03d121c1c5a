//! What the master says of itself, taken down at one moment, and its three forms: a table for people,
//! JSON for scripts, and Prometheus' text.

use crate::cgroups::Sweep;
use crate::deaths::By;
use crate::events;
use crate::pool::{Member, Phase, State, Wait};
use crate::run::Master;
use common::event::{Level, Value};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

/// How reloads ended, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloads {
    /// The new generation took over.
    pub committed: u64,
    /// It failed before that.
    pub failed: u64,
    /// A newer one took its place.
    pub superseded: u64,
    /// Not begun at all.
    pub refused: u64,
    /// Taken back after it had taken over.
    pub rolled_back: u64,
}

/// A deploy that failed, until the next good one.
#[derive(Clone, Debug)]
pub struct Frozen {
    /// The generation that did not come.
    pub generation: u32,
    /// Why.
    pub error: String,
    /// The last lines that its failing worker wrote to stderr.
    pub words: Vec<String>,
    /// When.
    pub at: Instant,
}

/// Everything, at one moment. Durations in seconds, sizes in bytes.
#[derive(Debug, Serialize)]
pub struct Status {
    version: &'static str,
    pid: u32,
    state: &'static str,
    healthy: bool,
    uptime: f64,
    generation: u32,
    workers: usize,
    serving: usize,
    frozen: Option<FrozenStatus>,
    reload: Option<ReloadStatus>,
    reloads: Reloads,
    deaths: BTreeMap<By, u64>,
    lines_lost: u64,
    sweep: Sweep,
    slots: Vec<SlotStatus>,
    leaving: Vec<WorkerStatus>,
    sockets: Vec<SocketStatus>,
}

#[derive(Debug, Serialize)]
struct FrozenStatus {
    generation: u32,
    ago: f64,
    error: String,
    stderr: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ReloadStatus {
    generation: u32,
    step: &'static str,
    since: f64,
    ready: usize,
    switched: usize,
}

#[derive(Debug, Serialize)]
struct SlotStatus {
    slot: usize,
    state: &'static str,
    /// Seconds until the next start, in a backoff or over the limit.
    wait: Option<f64>,
    restarts: u64,
    worker: Option<WorkerStatus>,
    next: Option<WorkerStatus>,
    exits: Vec<ExitStatus>,
    stderr: Vec<String>,
}

#[derive(Debug, Serialize)]
struct WorkerStatus {
    slot: usize,
    pid: i32,
    generation: u32,
    state: &'static str,
    uptime: f64,
    rss: Option<u64>,
}

#[derive(Debug, Serialize)]
struct ExitStatus {
    pid: i32,
    generation: u32,
    status: Option<i32>,
    signal: Option<String>,
    by: By,
    uptime: f64,
    ago: f64,
}

#[derive(Debug, Serialize)]
struct SocketStatus {
    address: String,
    workers: Option<usize>,
    queue: Option<u32>,
    queue_max: Option<u32>,
    overflows: Option<u32>,
}

fn seconds(length: Duration) -> f64 {
    length.as_millis() as f64 / 1000.0
}

impl Master {
    /// Every slot has a worker that serves, and no deploy is known to have failed.
    #[must_use]
    pub fn healthy(&self) -> bool {
        self.pool.frozen.is_none() && self.pool.serving() == self.pool.slots.len()
    }

    /// Takes everything down.
    #[must_use]
    pub fn snapshot(&self, now: Instant) -> Status {
        let members = &self.pool.members;
        let of = |worker: &Member, state: &'static str| WorkerStatus {
            slot: worker.slot,
            pid: worker.pid,
            generation: worker.generation,
            state,
            uptime: seconds(now.saturating_duration_since(worker.started)),
            rss: common::child::rss(worker.pid),
        };
        let slots = self.pool.slots.iter().enumerate().map(|(index, slot)| {
            let worker = slot.current.and_then(|id| members.get(&id));
            let next = slot.next.and_then(|id| members.get(&id));
            let (state, until) = match (worker, slot.wait) {
                (Some(worker), _) => (worker.state_name(), None),
                (None, Wait::Backoff(until)) => ("backoff", Some(until)),
                (None, Wait::Held(until)) => ("held", Some(until)),
                (None, Wait::Nothing | Wait::Queued) => ("waiting", None),
            };
            SlotStatus {
                slot: index,
                state,
                wait: until.map(|until| seconds(until.saturating_duration_since(now))),
                restarts: slot.restarts,
                worker: worker.map(|worker| of(worker, worker.state_name())),
                next: next.map(|next| {
                    let probation = next.state == State::Serving;
                    of(
                        next,
                        if probation {
                            "probation"
                        } else {
                            next.state.name()
                        },
                    )
                }),
                exits: slot
                    .deaths
                    .iter()
                    .map(|death| ExitStatus {
                        pid: death.pid,
                        generation: death.generation,
                        status: match death.end {
                            Some(common::exit::End::Exited(status)) => Some(status),
                            Some(common::exit::End::Killed(_)) | None => None,
                        },
                        signal: match death.end {
                            Some(common::exit::End::Killed(signal)) => {
                                Some(common::signal::name(signal))
                            }
                            Some(common::exit::End::Exited(_)) | None => None,
                        },
                        by: death.by,
                        uptime: seconds(death.uptime),
                        ago: seconds(now.saturating_duration_since(death.at)),
                    })
                    .collect(),
                stderr: slot.deaths.words().to_vec(),
            }
        });
        let slots: Vec<SlotStatus> = slots.collect();
        let leaving = members.values().filter(|worker| {
            self.pool
                .slots
                .get(worker.slot)
                .is_none_or(|slot| slot.current != Some(worker.id) && slot.next != Some(worker.id))
        });
        let given = self
            .given
            .iter()
            .map(|(address, fd)| (address.to_string(), fd, None));
        let asked = self.sockets.iter().filter(|(_, shared)| !shared.ours);
        let asked =
            asked.map(|(_, shared)| (shared.name.clone(), &shared.fd, Some(shared.holders.len())));
        let sockets = given.chain(asked).map(|(address, fd, workers)| {
            let queue = self.queue_of(fd);
            SocketStatus {
                address,
                workers,
                queue: queue.map(|queue| queue.length),
                queue_max: queue.map(|queue| queue.limit),
                overflows: queue.and_then(|queue| queue.overflows),
            }
        });
        let sockets = sockets.collect();
        Status {
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            state: match &self.pool.phase {
                Phase::Initial => "starting",
                Phase::Running => "running",
                Phase::Reloading(_) => "reloading",
                Phase::Stopping(_) => "stopping",
            },
            healthy: self.healthy(),
            uptime: seconds(now.saturating_duration_since(self.started)),
            generation: self.pool.generation,
            workers: self.pool.slots.len(),
            serving: self.pool.serving(),
            frozen: self.pool.frozen.as_ref().map(|frozen| FrozenStatus {
                generation: frozen.generation,
                ago: seconds(now.saturating_duration_since(frozen.at)),
                error: frozen.error.clone(),
                stderr: frozen.words.clone(),
            }),
            reload: match &self.pool.phase {
                Phase::Reloading(reloading) => Some(ReloadStatus {
                    generation: reloading.target,
                    step: reloading.step(),
                    since: seconds(now.saturating_duration_since(reloading.since)),
                    ready: reloading.steps.ready_count(),
                    switched: reloading.steps.switched().len(),
                }),
                Phase::Initial | Phase::Running | Phase::Stopping(_) => None,
            },
            reloads: self.pool.reloads,
            deaths: By::ALL
                .into_iter()
                .map(|by| (by, self.pool.deaths.get(&by).copied().unwrap_or(0)))
                .collect(),
            lines_lost: self.lost,
            sweep: self.cgroups.sweep(),
            slots,
            leaving: leaving
                .map(|worker| of(worker, worker.state.name()))
                .collect(),
            sockets,
        }
    }

    /// The status, to the log.
    pub(crate) fn status(&mut self, now: Instant) {
        let mut lines: Vec<Vec<(&str, Value)>> = Vec::new();
        let mut head: Vec<(&str, Value)> = vec![
            ("generation", self.pool.generation.into()),
            ("workers", self.pool.slots.len().into()),
            ("sweep", self.cgroups.sweep().name().into()),
        ];
        if let Some(frozen) = &self.pool.frozen {
            head.push(("frozen", frozen.generation.into()));
        }
        if self.lost > 0 {
            head.push(("lost", self.lost.into()));
        }
        lines.push(head);
        for (index, slot) in self.pool.slots.iter().enumerate() {
            let mut line: Vec<(&str, Value)> = vec![("slot", index.into())];
            match slot.current.and_then(|id| self.pool.members.get(&id)) {
                Some(worker) => {
                    line.push(("pid", worker.pid.into()));
                    line.push(("generation", worker.generation.into()));
                    line.push(("state", worker.state_name().into()));
                    line.push((
                        "uptime",
                        now.saturating_duration_since(worker.started).into(),
                    ));
                }
                None => {
                    let state = match slot.wait {
                        Wait::Backoff(_) => "backoff",
                        Wait::Held(_) => "held",
                        Wait::Nothing | Wait::Queued => "waiting",
                    };
                    line.push(("state", state.into()));
                }
            }
            line.push(("restarts", slot.restarts.into()));
            lines.push(line);
        }
        for worker in self.pool.members.values() {
            let Some(slot) = self.pool.slots.get(worker.slot) else {
                continue;
            };
            if slot.current != Some(worker.id) {
                lines.push(vec![
                    ("slot", worker.slot.into()),
                    ("pid", worker.pid.into()),
                    ("generation", worker.generation.into()),
                    ("state", worker.state.name().into()),
                ]);
            }
        }
        for (address, _) in &self.given {
            lines.push(vec![("address", address.to_string().into())]);
        }
        for (_, shared) in self.sockets.iter().filter(|(_, shared)| !shared.ours) {
            lines.push(vec![
                ("address", shared.name.clone().into()),
                ("workers", shared.holders.len().into()),
            ]);
        }
        for line in lines {
            self.say(Level::Warning, events::STATUS, &line);
        }
    }
}

impl Status {
    /// Whether everybody serves, and the sentence that says so.
    #[must_use]
    pub fn verdict(&self) -> (bool, String) {
        let serve = format!("{} of {} workers serve", self.serving, self.workers);
        match &self.frozen {
            Some(frozen) => (
                false,
                format!("frozen: generation {} failed; {serve}", frozen.generation),
            ),
            None if self.healthy => (true, serve),
            None => (false, format!("degraded: {serve}")),
        }
    }

    /// One line.
    ///
    /// # Errors
    /// None in practice: the structure has no map with keys that are no text.
    pub fn json(&self) -> Result<String, String> {
        serde_json::to_string(self).map_err(|why| why.to_string())
    }

    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "spawnwork {}, pid {}, up {}, {}, generation {}, {} of {} workers serve",
            self.version,
            self.pid,
            brief(self.uptime),
            self.state,
            self.generation,
            self.serving,
            self.workers
        );
        if let Some(frozen) = &self.frozen {
            let (generation, ago) = (frozen.generation, brief(frozen.ago));
            let _ = writeln!(
                out,
                "FROZEN: generation {generation} failed {ago} ago: {}",
                frozen.error
            );
            for line in &frozen.stderr {
                let _ = writeln!(out, "  | {line}");
            }
        }
        if let Some(reload) = &self.reload {
            let _ = writeln!(
                out,
                "reload to generation {} since {}: {}, {} ready, {} replaced",
                reload.generation,
                brief(reload.since),
                reload.step,
                reload.ready,
                reload.switched
            );
        }
        if self.lines_lost > 0 {
            let _ = writeln!(out, "{} lines of workers were lost", self.lines_lost);
        }
        let _ = writeln!(out, "sweep: {}", self.sweep.name());
        let mut rows = vec![
            [
                "SLOT",
                "PID",
                "GEN",
                "STATE",
                "UPTIME",
                "RSS",
                "RESTARTS",
                "LAST EXIT",
            ]
            .map(str::to_owned),
        ];
        let worker_row = |worker: &WorkerStatus, restarts: String, last: String| {
            [
                worker.slot.to_string(),
                worker.pid.to_string(),
                worker.generation.to_string(),
                worker.state.to_owned(),
                brief(worker.uptime),
                worker.rss.map_or_else(|| "-".to_owned(), size),
                restarts,
                last,
            ]
        };
        let none = || "-".to_owned();
        for slot in &self.slots {
            let restarts = slot.restarts.to_string();
            let last = slot.exits.first().map_or_else(none, ExitStatus::words);
            match &slot.worker {
                Some(worker) => rows.push(worker_row(worker, restarts, last)),
                None => {
                    let state = match slot.wait {
                        Some(wait) => format!("{} {}", slot.state, brief(wait)),
                        None => slot.state.to_owned(),
                    };
                    let index = slot.slot.to_string();
                    rows.push([index, none(), none(), state, none(), none(), restarts, last]);
                }
            }
            if let Some(next) = &slot.next {
                rows.push(worker_row(next, none(), none()));
            }
        }
        for worker in &self.leaving {
            rows.push(worker_row(worker, none(), none()));
        }
        columns(&mut out, &rows);
        if !self.sockets.is_empty() {
            let mut rows = vec![["ADDRESS", "QUEUE", "MAX", "OVERFLOWS"].map(str::to_owned)];
            let number = |value: Option<u32>| value.map_or_else(none, |value| value.to_string());
            for socket in &self.sockets {
                rows.push([
                    socket.address.clone(),
                    number(socket.queue),
                    number(socket.queue_max),
                    number(socket.overflows),
                ]);
            }
            columns(&mut out, &rows);
        }
        out
    }

    /// Prometheus' text format (prometheus.io/docs/instrumenting/exposition_formats).
    #[must_use]
    pub fn metrics(&self) -> String {
        let mut out = String::new();
        let flag = |value: bool| if value { 1.0 } else { 0.0 };
        let mut one = |name: &str, kind: &str, help: &str, values: &[(String, f64)]| {
            if values.is_empty() {
                return;
            }
            let _ = writeln!(
                out,
                "# HELP spawnwork_{name} {help}\n# TYPE spawnwork_{name} {kind}"
            );
            for (labels, value) in values {
                let _ = writeln!(out, "spawnwork_{name}{labels} {value}");
            }
        };
        let plain = |value: f64| vec![(String::new(), value)];
        let info = format!("{{version=\"{}\"}}", self.version);
        one(
            "build_info",
            "gauge",
            "Version of the master.",
            &[(info, 1.0)],
        );
        one(
            "uptime_seconds",
            "gauge",
            "Age of the master.",
            &plain(self.uptime),
        );
        one(
            "generation",
            "gauge",
            "Generation that serves.",
            &plain(self.generation.into()),
        );
        one(
            "workers",
            "gauge",
            "Workers that are wanted.",
            &plain(self.workers as f64),
        );
        one(
            "workers_serving",
            "gauge",
            "Slots whose worker serves.",
            &plain(self.serving as f64),
        );
        let leaving = self.leaving.len() as f64;
        one(
            "workers_leaving",
            "gauge",
            "Workers that finish and go.",
            &plain(leaving),
        );
        let help = "Every slot serves and no deploy failed.";
        one("healthy", "gauge", help, &plain(flag(self.healthy)));
        let help = "A deploy failed and the old generation goes on.";
        one("frozen", "gauge", help, &plain(flag(self.frozen.is_some())));
        one(
            "reloading",
            "gauge",
            "A reload is under way.",
            &plain(flag(self.reload.is_some())),
        );
        let results = [
            ("committed", self.reloads.committed),
            ("failed", self.reloads.failed),
            ("superseded", self.reloads.superseded),
            ("refused", self.reloads.refused),
            ("rolled_back", self.reloads.rolled_back),
        ]
        .map(|(result, count)| (format!("{{result=\"{result}\"}}"), count as f64));
        one(
            "reloads_total",
            "counter",
            "Reloads by their result.",
            &results,
        );
        let deaths: Vec<_> = self
            .deaths
            .iter()
            .map(|(by, count)| (format!("{{by=\"{}\"}}", by.name()), *count as f64))
            .collect();
        one(
            "worker_exits_total",
            "counter",
            "Ends of workers by their cause.",
            &deaths,
        );
        let lost = self.lines_lost as f64;
        let help = "Lines of workers that could not be passed on.";
        one("lines_lost_total", "counter", help, &plain(lost));
        let slots = |value: &dyn Fn(&SlotStatus) -> Option<f64>| -> Vec<(String, f64)> {
            let label = |slot: &SlotStatus| format!("{{slot=\"{}\"}}", slot.slot);
            let with = |slot: &SlotStatus| Some((label(slot), value(slot)?));
            self.slots.iter().filter_map(with).collect()
        };
        let serves = |slot: &SlotStatus| Some(flag(slot.state == State::Serving.name()));
        one(
            "worker_serving",
            "gauge",
            "The slot's worker serves.",
            &slots(&serves),
        );
        let restarts = slots(&|slot| Some(slot.restarts as f64));
        one(
            "worker_restarts_total",
            "counter",
            "Workers started after the first.",
            &restarts,
        );
        let uptime = slots(&|slot| Some(slot.worker.as_ref()?.uptime));
        one(
            "worker_uptime_seconds",
            "gauge",
            "Age of the slot's worker.",
            &uptime,
        );
        let rss = slots(&|slot| Some(slot.worker.as_ref()?.rss? as f64));
        one(
            "worker_resident_bytes",
            "gauge",
            "Resident memory of the slot's worker.",
            &rss,
        );
        let sockets = |value: &dyn Fn(&SocketStatus) -> Option<u32>| -> Vec<(String, f64)> {
            // Two listens on one address (SO_REUSEPORT) would be one series twice.
            let mut sums: BTreeMap<String, f64> = BTreeMap::new();
            for socket in &self.sockets {
                if let Some(value) = value(socket) {
                    let label = format!("{{address=\"{}\"}}", escaped(&socket.address));
                    *sums.entry(label).or_default() += f64::from(value);
                }
            }
            sums.into_iter().collect()
        };
        let queue = sockets(&|socket| socket.queue);
        one(
            "socket_queue_length",
            "gauge",
            "Connections that wait to be accepted.",
            &queue,
        );
        let limit = sockets(&|socket| socket.queue_max);
        one(
            "socket_queue_limit",
            "gauge",
            "Connections that may wait.",
            &limit,
        );
        let overflows = sockets(&|socket| socket.overflows);
        let help = "Connections dropped because the queue was full.";
        one("socket_overflows_total", "counter", help, &overflows);
        out
    }
}

impl ExitStatus {
    fn words(&self) -> String {
        let how = match (self.status, &self.signal) {
            (Some(status), _) => format!("status {status}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "ended".to_owned(),
        };
        format!("{how} ({}), {} ago", self.by.name(), brief(self.ago))
    }
}

/// A label's value: backslash, quote and newline are escaped.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn brief(seconds: f64) -> String {
    let length = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    // Nobody reads milliseconds of a worker that is days old.
    let length = if length >= Duration::from_secs(10) {
        Duration::from_secs(length.as_secs())
    } else {
        length
    };
    common::time::say(length)
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{}K", bytes / 1024),
        1_048_576..1_073_741_824 => format!("{:.1}M", bytes as f64 / 1_048_576.0),
        _ => format!("{:.1}G", bytes as f64 / 1_073_741_824.0),
    }
}

/// Left-aligned, two spaces between, no space at the end.
fn columns<const N: usize>(out: &mut String, rows: &[[String; N]]) {
    let widths: [usize; N] = std::array::from_fn(|column| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    });
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        let worker = |slot, pid, state| WorkerStatus {
            slot,
            pid,
            generation: 3,
            state,
            uptime: 75.25,
            rss: Some(54 << 20),
        };
        Status {
            version: "1.2.3",
            pid: 812,
            state: "running",
            healthy: false,
            uptime: 4000.0,
            generation: 3,
            workers: 2,
            serving: 1,
            frozen: Some(FrozenStatus {
                generation: 4,
                ago: 12.0,
                error: "worker 0 said no".to_owned(),
                stderr: vec!["Error: no".to_owned()],
            }),
            reload: None,
            reloads: Reloads::default(),
            deaths: BTreeMap::from([(By::Itself, 2)]),
            lines_lost: 0,
            sweep: Sweep::Subreaper,
            slots: vec![
                SlotStatus {
                    slot: 0,
                    state: "serving",
                    wait: None,
                    restarts: 0,
                    worker: Some(worker(0, 4711, "serving")),
                    next: None,
                    exits: vec![],
                    stderr: vec![],
                },
                SlotStatus {
                    slot: 1,
                    state: "backoff",
                    wait: Some(0.4),
                    restarts: 2,
                    worker: None,
                    next: None,
                    exits: vec![ExitStatus {
                        pid: 4700,
                        generation: 3,
                        status: Some(1),
                        signal: None,
                        by: By::Itself,
                        uptime: 0.1,
                        ago: 3.0,
                    }],
                    stderr: vec![],
                },
            ],
            leaving: vec![worker(1, 4690, "draining")],
            sockets: vec![SocketStatus {
                address: "unix:/a\"b".to_owned(),
                workers: None,
                queue: Some(1),
                queue_max: Some(4096),
                overflows: None,
            }],
        }
    }

    #[test]
    fn a_table_for_people() {
        let expected = "\
spawnwork 1.2.3, pid 812, up 1h6m40s, running, generation 3, 1 of 2 workers serve
FROZEN: generation 4 failed 12s ago: worker 0 said no
  | Error: no
sweep: subreaper
SLOT  PID   GEN  STATE          UPTIME  RSS    RESTARTS  LAST EXIT
0     4711  3    serving        1m15s   54.0M  0         -
1     -     -    backoff 400ms  -       -      2         status 1 (itself), 3s ago
1     4690  3    draining       1m15s   54.0M  -         -
ADDRESS    QUEUE  MAX   OVERFLOWS
unix:/a\"b  1      4096  -
";
        assert_eq!(status().table(), expected);
        assert_eq!(
            status().verdict(),
            (
                false,
                "frozen: generation 4 failed; 1 of 2 workers serve".to_owned()
            )
        );
    }

    #[test]
    fn metrics_have_help_type_and_escaped_labels() {
        let text = status().metrics();
        for line in [
            "# TYPE spawnwork_worker_exits_total counter",
            "spawnwork_worker_exits_total{by=\"itself\"} 2",
            "spawnwork_frozen 1",
            "spawnwork_socket_queue_length{address=\"unix:/a\\\"b\"} 1",
            "spawnwork_worker_resident_bytes{slot=\"0\"} 56623104",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} in {text}");
        }
        assert!(!text.contains("overflows"), "{text}");
    }

    #[test]
    fn json_names_causes_as_the_events_do() -> Result<(), String> {
        let text = status().json()?;
        assert!(
            text.contains("\"by\":\"itself\"") && !text.contains('\n'),
            "{text}"
        );
        for by in By::ALL {
            assert_eq!(
                serde_json::to_string(&by).ok(),
                Some(format!("\"{}\"", by.name()))
            );
        }
        Ok(())
    }

    #[test]
    fn sizes() {
        assert_eq!(size(512 << 10), "512K");
        assert_eq!(size(1_572_864), "1.5M");
        assert_eq!(size(3 << 30), "3.0G");
    }
}
