//! `make demo`: the whole chain as one service under load, while it is reloaded by a touch, its logs are rotated, and
//! it loses a worker, gets a bad deploy, and has a worker that spins.
//!
//! `demo DIRECTORY APPS`: where the programs are, and the apps. Ends 0 when no request failed but those in the hands of
//! a worker that was killed, and each log line was found, once.
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr
)]

use kit::load::{Load, Options, Tally};
use kit::touch::touch;
use kit::{Dir, Run, Running, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// What heals: the worker that spins is ended, for all else there is a new generation.
const HEAL: &str = "case $HEARTBEAT_REASON in stuck) kill -KILL $PID ;; *) kill -USR2 $PID ;; esac";

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(programs), Some(apps)) = (args.next(), args.next()) else {
        eprintln!("usage: demo DIRECTORY APPS");
        return ExitCode::from(2);
    };
    let programs = programs.canonicalize().expect("the programs' directory");
    let mut demo = Demo::start(&programs, &apps);
    demo.run();
    demo.end()
}

/// The service, and what was seen of it.
struct Demo {
    dir: Dir,
    service: Running,
    node: bool,
    address: String,
    path: std::ffi::OsString,
    all: Tally,
    failed: u64,
    in_hands: u64,
    reloads: Vec<Duration>,
    refused: Vec<Duration>,
    killed: BTreeSet<String>,
    rotations: u32,
}

impl Demo {
    fn start(programs: &Path, apps: &Path) -> Demo {
        let dir = Dir::new();
        let node = found("node");
        if !node {
            println!(
                "node is not installed: a small server of the demo's own takes its place, on LISTEN_FDS\n"
            );
        }
        for name in ["1", "2"] {
            release(dir.path(), name, apps, node, true);
        }
        release(dir.path(), "bad", apps, node, false);
        switch(dir.path(), "1");
        std::fs::create_dir(dir.path().join("logs")).unwrap();

        let address = format!("127.0.0.1:{}", kit::free_port());
        let port = address.rsplit(':').next().unwrap_or_default();
        let mut words: Vec<&str> = "-l logs/shop.out -e logs/shop.err --tee --control log.sock -- \
             watchtouch restart.txt --signal USR2 --settle 100ms -- \
             heartbeat --path /health --children --stuck 3s --interval 500ms --grace 1s --cooldown 1s"
            .split_whitespace()
            .collect();
        words.extend(["--port", port, "--on-fail", HEAL, "--"]);
        words.extend("spawnwork -n 3 -C current --control app.sock --probation 500ms".split(' '));
        if node {
            words.extend(["--", "node", "app.js"]);
        } else {
            words.extend(["-l", &address, "--", "./app"]);
        }
        let shown: Vec<String> = words.iter().map(|word| quoted(word)).collect();
        let shown = shown.join(" ").replace(" -- ", " -- \\\n  ");
        println!("$ PORT={port} logreopen {shown}\n");
        let own = std::iter::once(programs.to_owned());
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(own.chain(std::env::split_paths(&path))).unwrap();
        let mut service = Run::new(programs.join("logreopen"))
            .args(&words)
            .env("PORT", port)
            .env("PATH", &path)
            .dir(dir.path())
            .start();
        // Of two tools, in any order.
        eventually("all serve, and that is seen", || {
            let said = service.err().join("\n");
            (said.contains(": generation-serving ") && said.contains(": service-up ")).then_some(())
        });
        service.event("generation-serving");
        println!(
            "{:<30}{:>9}{:>8}{:>9}{:>9}",
            "step", "requests", "failed", "p50", "p99"
        );
        Demo {
            dir,
            service,
            node,
            address,
            path,
            all: Tally::default(),
            failed: 0,
            in_hands: 0,
            reloads: Vec::new(),
            refused: Vec::new(),
            killed: BTreeSet::new(),
            rotations: 0,
        }
    }

