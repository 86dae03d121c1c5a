//! How it ends, and what signals do: the command's, ours, and everybody's in between.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::logs::{found, numbers, report};
use kit::run::children_of;
use kit::{Dir, Run, Running, eventually, field};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_logreopen");

fn logreopen(dir: &Dir, args: &[&str]) -> Run {
    Run::new(PROGRAM).args(args).dir(dir.path())
}

fn read(dir: &Dir, name: &str) -> String {
    std::fs::read_to_string(dir.path().join(name)).unwrap_or_default()
}

fn pipe() -> (std::fs::File, std::fs::File) {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    (reader.into(), writer.into())
}

fn alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn holds(dir: &Dir, name: &str, text: &str) {
    eventually(&format!("{text:?} in {name}"), || {
        (read(dir, name) == text).then_some(())
    });
}

// Edge case 22.
#[test]
fn what_is_in_the_pipes_is_written_before_the_status_is_ours() {
    let dir = Dir::new();
    for _ in 0..20 {
        let run = logreopen(
            &dir,
            &["-l", "out", "--", "sh", "-c", "seq 1 20000; exit 3"],
        )
        .finish();
        assert_eq!(run.status, 3);
        let expected: String = (1..=20_000).map(|n| format!("{n}\n")).collect();
        assert!(read(&dir, "out") == expected);
        std::fs::remove_file(dir.path().join("out")).unwrap();
    }
}

// Edge case 23.
#[test]
fn a_grandchild_that_keeps_the_pipe() {
    let dir = Dir::new();
    // Silent: its last words before that are there, and nobody waits for it.
    let script = "(echo grandchild; exec sleep 1000) & echo child; echo $! > pid; exit 0";
    let since = Instant::now();
    let run = logreopen(&dir, &["-l", "out", "-e", "err", "--", "sh", "-c", script]).finish();
    assert_eq!(run.status, 0);
    assert!(
        since.elapsed() < Duration::from_secs(30),
        "nobody waits for the grandchild"
    );
    let mut lines: Vec<String> = read(&dir, "out").lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["child", "grandchild"]);
    let pid: i32 = read(&dir, "pid").trim().parse().unwrap();
    assert!(alive(pid), "it is none of our business");
    // Silence is its end, even if it has something to say much later.
    let script = "(sleep 3; echo late) & exit 0";
    let run = logreopen(&dir, &["-l", "late", "-e", "err", "--", "sh", "-c", script]).finish();
    assert_eq!((run.status, &*read(&dir, "late")), (0, ""));
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

// Edge case 23: it goes on talking.
#[test]
fn a_grandchild_that_talks_on_is_listened_to_for_five_seconds() {
    let dir = Dir::new();
    let script = "(n=0; while test -e out; do echo talk $n; n=$((n+1)); sleep 0.05; done) & exit 4";
    let run = logreopen(&dir, &["-l", "out", "-e", "err", "--", "sh", "-c", script]).finish();
    assert_eq!(run.status, 4);
    let count = read(&dir, "out").lines().count();
    assert!(count > 10, "{count}");
}

// Edge case 24, and 18: an empty write, and a stream that the program closes.
#[test]
fn a_command_that_closes_its_stdout_is_waited_for() {
    let dir = Dir::new();
    let script = "import os,sys,time\nos.write(1,b'')\nos.write(1,b'out\\n')\nos.close(1)\nwhile not os.path.exists('go'): time.sleep(0.01)\nos.write(2,b'err\\n')\nos._exit(5)";
    let mut service = logreopen(
        &dir,
        &["-l", "out", "-e", "err", "--", "python3", "-c", script],
    )
    .start();
    holds(&dir, "out", "out\n");
    assert!(alive(service.pid()));
    dir.write("go", "");
    assert_eq!(service.end(), 5);
    assert_eq!(read(&dir, "err"), "err\n");
}

// Edge case 25.
#[test]
fn a_command_that_is_killed_has_its_last_words() {
    let dir = Dir::new();
    for (signal, status) in [("KILL", 137), ("SEGV", 139), ("TERM", 143), ("INT", 130)] {
        let script = format!("echo last words {signal}; kill -{signal} $$");
        let run = logreopen(&dir, &["-l", "out", "--", "sh", "-c", &script]).finish();
        assert_eq!(run.status, status, "{}", run.err);
        assert!(
            run.err.contains(&format!("command-exited signal={signal}")),
            "{}",
            run.err
        );
    }
    assert_eq!(read(&dir, "out").lines().count(), 4);
}

