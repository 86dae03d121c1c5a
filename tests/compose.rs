//! The article's set-up: all five as one service, under load, with everything that goes wrong on a Monday.
//! No request fails but those in the hands of a worker that is killed, and each log line is there once.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::chain::{APP, Service, assert_gone, chain, siblings};
use kit::field;
use kit::run::children_of;
use kit::touch::touch;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::sync::{Mutex, MutexGuard, PoisonError};

const PROGRAM: &str = env!("CARGO_BIN_EXE_spawnwork");

/// The tests measure by time what hangs and what spins: one at a time is enough for a small machine.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    siblings(PROGRAM);
    guard
}

fn start() -> Service {
    Service::start(PROGRAM, APP, "12s")
}

#[test]
fn a_monday() {
    let _alone = alone();
    let mut service = start();

    // Deploys, touches and rotations: nothing fails.
    let load = service.load();
    load.answer(100);
    service.release("2", "throw new Error('a bad release');");
    let bad = service.ask(&[
        "spawnwork",
        "--ctl",
        "app.sock",
        "reload",
        "--timeout",
        "60s",
    ]);
    assert_eq!(bad.status, 1, "{}{}", bad.out, bad.err);
    assert!(bad.err.contains("a bad release"), "{}", bad.err);
    service.event("reload-failed");
    service.rotate();
    service.release("3", &APP.replace("VERSION", "three"));
    let good = service.ask(&[
        "spawnwork",
        "--ctl",
        "app.sock",
        "reload",
        "--timeout",
        "60s",
    ]);
    assert_eq!(good.status, 0, "{}{}", good.out, good.err);
    service.event("reload-committed");
    service.rotate();
    touch(service.dir.path().join("tmp/restart.txt"));
    service.event("signal-sent");
    service.rotate();
    service.event("reload-committed");
    load.answer(100);
    service.whole(load);

    // A look inside, and a profile, while it serves and rotates.
    let load = service.load();
    let same = service.ask(&[
        "replsock",
        "eval",
        "--all",
        "--compare",
        "shop",
        "process.version",
    ]);
    assert_eq!(same.status, 0, "{}{}", same.out, same.err);
    let asked = service.ask(&["replsock", "eval", "shop/1", "process.env.WORKER_ID"]);
    assert_eq!(
        (asked.status, asked.out.trim()),
        (0, "'1'"),
        "{}",
        asked.err
    );
    let taken = service.ask(&[
        "replsock",
        "prof",
        "shop/2",
        "--for",
        "2s",
        "-o",
        "p.cpuprofile",
    ]);
    assert_eq!(taken.status, 0, "{}{}", taken.out, taken.err);
    service.rotate();
    service.whole(load);

    // The disk is full for a while, and the logs lose nothing.
    let load = service.load();
    let filler = service.logs.path().join("filler");
    let _ = std::fs::write(&filler, vec![0u8; 32 << 20]);
    service.event("write-failed");
    load.answer(300);
    std::fs::remove_file(&filler).unwrap();
    service.event("write-recovered");
    service.rotate();
    service.whole(load);

    // A worker is killed.
    let load = service.load();
    load.answer(100);
    let victim = service.request("/");
    kill(Pid::from_raw(victim.parse().unwrap()), Signal::SIGKILL).unwrap();
    let ended = service.event("worker-exited");
    assert_eq!(field(&ended, "pid"), victim);
    service.event("worker-ready");
    service.rotate();
    service.but_of(load, &victim);

    // One spins: it alone is ended.
    let load = service.load();
    load.answer(100);
    let spinning = service.request("/spin");
    let ended = service
        .running
        .event_with("worker-exited", &format!("pid={spinning} "));
    assert_eq!(field(&ended, "signal"), "KILL", "{ended}");
    service.event("worker-ready");
    service.rotate();
    service.but_of(load, &spinning);

    // One hangs: it does not answer its REPL, and gets successors.
    let load = service.load();
    load.answer(100);
    let hanging = service.request("/hang");
    service.event("reload-committed");
    service
        .running
        .event_with("worker-exited", &format!("pid={hanging} "));
    service.but_of(load, &hanging);

    // And the end, with requests in hand.
    assert_eq!(service.running.stop(), 0, "{}", service.said());
    service.assert_lines();
    let lost: Vec<String> = service
        .running
        .err()
        .into_iter()
        .filter(|line| line.contains(": lines-lost ") || line.contains(": line-split "))
        .collect();
    assert!(lost.is_empty(), "{lost:?}");
}

#[test]
fn each_signal_goes_where_it_belongs() {
    let _alone = alone();
    let mut service = start();
    for (name, pid) in chain(&service) {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        assert_eq!(comm.trim(), name);
    }
    let load = service.load();
    load.answer(50);

    // logreopen's own; nobody below hears of it.
    let log = service.logs.path().join("app.out");
    std::fs::rename(&log, log.with_extension("out.1")).unwrap();
    service.running.signal(Signal::SIGHUP);
    let file = format!("file={} ", log.display());
    service.running.event_with("output-reopened", &file);
    // spawnwork's, through three others: HUP would have been the second generation.
    service.running.signal(Signal::SIGUSR2);
    service
        .running
        .event_with("reload-committed", "generation=2 ");
    // watchtouch's own: as if the file was touched.
    service.running.signal(Signal::SIGUSR1);
    service.running.event_with("file-touched", "via=signal");
    service
        .running
        .event_with("reload-committed", "generation=3 ");
    service.running.signal(Signal::SIGTTIN);
    service.running.event_with("workers-changed", "workers=4");
    service.running.signal(Signal::SIGTTOU);
    service.running.event_with("workers-changed", "workers=3");
    // Nobody's.
    service.running.signal(Signal::SIGWINCH);
    load.answer(50);
    service.whole(load);

    let before = chain(&service);
    let workers = children_of(before[3].1);
    service.running.signal(Signal::SIGINT);
    assert_eq!(service.running.end(), 0, "{}", service.said());
    assert_gone(&before, &workers);
    service.assert_lines();
}

#[test]
fn one_status_and_no_one_is_left_behind() {
    let _alone = alone();
    // The supervisor's process is killed: the next one may start at once.
    let mut service = start();
    let before = chain(&service);
    let workers = children_of(before[3].1);
    assert_eq!(workers.len(), 3);
    service.running.signal(Signal::SIGKILL);
    assert_eq!(service.running.end(), 137);
    assert_gone(&before, &workers);

    // The last of the chain is killed: all end, and the supervisor is told the signal.
    let mut service = start();
    let before = chain(&service);
    let workers = children_of(before[3].1);
    kill(Pid::from_raw(before[3].1), Signal::SIGKILL).unwrap();
    assert_eq!(service.running.end(), 137, "{}", service.said());
    assert_gone(&before, &workers);

    // What the innermost cannot start, the outermost says.
    for (command, status) in [("no-such-program", 127), ("/", 126)] {
        let failed = service.ask(&[
            "logreopen",
            "-l",
            "x.out",
            "--",
            "watchtouch",
            "x",
            "--signal",
            "USR2",
            "--",
            "heartbeat",
            "--port",
            "1",
            "--",
            "spawnwork",
            "--",
            command,
        ]);
        assert_eq!(failed.status, status, "{}", failed.err);
    }
    let failed = service.ask(&["logreopen", "-l", "x.out", "--", "watchtouch", "--no-such"]);
    assert_eq!(failed.status, 2, "{}", failed.err);
}