    fn run(&mut self) {
        for name in ["2", "1"] {
            let clients = self.clients();
            switch(self.dir.path(), name);
            let begun = Instant::now();
            touch(self.dir.path().join("restart.txt"));
            self.service.event("reload-committed");
            self.reloads.push(begun.elapsed());
            self.step(&format!("a touch: reload to release {name}"), clients, None);
        }

        let clients = self.clients();
        for _ in 0..3 {
            self.rotate();
            clients.answer(100);
        }
        self.step("three rotations of the logs", clients, None);

        let clients = self.clients();
        let victim = self.ask("/");
        kill(Pid::from_raw(victim.parse().unwrap()), Signal::SIGKILL).unwrap();
        self.service.event("worker-ready");
        self.step("kill -9 of a worker", clients, Some(victim));

        let clients = self.clients();
        switch(self.dir.path(), "bad");
        let begun = Instant::now();
        touch(self.dir.path().join("restart.txt"));
        let report = self.service.event("reload-failed");
        self.refused.push(begun.elapsed());
        switch(self.dir.path(), "1");
        self.step("a deploy that crashes", clients, None);
        // The events have its whole stack.
        let report: String = report.chars().take(200).collect();
        println!("  {report}...");

        let clients = self.clients();
        let spinning = self.ask("/spin");
        let said = format!("pid={spinning} ");
        self.service.event_with("worker-exited", &said);
        self.service.event("worker-ready");
        self.step("a worker that spins, healed", clients, Some(spinning));
    }

    fn clients(&self) -> Load {
        let load = Load::start(&Options {
            address: self.address.clone(),
            keep_alive: 12,
            fresh: 6,
            paths: vec!["/", "/", "/", "/", "/", "/", "/", "/slow"],
            expect: "hello ",
            timeout: kit::PATIENCE,
        });
        load.answer(200);
        load
    }

    /// One request by a client of its own: who answered it.
    fn ask(&mut self, path: &str) -> String {
        let body = kit::http::get(&self.address, path).unwrap().body;
        let who = body.split_whitespace().nth(1).unwrap().to_owned();
        self.all.requests += 1;
        *self.all.served.entry(who.clone()).or_default() += 1;
        who
    }

    /// The end of a step, in which that worker may have been killed.
    fn step(&mut self, name: &str, clients: Load, killed: Option<String>) {
        clients.answer(200);
        let tally = clients.stop();
        let bad = match &killed {
            Some(pid) => tally.not_in_hands_of(pid),
            None => tally.failures(),
        };
        println!(
            "{name:<30}{:>9}{bad:>8}{:>9}{:>9}",
            tally.requests,
            milliseconds(tally.quantile(0.5)),
            milliseconds(tally.quantile(0.99)),
        );
        if bad > 0 {
            println!("  {:?}, on connections: {:?}", tally.failed, tally.broken);
        }
        self.failed += bad;
        self.in_hands += tally.failures() - bad;
        self.killed.extend(killed);
        self.all.requests += tally.requests;
        for (who, count) in tally.served {
            *self.all.served.entry(who).or_default() += count;
        }
    }

    /// As logrotate does it, which a bare machine has not.
    fn rotate(&mut self) {
        self.rotations += 1;
        let logs = self.dir.path().join("logs");
        for name in ["shop.out", "shop.err"] {
            let rotated = logs.join(format!("{name}.{}", self.rotations));
            std::fs::rename(logs.join(name), rotated).unwrap();
        }
        let asked = Run::new("logreopen")
            .args(["--ctl", "log.sock", "reopen"])
            .env("PATH", &self.path)
            .dir(self.dir.path())
            .finish();
        assert_eq!(asked.status, 0, "{}", asked.err);
    }

