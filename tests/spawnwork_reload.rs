//! Reloads, good and bad, and deaths, under load: what clients saw.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::http::{Failure, get};
use kit::load::{Load, Options};
use kit::{Dir, NODES, Run, Running, app, field, free_port};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// One load at a time: on a small machine several would only measure each other.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(|broken| broken.into_inner())
}

fn spawnwork(args: &[&str]) -> Run {
    Run::new(env!("CARGO_BIN_EXE_spawnwork")).args(args)
}

/// Between two requests of a client: at each moment of a step a dozen slow ones are in flight and other connections are
/// idle, and the machine has time left for the reloads, instead of all of it going into requests.
const PAUSE: Duration = Duration::from_millis(50);

/// 64 connections, of which 48 are kept; one request of sixteen takes 300 ms.
fn load_on(port: u16) -> Options {
    let mut paths = vec!["/"; 16];
    paths[7] = "/slow";
    Options {
        address: format!("127.0.0.1:{port}"),
        keep_alive: 48,
        fresh: 16,
        paths,
        expect: "hello ",
        timeout: Duration::from_secs(30),
    }
}

fn twenty_reloads(node: &Path, app: &Path, balance: &str) {
    let port = free_port();
    let mut master = spawnwork(&["-n", "2", "--probation", "50ms", "--balance", balance, "--"])
        .args([node, app])
        .env("PORT", port.to_string())
        .env("NODE_PATH", kit::cache().join("frameworks/node_modules"))
        .start();
    master.event("generation-serving");
    let load = Load::paced(&load_on(port), PAUSE);
    for _ in 0..20 {
        load.answer(50);
        master.signal(Signal::SIGUSR2);
        master.event("reload-committed");
    }
    load.answer(50);
    let tally = load.stop();
    let what = format!("{} {} {balance}", node.display(), app.display());
    assert_eq!(tally.failures(), 0, "{what}: {:?}", tally.failed);
    assert!(tally.served.len() > 20, "{what}: {:?}", tally.served);
    assert_eq!(master.stop(), 0);
    let err = master.err().join("\n");
    assert!(!err.contains("worker-killed"), "{what}: {err}");
}

#[test]
fn twenty_reloads_cost_no_request_with_shared_sockets() {
    let _alone = alone();
    for version in NODES {
        twenty_reloads(&kit::node(version), &app("hello.js"), "shared");
    }
}

#[test]
fn twenty_reloads_cost_no_request_with_round_robin() {
    let _alone = alone();
    for version in ["16", "26"] {
        twenty_reloads(&kit::node(version), &app("hello.js"), "round-robin");
    }
}

#[test]
fn twenty_reloads_of_frameworks_cost_no_request() {
    let _alone = alone();
    for name in ["express_hello.js", "fastify_hello.js"] {
        twenty_reloads(&kit::node("24"), &app(name), "shared");
    }
}

const GOOD: &str = "require('http').createServer((q, r) => r.end(`hello ${process.pid} VERSION\\n`)).listen(Number(process.env.PORT), '127.0.0.1');\n";

fn deployed(more: &[&str]) -> (Dir, Running, u16) {
    let dir = Dir::new();
    dir.write("app.js", &GOOD.replace("VERSION", "one"));
    let port = free_port();
    let mut master = spawnwork(&["-n", "2"])
        .args(more)
        .args(["--", "node", "app.js"])
        .dir(dir.path())
        .env("PORT", port.to_string())
        .start();
    master.event("generation-serving");
    (dir, master, port)
}

fn version(port: u16) -> String {
    let body = get(format!("127.0.0.1:{port}"), "/").unwrap().body;
    body.split_whitespace().nth(2).unwrap().to_owned()
}

// Edge case 1.
// Edge case 2.
// Edge case 3.
#[test]
fn bad_deploys_cost_no_request_and_the_fix_comes_at_once() {
    let _alone = alone();
    let late = format!(
        "{}setTimeout(() => {{ throw new Error('late') }}, 400);",
        GOOD.replace("VERSION", "late")
    );
    let bad = [
        ("throw new Error('at load');", "at load"),
        (
            "console.error('I hang'); setInterval(() => {}, 1000);",
            "I hang",
        ),
        (late.as_str(), "late"),
        ("syntax error", "SyntaxError"),
        ("process.exit(0);", "status 0"),
    ];
    for (surge, balance) in [
        ("100%", "shared"),
        ("100%", "round-robin"),
        ("1", "shared"),
        ("0", "shared"),
    ] {
        let (dir, mut master, port) = deployed(&[
            "--balance",
            balance,
            "--ready-timeout",
            "5s",
            "--probation",
            "800ms",
            "--surge",
            surge,
        ]);
        let mut options = load_on(port);
        options.paths = vec!["/"];
        let load = Load::paced(&options, PAUSE);
        for (text, reason) in bad {
            load.answer(50);
            dir.write("app.js", text);
            master.signal(Signal::SIGUSR2);
            // With a surge of 0 the way back fails too, by the file that is still the bad one.
            master.line(&format!("surge {surge}: {reason}"), |line| {
                line.contains(" reload-failed ")
                    && line.contains(reason)
                    && !line.contains("on the way back")
            });
            load.answer(50);
        }
        master.signal(Signal::SIGUSR1);
        let status = master.event("status");
        assert!(status.contains("frozen="), "{status}");
        // Those that serve are of the first release, whatever the file says by now.
        if surge != "0" {
            assert_eq!(version(port), "one");
        }
        dir.write("app.js", &GOOD.replace("VERSION", "two"));
        master.signal(Signal::SIGUSR2);
        master.event("reload-committed");
        load.answer(50);
        assert_eq!(version(port), "two");
        let tally = load.stop();
        if surge == "0" {
            // There the new worker serves on trial: what it has in hand when it dies is lost.
            assert_eq!(tally.of(Failure::Refused), 0, "{:?}", tally.failed);
            assert_eq!(tally.of(Failure::TimedOut), 0, "{:?}", tally.failed);
        } else {
            assert_eq!(tally.failures(), 0, "surge {surge}: {:?}", tally.failed);
        }
        master.signal(Signal::SIGUSR1);
        let status = master.event("status");
        assert!(!status.contains("frozen="), "{status}");
        assert_eq!(master.stop(), 0);
    }
}

