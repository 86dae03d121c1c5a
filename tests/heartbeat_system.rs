//! Beside systemd, Prometheus and strace.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::hostile::{Hostile, says};
use kit::{Dir, Run, eventually, free_port};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_heartbeat");
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
const BAD: &str = "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n";

/// An idle, healthy one forks nothing, and its loop wakes only for its checks.
#[test]
fn an_idle_one_forks_nothing_and_wakes_for_its_checks_only() {
    let (dir, server) = (Dir::new(), Hostile::new(says(OK)));
    let mut beat = Run::new("strace")
        .args([
            "-f",
            "-o",
            "trace",
            "-e",
            "trace=fork,vfork,clone,clone3,execve,epoll_wait,poll,ppoll,futex",
        ])
        .args([PROGRAM, "--port", &server.port.to_string()])
        .args([
            "--start-interval",
            "200ms",
            "--interval",
            "200ms",
            "--jitter",
            "0",
            "--verbose",
        ])
        .dir(dir.path())
        .start();
    beat.out_line("up", |line| line.contains(" UP "));
    let trace = || std::fs::read_to_string(dir.path().join("trace")).unwrap_or_default();
    let (before, served) = (trace().lines().count(), server.served());
    eventually("twenty checks", || {
        (server.served() >= served + 20).then_some(())
    });
    let text = trace();
    let lines: Vec<&str> = text.lines().skip(before).collect();
    let checks = u32::max(server.served() - served, 20) as usize;
    let count = |call: &str| {
        lines
            .iter()
            .filter(|line| line.contains(call) && !line.contains("resumed"))
            .count()
    };
    for call in [" fork(", "vfork(", "clone(", "clone3(", "execve("] {
        assert_eq!(count(call), 0, "{call}: {text}");
    }
    // The loop: once for the tick, once for the answer. The thread: for the reply, and the server's end.
    assert!(
        count("epoll_wait(") <= 2 * checks + 4,
        "{} for {checks} checks",
        count("epoll_wait(")
    );
    assert!(
        count("poll(") <= 3 * checks + 4,
        "{} for {checks} checks",
        count("poll(")
    );
    let children = kit::run::children_of(beat.pid());
    for child in children {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(child),
            nix::sys::signal::Signal::SIGTERM,
        );
    }
    beat.end();
}

#[test]
fn systemd_gets_readiness_and_signs_of_life() {
    let dir = Dir::new();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let next = || {
        let mut buffer = [0u8; 4096];
        let count = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    };
    // Not ready before the first success.
    let server = Hostile::in_turn(vec![
        says(BAD),
        says(BAD),
        says(OK),
        says(OK),
        says(OK),
        says(BAD),
    ]);
    let mut beat = Run::new(PROGRAM)
        .args([
            "--port",
            &server.port.to_string(),
            "--sd-notify",
            "--fails",
            "1",
        ])
        .args([
            "--start-interval",
            "50ms",
            "--interval",
            "50ms",
            "--jitter",
            "0",
        ])
        .env("NOTIFY_SOCKET", &path)
        .start();
    let mut said = Vec::new();
    while !said
        .iter()
        .any(|text: &String| text.starts_with("STATUS=down"))
    {
        said.push(next());
    }
    let ready = said
        .iter()
        .position(|text| text.starts_with("READY=1\nWATCHDOG=1"))
        .unwrap();
    assert!(
        !said[..ready].iter().any(|text| text.contains("WATCHDOG")),
        "{said:?}"
    );
    assert_eq!(
        said.iter().filter(|text| *text == "WATCHDOG=1").count(),
        2,
        "{said:?}"
    );
    assert!(said.contains(&"STATUS=up".to_owned()), "{said:?}");
    // While it is down there is none: systemd does what it does to a service that hangs.
    assert_eq!(beat.stop(), 0);
    let mut rest = Vec::new();
    while !rest.contains(&"STOPPING=1".to_owned()) {
        rest.push(next());
    }
    assert!(
        !rest.iter().any(|text| text.contains("WATCHDOG")),
        "{rest:?}"
    );
}

