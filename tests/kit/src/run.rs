//! A program under test.

use crate::PATIENCE;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

/// What is to be started.
#[derive(Debug)]
pub struct Run {
    program: OsString,
    args: Vec<OsString>,
    env: BTreeMap<OsString, OsString>,
    dir: Option<PathBuf>,
    stdin: Option<Stdio>,
    out: Option<Stdio>,
    err: Option<Stdio>,
}

impl Run {
    /// A program by its path or name.
    pub fn new(program: impl AsRef<OsStr>) -> Run {
        Run {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: BTreeMap::new(),
            dir: None,
            stdin: None,
            out: None,
            err: None,
        }
    }

    /// More arguments.
    #[must_use]
    pub fn args<T: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = T>) -> Run {
        self.args
            .extend(args.into_iter().map(|word| word.as_ref().to_owned()));
        self
    }

    /// One more argument.
    #[must_use]
    pub fn arg(self, arg: impl AsRef<OsStr>) -> Run {
        self.args([arg])
    }

    /// A variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Run {
        self.env
            .insert(name.as_ref().to_owned(), value.as_ref().to_owned());
        self
    }

    /// Where it runs.
    #[must_use]
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Run {
        self.dir = Some(dir.as_ref().to_owned());
        self
    }

    /// Another standard output than the pipe that [`Running::out`] reads.
    #[must_use]
    pub fn stdout(mut self, out: impl Into<Stdio>) -> Run {
        self.out = Some(out.into());
        self
    }

    /// Another standard error than the pipe that [`Running::err`] reads.
    #[must_use]
    pub fn stderr(mut self, err: impl Into<Stdio>) -> Run {
        self.err = Some(err.into());
        self
    }

    /// Another standard input than /dev/null.
    #[must_use]
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Run {
        self.stdin = Some(stdin.into());
        self
    }

    /// Starts it.
    #[must_use]
    pub fn start(self) -> Running {
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .stdin(self.stdin.unwrap_or_else(Stdio::null));
        // What the tests themselves were started with is none of its business.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("SPAWNWORK_")
                || name.starts_with("LOGREOPEN_")
                || name.starts_with("WATCHTOUCH_")
                || name.starts_with("HEARTBEAT_")
                || name.starts_with("REPLSOCK_")
                || name.starts_with("LISTEN_")
                || name.starts_with("npm_")
                || ["WEB_CONCURRENCY", "NODE_OPTIONS", "NOTIFY_SOCKET"].contains(&&*name)
            {
                command.env_remove(&*name);
            }
        }
        command.envs(&self.env);
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        command.stdout(self.out.unwrap_or_else(Stdio::piped));
        command.stderr(self.err.unwrap_or_else(Stdio::piped));
        // Nobody can execute what is open for writing: what we have just written is, in a child that another of our
        // threads has forked in that moment, until its exec.
        let end = Instant::now() + PATIENCE;
        let mut child = loop {
            match command.spawn() {
                Ok(child) => break child,
                Err(why)
                    if why.kind() == std::io::ErrorKind::ExecutableFileBusy
                        && Instant::now() < end =>
                {
                    std::thread::yield_now();
                }
                Err(why) => panic!("start {}: {why}", self.program.display_lossy()),
            }
        };
        let out = Collected::of(child.stdout.take());
        let err = Collected::of(child.stderr.take());
        Running {
            child,
            status: None,
            out,
            err,
            seen: 0,
            out_seen: 0,
        }
    }

    /// Starts it and waits for its end.
    #[must_use]
    pub fn finish(self) -> Finished {
        let mut running = self.start();
        let status = running.end();
        Finished {
            status,
            out: running.out_to_its_end(),
            err: running.err.to_its_end(),
        }
    }
}

trait DisplayLossy {
    fn display_lossy(&self) -> String;
}

impl DisplayLossy for OsString {
    fn display_lossy(&self) -> String {
        self.to_string_lossy().into_owned()
    }
}

/// How it ended, and all that it said.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status; 128 and the signal's number.
    pub status: i32,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub err: String,
}

/// What came so far, and whether that is all.
type SoFar = (Vec<u8>, bool);

/// What a thread reads from a pipe.
#[derive(Clone, Debug)]
struct Collected(Arc<(Mutex<SoFar>, Condvar)>);

impl Collected {
    fn of(pipe: Option<impl Read + Send + 'static>) -> Collected {
        let here = Collected(Arc::new((
            Mutex::new((Vec::new(), pipe.is_none())),
            Condvar::new(),
        )));
        let there = here.clone();
        if let Some(mut pipe) = pipe {
            std::thread::spawn(move || {
                let mut buffer = vec![0u8; 65536];
                loop {
                    let count = pipe.read(&mut buffer).unwrap_or(0);
                    let mut state = there.0.0.lock().unwrap();
                    state.0.extend_from_slice(&buffer[..count]);
                    state.1 = count == 0;
                    there.0.1.notify_all();
                    if count == 0 {
                        return;
                    }
                }
            });
        }
        here
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.0.lock().unwrap().0).into_owned()
    }

    /// Waits for its end; other processes may hold the pipe, so not for ever.
    fn to_its_end(&self) -> String {
        let state = self.0.0.lock().unwrap();
        let (state, _) = self
            .0
            .1
            .wait_timeout_while(state, PATIENCE, |state| !state.1)
            .unwrap();
        String::from_utf8_lossy(&state.0).into_owned()
    }
}

