//! `make bench`, sixth part: replsock beside socat, dtach and node's own repl over net.
//!
//! A command on a socket: the round trip of 16 bytes through `cat`, how fast what a command writes arrives, what a
//! hundred sessions cost in memory. Then the app: its requests a second without and with a session, its loop beside
//! clients that do not behave, its memory with the agent; and the repl of the article, over net, beside it. What is
//! compared takes turns in one run, and the medians count. A peer that is not installed is left out, and named. No
//! duration is judged.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs
)]

// Each part of the bench uses some of them.
#[allow(dead_code)]
mod load;
#[allow(dead_code)]
mod proc;
mod report;

use kit::{Dir, Run, Running, eventually};
use load::{Load, Shape};
use report::{less, more};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;
const TRIPS: usize = 2000;
const SESSIONS: usize = 100;
/// The load on the app, for one figure.
const LOAD: Duration = Duration::from_secs(3);
const PAIRS: usize = 7;

fn program() -> PathBuf {
    let root = kit::root().canonicalize().unwrap();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from);
    let ours = root.join(target).join("release/replsock");
    assert!(
        ours.exists(),
        "{} is missing: run 'make' first",
        ours.display()
    );
    ours
}

fn installed(program: &str) -> bool {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("command -v {program}")]);
    shell.stdout(Stdio::null()).status().unwrap().success()
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn at(sorted: &[f64], part: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * part) as usize]
}

// ---- a command on a socket ----

/// How a client speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Speech {
    Plain,
    Frames,
    /// Packets of ten bytes: a type, a length, eight bytes.
    Dtach,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Pipes,
    Terminal,
}

struct Kind {
    name: &'static str,
    needs: &'static str,
    by: By,
    speech: Speech,
    /// In the shell, with `$OURS`, `$SOCK` and `$COMMAND`.
    command: &'static str,
}

const KINDS: [Kind; 8] = [
    Kind {
        name: "replsock --pipe",
        needs: "true",
        by: By::Pipes,
        speech: Speech::Plain,
        command: "exec \"$OURS\" serve -q --max-clients 200 --pipe \"$SOCK\" -- \"$COMMAND\"",
    },
    Kind {
        name: "replsock --pipe, frames",
        needs: "true",
        by: By::Pipes,
        speech: Speech::Frames,
        command: "exec \"$OURS\" serve -q --max-clients 200 --pipe \"$SOCK\" -- \"$COMMAND\"",
    },
    Kind {
        name: "socat EXEC,pipes",
        needs: "socat",
        by: By::Pipes,
        speech: Speech::Plain,
        command: "exec socat \"UNIX-LISTEN:$SOCK,fork\" \"EXEC:$COMMAND,pipes\"",
    },
    Kind {
        name: "socat EXEC",
        needs: "socat",
        by: By::Pipes,
        speech: Speech::Plain,
        command: "exec socat \"UNIX-LISTEN:$SOCK,fork\" \"EXEC:$COMMAND\"",
    },
    Kind {
        name: "replsock --pty",
        needs: "true",
        by: By::Terminal,
        speech: Speech::Plain,
        command: "exec \"$OURS\" serve -q --max-clients 200 --pty \"$SOCK\" -- \"$COMMAND\"",
    },
    Kind {
        name: "replsock --pty, frames",
        needs: "true",
        by: By::Terminal,
        speech: Speech::Frames,
        command: "exec \"$OURS\" serve -q --max-clients 200 --pty \"$SOCK\" -- \"$COMMAND\"",
    },
    Kind {
        name: "socat EXEC,pty",
        needs: "socat",
        by: By::Terminal,
        speech: Speech::Plain,
        command: "exec socat \"UNIX-LISTEN:$SOCK,fork\" \"EXEC:$COMMAND,pty,raw,echo=0\"",
    },
    Kind {
        name: "dtach",
        needs: "dtach",
        by: By::Terminal,
        speech: Speech::Dtach,
        command: "exec dtach -N \"$SOCK\" \"$COMMAND\"",
    },
];

/// It is ended with the bench, and all that it started.
struct Server {
    child: Child,
    socket: PathBuf,
    speech: Speech,
}

