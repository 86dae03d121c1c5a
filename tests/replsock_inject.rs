//! `--inject`: a node without the agent, and everything that must not be hurt by it. The tests share one
//! port of the machine, Node's own, and so run one after the other.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::{Dir, Finished, NODES, Run, Running, eventually, node};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::sync::{Mutex, MutexGuard, PoisonError};

const PROGRAM: &str = env!("CARGO_BIN_EXE_replsock");

static PORT: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    PORT.lock().unwrap_or_else(PoisonError::into_inner)
}

fn app(version: &str, program: &str) -> Running {
    let running = Run::new(node(version)).args(["-e", program]).start();
    let status = format!("/proc/{}/status", running.pid());
    eventually("its handler of SIGUSR1", || {
        let text = std::fs::read_to_string(&status).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
        let mask = u64::from_str_radix(line.trim(), 16).ok()?;
        (mask & (1 << 9) != 0).then_some(())
    });
    running
}

fn ask(dir: &Dir, words: &[&str]) -> Finished {
    Run::new(PROGRAM)
        .args(words)
        .env("REPLSOCK_DIR", dir.path().join("sockets"))
        .finish()
}

/// Whether that process listens anywhere by TCP.
fn listens(pid: i32) -> bool {
    let own: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .map(|link| link.to_string_lossy().into_owned())
        .filter(|link| link.starts_with("socket:["))
        .map(|link| link["socket:[".len()..link.len() - 1].to_owned())
        .collect();
    ["tcp", "tcp6"].iter().any(|name| {
        let table = std::fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default();
        table.lines().skip(1).any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.get(3) == Some(&"0A")
                && fields
                    .get(9)
                    .is_some_and(|inode| own.iter().any(|one| one == inode))
        })
    })
}

const TICKS: &str = "globalThis.counter = 5; setInterval(() => {}, 1000)";

#[test]
fn in_each_release_and_the_port_is_closed_afterwards() {
    let _alone = alone();
    for version in NODES {
        let dir = Dir::new();
        let mut running = app(version, TICKS);
        let pid = running.pid().to_string();
        if nix::unistd::geteuid().is_root() {
            let refused = ask(&dir, &["eval", "--inject", &pid, "counter"]);
            assert_eq!(refused.status, 126, "{version}: {}", refused.err);
            assert!(refused.err.contains("--yes-open-port"), "{}", refused.err);
        }
        let words = ["eval", "--inject", "--yes-open-port", &pid, "counter"];
        let answer = ask(&dir, &words);
        assert_eq!(
            (answer.status, answer.out.as_str()),
            (0, "5\n"),
            "{version}: {}",
            answer.err
        );
        assert!(!listens(running.pid()), "{version}: the port is open");
        // From now on it is reached as any other.
        let answer = ask(&dir, &["eval", &pid, "require('os').EOL.length"]);
        assert_eq!(
            (answer.status, answer.out.as_str()),
            (0, "1\n"),
            "{version}: {}",
            answer.err
        );
        let again = ask(&dir, &words);
        assert_eq!(again.status, 0, "{version}: {}", again.err);
        assert_eq!(running.stop(), 143, "{version}");
    }
}

#[test]
fn the_stack_of_a_loop_that_does_not_end() {
    let _alone = alone();
    for version in ["16", "20", "26"] {
        let dir = Dir::new();
        let file = dir.write(
            "app.js",
            "function spin() {\n  for (;;) globalThis.turns += 1;\n}\nglobalThis.turns = 0; setTimeout(spin, 500);\n",
        );
        let mut running = Run::new(node(version)).arg(&file).start();
        // It spins when it has used that much of a processor.
        eventually("the loop", || {
            let text = std::fs::read_to_string(format!("/proc/{}/stat", running.pid())).ok()?;
            let ticks: u64 = text
                .rsplit(')')
                .next()?
                .split_whitespace()
                .nth(11)?
                .parse()
                .ok()?;
            (ticks > 60).then_some(())
        });
        let pid = running.pid().to_string();
        assert_eq!(ask(&dir, &["stack", &pid]).status, 2);
        let stack = ask(&dir, &["stack", "--inject", "--yes-open-port", &pid]);
        assert_eq!(stack.status, 0, "{version}: {}", stack.err);
        let first = stack.out.lines().next().unwrap();
        assert!(
            first.starts_with("    at spin (") && first.contains("app.js:2:"),
            "{version}: {}",
            stack.out
        );
        assert!(!listens(running.pid()), "{version}: the port is open");
        assert_eq!(running.stop(), 143, "{version}: it was alive");
    }
}

