//! Signals in every phase, and a terminal.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::hostile::{Hostile, Step, says};
use kit::{Dir, Run, Running, eventually};
use nix::sys::signal::Signal;

const PROGRAM: &str = env!("CARGO_BIN_EXE_heartbeat");
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
const BAD: &str = "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n";

const QUICK: [&str; 11] = [
    "--interval",
    "50ms",
    "--start-interval",
    "50ms",
    "--start-period",
    "0",
    "--grace",
    "0",
    "--jitter",
    "0",
    "--verbose",
];

fn out(running: &mut Running, part: &str) -> String {
    running.out_line(part, |line| line.contains(part))
}

fn start(server: &Hostile, words: &[&str]) -> Running {
    Run::new(PROGRAM)
        .args(["--port", &server.port.to_string()])
        .args(words)
        .start()
}

/// Paused, resumed, read again: each is said, and nothing else is said on stderr.
fn toggled(beat: &mut Running) {
    let before = beat.err().len();
    beat.signal(Signal::SIGUSR2);
    beat.event("paused");
    beat.signal(Signal::SIGHUP);
    beat.event("reloaded");
    beat.signal(Signal::SIGUSR1);
    beat.signal(Signal::SIGUSR2);
    beat.event("resumed");
    beat.signal(Signal::SIGHUP);
    beat.event("reloaded");
    let said = beat.err();
    assert_eq!(said.len(), before + 4, "{said:?}");
}

#[test]
fn before_the_first_check() {
    let server = Hostile::new(says(OK));
    let mut beat = start(&server, &["--start-delay", "1h", "--verbose"]);
    // It waits for its signals as soon as it waits for anything.
    eventually("it runs", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/wchan", beat.pid()));
        stat.is_ok_and(|at| at.contains("poll")).then_some(())
    });
    beat.signal(Signal::SIGHUP);
    beat.event("reloaded");
    beat.signal(Signal::SIGUSR2);
    beat.event("paused");
    beat.signal(Signal::SIGUSR1);
    beat.signal(Signal::SIGHUP);
    beat.event("reloaded");
    assert_eq!(server.served(), 0);
    // Whoever resumes wants to know.
    beat.signal(Signal::SIGUSR2);
    beat.event("resumed");
    out(&mut beat, " UP ");
    assert_eq!(beat.stop(), 0);
}

#[test]
fn while_a_check_runs() {
    let server = Hostile::in_turn(vec![says(OK), vec![Step::Wait], says(OK)]);
    let mut beat = start(&server, &[&QUICK[..], &["--timeout", "2s"]].concat());
    out(&mut beat, " UP ");
    eventually("the second check", || (server.served() == 2).then_some(()));
    toggled(&mut beat);
    // It goes on, and one at a time.
    out(&mut beat, " fail ");
    out(&mut beat, " ok ");
    beat.signal(Signal::SIGUSR2);
    beat.event("paused");
    let served = server.served();
    beat.signal(Signal::SIGUSR1);
    beat.signal(Signal::SIGHUP);
    beat.event("reloaded");
    // The one that ran when it was paused has ended by then.
    assert!(server.served() <= served + 1);
    assert_eq!(beat.stop(), 0);
}

#[test]
fn while_it_is_down_while_an_action_runs_and_when_it_has_given_up() {
    let (dir, server) = (Dir::new(), Hostile::in_turn(vec![says(OK), says(BAD)]));
    let told = dir.path().join("told");
    let told = told.to_str().unwrap();
    let action = format!("echo x >>{told}; while [ ! -e {told}.go ]; do sleep 0.05; done");
    let mut beat = start(
        &server,
        &[
            &QUICK[..],
            &["--fails", "1", "--on-fail", &action, "--limit", "2/1h"],
            &["--cooldown", "200ms"],
        ]
        .concat(),
    );
    let count = || {
        let text = std::fs::read_to_string(told).unwrap_or_default();
        text.lines().count()
    };
    out(&mut beat, " DOWN ");
    eventually("the action", || (count() == 1).then_some(()));
    toggled(&mut beat);
    out(&mut beat, "(an action runs)");
    toggled(&mut beat);
    assert_eq!(count(), 1);
    std::fs::write(format!("{told}.go"), "").unwrap();
    out(&mut beat, " GAVE UP ");
    assert_eq!(count(), 2);
    toggled(&mut beat);
    for _ in 0..3 {
        out(&mut beat, " fail ");
    }
    assert_eq!(count(), 2);
    assert_eq!(beat.stop(), 0);
}

#[test]
fn while_a_command_is_wrapped() {
    let server = Hostile::new(says(OK));
    let script =
        "trap 'echo hup' HUP; trap 'echo usr2' USR2; echo ready; while :; do sleep 0.05; done";
    let mut beat = start(&server, &[&QUICK[..], &["--", "sh", "-c", script]].concat());
    beat.out_line("ready", |line| line == "ready");
    beat.event("service-up");
    beat.signal(Signal::SIGUSR2);
    beat.out_line("it is passed on", |line| line == "usr2");
    beat.signal(Signal::SIGHUP);
    beat.out_line("that too", |line| line == "hup");
    beat.event("reloaded");
    beat.event("check-passed");
    beat.signal(Signal::SIGTERM);
    assert_eq!(beat.end(), 128 + 15);
    assert!(!beat.err().iter().any(|line| line.contains("paused")));
}

/// What stands on a terminal is what stands in a pipe: lines for people, without colours.
#[test]
fn a_terminal_gets_lines_and_a_key_ends_it() {
    let server = Hostile::new(says(OK));
    let script = |words: &str| {
        Run::new("script")
            .args([
                "-qec",
                &format!("exec {PROGRAM} --port {} {words}", server.port),
            ])
            .arg("/dev/null")
    };
    let found = script("--once").finish();
    let line = found.out.trim_end_matches("\r\n");
    assert!(
        found.status == 0
            && line.lines().count() == 1
            && line.contains(" ok   http://localhost:")
            && !line.contains('\u{1b}'),
        "{} {:?}",
        found.status,
        found.out
    );
    let (reader, mut writer) = std::io::pipe().unwrap();
    let mut beat = script("--interval 50ms --start-interval 50ms --verbose")
        .stdin(reader)
        .start();
    out(&mut beat, " UP ");
    out(&mut beat, " ok ");
    // Control-C.
    std::io::Write::write_all(&mut writer, b"\x03").unwrap();
    assert_eq!(beat.end(), 0, "{}", beat.out());
    assert!(!beat.out().contains('\u{1b}'), "{}", beat.out());
    // A terminal that goes away takes it along.
    let mut beat = script("--interval 50ms --start-interval 50ms --verbose").start();
    out(&mut beat, " UP ");
    let own = eventually("it runs below", || {
        kit::run::children_of(beat.pid()).first().copied()
    });
    beat.signal(Signal::SIGKILL);
    eventually("it has ended", || {
        common::child::stat(own)
            .is_none_or(|stat| stat.state == b'Z')
            .then_some(())
    });
}