/// It runs. Dropped, it is stopped, with all that it started.
#[derive(Debug)]
pub struct Running {
    child: Child,
    status: Option<ExitStatus>,
    out: Collected,
    err: Collected,
    seen: usize,
    out_seen: usize,
}

impl Running {
    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Sends a signal, unless it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.status.is_none() {
            kill(Pid::from_raw(self.pid()), signal).unwrap();
        }
    }

    /// All lines of standard error so far.
    #[must_use]
    pub fn err(&self) -> Vec<String> {
        self.err.text().lines().map(str::to_owned).collect()
    }

    /// Standard output so far.
    #[must_use]
    pub fn out(&self) -> String {
        self.out.text()
    }

    /// Standard output, when it has come to its end.
    #[must_use]
    pub fn out_to_its_end(&self) -> String {
        self.out.to_its_end()
    }

    /// The lines of standard error so far, which are not looked at or kept any longer: a run of hours would
    /// hold them all.
    pub fn forget(&mut self) -> String {
        let mut state = self.err.0.0.lock().unwrap();
        let whole = state.0.iter().rposition(|byte| *byte == b'\n');
        let rest = state.0.split_off(whole.map_or(0, |last| last + 1));
        self.seen = 0;
        String::from_utf8_lossy(&std::mem::replace(&mut state.0, rest)).into_owned()
    }

    /// The next line of this event, after the one found last.
    pub fn event(&mut self, name: &str) -> String {
        self.event_with(name, "")
    }

    /// The same, and it holds `part`.
    pub fn event_with(&mut self, name: &str, part: &str) -> String {
        let (head, alone) = (format!(": {name} "), format!(": {name}"));
        self.line(&format!("{name} {part}"), |line| {
            (line.contains(&head) || line.ends_with(&alone)) && line.contains(part)
        })
    }

    /// The next line of standard error that is `wanted`, after the one found last.
    pub fn line(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        next_line(&self.err, &mut self.seen, what, wanted)
    }

    /// The same of standard output.
    pub fn out_line(&mut self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        next_line(&self.out, &mut self.out_seen, what, wanted)
    }

    /// Waits for its end; 128 and the signal's number when one killed it.
    pub fn end(&mut self) -> i32 {
        let status = match self.status {
            Some(status) => status,
            None => {
                let until = Instant::now() + PATIENCE;
                loop {
                    if let Some(status) = self.child.try_wait().unwrap() {
                        break status;
                    }
                    assert!(
                        Instant::now() < until,
                        "pid {} does not end:\n{}",
                        self.pid(),
                        self.err.text()
                    );
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
            }
        };
        self.status = Some(status);
        status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
    }

    /// TERM, and its end.
    pub fn stop(&mut self) -> i32 {
        self.signal(Signal::SIGTERM);
        self.end()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.status.is_some() || self.child.try_wait().is_ok_and(|end| end.is_some()) {
            return;
        }
        // QUIT kills workers at once; whoever does not listen to that is killed, and the workers'
        // groups with it.
        let children = children_of(self.pid());
        let _ = kill(Pid::from_raw(self.pid()), Signal::SIGQUIT);
        let until = Instant::now() + std::time::Duration::from_secs(5);
        while Instant::now() < until {
            if self.child.try_wait().is_ok_and(|end| end.is_some()) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        for child in children {
            let _ = kill(Pid::from_raw(-child), Signal::SIGKILL);
        }
    }
}

fn next_line(
    collected: &Collected,
    seen: &mut usize,
    what: &str,
    wanted: impl Fn(&str) -> bool,
) -> String {
    let end = Instant::now() + PATIENCE;
    let mut state = collected.0.0.lock().unwrap();
    loop {
        while let Some(length) = state.0[*seen..].iter().position(|byte| *byte == b'\n') {
            let line = String::from_utf8_lossy(&state.0[*seen..*seen + length]).into_owned();
            *seen += length + 1;
            if wanted(&line) {
                return line;
            }
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || state.1 {
            let text = String::from_utf8_lossy(&state.0).into_owned();
            drop(state);
            panic!("no line '{what}' in:\n{text}");
        }
        state = collected.0.1.wait_timeout(state, left).unwrap().0;
    }
}

/// The pids of a process's children.
#[must_use]
pub fn children_of(pid: i32) -> Vec<i32> {
    std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect()
}

/// The value of a key in an event line; a quoted one as it stands between its quotes.
#[must_use]
pub fn field(line: &str, key: &str) -> String {
    let from = line
        .find(&format!(" {key}="))
        .unwrap_or_else(|| panic!("no {key}= in: {line}"));
    let rest = &line[from + key.len() + 2..];
    match rest.strip_prefix('"') {
        Some(rest) => rest.split('"').next().unwrap_or_default().to_owned(),
        None => rest.split(' ').next().unwrap_or_default().to_owned(),
    }
}
