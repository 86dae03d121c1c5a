//! Actions: when they are taken and when not, with what, and how they end.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::hostile::{Hostile, Step, says};
use kit::run::children_of;
use kit::{Dir, Run, Running, app, eventually, free_port, sibling};
use nix::sys::signal::Signal;
use std::path::Path;

const PROGRAM: &str = env!("CARGO_BIN_EXE_heartbeat");
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
const BAD: &str = "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n";

/// Ticks that a test can wait for, without grace or cool-down.
const QUICK: [&str; 16] = [
    "--interval",
    "50ms",
    "--fast-interval",
    "50ms",
    "--start-interval",
    "50ms",
    "--jitter",
    "0",
    "--start-period",
    "0",
    "--grace",
    "0",
    "--cooldown",
    "0",
    "--limit",
    "0",
];

fn watch(dir: &Dir, words: &[&str]) -> Running {
    // What a test says itself comes instead.
    let mut all: Vec<&str> = Vec::new();
    for pair in QUICK.chunks(2) {
        if !words.contains(&pair[0]) {
            all.extend(pair);
        }
    }
    all.extend(words);
    Run::new(PROGRAM).args(all).dir(dir.path()).start()
}

/// A server that is well or not by a file.
struct Switch {
    dir: Dir,
    port: String,
    server: Running,
}

impl Switch {
    fn new() -> Switch {
        let (dir, port) = (Dir::new(), free_port().to_string());
        dir.write(
            "app.js",
            "const fs = require('fs');\n\
             require('http').createServer((q, r) => { r.statusCode = fs.existsSync('bad') ? 503 : 200; r.end('x'); })\n\
             .listen(Number(process.env.PORT), '127.0.0.1', () => console.log('listening'));\n",
        );
        let mut server = Run::new("node")
            .arg("app.js")
            .env("PORT", &port)
            .dir(dir.path())
            .start();
        server.out_line("listening", |line| line == "listening");
        Switch { dir, port, server }
    }

    fn bad(&self) {
        self.dir.write("bad", "");
    }

    fn good(&self) {
        std::fs::remove_file(self.dir.path().join("bad")).unwrap();
    }

    fn watch(&self, words: &[&str]) -> Running {
        watch(&self.dir, &[&["--port", &self.port][..], words].concat())
    }
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path)
        .unwrap_or_default()
        .lines()
        .count()
}

fn out(running: &mut Running, part: &str) -> String {
    running.out_line(part, |line| line.contains(part))
}

// The article's line, word by word: a hung app under spawnwork is back in service by exactly one action.
#[test]
fn the_line_of_the_article() {
    let spawnwork = sibling(PROGRAM, "spawnwork");
    let (dir, port) = (Dir::new(), free_port());
    dir.write(
        "app.js",
        "const http = require('http');\n\
         http.createServer((q, r) => { if (q.url === '/hang') for (;;); r.end(`hello ${process.pid}`); })\n\
         .listen(Number(process.env.PORT), '127.0.0.1');\n",
    );
    let mut master = Run::new(spawnwork)
        .args([
            "-n",
            "1",
            "--stop-timeout",
            "1s",
            "--probation",
            "50ms",
            "--pid-file",
            "app.pid",
        ])
        .args(["--", "node", "app.js"])
        .env("PORT", port.to_string())
        .dir(dir.path())
        .start();
    master.event("generation-serving");
    let mut beat = Run::new(PROGRAM)
        .args(["--port", &port.to_string()])
        .args(["--on-fail", "kill -USR2 $PID", "--pid-file", "app.pid"])
        // The article's 10 s each would be waited for.
        .args([
            "--interval",
            "500ms",
            "--timeout",
            "500ms",
            "--fails",
            "2",
            "--start-interval",
            "100ms",
        ])
        .dir(dir.path())
        .start();
    out(&mut beat, " UP ");
    let _ = std::thread::spawn(move || kit::http::get(format!("127.0.0.1:{port}"), "/hang"));
    let down = out(&mut beat, " DOWN ");
    assert!(
        down.contains("timeout x2 since ") && down.contains(" cpu="),
        "{down}"
    );
    let run = out(&mut beat, " run ");
    let expected = format!(
        "run  kill -USR2 {} (attempt 1, next not before 30s)",
        master.pid()
    );
    assert!(run.ends_with(&expected), "{run}");
    let up = out(&mut beat, " UP ");
    assert!(up.contains(" 200 ") && up.contains(" after "), "{up}");
    assert!(
        kit::http::get(format!("127.0.0.1:{port}"), "/")
            .unwrap()
            .body
            .starts_with("hello ")
    );
    assert_eq!(beat.stop(), 0);
    assert_eq!(beat.out().matches(" run ").count(), 1, "{}", beat.out());
    master.event("reload-committed");
    let reloads = master
        .err()
        .iter()
        .filter(|line| line.contains(": reload-started "))
        .count();
    assert!(reloads == 1, "{:?}", master.err());
}

