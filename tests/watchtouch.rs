//! What is typed, what is printed, who is signalled, and how it ends.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::touch::{Lines, touch};
use kit::{Dir, Run, Running, eventually, field};
use nix::sys::signal::Signal;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const PROGRAM: &str = env!("CARGO_BIN_EXE_watchtouch");

fn watchtouch(dir: &Dir, args: &[&str]) -> Run {
    Run::new(PROGRAM).args(args).dir(dir.path())
}

fn ready(dir: &Dir, args: &[&str]) -> Running {
    let mut running = watchtouch(dir, args).start();
    running.event("ready");
    running
}

fn read(dir: &Dir, name: &str) -> String {
    std::fs::read_to_string(dir.path().join(name)).unwrap_or_default()
}

fn holds(dir: &Dir, name: &str, text: &str) {
    eventually(&format!("{text:?} in {name}"), || {
        (read(dir, name) == text).then_some(())
    });
}

// Edge case 36.
#[test]
fn what_is_typed_wrongly_is_refused_with_a_line_of_its_own() {
    let dir = Dir::new();
    let at = |name: &str| dir.path().join(name);
    nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink("loop", at("loop")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    for (words, status, part) in [
        (&[][..], 2, "no file is named"),
        (&["a", ""], 2, "an empty word"),
        (&["--interval", "0", "a"], 2, "--interval"),
        (&["--interval", "1ms", "a"], 2, "10ms or more"),
        (&["--timeout", "0", "a"], 2, "--timeout"),
        (&["--settle", "soon", "a"], 2, "'soon' is no duration"),
        (&["--busy", "wait", "a"], 2, "queue, ignore, restart"),
        (&["--on", "open", "a"], 2, "--on"),
        (&["--poll", "--no-poll", "a"], 2, "--no-poll"),
        (&["--signal", "USR2", "a"], 2, "to whom?"),
        (&["--signal", "NOPE", "--pid", "9", "a"], 2, "NOPE"),
        (&["a", "--", "true"], 2, "--on-touch or --signal"),
        (
            &["a", "--once", "--on-touch", "x", "--", "true"],
            2,
            "--once",
        ),
        (&["--ready-fd", "77", "a"], 2, "not open"),
        (&["a", "--busy", "ignore"], 2, "--busy"),
        (&["a", "--retries", "2"], 2, "--retries"),
        (&["a", "--splay-by", "host"], 2, "--splay 30s would do"),
        (&["a", "-0", "--on-touch", "x"], 2, "-0 and --format"),
        (&["fifo"], 125, "it is a FIFO"),
        (&["/dev/null"], 125, "it is a device"),
        (&["socket"], 125, "it is a socket"),
        (&["loop"], 125, "lead in a circle"),
        (
            &["a", "--on-touch", "x", "--", "./missing"],
            127,
            "./missing",
        ),
        (
            &["a", "--on-touch", "x", "--", "/dev/null"],
            126,
            "/dev/null",
        ),
    ] {
        let run = watchtouch(&dir, words).finish();
        assert_eq!(run.status, status, "{words:?}: {}", run.err);
        let line = run.err.lines().last().unwrap();
        assert!(
            line.starts_with("watchtouch: ") && line.contains(part),
            "{line}"
        );
    }
    let long = "x".repeat(300);
    let run = watchtouch(&dir, &[&long]).finish();
    assert!(
        run.status == 125 && run.err.contains("too long"),
        "{}",
        run.err
    );
}

#[test]
fn an_action_that_is_not_found_says_so() {
    let dir = Dir::new();
    let mut running = ready(&dir, &["a", "--once", "--on-touch", "no-such-program"]);
    touch(dir.path().join("a"));
    let failed = running.event("action-failed");
    assert_eq!(field(&failed, "status"), "status 127");
    assert_eq!(running.end(), 127);
    assert!(
        running
            .err()
            .iter()
            .any(|line| line.contains("no-such-program"))
    );
}

#[test]
fn a_directory_that_cannot_be_searched_is_refused() {
    kit::mount::need_root();
    let dir = Dir::new();
    std::fs::create_dir_all(dir.path().join("closed/in")).unwrap();
    std::fs::set_permissions(dir.path().join("closed"), PermissionsExt::from_mode(0o700)).unwrap();
    let run = Run::new("setpriv")
        .args(["--reuid", "65534", "--clear-groups", PROGRAM, "closed/in/a"])
        .dir(dir.path())
        .finish();
    assert_eq!(run.status, 125);
    assert!(
        run.err.contains("permission denied") && run.err.contains("searched"),
        "{}",
        run.err
    );
}

// Edge case 37.
#[test]
fn a_directory_that_may_be_searched_but_not_read_is_polled() {
    kit::mount::need_root();
    let dir = Dir::new();
    std::fs::create_dir(dir.path().join("drop")).unwrap();
    std::fs::set_permissions(dir.path().join("drop"), PermissionsExt::from_mode(0o711)).unwrap();
    let mut running = Run::new("setpriv")
        .args(["--reuid", "65534", "--clear-groups", PROGRAM, "drop/a"])
        .args(["--once", "--interval", "50ms"])
        .dir(dir.path())
        .start();
    let polling = running.event("watch-polling");
    assert!(polling.contains("permission denied"), "{polling}");
    running.event("ready");
    touch(dir.path().join("drop/a"));
    assert_eq!(running.end(), 0);
    assert_eq!(
        running
            .err()
            .iter()
            .filter(|line| line.contains("watch-polling"))
            .count(),
        1
    );
}

// Edge case 39.
#[test]
fn any_name_is_printed_in_each_form() {
    let dir = Dir::new();
    let name = OsStr::from_bytes(b"a\n b\xff\\");
    let path = dir.path().canonicalize().unwrap().join(name);
    for (form, wanted) in [
        (&[][..], " created "),
        (&["-0"][..], ""),
        (&["--format", "json"][..], "\"event\":\"created\""),
    ] {
        let _ = std::fs::remove_file(&path);
        let out = dir.path().join("out");
        let mut running = Run::new(PROGRAM)
            .arg(&path)
            .args(form)
            .arg("--once")
            .stdout(std::fs::File::create(&out).unwrap())
            .start();
        running.event("ready");
        touch(&path);
        assert_eq!(running.end(), 0, "{:?}", running.err());
        let out = std::fs::read(out).unwrap();
        let text = String::from_utf8_lossy(&out);
        assert!(text.contains(wanted), "{text}");
        match form {
            [] => assert!(text.ends_with("a\\n b\\xff\\\\\n"), "{text}"),
            ["-0"] => {
                let mut bare = path.as_os_str().as_bytes().to_vec();
                bare.push(0);
                assert_eq!(out, bare);
            }
            _ => {
                // Made and then stamped, as one or as two; and the safety look may come just then.
                let mut python = Run::new("python3")
                    .args([
                        "-c",
                        "import sys,json,base64,os; d=json.load(open(sys.argv[1])); \
                        assert base64.b64decode(d['path_bytes'])==os.fsencode(sys.argv[2]); \
                        assert d['count'] >= 1 and d['via'] in ('inotify', 'poll') and d['size']==0",
                    ])
                    .arg(dir.path().join("out"))
                    .arg(&path)
                    .start();
                assert_eq!(python.end(), 0, "{text} {:?}", python.err());
            }
        }
    }
    // And in the environment of an action.
    let mut running = Run::new(PROGRAM)
        .arg(&path)
        .args([
            "--once",
            "--on-touch",
            "printf %s \"$WATCHTOUCH_PATH\" > out",
        ])
        .dir(dir.path())
        .start();
    running.event("ready");
    touch(&path);
    assert_eq!(running.end(), 0);
    assert_eq!(
        std::fs::read(dir.path().join("out")).unwrap(),
        path.as_os_str().as_bytes()
    );
}

#[test]
fn an_action_is_told_what_happened() {
    let dir = Dir::new();
    let file = dir.write("a", "");
    touch(dir.path().join("b"));
    kit::touch::touch_at(
        &file,
        std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000, 5),
    );
    let mut running = ready(
        &dir,
        &[
            "a",
            "b",
            "--once",
            "--on-touch",
            "env | grep ^WATCHTOUCH | sort; env | grep ^PID; true",
        ],
    );
    kit::touch::touch_at(
        &file,
        std::time::UNIX_EPOCH + std::time::Duration::new(999_999, 0),
    );
    assert_eq!(running.end(), 0);
    let said = running.err().join("\n");
    let path = dir.path().display();
    for line in [
        "WATCHTOUCH_COUNT=1",
        "WATCHTOUCH_EVENT=touched",
        "WATCHTOUCH_MTIME=999999.000000000",
        &format!("WATCHTOUCH_PATH={path}/a"),
        &format!("WATCHTOUCH_PATHS={path}/a"),
        "WATCHTOUCH_PREVIOUS_MTIME=1000000.000000005",
        "WATCHTOUCH_VIA=inotify",
    ] {
        assert!(said.contains(line), "{line} in {said}");
    }
    assert!(
        said.contains("WATCHTOUCH_DELAY_MS=1") && !said.contains("\nPID="),
        "{said}"
    );
}

