//! System calls that fail when a test wants it, in whom it wants: see `tests/apps/faults.c`.

use crate::{Dir, Run, app};
use std::path::PathBuf;

/// One call that fails.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Of the calls that were named at the start.
    pub call: &'static str,
    /// What it fails with.
    pub error: nix::errno::Errno,
    /// The name of a program's file, or `pid:N`.
    pub who: String,
    /// In how many percent of all cases.
    pub percent: u32,
}

impl Fault {
    /// Each such call of `who`.
    #[must_use]
    pub fn each(call: &'static str, error: nix::errno::Errno, who: impl Into<String>) -> Fault {
        Fault {
            call,
            error,
            who: who.into(),
            percent: 100,
        }
    }
}

/// What programs are started with whose calls are to fail.
#[derive(Debug)]
pub struct Faults {
    calls: String,
    dir: Dir,
}

impl Faults {
    /// Those are the calls that may fail later.
    #[must_use]
    pub fn of(calls: &[&str]) -> Faults {
        let dir = Dir::new();
        let built = Run::new("cc")
            .args(["-O1", "-Wall", "-Wextra", "-Werror", "-o"])
            .args([dir.path().join("faults"), app("faults.c")])
            .finish();
        assert_eq!(built.status, 0, "{}", built.err);
        let mut calls: Vec<&str> = calls.to_vec();
        calls.sort_unstable();
        calls.dedup();
        Faults {
            calls: calls.join(","),
            dir,
        }
    }

    fn rules(&self) -> PathBuf {
        self.dir.path().join("rules")
    }

    /// The program, with these at its back. Its pid will be its own.
    #[must_use]
    pub fn run(&self, program: impl AsRef<std::ffi::OsStr>) -> Run {
        Run::new(self.dir.path().join("faults"))
            .arg(self.rules())
            .arg(&self.calls)
            .arg(program)
    }

    /// From now on those fail, and no others do.
    pub fn fail(&self, faults: &[Fault]) {
        let lines: Vec<String> = faults
            .iter()
            .map(|fault| {
                let number = fault.error as i32;
                format!("{} {number} {} {}\n", fault.call, fault.who, fault.percent)
            })
            .collect();
        let _ = std::fs::remove_file(self.counts());
        self.dir.write("rules.new", &lines.concat());
        std::fs::rename(self.dir.path().join("rules.new"), self.rules()).unwrap();
    }

    /// From now on everything succeeds.
    pub fn heal(&self) {
        let _ = std::fs::remove_file(self.rules());
    }

    fn counts(&self) -> PathBuf {
        self.dir.path().join("rules.count")
    }

    /// How many calls have failed by the faults that were set last.
    #[must_use]
    pub fn hits(&self) -> u64 {
        std::fs::read_to_string(self.counts())
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.parse::<u64>().ok())
            .sum()
    }
}
