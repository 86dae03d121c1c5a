//! `make bench`, second part: what clients see of bad deploys, and of a killed master, with ours and its peers.
//!
//! Each master runs two workers of one small app. It is told to reload to a version that crashes at load, hangs before
//! it listens, or dies 1.5 s after; for nine seconds a request is made ten times a second over a new connection, and as
//! often over one that is kept. Then the fix is deployed, under the same watch. BENCH_RUNS=20 repeats each cell. A peer
//! that is not installed is left out, and named.
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

use master::{MASTERS, Master, Running, ask, marked, outcome, progress, watch};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// One kind of bad deploy: failed requests of all, who answered last, the reload's word, and the fix.
fn cell(master: &Master, how: &str, runs: u32) -> String {
    let (mut failed, mut requests, mut fix_failed, mut fixed, mut wrong) = (0, 0, 0, 0, 0);
    let (mut told, mut up) = (0, 0);
    for _ in 0..runs {
        let running = outcome("deploys", master, Running::start_for_deploys(master));
        let Some(running) = running else {
            return "does not start".to_owned();
        };
        running.deploy("v2", how);
        let (seen, status) = running.watched_reload();
        requests += seen.requests;
        failed += seen.failed;
        wrong += seen.versions.get("v2").copied().unwrap_or(0);
        told += u32::from(status.is_some_and(|status| status != 0));
        up += u32::from(ask(running.port, &mut None, false).as_deref() == Some("v1"));
        running.deploy("v3", "good");
        let (seen, _) = running.watched_reload();
        fix_failed += seen.failed;
        fixed += u32::from(ask(running.port, &mut None, false).as_deref() == Some("v3"));
    }
    let name = title(how);
    let subject = master.name;
    hand_over(
        "deploys",
        &format!("{name}: failed requests"),
        subject,
        failed as f64,
    );
    if how == "good" {
        return format!(
            "{failed} of {requests} failed; v2 in {}; then v3 in {fixed} of {runs}, {fix_failed} failed",
            seen_in(wrong)
        );
    }
    let answers = format!("{name}: answers of the bad one");
    hand_over("deploys", &answers, subject, wrong as f64);
    let quiet = format!("{name}: reloads that were not said to have failed");
    hand_over("deploys", &quiet, subject, f64::from(runs - told));
    let down = format!("{name}: the old one does not go on");
    hand_over("deploys", &down, subject, f64::from(runs - up));
    let of = |count: u32| {
        if runs == 1 {
            if count == 1 {
                "yes".to_owned()
            } else {
                "no".to_owned()
            }
        } else {
            format!("{count}/{runs}")
        }
    };
    format!(
        "{failed} of {requests} failed, {wrong} by the bad one; v1 goes on {}; told {}; fix in {}, {fix_failed} failed",
        of(up),
        of(told),
        of(fixed)
    )
}

fn title(how: &str) -> &str {
    match how {
        "good" => "a good deploy (v2), and another one",
        "crash" => "throws at load",
        "hang" => "hangs before it listens",
        "late" => "listens, and dies 1.5 s later",
        other => other,
    }
}

fn hand_over(scenario: &str, name: &str, subject: &str, value: f64) {
    report::less(scenario, name, "", subject, &[value]);
}

fn seen_in(requests: u64) -> String {
    format!("{requests} answers")
}

/// kill -9 of the master: what is left after three seconds, and whether the same command works again.
fn killed(master: &Master) -> String {
    let running = outcome("master", master, Running::start_for_deploys(master));
    let Some(mut running) = running else {
        return "does not start".to_owned();
    };
    let over = Arc::new(AtomicBool::new(false));
    let (port, there) = (running.port, Arc::clone(&over));
    let clients = std::thread::spawn(move || watch(port, &there));
    let _ = kill(Pid::from_raw(running.pid), Signal::SIGKILL);
    if let Some(mut child) = running.child.take() {
        let _ = child.wait();
    }
    std::thread::sleep(Duration::from_secs(3));
    let left = marked(&running.mark).len();
    // An orphan of the one before may answer in place of the new one.
    let again = running.launch().and_then(|()| running.settle()).is_ok();
    over.store(true, Ordering::Relaxed);
    let seen = clients.join().unwrap();
    let subject = master.name;
    hand_over(
        "master",
        "failed requests, with a new start after 3 s",
        subject,
        seen.failed as f64,
    );
    hand_over(
        "master",
        "a new start fails",
        subject,
        f64::from(u8::from(!again)),
    );
    let again = if again { "runs" } else { "ends" };
    format!(
        "{} of {} failed; {left} processes left after 3 s; started again: {again}",
        seen.failed, seen.requests
    )
}

/// One row for each master, of one kind of deploy.
fn row(how: &str, scenario: &str, of: impl Fn(&Master) -> String + Sync) {
    progress(&format!("{scenario}: {how}"));
    // They wait more than they work, so all at once.
    let cells: Vec<(&str, String)> = std::thread::scope(|scope| {
        let cells: Vec<_> = master::of(scenario)
            .into_iter()
            .map(|master| {
                let of = &of;
                (master.name, scope.spawn(move || of(master)))
            })
            .collect();
        cells
            .into_iter()
            .map(|(name, cell)| (name, cell.join().unwrap()))
            .collect()
    });
    println!("{}", title(how));
    for (name, cell) in cells {
        println!("  {name:<18} {cell}");
    }
    println!();
}

fn main() -> ExitCode {
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("to measure: cargo bench --package bench --bench deploys");
        return ExitCode::SUCCESS;
    }
    master::guarded(measure)
}

fn measure() -> ExitCode {
    let runs = std::env::var("BENCH_RUNS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1);
    println!(
        "Bad deploys: two workers, {runs} run(s) each; requests in the 9 s after the reload, ten a second over new connections, ten over one that is kept.\n"
    );
    let done = [
        master::scenario("deploys", || {
            for how in ["good", "crash", "hang", "late"] {
                row(how, "deploys", |master| cell(master, how, runs));
            }
        }),
        master::scenario("master", || row("kill -9 of the master", "master", killed)),
    ];
    for master in MASTERS.iter().filter(|master| !master.how.is_empty()) {
        println!("{}: {}", master.name, master.how);
    }
    if done.contains(&false) {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
