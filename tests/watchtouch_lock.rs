//! One at a time: flock on a shared file, and a lock of etcd.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::etcd::Etcd;
use kit::touch::touch;
use kit::{Dir, Run, Running, eventually};
use nix::sys::signal::Signal;

const PROGRAM: &str = env!("CARGO_BIN_EXE_watchtouch");

/// Fails loudly when it does not run alone.
const ACTION: &str = "mkdir alone || { echo together >> log; exit 1; }; echo $NAME began >> log; \
                      sleep 0.3; echo $NAME ended >> log; rmdir alone";

fn three(dir: &Dir, lock: [&str; 2], env: &[(&str, &str)]) -> Vec<Running> {
    ["a", "b", "c"]
        .into_iter()
        .map(|name| {
            let mut run = Run::new(PROGRAM)
                .args(["restart", "--once", "--on-touch", ACTION])
                .args(lock)
                .env("NAME", name)
                .dir(dir.path());
            for (name, value) in env {
                run = run.env(name, value);
            }
            let mut running = run.start();
            running.event("ready");
            running
        })
        .collect()
}

fn log(dir: &Dir) -> Vec<String> {
    let text = std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn one_after_another(dir: &Dir, mut hosts: Vec<Running>) {
    touch(dir.path().join("restart"));
    for host in &mut hosts {
        assert_eq!(host.end(), 0, "{:?}", host.err());
    }
    let log = log(dir);
    assert_eq!(log.len(), 6, "{log:?}");
    for pair in log.chunks(2) {
        let name = pair[0].split(' ').next().unwrap();
        assert_eq!(
            pair,
            [format!("{name} began"), format!("{name} ended")],
            "{log:?}"
        );
    }
}

#[test]
fn by_flock_they_act_one_after_another() {
    let dir = Dir::new();
    let hosts = three(&dir, ["--lock", "lock"], &[]);
    one_after_another(&dir, hosts);
}

#[test]
fn who_holds_the_lock_and_is_killed_is_followed_by_the_next() {
    let dir = Dir::new();
    let hold = "echo began >> log; while [ ! -e go ]; do sleep 0.05; done";
    let start = || {
        let mut running = Run::new(PROGRAM)
            .args(["restart", "--once", "--lock", "lock", "--on-touch", hold])
            .dir(dir.path())
            .start();
        running.event("ready");
        running
    };
    let mut first = start();
    touch(dir.path().join("restart"));
    first.event("lock-taken");
    eventually("its action", || (log(&dir).len() == 1).then_some(()));
    let mut second = start();
    touch(dir.path().join("restart"));
    second.event("lock-waiting");
    // One who waits can be told to stop.
    let mut third = start();
    touch(dir.path().join("restart"));
    third.event("lock-waiting");
    assert_eq!(third.stop(), 143);
    first.signal(Signal::SIGKILL);
    second.event("lock-taken");
    eventually("its action", || (log(&dir).len() == 2).then_some(()));
    touch(dir.path().join("go"));
    assert_eq!(second.end(), 0);
}

#[test]
fn a_lock_that_cannot_be_had_is_a_failure() {
    let dir = Dir::new();
    let mut running = Run::new(PROGRAM)
        .args([
            "restart",
            "--once",
            "--lock",
            "no/lock",
            "--on-touch",
            "true",
        ])
        .dir(dir.path())
        .start();
    running.event("ready");
    touch(dir.path().join("restart"));
    running.event("lock-failed");
    assert_eq!(running.end(), 125);
    let mut running = Run::new(PROGRAM)
        .args([
            "restart",
            "--once",
            "--lock-with",
            "no-such-engine",
            "--on-touch",
            "true",
        ])
        .dir(dir.path())
        .start();
    running.event("ready");
    touch(dir.path().join("restart"));
    running.event("action-failed");
    assert_eq!(running.end(), 127);
}

#[test]
fn by_a_lock_of_etcd_they_act_one_after_another() {
    let dir = Dir::new();
    let etcd = Etcd::start(&dir);
    let env = etcd.env();
    let hosts = three(&dir, ["--lock-with", "etcdctl lock restart/app --"], &env);
    one_after_another(&dir, hosts);
}

#[test]
fn when_the_holder_of_the_lock_of_etcd_is_killed_the_next_goes_on() {
    let dir = Dir::new();
    let etcd = Etcd::start(&dir);
    let start = |name: &str| {
        let action = "echo $NAME began >> log; while [ ! -e go ]; do sleep 0.05; done";
        let mut running = Run::new("setsid")
            .args([PROGRAM, "restart", "--once", "--on-touch", action])
            .args(["--lock-with", "etcdctl lock --ttl 2 restart/app --"])
            .env("ETCDCTL_API", "3")
            .env("ETCDCTL_ENDPOINTS", &etcd.endpoint)
            .env("NAME", name)
            .dir(dir.path())
            .start();
        running.event("ready");
        running
    };
    let mut first = start("a");
    touch(dir.path().join("restart"));
    let action = kit::field(&first.event("action-started"), "pid");
    eventually("its action", || (log(&dir) == ["a began"]).then_some(()));
    let mut second = start("b");
    touch(dir.path().join("restart"));
    second.event("action-started");
    // The whole host goes: the watcher, its action and the client of the lock, whose lease ends then.
    first.signal(Signal::SIGKILL);
    let group = nix::unistd::Pid::from_raw(action.parse().unwrap());
    nix::sys::signal::killpg(group, Signal::SIGKILL).unwrap();
    eventually("the next action", || {
        (log(&dir) == ["a began", "b began"]).then_some(())
    });
    touch(dir.path().join("go"));
    assert_eq!(second.end(), 0);
}

#[test]
fn when_only_the_watcher_is_killed_its_action_keeps_the_lock_of_etcd() {
    let dir = Dir::new();
    let etcd = Etcd::start(&dir);
    let start = |name: &str| {
        let action = "echo $NAME began >> log; while [ ! -e go ]; do sleep 0.05; done; \
                      echo $NAME ended >> log";
        let mut running = Run::new(PROGRAM)
            .args(["restart", "--once", "--on-touch", action])
            .args(["--lock-with", "etcdctl lock --ttl 2 restart/app --"])
            .env("ETCDCTL_API", "3")
            .env("ETCDCTL_ENDPOINTS", &etcd.endpoint)
            .env("NAME", name)
            .dir(dir.path())
            .start();
        running.event("ready");
        running
    };
    let mut first = start("a");
    touch(dir.path().join("restart"));
    eventually("its action", || (log(&dir) == ["a began"]).then_some(()));
    let mut second = start("b");
    touch(dir.path().join("restart"));
    second.event("action-started");
    first.signal(Signal::SIGKILL);
    assert_eq!(first.end(), 137);
    // The client of the lock lives on, and keeps its lease: three times as long as that are not enough.
    let until = std::time::Instant::now() + std::time::Duration::from_secs(6);
    eventually("three leases", || {
        assert_eq!(log(&dir), ["a began"]);
        (std::time::Instant::now() > until).then_some(())
    });
    touch(dir.path().join("go"));
    assert_eq!(second.end(), 0);
    assert_eq!(log(&dir), ["a began", "a ended", "b began", "b ended"]);
}
