//! `make demo`: a small app under load, while it is reloaded, loses a worker, and gets a bad deploy.
//!
//! `demo SPAWNWORK APPS` ends 0 when no request failed but those in the killed worker's hands.
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr
)]

use kit::load::{Load, Options, Tally};
use kit::{Dir, Run, Running, field};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(spawnwork), Some(apps)) = (args.next(), args.next()) else {
        eprintln!("usage: demo SPAWNWORK APPS");
        return ExitCode::from(2);
    };
    let dir = Dir::new();
    let node = find("node");
    if node.is_none() {
        println!("node is not installed: the demo uses a small server of its own, on LISTEN_FDS\n");
    }
    release(dir.path(), "1", &apps, node.is_some(), true);
    release(dir.path(), "2", &apps, node.is_some(), true);
    release(dir.path(), "3-bad", &apps, node.is_some(), false);
    switch(dir.path(), "1");

    let address = format!("127.0.0.1:{}", kit::free_port());
    let port = address.rsplit(':').next().unwrap_or_default().to_owned();
    let mut options: Vec<String> = ["-n", "2", "--probation", "500ms", "-C"]
        .map(str::to_owned)
        .to_vec();
    options.push(dir.path().join("current").display().to_string());
    if node.is_none() {
        options.extend(["-l".to_owned(), address.clone()]);
    }
    options.push("--".to_owned());
    options.extend(match &node {
        Some(_) => vec!["node".to_owned(), "app.js".to_owned()],
        None => vec!["./app".to_owned()],
    });
    println!("$ PORT={port} spawnwork {}\n", options.join(" "));
    let mut master = Run::new(&spawnwork)
        .args(&options)
        .env("PORT", &port)
        .start();
    let mut workers = vec![
        field(&master.event("worker-ready"), "pid"),
        field(&master.event("worker-ready"), "pid"),
    ];
    master.event("generation-serving");

    let load = Options {
        address,
        keep_alive: 16,
        fresh: 8,
        paths: vec!["/", "/", "/", "/", "/", "/", "/", "/slow"],
        expect: "hello ",
        timeout: Duration::from_secs(10),
    };
    println!(
        "{:<26}{:>9}{:>8}{:>9}{:>9}  served by (pid: requests)",
        "step", "requests", "failed", "p50", "p99"
    );
    let mut failed = 0;
    let mut step = |name: &str, tally: &Tally, killed: Option<&str>| {
        let bad = killed.map_or_else(|| tally.failures(), |pid| tally.not_in_hands_of(pid));
        failed += bad;
        let who: Vec<String> = tally
            .served
            .iter()
            .map(|(pid, count)| format!("{pid}: {count}"))
            .collect();
        println!(
            "{name:<26}{:>9}{bad:>8}{:>9}{:>9}  {}",
            tally.requests,
            milliseconds(tally.quantile(0.5)),
            milliseconds(tally.quantile(0.99)),
            who.join(", ")
        );
        if let Some(pid) = killed {
            println!(
                "{:26}{:>17} more were in the hands of {pid}",
                "",
                tally.failures() - bad
            );
        }
    };

    for (name, target) in [("reload to release 2", "2"), ("reload to release 1", "1")] {
        let clients = Load::start(&load);
        clients.answer(200);
        switch(dir.path(), target);
        master.signal(Signal::SIGUSR2);
        workers = vec![
            field(&master.event("worker-ready"), "pid"),
            field(&master.event("worker-ready"), "pid"),
        ];
        master.event("reload-committed");
        clients.answer(200);
        for _ in 0..2 {
            master.event("worker-exited");
        }
        step(name, &clients.stop(), None);
    }

    let clients = Load::start(&load);
    clients.answer(200);
    let victim = workers.remove(0);
    kill_hard(&victim);
    master.event("worker-ready");
    clients.answer(200);
    step("kill -9 of a worker", &clients.stop(), Some(&victim));

    let clients = Load::start(&load);
    clients.answer(200);
    switch(dir.path(), "3-bad");
    master.signal(Signal::SIGUSR2);
    let report = master.event("reload-failed");
    clients.answer(200);
    step("deploy that crashes", &clients.stop(), None);

    println!("\n{report}\n");
    end(&mut master, failed)
}

fn end(master: &mut Running, failed: u64) -> ExitCode {
    let status = master.stop();
    println!("failed {failed}, and spawnwork ended with {status}");
    if failed == 0 && status == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

fn find(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
}

/// A directory with the app, or with one that ends as soon as it starts.
fn release(dir: &Path, name: &str, apps: &Path, node: bool, good: bool) {
    let home = dir.join(name);
    std::fs::create_dir(&home).unwrap();
    match (node, good) {
        (true, true) => {
            std::fs::copy(apps.join("hello.js"), home.join("app.js")).expect("tests/apps/hello.js");
        }
        (true, false) => {
            std::fs::write(
                home.join("app.js"),
                "throw new Error('this release is broken');\n",
            )
            .unwrap();
        }
        (false, true) => {
            let server = std::env::current_exe()
                .unwrap()
                .with_file_name("kit-server");
            std::os::unix::fs::symlink(server, home.join("app")).unwrap();
        }
        (false, false) => {
            use std::os::unix::fs::PermissionsExt;
            let path = home.join("app");
            std::fs::write(
                &path,
                "#!/bin/sh\necho 'this release is broken' >&2\nexit 1\n",
            )
            .unwrap();
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
        }
    }
}

/// The link `current` leads to another release, in one step.
fn switch(dir: &Path, name: &str) {
    let new = dir.join("current.new");
    std::os::unix::fs::symlink(name, &new).unwrap();
    std::fs::rename(new, dir.join("current")).unwrap();
}

fn kill_hard(pid: &str) {
    kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).unwrap();
}
