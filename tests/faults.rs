//! The chain while the machine does its worst: any of its processes killed or stopped at any moment, sockets,
//! files and directories removed. FAULTS_SEED repeats a run; FAULTS_STEPS makes it longer.
//!
//! Which fault is tried where:
//!
//! | fault | tests |
//! | --- | --- |
//! | fork fails: EAGAIN, ENOMEM | spawnwork_faults, faults_calls; spawnwork_edges (a limit of processes) |
//! | exec fails: ENOENT and others | spawnwork_faults, faults_calls; spawnwork (a_missing_program…, a_program_that_is_gone…); compose (one_status…) |
//! | ENOSPC on logs | logreopen_full; compose (a_monday); logreopen_end, spawnwork_machine, replsock_serve (full disks) |
//! | a disk with errors, and one that hangs, for all | here (FUSE) |
//! | EIO on logs | logreopen_full (errors_that_are_hard_to_make…); spawnwork_faults (standard_error_on_a_disk…) |
//! | EMFILE, ENFILE, ENOMEM in a master | spawnwork_faults; spawnwork_machine, spawnwork_control (without_a_free_descriptor…) |
//! | EMFILE in a worker | spawnwork_faults; spawnwork_node (a_connection_that_a_worker_has_no_descriptor_for…); replsock_edges |
//! | EMFILE, ENFILE elsewhere | faults_calls; logreopen_files (a_reopen_without_descriptors…); replsock_serve (without_descriptors…, a_door_that_cannot_be_waited_for…) |
//! | EINTR, again and again | faults_calls |
//! | growth under faults that come again | faults_calls, soak |
//! | ENOMEM by a limit | spawnwork_faults (a_limit_of_memory…) |
//! | clock jumps | here (libfaketime); spawnwork_machine, heartbeat_system (a_clock_that_jumps…) |
//! | SIGSTOP, SIGCONT | here; logreopen_end, spawnwork_edges, spawnwork_systemd, heartbeat_process, watchtouch_when |
//! | kill -9 of each process | here; compose (one_status…); spawnwork_orphans (thirty_deaths…), spawnwork_reload |
//! | a full pipe on stderr, or a closed one | here; spawnwork_machine (standard_error_that_is_full…), spawnwork_output, logreopen_end, heartbeat (a_reader_that_stopped…) |
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

use kit::faults::{Fault, Faults};
use kit::fuse::Fuse;
use kit::load::{Load, Options, Tally};
use kit::run::children_of;
use kit::{Dir, Finished, Run, Running, eventually, field, free_port, sibling};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_spawnwork");

