//! `make bench`: masters beside each other: what they cost idle, how soon a killed worker is back, what they let
//! through and how evenly, and which requests fail while they reload.
//!
//! Every figure is taken from outside, in the same way for all: from /proc, by signals, over HTTP. Like is compared
//! with like: the app stands in the name of the figure. A peer that cannot be run is named, with the reason. No
//! duration is judged.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs
)]

#[allow(dead_code)]
mod load;
mod master;
#[allow(dead_code)]
mod proc;
mod report;

use load::{Count, Load, Shape};
use master::{App, Master, Outcome, PATIENCE, Running, less, more, note, outcome, progress};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, mkfifo};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Between the last start and the idle figures.
const SETTLE: Duration = Duration::from_secs(5);
const IDLE: Duration = Duration::from_secs(10);
const RESPAWNS: usize = 15;
/// A worker lives longer than that before it is killed: s6, runit and daemontools wait for a second between two
/// starts, and others have a backoff; nobody's is measured.
const LIVES: Duration = Duration::from_millis(1500);
/// Between two looks at /proc while a respawn is waited for.
const LOOK: Duration = Duration::from_micros(50);
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_millis(1500);
const RELOADS: usize = 5;
/// Clients of each shape during a reload, and the pause of each between two requests: a load under which nobody's
/// new workers want for a processor, so that what fails is the reload's doing.
const CLIENTS: u64 = 10;
const PAUSE: Duration = Duration::from_millis(20);
/// Fewer of those that hold a worker without threads up for long.
const SHAPES: [(Shape, &str, u64); 3] = [
    (Shape::Fresh, "fresh", CLIENTS),
    (Shape::KeepAlive, "keep-alive", CLIENTS),
    (Shape::Slow, "slow", 4),
];
/// Under load, before the first reload and after the last one.
const BEFORE: Duration = Duration::from_millis(500);
const LEAVE: Duration = Duration::from_secs(2);
/// A reload without a result that is not over by then is taken as it is.
const ANSWERED: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    // `cargo test --all-targets` runs this program too, without that argument.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("to measure: cargo bench --package bench --bench spawnwork");
        return ExitCode::SUCCESS;
    }
    master::guarded(measure)
}

fn measure() -> ExitCode {
    let done = [
        master::scenario("idle", idle),
        master::scenario("respawn", respawn),
        master::scenario("requests", requests),
        master::scenario("reload", reload),
    ];
    if done.contains(&false) {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Starts those of a scenario, one after another.
fn start_all(scenario: &str) -> Vec<Running<'static>> {
    let mut list = Vec::new();
    for master in master::of(scenario) {
        progress(&format!("{scenario}: {} starts", master.name));
        list.extend(outcome(scenario, master, Running::start(master)));
    }
    list
}

// ---- idle ----

fn sum<T: std::iter::Sum>(pids: &[i32], of: impl Fn(i32) -> Option<T>) -> T {
    pids.iter().filter_map(|pid| of(*pid)).sum()
}

fn idle() {
    // Alone on the machine: of pages that several share each has only its part.
    for master in master::of("idle") {
        progress(&format!("idle: {} alone", master.name));
        let Some(running) = outcome("idle", master, Running::start(master)) else {
            continue;
        };
        let pss = sum(&running.supervisors(), proc::pss);
        let name = format!("PSS of all that supervises, {}", master.app.name());
        less("idle", &name, "kB", master.name, &[pss as f64]);
    }
    let all = start_all("idle");
    std::thread::sleep(SETTLE);
    progress("idle: all of them");
    let look = |running: &Running<'_>| -> (Vec<i32>, BTreeMap<(i32, i32), u64>, u64) {
        let pids = running.supervisors();
        let switches = pids.iter().flat_map(|pid| {
            let threads = proc::switches(*pid).into_iter();
            threads.map(|(thread, count)| ((*pid, thread), count))
        });
        let ran = pids.iter().map(|pid| proc::ran(*pid)).sum();
        (pids.clone(), switches.collect(), ran)
    };
    let before: Vec<_> = all.iter().map(look).collect();
    std::thread::sleep(IDLE);
    let after: Vec<_> = all.iter().map(look).collect();
    for ((running, (_, before, ran_before)), (pids, after, ran)) in
        all.iter().zip(before).zip(after)
    {
        let master = running.master;
        if after.is_empty() {
            let gone = Err("gone while it was idle".to_owned());
            outcome::<()>("idle", master, gone);
            continue;
        }
        let since = |(key, count): (&(i32, i32), &u64)| {
            count.saturating_sub(*before.get(key).unwrap_or(&0))
        };
        let wakeups: u64 = after.iter().map(since).sum();
        let figures = [
            ("RSS", "kB", sum(&pids, proc::rss) as f64),
            ("wake-ups in 10 s", "", wakeups as f64),
            (
                "CPU in 10 s",
                "ms",
                ran.saturating_sub(ran_before) as f64 / 1e6,
            ),
            ("threads", "", sum(&pids, proc::threads) as f64),
            ("processes", "", pids.len() as f64),
        ];
        for (name, unit, value) in figures {
            let name = format!("{name} of all that supervises, {}", master.app.name());
            less("idle", &name, unit, master.name, &[value]);
        }
    }
}