#[test]
fn a_shell_sees_the_signal_where_it_needs_to() {
    use std::os::unix::process::ExitStatusExt;
    let dir = Dir::new();
    for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM] {
        let script = format!("kill -{} $$", signal as i32);
        let status = std::process::Command::new(PROGRAM)
            .args(["-q", "-l", "out", "--", "sh", "-c", &script])
            .current_dir(dir.path())
            .status()
            .unwrap();
        assert_eq!(status.signal(), Some(signal as i32));
        assert!(!status.core_dumped());
    }
}

// Edge case 26.
#[test]
fn a_command_that_cannot_be_started_leaves_files_as_they_were() {
    let dir = Dir::new();
    dir.write("there", "before\n");
    dir.write("data", "no program");
    for (command, status) in [("no-such-command", 127), ("./data", 126), ("/", 126)] {
        let run = logreopen(
            &dir,
            &[
                "-l",
                "there",
                "-e",
                "new",
                "--pid-file",
                "pid",
                "--control",
                "s",
                "--",
                command,
            ],
        )
        .finish();
        assert_eq!(run.status, status, "{}", run.err);
        assert!(
            run.err.contains(&format!("cannot execute '{command}'")),
            "{}",
            run.err
        );
    }
    assert_eq!(read(&dir, "there"), "before\n");
    for name in ["new", "pid", "s"] {
        assert!(!dir.path().join(name).exists(), "{name}");
    }
}

// Edge case 28.
#[test]
fn a_filter_notes_term_and_ends_with_its_input_or_at_the_second() {
    use std::io::Write;
    let dir = Dir::new();
    let (reader, mut writer) = pipe();
    let mut filter = logreopen(&dir, &["--control", "s", "app.log"])
        .stdin(reader)
        .start();
    filter.event("output-opened");
    filter.signal(Signal::SIGTERM);
    // It has been taken up: what is asked after it is answered after it.
    let asked = logreopen(&dir, &["--ctl", "s", "status"]).finish();
    assert_eq!(asked.status, 0, "{}", asked.err);
    writer.write_all(b"last words\n").unwrap();
    drop(writer);
    assert_eq!(filter.end(), 0);
    assert_eq!(read(&dir, "app.log"), "last words\n");

    let (reader, mut writer) = pipe();
    let mut filter = logreopen(&dir, &["app.log"]).stdin(reader).start();
    filter.event("output-opened");
    writer.write_all(b"more\n").unwrap();
    holds(&dir, "app.log", "last words\nmore\n");
    filter.signal(Signal::SIGTERM);
    filter.signal(Signal::SIGINT);
    let status = filter.end();
    assert!([130, 143].contains(&status), "by the second: {status}");
}

// Edge case 29.
#[test]
fn killed_with_9_the_command_gets_term_and_no_epipe_before_it() {
    let dir = Dir::new();
    let script = "trap '' PIPE; trap 'n=20' TERM; while [ \"$n\" != 0 ]; do echo line || echo failed > epipe; sleep 0.01; [ -z \"$n\" ] || n=$((n-1)); done; echo term > got";
    let mut service =
        logreopen(&dir, &["-l", "out", "-e", "err", "--", "sh", "-c", script]).start();
    service.event("command-started");
    eventually("it writes", || {
        (!read(&dir, "out").is_empty()).then_some(())
    });
    let child = children_of(service.pid())[0];
    service.signal(Signal::SIGKILL);
    assert_eq!(service.end(), 137);
    eventually("the command got TERM", || {
        (read(&dir, "got") == "term\n").then_some(())
    });
    eventually("and ended", || (!alive(child)).then_some(()));
    assert!(!dir.path().join("epipe").exists());
    // Node, that dies of EPIPE, lives until its TERM.
    let script = "process.on('SIGTERM', () => setTimeout(() => { require('fs').writeFileSync('node', 'term'); process.exit(0); }, 300)); setInterval(() => console.log('line'), 1);";
    let mut service = logreopen(
        &dir,
        &["-l", "out", "-e", "err", "--", "node", "-e", script],
    )
    .start();
    eventually("node writes", || {
        read(&dir, "out")
            .contains("line\nline\nline\n")
            .then_some(())
    });
    service.signal(Signal::SIGKILL);
    assert_eq!(service.end(), 137);
    eventually("node got TERM", || {
        (read(&dir, "node") == "term").then_some(())
    });
    assert_eq!(read(&dir, "err"), "");
}

