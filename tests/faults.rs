//! The chain while the machine does its worst: any of its processes killed or stopped at any moment, sockets,
//! files and directories removed. FAULTS_SEED repeats a run; FAULTS_STEPS makes it longer.
//!
//! Which fault is tried where:
//!
//! | fault | tests |
//! | --- | --- |
//! | fork fails: EAGAIN, ENOMEM | spawnwork_faults; spawnwork_edges (a limit of processes) |
//! | exec fails: ENOENT and others | spawnwork_faults; spawnwork (a_missing_program…, a_program_that_is_gone…); compose (one_status…) |
//! | ENOSPC on logs | logreopen_full; compose (a_monday); logreopen_end, spawnwork_machine, replsock_serve (full disks) |
//! | EIO on logs | logreopen_full (errors_that_are_hard_to_make…); spawnwork_faults (standard_error_on_a_disk…) |
//! | EMFILE, ENFILE, ENOMEM in a master | spawnwork_faults; spawnwork_machine, spawnwork_control (without_a_free_descriptor…) |
//! | EMFILE in a worker | spawnwork_faults; spawnwork_node (a_connection_that_a_worker_has_no_descriptor_for…); replsock_edges |
//! | EMFILE elsewhere | logreopen_files (a_reopen_without_descriptors…); replsock_serve (without_descriptors…, a_door_that_cannot_be_waited_for…) |
//! | ENOMEM by a limit | spawnwork_faults (a_limit_of_memory…) |
//! | clock jumps | spawnwork_machine, heartbeat_system (a_clock_that_jumps…) |
//! | SIGSTOP, SIGCONT | here; logreopen_end, spawnwork_edges, spawnwork_systemd, heartbeat_process, watchtouch_when |
//! | kill -9 of each process | here; compose (one_status…); spawnwork_orphans (thirty_deaths…), spawnwork_reload |
//! | a full pipe on stderr | spawnwork_machine (standard_error_that_is_full…), spawnwork_output, logreopen_end, heartbeat (a_reader_that_stopped…) |
//! | sockets and pid files unlinked | here; replsock_serve (a_socket_that_is_removed…), replsock_edges (a_socket_that_was_cleaned_away…) |
//! | directories removed | here; logreopen_full (the_directory_removed_and_back), spawnwork_machine (a_release_that_was_deleted…), watchtouch_matrix |
//! | a file server that hangs | watchtouch_network, watchtouch_nfs, heartbeat_hangs |
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    missing_docs
)]

use kit::load::{Load, Options, Tally};
use kit::run::children_of;
use kit::{Dir, Finished, Run, Running, eventually, field, free_port, sibling};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_spawnwork");

/// Logs a numbered line for each request before it answers: who has the answer knows that the line was written.
const APP: &str = "
let count = 0;
require('http').createServer((request, response) => {
  if (request.url === '/health') return void response.end('well\\n');
  count += 1;
  (count % 2 ? process.stdout : process.stderr).write(`line ${process.pid} ${count}\\n`);
  response.end(`hello ${process.pid}\\n`);
}).listen(Number(process.env.PORT), '127.0.0.1');
";

static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for name in ["heartbeat", "logreopen", "watchtouch"] {
        let _ = sibling(PROGRAM, name);
    }
    guard
}

/// splitmix64
struct Random(u64);

impl Random {
    /// From the environment, or this; it is said, so that a failure can be repeated.
    fn new(seed: u64) -> Random {
        let seed = number("FAULTS_SEED").unwrap_or(seed);
        eprintln!("FAULTS_SEED={seed}");
        Random(seed)
    }

    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % most
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// Where the chain lives, over all its lives.
struct Home {
    dir: Dir,
    port: u16,
}

impl Home {
    fn new() -> Home {
        let home = Home {
            dir: Dir::new(),
            port: free_port(),
        };
        for name in ["release", "logs", "tmp", "runtime"] {
            std::fs::create_dir(home.at(name)).unwrap();
        }
        std::fs::write(home.at("release/app.js"), APP).unwrap();
        home
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, name: &str) -> Run {
        let own = Path::new(PROGRAM).parent().unwrap().to_owned();
        let path = std::env::var_os("PATH").unwrap();
        let path = std::env::join_paths(std::iter::once(own).chain(std::env::split_paths(&path)));
        Run::new(Path::new(PROGRAM).with_file_name(name))
            .dir(self.dir.path())
            .env("PATH", path.unwrap())
            .env("PORT", self.port.to_string())
            .env("XDG_RUNTIME_DIR", self.at("runtime"))
    }