// ---- respawn ----

/// One whose workers are killed, the one that lived longest first.
struct Killed {
    running: Running<'static>,
    workers: VecDeque<i32>,
    says: Option<File>,
    /// In ms.
    from_kill: Vec<f64>,
    from_end: Vec<f64>,
}

fn now() -> f64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    now.tv_sec() as f64 * 1e3 + now.tv_nsec() as f64 / 1e6
}

impl Killed {
    fn start(master: &'static Master) -> Outcome<Killed> {
        let running = Running::start(master)?;
        // The first ones found nobody to tell.
        let says = (master.app == App::Small).then(|| {
            mkfifo(&running.says(), Mode::from_bits_truncate(0o600)).unwrap();
            let mut open = File::options();
            let open = open.read(true).write(true);
            open.custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits());
            open.open(running.says()).unwrap()
        });
        let workers = running.workers().into();
        Ok(Killed {
            running,
            workers,
            says,
            from_kill: Vec::new(),
            from_end: Vec::new(),
        })
    }

    fn kill(&mut self) -> Outcome<()> {
        let before = self.running.workers();
        self.workers.retain(|pid| before.contains(pid));
        self.workers.extend(
            before
                .iter()
                .filter(|pid| !self.workers.contains(pid))
                .copied()
                .collect::<Vec<_>>(),
        );
        let Some(oldest) = self.workers.pop_front() else {
            return Err("it has no worker".to_owned());
        };
        let killed = now();
        kill(Pid::from_raw(oldest), Signal::SIGKILL).map_err(|why| format!("kill: {why}"))?;
        let next = if self.says.is_some() {
            self.said(killed)?
        } else {
            self.seen(oldest, &before, killed)?
        };
        self.workers.push_back(next);
        Ok(())
    }

    /// A small program says itself when it runs.
    fn said(&mut self, killed: f64) -> Outcome<i32> {
        let mut text = String::new();
        while now() - killed < PATIENCE.as_secs_f64() * 1e3 {
            let mut buffer = [0; 64];
            match self.says.as_mut().unwrap().read(&mut buffer) {
                Ok(count) => text.push_str(&String::from_utf8_lossy(&buffer[..count])),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
            if let Some((pid, time)) = text
                .trim_end()
                .split_once(' ')
                .filter(|_| text.ends_with('\n'))
            {
                let time: f64 = time.parse().map_err(|_| format!("it said '{text}'"))?;
                self.from_kill.push(time / 1e6 - killed);
                return pid.parse().map_err(|_| format!("it said '{text}'"));
            }
        }
        Err("a killed worker did not come back".to_owned())
    }

    /// The others are looked for in /proc.
    fn seen(&mut self, oldest: i32, before: &[i32], killed: f64) -> Outcome<i32> {
        let mut died = None;
        loop {
            // The kernel takes a killed process down first, for milliseconds with a heap like node's; nobody
            // can learn of the end before that is done.
            if died.is_none() && !proc::runs(oldest) {
                died = Some(now());
            }
            let workers = self.running.workers();
            if let Some(next) = workers.iter().find(|pid| !before.contains(pid)) {
                let there = now();
                self.from_kill.push(there - killed);
                self.from_end.push(there - died.unwrap_or(there));
                return Ok(*next);
            }
            if now() - killed > PATIENCE.as_secs_f64() * 1e3 {
                return Err("a killed worker did not come back".to_owned());
            }
            std::thread::sleep(LOOK);
        }
    }
}

