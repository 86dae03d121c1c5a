//! All five programs as one service, as the article sets them up, and what befalls it.

use crate::load::{Load, Options, Tally};
use crate::mount::Mounted;
use crate::{Dir, Finished, Run, Running, eventually, field, free_port, sibling};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Logs a numbered line for each request before it answers: who has the answer knows that the line was
/// written. On request its event loop sleeps for ever, or spins for ever.
pub const APP: &str = "
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

/// The chain, a load's memory, and the logs.
#[derive(Debug)]
pub struct Service {
    program: PathBuf,
    /// Where it runs.
    pub dir: Dir,
    /// Where it logs to.
    pub logs: Mounted,
    port: u16,
    /// The outermost.
    pub running: Running,
    /// All that the clients saw.
    pub served: BTreeMap<String, u64>,
    /// Workers that were killed: they may have logged a request that nobody has the answer of.
    pub killed: BTreeSet<String>,
    /// Read from log files that are gone.
    harvest: Lines,
}

/// The numbered lines of each worker, and how often each number is there.
type Lines = BTreeMap<String, BTreeMap<u64, u32>>;

/// The other four, built.
pub fn siblings(program: &str) {
    crate::mount::need_root();
    for name in ["heartbeat", "logreopen", "replsock", "watchtouch"] {
        let _ = sibling(program, name);
    }
}

/// Those of the tools, beside one another and before everything else.
fn path(program: &Path) -> std::ffi::OsString {
    let own = program.parent().unwrap().to_owned();
    let path = std::env::var_os("PATH").unwrap();
    std::env::join_paths(std::iter::once(own).chain(std::env::split_paths(&path))).unwrap()
}