/// Logs a numbered line for each request before it answers: who has the answer knows that the line was written. With
/// OUT_ONLY nothing goes to standard error; with NOISE much does that nobody needs.
const APP: &str = "
let count = 0;
const other = process.env.OUT_ONLY ? process.stdout : process.stderr;
const noise = process.env.NOISE ? 'noise '.repeat(3000) + '\\n' : '';
require('http').createServer((request, response) => {
  if (request.url === '/health') return void response.end('well\\n');
  count += 1;
  if (noise) process.stderr.write(noise);
  (count % 2 ? process.stdout : other).write(`line ${process.pid} ${count}\\n`);
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
        for name in ["release", "logs", "tmp", "runtime", "pids"] {
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
        self.start_with(|run| run)
    }

    /// The same, with more in its environment.
    fn start_with(&self, more: impl FnOnce(Run) -> Run) -> Chain {
        let mut running = more(self.chain()).start();
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

    /// The command line of it.
    fn chain(&self) -> Run {
        self.chain_with(&["--tee", "-e", "logs/app.err"])
    }

    /// The same, with these of logreopen's options.
    fn chain_with(&self, options: &[&str]) -> Run {
        self.command("logreopen")
            .args(["--control", "log.sock", "-l", "logs/app.out"])
            .args(options)
            .args(["--", "watchtouch"])
            .args(["tmp/restart.txt", "--signal", "USR2", "--", "heartbeat"])
            .args(["--port", &self.port.to_string(), "--path", "/health"])
            .args(["--interval", "300ms", "--on-fail", "kill -USR2 $PID"])
            .args(["--", "spawnwork", "-n", "2", "-C", "release"])
            .args(["--control", "app.sock", "--pid-file", "pids/app.pid"])
            .args(["--probation", "100ms", "--stop-timeout", "10s"])
            .args(["--", "node", "app.js"])
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
    for name in ["app.sock", "log.sock", "pids/app.pid"] {
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

/// Who spins with nothing to do takes all of a second.
fn ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let words = rest.split_whitespace().skip(11).take(2);
    words.map(|word| word.parse::<u64>().unwrap()).sum()
}

fn assert_idle(pids: &[i32], context: &str) {
    let before: Vec<u64> = pids.iter().map(|pid| ticks(*pid)).collect();
    std::thread::sleep(Duration::from_secs(1));
    for (pid, before) in pids.iter().zip(before) {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let taken = ticks(*pid) - before;
        assert!(
            taken < 30,
            "{} took {taken} ticks of 100, {context}",
            name.trim()
        );
    }
}

/// How far the clock of these lines is from ours, in hours.
fn hours_ahead(line: &str) -> i64 {
    let number = |range: std::ops::Range<usize>| line[range].parse::<i64>().unwrap();
    // Days since whenever (civil_from_days, backwards): no time zone, no leap second.
    let (year, month, day) = (number(0..4), number(5..7), number(8..10));
    let (year, month) = if month <= 2 {
        (year - 1, month + 9)
    } else {
        (year, month - 3)
    };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day;
    let seconds =
        (days - 719_469) * 86_400 + number(11..13) * 3600 + number(14..16) * 60 + number(17..19);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs() as i64;
    ((seconds - now) as f64 / 3600.0).round() as i64
}

/// The real libfaketime, in all of them and in node: the time of day jumps by hours, forward and back, and the clock
/// that timers are made of goes on.
#[test]
fn the_clock_jumps_by_hours_and_nobody_notices() {
    let _alone = alone();
    let home = Home::new();
    let set = |hours: i64| {
        std::fs::write(home.at("clock.new"), format!("{hours:+}h\n")).unwrap();
        std::fs::rename(home.at("clock.new"), home.at("clock")).unwrap();
    };
    set(0);
    let library = Run::new("faketime")
        .args(["-m", "-f", "+0", "sh", "-c", "echo \"$LD_PRELOAD\""])
        .finish();
    assert_eq!(library.status, 0, "{}", library.err);
    let mut chain = home.start_with(|run| {
        run.env("LD_PRELOAD", library.out.trim())
            .env("FAKETIME_TIMESTAMP_FILE", home.at("clock"))
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("DONT_FAKE_MONOTONIC", "1")
            // The times of files are the kernel's.
            .env("NO_FAKE_STAT", "1")
            .env("HEARTBEAT_VERBOSE", "1")
            .env("HEARTBEAT_FAILS", "1")
            .env("HEARTBEAT_STUCK", "20s")
            .env("HEARTBEAT_CHILDREN", "1")
            .env("SPAWNWORK_MAX_LIFETIME", "2h")
            .env("SPAWNWORK_BACKOFF", "1h..1h")
            .env("SPAWNWORK_READY_TIMEOUT", "1h")
            .env("LOGREOPEN_FOLLOW", "300ms")
    });
    let pids: BTreeMap<&str, i32> = ["logreopen", "watchtouch", "heartbeat", "spawnwork"]
        .into_iter()
        .zip(chain.pids.iter().copied())
        .collect();
    let mut load = home.load();
    load.answer(30);
    let mut served = BTreeMap::new();
    for (step, hours) in [0, 5, -7, 30, -1].into_iter().enumerate() {
        // Once it happens in the middle of a reload, with trials and limits running.
        if step % 2 == 1 {
            chain.running.signal(Signal::SIGUSR2);
            chain.running.event("reload-canary");
            set(hours);
            chain.running.event("reload-committed");
        } else {
            set(hours);
        }
        // Each of them sees it, and does what it does.
        let at = |tool: &str, chain: &mut Chain| {
            let of = format!(" {tool}[{}]: ", pids[tool]);
            let what = format!("{tool} at {hours:+} h");
            chain.running.line(&what, |line| {
                line.contains(&of) && hours_ahead(line) == hours
            });
        };
        at("heartbeat", &mut chain);
        kit::touch::touch(home.at("tmp/restart.txt"));
        at("watchtouch", &mut chain);
        at("spawnwork", &mut chain);
        chain.running.event("reload-committed");
        // A check and one more: their interval goes on.
        at("heartbeat", &mut chain);
        at("heartbeat", &mut chain);
        // Found by a timer of logreopen's, and so is the new file's opening.
        std::fs::rename(
            home.at("logs/app.out"),
            home.at(&format!("logs/app.out.{step}")),
        )
        .unwrap();
        chain.running.event("output-moved");
        at("logreopen", &mut chain);
        load.answer(20);
        if step == 2 {
            // One that was up for a second is there again at once, whatever the clock says of its age.
            let victim = chain.workers()[0];
            eventually("a second", || {
                let json = home.ctl(&["status", "json"]).out;
                let worker = json.split("\"worker\":").skip(1);
                let up = worker.filter_map(|text| text.split("\"uptime\":").nth(1));
                let up = up.filter_map(|text| text.split([',', '}']).next()?.parse::<f64>().ok());
                up.min_by(f64::total_cmp).filter(|least| *least > 1.5)
            });
            set(hours - 10);
            kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
            let of = format!("pid={victim} ");
            chain.running.event_with("worker-exited", &of);
            chain.running.event("worker-ready");
            load.answer(20);
            let tally = load.stop();
            let foreign = tally.not_in_hands_of(&victim.to_string());
            assert_eq!(foreign, 0, "{:?}\n{}", tally.failed, chain.said());
            add(&mut served, &tally);
            load = home.load();
        }
    }
    let tally = load.stop();
    assert_eq!(tally.failures(), 0, "{:?}\n{}", tally.failed, chain.said());
    add(&mut served, &tally);
    let outermost = chain.pids[0];
    assert_eq!(chain.running.stop(), 0, "{}", chain.said());
    // libfaketime's, by the pid of the first that it was in.
    for name in ["faketime_shm_", "sem.faketime_sem_"] {
        let _ = std::fs::remove_file(format!("/dev/shm/{name}{outermost}"));
    }
    let said = chain.said();
    // Before that its failures were those of a service that was not there yet.
    let (_, since) = said.split_once(": service-up ").unwrap();
    for bad in [
        ": check-failed ",
        ": check-late ",
        ": service-down ",
        ": action-",
        ": worker-killed ",
        ": worker-recycled ",
        ": worker-backoff ",
        ": worker-failed ",
        ": worker-hung ",
        ": lines-lost ",
        ": line-split ",
        "panicked",
    ] {
        assert!(!since.contains(bad), "{bad}:\n{said}");
    }
    home.assert_lines(&served, &said);
}

/// Nobody reads what the chain says on standard error; once it is logreopen's alone, which copies there what it writes
/// to files, once it is everybody's, node's included. Then the reader comes back, and then it is gone for good.
#[test]
fn a_reader_of_standard_error_that_stops_comes_back_and_is_gone() {
    let _alone = alone();
    for shared in [false, true] {
        let context = if shared { "everybody's" } else { "logreopen's" };
        let home = Home::new();
        let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
        // As little as there is: a page.
        nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
        let run = if shared {
            home.chain_with(&[]).env("OUT_ONLY", "1")
        } else {
            home.chain().env("NOISE", "1")
        };
        let mut running = run.env("HEARTBEAT_VERBOSE", "1").stderr(writer).start();
        let status = || home.ctl(&["status"]);
        eventually("it serves", || (status().status == 0).then_some(()));
        let mut pids = vec![running.pid()];
        while pids.len() < 4 {
            pids.push(children_of(*pids.last().unwrap())[0]);
        }
        let load = home.load();
        let mut step = 0;
        let mut all_of_it = |load: &Load| {
            step += 1;
            load.answer(150);
            std::fs::rename(
                home.at("logs/app.out"),
                home.at(&format!("logs/app.out.{step}")),
            )
            .unwrap();
            let reopened = home.ask(&["logreopen", "--ctl", "log.sock", "reopen"]);
            assert_eq!(reopened.status, 0, "{context}: {}", reopened.err);
            let before = children_of(pids[3]);
            kit::touch::touch(home.at("tmp/restart.txt"));
            eventually("other workers by a touch", || {
                let now = children_of(pids[3]);
                let new = now.len() == 2 && !now.iter().any(|pid| before.contains(pid));
                (new && status().status == 0).then_some(())
            });
            load.answer(50);
        };
        all_of_it(&load);
        let full = nix::poll::PollFlags::POLLIN;
        let mut room = [nix::poll::PollFd::new(
            std::os::fd::AsFd::as_fd(&reader),
            full,
        )];
        assert_eq!(nix::poll::poll(&mut room, 0u8), Ok(1), "nobody has read");
        let mut tally = load.stop();
        assert_idle(&pids, context);

        // The reader is back.
        let heard = std::sync::Arc::new(Mutex::new(Vec::new()));
        let hears = heard.clone();
        let gone = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let goes = gone.clone();
        let thread = std::thread::spawn(move || {
            use std::io::Read;
            let mut reader = std::fs::File::from(reader);
            let mut buffer = [0u8; 65536];
            while !goes.load(std::sync::atomic::Ordering::SeqCst) {
                let count = reader.read(&mut buffer).unwrap();
                hears.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        });
        let heard = || String::from_utf8_lossy(&heard.lock().unwrap()).into_owned();
        eventually("what had waited", || (heard().len() > 4096).then_some(()));
        let load = home.load();
        let from = heard().len();
        // Among lines in plenty one may be missed (--tee), but not each time.
        let all_is_heard = || {
            let heard = heard();
            let new = heard.get(from..).unwrap_or_default();
            [
                ": reload-committed ",
                ": signal-sent ",
                ": check-passed ",
                ": output-reopened ",
            ]
            .iter()
            .all(|event| new.contains(event))
        };
        eventually(&format!("{context}: all is heard again"), || {
            all_of_it(&load);
            all_is_heard().then_some(())
        });
        // And is gone, with what it read last.
        gone.store(true, std::sync::atomic::Ordering::SeqCst);
        running.signal(Signal::SIGHUP);
        load.answer(20);
        thread.join().unwrap();
        all_of_it(&load);
        let last = load.stop();
        assert_idle(&pids, context);
        for tally in [&mut tally, &mut last.clone()] {
            assert_eq!(tally.failures(), 0, "{context}: {:?}", tally.failed);
        }
        let mut served = BTreeMap::new();
        add(&mut served, &tally);
        add(&mut served, &last);
        assert_eq!(running.stop(), 0, "{context}");
        home.assert_lines(&served, context);
        let torn = heard()
            .lines()
            .any(|line| line.contains("]: ") && line.matches("Z spawnwork[").count() > 1);
        assert!(!torn, "{context}: {}", heard());
    }
}

/// What the disk's server is refused, and what of that is said by whom.
const DISK: &[(&str, Errno, &[&str])] = &[
    (
        "pwrite64",
        Errno::EIO,
        &[": write-failed ", ": metrics-failed ", ": stamp-failed "],
    ),
    (
        "pwrite64",
        Errno::ENOSPC,
        &[": write-failed ", ": metrics-failed ", ": stamp-failed "],
    ),
    (
        "openat",
        Errno::EIO,
        &[": reopen-failed ", ": metrics-failed ", ": look-failed "],
    ),
    (
        "rename",
        Errno::EIO,
        &[": metrics-failed ", ": stamp-failed "],
    ),
    (
        "lstat",
        Errno::EIO,
        &[": look-failed ", ": metrics-failed "],
    ),
    ("fsync", Errno::EIO, &[": sync-failed "]),
];

/// All that the chain keeps in files, on a disk of which `faults` may befall the server.
fn on_disk(home: &Home, disk: &Fuse) -> Chain {
    for name in ["logs", "tmp", "pids"] {
        std::fs::remove_dir(home.at(name)).unwrap();
        std::fs::create_dir(disk.path().join(name)).unwrap();
        std::os::unix::fs::symlink(disk.path().join(name), home.at(name)).unwrap();
    }
    home.start_with(|run| {
        run.env("LOGREOPEN_FSYNC", "100ms")
            .env("LOGREOPEN_PID_FILE", home.at("pids/logreopen"))
            .env("WATCHTOUCH_SINCE", home.at("pids/stamp"))
            .env("WATCHTOUCH_INTERVAL", "100ms")
            .env("HEARTBEAT_LOCK", home.at("pids/heartbeat"))
            .env("HEARTBEAT_METRICS", home.at("pids/m.prom"))
            .env("HEARTBEAT_FAILS", "1")
    })
}

impl Home {
    /// The disk is as it should be, and everybody has noticed.
    fn disk_is_well(&self, chain: &Chain, context: &str) {
        let well = |words: &[&str]| {
            let mut last = None;
            let until = std::time::Instant::now() + Duration::from_secs(15);
            while last.as_ref().is_none_or(|last: &Finished| last.status != 0) {
                assert!(
                    std::time::Instant::now() < until,
                    "{last:?} {}",
                    chain.said()
                );
                last = Some(self.ask(words));
            }
        };
        well(&["logreopen", "--ctl", "log.sock", "status"]);
        well(&["logreopen", "--ctl", "log.sock", "reopen"]);
        well(&["spawnwork", "--ctl", "app.sock", "status"]);
        let inode = |name: &str| {
            use std::os::unix::fs::MetadataExt;
            let found = std::fs::metadata(self.at(name));
            found.map_or(0, |found| found.ino())
        };
        let names = ["pids/m.prom", "pids/stamp"];
        let (before, from) = (names.map(inode), chain.said().len());
        kit::touch::touch(self.at("tmp/restart.txt"));
        chain.says(from, &[": signal-sent ", ": reload-committed "], context);
        for (name, before) in names.into_iter().zip(before) {
            eventually(&format!("{name} is written again, {context}"), || {
                let now = inode(name);
                (now != 0 && now != before).then_some(())
            });
        }
    }
}

impl Chain {
    /// Waits for these, in any order, in what was said from there on.
    fn says(&self, from: usize, events: &[&str], context: &str) {
        for event in events {
            eventually(&format!("{event}, {context}"), || {
                self.said()[from..].contains(event).then_some(())
            });
        }
    }
}

#[test]
fn a_disk_with_errors_costs_no_request_and_no_line() {
    let _alone = alone();
    let mut calls: Vec<&str> = DISK.iter().map(|(call, _, _)| *call).collect();
    calls.push("newfstatat");
    let faults = Faults::of(&calls);
    let home = Home::new();
    let disk = Fuse::faulty(&faults);
    let chain = on_disk(&home, &disk);
    let load = home.load();
    load.answer(30);
    for (step, (call, error, said)) in DISK.iter().enumerate() {
        let context = format!("{call}: {error:?}");
        let from = chain.said().len();
        let since = std::time::Instant::now();
        let mut all = vec![Fault::each(call, *error, "bindfs")];
        if *call == "lstat" {
            // It is one or the other in different releases of the C library.
            all.push(Fault::each("newfstatat", *error, "bindfs"));
        }
        faults.fail(&all);
        // By its server: the disk itself may not be asked.
        let logs = disk.server().join("logs");
        let _ = std::fs::rename(logs.join("app.out"), logs.join(format!("app.out.{step}")));
        let reopened = home.ask(&["logreopen", "--ctl", "log.sock", "reopen"]);
        assert!([0, 1].contains(&reopened.status), "{context}: {reopened:?}");
        kit::touch::touch(disk.server().join("tmp/restart.txt"));
        let reload = home.ctl(&["reload"]);
        // 3: the touch was later.
        let any = [0, 1, 3].contains(&reload.status);
        assert!(any, "{context}: {reload:?}");
        load.answer(30);
        eventually(&format!("it happens: {context}"), || {
            (faults.hits() > 0).then_some(())
        });
        chain.says(from, said, &context);
        // Nobody tries as often as he can.
        let (before, from) = (faults.hits(), std::time::Instant::now());
        assert_idle(&chain.pids, &context);
        let hits = (faults.hits() - before) as f64 / from.elapsed().as_secs_f64();
        assert!(hits < 1000.0, "{context}: {hits} tries a second");
        faults.heal();
        home.disk_is_well(&chain, &context);
        // Nothing half written is left, but where a file was made and its making answered with an error.
        for entry in std::fs::read_dir(disk.server().join("pids")).unwrap() {
            let path = entry.unwrap().path();
            let known = path
                .extension()
                .is_none_or(|end| ["pid", "prom"].map(|end| end.as_ref()).contains(&end));
            if known {
                continue;
            }
            // libfuse itself renames what it is to remove while it takes it for open.
            if ["lstat", "rename"].contains(call) {
                let _ = std::fs::remove_file(&path);
            }
            // One that is being written takes its name in a moment.
            eventually(&format!("{} is gone, {context}", path.display()), || {
                (!path.exists()).then_some(())
            });
        }
        eprintln!("{context}: {:?}", since.elapsed());
    }
    assert_unhurt(&home, chain, load);
    assert!(!home.at("pids/app.pid").exists() && !home.at("pids/logreopen").exists());
}

/// The chain ends as told, and in all its life no request failed, no line was lost and nobody was taken for dead.
fn assert_unhurt(home: &Home, mut chain: Chain, load: Load) {
    let tally = load.stop();
    assert_eq!(tally.failures(), 0, "{:?}\n{}", tally.failed, chain.said());
    assert_eq!(chain.running.stop(), 0, "{}", chain.said());
    let said = chain.said();
    let (_, since) = said.split_once(": service-up ").unwrap();
    for bad in [
        ": lines-lost ",
        ": service-down ",
        ": worker-killed ",
        "panicked",
    ] {
        assert!(!since.contains(bad), "{bad}:\n{said}");
    }
    home.assert_lines(&tally.served, &said);
}

#[test]
fn a_disk_that_hangs_for_a_while_costs_no_request_and_no_line() {
    let _alone = alone();
    let home = Home::new();
    let mut disk = Fuse::bindfs();
    let mut chain = on_disk(&home, &disk);
    let load = home.load();
    load.answer(30);
    let step = "while it hangs";
    disk.hang();
    let since = std::time::Instant::now();
    load.answer(100);
    // What has to do with the disk is not done; all else is.
    let reload = home.ctl(&["reload"]);
    assert_eq!(reload.status, 0, "{step}: {}", reload.err);
    let status = home.ask(&[
        "logreopen",
        "--ctl",
        "log.sock",
        "--timeout",
        "60s",
        "status",
    ]);
    assert!([0, 1].contains(&status.status), "{status:?}");
    let words = [
        "logreopen",
        "--ctl",
        "log.sock",
        "--timeout",
        "100ms",
        "reopen",
    ];
    assert_eq!(home.ask(&words).status, 124);
    chain.running.event("watch-stale");
    eventually("three seconds", || {
        (since.elapsed() > Duration::from_secs(3)).then_some(())
    });
    assert_idle(&chain.pids, step);
    load.answer(100);
    // It is seen when the disk answers again.
    let from = chain.said().len();
    kit::touch::touch(disk.server().join("tmp/restart.txt"));
    disk.resume();
    let events = [
        ": watch-recovered ",
        ": signal-sent ",
        ": reload-committed ",
    ];
    chain.says(from, &events, step);
    home.disk_is_well(&chain, step);
    assert_unhurt(&home, chain, load);
}
