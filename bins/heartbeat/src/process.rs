//! Processes from outside, by /proc: whether an event loop spins, processor time, memory, descriptors.
//! What the samples mean is a pure function of them.

use crate::cli::{Cpu, Fds};
use crate::outcome::{Failure, Reason};
use common::time::say;
use common::watched::{Watched, children};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Of the time of a window, that much must have been spent running or waiting to run, in percent, for a
/// loop to count as spinning: measured, a busy one that still answers is at 50 to 75, and does system
/// calls; one in `for(;;)` is at 100, and does none.
const SPINNING: u64 = 90;
/// A window is looked at through so many samples at most.
const SAMPLES: u32 = 16;

/// What is looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// `--children`
    pub children: bool,
    /// `--stuck`
    pub stuck: Option<Duration>,
    /// `--max-cpu`
    pub cpu: Option<Cpu>,
    /// `--max-rss`, in bytes.
    pub rss: Option<u64>,
    /// `--max-fds`
    pub fds: Option<Fds>,
}

impl Limits {
    /// The longest time that is looked back; `None`: nothing is.
    #[must_use]
    pub fn window(&self) -> Option<Duration> {
        self.stuck.max(self.cpu.map(|cpu| cpu.over))
    }

    /// How often samples must be taken at least.
    #[must_use]
    pub fn period(&self) -> Option<Duration> {
        let shortest = [self.stuck, self.cpu.map(|cpu| cpu.over)];
        shortest
            .into_iter()
            .flatten()
            .min()
            .map(|window| window / 2)
    }
}

/// Counters of a process at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When.
    pub at: Instant,
    /// What its main thread has run, and waited to be run.
    pub main: Duration,
    /// What all its threads have run.
    pub all: Duration,
    /// How often its main thread has gone to sleep by itself.
    pub voluntary: u64,
    /// System calls of its main thread that read and wrote; `None`: not ours to see.
    pub calls: Option<(u64, u64)>,
}

/// The samples of one process.
#[derive(Clone, Debug, Default)]
pub struct History {
    samples: VecDeque<Sample>,
    last: Option<Sample>,
}

impl History {
    /// One more; of those within `window` only some are kept.
    pub fn push(&mut self, sample: Sample, window: Duration) {
        self.last = Some(sample);
        let step = window / SAMPLES;
        let due = |kept: &Sample| sample.at.saturating_duration_since(kept.at) >= step;
        if self.samples.back().is_none_or(due) {
            self.samples.push_back(sample);
        }
        // The newest one that is older than the window is needed, and no older one.
        while self
            .samples
            .get(1)
            .is_some_and(|second| sample.at.saturating_duration_since(second.at) >= window)
        {
            self.samples.pop_front();
        }
    }

    /// The newest sample, and the newest of those that are at least `window` older.
    fn over(&self, window: Duration) -> Option<(Sample, Sample)> {
        let last = self.last?;
        let old = |sample: &&Sample| last.at.saturating_duration_since(sample.at) >= window;
        let first = self.samples.iter().rev().find(old)?;
        Some((*first, last))
    }

    /// For at least `window` the main thread has run, or waited to run, without a pause, and without
    /// reading or writing anything: percent of the time, and how long.
    #[must_use]
    pub fn spinning(&self, window: Duration) -> Option<(u64, Duration)> {
        let (first, last) = self.over(window)?;
        let time = last.at - first.at;
        let share = percent(last.main.saturating_sub(first.main), time);
        let still = first.voluntary == last.voluntary && first.calls == last.calls;
        (still && share >= SPINNING).then_some((share, time))
    }

    /// Processor time over `window`, in percent of one CPU.
    #[must_use]
    pub fn cpu(&self, window: Duration) -> Option<u64> {
        let (first, last) = self.over(window)?;
        Some(percent(
            last.all.saturating_sub(first.all),
            last.at - first.at,
        ))
    }
}

/// A share of a time, rounded.
#[must_use]
pub fn percent(part: Duration, whole: Duration) -> u64 {
    let whole = whole.as_micros().max(1);
    u64::try_from((part.as_micros() * 100 + whole / 2) / whole).unwrap_or(u64::MAX)
}