#[test]
fn what_an_action_is_told() {
    let switch = Switch::new();
    let pid = switch.server.pid().to_string();
    let mut beat = switch.watch(&[
        "--fails",
        "2",
        "--pid",
        &pid,
        "--before-action",
        "echo before >>order",
        "--on-fail",
        "env | grep -E '^(PID|HEARTBEAT_)' >told.new; mv told.new told; echo fail >>order",
        "--on-recover",
        "env | grep ^HEARTBEAT_ >back.new; mv back.new back",
        "--on-change",
        "echo $HEARTBEAT_PREVIOUS $HEARTBEAT_STATE >>changes",
        "--on-ok",
        "echo >>oks",
        "--cooldown",
        "1h",
    ]);
    out(&mut beat, " UP ");
    eventually("a sign of life", || {
        (lines(&switch.dir.path().join("oks")) > 2).then_some(())
    });
    switch.bad();
    let down = out(&mut beat, " DOWN ");
    assert!(
        down.contains("status x2 since ") && down.contains(" steal="),
        "{down}"
    );
    let told = switch.dir.path().join("told");
    let told = eventually("the action ran", || std::fs::read_to_string(&told).ok());
    let has = |line: &str| told.lines().any(|told| told == line);
    for line in [
        &*format!("PID={pid}"),
        "HEARTBEAT_STATE=down",
        "HEARTBEAT_PREVIOUS=up",
        "HEARTBEAT_REASON=status",
        "HEARTBEAT_DETAIL=503",
        "HEARTBEAT_STATUS=503",
        "HEARTBEAT_ATTEMPT=1",
        "HEARTBEAT_FAILS=2",
        &*format!("HEARTBEAT_TARGET=http://localhost:{}/", switch.port),
    ] {
        assert!(has(line), "{line} in {told}");
    }
    for name in [
        "HEARTBEAT_LATENCY_MS=",
        "HEARTBEAT_SINCE=",
        "HEARTBEAT_STEAL=",
    ] {
        assert!(told.contains(name), "{name} in {told}");
    }
    let order = switch.dir.path().join("order");
    eventually("the one before the other", || {
        (std::fs::read_to_string(&order).unwrap() == "before\nfail\n").then_some(())
    });
    switch.good();
    out(&mut beat, " UP ");
    let back = switch.dir.path().join("back");
    let back = eventually("the recovery was told", || {
        std::fs::read_to_string(&back).ok()
    });
    assert!(
        back.contains("HEARTBEAT_STATE=up\n") && back.contains("HEARTBEAT_PREVIOUS=down\n"),
        "{back}"
    );
    assert!(back.contains("HEARTBEAT_STATUS=200\n"), "{back}");
    eventually("the changes were told", || {
        let changes =
            std::fs::read_to_string(switch.dir.path().join("changes")).unwrap_or_default();
        (changes == "starting up\nup down\ndown up\n").then_some(())
    });
    assert_eq!(beat.stop(), 0);
}

// Edge case 30.
#[test]
fn a_success_just_before_the_action_cancels_it() {
    let bad = || says(BAD);
    let server = Hostile::in_turn(vec![says(OK), bad(), bad(), says(OK)]);
    let dir = Dir::new();
    let port = server.port.to_string();
    let mut beat = watch(
        &dir,
        &["--port", &port, "--fails", "2", "--on-fail", "touch acted"],
    );
    out(&mut beat, " UP ");
    out(&mut beat, " skip ");
    beat.stop();
    assert!(
        !dir.path().join("acted").exists() && !beat.out().contains("DOWN"),
        "{}",
        beat.out()
    );
}

// Edge case 31.
#[test]
fn flapping_is_seen_by_n_of_m_only() {
    let pattern: Vec<_> = (0..40)
        .map(|turn| says(if turn % 2 == 0 { OK } else { BAD }))
        .collect();
    let dir = Dir::new();
    for (fails, down) in [("3", false), ("3/5", true)] {
        let server = Hostile::in_turn(pattern.clone());
        let port = server.port.to_string();
        let mut beat = watch(&dir, &["--port", &port, "--fails", fails]);
        if down {
            out(&mut beat, " DOWN ");
        } else {
            eventually("many checks", || (server.served() > 20).then_some(()));
        }
        beat.stop();
        assert_eq!(beat.out().contains("DOWN"), down, "{fails}: {}", beat.out());
    }
}

