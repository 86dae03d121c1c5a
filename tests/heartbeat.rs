//! The command line, one shot, what is printed, and the wrapped form.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::hostile::{Hostile, Step, says};
use kit::{Dir, Finished, Run, Running, app, eventually, free_port};
use nix::sys::signal::Signal;
use std::io::Read;

const PROGRAM: &str = env!("CARGO_BIN_EXE_heartbeat");
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
const BAD: &str = "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n";

fn run(words: &[&str]) -> Finished {
    Run::new(PROGRAM).args(words).finish()
}

fn out(running: &mut Running, part: &str) -> String {
    running.out_line(part, |line| line.contains(part))
}

// Edge cases 19, 20 and 45, and the rest of what cannot be meant.
#[test]
fn bad_input_is_refused_by_name() {
    let long = format!("/{}", "x".repeat(107));
    for (words, name) in [
        (&["--port", "0"][..], "--port"),
        (&["--port", "65536"], "--port"),
        (&["--url", "localhost:3000"], "no scheme"),
        (
            &["--url", "http://localhost:99999/"],
            "the port is none of 1 to 65535",
        ),
        (&["--url", "http://localhost/a b"], "%20"),
        (&["--url", "http://user:pw@localhost/"], "user and password"),
        (&["--url", "ftp://localhost/"], "neither http nor https"),
        (&["--unix", &long], "108 bytes"),
        (&["--unix", ""], "--unix"),
        (&["--port", "80", "--timeout", "0"], "--timeout"),
        (&["--port", "80", "--interval", "0"], "--interval"),
        (&["--port", "80", "--interval", "9ms"], "--interval"),
        (&["--port", "80", "--expect", "abc"], "--expect"),
        (&["--port", "80", "--body", "("], "--body '('"),
        (&["--port", "80", "--not-body", "[z"], "--not-body"),
        (
            &["--port", "80", "--on-fail", "kill $PID"],
            "--on-fail uses $PID, but no process is named",
        ),
        (
            &["--port", "80", "--before-action", "gcore ${PID}"],
            "--before-action uses $PID",
        ),
        (
            &["--port", "80", "--signal", "USR2"],
            "--signal: no process is named",
        ),
        (
            &["--port", "80", "--stuck", "10s"],
            "--stuck: no process is named",
        ),
        (
            &["--port", "80", "--children"],
            "--children: no process is named",
        ),
        (&["--pid", "1"], "--pid"),
        (&["--pid", "9", "--pid-file", "f"], "one of them would do"),
        (&["--pid", "9", "--", "true"], "one of them would do"),
        (
            &["--once", "--port", "80", "--", "true"],
            "start no command",
        ),
        (
            &["--once", "--wait", "5s", "--port", "80"],
            "one of them would do",
        ),
        (&["--port", "80", "--format", "nagios"], ""),
        (&["--tcp", "localhost"], "no HOST:PORT"),
        (&["--tcp", "localhost:0"], "port 0"),
        (
            &["--port", "80", "--send", "x"],
            "--tcp HOST:PORT or --unix PATH would do",
        ),
        (&["--tcp", "localhost:1", "--send", "\\q"], "--send"),
        (
            &["--tcp", "localhost:1", "--body", "x"],
            "--body is for HTTP",
        ),
        (
            &["--url", "http://localhost/", "--path", "/x"],
            "at the end of the URL",
        ),
        (&["--port", "80", "--path", "x"], "--path"),
        (&["--port", "80", "--cacert", "f"], "for https"),
        (
            &["--port", "80", "--method", "HEAD", "--body", "x"],
            "--method GET would do",
        ),
        (&["--exec", ""], "--exec"),
        (&[], "nothing to check"),
    ] {
        let found = run(words);
        if words.contains(&"nagios") {
            // Nagios takes 2 for critical.
            assert!(
                found.status == 3 && found.out.starts_with("HEARTBEAT UNKNOWN - "),
                "{}",
                found.out
            );
            continue;
        }
        assert!(
            found.status == 2
                && found.err.starts_with("heartbeat: ")
                && found.err.lines().count() == 1
                && found.err.contains(name)
                && found.err.contains("would do"),
            "{words:?}: {} {}",
            found.status,
            found.err
        );
        assert_eq!(found.out, "", "{words:?}");
    }
    // An option that there is not is no command to wrap.
    for words in [["--onec", "--port=80"], ["--port=80", "--onec"]] {
        let found = run(&words);
        assert!(
            found.status == 2 && found.err.contains("unexpected argument '--onec'"),
            "{words:?}: {} {}",
            found.status,
            found.err
        );
    }
}