/// Reads the counters; `None` when it is gone.
#[must_use]
pub fn sample(pid: i32, tick: Duration) -> Option<Sample> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/status")).ok()?;
    let run = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/schedstat")).ok();
    let io = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/io")).ok();
    let at = Instant::now();
    let all = ticks(&stat)?;
    let main = match run.as_deref().and_then(schedstat) {
        Some(main) => main,
        // A kernel without CONFIG_SCHED_INFO.
        None => {
            let stat = std::fs::read(format!("/proc/{pid}/task/{pid}/stat")).ok()?;
            times(tick, ticks(&stat)?)
        }
    };
    Some(Sample {
        at,
        main,
        all: times(tick, all),
        voluntary: number_after(&status, "voluntary_ctxt_switches:")?,
        calls: io.and_then(|io| Some((number_after(&io, "syscr:")?, number_after(&io, "syscw:")?))),
    })
}

/// So many ticks: many threads have more than 2^32 of them (16 months of one processor) within weeks.
fn times(tick: Duration, count: u64) -> Duration {
    let tick = u64::try_from(tick.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(tick.saturating_mul(count))
}

/// utime and stime of proc_pid_stat(5), the 14th and 15th field.
pub(crate) fn ticks(stat: &[u8]) -> Option<u64> {
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(close + 1..)?).ok()?;
    let mut words = rest.split_ascii_whitespace();
    let user: u64 = words.nth(11)?.parse().ok()?;
    let system: u64 = words.next()?.parse().ok()?;
    Some(user.saturating_add(system))
}

/// Nanoseconds on the processor and on its queue (sched-stats.rst of the kernel).
pub(crate) fn schedstat(text: &str) -> Option<Duration> {
    let mut words = text.split_ascii_whitespace();
    let run: u64 = words.next()?.parse().ok()?;
    let wait: u64 = words.next()?.parse().ok()?;
    Some(Duration::from_nanos(run.saturating_add(wait)))
}

