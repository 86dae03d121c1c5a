//! Death of the master: what becomes of its workers, and what the next master makes of them.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::http::{self, Failure, get};
use kit::load::{Load, Options, Tally};
use kit::{Dir, NODES, Run, Running, app, eventually, field, free_port};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::net::UdpSocket;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

const SPAWNWORK: &str = env!("CARGO_BIN_EXE_spawnwork");

// ---- help of our own ----

/// One load at a time: on a small machine several would only measure each other.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(|broken| broken.into_inner())
}

fn spawnwork<T: AsRef<OsStr>>(args: impl IntoIterator<Item = T>) -> Run {
    Run::new(SPAWNWORK).args(args)
}

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().unwrap().to_owned()
}

fn alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().starts_with(" Z"))
}

fn gone(pid: i32) {
    eventually(&format!("the end of {pid}"), || (!alive(pid)).then_some(()));
}

fn pid_of(line: &str) -> i32 {
    field(line, "pid").parse().unwrap()
}

/// Everything whose environment names this test. Killed at the end, so that a test that fails leaves
/// nobody behind.
struct Brood(String);

const BROOD: &str = "NIRVANA_TEST_BROOD";

impl Brood {
    fn new() -> Brood {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Brood(format!("{}-{number}", std::process::id()))
    }

    fn run(&self, run: Run) -> Run {
        run.env(BROOD, &self.0)
    }