// Edge case 30.
#[test]
fn stopped_and_continued_nothing_is_lost() {
    let dir = Dir::new();
    let numbers = numbers(&dir);
    let mut service = logreopen(&dir, &["-l", "out", "--"])
        .arg(numbers)
        .args(["20000", "100", "1000", "100"])
        .env("NUMBERS_REPORT", dir.path().join("report"))
        .start();
    service.event("command-started");
    eventually("it writes", || {
        (!read(&dir, "out").is_empty()).then_some(())
    });
    let size = || std::fs::metadata(dir.path().join("out")).unwrap().len();
    service.signal(Signal::SIGSTOP);
    let child = children_of(service.pid())[0];
    assert!(alive(child));
    // The command runs on into its pipe: here so much that it must wait.
    eventually("the pipe is full, or all is written", || {
        let at = std::fs::read_to_string(format!("/proc/{child}/wchan")).unwrap();
        (at.contains("pipe") || report(&dir.path().join("report")).is_some()).then_some(())
    });
    let stopped = size();
    assert!(stopped < 2_000_000);
    service.signal(Signal::SIGCONT);
    eventually("all is written", || (size() == 2_000_000).then_some(()));
    assert_eq!(service.stop(), 0);
    found(&[dir.path().join("out")], 20_000, 100).assert_all(20_000);
}

#[test]
fn signals_go_on_to_the_command_but_hup() {
    let dir = Dir::new();
    let names = "USR1 USR2 WINCH ALRM VTALRM PROF IO PWR CONT URG TTIN TTOU 34 45 64";
    let mut script = String::new();
    for name in names.split(' ').chain(["HUP"]) {
        script += &format!("trap 'echo {name} >> got' {name}; ");
    }
    script += "trap 'exit 9' TERM; touch ready; while :; do sleep 0.05; done";
    let mut service = logreopen(&dir, &["-l", "out", "--", "bash", "-c", &script]).start();
    service.event("command-started");
    eventually("traps are set", || {
        dir.path().join("ready").exists().then_some(())
    });
    service.signal(Signal::SIGHUP);
    let mut expected = String::new();
    for name in names.split(' ') {
        let sent = Run::new("bash")
            .args(["-c", &format!("kill -s {name} {}", service.pid())])
            .finish();
        assert_eq!(sent.status, 0, "{}", sent.err);
        expected += &format!("{name}\n");
        holds(&dir, "got", &expected);
    }
    service.signal(Signal::SIGTERM);
    assert_eq!(service.end(), 9);
    assert_eq!(read(&dir, "got"), expected, "each once, and no HUP");
}

// Conventions 2: the terminal has sent it to the command already.
#[test]
fn control_c_on_a_terminal_arrives_once() {
    use std::io::Write;
    let dir = Dir::new();
    // Says of each signal who sent it, until TERM.
    let inner = "import signal\nboth = {signal.SIGINT, signal.SIGTERM}\nsignal.pthread_sigmask(signal.SIG_BLOCK, both)\nopen('ready', 'w')\nwhile True:\n  info = signal.sigwaitinfo(both)\n  got = open('got', 'a')\n  print(info.si_signo, info.si_code > 0, file=got)\n  got.close()\n  if info.si_signo == signal.SIGTERM: raise SystemExit(6)\n";
    dir.write("inner.py", inner);
    // script(1) gives a terminal, and what it reads is typed there. The shell between, whichever $SHELL is, gets
    // the Control-C as well, and dash would end of it.
    let (reader, mut writer) = pipe();
    let command = format!(
        "trap : INT; {PROGRAM} -q --pid-file pid --control s -l out -- python3 inner.py; echo status $? > status"
    );
    let mut typed = Run::new("script")
        .args(["-qfec", &command, "/dev/null"])
        .dir(dir.path())
        .stdin(reader)
        .start();
    eventually("it waits for signals", || {
        dir.path().join("ready").exists().then_some(())
    });
    writer.write_all(b"\x03").unwrap();
    holds(&dir, "got", "2 True\n");
    // Whatever we had to pass on, we have by now.
    let asked = logreopen(&dir, &["--ctl", "s", "status"]).finish();
    assert_eq!(asked.status, 0, "{}", asked.err);
    let pid: i32 = read(&dir, "pid").trim().parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    holds(&dir, "status", "status 6\n");
    assert_eq!(read(&dir, "got"), "2 True\n15 False\n");
    drop(writer);
    typed.end();
}

