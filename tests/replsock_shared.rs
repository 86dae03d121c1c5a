//! replsock serve --shared: one command, many clients that come and go.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::eventually;
use kit::served::{Served, Terminal};
use nix::sys::signal::Signal;
use std::fs::File;
use std::io::{Read, Write};

const PROGRAM: &str = env!("CARGO_BIN_EXE_replsock");

fn serve(options: &[&str], command: &[&str]) -> Served {
    let mut all = vec!["--shared"];
    all.extend(options);
    Served::start(PROGRAM, &all, command)
}

const SHELL: [&str; 4] = ["env", "PS1=ready> ", "bash", "--norc"];

fn client(served: &Served, options: &str) -> Terminal {
    let line = format!("'{PROGRAM}' attach {options} ./s.sock");
    Terminal::open(served.dir.path(), &line)
}

#[test]
fn one_command_for_all_that_outlives_them() {
    let mut served = serve(&[], &SHELL);
    let pid = kit::field(&served.server.event("command-started"), "pid");
    let mut one = served.attach();
    one.shows("ready> ");
    one.types("echo first-$((40 + 2))\r");
    one.shows("\rfirst-42");
    one.types("\u{1d}q");
    one.shows("detached");
    one.ends(0);
    // Who comes later sees what was there.
    let mut two = served.attach();
    two.shows("\rfirst-42");
    two.shows("ready> ");
    // And all see the same.
    let mut three = served.attach();
    three.shows("\rfirst-42");
    three.types("echo both-$$\r");
    three.shows(&format!("\rboth-{pid}"));
    two.shows(&format!("\rboth-{pid}"));
    // One that is killed hurts nobody.
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(two.client()), Signal::SIGKILL);
    two.shows("status 137");
    // A script sees what comes from now on, and leaves when nothing does.
    let answer = served.eval(&[], "echo script-$((40 + 2))\n");
    assert_eq!(answer.status, 0, "{}", answer.err);
    assert!(
        answer.out.contains("\rscript-42") && !answer.out.contains("first"),
        "{}",
        answer.out
    );
    three.shows("\rscript-42");
    // Its end is everybody's, and ours.
    three.types("exit 5\r");
    three.ends(5);
    assert_eq!(served.server.end(), 5);
    assert!(!served.socket().exists());
}

#[test]
fn the_size_is_that_of_the_one_who_types() {
    // Edge case 14.
    let served = serve(&[], &SHELL);
    let mut one = served.attach();
    one.shows("ready> ");
    one.resize(100, 40);
    one.types("stty size\r");
    one.shows("\r40 100");
    let mut two = served.attach();
    two.shows("ready> ");
    two.types("stty size\r");
    two.shows("\r24 80");
    one.types("stty size\r");
    one.shows("\r40 100");
    // One that only looks types nothing.
    let mut looks = client(&served, "--read-only");
    looks.shows("40 100");
    looks.types("echo typed-$((40 + 2))\r");
    one.types("echo behind-$((40 + 2))\r");
    looks.shows("\rbehind-42");
    assert!(!looks.all().contains("typed-42"));
    one.types("exit\r");
    looks.ends(0);
}

#[test]
fn who_does_not_keep_up_loses_it() {
    // Edge cases 15 and 16: the command waits for nobody for long.
    let mut served = serve(
        &["--pipe"],
        &[
            "sh",
            "-c",
            "while read n; do head -c $n /dev/zero | tr '\\0' x; echo; echo done >> done; done",
        ],
    );
    let mut stopped = served
        .client(&[])
        .stdin(pipe())
        .stdout(File::create(served.dir.path().join("out")).unwrap())
        .start();
    served.server.event("client-connected");
    let mut fast = served.plain();
    fast.write_all(b"10\n").unwrap();
    let mut line = [0; 11];
    fast.read_exact(&mut line).unwrap();
    eventually("the other one's line", || {
        (served.dir.path().join("out").metadata().unwrap().len() == 11).then_some(())
    });
    stopped.signal(Signal::SIGSTOP);
    fast.write_all(b"8000000\n").unwrap();
    let mut all = vec![0; 8_000_001];
    fast.read_exact(&mut all).unwrap();
    eventually("the command", || {
        let done = std::fs::read_to_string(served.dir.path().join("done")).unwrap_or_default();
        (done.lines().count() == 2).then_some(())
    });
    // Within its time it hears why.
    stopped.signal(Signal::SIGCONT);
    assert_eq!(stopped.end(), 125);
    assert!(
        stopped.err().join("\n").contains("too slow"),
        "{:?}",
        stopped.err()
    );
    fast.write_all(b"10\n").unwrap();
    fast.read_exact(&mut line).unwrap();
}

fn pipe() -> File {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    std::mem::forget(writer);
    reader.into()
}

#[test]
fn signals_are_the_commands() {
    let mut served = serve(
        &["--pipe"],
        &[
            "sh",
            "-c",
            "trap 'echo hup >> heard' HUP; trap 'echo term >> heard; exit 3' TERM; echo ready; while :; do sleep 0.05; done",
        ],
    );
    let heard = || std::fs::read_to_string(served.dir.path().join("heard")).unwrap_or_default();
    let mut watcher = served.plain();
    // It has set its traps by then.
    eventually("the command", || {
        let child = *served.children().first()?;
        let status = std::fs::read_to_string(format!("/proc/{child}/status")).ok()?;
        let caught = status
            .lines()
            .find_map(|line| line.strip_prefix("SigCgt:"))?;
        let bits = u64::from_str_radix(caught.trim(), 16).ok()?;
        (bits & 1 << 14 != 0).then_some(())
    });
    let pid = nix::unistd::Pid::from_raw(served.server.pid());
    nix::sys::signal::kill(pid, Signal::SIGHUP).unwrap();
    eventually("the hang-up", || heard().contains("hup").then_some(()));
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(served.server.end(), 3);
    let mut rest = String::new();
    watcher.read_to_string(&mut rest).unwrap();
    assert_eq!(
        std::fs::read_to_string(served.dir.path().join("heard")).unwrap(),
        "hup\nterm\n"
    );
}

#[test]
fn a_flood_of_many_is_bounded() {
    let served = serve(&["--pipe"], &["sh", "-c", "sleep 1000"]);
    let mut clients: Vec<_> = (0..20).map(|_| served.plain()).collect();
    let chunk = vec![b'x'; 1 << 20];
    let mut sent = 0;
    for _ in 0..200 {
        for client in &mut clients {
            client.set_nonblocking(true).unwrap();
            sent += client.write(&chunk).unwrap_or(0);
        }
    }
    assert!(sent > 1 << 18, "{sent}");
    let status = std::fs::read_to_string(format!("/proc/{}/status", served.server.pid())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let rss: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(rss < 16 << 10, "{line}");
}