    fn pids(&self) -> BTreeSet<i32> {
        let mark = format!("{BROOD}={}", self.0).into_bytes();
        std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| {
                let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                environ.split(|byte| *byte == 0).any(|pair| pair == mark) && alive(*pid)
            })
            .collect()
    }

    /// Nobody but these is left.
    fn only(&self, stay: &BTreeSet<i32>) {
        let end = Instant::now() + kit::PATIENCE;
        loop {
            let left: Vec<i32> = self.pids().difference(stay).copied().collect();
            if left.is_empty() {
                return;
            }
            if Instant::now() > end {
                let list: Vec<String> = left
                    .iter()
                    .map(|pid| {
                        let line =
                            std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                        format!(
                            "{pid}: {}",
                            String::from_utf8_lossy(&line).replace('\0', " ")
                        )
                    })
                    .collect();
                panic!("left behind: {list:#?}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Brood {
    fn drop(&mut self) {
        for pid in self.pids() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// `count` workers of the master, when they are ready.
fn ready(master: &mut Running, count: usize) -> BTreeSet<i32> {
    (0..count)
        .map(|_| pid_of(&master.event("worker-ready")))
        .collect()
}

fn kill_master(master: &mut Running) {
    master.signal(Signal::SIGKILL);
    assert_eq!(master.end(), 128 + 9);
}

fn load_on(address: String) -> Options {
    let mut paths = vec!["/"; 16];
    paths[7] = "/slow";
    Options {
        address,
        keep_alive: 12,
        fresh: 8,
        paths,
        expect: "hello ",
        timeout: Duration::from_secs(30),
    }
}

fn unharmed(tally: &Tally, what: &str) {
    assert_eq!(
        tally.failures(),
        0,
        "{what}: {:?} {:?}",
        tally.failed,
        tally.broken
    );
}

fn compiled(dir: &Dir, source: &str) -> String {
    let binary = text(dir.path().join(source.trim_end_matches(".c")));
    let run = Run::new("cc")
        .args([&text(app(source)), "-Wall", "-o", &binary])
        .finish();
    assert_eq!((run.status, &*run.err), (0, ""));
    binary
}

// ---- usage ----

#[test]
fn adopt_needs_a_file_that_both_masters_know_and_the_preload() {
    let refused = |args: &[&str]| {
        let run = spawnwork(args).finish();
        assert_eq!((run.status, run.err.lines().count()), (2, 1), "{}", run.err);
        run.err
    };
    let err = refused(&["--orphans", "adopt", "--", "sleep", "1000"]);
    assert!(err.contains("--pid-file or --control"), "{err}");
    let err = refused(&[
        "--orphans",
        "adopt",
        "--no-preload",
        "--pid-file",
        "x",
        "--",
        "node",
        "x.js",
    ]);
    assert!(err.contains("--no-preload"), "{err}");
    let err = refused(&[
        "--orphans",
        "adopt",
        "--balance",
        "slots",
        "--pid-file",
        "x",
        "-l",
        "1",
        "--",
        "x",
    ]);
    assert!(err.contains("--balance slots"), "{err}");
    let err = refused(&["--orphans", "live", "--", "true"]);
    assert!(err.contains("--orphans"), "{err}");
}

// ---- die ----

// Edge case 26.
#[test]
fn die_leaves_nobody_not_even_what_workers_have_started() {
    let _alone = alone();
    let dir = Dir::new();
    let c = compiled(&dir, "plain_server.c");
    std::fs::write(
        dir.path().join("package.json"),
        "{\"scripts\":{\"start\":\"node app.js\"}}",
    )
    .unwrap();
    std::fs::copy(app("hello.js"), dir.path().join("app.js")).unwrap();
    // Each ignores TERM, and so do those that it starts.
    let shell = "trap '' TERM HUP; sleep 1000 & sh -c 'sleep 1000; true' & sleep 1000; true";
    let hello = text(app("hello.js"));
    let (old, new) = (text(kit::node("16")), text(kit::node("26")));
    let python = text(app("plain_server.py"));
    let quick = ["--ready", "alive:300ms"];
    let programs: Vec<(Vec<&str>, Vec<&str>)> = vec![
        (vec![], vec![&old, &hello]),
        (vec![], vec![&new, &hello]),
        (vec!["--no-preload"], vec![&new, &hello]),
        (vec![], vec!["npm", "start"]),
        (quick.to_vec(), vec!["sh", "-c", shell]),
        (
            [&quick[..], &["-u", "nobody"]].concat(),
            vec!["sh", "-c", shell],
        ),
        (vec!["-l", "LISTEN"], vec!["python3", &python]),
        (vec!["-l", "LISTEN"], vec![&c]),
    ];
    for (options, program) in programs {
        let brood = Brood::new();
        let port = free_port();
        let listen = format!("127.0.0.1:{port}");
        let options = options
            .into_iter()
            .map(|word| if word == "LISTEN" { &listen } else { word });
        let run = spawnwork(["-n", "2", "--orphans", "die"])
            .args(options)
            .arg_list(&program)
            .env("PORT", port.to_string())
            .dir(dir.path());
        let mut master = brood.run(run).start();
        ready(&mut master, 2);
        if program[0] == "sh" {
            eventually("all that the shells start", || {
                (brood.pids().len() >= 9).then_some(())
            });
        }
        kill_master(&mut master);
        brood.only(&BTreeSet::new());
    }
}

// Edge case 26.
#[test]
fn thirty_deaths_at_any_moment_of_a_reload_leave_nobody_with_die() {
    let _alone = alone();
    // Nothing but the kernel ends these: there is no time after which they would be gone by themselves.
    let shell = "trap '' TERM HUP; sleep 1000 & while :; do sleep 1000; done";
    let hello = text(app("hello.js"));
    let node = ["node", &hello];
    for round in 0..30u64 {
        let brood = Brood::new();
        let program = if round % 3 == 0 {
            node.to_vec()
        } else {
            vec!["sh", "-c", shell]
        };
        let ready = if round % 3 == 0 {
            "listen"
        } else {
            "alive:50ms"
        };
        let surge = ["100%", "1", "0"][round as usize / 3 % 3];
        let run = spawnwork(["-n", "2", "--orphans", "die", "--probation", "100ms"])
            .args(["--ready", ready, "--surge", surge, "--stop-timeout", "600s"])
            .arg_list(&program)
            .env("PORT", free_port().to_string());
        let mut master = brood.run(run).start();
        master.event("generation-serving");
        master.signal(Signal::SIGUSR2);
        std::thread::sleep(Duration::from_millis(random(round) % 500));
        kill_master(&mut master);
        brood.only(&BTreeSet::new());
    }
}

fn random(round: u64) -> u64 {
    round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
}

// Edge case 26.
#[test]
fn a_death_while_the_first_workers_are_made_leaves_nobody_with_die() {
    let _alone = alone();
    let shell = "trap '' TERM HUP; sleep 1000 & while :; do sleep 1000; done";
    // A worker is often ahead of its master only where there are fewer processors than work.
    let others = Brood::new();
    let mut busy: Vec<Running> = (0..6)
        .map(|_| {
            let run = Run::new("sh").args(["-c", "while :; do :; done"]);
            others.run(run).start()
        })
        .collect();
    for round in 0..30 {
        let brood = Brood::new();
        let run = spawnwork(["-n", "20", "--orphans", "die", "--ready", "alive:50ms"])
            .arg_list(&["sh", "-c", shell]);
        let mut master = brood.run(run).start();
        master.event("started");
        std::thread::sleep(Duration::from_millis(random(round) % 100));
        kill_master(&mut master);
        brood.only(&BTreeSet::new());
    }
    busy.iter_mut().for_each(kill_master);
}

#[test]
fn with_die_a_check_goes_too_and_what_it_has_started() {
    let (brood, dir) = (Brood::new(), Dir::new());
    let check = "sleep 1000 & sleep 1000; true";
    let run = |options: &[&str]| {
        let run = spawnwork(["-n", "1", "--orphans", "die", "--ready-timeout", "600s"]);
        let run = run.args(options).args(["--", "sleep", "1000"]);
        brood.run(run.dir(dir.path())).start()
    };
    // Two sleeps of the check, its shell, the worker and the master.
    let mut master = run(&["--ready", &format!("exec:{check}")]);
    eventually("a check of readiness at work", || {
        (brood.pids().len() == 5).then_some(())
    });
    kill_master(&mut master);
    brood.only(&BTreeSet::new());

    let options = [
        "--ready",
        "alive:50ms",
        "--check",
        "test ! -e bad || { CHECK }",
    ];
    let command = options[3].replace("CHECK", &format!("{check};"));
    let mut master = run(&[options[0], options[1], options[2], &command]);
    master.event("generation-serving");
    std::fs::write(dir.path().join("bad"), "").unwrap();
    master.signal(Signal::SIGUSR2);
    eventually("a check of the release at work", || {
        (brood.pids().len() == 5).then_some(())
    });
    kill_master(&mut master);
    brood.only(&BTreeSet::new());
}

trait ArgList {
    fn arg_list(self, program: &[&str]) -> Run;
}

impl ArgList for Run {
    fn arg_list(self, program: &[&str]) -> Run {
        self.args(["--"]).args(program)
    }
}

fn reexec(dir: &Dir, master: &mut Running) {
    let answer = spawnwork(["--ctl", "app.ctl", "reexec", "--timeout", "30s"]);
    let answer = answer.dir(dir.path()).finish();
    assert_eq!(answer.status, 0, "{}", answer.err);
    master.event("reexecuted");
}

#[test]
fn another_program_in_the_masters_place_keeps_its_word() {
    let (brood, dir) = (Brood::new(), Dir::new());
    let script = "trap '' TERM; sleep 1000 & sleep 1000; true";
    let run = spawnwork(["-n", "2", "--orphans", "die", "--control", "app.ctl"])
        .args(["--ready", "alive:100ms", "--", "sh", "-c", script])
        .dir(dir.path());
    let mut master = brood.run(run).start();
    let workers = ready(&mut master, 2);
    master.event("generation-serving");
    reexec(&dir, &mut master);
    assert!(workers.iter().all(|pid| alive(*pid)));
    kill_master(&mut master);
    brood.only(&BTreeSet::new());

    let service = Service::python(&["--control", "app.ctl"]);
    let mut master = service.start();
    let workers = ready(&mut master, 2);
    master.event("generation-serving");
    reexec(&service.dir, &mut master);
    // They still have one who lives.
    kill_master(&mut master);
    let mut next = service.start();
    let found: BTreeSet<i32> = (0..2)
        .map(|_| pid_of(&next.event("orphan-found")))
        .collect();
    assert_eq!(found, workers);
    next.event("generation-serving");
    service.only_of(&next);
    assert_eq!(next.stop(), 0);
}

#[test]
fn with_die_a_worker_that_ends_by_itself_takes_nobody_along() {
    let brood = Brood::new();
    let dir = Dir::new();
    // What it leaves in its group has the time to end well, as ever.
    let script = "(trap 'sleep 0.3; echo well >well; exit' TERM; while :; do sleep 0.05; done) & \
                  echo $! >helper; sleep 0.5; exit 3";
    let run = spawnwork(["-n", "1", "--orphans", "die", "--ready", "alive:100ms"]);
    let run = run.args(["--", "sh", "-c", script]).dir(dir.path());
    let mut master = brood.run(run).start();
    master.event("worker-exited");
    eventually("its last word", || {
        dir.path().join("well").exists().then_some(())
    });
    assert_eq!(master.stop(), 0);
}

// ---- drain ----

/// A request that takes a moment, and that the worker has begun.
fn begun(port: u16) -> std::thread::JoinHandle<Result<http::Reply, Failure>> {
    let address = format!("127.0.0.1:{port}");
    let mut connection = http::connect(&address, Duration::from_secs(30)).unwrap();
    let thread = std::thread::spawn(move || http::exchange(&mut connection, "/long", true));
    // Answered after the long one was sent: by the only worker there is, which has both.
    std::thread::sleep(Duration::from_millis(100));
    get(&address, "/").unwrap();
    thread
}

#[test]
fn drain_answers_what_was_begun_and_leaves() {
    let _alone = alone();
    let (lines, python) = (text(app("lines.js")), text(app("plain_lines.py")));
    let mut programs: Vec<Vec<String>> = NODES
        .iter()
        .map(|version| vec![text(kit::node(version)), lines.clone()])
        .collect();
    programs.push(vec!["python3".to_owned(), python]);
    for program in programs {
        // An app that ends at once on TERM gets it when everything is answered.
        for handler in ["", "exit"] {
            let brood = Brood::new();
            let port = free_port();
            let mut run = spawnwork(["-n", "1", "--orphans", "drain"]);
            if program[0] == "python3" {
                run = run.args(["-l", &format!("127.0.0.1:{port}")]);
            }
            let run = run
                .args(["--"])
                .args(&program)
                .env("PORT", port.to_string())
                .env("TERM_HANDLER", handler);
            let mut master = brood.run(run).start();
            ready(&mut master, 1);
            let long = begun(port);
            kill_master(&mut master);
            let reply = long.join().unwrap();
            let reply = reply.unwrap_or_else(|why| panic!("{program:?} {handler}: {why:?}"));
            assert!(reply.body.starts_with("hello "), "{}", reply.body);
            brood.only(&BTreeSet::new());
            assert_eq!(
                get(format!("127.0.0.1:{port}"), "/").unwrap_err(),
                "Refused"
            );
        }
    }
}

// ---- adopt ----

/// A service whose master is killed and started again.
struct Service {
    brood: Brood,
    dir: Dir,
    port: u16,
    options: Vec<String>,
    program: Vec<String>,
    env: Vec<(&'static str, String)>,
    out: String,
}

impl Service {
    fn new(options: &[&str], program: &[&str]) -> Service {
        let (brood, dir, port) = (Brood::new(), Dir::new(), free_port());
        let file = text(dir.path().join("app.pid"));
        let mut all: Vec<String> = ["-n", "2", "--orphans", "adopt", "--pid-file", &file]
            .iter()
            .map(|word| (*word).to_owned())
            .collect();
        all.extend(["--probation", "50ms"].map(str::to_owned));
        all.extend(options.iter().map(|word| (*word).to_owned()));
        Service {
            brood,
            dir,
            port,
            options: all,
            program: program.iter().map(|word| (*word).to_owned()).collect(),
            env: vec![("PORT", port.to_string())],
            out: String::new(),
        }
    }

    fn node(version: &str, options: &[&str]) -> Service {
        Service::new(
            options,
            &[&text(kit::node(version)), &text(app("lines.js"))],
        )
    }

    fn python(options: &[&str]) -> Service {
        let mut service = Service::new(options, &["python3", &text(app("plain_lines.py"))]);
        let listen = format!("127.0.0.1:{}", service.port);
        service.options.extend(["-l".to_owned(), listen]);
        service
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn run(&self) -> Run {
        let mut run = spawnwork(&self.options).args(["--"]).args(&self.program);
        for (name, value) in &self.env {
            run = run.env(name, value);
        }
        self.brood.run(run).dir(self.dir.path())
    }

    fn start(&self) -> Running {
        self.run().start()
    }

    /// The processes of this master and nobody else's are left.
    fn only_of(&self, master: &Running) {
        let end = Instant::now() + kit::PATIENCE;
        loop {
            let own: BTreeSet<i32> = descendants(master.pid());
            let left: Vec<i32> = self.brood.pids().difference(&own).copied().collect();
            if left.is_empty() {
                return;
            }
            assert!(
                Instant::now() < end,
                "left: {left:?}\n{}",
                master.err().join("\n")
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Keeps what a master has said, when it is over.
    fn keep(&mut self, master: &Running) {
        self.out += &master.out_to_its_end();
    }

    /// Each worker's lines are numbered from 1: none is missing, none came twice. How many there are.
    fn lines(&self) -> usize {
        let mut seen: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for line in self.out.lines().filter(|line| line.contains("line")) {
            let words: Vec<&str> = line.split(' ').collect();
            assert_eq!((words.len(), words[0]), (3, "line"), "torn: '{line}'");
            let number = words[2].parse().unwrap();
            seen.entry(words[1].to_owned()).or_default().push(number);
        }
        for (pid, numbers) in &seen {
            let wanted: Vec<u64> = (1..=numbers.len() as u64).collect();
            assert_eq!(*numbers, wanted, "of {pid}");
        }
        seen.values().map(Vec::len).sum()
    }
}

fn descendants(pid: i32) -> BTreeSet<i32> {
    let mut all = BTreeSet::from([pid]);
    let mut next = vec![pid];
    while let Some(pid) = next.pop() {
        for child in kit::run::children_of(pid) {
            if all.insert(child) {
                next.push(child);
            }
        }
    }
    all
}

/// Nothing the workers say is on its way within the master: it sleeps in its loop.
fn still(master: &mut Running, lines: usize, before: usize) {
    eventually("all lines so far", || {
        (master
            .out()
            .lines()
            .filter(|line| line.starts_with("line "))
            .count()
            >= lines - before)
            .then_some(())
    });
}

/// Load all the time; lines before the death, while the master cannot read, without a master, and
/// while the orphans leave.
fn adopted(mut service: Service, address: &str) -> Service {
    let _alone = alone();
    let what = format!("{:?} {:?}", service.options, service.program);
    let log = |count: usize| {
        for _ in 0..count {
            get(address, "/log/100").unwrap();
        }
        count * 100
    };
    let mut master = service.start();
    master.event("generation-serving");
    let old = descendants(master.pid());
    let load = Load::start(&load_on(address.to_owned()));
    load.answer(100);
    let mut lines = log(5);
    still(&mut master, lines, 0);
    master.signal(Signal::SIGSTOP);
    lines += log(5);
    kill_master(&mut master);
    lines += log(5);
    load.answer(200);
    let long: Vec<_> = (0..4)
        .map(|_| {
            let address = address.to_owned();
            std::thread::spawn(move || get(address, "/long").unwrap())
        })
        .collect();
    load.answer(50);
    let mut next = service.start();
    let found: BTreeSet<i32> = (0..2)
        .map(|_| pid_of(&next.event("orphan-found")))
        .collect();
    assert!(found.is_subset(&old), "{what}: {found:?} {old:?}");
    next.event("socket-adopted");
    next.event("generation-serving");
    for _ in 0..2 {
        next.event("orphan-exited");
    }
    load.answer(100);
    for one in long {
        assert!(one.join().unwrap().body.starts_with("hello "));
        lines += 1;
    }
    service.only_of(&next);
    let tally = load.stop();
    unharmed(&tally, &what);
    assert_eq!(
        std::fs::read_to_string(service.dir.path().join("app.pid")).unwrap(),
        format!("{}\n", next.pid())
    );
    assert_eq!(next.stop(), 0);
    let err = next.err().join("\n");
    for wrong in [
        "orphan-killed",
        "orphan-refused",
        "worker-killed",
        "socket-bound",
    ] {
        assert!(!err.contains(wrong), "{what}: {err}");
    }
    service.keep(&master);
    service.keep(&next);
    assert_eq!(service.lines(), lines, "{what}");
    service.brood.only(&BTreeSet::new());
    service
}

#[test]
fn adopted_node_workers_cost_no_request_and_no_line() {
    for version in ["16", "20", "26"] {
        let service = Service::node(version, &[]);
        let address = service.address();
        adopted(service, &address);
    }
}

// Edge case 29.
#[test]
fn adopted_python_workers_cost_no_request_and_no_line() {
    let service = Service::python(&[]);
    let address = service.address();
    adopted(service, &address);
}

#[test]
fn workers_of_another_user_are_adopted_too() {
    // The node of the system, and copies of the apps: what lies in root's home is not for nobody.
    let node = Service::new(&["-u", "nobody"], &["node", "lines.js"]);
    std::fs::copy(app("lines.js"), node.dir.path().join("lines.js")).unwrap();
    let mut python = Service::python(&["-u", "nobody"]);
    python.program[1] = "plain_lines.py".to_owned();
    let copy = python.dir.path().join("plain_lines.py");
    std::fs::copy(app("plain_lines.py"), copy).unwrap();
    for service in [node, python] {
        let address = service.address();
        adopted(service, &address);
    }
}

#[test]
fn a_master_without_privileges_adopts_its_own() {
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let mut service = Service::python(&[]);
    service.program[1] = "plain_lines.py".to_owned();
    let copy = service.dir.path().join("plain_lines.py");
    std::fs::copy(app("plain_lines.py"), copy).unwrap();
    let (uid, gid) = (nobody.uid.as_raw(), nobody.gid.as_raw());
    std::os::unix::fs::chown(service.dir.path(), Some(uid), Some(gid)).unwrap();
    // In place of spawnwork: setpriv, which becomes spawnwork.
    let address = service.address();
    let own = std::mem::take(&mut service.options);
    let start = |service: &Service| {
        let run = Run::new("setpriv")
            .args([format!("--reuid={uid}"), format!("--regid={gid}")])
            .args(["--clear-groups", SPAWNWORK])
            .args(&own)
            .args(["--"])
            .args(&service.program);
        service.brood.run(run).dir(service.dir.path()).start()
    };
    let mut master = start(&service);
    master.event("generation-serving");
    let load = Load::start(&load_on(address));
    load.answer(100);
    kill_master(&mut master);
    let mut next = start(&service);
    next.event("socket-adopted");
    next.event("generation-serving");
    load.answer(100);
    service.only_of(&next);
    unharmed(&load.stop(), "as nobody");
    assert_eq!(next.stop(), 0);
    assert!(!next.err().join("\n").contains("orphan-refused"));
}

#[test]
fn adopted_behind_npm() {
    let mut service = Service::new(&[], &["npm", "start"]);
    let script = format!(
        "{{\"scripts\":{{\"start\":\"node {}\"}}}}",
        text(app("lines.js"))
    );
    service.dir.write("package.json", &script);
    service
        .options
        .extend(["--node".to_owned(), "auto".to_owned()]);
    let _alone = alone();
    let mut master = service.start();
    master.event("generation-serving");
    let load = Load::start(&load_on(service.address()));
    load.answer(100);
    kill_master(&mut master);
    load.answer(50);
    let mut next = service.start();
    next.event("socket-adopted");
    next.event("generation-serving");
    load.answer(50);
    service.only_of(&next);
    unharmed(&load.stop(), "npm");
    assert_eq!(next.stop(), 0);
    let err = next.err().join("\n");
    assert!(!err.contains("orphan-killed"), "{err}");
}

#[test]
fn unix_and_udp_sockets_that_node_asked_for_are_found_again() {
    let mut service = Service::node("24", &[]);
    let path = service.dir.path().join("app.sock");
    let port = free_port();
    service.env.push(("SOCK", text(&path)));
    service.env.push(("UDP", port.to_string()));
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    client.connect(("127.0.0.1", port)).unwrap();
    let mut buffer = [0u8; 16];

    let _alone = alone();
    let mut master = service.start();
    master.event("generation-serving");
    let inode = std::fs::metadata(&path).unwrap().ino();
    let load = Load::start(&load_on(format!("unix:{}", path.display())));
    load.answer(100);
    kill_master(&mut master);
    client.send(b"one").unwrap();
    assert_eq!(client.recv(&mut buffer).unwrap(), 3);
    let mut next = service.start();
    let adopted: BTreeSet<String> = (0..3)
        .map(|_| field(&next.event("socket-adopted"), "address"))
        .collect();
    let wanted = [
        format!("127.0.0.1:{}", service.port),
        format!("udp:127.0.0.1:{port}"),
        format!("unix:{}", path.display()),
    ];
    assert_eq!(adopted, BTreeSet::from(wanted));
    next.event("generation-serving");
    load.answer(100);
    service.only_of(&next);
    client.send(b"two").unwrap();
    assert_eq!(client.recv(&mut buffer).unwrap(), 3);
    unharmed(&load.stop(), "unix");
    // The very file: it was neither unlinked nor replaced, and it goes at the end.
    assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);
    assert_eq!(next.stop(), 0);
    assert!(!path.exists());
}

#[test]
fn a_unix_path_of_listen_stays_what_it_is() {
    let mut service = Service::python(&[]);
    let path = service.dir.path().join("app.sock");
    let address = format!("unix:{}", path.display());
    service.options.extend(["-l".to_owned(), address.clone()]);
    service
        .options
        .extend(["-l".to_owned(), "127.0.0.1:0".to_owned()]);
    let mut master = service.start();
    let bound = |master: &mut Running, event: &str| -> Vec<String> {
        (0..3)
            .map(|_| field(&master.event(event), "address"))
            .collect()
    };
    let first = bound(&mut master, "socket-bound");
    master.event("generation-serving");
    kill_master(&mut master);
    // Wanted by name and at any port: the same ones.
    let mut next = service.start();
    assert_eq!(bound(&mut next, "socket-adopted"), first);
    kill_master(&mut next);
    let service = adopted(service, &address);
    // Stopped in peace, and made anew.
    assert!(!path.exists());
    let mut last = service.start();
    last.event("generation-serving");
    let mode = std::fs::metadata(&path).unwrap();
    assert_eq!(mode.mode() & 0o777, 0o600);
    assert_eq!(last.stop(), 0);
}

#[test]
fn apps_with_handlers_of_their_own_finish_what_they_have_begun() {
    let _alone = alone();
    for (version, handler, talk) in [("16", "exit", ""), ("26", "exit", "1"), ("20", "", "1")] {
        let mut service = Service::node(version, &["--stop-timeout", "50s"]);
        service.env.push(("TERM_HANDLER", handler.to_owned()));
        service.env.push(("TALK", talk.to_owned()));
        let mut master = service.start();
        master.event("generation-serving");
        let load = Load::start(&load_on(service.address()));
        load.answer(100);
        kill_master(&mut master);
        load.answer(100);
        let mut next = service.start();
        let orphans: Vec<i32> = (0..2)
            .map(|_| pid_of(&next.event("orphan-found")))
            .collect();
        next.event("generation-serving");
        load.answer(100);
        for _ in 0..2 {
            next.event("orphan-exited");
        }
        service.only_of(&next);
        unharmed(&load.stop(), version);
        if handler == "exit" {
            for pid in orphans {
                let line = format!("TERM came to {pid}\n");
                eventually(&line, || next.out().contains(&line).then_some(()));
                assert_eq!(next.out().matches(&line).count(), 1);
            }
        }
        assert!(!next.err().join("\n").contains("orphan-killed"));
        next.signal(Signal::SIGQUIT);
        next.end();
    }
}

#[test]
fn an_orphan_is_ended_by_hand_as_any_process_is() {
    let service = Service::node("22", &[]);
    let mut master = service.start();
    let workers = ready(&mut master, 2);
    let long = begun_many(&service.address(), 6);
    let channels: Vec<_> = workers.iter().map(|pid| channel(*pid)).collect();
    kill_master(&mut master);
    // That node handles TERM shows nothing: it does so from its start. What it does after it has closed its
    // channel, it does with our handler.
    for (path, was) in channels {
        eventually("its channel is closed", || {
            (std::fs::read_link(&path).ok().as_ref() != Some(&was)).then_some(())
        });
    }
    for pid in &workers {
        eventually("an answer of its", || {
            let reply = get(service.address(), "/").unwrap();
            reply.body.contains(&format!(" {pid} ")).then_some(())
        });
    }
    for pid in workers {
        kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
        gone(pid);
    }
    for one in long {
        assert!(one.join().unwrap().unwrap().body.starts_with("hello "));
    }
}

/// Where a node worker has its channel to the master, and what is there.
fn channel(pid: i32) -> (PathBuf, PathBuf) {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let number = environment
        .split(|byte| *byte == 0)
        .find_map(|pair| pair.strip_prefix(b"NODE_CHANNEL_FD="))
        .map(String::from_utf8_lossy)
        .unwrap();
    let path = PathBuf::from(format!("/proc/{pid}/fd/{number}"));
    let there = std::fs::read_link(&path).unwrap();
    (path, there)
}

fn begun_many(
    address: &str,
    count: usize,
) -> Vec<std::thread::JoinHandle<Result<http::Reply, Failure>>> {
    let all = (0..count)
        .map(|_| {
            let mut connection = http::connect(address, Duration::from_secs(30)).unwrap();
            // Both workers have it when it is answered: what follows on it finds its worker.
            http::exchange(&mut connection, "/", true).unwrap();
            std::thread::spawn(move || http::exchange(&mut connection, "/long", true))
        })
        .collect();
    std::thread::sleep(Duration::from_millis(200));
    all
}

#[test]
fn a_control_socket_names_the_heir_as_well() {
    let mut service = Service::python(&[]);
    let at = service
        .options
        .iter()
        .position(|word| word == "--pid-file")
        .unwrap();
    service.options[at] = "--control".to_owned();
    let mut master = service.start();
    let old = ready(&mut master, 2);
    kill_master(&mut master);
    // By another spelling of the same path, and from elsewhere.
    service.options[at + 1] = format!(
        "../{}/app.pid",
        service.dir.path().file_name().unwrap().to_str().unwrap()
    );
    let mut next = service.start();
    let found: BTreeSet<i32> = (0..2)
        .map(|_| pid_of(&next.event("orphan-found")))
        .collect();
    assert_eq!(found, old);
    next.event("socket-adopted");
    next.event("generation-serving");
    service.only_of(&next);
    assert_eq!(next.stop(), 0);
}

#[test]
fn who_is_no_orphan_is_left_alone() {
    let service = Service::python(&[]);
    let other = Service::python(&[]);
    let mut neighbour = other.start();
    let theirs = ready(&mut neighbour, 2);
    let mut master = service.start();
    let ours = ready(&mut master, 2);
    kill_master(&mut master);
    // Of another user; and of a master that lives.
    let file = text(service.dir.path().join("app.pid"));
    let claims = [
        (65534, format!("plain:1:{file}"), "1".to_owned()),
        (
            0,
            format!("plain:{}:{file}", start_of(std::process::id())),
            std::process::id().to_string(),
        ),
        (0, format!("plain:x:{file}"), "1".to_owned()),
    ];
    let mut strangers: Vec<std::process::Child> = claims
        .iter()
        .map(|(uid, mark, master)| {
            std::process::Command::new("sleep")
                .arg("1000")
                .env("SPAWNWORK_ADOPT", mark)
                .env("SPAWNWORK_PID", master)
                .uid(*uid)
                .process_group(0)
                .spawn()
                .unwrap()
        })
        .collect();
    let mut next = service.start();
    let found: BTreeSet<i32> = (0..2)
        .map(|_| pid_of(&next.event("orphan-found")))
        .collect();
    assert_eq!(found, ours);
    next.event("generation-serving");
    for _ in 0..2 {
        next.event("orphan-exited");
    }
    service.only_of(&next);
    assert!(theirs.iter().all(|pid| alive(*pid)));
    for stranger in &mut strangers {
        assert!(alive(stranger.id() as i32));
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }
    assert_eq!(
        next.err()
            .iter()
            .filter(|line| line.contains("orphan-found"))
            .count(),
        2
    );
    assert_eq!(next.stop(), 0);
    // Without orphans it is a start as any other.
    let mut last = service.start();
    last.event("socket-bound");
    last.event("generation-serving");
    assert_eq!(last.stop(), 0);
    assert_eq!(neighbour.stop(), 0);
}

fn start_of(pid: u32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let rest = stat.rsplit(')').next().unwrap().to_owned();
    rest.split_ascii_whitespace().nth(19).unwrap().to_owned()
}

#[test]
fn what_cannot_be_taken_over_is_waited_for() {
    let _alone = alone();
    let dir = Dir::new();
    let filter = compiled(&dir, "no_getfd.c");
    for service in [Service::python(&[]), Service::node("26", &[])] {
        let mut master = service.start();
        master.event("generation-serving");
        kill_master(&mut master);
        let run = Run::new(&filter)
            .args([SPAWNWORK])
            .args(&service.options)
            .args(["--"])
            .args(&service.program)
            .env("PORT", service.port.to_string());
        let mut next = service.brood.run(run).dir(service.dir.path()).start();
        let line = next.event("orphan-refused");
        assert!(field(&line, "error").contains("not implemented"), "{line}");
        next.event("socket-bound");
        next.event("generation-serving");
        get(service.address(), "/").unwrap();
        service.only_of(&next);
        assert_eq!(next.stop(), 0);
        let refused = next
            .err()
            .iter()
            .filter(|line| line.contains("orphan-refused"))
            .count();
        assert_eq!(refused, 1);
    }
}

#[test]
fn a_next_master_that_fails_leaves_the_orphans_at_work() {
    let mut service = Service::node("20", &["--ready-timeout", "5s"]);
    let path = service.dir.path().join("app.sock");
    service.env.push(("SOCK", text(&path)));
    let address = format!("unix:{}", path.display());
    let _alone = alone();
    let mut master = service.start();
    let old = ready(&mut master, 2);
    let load = Load::start(&load_on(address));
    kill_master(&mut master);
    let good = service.program.clone();
    for bad in ["throw new Error('at load')", "process.exit(0)"] {
        let bad = service.dir.write("bad.js", bad);
        service.program[1] = text(bad);
        let mut next = service.start();
        next.event("orphan-found");
        assert_eq!(next.end(), 1);
        load.answer(100);
    }
    assert!(old.iter().all(|pid| alive(*pid)));
    service.program = good;
    let mut next = service.start();
    next.event("generation-serving");
    load.answer(100);
    service.only_of(&next);
    unharmed(&load.stop(), "after failures");
    assert_eq!(next.stop(), 0);
}

#[test]
fn a_stop_before_the_next_generation_serves_ends_the_orphans_too() {
    for signal in [Signal::SIGTERM, Signal::SIGQUIT] {
        let mut service = Service::python(&[]);
        let mut master = service.start();
        ready(&mut master, 2);
        kill_master(&mut master);
        service
            .options
            .extend(["--ready", "alive:100s", "--ready-timeout", "200s"].map(str::to_owned));
        let mut next = service.start();
        next.event("worker-started");
        next.signal(signal);
        assert_eq!(next.end(), 0);
        service.brood.only(&BTreeSet::new());
    }
}

#[test]
fn an_orphan_that_does_not_leave_is_killed() {
    let script = "trap '' TERM; while :; do sleep 0.1; done";
    let service = Service::new(
        &["--ready", "alive:100ms", "--stop-timeout", "500ms"],
        &["sh", "-c", script],
    );
    let mut master = service.start();
    let old = ready(&mut master, 2);
    kill_master(&mut master);
    let mut next = service.start();
    next.event("generation-serving");
    let killed: BTreeSet<i32> = (0..2)
        .map(|_| pid_of(&next.event("orphan-killed")))
        .collect();
    assert_eq!(killed, old);
    service.only_of(&next);
    next.signal(Signal::SIGQUIT);
    next.end();
}

#[test]
fn with_round_robin_orphans_only_finish() {
    let _alone = alone();
    let service = Service::node("24", &["--balance", "round-robin"]);
    let mut master = service.start();
    ready(&mut master, 2);
    let long = begun_many(&service.address(), 4);
    kill_master(&mut master);
    let mut next = service.start();
    next.event("socket-bound");
    next.event("generation-serving");
    for one in long {
        assert!(one.join().unwrap().unwrap().body.starts_with("hello "));
    }
    service.only_of(&next);
    assert_eq!(next.stop(), 0);
}

#[test]
fn killed_in_mid_reload_both_generations_are_taken_over() {
    let _alone = alone();
    for mut service in [Service::node("22", &[]), Service::python(&[])] {
        let node = service.program[0] != "python3";
        let options = service.options.iter_mut();
        for option in options.filter(|word| *word == "50ms") {
            *option = "30s".to_owned();
        }
        let mut master = service.start();
        let mut old = ready(&mut master, 2);
        let load = Load::start(&load_on(service.address()));
        load.answer(100);
        master.signal(Signal::SIGUSR2);
        let canary = pid_of(&master.event("reload-canary"));
        kill_master(&mut master);
        load.answer(50);
        if node {
            // It holds the sockets and accepts nothing in its probation: it has nothing to go on with.
            gone(canary);
        } else {
            old.insert(canary);
        }
        let mut next = service.start();
        let found: BTreeSet<i32> = (0..old.len())
            .map(|_| pid_of(&next.event("orphan-found")))
            .collect();
        assert_eq!(found, old);
        next.event("generation-serving");
        load.answer(50);
        service.only_of(&next);
        unharmed(&load.stop(), "mid-reload");
        assert_eq!(next.stop(), 0);
    }
}

#[test]
fn thirty_deaths_at_any_moment_of_a_reload_cost_no_request() {
    let _alone = alone();
    let service = Service::node("20", &["--stop-timeout", "10s"]);
    let mut master = service.start();
    master.event("generation-serving");
    let load = Load::start(&load_on(service.address()));
    let mut said = Vec::new();
    for round in 0..30u64 {
        load.answer(20);
        master.signal(Signal::SIGUSR2);
        // A reload takes about half a second here: anywhere in it, and just after it.
        let moment = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        std::thread::sleep(Duration::from_millis(moment % 600));
        kill_master(&mut master);
        said.extend(master.err());
        master = service.start();
        if round % 3 == 0 {
            // And again, while it takes over.
            std::thread::sleep(Duration::from_millis(moment / 600 % 250));
            kill_master(&mut master);
            said.extend(master.err());
            master = service.start();
        }
        master.event("generation-serving");
        service.only_of(&master);
    }
    load.answer(20);
    said.extend(master.err());
    unharmed(&load.stop(), &said.join("\n"));
    assert_eq!(master.stop(), 0);
    service.brood.only(&BTreeSet::new());
}

#[test]
fn what_orphans_have_started_goes_with_them() {
    let script = "trap 'exit 0' TERM; setsid sleep 1000 & sleep 1001 & echo up >up-$WORKER_ID; while :; do sleep 0.1; done";
    let service = Service::new(&["--ready", "alive:200ms"], &["sh", "-c", script]);
    let mut master = service.start();
    ready(&mut master, 2);
    let up: [PathBuf; 2] = ["up-0", "up-1"].map(|name| service.dir.path().join(name));
    eventually("their helpers", || {
        up.iter().all(|file| file.exists()).then_some(())
    });
    kill_master(&mut master);
    let mut next = service.start();
    next.event("generation-serving");
    service.only_of_group(&next);
    next.signal(Signal::SIGQUIT);
    next.end();
}

impl Service {
    /// Like `only_of`, for workers whose own helpers have left the master's sight.
    fn only_of_group(&self, master: &Running) {
        let mine = format!("SPAWNWORK_PID={}", master.pid()).into_bytes();
        eventually("only what this master has started", || {
            let left = self.brood.pids().into_iter().filter(|pid| {
                let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                *pid != master.pid() && !environ.split(|byte| *byte == 0).any(|pair| pair == mine)
            });
            (left.count() == 0).then_some(())
        });
    }
}