    fn ask(&self, words: &[&str]) -> Finished {
        self.command(words[0]).args(&words[1..]).finish()
    }

    fn ctl(&self, words: &[&str]) -> Finished {
        self.ask(
            &[
                &["spawnwork", "--ctl", "app.sock", "--timeout", "60s"],
                words,
            ]
            .concat(),
        )
    }

    fn load(&self) -> Load {
        let options = Options {
            address: format!("127.0.0.1:{}", self.port),
            keep_alive: 3,
            fresh: 3,
            paths: vec!["/"],
            expect: "hello ",
            timeout: kit::PATIENCE,
        };
        Load::paced(&options, Duration::from_millis(10))
    }

    /// The whole chain, serving.
    fn start(&self) -> Chain {
        let mut running = self
            .command("logreopen")
            .args(["--tee", "--control", "log.sock", "-l", "logs/app.out"])
            .args(["-e", "logs/app.err", "--", "watchtouch"])
            .args(["tmp/restart.txt", "--signal", "USR2", "--", "heartbeat"])
            .args(["--port", &self.port.to_string(), "--path", "/health"])
            .args(["--interval", "300ms", "--on-fail", "kill -USR2 $PID"])
            .args(["--", "spawnwork", "-n", "2", "-C", "release"])
            .args(["--control", "app.sock", "--pid-file", "app.pid"])
            .args(["--probation", "100ms", "--stop-timeout", "10s"])
            .args(["--", "node", "app.js"])
            .start();
        // Of two tools, in any order.
        eventually("all serve, and that is seen", || {
            let said = running.err().join("\n");
            let both = said.contains(": generation-serving ") && said.contains(": service-up ");
            both.then_some(())
        });
        let mut pids = vec![running.pid()];
        for tool in ["logreopen", "watchtouch", "heartbeat"] {
            let said = running.err();
            let started = said.iter().find(|line| {
                line.contains(&format!(" {tool}[")) && line.contains(": command-started ")
            });
            pids.push(field(started.unwrap(), "pid").parse().unwrap());
        }
        let _ = running.event("command-started");
        Chain { running, pids }
    }

    /// The numbered lines of each worker in all log files.
    fn lines(&self) -> BTreeMap<String, BTreeSet<u64>> {
        let mut found: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
        for file in kit::logs::files(&self.at("logs"), "app.") {
            let text = std::fs::read_to_string(&file).unwrap();
            for line in text.lines() {
                let words: Vec<&str> = line.split(' ').collect();
                if let ["line", pid, number] = words[..] {
                    let new = found
                        .entry(pid.to_owned())
                        .or_default()
                        .insert(number.parse().unwrap());
                    assert!(new, "twice: {line}");
                } else {
                    // An event of ours may cite what a worker said.
                    assert!(
                        !line.contains("line ") || line.contains("]: "),
                        "torn: {line}"
                    );
                }
            }
        }
        found
    }

    /// For each answer there is a line, and there is none between them that is missing.
    fn assert_lines(&self, served: &BTreeMap<String, u64>, context: &str) {
        let found = self.lines();
        for (pid, answers) in served {
            let numbers = found
                .get(pid)
                .unwrap_or_else(|| panic!("no line of {pid}: {context}"));
            let last = *numbers.last().unwrap();
            assert_eq!(numbers.len() as u64, last, "{pid} lost lines: {context}");
            assert!(
                last >= *answers,
                "{pid}: {last} of {answers} lines: {context}"
            );
        }
    }
}

/// One life of it.
struct Chain {
    running: Running,
    /// logreopen, watchtouch, heartbeat, spawnwork.
    pids: Vec<i32>,
}

impl Chain {
    fn workers(&self) -> Vec<i32> {
        children_of(self.pids[3])
    }

