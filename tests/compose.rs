//! The article's set-up: all five as one service, under load, with everything that goes wrong on a Monday.
//! No request fails but those in the hands of a worker that is killed, and each log line is there once.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::load::{Load, Options, Tally};
use kit::mount::Mounted;
use kit::run::children_of;
use kit::touch::touch;
use kit::{Dir, Finished, Run, Running, eventually, field, free_port, sibling};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_spawnwork");

/// Logs a numbered line for each request before it answers: who has the answer knows that the line was
/// written. On request its event loop sleeps for ever, or spins for ever.
const APP: &str = "
let count = 0;
const server = require('http').createServer((request, response) => {
  if (request.url === '/health') return void response.end('well\\n');
  count += 1;
  const out = count % 2 ? process.stdout : process.stderr;
  out.write(`line ${process.pid} ${count}\\n`);
  response.end(`hello ${process.pid} VERSION\\n`);
  if (request.url === '/hang') setImmediate(() => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0));
  if (request.url === '/spin') setImmediate(() => { for (;;); });
});
server.listen(Number(process.env.PORT), '127.0.0.1');
";

/// What heals: the worker that spins is ended, for all else there is a new generation.
const HEAL: &str = "case $HEARTBEAT_REASON in stuck) kill -KILL $PID ;; *) kill -USR2 $PID ;; esac";

/// The tests measure by time what hangs and what spins: one at a time is enough for a small machine.
static ALONE: Mutex<()> = Mutex::new(());

struct Service {
    dir: Dir,
    logs: Mounted,
    port: u16,
    running: Running,
    /// All that the clients saw.
    served: BTreeMap<String, u64>,
    /// Workers that were killed: they may have logged a request that nobody has the answer of.
    killed: BTreeSet<String>,
}

/// Those of the tools, beside one another and before everything else.
fn path() -> std::ffi::OsString {
    let own = Path::new(PROGRAM).parent().unwrap().to_owned();
    let path = std::env::var_os("PATH").unwrap();
    std::env::join_paths(std::iter::once(own).chain(std::env::split_paths(&path))).unwrap()
}

fn alone() -> MutexGuard<'static, ()> {
    kit::mount::need_root();
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    for name in ["heartbeat", "logreopen", "replsock", "watchtouch"] {
        let _ = sibling(PROGRAM, name);
    }
    guard
}