#[test]
fn what_the_signal_would_kill_lives_on() {
    let _alone = alone();
    let dir = Dir::new();
    let inject = |pid: i32| {
        ask(
            &dir,
            &["eval", "--inject", "--yes-open-port", &pid.to_string(), "1"],
        )
    };
    let mut python = Run::new("/usr/bin/python3")
        .args([
            "-c",
            "import time\nprint('up', flush=True)\ntime.sleep(1000)",
        ])
        .start();
    let _ = python.out_line("up", |line| line == "up");
    let refused = inject(python.pid());
    assert_eq!(refused.status, 126, "{}", refused.err);
    assert_eq!(python.stop(), 143);
    // Edge case 36: a node of two milliseconds, at whatever moment it is met.
    for _ in 0..10 {
        let mut young = Run::new(node("20")).args(["-e", TICKS]).start();
        let answer = inject(young.pid());
        assert!(
            [0, 126].contains(&answer.status),
            "{} {}",
            answer.status,
            answer.err
        );
        assert_eq!(young.stop(), 143, "it was killed by SIGUSR1");
    }
    // Edge case 35.
    let mut deaf = Run::new(node("26"))
        .args([
            "--disable-sigusr1",
            "-e",
            "console.log('up'); setInterval(() => {}, 1000)",
        ])
        .start();
    let _ = deaf.out_line("up", |line| line == "up");
    let refused = inject(deaf.pid());
    assert!([125, 126].contains(&refused.status), "{}", refused.err);
    assert_eq!(deaf.stop(), 143);
    assert_eq!(inject(2_000_000_000).status, 127);
    // Edge case 50: the number was given to another process meanwhile, which shows by its start.
    let mut other = app("20", TICKS);
    let pid = other.pid().to_string();
    let refused = ask(&dir, &["through-the-port", &pid, "1", "agent"]);
    assert_eq!(refused.status, 127, "{}", refused.err);
    assert!(!listens(other.pid()));
    assert_eq!(other.stop(), 143);
}

#[test]
fn nobody_elses_port_is_taken_for_the_targets() {
    let _alone = alone();
    let dir = Dir::new();
    // Edge case 33: the app's own handler.
    let mut own = app(
        "20",
        "process.on('SIGUSR1', () => console.log('own')); setInterval(() => {}, 1000)",
    );
    let pid = own.pid().to_string();
    let refused = ask(&dir, &["eval", "--inject", "--yes-open-port", &pid, "1"]);
    assert_eq!(refused.status, 125, "{}", refused.err);
    let _ = own.out_line("own", |line| line == "own");
    assert_eq!(own.stop(), 143);
    // Edge case 34: another node holds 9229.
    let mut holder = Run::new(node("20"))
        .args([
            "--inspect=127.0.0.1:9229",
            "-e",
            "globalThis.me = 'holder'; setInterval(() => {}, 1000)",
        ])
        .start();
    eventually("its port", || listens(holder.pid()).then_some(()));
    let mut meant = app("20", "globalThis.me = 'meant'; setInterval(() => {}, 1000)");
    let pid = meant.pid().to_string();
    let refused = ask(&dir, &["eval", "--inject", "--yes-open-port", &pid, "me"]);
    assert_eq!(refused.status, 125, "{} {}", refused.out, refused.err);
    assert!(
        refused.err.contains(&format!("pid {}", holder.pid())),
        "{}",
        refused.err
    );
    assert_eq!(holder.stop(), 143);
    assert_eq!(meant.stop(), 143);
}

#[test]
fn killed_in_the_middle_the_port_is_closed_all_the_same() {
    let _alone = alone();
    let dir = Dir::new();
    let mut running = app("20", TICKS);
    let pid = running.pid().to_string();
    for _ in 0..5 {
        let mut client = Run::new(PROGRAM)
            .args(["stack", "--inject", "--yes-open-port", &pid])
            .env("REPLSOCK_DIR", dir.path().join("sockets"))
            .start();
        eventually("the open port, or the end", || {
            let ended = std::fs::read_to_string(format!("/proc/{}/stat", client.pid()))
                .is_ok_and(|text| text.contains(") Z "));
            (listens(running.pid()) || ended).then_some(())
        });
        let _ = kill(Pid::from_raw(client.pid()), Signal::SIGKILL);
        let _ = client.end();
        eventually("the closed port", || {
            (!listens(running.pid())).then_some(())
        });
    }
    assert_eq!(running.stop(), 143);
}