    fn said(&self) -> String {
        self.running.err().join("\n")
    }
}

fn is_gone(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .is_none_or(|rest| rest.trim().is_empty() || rest.starts_with(" Z"))
}

fn add(served: &mut BTreeMap<String, u64>, tally: &Tally) {
    for (who, count) in &tally.served {
        *served.entry(who.clone()).or_default() += count;
    }
}

#[test]
fn killed_at_any_moment_nothing_is_left_and_the_next_one_serves() {
    let _alone = alone();
    let mut random = Random::new(1);
    let steps = number("FAULTS_STEPS").unwrap_or(12);
    let home = Home::new();
    let mut chain = home.start();
    let mut served = BTreeMap::new();
    // Of those whose lines were in the hands of one that was killed.
    let mut unsure: BTreeSet<String> = BTreeSet::new();
    let names = [
        "logreopen",
        "watchtouch",
        "heartbeat",
        "spawnwork",
        "a worker",
    ];
    for step in 0..steps {
        // Each in turn, so that a short run has all of them.
        let victim = (step as usize + 4) % names.len();
        let before = chain.workers();
        let load = home.load();
        load.answer(10);
        let doing = random.below(3);
        match doing {
            0 => kill(Pid::from_raw(chain.pids[3]), Signal::SIGUSR2).unwrap(),
            1 => {
                let _ = std::fs::rename(
                    home.at("logs/app.out"),
                    home.at(&format!("logs/app.out.{step}")),
                );
                kill(Pid::from_raw(chain.pids[0]), Signal::SIGHUP).unwrap();
            }
            _ => {}
        }
        load.answer(1 + random.below(120));
        let context = format!("step {step}: {} while {doing}", names[victim]);
        let mut workers = chain.workers();
        let pid = match victim {
            4 => workers[random.below(workers.len() as u64) as usize],
            other => chain.pids[other],
        };
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        if victim == 4 {
            eventually(&format!("all is well, {context}"), || {
                let well = home.ctl(&["status"]).status == 0;
                (well && is_gone(pid)).then_some(())
            });
            load.answer(20);
            let tally = load.stop();
            let foreign = tally.not_in_hands_of(&pid.to_string());
            assert_eq!(
                foreign,
                0,
                "{context}: {:?}\n{}",
                tally.failed,
                chain.said()
            );
            add(&mut served, &tally);
            continue;
        }
        assert_eq!(chain.running.end(), 137, "{context}: {}", chain.said());
        workers.extend(&before);
        workers.extend(&chain.pids);
        for pid in &workers {
            eventually(&format!("{pid} ends, {context}"), || {
                is_gone(*pid).then_some(())
            });
        }
        let tally = load.stop();
        // What logreopen or spawnwork had read and not written went with it.
        if victim == 0 || victim == 3 {
            unsure.extend(tally.served.keys().cloned());
        }
        add(&mut served, &tally);
        chain = home.start();
    }
    let load = home.load();
    load.answer(50);
    let tally = load.stop();
    assert_eq!(tally.failures(), 0, "{:?}", tally.failed);
    add(&mut served, &tally);
    assert_eq!(chain.running.stop(), 0, "{}", chain.said());
    served.retain(|pid, _| !unsure.contains(pid));
    home.assert_lines(&served, &chain.said());
}

#[test]
fn stopped_and_continued_at_random_nobody_notices() {
    let _alone = alone();
    let mut random = Random::new(2);
    let steps = number("FAULTS_STEPS").unwrap_or(25);
    let home = Home::new();
    let mut chain = home.start();
    let load = home.load();
    load.answer(50);
    let mut reloads = 0;
    for step in 0..steps {
        let mut all = chain.pids.clone();
        all.extend(chain.workers());
        let stopped: Vec<i32> = all.into_iter().filter(|_| random.below(3) == 0).collect();
        match random.below(4) {
            0 if reloads < 3 => {
                // Never of logreopen's: what it does not read now, it reads later.
                kill(Pid::from_raw(chain.pids[3]), Signal::SIGUSR2).unwrap();
                reloads += 1;
            }
            1 => {
                let _ = std::fs::rename(
                    home.at("logs/app.err"),
                    home.at(&format!("logs/app.err.{step}")),
                );
                kill(Pid::from_raw(chain.pids[0]), Signal::SIGHUP).unwrap();
            }
            _ => {}
        }
        for pid in &stopped {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGSTOP);
        }
        // So long that a request, a reload's step or a check falls into it.
        let until = std::time::Instant::now() + Duration::from_millis(20 + random.below(400));
        eventually("a moment", || {
            (std::time::Instant::now() > until).then_some(())
        });
        for pid in &stopped {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGCONT);
        }
        load.answer(5);
    }
    eventually("all is well", || {
        (home.ctl(&["status"]).status == 0).then_some(())
    });
    let tally = load.stop();
    assert_eq!(tally.failures(), 0, "{:?}\n{}", tally.failed, chain.said());
    assert_eq!(chain.running.stop(), 0, "{}", chain.said());
    let said = chain.said();
    for bad in [
        "worker-killed",
        "worker-exited slot",
        "lines-lost",
        "line-split",
    ] {
        let found: Vec<&str> = said.lines().filter(|line| line.contains(bad)).collect();
        let unasked = found.iter().any(|line| !line.contains(" by=master"));
        assert!(bad == "worker-exited slot" || !unasked, "{bad}:\n{said}");
    }
    home.assert_lines(&tally.served, &said);
}

