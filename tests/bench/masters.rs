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

use master::{Running, Seen, less, note, outcome, progress};
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
        let name = format!("to the first answer, {}", master.app.name());
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

/// Failed requests of a thousand in one round of kills: over new connections, and over those that a worker had kept,
/// if there are such.
fn kills(running: &Running<'_>) -> (f64, Option<f64>) {
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
    let sum = |of: fn(&Seen) -> u64| seen.iter().map(of).sum::<u64>();
    let of_thousand = |failed: u64, all: u64| failed as f64 * 1000.0 / all.max(1) as f64;
    let (failed, all) = (sum(|one| one.failed), sum(|one| one.requests));
    let (failed_kept, kept) = (sum(|one| one.failed_over_kept), sum(|one| one.over_kept));
    (
        of_thousand(failed - failed_kept, all - kept),
        (kept > 0).then(|| of_thousand(failed_kept, kept)),
    )
}

fn crash() {
    let mut all = Vec::new();
    for master in master::of("crash") {
        progress(&format!("crash: {} starts", master.name));
        let running = outcome("crash", master, Running::start(master));
        all.extend(running.map(|running| (running, Vec::new(), Vec::new())));
    }
    for round in 1..=ROUNDS {
        progress(&format!("crash, round {round} of {ROUNDS}"));
        // Two at a time: they wait more than they work.
        for pair in all.chunks_mut(2) {
            std::thread::scope(|scope| {
                for (running, fresh, kept) in pair {
                    scope.spawn(move || {
                        let (failed, failed_kept) = kills(running);
                        fresh.push(failed);
                        kept.extend(failed_kept);
                    });
                }
            });
        }
    }
    for (running, fresh, kept) in &all {
        let master = running.master;
        let app = master.app.name();
        let name = format!("failed of a thousand, new connections, {app}");
        less("crash", &name, "", master.name, fresh);
        let name = format!("failed of a thousand, kept connections, {app}");
        less("crash", &name, "", master.name, kept);
        if kept.is_empty() {
            note("crash", master.name, "keeps no connection alive");
        }
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
