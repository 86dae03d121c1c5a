//! Calls to the kernel that fail, one after the other, in a master that is asked for everything meanwhile: no
//! request fails but those in the hands of a worker that was killed, and when the fault is over, all is well.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::faults::{Fault, Faults};
use kit::http::Failure;
use kit::load::{Load, Options};
use kit::run::children_of;
use kit::{Dir, Run, app, eventually, free_port};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const SPAWNWORK: &str = env!("CARGO_BIN_EXE_spawnwork");

const FAULTS: &[(&str, Errno)] = &[
    ("clone", Errno::EAGAIN),
    ("clone", Errno::ENOMEM),
    ("pipe2", Errno::EMFILE),
    ("socketpair", Errno::EMFILE),
    ("socketpair", Errno::ENOMEM),
    ("socket", Errno::ENFILE),
    ("pidfd_open", Errno::EMFILE),
    ("pidfd_open", Errno::ENOMEM),
    ("epoll_ctl", Errno::ENOMEM),
    ("epoll_ctl", Errno::ENOSPC),
    ("accept4", Errno::EMFILE),
    ("accept4", Errno::ENOMEM),
    ("accept4", Errno::ECONNABORTED),
    ("openat", Errno::EMFILE),
    ("openat", Errno::EIO),
    ("openat", Errno::ENOMEM),
    ("read", Errno::EIO),
    ("write", Errno::EIO),
    ("write", Errno::ENOSPC),
    ("write", Errno::EAGAIN),
    ("sendmsg", Errno::ENOBUFS),
    ("sendmsg", Errno::EAGAIN),
    ("sendmsg", Errno::ETOOMANYREFS),
    ("sendto", Errno::ENOBUFS),
    ("recvmsg", Errno::ENOMEM),
    ("recvfrom", Errno::ENOMEM),
    ("statx", Errno::EIO),
    ("statx", Errno::EACCES),
    ("getdents64", Errno::EIO),
    ("fcntl", Errno::ENOMEM),
    ("kill", Errno::EPERM),
    ("pidfd_send_signal", Errno::EPERM),
    ("waitid", Errno::EINTR),
    ("waitid", Errno::ECHILD),
    ("listen", Errno::EADDRINUSE),
    ("getsockopt", Errno::ENOBUFS),
    ("setsockopt", Errno::ENOMEM),
    ("prlimit64", Errno::EPERM),
    ("mmap", Errno::ENOMEM),
    ("brk", Errno::ENOMEM),
    ("mprotect", Errno::ENOMEM),
    ("poll", Errno::ENOMEM),
    ("epoll_wait", Errno::EINTR),
    ("readlink", Errno::EIO),
    ("memfd_create", Errno::EMFILE),
    ("timerfd_settime", Errno::EINVAL),
];

fn descriptors(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

#[test]
fn explore() {
    let only = std::env::var("ONLY").ok();
    let calls: Vec<&str> = FAULTS.iter().map(|(call, _)| *call).collect();
    let faults = Faults::of(&calls);
    let mut bad = Vec::new();
    for (call, error) in FAULTS {
        if only.as_ref().is_some_and(|only| only != call) {
            continue;
        }
        let begun = Instant::now();
        let result = std::panic::catch_unwind(|| one(&faults, call, *error));
        faults.heal();
        eprintln!("{call} {error} {:?} {:?}", begun.elapsed(), result.as_ref().ok());
        if result.is_err() {
            bad.push(format!("{call} {error}"));
        }
    }
    assert!(bad.is_empty(), "{bad:?}");
}

fn one(faults: &Faults, call: &'static str, error: Errno) -> u64 {
    let (dir, port) = (Dir::new(), free_port());
    let mut master = faults
        .run(SPAWNWORK)
        .args(["-n", "2", "--control", "c.sock", "--pid-file", "pid"])
        .args(["--probation", "50ms", "--respawn-limit", "0"])
        .args(["--ready-timeout", "5s", "--stop-timeout", "10s", "--backoff", "50ms..200ms"])
        .args(["--", "node"])
        .arg(app("hello.js"))
        .env("PORT", port.to_string())
        .dir(dir.path())
        .start();
    master.event("generation-serving");
    let ctl = |words: &str, limit: &str| {
        let run = Run::new(SPAWNWORK).args(["--ctl", "c.sock", "--timeout", limit]);
        run.args(words.split(' ')).dir(dir.path()).finish()
    };
    let load = Load::paced(
        &Options {
            address: format!("127.0.0.1:{port}"),
            keep_alive: 3,
            fresh: 2,
            paths: vec!["/"],
            expect: "hello ",
            timeout: kit::PATIENCE,
        },
        Duration::from_millis(5),
    );
    load.answer(20);
    let before = descriptors(master.pid());
    let who = format!("pid:{}", master.pid());
    faults.fail(&[Fault::each(call, error, who)]);
    let asked = ctl("status", "1s");
    let mut killed = BTreeSet::new();
    let victim = children_of(master.pid())[0];
    killed.insert(victim.to_string());
    kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
    load.answer(20);
    let reloaded = ctl("reload", "1s");
    load.answer(20);
    faults.heal();
    eprintln!(
        "  {call} {error}: status {} {}, reload {} {}",
        asked.status,
        asked.err.lines().last().unwrap_or_default(),
        reloaded.status,
        reloaded.err.lines().last().unwrap_or_default()
    );
    let hits = faults.hits();
    let begun = Instant::now();
    let mut last = String::new();
    while begun.elapsed() < Duration::from_secs(20) {
        let answer = ctl("reload", "15s");
        last = format!("{} {}", answer.status, answer.err);
        if answer.status == 0 {
            break;
        }
    }
    let status = ctl("status", "5s");
    let all_well = last.starts_with("0 ") && status.status == 0;
    let tally = load.stop();
    let log = || master.err().join("\n");
    assert!(all_well, "{last}\n{}{}\n{}", status.out, status.err, log());
    let own = |kind: &Failure| matches!(kind, Failure::Reset | Failure::Empty);
    let foreign: Vec<_> = tally
        .broken
        .iter()
        .filter(|(kind, who)| !own(kind) || !killed.contains(who))
        .collect();
    assert!(foreign.is_empty(), "{foreign:?} {:?}\n{}", tally.failed, log());
    assert!(tally.failed.keys().all(own), "{:?}\n{}", tally.failed, log());
    eventually("old ones are gone", || {
        (children_of(master.pid()).len() == 2).then_some(())
    });
    eventually("descriptors", || (descriptors(master.pid()) <= before).then_some(()));
    let stopped = master.stop();
    let log = master.err().join("\n");
    assert_eq!(stopped, 0, "{log}");
    assert!(!log.contains("panicked"));
    hits
}