// Edge case 39.
#[test]
fn once_is_one_line_and_a_status() {
    let server = Hostile::new(says(OK));
    let port = server.port.to_string();
    let found = run(&["--once", "--port", &port]);
    let line = found.out.strip_suffix('\n').unwrap();
    let (time, rest) = line.split_once(' ').unwrap();
    assert!(time.ends_with('Z') && time.len() == 24, "{line}");
    assert!(
        rest.starts_with(&format!("ok   http://localhost:{port}/ 200 ")),
        "{line}"
    );
    assert!(rest.ends_with(&format!("ms 127.0.0.1:{port}")), "{line}");
    assert_eq!((found.status, found.err.as_str()), (0, ""));
    let found = run(&["--once", "--quiet", "--port", &port]);
    assert_eq!((found.status, found.out.as_str()), (0, ""));

    let ugly = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n{}",
        "\u{1b}x".repeat(30_000)
    );
    let server = Hostile::new(says(ugly));
    let found = run(&[
        "--once",
        "--port",
        &server.port.to_string(),
        "--not-body",
        "(?s).*",
    ]);
    assert!(
        found.out.len() <= 4096 && found.out.lines().count() == 1,
        "{}",
        found.out.len()
    );
    assert!(!found.out.contains('\u{1b}'), "{}", found.out);
    assert_eq!(server.served(), 1);
}

#[test]
fn all_checks_must_pass_and_each_has_its_line() {
    let (good, bad) = (Hostile::new(says(OK)), Hostile::new(says(BAD)));
    let words = [
        "--once",
        "--port",
        &good.port.to_string(),
        "--port",
        &bad.port.to_string(),
        "--exec",
        "true",
        "--exec",
        "echo why; exit 3",
    ];
    let found = run(&words);
    assert_eq!(found.status, 1);
    let kinds: Vec<&str> = found.out.lines().map(|line| &line[25..29]).collect();
    assert_eq!(kinds, ["ok  ", "fail", "ok  ", "fail"], "{}", found.out);
    assert!(
        found
            .out
            .contains("exec:echo why; exit 3 exec status 3: why"),
        "{}",
        found.out
    );
    let found = run(&[&words[..], &["--format", "nagios"]].concat());
    assert!(
        found.status == 2 && found.out.lines().count() == 1,
        "{}",
        found.out
    );
    assert!(
        found.out.starts_with("HEARTBEAT CRITICAL - ") && found.out.contains(" | time1="),
        "{}",
        found.out
    );
    let found = run(&[&words[..], &["--format", "json"]].concat());
    for line in found.out.lines() {
        assert!(
            line.starts_with("{\"time\":\"20") && line.ends_with('}'),
            "{line}"
        );
        assert!(
            line.contains("\"tool\":\"heartbeat\"") && line.contains("\"target\":\""),
            "{line}"
        );
    }
    assert!(
        found.out.contains("\"reason\":\"status\"") && found.out.contains("\"status\":503"),
        "{}",
        found.out
    );
}