impl Service {
    fn start() -> Service {
        let (dir, port) = (Dir::new(), free_port());
        let logs = Mounted::tmpfs(24 << 20);
        for name in ["releases", "tmp"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let mut service = Service {
            running: Run::new("true").start(),
            dir,
            logs,
            port,
            served: BTreeMap::new(),
            killed: BTreeSet::new(),
        };
        service.release("1", &APP.replace("VERSION", "one"));
        let log = |name: &str| service.logs.path().join(name);
        let port = port.to_string();
        service.running = service
            .command("replsock")
            .args(["env", "--app", "shop", "--"])
            .args(["logreopen", "--tee", "--control", "log.sock", "-l"])
            .arg(log("app.out"))
            .arg("-e")
            .arg(log("app.err"))
            .args(["--", "watchtouch", "tmp/restart.txt", "--signal", "USR2"])
            .args(["--", "heartbeat", "--port", &port, "--path", "/health"])
            .args(["--children", "--stuck", "6s", "--interval", "1s"])
            .args(["--exec", "replsock eval --all --timeout 2s shop 1"])
            .args(["--grace", "2s", "--cooldown", "2s", "--on-fail", HEAL])
            .args(["--", "spawnwork", "-n", "3", "-C", "releases/current"])
            .args(["--control", "app.sock", "--pid-file", "app.pid"])
            .args(["--probation", "500ms", "--stop-timeout", "12s"])
            .args(["--", "node", "app.js"])
            .start();
        // Of two tools, in any order.
        eventually("all serve, and that is seen", || {
            let said = service.said();
            let both = said.contains(": generation-serving ") && said.contains(": service-up ");
            both.then_some(())
        });
        service
    }

    fn command(&self, name: &str) -> Run {
        Run::new(Path::new(PROGRAM).with_file_name(name))
            .dir(self.dir.path())
            .env("PATH", path())
            .env("PORT", self.port.to_string())
            .env("REPLSOCK_DIR", self.dir.path().join("sockets"))
            .env("REPLSOCK_AUDIT", self.dir.path().join("audit"))
    }

    fn ask(&self, words: &[&str]) -> Finished {
        self.command(words[0]).args(&words[1..]).finish()
    }

    /// Waits for an event of any of the tools.
    fn event(&mut self, name: &str) -> String {
        self.running.event(name)
    }

    /// A release is put there, and `current` switched to it in one step.
    fn release(&self, name: &str, app: &str) {
        let releases = self.dir.path().join("releases");
        std::fs::create_dir_all(releases.join(name)).unwrap();
        std::fs::write(releases.join(name).join("app.js"), app).unwrap();
        std::os::unix::fs::symlink(name, releases.join("new")).unwrap();
        std::fs::rename(releases.join("new"), releases.join("current")).unwrap();
    }

    fn load(&self) -> Load {
        let options = Options {
            address: format!("127.0.0.1:{}", self.port),
            keep_alive: 6,
            fresh: 3,
            paths: vec!["/"],
            expect: "hello ",
            timeout: Duration::from_secs(60),
        };
        Load::paced(&options, Duration::from_millis(20))
    }

    fn add(&mut self, tally: &Tally) {
        for (who, count) in &tally.served {
            *self.served.entry(who.clone()).or_default() += count;
        }
    }

    /// Ends a load of which nothing may have failed.
    fn whole(&mut self, load: Load) {
        load.answer(20);
        let tally = load.stop();
        assert_eq!(tally.failures(), 0, "{:?}\n{}", tally.failed, self.said());
        self.add(&tally);
    }

    /// Ends a load of which only what was in the hands of that worker may have failed.
    fn but_of(&mut self, load: Load, pid: &str) {
        load.answer(20);
        let tally = load.stop();
        let others = tally.not_in_hands_of(pid);
        assert_eq!(
            others,
            0,
            "{:?} {:?}\n{}",
            tally.failed,
            tally.broken,
            self.said()
        );
        self.killed.insert(pid.to_owned());
        self.add(&tally);
    }

    /// One request by a client of its own, and the worker that answered it.
    fn request(&mut self, path: &str) -> String {
        let body = kit::http::get(format!("127.0.0.1:{}", self.port), path)
            .unwrap()
            .body;
        let who = body.split_whitespace().nth(1).unwrap().to_owned();
        *self.served.entry(who.clone()).or_default() += 1;
        who
    }

    fn said(&self) -> String {
        self.running.err().join("\n")
    }

    fn rotate(&self) {
        let logs = self.logs.path().display();
        let socket = self.dir.path().join("log.sock");
        let text = format!(
            "{logs}/app.out {logs}/app.err {{\nrotate 100\ncompress\ncreate 640 root root\nsharedscripts\n\
             postrotate\nlogreopen --ctl {} reopen >/dev/null\nendscript\n}}\n",
            socket.display()
        );
        let config = self.dir.write("logrotate.conf", &text);
        let run = Run::new("/usr/sbin/logrotate")
            .args(["-f", "-s"])
            .arg(self.dir.path().join("state"))
            .arg(config)
            .env("PATH", path())
            .finish();
        assert_eq!((run.status, &*run.err), (0, ""));
    }

    /// The numbered lines of each worker in all log files, and how often each number is there.
    fn lines(&self) -> BTreeMap<String, BTreeMap<u64, u32>> {
        let mut found: BTreeMap<String, BTreeMap<u64, u32>> = BTreeMap::new();
        for file in kit::logs::files(self.logs.path(), "app.") {
            let bytes = if file.extension().is_some_and(|ending| ending == "gz") {
                kit::logs::gunzipped(&file)
            } else {
                std::fs::read(&file).unwrap()
            };
            let text = String::from_utf8(bytes).unwrap();
            assert!(
                text.is_empty() || text.ends_with('\n'),
                "{}",
                file.display()
            );
            for line in text.lines() {
                let words: Vec<&str> = line.split(' ').collect();
                match words[..] {
                    ["line", pid, number] => {
                        let of_pid = found.entry(pid.to_owned()).or_default();
                        *of_pid.entry(number.parse().unwrap()).or_default() += 1;
                    }
                    // Events may cite lines; and a bad release has said why.
                    _ => assert!(is_event(line) || !line.contains("line "), "torn: {line}"),
                }
            }
        }
        found
    }

    /// Each line that a worker wrote is there, once, and for each answer there is one.
    fn assert_lines(&self) {
        let found = self.lines();
        for (pid, answers) in &self.served {
            let numbers = found.get(pid).unwrap_or_else(|| panic!("no line of {pid}"));
            let last = *numbers.keys().last().unwrap();
            let twice: Vec<_> = numbers.iter().filter(|(_, times)| **times != 1).collect();
            assert!(twice.is_empty(), "{pid}: {twice:?}");
            assert_eq!(numbers.len() as u64, last, "{pid}: lines are missing");
            if self.killed.contains(pid) {
                assert!(last >= *answers, "{pid}: {last} lines, {answers} answers");
            } else {
                assert_eq!(last, *answers, "{pid}: lines, answers");
            }
        }
    }
}

/// A line of ours: a time, a tool's name and its pid.
fn is_event(line: &str) -> bool {
    let tool = line
        .split(' ')
        .nth(1)
        .and_then(|word| word.split('[').next());
    matches!(
        tool,
        Some("heartbeat" | "logreopen" | "spawnwork" | "watchtouch")
    )
}

#[test]
fn a_monday() {
    let _alone = alone();
    let mut service = Service::start();

    // Deploys, touches and rotations: nothing fails.
    let load = service.load();
    load.answer(100);
    service.release("2", "throw new Error('a bad release');");
    let bad = service.ask(&[
        "spawnwork",
        "--ctl",
        "app.sock",
        "reload",
        "--timeout",
        "60s",
    ]);
    assert_eq!(bad.status, 1, "{}{}", bad.out, bad.err);
    assert!(bad.err.contains("a bad release"), "{}", bad.err);
    service.event("reload-failed");
    service.rotate();
    service.release("3", &APP.replace("VERSION", "three"));
    let good = service.ask(&[
        "spawnwork",
        "--ctl",
        "app.sock",
        "reload",
        "--timeout",
        "60s",
    ]);
    assert_eq!(good.status, 0, "{}{}", good.out, good.err);
    service.event("reload-committed");
    service.rotate();
    touch(service.dir.path().join("tmp/restart.txt"));
    service.event("signal-sent");
    service.rotate();
    service.event("reload-committed");
    load.answer(100);
    service.whole(load);

    // A look inside, and a profile, while it serves and rotates.
    let load = service.load();
    let same = service.ask(&[
        "replsock",
        "eval",
        "--all",
        "--compare",
        "shop",
        "process.version",
    ]);
    assert_eq!(same.status, 0, "{}{}", same.out, same.err);
    let asked = service.ask(&["replsock", "eval", "shop/1", "process.env.WORKER_ID"]);
    assert_eq!(
        (asked.status, asked.out.trim()),
        (0, "'1'"),
        "{}",
        asked.err
    );
    let taken = service.ask(&[
        "replsock",
        "prof",
        "shop/2",
        "--for",
        "2s",
        "-o",
        "p.cpuprofile",
    ]);
    assert_eq!(taken.status, 0, "{}{}", taken.out, taken.err);
    service.rotate();
    service.whole(load);

    // The disk is full for a while, and the logs lose nothing.
    let load = service.load();
    let filler = service.logs.path().join("filler");
    let _ = std::fs::write(&filler, vec![0u8; 32 << 20]);
    service.event("write-failed");
    load.answer(300);
    std::fs::remove_file(&filler).unwrap();
    service.event("write-recovered");
    service.rotate();
    service.whole(load);

    // A worker is killed.
    let load = service.load();
    load.answer(100);
    let victim = service.request("/");
    kill(Pid::from_raw(victim.parse().unwrap()), Signal::SIGKILL).unwrap();
    let ended = service.event("worker-exited");
    assert_eq!(field(&ended, "pid"), victim);
    service.event("worker-ready");
    service.rotate();
    service.but_of(load, &victim);

    // One spins: it alone is ended.
    let load = service.load();
    load.answer(100);
    let spinning = service.request("/spin");
    let ended = service
        .running
        .event_with("worker-exited", &format!("pid={spinning} "));
    assert_eq!(field(&ended, "signal"), "KILL", "{ended}");
    service.event("worker-ready");
    service.rotate();
    service.but_of(load, &spinning);

    // One hangs: it does not answer its REPL, and gets successors.
    let load = service.load();
    load.answer(100);
    let hanging = service.request("/hang");
    service.event("reload-committed");
    service
        .running
        .event_with("worker-exited", &format!("pid={hanging} "));
    service.but_of(load, &hanging);

    // And the end, with requests in hand.
    assert_eq!(service.running.stop(), 0, "{}", service.said());
    service.assert_lines();
    let lost: Vec<String> = service
        .running
        .err()
        .into_iter()
        .filter(|line| line.contains(": lines-lost ") || line.contains(": line-split "))
        .collect();
    assert!(lost.is_empty(), "{lost:?}");
}

/// Each program of the chain, from the one that its supervisor knows to the one that has the workers.
fn chain(service: &Service) -> Vec<(&'static str, i32)> {
    let said = service.running.err();
    let child_of = |tool: &str| -> i32 {
        let line = said.iter().find(|line| {
            line.contains(&format!(" {tool}[")) && line.contains(": command-started ")
        });
        field(line.unwrap(), "pid").parse().unwrap()
    };
    vec![
        ("logreopen", service.running.pid()),
        ("watchtouch", child_of("logreopen")),
        ("heartbeat", child_of("watchtouch")),
        ("spawnwork", child_of("heartbeat")),
    ]
}

fn is_gone(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .is_none_or(|rest| rest.trim().is_empty() || rest.starts_with(" Z"))
}

/// Waits until all of them are gone, with the workers that were there.
fn assert_gone(chain: &[(&str, i32)], workers: &[i32]) {
    let all = chain
        .iter()
        .map(|(_, pid)| *pid)
        .chain(workers.iter().copied());
    for pid in all {
        eventually(&format!("{pid} of {chain:?} ends"), || {
            is_gone(pid).then_some(())
        });
    }
}

#[test]
fn each_signal_goes_where_it_belongs() {
    let _alone = alone();
    let mut service = Service::start();
    for (name, pid) in chain(&service) {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
        assert_eq!(comm.trim(), name);
    }
    let load = service.load();
    load.answer(50);

    // logreopen's own; nobody below hears of it.
    let log = service.logs.path().join("app.out");
    std::fs::rename(&log, log.with_extension("out.1")).unwrap();
    service.running.signal(Signal::SIGHUP);
    let file = format!("file={} ", log.display());
    service.running.event_with("output-reopened", &file);
    // spawnwork's, through three others: HUP would have been the second generation.
    service.running.signal(Signal::SIGUSR2);
    service
        .running
        .event_with("reload-committed", "generation=2 ");
    // watchtouch's own: as if the file was touched.
    service.running.signal(Signal::SIGUSR1);
    service.running.event_with("file-touched", "via=signal");
    service
        .running
        .event_with("reload-committed", "generation=3 ");
    service.running.signal(Signal::SIGTTIN);
    service.running.event_with("workers-changed", "workers=4");
    service.running.signal(Signal::SIGTTOU);
    service.running.event_with("workers-changed", "workers=3");
    // Nobody's.
    service.running.signal(Signal::SIGWINCH);
    load.answer(50);
    service.whole(load);

    let before = chain(&service);
    let workers = children_of(before[3].1);
    service.running.signal(Signal::SIGINT);
    assert_eq!(service.running.end(), 0, "{}", service.said());
    assert_gone(&before, &workers);
    service.assert_lines();
}

#[test]
fn one_status_and_no_one_is_left_behind() {
    let _alone = alone();
    // The supervisor's process is killed: the next one may start at once.
    let mut service = Service::start();
    let before = chain(&service);
    let workers = children_of(before[3].1);
    assert_eq!(workers.len(), 3);
    service.running.signal(Signal::SIGKILL);
    assert_eq!(service.running.end(), 137);
    assert_gone(&before, &workers);

    // The last of the chain is killed: all end, and the supervisor is told the signal.
    let mut service = Service::start();
    let before = chain(&service);
    let workers = children_of(before[3].1);
    kill(Pid::from_raw(before[3].1), Signal::SIGKILL).unwrap();
    assert_eq!(service.running.end(), 137, "{}", service.said());
    assert_gone(&before, &workers);

    // What the innermost cannot start, the outermost says.
    for (command, status) in [("no-such-program", 127), ("/", 126)] {
        let failed = service.ask(&[
            "logreopen",
            "-l",
            "x.out",
            "--",
            "watchtouch",
            "x",
            "--signal",
            "USR2",
            "--",
            "heartbeat",
            "--port",
            "1",
            "--",
            "spawnwork",
            "--",
            command,
        ]);
        assert_eq!(failed.status, status, "{}", failed.err);
    }
    let failed = service.ask(&["logreopen", "-l", "x.out", "--", "watchtouch", "--no-such"]);
    assert_eq!(failed.status, 2, "{}", failed.err);
}