impl Server {
    fn start(kind: &Kind, place: &Path, number: usize, command: &Path) -> Server {
        use std::os::unix::process::CommandExt;
        let socket = place.join(format!("s{number}"));
        let child = Command::new("sh")
            .args(["-c", kind.command])
            .env("OURS", program())
            .env("SOCK", &socket)
            .env("COMMAND", command)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        eventually(kind.name, || socket.exists().then_some(()));
        Server {
            child,
            socket,
            speech: kind.speech,
        }
    }

    fn connect(&self) -> Client {
        let stream = eventually("a connection", || UnixStream::connect(&self.socket).ok());
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        let mut client = Client {
            stream,
            speech: self.speech,
            bytes: Vec::new(),
        };
        match self.speech {
            Speech::Plain => {}
            Speech::Frames => {
                let hello = b"{\"version\":1,\"mode\":\"auto\"}";
                let mut bytes = vec![0, 1, hello.len() as u8, 0, 0];
                bytes.extend_from_slice(hello);
                client.stream.write_all(&bytes).unwrap();
            }
            Speech::Dtach => {
                client.packet(1, b"");
                // Its command began with the server: what it said first is gone.
                std::thread::sleep(Duration::from_millis(300));
                return client;
            }
        }
        // It is ready, and its terminal set.
        client.receive(1);
        client
    }

    fn all(&self) -> Vec<i32> {
        let mut list = vec![self.child.id() as i32];
        let mut next = 0;
        while let Some(pid) = list.get(next) {
            list.extend(proc::children(*pid));
            next += 1;
        }
        list
    }

    /// RSS and PSS of the server's own processes, not of what they serve, in kB; how many they are.
    fn memory(&self, name: &str) -> (u64, u64, usize) {
        let own = |pid: &i32| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
        };
        let list: Vec<i32> = self.all().into_iter().filter(own).collect();
        let sum = |of: fn(i32) -> Option<u64>| list.iter().filter_map(|pid| of(*pid)).sum();
        (sum(proc::rss), sum(proc::pss), list.len())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for pid in self.all() {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.socket);
    }
}

struct Client {
    stream: UnixStream,
    speech: Speech,
    bytes: Vec<u8>,
}

impl Client {
    fn packet(&mut self, kind: u8, bytes: &[u8]) {
        let mut packet = [0u8; 10];
        packet[0] = kind;
        packet[1] = bytes.len() as u8;
        packet[2..2 + bytes.len()].copy_from_slice(bytes);
        self.stream.write_all(&packet).unwrap();
    }

    fn send(&mut self, bytes: &[u8]) {
        match self.speech {
            Speech::Plain => self.stream.write_all(bytes).unwrap(),
            Speech::Frames => {
                let mut frame = vec![2, bytes.len() as u8, 0, 0];
                frame.extend_from_slice(bytes);
                self.stream.write_all(&frame).unwrap();
            }
            Speech::Dtach => bytes.chunks(8).for_each(|part| self.packet(0, part)),
        }
    }

    /// So many bytes of the command's.
    fn receive(&mut self, mut count: u64) {
        let mut buffer = vec![0u8; 256 << 10];
        while count > 0 {
            let read = self.stream.read(&mut buffer).unwrap();
            assert!(read > 0, "it ended");
            if self.speech == Speech::Dtach {
                // It may be late to say that it is ready; nothing else has this letter.
                let own = buffer[..read].iter().filter(|byte| **byte != b'R');
                count = count
                    .checked_sub(own.count() as u64)
                    .expect("too much came");
                continue;
            }
            if self.speech != Speech::Frames {
                count = count.checked_sub(read as u64).expect("too much came");
                continue;
            }
            self.bytes.extend_from_slice(&buffer[..read]);
            let mut from = 0;
            while let Some([kind, a, b, c, rest @ ..]) = self.bytes.get(from..) {
                let length = u32::from_le_bytes([*a, *b, *c, 0]) as usize;
                if rest.len() < length {
                    break;
                }
                if *kind == 2 {
                    count = count.checked_sub(length as u64).expect("too much came");
                }
                from += 4 + length;
            }
            self.bytes.drain(..from);
        }
    }
}

fn script(dir: &Dir, name: &str, text: &str) -> PathBuf {
    let path = dir.write(name, &format!("#!/bin/sh\n{text}\n"));
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

fn kinds() -> Vec<&'static Kind> {
    let mut list: Vec<&Kind> = KINDS.iter().collect();
    list.retain(|kind| {
        let there = installed(kind.needs);
        if !there {
            println!("{:26} is not installed", kind.name);
            report::absent("repl", kind.name, "not installed");
        }
        there
    });
    list
}

