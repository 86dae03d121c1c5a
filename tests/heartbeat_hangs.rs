//! What does not come back: a library call that hangs, a socket's path and a pid file on a dead file server.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::fuse::Fuse;
use kit::hostile::{Hostile, on_unix, says};
use kit::{Dir, Run, Running, eventually};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_heartbeat");
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
const BAD: &str = "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n";

const QUICK: [&str; 11] = [
    "--interval",
    "50ms",
    "--fast-interval",
    "50ms",
    "--start-interval",
    "50ms",
    "--start-period",
    "0",
    "--jitter",
    "0",
    "--verbose",
];

fn out(running: &mut Running, part: &str) -> String {
    running.out_line(part, |line| line.contains(part))
}

fn threads(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .count()
}

#[test]
fn a_check_whose_thread_hangs_is_a_failure_and_another_thread_takes_over() {
    let (dir, server) = (Dir::new(), Hostile::new(says(OK)));
    let built = Run::new("cc")
        .args(["-shared", "-fPIC", "-o", "hang.so"])
        .arg(kit::app("hang.c"))
        .dir(dir.path())
        .finish();
    assert_eq!(built.status, 0, "{}", built.err);
    let start = || {
        Run::new(PROGRAM)
            .args(["--port", &server.port.to_string(), "--timeout", "100ms"])
            .args(["--fails", "2"])
            .args(QUICK)
            .env("LD_PRELOAD", dir.path().join("hang.so"))
            .env("HANG", dir.path().join("hang"))
            .start()
    };
    let mut beat = start();
    out(&mut beat, " UP ");
    let hang = dir.write("hang", "");
    for count in 1..=4 {
        let line = out(&mut beat, " fail ");
        assert!(
            line.contains("timeout after 100.0ms (no connection; its thread hangs)"),
            "{line}"
        );
        let event = beat.event("check-hangs");
        assert!(event.contains(&format!("count={count}")), "{event}");
    }
    // Two failures were enough, and no more than four threads hang, however long it lasts.
    assert_eq!(beat.out().matches(" DOWN ").count(), 1, "{}", beat.out());
    for _ in 0..5 {
        let line = out(&mut beat, " fail ");
        assert!(
            line.contains("timeout 4 checks before it still hang (no connection)"),
            "{line}"
        );
    }
    assert_eq!(threads(beat.pid()), 5);
    // They come back, with a success each that nobody wants any more; the service is up by a new check.
    let served = server.served();
    std::fs::remove_file(&hang).unwrap();
    out(&mut beat, " UP ");
    eventually("the others are gone", || {
        (threads(beat.pid()) == 2).then_some(())
    });
    out(&mut beat, " ok ");
    let said = beat.out();
    let well = said.split(" UP ").nth(2).unwrap().matches(" ok ").count() as u32;
    assert!(server.served() > served + 4 && well > 0, "{said}");
    assert_eq!(beat.stop(), 0);
    assert_eq!(beat.out().matches(" UP ").count(), 2, "{}", beat.out());
    // One that hangs is no reason not to end when told to.
    let mut beat = start();
    out(&mut beat, " UP ");
    dir.write("hang", "");
    beat.event("check-hangs");
    assert_eq!(beat.stop(), 0);
    // One shot too has an answer; the simplest, which needs no thread, ends at least.
    let once = |check: &[&str]| {
        Run::new(PROGRAM)
            .args(["--once", "--timeout", "100ms"])
            .args(check)
            .env("LD_PRELOAD", dir.path().join("hang.so"))
            .env("HANG", dir.path().join("hang"))
            .finish()
    };
    let to = format!("localhost:{}", server.port);
    let found = once(&["--tcp", &to, "--exec", "true"]);
    assert!(
        found.status == 1 && found.out.contains("(no connection; its thread hangs)"),
        "{}{}",
        found.out,
        found.err
    );
    assert_eq!(once(&["--tcp", &to]).status, 128 + Signal::SIGALRM as i32);
}