// Edge case 29, and recovery from it.
#[test]
fn attempts_up_to_the_limit_then_it_gives_up_until_well() {
    let switch = Switch::new();
    let mut beat = switch.watch(&[
        "--fails",
        "1",
        "--on-fail",
        "echo $HEARTBEAT_ATTEMPT >>acted",
        "--limit",
        "3/1h",
        "--on-change",
        "echo $HEARTBEAT_PREVIOUS $HEARTBEAT_STATE >>changes",
        "--metrics",
        "m.prom",
    ]);
    out(&mut beat, " UP ");
    switch.bad();
    out(&mut beat, " GAVE UP after 3 actions in 1h");
    let metrics = switch.dir.path().join("m.prom");
    eventually("metrics say so", || {
        let text = std::fs::read_to_string(&metrics).unwrap_or_default();
        (text.contains("heartbeat_state{state=\"gave-up\"} 1\n")
            && text.contains("heartbeat_actions_total 3\n"))
        .then_some(())
    });
    let acted = switch.dir.path().join("acted");
    assert_eq!(std::fs::read_to_string(&acted).unwrap(), "1\n2\n3\n");
    switch.good();
    out(&mut beat, " UP ");
    assert_eq!(lines(&acted), 3);
    eventually("the changes", || {
        let changes =
            std::fs::read_to_string(switch.dir.path().join("changes")).unwrap_or_default();
        (changes == "starting up\nup down\ndown gave-up\ngave-up up\n").then_some(())
    });
    beat.stop();

    switch.bad();
    let mut beat = switch.watch(&[
        "--fails",
        "1",
        "--on-fail",
        "true",
        "--limit",
        "1/1h",
        "--exit-on-giveup",
    ]);
    assert_eq!(beat.end(), 1, "{}", beat.out());
}

#[test]
fn the_cooldown_holds_the_second_action() {
    let switch = Switch::new();
    switch.bad();
    let mut beat = switch.watch(&[
        "--fails",
        "1",
        "--on-fail",
        "echo >>acted",
        "--cooldown",
        "1h",
    ]);
    out(&mut beat, "(attempt 1, next not before 1h)");
    let held = out(&mut beat, " hold ");
    assert!(held.contains("the action waits (cooldown, 59m"), "{held}");
    beat.stop();
    assert_eq!(lines(&switch.dir.path().join("acted")), 1);
}

#[test]
fn failures_in_the_grace_after_an_action_do_not_count() {
    let switch = Switch::new();
    switch.bad();
    let mut beat = switch.watch(&[
        "--fails",
        "1",
        "--on-fail",
        "echo >>acted",
        "--grace",
        "1h",
        "--verbose",
    ]);
    out(&mut beat, " run ");
    for _ in 0..5 {
        out(&mut beat, "status 503 (does not count yet)");
    }
    // The first success ends it.
    switch.good();
    out(&mut beat, " UP ");
    switch.bad();
    out(&mut beat, " run ");
    beat.stop();
}

// Edge cases 25 and 26.
#[test]
fn an_action_that_hangs_with_grandchildren() {
    let switch = Switch::new();
    switch.bad();
    let mut beat = switch.watch(&[
        "--fails", "1", "--verbose", "--cooldown", "1h", "--action-timeout", "500ms",
        "--on-fail", "trap '' TERM; (trap '' TERM; sleep 600; :) & echo $! >grand.new; mv grand.new grand; echo x >>acted; wait; sleep 600",
    ]);
    out(&mut beat, "status 503 (an action runs)");
    let grand = switch.dir.path().join("grand");
    let grand = eventually("the grandchild", || std::fs::read_to_string(&grand).ok());
    let grand: i32 = grand.trim().parse().unwrap();
    let line = beat.event("action-failed");
    assert!(
        line.contains("action=on-fail")
            && line.contains("status=\"signal KILL\"")
            && line.contains("its time ran out"),
        "{line}"
    );
    eventually("the grandchild is gone", || {
        let stat = common::child::stat(grand);
        stat.is_none_or(|stat| stat.state == b'Z').then_some(())
    });
    assert_eq!(children_of(beat.pid()), [], "no zombie");
    assert_eq!(lines(&switch.dir.path().join("acted")), 1);
    beat.stop();
}

// Edge cases 27 and 28.
#[test]
fn an_action_that_fails_or_does_not_exist_counts_as_one() {
    let switch = Switch::new();
    switch.bad();
    for (command, status) in [
        ("exit 3", "status 3"),
        ("no-such-command-here", "status 127"),
    ] {
        let mut beat = switch.watch(&["--fails", "1", "--on-fail", command, "--cooldown", "1h"]);
        let line = beat.event("action-failed");
        assert!(line.contains(&format!("status=\"{status}\"")), "{line}");
        out(&mut beat, " hold ");
        assert_eq!(beat.stop(), 0);
        assert_eq!(beat.out().matches(" run ").count(), 1);
    }
}