/// The median of ours beside the best of the peers'.
fn verdict(rows: &[(&Kind, f64)], what: &str, better: fn(f64, f64) -> bool) {
    for by in [By::Pipes, By::Terminal] {
        let of = |ours: bool| {
            rows.iter()
                .filter(move |(kind, _)| kind.by == by && kind.name.starts_with("replsock") == ours)
        };
        let best = of(false)
            .map(|(_, value)| *value)
            .reduce(|a, b| if better(a, b) { a } else { b });
        for (kind, value) in of(true) {
            if let Some(best) = best {
                println!(
                    "{}: {what} {:.2} of the best peer's",
                    kind.name,
                    value / best
                );
            }
        }
    }
}

fn round_trips(dir: &Dir, place: &Path) {
    let command = script(
        dir,
        "echo",
        "stty raw -echo 2>/dev/null; printf R; exec cat",
    );
    let kinds = kinds();
    let servers: Vec<Server> = (kinds.iter().enumerate())
        .map(|(number, kind)| Server::start(kind, place, number, &command))
        .collect();
    let mut clients: Vec<Client> = servers.iter().map(Server::connect).collect();
    let mut all: Vec<Vec<(f64, f64)>> = vec![Vec::new(); kinds.len()];
    for round in 0..=ROUNDS {
        for step in 0..kinds.len() {
            // Each is first once.
            let which = (round + step) % kinds.len();
            let client = &mut clients[which];
            let mut took: Vec<f64> = (0..TRIPS)
                .map(|_| {
                    let begun = Instant::now();
                    client.send(b"0123456789abcdef");
                    client.receive(16);
                    begun.elapsed().as_secs_f64() * 1e6
                })
                .collect();
            took.sort_by(f64::total_cmp);
            if round > 0 {
                all[which].push((at(&took, 0.5), at(&took, 0.99)));
            }
        }
    }
    println!("round trip of 16 bytes, us      p50      p99   ({ROUNDS} rounds of {TRIPS})");
    let mut rows = Vec::new();
    for (kind, rounds) in kinds.iter().zip(&all) {
        let of = |get: fn(&(f64, f64)) -> f64| median(&rounds.iter().map(get).collect::<Vec<_>>());
        let (p50, p99) = (of(|one| one.0), of(|one| one.1));
        println!("{:26} {p50:8.1} {p99:8.1}", kind.name);
        let each: Vec<f64> = rounds.iter().map(|one| one.0).collect();
        let name = match kind.by {
            By::Pipes => "round trip of 16 bytes, pipes",
            By::Terminal => "round trip of 16 bytes, a terminal",
        };
        less("repl", name, "us", kind.name, &each);
        rows.push((*kind, p50));
    }
    verdict(&rows, "p50", |a, b| a < b);
}

fn throughput(dir: &Dir, place: &Path) {
    let (mut rows, kinds) = (Vec::new(), kinds());
    let megabytes = |kind: &Kind| match kind.by {
        By::Pipes => 512u64,
        By::Terminal => 96,
    };
    let mut all: Vec<Vec<f64>> = vec![Vec::new(); kinds.len()];
    for round in 0..ROUNDS {
        for step in 0..kinds.len() {
            let which = (round + step) % kinds.len();
            let kind = kinds[which];
            let count = megabytes(kind);
            // dtach's command goes on until it is told: one server for each round.
            let text = format!(
                "stty raw -echo 2>/dev/null; printf R; head -c 1 >/dev/null; exec dd if=/dev/zero bs=64k count={} status=none",
                count * 16
            );
            let command = script(dir, &format!("pour{count}"), &text);
            let server = Server::start(kind, place, 100 + round * 10 + which, &command);
            let mut client = server.connect();
            client.send(b"x");
            let begun = Instant::now();
            client.receive(count << 20);
            all[which].push(count as f64 / begun.elapsed().as_secs_f64());
        }
    }
    println!("from a command to its client, MiB/s (median of {ROUNDS}; lowest, highest)");
    for (kind, rates) in kinds.iter().zip(&all) {
        let mut sorted = rates.clone();
        sorted.sort_by(f64::total_cmp);
        let name = match kind.by {
            By::Pipes => "from a command to its client, pipes",
            By::Terminal => "from a command to its client, a terminal",
        };
        more("repl", name, "MiB/s", kind.name, rates);
        println!(
            "{:26} {:8.0} {:8.0} {:8.0}",
            kind.name,
            median(rates),
            sorted[0],
            sorted[sorted.len() - 1]
        );
        rows.push((*kind, median(rates)));
    }
    verdict(&rows, "throughput", |a, b| a > b);
}