impl Service {
    /// Starts it around this app, in which VERSION is to be replaced. A worker is killed when its drain takes longer than
    /// `stop_timeout`.
    #[must_use]
    pub fn start(program: impl AsRef<Path>, app: &str, stop_timeout: &str) -> Service {
        let (dir, port) = (Dir::new(), free_port());
        let logs = Mounted::tmpfs(24 << 20);
        for name in ["releases", "tmp"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let mut service = Service {
            program: program.as_ref().to_owned(),
            running: Run::new("true").start(),
            dir,
            logs,
            port,
            served: BTreeMap::new(),
            killed: BTreeSet::new(),
            harvest: Lines::new(),
        };
        service.release("1", &app.replace("VERSION", "one"));
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
            .args(["--grace", "2s", "--cooldown", "2s", "--cooldown-max", "2s"])
            .args(["--limit", "0", "--on-fail", HEAL])
            .args(["--", "spawnwork", "-n", "3", "-C", "releases/current"])
            .args(["--control", "app.sock", "--pid-file", "app.pid"])
            .args(["--probation", "500ms", "--stop-timeout", stop_timeout])
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

    /// One of the five, as an operator calls it here.
    #[must_use]
    pub fn command(&self, name: &str) -> Run {
        Run::new(self.program.with_file_name(name))
            .dir(self.dir.path())
            .env("PATH", path(&self.program))
            .env("PORT", self.port.to_string())
            .env("REPLSOCK_DIR", self.dir.path().join("sockets"))
            .env("REPLSOCK_AUDIT", self.dir.path().join("audit"))
    }

    /// What it says to that.
    #[must_use]
    pub fn ask(&self, words: &[&str]) -> Finished {
        self.command(words[0]).args(&words[1..]).finish()
    }

    /// Waits for an event of any of the tools.
    pub fn event(&mut self, name: &str) -> String {
        self.running.event(name)
    }

    /// A release is put there, and `current` switched to it in one step.
    pub fn release(&self, name: &str, app: &str) {
        let releases = self.dir.path().join("releases");
        std::fs::create_dir_all(releases.join(name)).unwrap();
        std::fs::write(releases.join(name).join("app.js"), app).unwrap();
        std::os::unix::fs::symlink(name, releases.join("new")).unwrap();
        std::fs::rename(releases.join("new"), releases.join("current")).unwrap();
    }

    /// Clients of all kinds.
    #[must_use]
    pub fn load(&self) -> Load {
        self.load_of(6, 3, Duration::from_millis(20))
    }

    /// So many that keep their connection and so many that do not, each with `pause` between two requests.
    #[must_use]
    pub fn load_of(&self, keep_alive: usize, fresh: usize, pause: Duration) -> Load {
        let options = Options {
            address: format!("127.0.0.1:{}", self.port),
            keep_alive,
            fresh,
            paths: vec!["/"],
            expect: "hello ",
            timeout: Duration::from_secs(60),
        };
        Load::paced(&options, pause)
    }

    fn add(&mut self, tally: &Tally) {
        for (who, count) in &tally.served {
            *self.served.entry(who.clone()).or_default() += count;
        }
    }

    /// Ends a load of which nothing may have failed.
    pub fn whole(&mut self, load: Load) {
        load.answer(20);
        let tally = load.stop();
        assert_eq!(tally.failures(), 0, "{:?}\n{}", tally.failed, self.said());
        self.add(&tally);
    }

    /// Ends a load of which only what was in the hands of that worker may have failed.
    pub fn but_of(&mut self, load: Load, pid: &str) {
        load.answer(20);
        let tally = load.stop();
        let others = tally.not_in_hands_of(pid);
        assert_eq!(
            others,
            0,
            "of {pid}: {:?} {:?}\n{}",
            tally.failed,
            tally.broken,
            self.said()
        );
        self.killed.insert(pid.to_owned());
        self.add(&tally);
    }

    /// One request by a client of its own, and the worker that answered it.
    pub fn request(&mut self, path: &str) -> String {
        let body = crate::http::get(format!("127.0.0.1:{}", self.port), path)
            .unwrap()
            .body;
        let who = body.split_whitespace().nth(1).unwrap().to_owned();
        *self.served.entry(who.clone()).or_default() += 1;
        who
    }

    /// All that came on standard error, but for the app's numbered lines.
    #[must_use]
    pub fn said(&self) -> String {
        let all = self.running.err().into_iter();
        let said: Vec<String> = all.filter(|line| !line.starts_with("line ")).collect();
        said.join("\n")
    }

    /// The real logrotate, now.
    pub fn rotate(&self) {
        let logs = self.logs.path().display();
        let socket = self.dir.path().join("log.sock");
        let text = format!(
            "{logs}/app.out {logs}/app.err {{\nrotate 1000\ncompress\ncreate 640 root root\nsharedscripts\n\
             postrotate\nlogreopen --ctl {} reopen >/dev/null\nendscript\n}}\n",
            socket.display()
        );
        let config = self.dir.write("logrotate.conf", &text);
        let run = Run::new("/usr/sbin/logrotate")
            .args(["-f", "-s"])
            .arg(self.dir.path().join("state"))
            .arg(config)
            .env("PATH", path(&self.program))
            .finish();
        assert_eq!((run.status, &*run.err), (0, ""));
    }

    /// Reads what was rotated away, which then is removed: the disk of a long run is no greater.
    pub fn harvest(&mut self) {
        for file in crate::logs::files(self.logs.path(), "app.") {
            if file.extension().is_some_and(|ending| ending == "gz") {
                read(&file, &mut self.harvest);
                std::fs::remove_file(file).unwrap();
            }
        }
    }

    /// The numbered lines of each worker in all log files, and how often each number is there.
    fn lines(&self) -> Lines {
        let mut found = self.harvest.clone();
        for file in crate::logs::files(self.logs.path(), "app.") {
            read(&file, &mut found);
        }
        found
    }

    /// Each line that a worker wrote is there, once, and for each answer there is one.
    pub fn assert_lines(&self) {
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

fn read(file: &Path, found: &mut Lines) {
    let bytes = if file.extension().is_some_and(|ending| ending == "gz") {
        crate::logs::gunzipped(file)
    } else {
        std::fs::read(file).unwrap()
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

/// Each program of the chain, from the one that its supervisor knows to the one that has the workers.
#[must_use]
pub fn chain(service: &Service) -> Vec<(&'static str, i32)> {
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
pub fn assert_gone(chain: &[(&str, i32)], workers: &[i32]) {
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
