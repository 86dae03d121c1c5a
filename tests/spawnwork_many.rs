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