fn sessions(dir: &Dir, place: &Path) {
    let command = script(
        dir,
        "idle",
        "stty raw -echo 2>/dev/null; printf R; exec cat",
    );
    println!(
        "{SESSIONS} sessions                RSS, kB   PSS, kB   processes (sums, without what is served)"
    );
    for kind in kinds() {
        let name = kind.name.split(' ').next().unwrap();
        let (mut servers, mut clients) = (Vec::new(), Vec::new());
        if kind.speech == Speech::Dtach {
            // One for each session.
            servers.extend((0..SESSIONS).map(|at| Server::start(kind, place, 1000 + at, &command)));
        } else {
            servers.push(Server::start(kind, place, 900, &command));
            let before = servers[0].memory(name);
            clients.extend((0..SESSIONS).map(|_| servers[0].connect()));
            println!(
                "{:26} {:9} {:9} {:9}   before",
                kind.name, before.0, before.1, before.2
            );
        }
        let memory = servers.iter().map(|server| server.memory(name));
        let (rss, pss, count) = memory.fold((0, 0, 0), |sum, one| {
            (sum.0 + one.0, sum.1 + one.1, sum.2 + one.2)
        });
        println!("{:26} {rss:9} {pss:9} {count:9}", kind.name);
        less(
            "repl",
            "a hundred sessions: RSS",
            "kB",
            kind.name,
            &[rss as f64],
        );
        drop(clients);
    }
    println!("(goal: RSS under 4096 kB, in one process)");
}

// ---- the app ----

/// The article's: a repl for whoever connects.
const SNIPPET: &str = "require('net').createServer((socket) => {\n\
    const session = require('repl').start({ prompt: 'app> ', input: socket, output: socket, terminal: true, useGlobal: false });\n\
    session.on('exit', () => socket.end());\n\
    socket.on('error', () => {}); session.on('error', () => {});\n\
    }).listen(Number(process.env.REPL_PORT), '127.0.0.1');\n";

struct App {
    running: Running,
    port: u16,
    repl: u16,
    place: PathBuf,
}

impl App {
    fn start(dir: &Dir, way: &str) -> App {
        let (port, repl) = (kit::free_port(), kit::free_port());
        let hello = kit::root()
            .canonicalize()
            .unwrap()
            .join("tests/bench/hello.js");
        let place = dir.path().join("sockets");
        let run = match way {
            "agent" => Run::new(program()).args(["env", "--app", "shop", "--", "node"]),
            "snippet" => Run::new("node")
                .arg("-r")
                .arg(dir.write("snippet.js", SNIPPET)),
            _ => Run::new("node"),
        };
        let running = run
            .arg(hello)
            .dir(dir.path())
            .env("PORT", port.to_string())
            .env("REPL_PORT", repl.to_string())
            .env("REPLSOCK_DIR", &place)
            .start();
        eventually("the app", || load::answers(port).then_some(()));
        App {
            running,
            port,
            repl,
            place,
        }
    }

    /// A session that has evaluated something, and stays.
    fn session(&self) -> Session {
        let path = self.place.join(format!("shop/{}.sock", self.running.pid()));
        let mut session = Session::Ours(
            eventually("its socket", || UnixStream::connect(&path).ok()),
            0,
        );
        session.evaluate();
        session
    }

