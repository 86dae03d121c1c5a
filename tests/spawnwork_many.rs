//! Five hundred workers, and a thousand respawns: what they cost the master.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::{Dir, Run, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;

const SPAWNWORK: &str = env!("CARGO_BIN_EXE_spawnwork");

fn figure(pid: i32, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn descriptors(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count()
}

#[test]
fn five_hundred_workers_are_started_listed_and_stopped_and_cost_little() {
    let dir = Dir::new();
    let mut master = Run::new(SPAWNWORK)
        .args(["-n", "500", "--control", "c.sock", "--ready", "alive:50ms"])
        .args(["--start-parallel", "50", "--", "sleep", "600"])
        .dir(dir.path())
        .start();
    master.event("generation-serving");
    let status = Run::new(SPAWNWORK)
        .arg("--ctl")
        .args([dir.path().join("c.sock")])
        .args(["status"])
        .finish();
    assert_eq!(status.status, 0, "{}", status.err);
    let rows = status
        .out
        .lines()
        .filter(|line| line.contains(" serving "))
        .count();
    assert_eq!(rows, 500);
    let pids = kit::run::children_of(master.pid());
    assert_eq!(pids.iter().collect::<BTreeSet<_>>().len(), 500);
    // kB
    let rss = figure(master.pid(), "VmRSS:");
    assert!(rss < 12 * 1024, "{rss} kB");
    // Nothing happens, so it does not wake; at first it may still have a client to see off.
    eventually("three seconds without a wake-up", || {
        let wakes = || figure(master.pid(), "voluntary_ctxt_switches:");
        let before = wakes();
        std::thread::sleep(std::time::Duration::from_secs(3));
        (wakes() == before).then_some(())
    });
    assert_eq!(master.stop(), 0);
    for pid in pids {
        assert!(
            !std::path::Path::new(&format!("/proc/{pid}/exe")).exists(),
            "{pid}"
        );
    }
}

// Edge case 23.
#[test]
fn a_thousand_respawns_leave_no_descriptor_and_no_zombie_behind() {
    let mut master = Run::new(SPAWNWORK)
        .args(["-n", "20", "--respawn-limit", "0", "--backoff", "0s..0s"])
        .args(["--ready", "alive:10ms", "--start-parallel", "20"])
        .args(["--", "sleep", "600"])
        .start();
    let pid = master.pid();
    let all = || {
        let children = kit::run::children_of(pid);
        let asleep = |child: &i32| {
            std::fs::read_to_string(format!("/proc/{child}/comm"))
                .is_ok_and(|name| name == "sleep\n")
        };
        (children.len() == 20 && children.iter().all(asleep)).then_some(children)
    };
    // Not earlier: a master that has just forked still holds the worker's ends of the pipes.
    master.event("generation-serving");
    let mut children = eventually("all there", all);
    let before = descriptors(pid);
    let mut seen = BTreeSet::new();
    for _ in 0..50 {
        for child in &children {
            seen.insert(*child);
            kill(Pid::from_raw(*child), Signal::SIGKILL).unwrap();
        }
        let dead: BTreeSet<i32> = children.into_iter().collect();
        children = eventually("all there again", || {
            all().filter(|children| children.iter().all(|child| !dead.contains(child)))
        });
    }
    assert!(seen.len() >= 1000 - 20, "{}", seen.len());
    eventually("as many descriptors as before", || {
        (descriptors(pid) == before).then_some(())
    });
    assert_eq!(master.stop(), 0);
}

fn events_before<'a>(log: &'a [String], first: &str) -> &'a [String] {
    let end = log.iter().position(|line| line.contains(first)).unwrap();
    &log[..end]
}

fn count_of(log: &[String], event: &str) -> usize {
    log.iter().filter(|line| line.contains(event)).count()
}

#[test]
fn those_that_only_have_to_live_on_do_not_wait_for_each_other() {
    let mut master = Run::new(SPAWNWORK)
        .args(["-n", "30", "--start-parallel", "1", "--ready", "alive:4s"])
        .args(["--probation", "0", "--", "sleep", "600"])
        .start();
    master.event("generation-serving");
    let log = master.err();
    let first = events_before(&log, ": worker-ready ");
    // One after the other, two seconds each, there would be two.
    let started = count_of(first, ": worker-started ");
    assert!(started > 6, "{started} before the first was ready");
    // So it is in a reload, when the canary has shown that the release is good.
    master.signal(Signal::SIGUSR2);
    master.event("reload-committed");
    let log = master.err();
    let from = log
        .iter()
        .position(|line| line.contains(": reload-started "));
    let reload = &log[from.unwrap()..];
    let canary = events_before(reload, ": reload-canary ");
    assert_eq!(count_of(canary, ": worker-started "), 1);
    let fill = &reload[canary.len() + 1..];
    let fill = events_before(fill, ": worker-ready ");
    let started = count_of(fill, ": worker-started ");
    assert!(started > 6, "{started} before the second was ready");
    assert_eq!(master.stop(), 0);
}

#[test]
fn those_that_work_on_their_start_wait_for_each_other_also_behind_a_shell() {
    for program in ["while :; do :; done", "sh -c 'while :; do :; done' & wait"] {
        // Less than the two seconds after which one that hangs is not waited for.
        let mut master = Run::new(SPAWNWORK)
            .args(["-n", "3", "--start-parallel", "1", "--ready", "alive:1s"])
            .args(["--", "sh", "-c", program])
            .start();
        master.event("generation-serving");
        let log = master.err();
        let steps: Vec<&String> = log
            .iter()
            .filter(|line| line.contains(": worker-started ") || line.contains(": worker-ready "))
            .collect();
        assert_eq!(steps.len(), 6, "{steps:?}");
        for pair in steps.chunks(2) {
            assert!(pair[0].contains(": worker-started "), "{steps:?}");
            assert!(pair[1].contains(": worker-ready "), "{steps:?}");
        }
        assert_eq!(master.stop(), 0);
    }
}