pub(crate) fn number_after(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

/// Memory that is the process's own, in bytes: without files that are mapped, which the kernel can drop.
fn own_memory(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    memory_in(&status)
}

/// The same, by the text of /proc/PID/status.
pub(crate) fn memory_in(status: &str) -> Option<u64> {
    let anonymous = number_after(status, "RssAnon:")?;
    let kb = anonymous.saturating_add(number_after(status, "RssShmem:")?);
    Some(kb.saturating_mul(1024))
}

/// Open descriptors, and the soft limit of them.
fn descriptors(pid: i32) -> Option<(u64, u64)> {
    let count = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let limit = number_after(&limits, "Max open files")?;
    Some((count as u64, limit))
}

/// Processor time of the machine, and what of it the hypervisor has given to others, in ticks
/// (proc_stat(5)).
#[must_use]
pub fn machine() -> Option<(u64, u64)> {
    use std::io::Read;
    let mut text = [0u8; 256];
    // The first line; the others are made for nobody.
    let count = std::fs::File::open("/proc/stat")
        .ok()?
        .read(&mut text)
        .ok()?;
    times_in(std::str::from_utf8(text.get(..count)?).ok()?)
}

/// The same, by the text of /proc/stat.
pub(crate) fn times_in(text: &str) -> Option<(u64, u64)> {
    let line = text.lines().next()?;
    let times: Vec<u64> = line
        .strip_prefix("cpu ")?
        .split_ascii_whitespace()
        .take(8)
        .filter_map(|word| word.parse().ok())
        .collect();
    let all = times
        .iter()
        .fold(0u64, |all, time| all.saturating_add(*time));
    Some((all, times.get(7).copied()?))
}

/// Stolen time between two of these, in percent.
#[must_use]
pub fn stolen(before: Option<(u64, u64)>, after: Option<(u64, u64)>) -> Option<u64> {
    let ((all, stolen), (all_now, stolen_now)) = (before?, after?);
    let all = all_now.saturating_sub(all);
    (all > 0).then(|| stolen_now.saturating_sub(stolen).saturating_mul(100) / all)
}

/// The processes that are looked at, each held from when it was first seen.
#[derive(Debug)]
pub struct Processes {
    limits: Limits,
    tick: Duration,
    known: BTreeMap<i32, (Watched, History)>,
    hidden: bool,
}

impl Processes {
    /// Knows none yet.
    #[must_use]
    pub fn new(limits: Limits) -> Processes {
        let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK);
        let per_second = per_second.ok().flatten().filter(|count| *count > 0);
        let per_second = u32::try_from(per_second.unwrap_or(100)).unwrap_or(100);
        Processes {
            limits,
            tick: Duration::from_secs(1) / per_second,
            known: BTreeMap::new(),
            hidden: false,
        }
    }

    /// One of them, if it lives.
    #[must_use]
    pub fn get(&self, pid: i32) -> Option<&Watched> {
        let (watched, _) = self.known.get(&pid)?;
        watched.alive().then_some(watched)
    }

    /// Looks at the service `main`, or at its children. True: one spins.
    pub fn look(&mut self, main: Option<i32>) -> bool {
        let Some(main) = main else {
            self.known.clear();
            return false;
        };
        let now = if self.limits.children {
            children(main)
        } else {
            vec![main]
        };
        // Who is gone, or whose number another process has now, is forgotten.
        self.known
            .retain(|pid, (watched, _)| now.contains(pid) && watched.alive());
        for pid in now {
            if !self.known.contains_key(&pid) {
                let Ok(watched) = Watched::hold(pid) else {
                    continue;
                };
                let ours = !self.limits.children
                    || common::child::stat(pid).is_some_and(|stat| stat.parent == main);
                if ours {
                    self.known.insert(pid, (watched, History::default()));
                }
            }
        }
        let Some(window) = self.limits.window() else {
            return false;
        };
        let mut spins = false;
        for (pid, (watched, history)) in &mut self.known {
            let Some(sample) = sample(*pid, self.tick) else {
                continue;
            };
            if !watched.alive() {
                continue;
            }
            self.hidden |= sample.calls.is_none();
            history.push(sample, window);
            spins |= self
                .limits
                .stuck
                .is_some_and(|stuck| history.spinning(stuck).is_some());
        }
        spins
    }

    /// Their counters of reads and writes cannot be seen.
    #[must_use]
    pub fn hidden(&self) -> bool {
        self.hidden
    }

    /// The first that is beyond a limit.
    #[must_use]
    pub fn judge(&self) -> Option<Failure> {
        self.known.iter().find_map(|(pid, (_, history))| {
            let of = if self.limits.children {
                format!("worker {pid}")
            } else {
                format!("pid {pid}")
            };
            let found = |reason, text: String, decisive| {
                let mut failure = Failure::new(reason, format!("{of} {text}"));
                failure.pid = Some(*pid);
                failure.decisive = decisive;
                failure
            };
            if let Some(stuck) = self.limits.stuck {
                if let Some((share, time)) = history.spinning(stuck) {
                    let text = format!("spins for {}, cpu={share}%", say(time));
                    return Some(found(Reason::Stuck, text, true));
                }
            }
            if let Some(cpu) = self.limits.cpu {
                match history.cpu(cpu.over) {
                    Some(share) if share > u64::from(cpu.percent) => {
                        let text = format!(
                            "uses {share}% of a CPU over {}, more than {}%",
                            say(cpu.over),
                            cpu.percent
                        );
                        return Some(found(Reason::Cpu, text, true));
                    }
                    Some(_) | None => {}
                }
            }
            if let Some(most) = self.limits.rss {
                match own_memory(*pid) {
                    Some(bytes) if bytes > most => {
                        let text = format!("has {} MiB, more than {} MiB", bytes >> 20, most >> 20);
                        return Some(found(Reason::Rss, text, false));
                    }
                    Some(_) | None => {}
                }
            }
            if let Some(fds) = self.limits.fds {
                if let Some((count, limit)) = descriptors(*pid) {
                    let most = match fds {
                        Fds::Count(most) => most,
                        Fds::Percent(share) => limit.saturating_mul(u64::from(share)) / 100,
                    };
                    if count > most {
                        let text = format!("has {count} descriptors of {limit}, more than {most}");
                        return Some(found(Reason::Fds, text, false));
                    }
                }
            }
            None
        })
    }

    /// Processor time of the service and of those that are looked at, for the line of a failure.
    #[must_use]
    pub fn used(&self, main: Option<i32>) -> Option<Duration> {
        let main = main?;
        let mut pids: Vec<i32> = self.known.keys().copied().collect();
        if !pids.contains(&main) {
            pids.push(main);
        }
        let ticks = pids.iter().filter_map(|pid| {
            let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
            ticks(&stat)
        });
        let all = ticks.fold(0u64, u64::saturating_add);
        Some(times(self.tick, all))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A sample each second: (main thread ms, voluntary switches, reads and writes) more than before.
    fn history(rows: &[(u64, u64, u64)], window: Duration) -> History {
        let start = Instant::now();
        let mut history = History::default();
        let (mut main, mut voluntary, mut calls) = (0, 0, 0);
        for (second, row) in rows.iter().enumerate() {
            main += row.0;
            voluntary += row.1;
            calls += row.2;
            let sample = Sample {
                at: start + SECOND * second as u32,
                main: Duration::from_millis(main),
                all: Duration::from_millis(main),
                voluntary,
                calls: Some((calls, calls)),
            };
            history.push(sample, window);
        }
        history
    }

    #[test]
    fn the_table_of_what_spins() {
        let window = SECOND * 5;
        for (what, row, spins) in [
            ("for(;;)", (1000, 0, 0), true),
            (
                "for(;;) beside others, waiting for the CPU",
                (950, 0, 0),
                true,
            ),
            ("idle", (0, 0, 0), false),
            ("50 requests a second", (38, 50, 50), false),
            ("saturated", (1000, 250, 4400), false),
            ("saturated, without a pause", (1000, 0, 4400), false),
            ("collecting garbage", (1010, 19, 4), false),
            ("half the time", (500, 0, 0), false),
        ] {
            let found = history(&[row; 7], window).spinning(window).is_some();
            assert_eq!(found, spins, "{what}");
        }
        // Not before the window has passed; and not when it began within it.
        assert!(
            history(&[(1000, 0, 0); 5], window)
                .spinning(window)
                .is_none()
        );
        let mut rows = vec![(10, 5, 5); 20];
        rows.extend([(1000, 0, 0); 4]);
        assert!(history(&rows, window).spinning(window).is_none());
        rows.push((1000, 0, 0));
        assert_eq!(history(&rows, window).spinning(window), Some((100, window)));
    }

    #[test]
    fn memory_of_samples_is_bounded_and_the_window_is_still_seen() {
        let start = Instant::now();
        let mut history = History::default();
        for ms in 0..100_000u32 {
            let at = start + Duration::from_millis(u64::from(ms));
            let sample = Sample {
                at,
                main: Duration::from_millis(u64::from(ms)),
                all: Duration::from_millis(u64::from(ms)),
                voluntary: 0,
                calls: None,
            };
            history.push(sample, SECOND * 5);
        }
        assert!(history.samples.len() <= 18, "{}", history.samples.len());
        let (share, time) = history.spinning(SECOND * 5).unwrap();
        assert!(share == 100 && time < SECOND * 6, "{share} {time:?}");
        assert_eq!(history.cpu(SECOND * 5), Some(100));
    }

    #[test]
    fn our_own_counters_can_be_read() {
        let pid = std::process::id() as i32;
        let sample = sample(pid, Duration::from_millis(10)).unwrap();
        assert!(sample.main > Duration::ZERO && sample.calls.is_some());
        assert!(own_memory(pid).unwrap() > 100_000);
        let (count, limit) = descriptors(pid).unwrap();
        assert!(count > 2 && limit >= count);
        assert!(machine().is_some());
        // More than 2^32 ticks: 64 threads have them in eight days.
        let stat = b"7 (a) b) S 1 1 1 0 -1 0 0 0 0 0 4294967290 10 0 0 20 0 1 0 7";
        let long = times(Duration::from_millis(10), ticks(stat).unwrap());
        assert_eq!(long, Duration::from_secs(42_949_673));
        assert_eq!(stolen(Some((100, 10)), Some((200, 60))), Some(50));
        assert_eq!(stolen(Some((100, 10)), Some((100, 10))), None);
        assert_eq!(
            number_after(
                "Max open files            1024   4096 files",
                "Max open files"
            ),
            Some(1024)
        );
    }
}