    fn their_session(&self) -> Session {
        let stream = TcpStream::connect(("127.0.0.1", self.repl)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut session = Session::Theirs(stream);
        session.until(&[b"app> "]);
        session.evaluate();
        session
    }

    /// Requests a second, and what one costs the app of a processor, in us: that is not touched by whatever else
    /// the machine does.
    fn rate(&self) -> (f64, f64) {
        let before = ran(self.running.pid());
        let load = Load::start(self.port, Shape::KeepAlive);
        std::thread::sleep(LOAD);
        let (count, rate) = load.finish();
        assert_eq!(count.failed(), 0, "{count}");
        let ran = ran(self.running.pid()) - before;
        (rate, ran.as_secs_f64() * 1e6 / count.requests as f64)
    }
}

/// What all threads of a process have run.
fn ran(pid: i32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let nanoseconds = tasks.filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}

enum Session {
    Ours(UnixStream, u64),
    Theirs(TcpStream),
}

impl Session {
    /// Reads until these have come, one behind the other.
    fn until(&mut self, ends: &[&[u8]]) {
        let mut all: Vec<u8> = Vec::new();
        let mut buffer = [0u8; 4096];
        let came = |all: &[u8]| {
            let mut from = 0;
            ends.iter().all(|end| {
                let rest = &all[from..];
                let found = rest.windows(end.len()).position(|part| part == *end);
                from += found.map_or(0, |at| at + end.len());
                found.is_some()
            })
        };
        while !came(&all) {
            let count = match self {
                Session::Ours(stream, _) => stream.read(&mut buffer).unwrap(),
                Session::Theirs(stream) => stream.read(&mut buffer).unwrap(),
            };
            assert!(count > 0, "the session ended");
            all.extend_from_slice(&buffer[..count]);
        }
    }