#[test]
fn a_worker_killed_every_200_ms_takes_only_its_own_requests_along() {
    let _alone = alone();
    let port = free_port();
    let mut master = spawnwork(&["-n", "4", "--respawn-limit", "0", "--", "node"])
        .args([app("hello.js")])
        .env("PORT", port.to_string())
        .start();
    let mut pids: Vec<String> = (0..4)
        .map(|_| field(&master.event("worker-ready"), "pid"))
        .collect();
    let load = Load::paced(&load_on(port), PAUSE);
    load.answer(100);
    let end = Instant::now() + Duration::from_secs(5);
    let mut killed = Vec::new();
    while Instant::now() < end {
        let victim = pids.remove(0);
        kill(Pid::from_raw(victim.parse().unwrap()), Signal::SIGKILL).unwrap();
        killed.push(victim);
        // The next one is ready before the one after is killed, or 200 ms are over.
        let next = Instant::now() + Duration::from_millis(200);
        pids.push(field(&master.event("worker-ready"), "pid"));
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    load.answer(100);
    let tally = load.stop();
    assert!(killed.len() >= 5, "{killed:?}");
    for kind in [Failure::Refused, Failure::Wrong, Failure::TimedOut] {
        assert_eq!(tally.of(kind), 0, "{:?}", tally.failed);
    }
    for (_, who) in &tally.broken {
        assert!(
            killed.contains(who),
            "{who} was not killed: {:?}",
            tally.broken
        );
    }
    // Each kill can break at most what was open: 64 connections over four workers, and some unevenly.
    assert!(
        tally.failures() <= killed.len() as u64 * 64,
        "{:?}",
        tally.failed
    );
    assert_eq!(master.stop(), 0);
}

// Edge case 53.
#[test]
fn a_reload_while_old_workers_still_drain() {
    let _alone = alone();
    let port = free_port();
    let mut master = spawnwork(&["-n", "2", "--probation", "10ms", "--", "node"])
        .args([app("hello.js")])
        .env("PORT", port.to_string())
        .start();
    master.event("generation-serving");
    let mut options = load_on(port);
    options.paths = vec!["/slow"];
    let load = Load::paced(&options, PAUSE);
    for _ in 0..5 {
        load.answer(5);
        master.signal(Signal::SIGUSR2);
        master.event("reload-committed");
    }
    let tally = load.stop();
    assert_eq!(tally.failures(), 0, "{:?}", tally.failed);
    assert_eq!(master.stop(), 0);
}

#[test]
fn a_stop_under_load_answers_what_was_begun() {
    let _alone = alone();
    for version in NODES {
        let port = free_port();
        let mut master = spawnwork(&["-n", "2", "--"])
            .args([kit::node(version)])
            .args([app("hello.js")])
            .env("PORT", port.to_string())
            .start();
        master.event("generation-serving");
        let clients: Vec<_> = (0..16)
            .map(|_| {
                let address = format!("127.0.0.1:{port}");
                let mut connection = kit::http::connect(&address, Duration::from_secs(20)).unwrap();
                kit::http::exchange(&mut connection, "/", true).unwrap();
                std::thread::spawn(move || kit::http::exchange(&mut connection, "/slow", true))
            })
            .collect();
        // A fresh connection is answered after the slow requests have been read.
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(master.stop(), 0);
        for client in clients {
            let reply = client.join().unwrap();
            let reply = reply.unwrap_or_else(|why| panic!("node {version}: {why:?}"));
            assert!(reply.body.starts_with("hello "));
        }
    }
}

// Edge case 49.
#[test]
fn one_worker_alone_is_replaced_by_one_that_serves_already() {
    let _alone = alone();
    let port = free_port();
    let mut master = spawnwork(&["-n", "1", "--probation", "50ms", "--", "node"])
        .args([app("hello.js")])
        .env("PORT", port.to_string())
        .start();
    let mut old = field(&master.event("worker-ready"), "pid");
    master.event("generation-serving");
    let load = Load::paced(&load_on(port), PAUSE);
    for _ in 0..5 {
        load.answer(20);
        master.signal(Signal::SIGUSR2);
        // In this order: the new one is ready, and then the old one is asked to leave.
        let new = field(&master.event("worker-ready"), "pid");
        let leaving = field(&master.event("worker-stopping"), "pid");
        assert_eq!(leaving, old);
        assert_ne!(new, old);
        master.event("reload-committed");
        old = new;
    }
    let tally = load.stop();
    assert_eq!(tally.failures(), 0, "{:?}", tally.failed);
    assert_eq!(master.stop(), 0);
    let err = master.err();
    let leave = err.iter().filter(|line| line.contains("worker-stopping"));
    assert_eq!(leave.count(), 6);
}