#[test]
fn options_come_from_the_environment_too() {
    let dir = Dir::new();
    let mut running = watchtouch(&dir, &["a"])
        .env("WATCHTOUCH_ONCE", "1")
        .env("WATCHTOUCH_NULL", "true")
        .start();
    running.event("ready");
    touch(dir.path().join("a"));
    assert_eq!(running.end(), 0);
    assert!(running.out_to_its_end().ends_with("/a\0"));
}

#[test]
fn a_time_limit_counts_matching_touches_only() {
    let dir = Dir::new();
    let mut run = ready(&dir, &["a", "--once", "--timeout", "300ms"]);
    // Others in the same directory, again and again, must not put it off.
    let status = format!("/proc/{}/stat", run.pid());
    eventually("its end", || {
        touch(dir.path().join("other"));
        let stat = std::fs::read_to_string(&status).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
    assert_eq!(run.end(), 124);
}

#[test]
fn a_signal_goes_to_what_stands_in_the_pid_file_now() {
    let dir = Dir::new();
    let app = || {
        Run::new("sh")
            .args([
                "-c",
                "trap 'echo hit' USR2; echo up; while :; do sleep 0.05; done",
            ])
            .start()
    };
    let (first, second) = (app(), app());
    for app in [&first, &second] {
        eventually("the app", || app.out().contains("up").then_some(()));
    }
    let args = [
        "a",
        "--signal",
        "USR2",
        "--pid-file",
        "pid",
        "--min-gap",
        "0",
    ];
    let mut running = ready(&dir, &args);
    touch(dir.path().join("a"));
    assert!(running.event("signal-failed").contains("no such file"));
    dir.write("pid", &first.pid().to_string());
    touch(dir.path().join("a"));
    eventually("a signal", || first.out().contains("hit").then_some(()));
    // The service was started anew.
    dir.write("pid", &second.pid().to_string());
    touch(dir.path().join("a"));
    let sent = running.event_with("signal-sent", &format!("pid={}", second.pid()));
    assert_eq!(field(&sent, "signal"), "USR2");
    eventually("a signal", || second.out().contains("hit").then_some(()));
    dir.write("pid", "1");
    touch(dir.path().join("a"));
    assert!(running.event("signal-failed").contains("refused"));
    assert_eq!(first.out().matches("hit").count(), 1);
    assert_eq!(running.stop(), 0);
}

#[test]
fn with_a_command_it_is_not_there() {
    let dir = Dir::new();
    let script = "trap 'echo got usr2' USR2; trap 'echo got winch' WINCH; trap 'echo bye; exit 7' TERM; \
                  echo up; while :; do sleep 0.05; done";
    let mut running =
        watchtouch(&dir, &["a", "--signal", "USR2", "--", "sh", "-c", script]).start();
    let started = running.event("command-started");
    running.event("ready");
    eventually("the command", || {
        running.out().contains("up\n").then_some(())
    });
    touch(dir.path().join("a"));
    let sent = running.event("signal-sent");
    assert_eq!(field(&sent, "pid"), field(&started, "pid"));
    eventually("the signal", || {
        running.out().contains("got usr2\n").then_some(())
    });
    running.signal(Signal::SIGWINCH);
    eventually("a signal passed on", || {
        running.out().contains("got winch\n").then_some(())
    });
    assert_eq!(running.stop(), 7);
    assert_eq!(running.out_to_its_end(), "up\ngot usr2\ngot winch\nbye\n");
}

#[test]
fn the_command_ends_it_and_a_running_action_ends_first() {
    let dir = Dir::new();
    let args = [
        "a",
        "--on-touch",
        "touch begun; while [ ! -e go ]; do sleep 0.05; done; touch done",
    ];
    let mut running = watchtouch(&dir, &args)
        .args([
            "--",
            "sh",
            "-c",
            "while [ ! -e leave ]; do sleep 0.05; done; exit 3",
        ])
        .start();
    running.event("ready");
    touch(dir.path().join("a"));
    eventually("the action", || {
        dir.path().join("begun").exists().then_some(())
    });
    touch(dir.path().join("leave"));
    running.event("command-exited");
    touch(dir.path().join("go"));
    assert_eq!(running.end(), 3);
    assert!(dir.path().join("done").exists());
}

#[test]
fn killed_it_takes_the_command_along() {
    let dir = Dir::new();
    let script = "trap 'echo term > told; exit' TERM; echo up > up; while :; do sleep 0.05; done";
    let mut running =
        watchtouch(&dir, &["a", "--signal", "USR2", "--", "sh", "-c", script]).start();
    holds(&dir, "up", "up\n");
    running.signal(Signal::SIGKILL);
    holds(&dir, "told", "term\n");
}

#[test]
fn it_stops_when_told_and_so_does_its_action() {
    let dir = Dir::new();
    let mut running = ready(&dir, &["a"]);
    assert_eq!(running.stop(), 0);
    let mut running = ready(&dir, &["a"]);
    running.signal(Signal::SIGINT);
    assert_eq!(running.end(), 130);
    // Whoever waits for a touch must not take its end for one.
    let mut running = ready(&dir, &["a", "--once"]);
    assert_eq!(running.stop(), 143);
    let script = "trap 'echo term > told; exit' TERM; echo up > up; while :; do sleep 0.05; done";
    let mut running = ready(&dir, &["a", "--on-touch", script]);
    touch(dir.path().join("a"));
    holds(&dir, "up", "up\n");
    assert_eq!(running.stop(), 0);
    holds(&dir, "told", "term\n");
}

#[test]
fn an_action_that_takes_too_long_is_ended() {
    let dir = Dir::new();
    let args = [
        "a",
        "--once",
        "--action-timeout",
        "200ms",
        "--on-touch",
        "sleep 1000",
    ];
    let mut running = ready(&dir, &args);
    touch(dir.path().join("a"));
    assert_eq!(running.end(), 124);
}

#[test]
fn signals_look_again_and_act() {
    let dir = Dir::new();
    let mut running = ready(&dir, &["a", "--min-gap", "0", "--safety", "0"]);
    running.signal(Signal::SIGUSR1);
    eventually("a line", || {
        running.out().contains(" touched ").then_some(())
    });
    running.signal(Signal::SIGHUP);
    touch(dir.path().join("a"));
    eventually("a line", || {
        running.out().contains(" created ").then_some(())
    });
    assert_eq!(running.stop(), 0);
    // nohup(1) stays in force.
    let mut running = Run::new("nohup")
        .args([PROGRAM, "a"])
        .dir(dir.path())
        .start();
    running.event("ready");
    running.signal(Signal::SIGHUP);
    assert_eq!(running.stop(), 0);
}

#[test]
fn readiness_is_told_on_a_descriptor() {
    let dir = Dir::new();
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let script = "exec \"$0\" a --ready-fd 5 --signal USR2 -- sleep 100 5>&1 1>&2";
    let mut running = Run::new("sh")
        .args(["-c", script, PROGRAM])
        .dir(dir.path())
        .stdout(writer)
        .start();
    let mut text = String::new();
    // It ends: nobody else holds it, the command neither.
    std::io::Read::read_to_string(&mut std::fs::File::from(reader), &mut text).unwrap();
    assert_eq!(text, "\n");
    running.signal(Signal::SIGTERM);
    running.end();
}

#[test]
fn a_reader_who_leaves_ends_it_quietly() {
    let dir = Dir::new();
    let run = Run::new("bash")
        .args(["-c", "\"$0\" a 2>err | head -c 0; echo ${PIPESTATUS[0]}"])
        .arg(PROGRAM)
        .dir(dir.path())
        .finish();
    assert_eq!(run.out, "0\n", "{}", read(&dir, "err"));
    assert!(!read(&dir, "err").contains("error"));
}

// Edge case 41.
#[test]
fn a_reader_who_is_slow_holds_nobody_up_and_gets_the_last_of_each_file() {
    let dir = Dir::new();
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let fcntl = |arg| nix::fcntl::fcntl(&writer, arg).unwrap();
    fcntl(nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096));
    let args = [
        "a",
        "--format",
        "json",
        "--min-gap",
        "0",
        "--settle",
        "0",
        "-v",
    ];
    let mut running = watchtouch(&dir, &args).stdout(writer).start();
    running.event("ready");
    let touches = 200;
    for number in 1..=touches {
        std::fs::write(dir.path().join("a"), "x".repeat(number)).unwrap();
        running.event("file-touched");
    }
    let mut text = String::new();
    let mut reader = std::io::BufReader::new(std::fs::File::from(reader));
    while !text.contains(&format!("\"size\":{touches},")) {
        std::io::BufRead::read_line(&mut reader, &mut text).unwrap();
    }
    let lines = text.lines().count();
    assert!(lines < touches, "{lines}");
    assert_eq!(running.stop(), 0);
}

#[test]
fn a_closed_stderr_is_no_reason_to_end_nor_to_spin() {
    let dir = Dir::new();
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let mut running = watchtouch(&dir, &["a", "--min-gap", "0"])
        .stderr(writer)
        .start();
    drop(reader);
    let mut touches = 0;
    eventually("two lines", || {
        touches += 1;
        touch(dir.path().join("a"));
        (running.out().lines().count() >= 2).then_some(())
    });
    let spent = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", running.pid())).unwrap();
        let fields: Vec<u64> = stat
            .rsplit(") ")
            .next()
            .unwrap()
            .split(' ')
            .filter_map(|f| f.parse().ok())
            .collect();
        fields[10] + fields[11]
    };
    let (before, from) = (spent(), std::time::Instant::now());
    eventually("half a second", || {
        (from.elapsed().as_millis() > 500).then_some(())
    });
    assert!(spent() - before < 20, "it spins");
    assert_eq!(running.stop(), 0);
}

#[test]
fn nothing_leaks_into_an_action() {
    let dir = Dir::new();
    let mut running = ready(
        &dir,
        &[
            "a",
            "--once",
            "--on-touch",
            "ls -l /proc/self/fd > fds; grep Sig /proc/self/status > sig",
        ],
    );
    touch(dir.path().join("a"));
    assert_eq!(running.end(), 0);
    let fds = read(&dir, "fds");
    assert!(
        !fds.contains("eventfd") && !fds.contains("inotify") && !fds.contains("eventpoll"),
        "{fds}"
    );
    let masks = read(&dir, "sig");
    assert!(masks.contains("SigBlk:\t0000000000000000"), "{masks}");
}

#[test]
fn a_relative_file_belongs_to_the_directory_of_the_start() {
    let dir = Dir::new();
    std::fs::create_dir_all(dir.path().join("d/e")).unwrap();
    let end = dir.path().join("end");
    let run = watchtouch(&dir, &["d//./e/../x", "--min-gap", "0", "--settle", "10ms"]);
    let mut lines = Lines::start(run, Path::new(&end));
    touch(dir.path().join("d/x"));
    lines.exactly("/x", 1);
}