    fn evaluate(&mut self) {
        match self {
            Session::Ours(stream, id) => {
                *id += 1;
                let line = format!(
                    "{{\"id\":{id},\"op\":\"eval\",\"code\":\"1+1\",\"mode\":\"text\",\"timeout_ms\":5000}}\n"
                );
                let mut bytes = if *id == 1 { vec![0] } else { Vec::new() };
                bytes.extend([2, line.len() as u8, 0, 0]);
                bytes.extend_from_slice(line.as_bytes());
                stream.write_all(&bytes).unwrap();
                let end = format!("\"id\":{id},\"ok\":true");
                self.until(&[end.as_bytes()]);
            }
            Session::Theirs(stream) => {
                stream.write_all(b"1+1\n").unwrap();
                // What was typed is shown; then its value, in colour or not, and the prompt.
                self.until(&[b"\r\n", b"2", b"app> "]);
            }
        }
    }
}

fn requests(dir: &Dir) {
    let (bare, ours) = (App::start(dir, "bare"), App::start(dir, "agent"));
    for app in [&bare, &ours, &ours, &bare] {
        let _ = app.rate();
    }
    let mut rates: Vec<[(f64, f64); 5]> = Vec::new();
    for round in 0..ROUNDS {
        let without = |app: &App| app.rate();
        let with = |app: &App| {
            let _session = app.session();
            app.rate()
        };
        // Each is first as often.
        let (plain, idle, open) = if round % 2 == 0 {
            let plain = without(&bare);
            let idle = without(&ours);
            (plain, idle, with(&ours))
        } else {
            let open = with(&ours);
            let idle = without(&ours);
            (without(&bare), idle, open)
        };
        // Theirs stays slow when it was slow once: another process each time.
        let theirs = App::start(dir, "snippet");
        let _ = theirs.rate();
        let before = theirs.rate();
        let session = theirs.their_session();
        let after = theirs.rate();
        drop(session);
        rates.push([plain, idle, open, before, after]);
    }
    let of = |at: usize| median(&rates.iter().map(|row| row[at].0).collect::<Vec<_>>());
    let part = |a: usize, b: usize| {
        let spread = |get: fn(&(f64, f64)) -> f64| {
            let mut parts: Vec<f64> = rates
                .iter()
                .map(|row| get(&row[a]) / get(&row[b]))
                .collect();
            parts.sort_by(f64::total_cmp);
            let (least, most) = (parts[0], parts[parts.len() - 1]);
            format!("{:.3} [{least:.3}-{most:.3}]", median(&parts))
        };
        format!(
            "{}; in speed by its own processor time {}",
            spread(|one| one.0),
            spread(|one| 1.0 / one.1)
        )
    };
    for (at, subject) in [
        (0, "bare node"),
        (1, "replsock's agent, no session"),
        (2, "replsock's agent, a session open"),
        (3, "node's repl over net, no session"),
        (4, "node's repl over net, a session open"),
    ] {
        let all: Vec<f64> = rates.iter().map(|row| row[at].0).collect();
        more("app", "requests", "1/s", subject, &all);
        let all: Vec<f64> = rates.iter().map(|row| row[at].1).collect();
        less("app", "CPU a request", "us", subject, &all);
    }
    println!("requests/s of the app, medians of {} rounds", rates.len());
    println!("bare node                  {:8.0}", of(0));
    println!(
        "with the agent             {:8.0}   of bare node {}",
        of(1),
        part(1, 0)
    );
    println!(
        "and a session open         {:8.0}   of without {} (goal: 0.97)",
        of(2),
        part(2, 1)
    );
    println!("with node's repl over net  {:8.0}", of(3));
    println!(
        "and a session open         {:8.0}   of without {}",
        of(4),
        part(4, 3)
    );

    let theirs = App::start(dir, "snippet");
    let mut pair = [ours.session(), theirs.their_session()];
    let mut took = [Vec::new(), Vec::new()];
    for round in 0..100 {
        for step in 0..2 {
            let which = (round + step) % 2;
            let begun = Instant::now();
            pair[which].evaluate();
            took[which].push(begun.elapsed().as_secs_f64() * 1e6);
            // A person is slower; the agent gives its clients 2 % of the loop's time.
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    less("app", "1+1 in the idle app", "us", "replsock", &took[0]);
    less(
        "app",
        "1+1 in the idle app",
        "us",
        "node's repl over net",
        &took[1],
    );
    println!(
        "1+1 in the idle app, us: replsock p50 {:.0}, node's repl over net {:.0}",
        median(&took[0]),
        median(&took[1])
    );
}

/// Counts its loop's turns for two seconds for each line on its standard input.
const LOOP: &str = "let turns = 0; let end = 0;\n\
    const turn = () => { turns += 1; if (Date.now() < end) return setTimeout(turn, 1); console.log(turns); };\n\
    process.stdin.on('data', () => { turns = 0; end = Date.now() + 2000; turn(); });\n";

fn turns(dir: &Dir) {
    let place = dir.path().join("sockets");
    let mut child = Command::new(program())
        .args(["env", "--app", "loop", "--", "node", "-e", LOOP])
        .env("REPLSOCK_DIR", &place)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let socket = place.join(format!("loop/{}.sock", child.id()));
    let mut to = child.stdin.take().unwrap();
    let mut from = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut count = || -> f64 {
        to.write_all(b"x").unwrap();
        from.next().unwrap().unwrap().parse().unwrap()
    };
    let connect = || eventually("its socket", || UnixStream::connect(&socket).ok());
    let names = [
        "idle",
        "100 clients that say nothing",
        "one that asks and never reads",
        "one that is stopped (SIGSTOP)",
        "a flood of evaluations",
    ];
    let _ = (connect(), count());
    let mut all: Vec<Vec<f64>> = vec![Vec::new(); names.len()];
    for _ in 0..ROUNDS {
        for (which, rates) in all.iter_mut().enumerate() {
            let mut crowd: Vec<UnixStream> = Vec::new();
            let mut stopped = None;
            match which {
                1 => crowd.extend((0..100).map(|_| connect())),
                2 => {
                    let mut deaf = connect();
                    deaf.set_nonblocking(true).unwrap();
                    let _ = (0..500)
                        .map_while(|_| deaf.write(b"'x'.repeat(1e5)\n").ok())
                        .count();
                    crowd.push(deaf);
                }
                3 => {
                    let client = Command::new(program())
                        .args(["eval", "--raw", "--limit", "0", "loop", "'x'.repeat(3e7)"])
                        .env("REPLSOCK_DIR", &place)
                        .stdout(Stdio::piped())
                        .stderr(Stdio::null())
                        .spawn()
                        .unwrap();
                    let pid = nix::unistd::Pid::from_raw(client.id() as i32);
                    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
                    stopped = Some(client);
                }
                _ => {}
            }
            // What they may have at once is spent: how it goes on is meant.
            std::thread::sleep(Duration::from_secs(1));
            if which == 4 {
                let stop = std::sync::atomic::AtomicBool::new(false);
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        let mut stream = connect();
                        stream.set_nonblocking(true).unwrap();
                        let mut buffer = [0u8; 65536];
                        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                            let written =
                                stream.write(b"for (let i = 0; i < 1e5; i++); 1\n").is_ok();
                            let read = stream.read(&mut buffer).is_ok();
                            if !written && !read {
                                // It is full: the flooder's own loop is not what is measured.
                                std::thread::sleep(Duration::from_millis(1));
                            }
                        }
                    });
                    rates.push(count());
                    stop.store(true, std::sync::atomic::Ordering::Relaxed);
                });
            } else {
                rates.push(count());
            }
            if let Some(mut client) = stopped {
                let _ = client.kill();
                let _ = client.wait();
            }
            drop(crowd);
            std::thread::sleep(Duration::from_millis(200));
        }
    }
    println!("turns of the app's loop in 2 s, medians of {ROUNDS} (goal: 0.98 of idle)");
    let idle = median(&all[0]);
    for (name, rates) in names.iter().zip(&all) {
        let subject = format!("replsock: {name}");
        more("app", "turns of its loop in 2 s", "", &subject, rates);
        println!(
            "{name:32} {:6.0}  {:.3}",
            median(rates),
            median(rates) / idle
        );
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// The memory of a small app that has served, after a collection: without and with the agent, in pairs.
fn memory(dir: &Dir) {
    let app = "const server = require('http').createServer((q, s) => s.end('hello\\n'));\n\
        server.listen(0, '127.0.0.1', () => console.log(server.address().port));\n\
        process.stdin.on('data', () => { gc(); gc(); setTimeout(() => { gc(); console.log('ready'); }, 500); });\n";
    let app = dir.write("small.js", app);
    let place = dir.path().join("sockets");
    let one = |agent: bool| -> (f64, f64) {
        let mut command = if agent {
            let mut command = Command::new(program());
            command.args(["env", "--app", "small", "--", "node"]);
            command
        } else {
            Command::new("node")
        };
        let mut child = command
            .arg("--expose-gc")
            .arg(&app)
            .env("REPLSOCK_DIR", &place)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let port: u16 = lines.next().unwrap().unwrap().parse().unwrap();
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let mut buffer = [0u8; 4096];
        for _ in 0..1500 {
            stream
                .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                .unwrap();
            let mut got = Vec::new();
            while !got.ends_with(b"hello\n") {
                let count = stream.read(&mut buffer).unwrap();
                got.extend_from_slice(&buffer[..count]);
            }
        }
        drop(stream);
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        let pid = child.id() as i32;
        let found = (
            proc::rss(pid).unwrap() as f64,
            proc::pss(pid).unwrap() as f64,
        );
        let _ = child.kill();
        let _ = child.wait();
        found
    };
    let (mut rss, mut pss) = (Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        let (without, with) = if pair % 2 == 0 {
            let without = one(false);
            (without, one(true))
        } else {
            let with = one(true);
            (one(false), with)
        };
        rss.push(with.0 - without.0);
        pss.push(with.1 - without.1);
    }
    less("app", "more RSS when idle", "kB", "replsock's agent", &rss);
    println!(
        "the agent in an idle app, kB, median of {PAIRS} pairs: RSS {:+.0}, PSS {:+.0} (goal: under 1024)",
        median(&rss),
        median(&pss)
    );
}

fn main() {
    // Cargo says so to each bench; another word is no bench of ours.
    let only = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    let wanted = |name: &str| {
        let scenario = match name {
            "trips" | "throughput" | "sessions" => "repl",
            _ => "app",
        };
        only.as_deref()
            .map_or(report::wanted(scenario), |only| only == name)
    };
    let dir = Dir::new();
    // Short paths, closed to others.
    let place = dir.path().join("s");
    fs::create_dir(&place).unwrap();
    fs::set_permissions(&place, PermissionsExt::from_mode(0o700)).unwrap();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!(
        "replsock; {cpus} CPUs, load {} before",
        load.split(' ').next().unwrap_or("-")
    );
    if wanted("trips") {
        round_trips(&dir, &place);
    }
    if wanted("throughput") {
        throughput(&dir, &place);
    }
    if wanted("sessions") {
        sessions(&dir, &place);
    }
    if wanted("requests") {
        requests(&dir);
    }
    if wanted("loop") {
        turns(&dir);
    }
    if wanted("memory") {
        memory(&dir);
    }
}