#[test]
fn listen_fds_descriptors_and_the_environment_pass_untouched() {
    let dir = Dir::new();
    let script = "[ \"$LISTEN_PID\" = $$ ] && echo pid right; echo $LISTEN_FDS \"$GREETING\"; cat <&3; ls /proc/$$/fd >&2";
    dir.write("three", "from three\n");
    let outer = "exec 3<three; ls /proc/$$/fd > before; LISTEN_PID=$$ LISTEN_FDS=1 GREETING='good  morning' exec \"$@\"";
    let run = Run::new("sh")
        .args([
            "-c", outer, "sh", PROGRAM, "-q", "-l", "out", "--", "sh", "-c", script,
        ])
        .dir(dir.path())
        .finish();
    assert_eq!(run.status, 0, "{}", run.err);
    assert_eq!(
        read(&dir, "out"),
        "pid right\n1 good  morning\nfrom three\n"
    );
    // One more than we were started with: the read end of its own stdout.
    let fds = |text: &str| -> std::collections::BTreeSet<String> {
        let numbers = text.split_whitespace().filter(|word| *word != "total");
        numbers.map(str::to_owned).collect()
    };
    let before = fds(&read(&dir, "before"));
    let after = fds(&run.err);
    assert!(before.is_subset(&after), "{before:?} {after:?}");
    assert_eq!(after.len(), before.len() + 1, "{before:?} {after:?}");
}

#[test]
fn the_command_has_default_signals_and_an_empty_mask() {
    let dir = Dir::new();
    let run = Run::new("env")
        .args([
            "--ignore-signal=PIPE,USR1",
            "--block-signal=USR2",
            PROGRAM,
            "-q",
            "-l",
            "out",
            "--",
        ])
        .args(["grep", "-E", "SigBlk|SigIgn", "/proc/self/status"])
        .dir(dir.path())
        .finish();
    assert_eq!(run.status, 0, "{}", run.err);
    for line in read(&dir, "out").lines() {
        let (_, mask) = line.split_once('\t').unwrap();
        let mask = u64::from_str_radix(mask, 16).unwrap();
        // 32 and 33 are the C library's own, which lets nobody touch them (nptl(7)).
        assert_eq!(mask & !(0b11 << 31), 0, "{line}");
    }
}

// Edge case 31.
#[test]
fn missing_standard_descriptors_and_a_stderr_that_is_full_or_closed() {
    let dir = Dir::new();
    let script = "echo out; echo err >&2";
    for closed in ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"] {
        let run = Run::new("sh")
            .args([
                "-c",
                &format!("exec \"$@\" {closed}"),
                "sh",
                PROGRAM,
                "-l",
                "out",
                "-e",
                "err",
                "--",
                "sh",
                "-c",
                script,
            ])
            .dir(dir.path())
            .finish();
        assert_eq!(run.status, 0, "{closed}: {}", run.err);
    }
    assert_eq!(read(&dir, "out"), "out\n".repeat(4));
    assert_eq!(read(&dir, "err"), "err\n".repeat(4));
    // A filter without stdin has nothing to do.
    let run = Run::new("sh")
        .args(["-c", "exec \"$@\" 0<&-", "sh", PROGRAM, "app.log"])
        .dir(dir.path())
        .finish();
    assert_eq!(run.status, 0, "{}", run.err);
    // stderr is a pipe that nobody reads, and is full; then one that nobody has.
    use std::io::Write;
    let (full, mut filled) = pipe();
    nix::fcntl::fcntl(
        &filled,
        nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK),
    )
    .unwrap();
    while filled.write(&[b'x'; 4096]).is_ok() {}
    nix::fcntl::fcntl(
        &filled,
        nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty()),
    )
    .unwrap();
    let run = logreopen(&dir, &["-l", "full", "--", "echo", "out"])
        .stderr(filled)
        .finish();
    assert_eq!((run.status, &*read(&dir, "full")), (0, "out\n"));
    drop(full);
    let (none, closed) = pipe();
    drop(none);
    let run = logreopen(&dir, &["-l", "closed", "--", "echo", "out"])
        .stderr(closed)
        .finish();
    assert_eq!((run.status, &*read(&dir, "closed")), (0, "out\n"));
}