    /// The numbered lines of each worker in all log files, and how often each number is there.
    fn lines(&self) -> BTreeMap<String, BTreeMap<u64, u64>> {
        let mut found: BTreeMap<String, BTreeMap<u64, u64>> = BTreeMap::new();
        for file in kit::logs::files(&self.dir.path().join("logs"), "shop.") {
            for line in String::from_utf8_lossy(&std::fs::read(file).unwrap()).lines() {
                let words: Vec<&str> = line.split(' ').collect();
                if let ["line", pid, number] = words[..] {
                    if let Ok(number) = number.parse() {
                        *found
                            .entry(pid.to_owned())
                            .or_default()
                            .entry(number)
                            .or_default() += 1;
                    }
                }
            }
        }
        found
    }

    /// Stops the service, and says what became of everything.
    fn end(mut self) -> ExitCode {
        let status = self.service.stop();
        let said = self.service.err();
        let count = |event: &str| -> usize {
            let event = format!(": {event} ");
            said.iter().filter(|line| line.contains(&event)).count()
        };
        let found = self.lines();
        let (mut written, mut there, mut copies) = (0, 0, 0);
        let pids: BTreeSet<&String> = self.all.served.keys().chain(found.keys()).collect();
        for pid in pids {
            let numbers = found.get(pid).cloned().unwrap_or_default();
            // A line for each answer; and each line's number says how many there were before it.
            let answers = self.all.served.get(pid).copied().unwrap_or(0);
            written += answers.max(numbers.keys().last().copied().unwrap_or(0));
            there += numbers.len() as u64;
            copies += numbers.values().map(|times| times - 1).sum::<u64>();
        }
        let (touches, heals) = (count("file-touched"), count("action-started"));
        let rows = [
            ("requests", self.all.requests.to_string()),
            ("failed", self.failed.to_string()),
            (
                "lost with a killed worker",
                format!("{}, in the hands of {}", self.in_hands, list(&self.killed)),
            ),
            ("log lines written", written.to_string()),
            (
                "log lines found",
                format!(
                    "{there}, {copies} of them twice, after {} rotations",
                    self.rotations
                ),
            ),
            ("reloads", times(&self.reloads)),
            ("refused deploys", times(&self.refused)),
            ("touches seen", touches.to_string()),
            ("heals", heals.to_string()),
            ("exit status", status.to_string()),
        ];
        println!();
        for (name, value) in rows {
            println!("{name:<30}{value}");
        }
        let good = self.failed == 0 && (there, copies) == (written, 0) && status == 0;
        if !good {
            println!(
                "\nnot as it should be; what the programs said:\n{}",
                said.join("\n")
            );
            return ExitCode::FAILURE;
        }
        if !self.node {
            println!("\nwith node it would have been an unmodified node app");
        }
        ExitCode::SUCCESS
    }
}

fn list(words: &BTreeSet<String>) -> String {
    words
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(" and ")
}

fn times(list: &[Duration]) -> String {
    let words: Vec<String> = list
        .iter()
        .map(|time| format!("{:.2} s", time.as_secs_f64()))
        .collect();
    format!("{}, in {}", list.len(), words.join(", "))
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

fn quoted(word: &str) -> String {
    if word.contains(' ') {
        format!("'{word}'")
    } else {
        word.to_owned()
    }
}

fn found(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
    })
}

/// A directory with the app, or with one that ends as soon as it starts.
fn release(dir: &Path, name: &str, apps: &Path, node: bool, good: bool) {
    let home = dir.join(name);
    std::fs::create_dir(&home).unwrap();
    match (node, good) {
        (true, true) => {
            std::fs::copy(apps.join("shop.js"), home.join("app.js")).expect("tests/apps/shop.js");
        }
        (true, false) => {
            let text = "throw new Error('this release is broken');\n";
            std::fs::write(home.join("app.js"), text).unwrap();
        }
        (false, true) => {
            let own = std::env::current_exe().unwrap();
            let server = own.with_file_name("kit-server");
            std::os::unix::fs::symlink(server, home.join("app")).unwrap();
        }
        (false, false) => {
            use std::os::unix::fs::PermissionsExt;
            let path = home.join("app");
            let text = "#!/bin/sh\necho 'this release is broken' >&2\nexit 1\n";
            std::fs::write(&path, text).unwrap();
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