fn respawn() {
    let mut all: Vec<Killed> = Vec::new();
    for master in master::of("respawn") {
        progress(&format!("respawn: {} starts", master.name));
        all.extend(outcome("respawn", master, Killed::start(master)));
    }
    std::thread::sleep(LIVES);
    for round in 1..=RESPAWNS {
        progress(&format!("respawn, round {round} of {RESPAWNS}"));
        let began = Instant::now();
        let mut there = Vec::new();
        for mut one in all {
            let killed = one.kill();
            if outcome("respawn", one.running.master, killed).is_some() {
                // So that the next one is not measured beside an interpreter that starts.
                let small = one.running.master.app == App::Small;
                std::thread::sleep(Duration::from_millis(if small { 20 } else { 120 }));
                there.push(one);
            }
        }
        all = there;
        std::thread::sleep(LIVES.saturating_sub(began.elapsed()));
    }
    for one in &all {
        let master = one.running.master;
        let app = master.app.name();
        let next = if master.app == App::Small {
            "main()"
        } else {
            "exec"
        };
        // Named, because it is less than the others do.
        let name = if master.forks {
            format!("{} (forks, no exec)", master.name)
        } else {
            master.name.to_owned()
        };
        let figure = format!("kill -9 to the next one's {next}, {app}");
        less("respawn", &figure, "ms", &name, &one.from_kill);
        let figure = format!("its end to the next one's {next}, {app}");
        less("respawn", &figure, "ms", &name, &one.from_end);
        let least = one.from_kill.iter().copied().fold(f64::MAX, f64::min);
        if least > 900.0 {
            let text = "waits for a second after each end, however long the worker had lived";
            note("respawn", &name, text);
        }
    }
}

// ---- requests ----

/// What the app of a master is compared with: the machine's own floor with all of them.
fn groups(master: &Master) -> Vec<&'static str> {
    match master.app {
        App::Static => vec![App::Node.name(), App::Wsgi.name()],
        app => vec![app.name()],
    }
}

fn subject(master: &Master) -> String {
    match master.app {
        App::Static => format!("{}, static answer (floor)", master.name),
        _ => master.name.to_owned(),
    }
}

#[derive(Default)]
struct Rates {
    keep_alive: Vec<f64>,
    fresh: Vec<f64>,
    /// In percent, of fresh connections.
    busiest: Vec<f64>,
    failed: Count,
}

fn busiest(count: &Count) -> f64 {
    let all: u64 = count.answers.values().sum();
    let most = count.answers.values().max().copied().unwrap_or(0);
    100.0 * most as f64 / all.max(1) as f64
}

fn requests() {
    let all = start_all("requests");
    let mut rates: Vec<Rates> = all.iter().map(|_| Rates::default()).collect();
    // The round before the first one warms up.
    for round in 0..=ROUNDS {
        progress(&format!("requests, round {round} of {ROUNDS}"));
        for step in 0..all.len() {
            // Each is first once.
            let at = (round + step) % all.len();
            for shape in [Shape::KeepAlive, Shape::Fresh] {
                let load = Load::start(all[at].port, shape);
                std::thread::sleep(if round == 0 { ROUND / 3 } else { ROUND });
                let (count, rate) = load.finish();
                let mine = &mut rates[at];
                if round > 0 && shape == Shape::Fresh {
                    mine.fresh.push(rate);
                    mine.busiest.push(busiest(&count));
                } else if round > 0 && count.kept > 0 {
                    mine.keep_alive.push(rate);
                }
                mine.failed.add(&count);
            }
        }
    }
    for (running, rates) in all.iter().zip(&rates) {
        let master = running.master;
        let subject = subject(master);
        for group in groups(master) {
            let keep_alive = format!("keep-alive connections, {group}");
            more("requests", &keep_alive, "1/s", &subject, &rates.keep_alive);
            let fresh = format!("fresh connections, {group}");
            more("requests", &fresh, "1/s", &subject, &rates.fresh);
            if master.workers > 1 {
                let share = format!("fresh connections of the busier worker of two, {group}");
                less("requests", &share, "%", &subject, &rates.busiest);
            }
        }
        if rates.keep_alive.is_empty() {
            note("requests", &subject, "keeps no connection alive");
        }
        if rates.failed.failed() > 0 {
            let text = format!("failed, without a reload: {}", rates.failed);
            note("requests", &subject, &text);
        }
    }
}

// ---- reload ----

