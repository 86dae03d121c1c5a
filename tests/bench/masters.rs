//! `make bench`: masters of workers beside each other: from the start to the first answer, requests while workers are
//! killed, and how it is with a hundred workers and with five hundred.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs
)]

mod master;
#[allow(dead_code)]
mod proc;
mod report;

use master::{Running, less, outcome, progress};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const ROUNDS: usize = 3;
/// So often a worker is killed in a round, so long apart. Longer than a worker of node takes to come back.
const KILLS: usize = 4;
const APART: Duration = Duration::from_millis(700);

/// From the start to the first answer, each of them once in each round.
fn starts() {
    let masters = master::of("start");
    let mut all = vec![Vec::new(); masters.len()];
    let mut gone = vec![false; masters.len()];
    for round in 0..ROUNDS {
        for step in 0..masters.len() {
            let at = (round + step) % masters.len();
            if gone[at] {
                continue;
            }
            progress(&format!("start, round {round}: {}", masters[at].name));
            match outcome("start", masters[at], Running::start_only(masters[at])) {
                Some(running) => all[at].push(running.answered.as_secs_f64() * 1000.0),
                None => gone[at] = true,
            }
        }
    }
    for (master, took) in masters.iter().zip(&all) {
        let name = format!("{}: to the first answer", master.app.name());
        less("start", &name, "ms", master.name, took);
    }
}

/// The workers: whoever answers, of whom there are two.
fn kill_one(running: &Running<'_>, last: &mut i32) {
    let end = Instant::now() + Duration::from_secs(5);
    while Instant::now() < end {
        let answer = master::whoever(running.port);
        if let Some(pid) = answer.filter(|pid| pid != last) {
            *last = pid;
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Failed requests of a thousand, in one round of kills.
fn kills(running: &Running<'_>) -> f64 {
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (port, there) = (running.port, Arc::clone(&over));
            std::thread::spawn(move || master::watch(port, &there))
        })
        .collect();
    let mut last = 0;
    for _ in 0..KILLS {
        kill_one(running, &mut last);
        std::thread::sleep(APART);
    }
    over.store(true, Ordering::Relaxed);
    let seen: Vec<_> = clients.into_iter().map(|one| one.join().unwrap()).collect();
    let failed: u64 = seen.iter().map(|one| one.failed).sum();
    let requests: u64 = seen.iter().map(|one| one.requests).sum();
    failed as f64 * 1000.0 / requests as f64
}

fn crash() {
    let mut all = Vec::new();
    for master in master::of("crash") {
        progress(&format!("crash: {} starts", master.name));
        let running = outcome("crash", master, Running::start(master));
        all.extend(running.map(|running| (running, Vec::new())));
    }
    for round in 1..=ROUNDS {
        progress(&format!("crash, round {round} of {ROUNDS}"));
        for (running, failed) in &mut all {
            failed.push(kills(running));
        }
    }
    for (running, failed) in &all {
        let master = running.master;
        let name = format!("{}: failed requests of a thousand", master.app.name());
        less("crash", &name, "", master.name, failed);
    }
}

// ---- many ----

fn many() {
    for count in [100, 500] {
        for master in master::of("many") {
            progress(&format!("{count} workers: {}", master.name));
            let running = Running::start_many(master, count);
            let Some(running) = outcome("many", master, running) else {
                continue;
            };
            let own = running.supervisors();
            let pss: u64 = own.iter().filter_map(|pid| proc::pss(*pid)).sum();
            let took = running.answered.as_secs_f64() * 1000.0;
            let figures = [
                ("all run", "ms", took),
                ("PSS of those that supervise", "kB", pss as f64),
                ("processes that supervise", "", own.len() as f64),
            ];
            for (name, unit, value) in figures {
                let name = format!("{count} workers: {name}");
                less("many", &name, unit, master.name, &[value]);
            }
        }
    }
}

fn main() -> ExitCode {
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("to measure: cargo bench --package bench --bench masters");
        return ExitCode::SUCCESS;
    }
    master::guarded(measure)
}

fn measure() -> ExitCode {
    let done = [
        master::scenario("start", starts),
        master::scenario("crash", crash),
        master::scenario("many", many),
    ];
    if done.contains(&false) {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