#[test]
fn nagios_gets_its_four_answers() {
    let server = Hostile::new(says(OK));
    let port = server.port.to_string();
    let found = run(&["--once", "--format", "nagios", "--port", &port]);
    assert!(
        found.status == 0 && found.out.starts_with("HEARTBEAT OK - http://localhost:"),
        "{}",
        found.out
    );
    assert!(
        found.out.contains(" | time=0.") && found.out.trim_end().ends_with("s;;10;0;10"),
        "{}",
        found.out
    );
    let found = run(&[
        "--once", "--format", "nagios", "--port", &port, "--slow", "1us",
    ]);
    assert!(
        found.status == 1 && found.out.starts_with("HEARTBEAT WARNING - "),
        "{}",
        found.out
    );
    let found = run(&["--once", "--format", "nagios", "--port", "99999"]);
    assert!(
        found.status == 3 && found.out.starts_with("HEARTBEAT UNKNOWN - "),
        "{}",
        found.out
    );
    let found = run(&[
        "--once",
        "--format=nagios",
        "--port",
        &free_port().to_string(),
    ]);
    assert!(
        found.status == 2 && found.out.starts_with("HEARTBEAT CRITICAL - "),
        "{}",
        found.out
    );
}

#[test]
fn waiting_for_a_service_to_come() {
    let port = free_port().to_string();
    let mut wait = Run::new(PROGRAM)
        .args([
            "--wait",
            "60s",
            "--port",
            &port,
            "--start-interval",
            "50ms",
            "--verbose",
        ])
        .start();
    out(&mut wait, " refused ");
    let _node = Run::new("node")
        .arg(app("hello.js"))
        .env("PORT", &port)
        .start();
    assert_eq!(wait.end(), 0);
    let found = run(&[
        "--wait",
        "300ms",
        "--port",
        &free_port().to_string(),
        "--start-interval",
        "50ms",
    ]);
    assert!(
        found.status == 124 && found.out.contains(" DOWN ") && found.out.contains(" refused "),
        "{}",
        found.out
    );
    // Also when the check itself takes longer.
    let silent = Hostile::new(vec![Step::Wait]);
    let found = run(&["--wait", "300ms", "--port", &silent.port.to_string()]);
    assert_eq!(found.status, 124, "{}", found.out);
}

#[test]
fn a_slow_command_is_killed_with_its_group_and_never_overlaps() {
    let dir = Dir::new();
    let script = "echo $$ >>pids; sleep 600 & echo $! >>pids; wait";
    let mut beat = Run::new(PROGRAM)
        .args([
            "--exec",
            script,
            "--timeout",
            "300ms",
            "--interval",
            "100ms",
            "--start-interval",
            "100ms",
            "--start-period",
            "0",
            "--verbose",
            "--jitter",
            "0",
        ])
        .dir(dir.path())
        .start();
    for _ in 0..3 {
        out(&mut beat, "timeout after 300.0ms (the command runs)");
    }
    assert!(kit::run::children_of(beat.pid()).len() <= 1);
    assert_eq!(beat.stop(), 0);
    let pids = std::fs::read_to_string(dir.path().join("pids")).unwrap();
    for pid in pids.lines() {
        let pid: i32 = pid.parse().unwrap();
        eventually("it is gone", || {
            common::child::stat(pid)
                .is_none_or(|stat| stat.state == b'Z')
                .then_some(())
        });
    }
}

#[test]
fn explain_says_what_the_page_says() {
    let found = run(&[
        "--explain",
        "--port",
        "3000",
        "--jitter",
        "0",
        "--timeout",
        "1s",
    ]);
    assert_eq!(found.status, 0);
    // 2 more checks, 2 s apart, after up to 10 s.
    assert!(
        found
            .out
            .contains("refused (d = 0): seen after 4s to 14s, acted on after 4s to 14s"),
        "{}",
        found.out
    );
    assert!(
        found
            .out
            .contains("hangs (d = 1s): seen after 5s to 15s, acted on after 6s to 16s"),
        "{}",
        found.out
    );
    let page = std::fs::read_to_string(kit::root().join("man/man1/heartbeat.1")).unwrap();
    for line in found
        .out
        .lines()
        .filter(|line| line.starts_with("seen, ") || line.starts_with("step(x)"))
    {
        let formula = line.split(';').next().unwrap();
        let formula = formula.split(": ").last().unwrap().trim();
        let formula = formula.replace('-', "\\-");
        assert!(page.contains(&formula), "the page lacks: {formula}");
    }
}