/// Reloads `times` in a row under load: what each shape of request saw, how long each reload took in ms, and how many
/// workers are left beyond those that there should be.
fn reloads(running: &Running<'_>, times: usize) -> Outcome<(Vec<Count>, Vec<f64>, usize)> {
    let loads: Vec<Load> = SHAPES
        .iter()
        .map(|(shape, _, clients)| Load::paced(running.port, *shape, *clients, PAUSE))
        .collect();
    std::thread::sleep(BEFORE);
    let mut took = Vec::new();
    for _ in 0..times {
        let answered = || loads.iter().flat_map(Load::seen);
        let mut old: BTreeSet<i32> = answered().collect();
        old.extend(running.workers());
        let began = Instant::now();
        running.reloaded()?;
        // Who has no result to tell is done when as many new ones as there should be have answered, and no old one is left.
        while !running.master.tells && began.elapsed() < ANSWERED {
            let new: BTreeSet<i32> = answered().filter(|pid| !old.contains(pid)).collect();
            let left = running.workers().iter().any(|pid| old.contains(pid));
            if new.len() >= running.master.workers && !left {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        took.push(began.elapsed().as_secs_f64() * 1e3);
    }
    std::thread::sleep(LEAVE);
    let left = running.workers().len();
    let counts = loads.into_iter().map(|load| load.finish().0).collect();
    Ok((counts, took, left.saturating_sub(running.master.workers)))
}

#[derive(Default)]
struct Reloads {
    /// Of each shape, a value for each round.
    failed: [Vec<f64>; SHAPES.len()],
    kinds: Count,
    requests: Vec<u64>,
    took: Vec<f64>,
    left: Vec<f64>,
}

fn reload() {
    let mut all: Vec<(Running<'static>, [Reloads; 2])> = start_all("reload")
        .into_iter()
        .map(|running| (running, Default::default()))
        .collect();
    all.sort_by_key(|(running, _)| !running.master.is_ours());
    // One reload in each round, and five in a row in the last.
    for round in 0..=ROUNDS {
        let times = if round == ROUNDS { RELOADS } else { 1 };
        let mut results = Vec::new();
        // Two at a time: they wait more than they work. Ours are the slowest, and first.
        for pair in all.chunks(2) {
            let names: Vec<&str> = pair.iter().map(|one| one.0.master.name).collect();
            progress(&format!("reload, {times} in a row: {}", names.join("; ")));
            std::thread::scope(|scope| {
                let run = |one: &'_ (Running<'static>, _)| reloads(&one.0, times);
                let pair: Vec<_> = pair
                    .iter()
                    .map(|one| scope.spawn(move || run(one)))
                    .collect();
                results.extend(pair.into_iter().map(|one| one.join().unwrap()));
            });
        }
        let mut there = Vec::new();
        for ((running, mut seen), result) in all.into_iter().zip(results) {
            let Some((counts, took, left)) = outcome("reload", running.master, result) else {
                continue;
            };
            let mine = &mut seen[usize::from(times > 1)];
            let mut kept = 0;
            for (values, count) in mine.failed.iter_mut().zip(&counts) {
                values.push(count.failed() as f64);
                mine.kinds.add(count);
                kept += count.kept;
            }
            if kept == 0 {
                note("reload", running.master.name, "keeps no connection alive");
            }
            let requests: u64 = counts.iter().map(|count| count.requests).sum();
            mine.requests.push(requests);
            mine.took.extend(took);
            mine.left.push(left as f64);
            there.push((running, seen));
        }
        all = there;
    }
    for (running, seen) in &all {
        let subject = running.master.name;
        for (mine, times) in seen.iter().zip(["one reload", "five in a row"]) {
            for ((_, shape, _), values) in SHAPES.iter().zip(&mine.failed) {
                let name = format!("{times}, {shape} requests: failed");
                less("reload", &name, "", subject, values);
            }
            println!("reload: {times}: {subject}: {:?} requests", mine.requests);
            let name = format!("{times}: old workers still there");
            less("reload", &name, "", subject, &mine.left);
            if mine.kinds.failed() > 0 {
                note(
                    "reload",
                    subject,
                    &format!("failed, {times}: {}", mine.kinds),
                );
            }
        }
        let took: Vec<f64> = seen.iter().flat_map(|mine| mine.took.clone()).collect();
        less("reload", "a reload takes", "ms", subject, &took);
    }
}