// Edge case 23, where it would look like that: stopped, it has had no time for any thread to come back.
#[test]
fn a_suspension_is_not_taken_for_a_thread_that_hangs() {
    let server = Hostile::in_turn(vec![says(OK), vec![kit::hostile::Step::Wait], says(OK)]);
    let mut beat = Run::new(PROGRAM)
        .args(["--port", &server.port.to_string(), "--timeout", "5s"])
        .args(["--fails", "1"])
        .args(QUICK)
        .start();
    out(&mut beat, " UP ");
    eventually("the second check", || (server.served() == 2).then_some(()));
    beat.signal(Signal::SIGSTOP);
    // Beyond its limit, and beyond the time that a thread is given after that.
    let end = Instant::now() + Duration::from_secs(9);
    eventually("9 s", || (Instant::now() >= end).then_some(()));
    beat.signal(Signal::SIGCONT);
    beat.event("check-late");
    out(&mut beat, " ok ");
    beat.stop();
    assert!(!beat.out().contains("DOWN"), "{}", beat.out());
    assert!(
        !beat.err().iter().any(|line| line.contains("check-hangs")),
        "{:?}",
        beat.err()
    );
}

#[test]
fn a_socket_on_a_file_server_that_died() {
    let mut mount = Fuse::bindfs();
    let name = mount.path().join("app.sock");
    on_unix(&mount.server().join("app.sock"), OK);
    let words = ["--unix", name.to_str().unwrap(), "--timeout", "200ms"];
    // The client remembers what it has seen; this it has not.
    mount.hang();
    let mut beat = Run::new(PROGRAM).args(words).args(QUICK).start();
    let line = out(&mut beat, "its thread hangs");
    assert!(
        line.contains("timeout after 200.0ms (no connection;"),
        "{line}"
    );
    beat.event("check-hangs");
    assert_eq!(beat.stop(), 0);
}

#[test]
fn a_pid_file_on_a_file_server_that_died() {
    let mut mount = Fuse::bindfs();
    let mut app = Run::new("sh")
        .args(["-c", "trap 'echo told' USR1; while :; do sleep 0.1; done"])
        .start();
    std::fs::write(mount.server().join("app.pid"), format!("{}\n", app.pid())).unwrap();
    let file = mount.path().join("app.pid");
    let server = Hostile::in_turn(vec![says(OK), says(OK), says(BAD)]);
    let mut beat = Run::new(PROGRAM)
        .args(["--pid-file", file.to_str().unwrap(), "--timeout", "300ms"])
        .args(QUICK)
        .start();
    out(&mut beat, " UP ");
    mount.hang();
    // It is said once, and the process that is known is looked at as before.
    beat.event("pid-file-hangs");
    for _ in 0..10 {
        out(&mut beat, " ok ");
    }
    assert_eq!(threads(beat.pid()), 2);
    let hangs = |beat: &Running| {
        let err = beat.err();
        let said = err.iter().filter(|line| line.contains("pid-file-hangs"));
        said.count()
    };
    assert_eq!(hangs(&beat), 1, "{:?}", beat.err());
    // It is read again as soon as it can be, and it is said again when it hangs again.
    mount.resume();
    let mut other = Run::new("sleep").arg("600").start();
    std::fs::write(&file, format!("{}\n", other.pid())).unwrap();
    beat.line("another", |line| {
        line.contains("process-found") && line.contains(&format!("pid={}", other.pid()))
    });
    mount.hang();
    beat.event("pid-file-hangs");
    // Its end is seen all the same.
    other.signal(Signal::SIGKILL);
    other.end();
    out(&mut beat, " gone the process has ended");
    assert_eq!(beat.stop(), 0);
    mount.resume();
    std::fs::write(&file, format!("{}\n", app.pid())).unwrap();

    // An action waits for it no longer than a second, and is about the process that it named last.
    let mut beat = Run::new(PROGRAM)
        .args(["--pid-file", file.to_str().unwrap(), "--timeout", "300ms"])
        .args(["--port", &server.port.to_string(), "--fails", "1"])
        .args(["--signal", "USR1"])
        .args(QUICK)
        .start();
    out(&mut beat, " UP ");
    mount.hang();
    let run = out(&mut beat, " run ");
    assert!(
        run.contains(&format!("signal USR1 to {}", app.pid())),
        "{run}"
    );
    app.out_line("the signal", |line| line == "told");
    assert_eq!(beat.stop(), 0);

    // One that was never read names nobody.
    let found = Run::new(PROGRAM)
        .args(["--once", "--pid-file", file.to_str().unwrap()])
        .args(["--timeout", "300ms"])
        .finish();
    assert!(
        found.status == 1 && found.out.contains("app.pid: it is not read in time"),
        "{}{}",
        found.out,
        found.err
    );
    app.signal(Signal::SIGKILL);
}