// Page, Events: our stderr is the file given with -e.
#[test]
fn events_follow_the_file_that_stderr_leads_to() {
    let dir = Dir::new();
    let err = std::fs::File::create(dir.path().join("err")).unwrap();
    let mut service = logreopen(
        &dir,
        &[
            "-l",
            "out",
            "-e",
            "err",
            "--control",
            "s",
            "--",
            "sh",
            "-c",
            "echo words >&2; exec sleep 1000",
        ],
    )
    .stderr(err)
    .start();
    eventually("events are there", || {
        read(&dir, "err").contains("command-started").then_some(())
    });
    eventually("words are there", || {
        read(&dir, "err").contains("words\n").then_some(())
    });
    std::fs::rename(dir.path().join("err"), dir.path().join("err.1")).unwrap();
    let asked = logreopen(&dir, &["--ctl", "s", "reopen"]).finish();
    assert_eq!(asked.status, 0, "{}", asked.err);
    eventually("the event is in the new file", || {
        read(&dir, "err")
            .contains("output-reopened file=err")
            .then_some(())
    });
    // Nobody has the old file open.
    for fd in std::fs::read_dir(format!("/proc/{}/fd", service.pid())).unwrap() {
        let to = std::fs::read_link(fd.unwrap().path()).unwrap_or_default();
        assert!(!to.to_string_lossy().contains("err.1"), "{to:?}");
    }
    assert_eq!(service.stop(), 143);
    assert!(read(&dir, "err").contains("command-exited"));
    for line in read(&dir, "err").lines() {
        assert!(line.contains("Z logreopen["), "{line}");
    }
}

#[test]
fn stderr_that_leads_to_another_file() {
    let dir = Dir::new();
    let events = std::fs::File::create(dir.path().join("events")).unwrap();
    let run = logreopen(&dir, &["-l", "out", "-e", "err", "--", "echo", "x"])
        .stderr(events)
        .finish();
    assert_eq!(run.status, 0);
    let text = read(&dir, "events");
    assert!(
        text.contains("output-opened") && text.contains("command-exited"),
        "{text}"
    );
}

#[test]
fn pid_file_and_json_events() {
    let dir = Dir::new();
    let mut service = logreopen(
        &dir,
        &[
            "--pid-file",
            "pid",
            "--log-format",
            "json",
            "-l",
            "out",
            "--",
            "sleep",
            "1000",
        ],
    )
    .start();
    service.line("command-started", |line| {
        line.contains("\"event\":\"command-started\"")
    });
    assert_eq!(read(&dir, "pid").trim(), service.pid().to_string());
    let second = logreopen(&dir, &["--pid-file", "pid", "-l", "out", "--", "true"]).finish();
    assert_eq!(second.status, 125);
    assert!(
        second
            .err
            .contains(&format!("pid {} holds it", service.pid())),
        "{}",
        second.err
    );
    assert_eq!(service.stop(), 143);
    assert!(!dir.path().join("pid").exists());
}

/// As process 1 of a container: orphans come to us, and are reaped.
#[test]
fn as_process_1_it_reaps_orphans() {
    kit::mount::need_root();
    let dir = Dir::new();
    let script = "(sleep 0.1 & echo $! > orphan); while [ -e /proc/$(cat orphan) ]; do sleep 0.05; done; exit 8";
    let run = Run::new("unshare")
        .args([
            "--pid",
            "--fork",
            "--mount-proc",
            PROGRAM,
            "-l",
            "out",
            "--",
            "sh",
            "-c",
            script,
        ])
        .dir(dir.path())
        .finish();
    assert_eq!(run.status, 8, "{}", run.err);
    let run = Run::new("unshare")
        .args([
            "--pid",
            "--fork",
            "--mount-proc",
            PROGRAM,
            "-l",
            "out",
            "--",
            "sh",
            "-c",
            "kill -TERM $$",
        ])
        .dir(dir.path())
        .finish();
    assert_eq!(run.status, 143, "no signal ends process 1: {}", run.err);
}