#[test]
fn options_come_from_the_environment_too() {
    let server = Hostile::new(says(BAD));
    let found = Run::new(PROGRAM)
        .env("HEARTBEAT_ONCE", "true")
        .env("HEARTBEAT_PORT", server.port.to_string())
        .env("HEARTBEAT_EXPECT", "503")
        .finish();
    assert_eq!(found.status, 0, "{}{}", found.out, found.err);
}

// Edge case 38.
#[test]
fn a_reader_that_stopped_does_not_stop_the_checks() {
    let server = Hostile::new(says(OK));
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut beat = Run::new(PROGRAM)
        .args([
            "--port",
            &server.port.to_string(),
            "--verbose",
            "--interval",
            "10ms",
            "--start-interval",
            "10ms",
            "--format",
            "json",
        ])
        .args(["--header", &format!("X: {}", "y".repeat(10))])
        .stdout(writer)
        .start();
    // More than a pipe holds.
    eventually("many checks", || (server.served() > 700).then_some(()));
    let mut some = [0u8; 65536];
    reader.read_exact(&mut some).unwrap();
    assert_eq!(beat.stop(), 0);
    let mut beat = Run::new(PROGRAM)
        .args([
            "--port",
            &server.port.to_string(),
            "--verbose",
            "--interval",
            "10ms",
            "--start-interval",
            "10ms",
        ])
        .stdout(std::io::pipe().unwrap().1)
        .start();
    // A reader that is gone ends it quietly.
    assert_eq!((beat.end(), beat.err().len()), (0, 0));
}

// Edge case 41.
#[test]
fn the_second_one_with_the_same_lock_is_refused() {
    let (dir, server) = (Dir::new(), Hostile::new(says(OK)));
    let port = server.port.to_string();
    let words = ["--port", &port, "--lock", "beat.pid"];
    let mut first = Run::new(PROGRAM).args(words).dir(dir.path()).start();
    out(&mut first, " UP ");
    let second = Run::new(PROGRAM).args(words).dir(dir.path()).finish();
    let said = format!(
        "heartbeat: cannot take the pid file beat.pid: pid {} holds it\n",
        first.pid()
    );
    assert_eq!((second.status, second.err), (125, said));
    assert_eq!(first.stop(), 0);
    assert!(!dir.path().join("beat.pid").exists());
}

#[test]
fn usr1_checks_now_and_usr2_pauses() {
    let server = Hostile::new(says(OK));
    let mut beat = Run::new(PROGRAM)
        .args([
            "--port",
            &server.port.to_string(),
            "--interval",
            "1h",
            "--verbose",
        ])
        .start();
    out(&mut beat, " UP ");
    assert_eq!(server.served(), 1);
    beat.signal(Signal::SIGUSR1);
    out(&mut beat, " ok ");
    assert_eq!(server.served(), 2);
    beat.signal(Signal::SIGUSR2);
    beat.event("paused");
    beat.signal(Signal::SIGUSR1);
    beat.signal(Signal::SIGUSR2);
    beat.event("resumed");
    out(&mut beat, " ok ");
    assert_eq!(server.served(), 3);
    beat.signal(Signal::SIGINT);
    assert_eq!(beat.end(), 0);
}

#[test]
fn the_wrapped_form() {
    let (dir, port) = (Dir::new(), free_port().to_string());
    let mut beat = Run::new(PROGRAM)
        .args([
            "--port",
            &port,
            "--start-interval",
            "50ms",
            "--interval",
            "100ms",
            "--fails",
            "1",
            "--timeout",
            "300ms",
        ])
        .args([
            "--on-fail",
            "echo $PID >told.new; mv told.new told; kill -KILL $PID",
            "--",
            "node",
        ])
        .arg(app("hello.js"))
        .env("PORT", &port)
        .dir(dir.path())
        .start();
    let started = beat.event("command-started");
    let pid: i32 = kit::field(&started, "pid").parse().unwrap();
    assert_eq!(common::child::stat(pid).unwrap().parent, beat.pid());
    let up = beat.event("service-up");
    assert!(
        up.contains(&format!("target=http://localhost:{port}/")),
        "{up}"
    );
    // USR2 is the command's, stdout too.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    let down = beat.event("service-down");
    assert!(down.contains("reason=timeout"), "{down}");
    let exited = beat.event("command-exited");
    assert!(exited.contains("status=\"signal KILL\""), "{exited}");
    assert_eq!(beat.end(), 137);
    assert_eq!(
        std::fs::read_to_string(dir.path().join("told"))
            .unwrap()
            .trim(),
        pid.to_string()
    );
    assert_eq!(beat.out(), "");
}