// Edge case 40.
#[test]
fn term_during_a_check_and_during_an_action() {
    let server = Hostile::new(vec![Step::Wait]);
    let dir = Dir::new();
    let port = server.port.to_string();
    let mut beat = watch(&dir, &["--port", &port, "--timeout", "1h"]);
    eventually("it is asked", || (server.served() > 0).then_some(()));
    assert_eq!(beat.stop(), 0);

    let switch = Switch::new();
    switch.bad();
    let mut beat = switch.watch(&[
        "--fails",
        "1",
        "--on-fail",
        "trap 'echo >termed; exit' TERM; echo >running; sleep 600 & wait",
    ]);
    let running = switch.dir.path().join("running");
    eventually("the action runs", || running.exists().then_some(()));
    assert_eq!(beat.stop(), 0);
    assert!(switch.dir.path().join("termed").exists());
}

#[test]
fn ending_on_a_failure() {
    let switch = Switch::new();
    switch.bad();
    let mut beat = switch.watch(&["--fails", "2", "--exit-on-fail"]);
    assert_eq!(beat.end(), 1);
    assert!(beat.out().contains("DOWN"), "{}", beat.out());
    let mut beat = switch.watch(&["--fails", "1", "--exit-on-fail", "--on-fail", "echo >last"]);
    assert_eq!(beat.end(), 1);
    assert!(switch.dir.path().join("last").exists());
}

#[test]
fn a_signal_without_a_shell() {
    let switch = Switch::new();
    let pid = switch.server.pid();
    switch.dir.write("app.pid", &format!("{pid}\n"));
    switch.bad();
    let mut beat = switch.watch(&[
        "--fails",
        "1",
        "--signal",
        "KILL",
        "--pid-file",
        "app.pid",
        "--cooldown",
        "1h",
    ]);
    let run = out(&mut beat, " run ");
    assert!(
        run.contains(&format!("signal KILL to {pid} (attempt 1")),
        "{run}"
    );
    eventually("it is gone", || {
        common::child::stat(pid)
            .is_none_or(|stat| stat.state == b'Z')
            .then_some(())
    });
    beat.stop();
}

#[test]
fn slow_is_a_state_of_its_own() {
    let dir = Dir::new();
    let port = free_port().to_string();
    let mut server = Run::new("node")
        .arg(app("hello.js"))
        .env("PORT", &port)
        .start();
    eventually("it listens", || {
        kit::http::get(format!("127.0.0.1:{port}"), "/").ok()
    });
    let words = [
        "--port",
        &port,
        "--path",
        "/slow",
        "--slow",
        "100ms",
        "--fails",
        "2",
        "--on-slow",
        "env | grep ^HEARTBEAT_ST >slow.new; mv slow.new slow",
    ];
    let mut beat = watch(&dir, &words);
    out(&mut beat, " UP ");
    let line = out(&mut beat, " SLOW ");
    assert!(line.contains("slower than 100ms"), "{line}");
    let slow = eventually("it was told", || {
        std::fs::read_to_string(dir.path().join("slow")).ok()
    });
    assert!(slow.contains("HEARTBEAT_STATE=slow\n"), "{slow}");
    beat.stop();
    server.signal(Signal::SIGKILL);
}

#[test]
fn no_action_while_the_hypervisor_steals() {
    // A /proc/stat of our own, in a mount namespace, whose steal grows with each look.
    let switch = Switch::new();
    switch.dir.write("stat", "cpu  100 0 0 100 0 0 0 0 0 0\n");
    let mut beat = Run::new("unshare")
        .args([
            "-m",
            "sh",
            "-c",
            "mount --bind stat /proc/stat && exec \"$@\"",
            "sh",
            PROGRAM,
        ])
        .args([
            "--port",
            &switch.port,
            "--skip-if-steal",
            "50%",
            "--on-fail",
            "echo >>acted",
            "--fails",
            "1",
        ])
        .args(QUICK)
        .dir(switch.dir.path())
        .start();
    out(&mut beat, " UP ");
    // In place: the mount is of this very file.
    let stat = switch.dir.path().join("stat");
    switch.bad();
    std::fs::write(&stat, "cpu  110 0 0 110 0 0 0 900 0 0\n").unwrap();
    let down = out(&mut beat, " DOWN ");
    if down.contains("steal=97%") {
        let held = out(&mut beat, " hold ");
        assert!(held.contains("the action waits (steal)"), "{held}");
        // When it steals no more, the action is taken.
        std::fs::write(&stat, "cpu  900 0 0 900 0 0 0 901 0 0\n").unwrap();
    }
    out(&mut beat, " run ");
    beat.stop();
}