#[test]
fn metrics_are_what_prometheus_reads() {
    let (dir, server) = (
        Dir::new(),
        Hostile::in_turn(vec![says(OK), says(BAD), says(OK)]),
    );
    let mut beat = Run::new(PROGRAM)
        .args(["--port", &server.port.to_string(), "--metrics", "beat.prom"])
        .args([
            "--start-interval",
            "50ms",
            "--interval",
            "50ms",
            "--jitter",
            "0",
        ])
        .dir(dir.path())
        .start();
    let path = dir.path().join("beat.prom");
    let text = eventually("metrics", || {
        let text = std::fs::read_to_string(&path).ok()?;
        text.contains("reason=\"status\"} 1\n").then_some(text)
    });
    let checked = Run::new("sh")
        .args(["-c", "promtool check metrics <beat.prom"])
        .dir(dir.path())
        .finish();
    assert_eq!(
        (checked.status, &*checked.out, &*checked.err),
        (0, "", ""),
        "{text}"
    );
    beat.stop();
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    // What is no regular file, such as /dev/null, is not replaced by one.
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let reader = {
        let fifo = fifo.clone();
        std::thread::spawn(move || std::fs::read_to_string(fifo).unwrap())
    };
    let piped = Run::new(PROGRAM)
        .args(["--once", "--port", &server.port.to_string()])
        .args(["--metrics", "fifo"])
        .dir(dir.path())
        .finish();
    let kind = fifo.symlink_metadata().unwrap().file_type();
    assert!(
        std::os::unix::fs::FileTypeExt::is_fifo(&kind),
        "{}",
        piped.err
    );
    eventually("it came through", || reader.is_finished().then_some(()));
    assert!(reader.join().unwrap().contains("# TYPE"));
    // One shot has written it when it ends, or says why not.
    for (file, part) in [("once.prom", ""), ("no/such/file", "metrics-failed")] {
        let found = Run::new(PROGRAM)
            .args([
                "--once",
                "--port",
                &server.port.to_string(),
                "--metrics",
                file,
            ])
            .dir(dir.path())
            .finish();
        assert!(
            found.status == 0 && found.err.contains(part),
            "{}",
            found.err
        );
    }
    let text = std::fs::read_to_string(dir.path().join("once.prom")).unwrap();
    assert!(text.contains("heartbeat_check_success{target="), "{text}");
    // A directory that is missing is said once, and stops nothing.
    let mut beat = Run::new(PROGRAM)
        .args([
            "--port",
            &server.port.to_string(),
            "--metrics",
            "no/such/file",
            "--verbose",
        ])
        .args([
            "--start-interval",
            "50ms",
            "--interval",
            "50ms",
            "--jitter",
            "0",
        ])
        .dir(dir.path())
        .start();
    let line = beat.event("metrics-failed");
    assert!(line.contains("no such file or directory"), "{line}");
    for _ in 0..5 {
        beat.out_line("ok", |line| line.contains(" ok "));
    }
    beat.stop();
    assert_eq!(
        beat.err()
            .iter()
            .filter(|line| line.contains("metrics-failed"))
            .count(),
        1
    );
}

// Edge case 22.
#[test]
fn checks_of_one_heartbeat_never_overlap() {
    let dir = Dir::new();
    let port = free_port().to_string();
    dir.write(
        "app.js",
        "let open = 0;\n\
         require('http').createServer((q, r) => { open += 1; if (open > 1) console.log('two at once'); setTimeout(() => { open -= 1; r.end('x'); console.log('one'); }, 130); })\n\
         .listen(Number(process.env.PORT), '127.0.0.1');\n",
    );
    let mut node = Run::new("node")
        .arg("app.js")
        .env("PORT", &port)
        .dir(dir.path())
        .start();
    let mut beat = Run::new(PROGRAM)
        .args([
            "--port",
            &port,
            "--interval",
            "20ms",
            "--start-interval",
            "20ms",
        ])
        .start();
    for _ in 0..10 {
        node.out_line("one", |line| line == "one");
    }
    assert_eq!(beat.stop(), 0);
    assert!(!node.out().contains("two at once"), "{}", node.out());
}

// Edge case 24.
#[test]
fn a_clock_that_jumps_changes_nothing() {
    let dir = Dir::new();
    let built = Run::new("cc")
        .args(["-shared", "-fPIC", "-o", "jump.so"])
        .arg(kit::app("clock_jump.c"))
        .dir(dir.path())
        .finish();
    assert_eq!(built.status, 0, "{}", built.err);
    let server = Hostile::new(says(OK));
    let mut beat = Run::new(PROGRAM)
        .args([
            "--port",
            &server.port.to_string(),
            "--interval",
            "50ms",
            "--start-interval",
            "50ms",
            "--verbose",
            "--fails",
            "1",
        ])
        .env("LD_PRELOAD", dir.path().join("jump.so"))
        .env("JUMP", dir.path().join("jump"))
        .start();
    let hour_of = |line: &str| line[..13].to_owned();
    let first = hour_of(&beat.out_line("ok", |line| line.contains(" ok ")));
    dir.write("jump", "");
    // Ten hours ahead, and back: the times in the lines go, the checks stay.
    beat.out_line("ahead", |line| {
        hour_of(line) > first && line.contains(" ok ")
    });
    for _ in 0..5 {
        beat.out_line("ok", |line| line.contains(" ok "));
    }
    std::fs::remove_file(dir.path().join("jump")).unwrap();
    beat.out_line("back", |line| {
        hour_of(line) == first && line.contains(" ok ")
    });
    beat.stop();
    assert!(
        !beat.out().contains("DOWN") && !beat.out().contains("fail"),
        "{}",
        beat.out()
    );
}