#[test]
fn a_command_that_was_told_to_end_does_not_fail_while_it_does() {
    let dir = Dir::new();
    // It drains until a check has failed twice.
    let ends = "touch up; trap 'rm up; until [ -e seen ]; do sleep 0.02; done; exit 0' TERM; \
                while :; do sleep 0.02; done";
    let mut beat = Run::new(PROGRAM)
        .args(["--exec", "test -e up", "--interval", "50ms", "--fails", "1"])
        .args([
            "--start-interval",
            "50ms",
            "--start-period",
            "0",
            "--verbose",
        ])
        .args(["--on-fail", "touch acted", "--", "sh", "-c", ends])
        .dir(dir.path())
        .start();
    beat.event("service-up");
    beat.event("check-passed");
    beat.signal(Signal::SIGTERM);
    beat.event("check-failed");
    beat.event_with("check-failed", "(does not count yet)");
    dir.write("seen", "");
    assert_eq!(beat.end(), 0);
    let said = beat.err().join("\n");
    let (_, since) = said.split_once("service-up").unwrap();
    assert!(!since.contains("service-down"), "{said}");
    assert!(!dir.path().join("acted").exists());
}

#[test]
fn a_wrapper_is_transparent() {
    let say = "trap 'echo usr2' USR2; trap 'echo hup' HUP; trap 'echo term; exit 7' TERM; echo ready; while :; do sleep 0.02; done";
    let mut beat = Run::new(PROGRAM)
        .args(["--exec", "true", "--", "sh", "-c", say])
        .start();
    out(&mut beat, "ready");
    beat.signal(Signal::SIGUSR2);
    out(&mut beat, "usr2");
    beat.signal(Signal::SIGHUP);
    out(&mut beat, "hup");
    beat.signal(Signal::SIGTERM);
    out(&mut beat, "term");
    assert_eq!(beat.end(), 7);
    for (command, status) in [
        ("exit 3", 3),
        ("kill -TERM $$", 143),
        ("kill -KILL $$", 137),
    ] {
        let found = run(&["--exec", "true", "--", "sh", "-c", command]);
        assert_eq!(found.status, status, "{command}");
    }
    assert_eq!(
        run(&["--exec", "true", "--", "/no/such/program"]).status,
        127
    );
    assert_eq!(run(&["--exec", "true", "--", "/etc/passwd"]).status, 126);
    // Killed with -9, it takes the command along.
    let mut beat = Run::new(PROGRAM)
        .args(["--exec", "true", "--", "sleep", "600"])
        .start();
    let pid: i32 = kit::field(&beat.event("command-started"), "pid")
        .parse()
        .unwrap();
    beat.signal(Signal::SIGKILL);
    beat.end();
    eventually("the command is gone", || {
        common::child::stat(pid)
            .is_none_or(|stat| stat.state == b'Z')
            .then_some(())
    });
}

#[test]
fn a_running_action_ends_when_the_command_has() {
    let dir = Dir::new();
    let found = Run::new(PROGRAM)
        .args([
            "--exec",
            "false",
            "--fails",
            "1",
            "--start-period",
            "0",
            "--jitter",
            "0",
        ])
        .args([
            "--on-fail",
            "kill -KILL $PID; sleep 0.3; echo >finished",
            "--",
            "sleep",
            "600",
        ])
        .dir(dir.path())
        .finish();
    assert_eq!(found.status, 137, "{}", found.err);
    assert!(dir.path().join("finished").exists());
}
