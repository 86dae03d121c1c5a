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

use kit::Dir;
use master::{Master, Running};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use report::wanted;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const STARTS: usize = 5;
/// So often a worker is killed, so long apart. Longer than a worker of node takes to come back.
const KILLS: usize = 10;
const APART: Duration = Duration::from_millis(700);
const PATIENCE: Duration = Duration::from_secs(60);

fn progress(text: &str) {
    let _ = writeln!(std::io::stderr(), "bench: {text}");
}

fn less(scenario: &str, name: &str, unit: &str, subject: &str, values: &[f64]) {
    report::less(scenario, name, unit, subject, values);
    let shown: Vec<String> = values.iter().map(|value| format!("{value:.1}")).collect();
    println!(
        "{scenario}: {name:32} {subject:24} {} {unit}",
        shown.join(" ")
    );
}

/// From the start to the first answer, each of them once in each round.
fn starts(masters: &[&Master]) {
    let mut all = vec![Vec::new(); masters.len()];
    for round in 0..STARTS {
        for step in 0..masters.len() {
            let at = (round + step) % masters.len();
            progress(&format!("start, round {round}: {}", masters[at].name));
            let running = Running::start(masters[at]);
            if let Some(answered) = running.and_then(|running| running.answered) {
                all[at].push(answered.as_secs_f64() * 1000.0);
            }
        }
    }
    for (master, took) in masters.iter().zip(&all) {
        less("start", "to the first answer", "ms", master.name, took);
        if took.is_empty() {
            report::absent("start", master.name, "does not start");
        }
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

fn crash(master: &Master) {
    let Some(running) = Running::start(master) else {
        report::absent("crash", master.name, "does not start");
        return;
    };
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (port, there) = (running.port, Arc::clone(&over));
            std::thread::spawn(move || master::watch(port, &there))
        })
        .collect();
    let mut last = 0;
    for _ in 0..KILLS {
        kill_one(&running, &mut last);
        std::thread::sleep(APART);
    }
    over.store(true, Ordering::Relaxed);
    let seen: Vec<_> = clients.into_iter().map(|one| one.join().unwrap()).collect();
    let failed: u64 = seen.iter().map(|one| one.failed).sum();
    let requests: u64 = seen.iter().map(|one| one.requests).sum();
    less(
        "crash",
        "failed requests of a thousand",
        "",
        master.name,
        &[failed as f64 * 1000.0 / requests as f64],
    );
}

// ---- many ----

/// A supervisor of COUNT workers that do nothing: in the shell, with `$COUNT`.
struct Many {
    name: &'static str,
    needs: &'static str,
    start: String,
}

fn many_of() -> Vec<Many> {
    let root = kit::root().canonicalize().unwrap();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from);
    let spawnwork = root.join(target).join("release/spawnwork");
    let one = |name, needs, start: String| Many { name, needs, start };
    vec![
        one("spawnwork", "true", format!("exec {} -q -n $COUNT --start-parallel $COUNT -- sleep 86400", spawnwork.display())),
        one("supervisord", "supervisord", "printf '[supervisord]\\nnodaemon=true\\nlogfile=/dev/null\\nlogfile_maxbytes=0\\nminfds=4096\\npidfile=%s/pid\\n[program:w]\\ncommand=sleep 86400\\nnumprocs=%s\\nprocess_name=w%%(process_num)d\\nstartsecs=0\\nstdout_logfile=NONE\\nstderr_logfile=NONE\\n' \"$PWD\" \"$COUNT\" > c; exec supervisord -c c".into()),
        one("s6-svscan", "s6-svscan", "for n in $(seq $COUNT); do mkdir -p s/$n; printf '#!/bin/sh\\nexec sleep 86400\\n' > s/$n/run; chmod +x s/$n/run; done; exec s6-svscan -c 1000 s".into()),
        one("runsvdir", "runsvdir", "for n in $(seq $COUNT); do mkdir -p s/$n; printf '#!/bin/sh\\nexec sleep 86400\\n' > s/$n/run; chmod +x s/$n/run; done; exec runsvdir s".into()),
    ]
}

fn below(pid: i32) -> Vec<i32> {
    let mut list = vec![pid];
    let mut next = 0;
    while let Some(pid) = list.get(next) {
        list.extend(proc::children(*pid));
        next += 1;
    }
    list
}

fn comm(pid: i32) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    text.trim().to_owned()
}

fn many(one: &Many, count: usize) {
    let there = Command::new("sh")
        .args(["-c", &format!("command -v {}", one.needs)])
        .stdout(Stdio::null())
        .status();
    if !there.is_ok_and(|status| status.success()) {
        report::absent("many", one.name, "not installed");
        return;
    }
    progress(&format!("{count} workers: {}", one.name));
    let dir = Dir::new();
    let mut child = Command::new("sh")
        .args(["-c", &one.start])
        .current_dir(dir.path())
        .env("COUNT", count.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    let began = Instant::now();
    let pid = child.id() as i32;
    let workers = |all: &[i32]| all.iter().filter(|pid| comm(**pid) == "sleep").count();
    let mut took = None;
    while took.is_none() && began.elapsed() < PATIENCE {
        if workers(&below(pid)) == count {
            took = Some(began.elapsed());
        } else {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    if let Some(took) = took {
        let own: Vec<i32> = below(pid)
            .into_iter()
            .filter(|pid| comm(*pid) != "sleep")
            .collect();
        let pss: u64 = own.iter().filter_map(|pid| proc::pss(*pid)).sum();
        less(
            "many",
            &format!("{count} workers: all run"),
            "ms",
            one.name,
            &[took.as_secs_f64() * 1000.0],
        );
        less(
            "many",
            &format!("{count} workers: PSS of those that supervise"),
            "kB",
            one.name,
            &[pss as f64],
        );
        less(
            "many",
            &format!("{count} workers: processes that supervise"),
            "",
            one.name,
            &[own.len() as f64],
        );
    } else {
        report::absent(
            "many",
            one.name,
            &format!("{count} workers do not run in {PATIENCE:?}"),
        );
    }
    for pid in below(pid).into_iter() {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let _ = nix::sys::signal::killpg(Pid::from_raw(pid), Signal::SIGKILL);
    let _ = child.wait();
}

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("to measure: cargo bench --package bench --bench masters");
        return;
    }
    let masters = master::masters();
    let (there, missing) = master::installed(&masters);
    for master in missing {
        report::absent("start", master.name, "not installed");
    }
    if wanted("start") {
        starts(&there);
    }
    if wanted("crash") {
        for master in &there {
            progress(&format!("crash: {}", master.name));
            crash(master);
        }
    }
    if wanted("many") {
        for count in [100, 500] {
            for one in many_of() {
                many(&one, count);
            }
        }
    }
}
