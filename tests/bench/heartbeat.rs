//! `make bench`, fourth part: heartbeat beside check_http, curl, wget and a loop in Node.
//!
//! A check in the loop: how long, and for how much of the processor. One shot: from fork to exit. Idle at one check a
//! second: memory and processor. The time limit: how far from it a check ends that cannot end otherwise. All against the
//! same small server in this process. A peer that is not installed is left out, and named.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs
)]

// Each part of the bench uses some of it.
#[allow(dead_code)]
mod proc;
mod report;

use kit::Run;
use kit::hostile::{Hostile, Step, says};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
/// The article's loop, at one check a second.
const NODE: &str = "setInterval(() => require('http').get('http://127.0.0.1:PORT/', (r) => r.resume()).on('error', () => {}), 1000)";
/// One of node is the longest by far.
const SHOTS: usize = 100;
const IDLE: Duration = Duration::from_secs(20);

fn program() -> String {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from);
    let path = kit::root()
        .canonicalize()
        .unwrap()
        .join(target)
        .join("release/heartbeat");
    assert!(
        path.exists(),
        "{} is missing: run 'make' first",
        path.display()
    );
    path.display().to_string()
}

fn ms(length: Duration) -> f64 {
    length.as_secs_f64() * 1000.0
}

/// What all threads of a process have run.
fn ran(pid: i32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let nanoseconds = tasks.filter_map(|task| {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanoseconds.sum())
}

fn hand_over(name: &str, unit: &str, subject: &str, values: &[f64]) {
    report::less("check", name, unit, subject, values);
}

fn checks_in_a_loop(port: &str) {
    let mut beat = Run::new(program())
        .args([
            "--port",
            port,
            "--interval",
            "10ms",
            "--start-interval",
            "10ms",
            "--jitter",
            "0",
        ])
        .arg("--verbose")
        .start();
    let count = |beat: &kit::Running| beat.out().matches(" ok ").count();
    kit::eventually("it is warm", || (count(&beat) > 100).then_some(()));
    let pid = beat.pid();
    let before = (count(&beat), ran(pid));
    kit::eventually("five hundred checks", || {
        (count(&beat) > before.0 + 500).then_some(())
    });
    let (after, used) = (count(&beat), ran(pid));
    let mut took: Vec<f64> = beat
        .out()
        .lines()
        .skip(before.0)
        .filter_map(|line| line.split(" 200 ").nth(1)?.split("ms").next()?.parse().ok())
        .collect();
    took.sort_by(f64::total_cmp);
    hand_over("a check in the loop", "ms", "heartbeat", &took);
    let each = ms(used - before.1) / (after - before.0) as f64;
    hand_over("a check in the loop: CPU", "ms", "heartbeat", &[each]);
    println!(
        "heartbeat, in the loop   {:8.3} ms a check (mean of {}; median {:.2}), {:.3} ms of the processor",
        took.iter().sum::<f64>() / took.len() as f64,
        took.len(),
        took[took.len() / 2],
        each,
    );
    beat.stop();
}

/// A check of one shot, by whatever means.
struct Shot {
    name: &'static str,
    words: Vec<String>,
    took: Vec<f64>,
}

impl Shot {
    fn new(name: &'static str, words: &[&str]) -> Shot {
        Shot {
            name,
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            took: Vec::new(),
        }
    }

    /// False where there is no such program.
    fn fire(&mut self) -> bool {
        let begun = Instant::now();
        let ended = Command::new(&self.words[0])
            .args(&self.words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        let Ok(status) = ended else {
            println!("{:24} is not installed", self.name);
            report::absent("check", self.name, "not installed");
            return false;
        };
        assert!(status.success(), "{:?}", self.words);
        self.took.push(ms(begun.elapsed()));
        true
    }
}

fn one_shot(port: &str) {
    let url = format!("http://127.0.0.1:{port}/");
    let ours = program();
    let nagios = "/usr/lib/nagios/plugins/check_http";
    let get = format!("require('http').get('{url}', (r) => r.resume())");
    let mut all = vec![
        Shot::new("true (the floor)", &["/bin/true"]),
        Shot::new("heartbeat --once", &[&ours, "--once", "--port", port]),
        Shot::new("check_http", &[nagios, "-H", "127.0.0.1", "-p", port]),
        Shot::new("curl", &["curl", "-fsS", "-o", "/dev/null", &url]),
        Shot::new("wget", &["wget", "-q", "-O", "/dev/null", &url]),
        Shot::new("node -e", &["node", "-e", &get]),
    ];
    all.retain_mut(Shot::fire);
    // They take turns, so that whatever else the machine does falls on all.
    for round in 0..SHOTS {
        let count = all.len();
        for step in 0..count {
            all[(round + step) % count].fire();
        }
    }
    for shot in &mut all {
        // The first one had everything to read from the disk.
        shot.took.remove(0);
        hand_over("from fork to exit", "ms", shot.name, &shot.took);
        shot.took.sort_by(f64::total_cmp);
        println!(
            "{:24} {:8.2} ms from fork to exit (median; best {:.2}, of {})",
            shot.name,
            shot.took[shot.took.len() / 2],
            shot.took[0],
            shot.took.len()
        );
    }
}

/// All at the same time, for all of them do next to nothing.
fn idle(all: Vec<(&'static str, Run)>) {
    let mut all: Vec<_> = all
        .into_iter()
        .map(|(name, run)| (name, run.start()))
        .collect();
    // Warm, and beyond their start.
    std::thread::sleep(Duration::from_secs(5));
    let before: Vec<Duration> = all.iter().map(|(_, one)| ran(one.pid())).collect();
    std::thread::sleep(IDLE);
    let used: Vec<Duration> = (all.iter().zip(before))
        .map(|((_, one), before)| ran(one.pid()) - before)
        .collect();
    for ((name, running), used) in all.iter_mut().zip(used) {
        let pid = running.pid();
        let rss = proc::rss(pid).unwrap_or(0);
        hand_over("idle, a check a second: RSS", "kB", name, &[rss as f64]);
        let each = ms(used) / IDLE.as_secs_f64();
        hand_over("idle, a check a second: CPU", "ms/s", name, &[each]);
        println!(
            "{name:24} {rss:8} kB resident ({} kB by share), {each:.2} ms of the processor each second",
            proc::pss(pid).unwrap_or(0),
        );
        running.signal(nix::sys::signal::Signal::SIGKILL);
        running.end();
    }
}

/// It looks once a second at most.
fn monit(port: &str, dir: &kit::Dir) -> Option<Run> {
    let there = Command::new("sh")
        .args(["-c", "command -v monit"])
        .stdout(Stdio::null())
        .status();
    if !there.is_ok_and(|status| status.success()) {
        println!("monit                    is not installed");
        report::absent("check", "monit", "not installed");
        return None;
    }
    let place = dir.path().display();
    let text = format!(
        "set daemon 1\nset pidfile {place}/pid\nset idfile {place}/id\nset statefile {place}/state\n\
         check host app with address 127.0.0.1\n  if failed port {port} protocol http request \"/\" then alert\n"
    );
    let file = dir.write("monitrc", &text);
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    Some(Run::new("monit").args(["-I", "-c"]).arg(&file))
}

fn limits() {
    let limit = Duration::from_millis(500);
    let drip = Duration::from_millis(30);
    let long = vec![b'x'; 5000];
    let head = |text: &str| Step::Send(text.into());
    for (name, server) in [
        ("says nothing", Hostile::new(vec![Step::Wait])),
        (
            "a head in drops",
            Hostile::new(vec![
                head("HTTP/1.1 200 OK\r\nX: "),
                Step::Drip(long.clone(), drip),
            ]),
        ),
        (
            "a body in drops",
            Hostile::new(vec![
                head("HTTP/1.1 200 OK\r\n\r\n"),
                Step::Drip(long, drip),
            ]),
        ),
        ("a full backlog", Hostile::full()),
    ] {
        let mut worst = Duration::ZERO;
        for _ in 0..10 {
            let found = Run::new(program())
                .args(["--once", "--format", "nagios", "-4", "--timeout", "500ms"])
                .args(["--port", &server.port.to_string()])
                .finish();
            let took = found
                .out
                .split("time=")
                .nth(1)
                .unwrap()
                .split('s')
                .next()
                .unwrap();
            let took = Duration::from_secs_f64(took.parse().unwrap());
            assert!(took >= limit, "{took:?}");
            worst = worst.max(took - limit);
        }
        hand_over(
            &format!("late at a limit of 500 ms: {name}"),
            "ms",
            "heartbeat --once",
            &[ms(worst)],
        );
        println!(
            "limit of 500 ms, {name:16} {:6.2} ms late at worst, of 10 (goal: 20)",
            ms(worst)
        );
    }
}

fn main() {
    // `cargo test --all-targets` runs this program too, without that argument.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("to measure: cargo bench --package bench --bench heartbeat");
        return;
    }
    let server = Hostile::new(says(OK));
    let port = server.port.to_string();
    checks_in_a_loop(&port);
    one_shot(&port);
    let second = ["--interval", "1s", "--start-interval", "1s"];
    let dir = kit::Dir::new();
    let ours = Run::new(program()).args(["--port", &port]).args(second);
    let mut all = vec![("heartbeat", ours)];
    all.extend(monit(&port, &dir).map(|run| ("monit", run)));
    let node = NODE.replace("PORT", &port);
    all.push(("node", Run::new("node").args(["-e", &node])));
    idle(all);
    limits();
}
