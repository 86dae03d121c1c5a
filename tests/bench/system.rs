//! The three that are measured: how each is started, told to reload, and stopped.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs
)]

use crate::{load, proc};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// How long anything is waited for; a slow machine is no failure.
const PATIENCE: Duration = Duration::from_secs(60);
pub const WORKERS: usize = 2;
/// Between two looks at /proc while a respawn is waited for.
const LOOK: Duration = Duration::from_micros(50);

pub type Outcome<T> = Result<T, String>;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Spawnwork,
    Cluster,
    Pm2,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Spawnwork, Self::Cluster, Self::Pm2];

    pub fn name(self) -> &'static str {
        match self {
            Self::Spawnwork => "spawnwork",
            Self::Cluster => "node cluster",
            Self::Pm2 => "PM2",
        }
    }
}

/// What is there to be run.
pub struct Programs {
    pub spawnwork: PathBuf,
    pub pm2: PathBuf,
    /// This directory, with hello.js and cluster.js.
    pub bench: PathBuf,
    /// For what they write.
    pub scratch: PathBuf,
}

/// The masters that run, for the end by a signal: PM2's daemon would outlive this program.
static RUNNING: Mutex<Vec<i32>> = Mutex::new(Vec::new());

/// SIGINT and SIGTERM stop what was started, and remove `scratch`.
pub fn stop_all_on_signals(scratch: PathBuf) {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    signals.thread_block().expect("the signal mask");
    std::thread::spawn(move || {
        let signal = signals.wait().expect("sigwait");
        let running = RUNNING.lock().unwrap().clone();
        for master in &running {
            let _ = kill(Pid::from_raw(*master), Signal::SIGTERM);
        }
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until && running.iter().any(|master| proc::runs(*master)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = fs::remove_dir_all(scratch);
        std::process::exit(128 + signal as i32);
    });
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) -> Outcome<()> {
    let until = Instant::now() + PATIENCE;
    while !done() {
        if Instant::now() > until {
            return Err(format!("waited {PATIENCE:?} for {what}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Without what would make one of them behave in another way than the others.
fn command(program: impl AsRef<std::ffi::OsStr>, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(directory).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        let prefixes = ["SPAWNWORK_", "LISTEN_", "NODE_", "PM2_"];
        if prefixes.iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(&*name);
        }
    }
    command
}

pub struct System<'a> {
    pub kind: Kind,
    pub port: u16,
    pub master: i32,
    programs: &'a Programs,
    directory: PathBuf,
    /// None for PM2, whose daemon is nobody's child.
    child: Option<Child>,
    lines: Receiver<String>,
    last: VecDeque<String>,
}

impl<'a> System<'a> {
    pub fn start(kind: Kind, programs: &'a Programs) -> Outcome<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|listener| listener.local_addr())
            .map_err(|why| format!("a free port: {why}"))?
            .port();
        let directory = programs.scratch.join(format!("{port}"));
        fs::create_dir_all(&directory).map_err(|why| format!("{}: {why}", directory.display()))?;
        let (sender, lines) = channel();
        let mut system = Self {
            kind,
            port,
            master: 0,
            programs,
            directory,
            child: None,
            lines,
            last: VecDeque::new(),
        };
        system.launch(sender)?;
        RUNNING.lock().unwrap().push(system.master);
        let ready = wait_until("the first answer", || {
            system.workers().len() == WORKERS && load::answers(port)
        });
        ready.map_err(|why| system.explain(&why))?;
        if kind == Kind::Spawnwork {
            system.wait_line("generation-serving", &["worker-failed"])?;
        }
        Ok(system)
    }

    fn launch(&mut self, sender: Sender<String>) -> Outcome<()> {
        let hello = self.programs.bench.join("hello.js");
        let mut command = match self.kind {
            Kind::Spawnwork => {
                let mut command = command(&self.programs.spawnwork, &self.directory);
                command
                    .args(["-n", "2", "--respawn-limit", "0", "--log-format", "text"])
                    .args(["--", "node"])
                    .arg(hello);
                command
            }
            Kind::Cluster => {
                let mut command = command("node", &self.directory);
                command
                    .arg(self.programs.bench.join("cluster.js"))
                    .arg(hello);
                command
            }
            Kind::Pm2 => {
                let hello = hello.to_string_lossy();
                let started = self.pm2(&["start", &hello, "-i", "2", "--name", "hello"]);
                // Also where that failed: there may be a daemon, which is stopped then.
                let pid = fs::read_to_string(self.directory.join("pm2.pid"));
                self.master = pid
                    .ok()
                    .and_then(|pid| pid.trim().parse().ok())
                    .unwrap_or(0);
                started?;
                if self.master == 0 {
                    return Err("its daemon wrote no pid".into());
                }
                return Ok(());
            }
        };
        let mut child = command
            .env("PORT", self.port.to_string())
            .process_group(0)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|why| format!("could not start: {why}"))?;
        self.master = i32::try_from(child.id()).unwrap();
        drain(child.stdout.take().unwrap(), sender.clone());
        drain(child.stderr.take().unwrap(), sender);
        self.child = Some(child);
        Ok(())
    }

    /// Runs PM2's command line to its end.
    fn pm2(&self, arguments: &[&str]) -> Outcome<()> {
        if !self.programs.pm2.exists() {
            return Err("not installed: run 'tests/setup.sh bench'".into());
        }
        // A file, not a pipe: the daemon could hold that open.
        let output = self.directory.join("output");
        let file = File::create(&output).map_err(|why| format!("a file for output: {why}"))?;
        let mut child = command("node", &self.directory)
            .arg(&self.programs.pm2)
            .args(arguments)
            .env("PORT", self.port.to_string())
            .env("PM2_HOME", &self.directory)
            .env("PM2_DISABLE_VERSION_CHECK", "true")
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .map_err(|why| format!("could not start: {why}"))?;
        let mut status = None;
        let ended = wait_until("pm2's command line", || {
            status = child.try_wait().unwrap_or_default();
            status.is_some()
        });
        if status.is_none() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let text = || {
            let text = fs::read_to_string(&output).unwrap_or_default();
            let line = text.lines().rev().find(|line| !line.trim().is_empty());
            line.unwrap_or("no output").trim().to_owned()
        };
        ended?;
        match status {
            Some(status) if status.success() => Ok(()),
            _ => Err(format!("pm2 {} failed: {}", arguments[0], text())),
        }
    }

    /// `why`, with the last lines that were written.
    fn explain(&mut self, why: &str) -> String {
        while let Ok(line) = self.lines.try_recv() {
            self.last.push_back(line);
        }
        let skip = self.last.len().saturating_sub(5);
        let lines: Vec<&str> = self.last.iter().skip(skip).map(String::as_str).collect();
        if lines.is_empty() {
            why.to_owned()
        } else {
            format!("{why}; its last lines: {}", lines.join(" | "))
        }
    }

    /// Waits for a line with `wanted` in it.
    fn wait_line(&mut self, wanted: &str, bad: &[&str]) -> Outcome<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                return Err(self.explain(&format!("no line with '{wanted}'")));
            };
            let found = line.contains(wanted);
            let failed = bad.iter().any(|bad| line.contains(bad));
            if self.last.len() == 20 {
                self.last.pop_front();
            }
            self.last.push_back(line);
            if failed {
                return Err(self.explain("failed"));
            } else if found {
                return Ok(());
            }
        }
    }

    /// The workers that have made it to their exec, oldest first, also those that were told to leave.
    pub fn workers(&self) -> Vec<i32> {
        let own = proc::cmdline(self.master);
        let mut list = proc::children(self.master);
        list.retain(|child| {
            let line = proc::cmdline(*child);
            // PM2 runs the app inside of a file of its own, and later sets the title to the app's name.
            let has = |name: &str| line.windows(name.len()).any(|part| part == name.as_bytes());
            line != own && (has("hello.js") || has("ProcessContainer"))
        });
        list
    }

    /// From a kill -9, and from the end that it makes, to the exec of the next worker.
    pub fn respawn(&mut self) -> Outcome<(Duration, Duration)> {
        let before = self.workers();
        let &[oldest, _] = before.as_slice() else {
            return Err(self.explain(&format!("{} workers before a kill", before.len())));
        };
        let began = Instant::now();
        let mut died = None;
        kill(Pid::from_raw(oldest), Signal::SIGKILL).map_err(|why| format!("kill: {why}"))?;
        loop {
            // The kernel takes a killed process down first, for milliseconds with a heap like node's; nobody
            // can learn of the end before that is done.
            if died.is_none() && !proc::runs(oldest) {
                died = Some(Instant::now());
            }
            if self.workers().iter().any(|pid| !before.contains(pid)) {
                let now = Instant::now();
                return Ok((now - began, now - died.unwrap_or(now)));
            }
            if began.elapsed() > PATIENCE {
                return Err(self.explain("a killed worker did not come back"));
            }
            std::thread::sleep(LOOK);
        }
    }

    pub fn reload(&mut self) -> Outcome<()> {
        if self.kind == Kind::Pm2 {
            return self.pm2(&["reload", "hello"]);
        }
        kill(Pid::from_raw(self.master), Signal::SIGUSR2).map_err(|why| format!("kill: {why}"))?;
        if self.kind == Kind::Spawnwork {
            self.wait_line("reload-committed", &["reload-failed", "reload-refused"])
        } else {
            self.wait_line("reloaded", &[])
        }
    }
}

impl Drop for System<'_> {
    fn drop(&mut self) {
        let master = Pid::from_raw(self.master);
        if let Some(child) = &mut self.child {
            let _ = kill(master, Signal::SIGTERM);
            let ended = wait_until("its end", || {
                child.try_wait().is_ok_and(|end| end.is_some())
            });
            if ended.is_err() {
                let _ = child.kill();
                let _ = child.wait();
            }
        } else if self.master > 0 {
            let _ = self.pm2(&["kill"]);
            let gone = wait_until("its end", || !proc::runs(self.master));
            if gone.is_err() {
                let _ = kill(master, Signal::SIGKILL);
            }
        }
        RUNNING.lock().unwrap().retain(|pid| *pid != self.master);
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Reads to the end, so that the writer is never held up.
fn drain(from: impl Read + Send + 'static, to: Sender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            let _ = to.send(line);
        }
    });
}