#[test]
fn blocked_and_full_at_the_end_what_is_in_the_pipe_is_counted() {
    let disk = kit::mount::Mounted::tmpfs(1 << 20);
    let dir = Dir::new();
    let numbers = numbers(&dir);
    let log = disk.path().join("app.out");
    let mut service = Run::new(PROGRAM)
        .args([
            "--on-full",
            "block",
            "--buffer",
            "256K",
            "--drain-timeout",
            "300ms",
            "-l",
        ])
        .arg(&log)
        .arg("--")
        .arg(numbers)
        .args(["0", "100", "0", "0"])
        .env("NUMBERS_REPORT", dir.path().join("report"))
        .env("NUMBERS_END", "1")
        .dir(dir.path())
        .start();
    service.event("write-failed");
    let child = children_of(service.pid())[0];
    eventually("it waits", || {
        std::fs::read_to_string(format!("/proc/{child}/wchan"))
            .unwrap()
            .contains("pipe")
            .then_some(())
    });
    service.signal(Signal::SIGKILL);
    drop(service);
    kill(Pid::from_raw(child), Signal::SIGKILL).unwrap_or(());
    // The same with the command's end rather than ours.
    std::fs::remove_file(&log).unwrap();
    let mut service = Run::new(PROGRAM)
        .args([
            "--on-full",
            "block",
            "--buffer",
            "256K",
            "--drain-timeout",
            "300ms",
            "-l",
        ])
        .arg(&log)
        .args(["--", "sh", "-c", "exec yes 123456789"])
        .dir(dir.path())
        .start();
    service.event("write-failed");
    let child = children_of(service.pid())[0];
    eventually("it waits", || {
        std::fs::read_to_string(format!("/proc/{child}/wchan"))
            .unwrap()
            .contains("pipe")
            .then_some(())
    });
    service.signal(Signal::SIGTERM);
    assert_eq!(service.end(), 143);
    let gave_up = service
        .err()
        .iter()
        .find(|line| line.contains("drain-gave-up"))
        .unwrap()
        .clone();
    let held: u64 = field(&gave_up, "held").parse().unwrap();
    let lost: u64 = field(&gave_up, "lost").parse().unwrap();
    assert!(
        held > 0 && lost * 10 + held > 1 << 20,
        "a pipe and a buffer full: {gave_up}"
    );
}

/// Several hundred of them in a machine: what one needs.
// Edge case 42.
#[test]
fn an_idle_one_is_small_and_sleeps() {
    let dir = Dir::new();
    let mut all: Vec<Running> = (0..20)
        .map(|n| {
            let mut service = logreopen(
                &dir,
                &[
                    "-l",
                    &format!("out.{n}"),
                    "-e",
                    &format!("err.{n}"),
                    "--",
                    "sh",
                    "-c",
                    "seq 1 200000; exec sleep 1000",
                ],
            )
            .start();
            service.event("command-started");
            service
        })
        .collect();
    for (n, service) in all.iter().enumerate() {
        eventually("it has written", || {
            read(&dir, &format!("out.{n}"))
                .ends_with("\n200000\n")
                .then_some(())
        });
        // What the burst needed is given back after a second.
        let pss = || {
            let text =
                std::fs::read_to_string(format!("/proc/{}/smaps_rollup", service.pid())).unwrap();
            let line = text.lines().find(|line| line.starts_with("Pss:")).unwrap();
            line.split_whitespace()
                .nth(1)
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        eventually("it is small", || (pss() < 1500).then_some(()));
    }
    let switches = |pid: i32| -> u64 {
        let mut sum = 0;
        for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let text = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            let line = text
                .lines()
                .find(|line| line.starts_with("voluntary_ctxt"))
                .unwrap();
            sum += line
                .split_whitespace()
                .nth(1)
                .unwrap()
                .parse::<u64>()
                .unwrap();
        }
        sum
    };
    let mut last = (Vec::new(), Instant::now());
    eventually("three seconds without one wake-up", || {
        let now: Vec<u64> = all.iter().map(|service| switches(service.pid())).collect();
        if now != last.0 {
            last = (now, Instant::now());
        }
        (last.1.elapsed() > Duration::from_secs(3)).then_some(())
    });
    for service in &mut all {
        assert_eq!(service.stop(), 143);
    }
}

// Edge case 43.
#[test]
fn pipes_that_may_not_be_wide_work_too() {
    kit::mount::need_root();
    let dir = Dir::new();
    std::os::unix::fs::chown(dir.path(), Some(65_534), Some(65_534)).unwrap();
    let numbers = numbers(&dir);
    // As nobody, with as many pipes open as the soft limit grants pages to: then a pipe has one or two.
    let script = "import os,subprocess,sys\nkept=[os.pipe() for _ in range(1100)]\nsys.exit(subprocess.call(sys.argv[1:]))";
    let run = Run::new("setpriv")
        .args([
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            "sh",
            "-c",
            "ulimit -n 4096; exec \"$@\"",
            "sh",
        ])
        .args(["python3", "-c", script, PROGRAM, "-v", "-l", "out", "--"])
        .arg(numbers)
        .args(["20000", "100", "0", "0"])
        .env("NUMBERS_END", "1")
        .dir(dir.path())
        .finish();
    assert_eq!(run.status, 0, "{}", run.err);
    assert!(run.err.contains("pipe-small size="), "{}", run.err);
    found(&[dir.path().join("out")], 20_000, 100).assert_all(20_000);
}