#[test]
fn what_it_needs_is_removed_and_it_serves_on() {
    let _alone = alone();
    let home = Home::new();
    let mut chain = home.start();
    let load = home.load();
    load.answer(50);
    // The last generation's directory is kept for a way back, so that one that had none holds one less.
    chain.running.signal(Signal::SIGUSR2);
    chain.running.event("reload-committed");
    eventually("the old ones are gone", || {
        (chain.workers().len() == 2).then_some(())
    });
    let descriptors = |pid: i32| {
        std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .count()
    };
    let before: Vec<usize> = chain.pids.iter().map(|pid| descriptors(*pid)).collect();

    // All of it at once: sockets, pid file, the directories of the preload, of the flag file, of the logs.
    for name in ["app.sock", "log.sock", "app.pid"] {
        std::fs::remove_file(home.at(name)).unwrap();
    }
    for name in ["runtime", "tmp"] {
        std::fs::remove_dir_all(home.at(name)).unwrap();
    }
    load.answer(50);
    // A worker dies: its successor needs the preload, which is not there.
    let workers = chain.workers();
    let tally = load.stop();
    assert_eq!(tally.failures(), 0, "{:?}", tally.failed);
    let mut served = tally.served.clone();
    kill(Pid::from_raw(workers[0]), Signal::SIGKILL).unwrap();
    chain
        .running
        .event_with("worker-exited", &format!("pid={} ", workers[0]));
    chain.running.event("worker-ready");
    // So does a whole generation, asked for by a signal that goes through all of them.
    let load = home.load();
    load.answer(20);
    chain.running.signal(Signal::SIGUSR2);
    chain.running.event("reload-committed");
    // The flag's directory is back, and a touch is seen.
    std::fs::create_dir(home.at("tmp")).unwrap();
    kit::touch::touch(home.at("tmp/restart.txt"));
    chain.running.event("signal-sent");
    chain.running.event("reload-committed");
    load.answer(50);

    // The release is removed with its directory: what serves goes on, a reload is refused.
    std::fs::rename(home.at("release"), home.at("elsewhere")).unwrap();
    chain.running.signal(Signal::SIGUSR2);
    let refused = chain.running.line("a reload that is not made", |line| {
        line.contains(": reload-refused ") || line.contains(": reload-failed ")
    });
    assert!(refused.contains("release"), "{refused}");
    load.answer(50);
    std::fs::rename(home.at("elsewhere"), home.at("release")).unwrap();
    chain.running.signal(Signal::SIGUSR2);
    chain.running.event("reload-committed");
    load.answer(50);
    let tally = load.stop();
    assert_eq!(tally.failures(), 0, "{:?}\n{}", tally.failed, chain.said());
    add(&mut served, &tally);
    eventually("as many descriptors as before", || {
        let now = chain.pids.iter().map(|pid| descriptors(*pid));
        now.zip(&before)
            .all(|(now, before)| now <= *before)
            .then_some(())
    });
    assert_eq!(chain.running.stop(), 0, "{}", chain.said());
    home.assert_lines(&served, &chain.said());
}
