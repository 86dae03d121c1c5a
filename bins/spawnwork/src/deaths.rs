//! Who ended a worker: what an operator asks first. Pure.

use common::exit::End;
use common::lines::LastLines;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Who or what ended a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// It left, or failed, by itself.
    Itself,
    /// We had asked it to go: a stop, a reload, a smaller number of workers.
    Asked,
    /// It did not go in time.
    StopTimeout,
    /// It was not ready in time.
    ReadyTimeout,
    /// Its watchdog had not been fed in time.
    Watchdog,
    /// Its resident set was over `--max-rss`.
    MemoryLimit,
    /// It was as old as `--max-lifetime`.
    Lifetime,
    /// The operator, by way of the control socket.
    Operator,
    /// The kernel had no memory left for it.
    OomKiller,
    /// A signal of somebody else.
    Outside,
}

impl By {
    /// All of them, for counters that are to exist before they count.
    pub const ALL: [By; 10] = [
        By::Itself,
        By::Asked,
        By::StopTimeout,
        By::ReadyTimeout,
        By::Watchdog,
        By::MemoryLimit,
        By::Lifetime,
        By::Operator,
        By::OomKiller,
        By::Outside,
    ];

    /// In one word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            By::Itself => "itself",
            By::Asked => "asked",
            By::StopTimeout => "stop-timeout",
            By::ReadyTimeout => "ready-timeout",
            By::Watchdog => "watchdog",
            By::MemoryLimit => "memory-limit",
            By::Lifetime => "lifetime",
            By::Operator => "operator",
            By::OomKiller => "oom-killer",
            By::Outside => "outside",
        }
    }
}

/// Signals that the kernel raises for what the program itself did, and abort(3).
const FAULTS: [i32; 9] = [
    libc_signal::ILL,
    libc_signal::TRAP,
    libc_signal::ABRT,
    libc_signal::BUS,
    libc_signal::FPE,
    libc_signal::SEGV,
    libc_signal::PIPE,
    libc_signal::XCPU,
    libc_signal::SYS,
];

/// signal(7), the numbers of x86 and ARM.
mod libc_signal {
    pub const ILL: i32 = 4;
    pub const TRAP: i32 = 5;
    pub const ABRT: i32 = 6;
    pub const BUS: i32 = 7;
    pub const FPE: i32 = 8;
    pub const KILL: i32 = 9;
    pub const SEGV: i32 = 11;
    pub const PIPE: i32 = 13;
    pub const XCPU: i32 = 24;
    pub const SYS: i32 = 31;
}

/// Whether the kernel's count of OOM kills has gone up since the worker was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oom {
    /// It has.
    Counted,
    /// It has not, or nobody counts.
    No,
}

/// Names the cause of an end. `ours` is what we did to the worker, if anything.
#[must_use]
pub fn judge(end: Option<End>, ours: Option<By>, oom: Oom) -> By {
    match (ours, end) {
        // Asked to go, but what ended it was neither its own way out nor the signal that asks.
        (None | Some(By::Asked), Some(End::Killed(libc_signal::KILL))) => match oom {
            Oom::Counted => By::OomKiller,
            Oom::No => By::Outside,
        },
        (None | Some(By::Asked), Some(End::Killed(signal))) if FAULTS.contains(&signal) => {
            By::Itself
        }
        (Some(by), _) => by,
        (None, Some(End::Killed(_))) => By::Outside,
        (None, Some(End::Exited(_)) | None) => By::Itself,
    }
}

/// One end of one worker.
#[derive(Clone, Debug)]
pub struct Death {
    /// Its pid, which may be another process's by now.
    pub pid: i32,
    /// Its generation.
    pub generation: u32,
    /// How it ended.
    pub end: Option<End>,
    /// Who ended it.
    pub by: By,
    /// How long it had lived.
    pub uptime: Duration,
    /// When it ended.
    pub at: Instant,
}

/// The last ends in a slot, and what the last worker said.
#[derive(Clone, Debug, Default)]
pub struct Deaths {
    list: VecDeque<Death>,
    words: Vec<String>,
}

impl Deaths {
    /// So many are remembered.
    const MOST: usize = 5;

    /// Takes note of one.
    pub fn note(&mut self, death: Death, words: Vec<String>) {
        if self.list.len() == Deaths::MOST {
            self.list.pop_back();
        }
        self.list.push_front(death);
        self.words = words;
    }

    /// The newest first.
    pub fn iter(&self) -> impl Iterator<Item = &Death> {
        self.list.iter()
    }

    /// The last lines on stderr of the worker that died last.
    #[must_use]
    pub fn words(&self) -> &[String] {
        &self.words
    }
}

/// The lines that are kept of a worker's stderr.
#[must_use]
pub fn spoken(words: &LastLines) -> Vec<String> {
    words.lines().map(|line| line.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_of_an_end() {
        let (exited, killed) = (|status| Some(End::Exited(status)), |n| Some(End::Killed(n)));
        for (end, ours, oom, by) in [
            (exited(0), None, Oom::No, By::Itself),
            (exited(1), None, Oom::Counted, By::Itself),
            (killed(11), None, Oom::No, By::Itself),
            (killed(6), None, Oom::No, By::Itself),
            (killed(9), None, Oom::No, By::Outside),
            (killed(9), None, Oom::Counted, By::OomKiller),
            (killed(15), None, Oom::Counted, By::Outside),
            (killed(15), Some(By::Asked), Oom::No, By::Asked),
            (exited(0), Some(By::Asked), Oom::No, By::Asked),
            (killed(11), Some(By::Asked), Oom::No, By::Itself),
            (killed(9), Some(By::Asked), Oom::No, By::Outside),
            (killed(9), Some(By::Asked), Oom::Counted, By::OomKiller),
            (
                killed(9),
                Some(By::StopTimeout),
                Oom::Counted,
                By::StopTimeout,
            ),
            (killed(9), Some(By::ReadyTimeout), Oom::No, By::ReadyTimeout),
            (killed(9), Some(By::Operator), Oom::No, By::Operator),
            (None, None, Oom::No, By::Itself),
        ] {
            assert_eq!(judge(end, ours, oom), by, "{end:?} {ours:?} {oom:?}");
        }
    }

    #[test]
    fn only_the_last_five_are_kept_the_newest_first() {
        let mut deaths = Deaths::default();
        for pid in 0..9 {
            let death = Death {
                pid,
                generation: 1,
                end: None,
                by: By::Itself,
                uptime: Duration::ZERO,
                at: Instant::now(),
            };
            deaths.note(death, vec![format!("said {pid}")]);
        }
        let pids: Vec<i32> = deaths.iter().map(|death| death.pid).collect();
        assert_eq!(pids, [8, 7, 6, 5, 4]);
        assert_eq!(deaths.words(), ["said 8"]);
        assert!(By::ALL.iter().all(|by| !by.name().is_empty()));
    }
}
