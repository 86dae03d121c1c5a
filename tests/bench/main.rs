//! `make bench`: spawnwork beside Node's own cluster and PM2, two workers of the same app each, in one table.
//!
//! Every figure is taken from outside, in the same way for all three: from /proc, by signals, over HTTP. A peer that
//! cannot be run has a dash, and the reason below the table. No duration is judged.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs
)]

mod load;
mod proc;
mod system;

use load::{CONNECTIONS, Count, Load, Shape};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use system::{Kind, Outcome, Programs, System, WORKERS};

/// Between the first answer and the idle figures.
const SETTLE: Duration = Duration::from_secs(8);
const IDLE: Duration = Duration::from_secs(10);
const RESPAWNS: usize = 20;
/// After each respawn. More than a second, so that nobody's backoff is measured.
const APART: Duration = Duration::from_millis(1300);
const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_secs(3);
const RELOADS: usize = 5;
/// How long old workers have to leave after the last reload, under load.
const LEAVE: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Figures {
    rss: Option<f64>,
    pss: Option<f64>,
    threads: Option<f64>,
    wakeups: Option<f64>,
    respawn: Option<f64>,
    keep_alive: Vec<f64>,
    fresh: Vec<f64>,
    reloads: Option<Count>,
    left: Option<f64>,
}

/// One of the three, with what is known of it.
struct Column {
    kind: Kind,
    figures: Figures,
    notes: Vec<String>,
    gone: bool,
}

impl Column {
    /// A peer that fails is left out from here on. spawnwork does not fail.
    fn check<T>(&mut self, outcome: Outcome<T>) -> Option<T> {
        let why = match outcome {
            Ok(value) => return Some(value),
            Err(why) => why,
        };
        assert!(self.kind != Kind::Spawnwork, "spawnwork: {why}");
        self.notes.push(why);
        self.gone = true;
        None
    }
}

fn main() {
    // `cargo test --all-targets` runs this program too, without that argument.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("to measure: cargo bench --package bench");
        return;
    }
    let programs = programs();
    system::stop_all_on_signals(programs.scratch.clone());
    let _remove = Scratch(programs.scratch.clone());
    let mut columns = Kind::ALL.map(|kind| Column {
        kind,
        figures: Figures::default(),
        notes: Vec::new(),
        gone: false,
    });

    // One after another, each alone on the machine: pages that several share would make each smaller.
    for column in &mut columns {
        progress(&format!("{}: idle, respawn", column.kind.name()));
        let outcome = alone(column.kind, &programs, &mut column.figures);
        column.check(outcome);
    }

    let mut systems: Vec<Option<System>> = Vec::new();
    for column in &mut columns {
        let system = (!column.gone).then(|| System::start(column.kind, &programs));
        systems.push(system.and_then(|outcome| column.check(outcome)));
    }
    for round in 0..=ROUNDS {
        progress(&format!("requests, round {round} of {ROUNDS}"));
        // Each is first once, and the round before the first one warms up.
        for step in 0..systems.len() {
            let index = (round + step) % systems.len();
            if let Some(system) = &systems[index] {
                requests(system.port, round == 0, &mut columns[index]);
            }
        }
    }
    for (column, system) in columns.iter_mut().zip(&mut systems) {
        if let Some(system) = system {
            progress(&format!("{}: reloads", column.kind.name()));
            let outcome = reloads(system, &mut column.figures);
            column.check(outcome);
        }
    }
    drop(systems);
    print!("{}", table(&programs, &columns));
}

/// To standard error, where it does not mix with the table.
fn progress(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "bench: {text}");
}

struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn programs() -> Programs {
    let bench = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let root = bench.join("../..").canonicalize().unwrap();
    let from = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let target = from("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let spawnwork = root.join(target).join("release/spawnwork");
    assert!(
        spawnwork.exists(),
        "{} is missing: run 'cargo build --release --package spawnwork'",
        spawnwork.display()
    );
    assert!(
        version("node", &[]).is_some(),
        "node is not on PATH: run 'tests/setup.sh bench'"
    );
    let cache = from("NIRVANA_CACHE").map_or_else(
        || {
            from("XDG_CACHE_HOME")
                .map_or_else(
                    || PathBuf::from(from("HOME").unwrap_or_else(|| "/root".into())).join(".cache"),
                    PathBuf::from,
                )
                .join("nirvana-tests")
        },
        PathBuf::from,
    );
    // A relative one is meant from where cargo was run.
    let pm2 = root.join(cache).join("frameworks/node_modules/pm2/bin/pm2");
    let scratch = std::env::temp_dir().join(format!("spawnwork-bench-{}", std::process::id()));
    fs::create_dir_all(&scratch).unwrap();
    Programs {
        spawnwork,
        pm2,
        bench,
        scratch,
    }
}

fn version(program: impl AsRef<Path>, arguments: &[&Path]) -> Option<String> {
    let mut command = Command::new(program.as_ref());
    let output = command.args(arguments).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    output.status.success().then(|| text.trim().to_owned())
}

fn alone(kind: Kind, programs: &Programs, figures: &mut Figures) -> Outcome<()> {
    let mut system = System::start(kind, programs)?;
    std::thread::sleep(SETTLE);
    let master = system.master;
    let number = |value: u64| value as f64;
    figures.rss = proc::rss(master).map(number);
    figures.pss = proc::pss(master).map(number);
    figures.threads = proc::threads(master).map(number);
    let before = proc::switches(master);
    std::thread::sleep(IDLE);
    let after = proc::switches(master);
    if after.is_empty() || figures.rss.is_none() {
        return Err("its master is gone".into());
    }
    let since = |(task, count): (&i32, &u64)| count - before.get(task).unwrap_or(&0);
    figures.wakeups = Some(number(after.iter().map(since).sum()));

    let mut times = Vec::new();
    for _ in 0..RESPAWNS {
        times.push(system.respawn()?.as_secs_f64() * 1000.0);
        std::thread::sleep(APART);
    }
    figures.respawn = median(&times);
    Ok(())
}

fn requests(port: u16, warm_up: bool, column: &mut Column) {
    for (shape, name) in [(Shape::KeepAlive, "keep-alive"), (Shape::Fresh, "fresh")] {
        let load = Load::start(port, shape);
        std::thread::sleep(if warm_up { ROUND / 3 } else { ROUND });
        let (count, rate) = load.finish();
        if count.failed() > 0 {
            let note = format!("without a reload, over {name} connections: {count}");
            column.notes.push(note);
        }
        if !warm_up {
            match shape {
                Shape::Fresh => column.figures.fresh.push(rate),
                _ => column.figures.keep_alive.push(rate),
            }
        }
    }
}

fn reloads(system: &mut System, figures: &mut Figures) -> Outcome<()> {
    let load = Load::start(system.port, Shape::Mixed);
    for _ in 0..RELOADS {
        std::thread::sleep(Duration::from_secs(1));
        system.reload()?;
    }
    std::thread::sleep(LEAVE);
    let workers = system.workers().len();
    let (count, _) = load.finish();
    figures.left = Some(workers.saturating_sub(WORKERS) as f64);
    figures.reloads = Some(count);
    Ok(())
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.is_empty() || sorted.len() % 2 == 1 {
        return sorted.get(middle).copied();
    }
    Some((sorted[middle - 1] + sorted[middle]) / 2.0)
}

type Figure = fn(&Figures) -> Option<f64>;

fn table(programs: &Programs, columns: &[Column]) -> String {
    let figures: [(&str, usize, bool, Figure); 9] = [
        ("master, idle: RSS, kB", 0, true, |f| f.rss),
        ("master, idle: PSS, kB", 0, true, |f| f.pss),
        ("master, idle: threads", 0, true, |f| f.threads),
        ("master, idle: wake-ups in 10 s", 0, true, |f| f.wakeups),
        ("kill -9 to next exec, ms", 1, true, |f| f.respawn),
        ("requests/s, keep-alive", 0, true, |f| median(&f.keep_alive)),
        ("requests/s, fresh connections", 0, true, |f| {
            median(&f.fresh)
        }),
        ("5 reloads: failed requests", 0, false, |f| {
            Some(f.reloads.as_ref()?.failed() as f64)
        }),
        ("5 reloads: requests", 0, false, |f| {
            Some(f.reloads.as_ref()?.requests as f64)
        }),
    ];
    let left: (&str, usize, bool, Figure) =
        ("5 reloads: old workers still there", 0, false, |f| f.left);

    let mut rows = vec![vec![String::new()]];
    rows[0].extend(columns.iter().map(|column| column.kind.name().to_owned()));
    for (name, digits, compared, get) in figures.into_iter().chain([left]) {
        let ours = columns.first().and_then(|column| get(&column.figures));
        let cell = |column: &Column| {
            let Some(value) = get(&column.figures) else {
                return "-".to_owned();
            };
            let text = format!("{value:.digits$}");
            match ours {
                Some(ours) if compared && column.kind != Kind::Spawnwork && ours > 0.0 => {
                    format!("{text} ({})", ratio(value / ours))
                }
                _ => text,
            }
        };
        let mut row = vec![name.to_owned()];
        row.extend(columns.iter().map(cell));
        rows.push(row);
    }

    let mut text = format!("{}\n\n", heading(programs));
    for row in &rows {
        let mut line = String::new();
        for (index, cell) in row.iter().enumerate() {
            let width = rows.iter().map(|row| row[index].chars().count()).max();
            line.push_str(&format!("{cell:<width$}   ", width = width.unwrap_or(0)));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.push_str(&format!(
        "\n\
         In brackets: times spawnwork's figure. Respawn: median of {RESPAWNS}. Requests: {CONNECTIONS} connections,\n\
         median of {ROUNDS} rounds. Reloads: {CONNECTIONS} keep-alive connections, one request in ten takes 300 ms, none\n\
         is tried again; old workers are counted {} s after the last reload, under load.\n",
        LEAVE.as_secs()
    ));
    for column in columns {
        let name = column.kind.name();
        let failed = column
            .figures
            .reloads
            .iter()
            .filter(|count| count.failed() > 0);
        for count in failed {
            text.push_str(&format!("{name}: failed during reloads: {count}\n"));
        }
        for note in &column.notes {
            text.push_str(&format!("{name}: {note}\n"));
        }
    }
    text
}

fn ratio(value: f64) -> String {
    if value >= 10.0 {
        format!("{value:.0}x")
    } else {
        format!("{value:.2}x")
    }
}

fn heading(programs: &Programs) -> String {
    let pm2 = fs::read_to_string(programs.pm2.with_file_name("../package.json")).ok();
    let pm2 = pm2.as_deref().and_then(|text| {
        let (_, rest) = text.split_once("\"version\": \"")?;
        rest.split('"').next()
    });
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "{}, node {}, PM2 {}; Linux {}, {cpus} CPUs; {WORKERS} workers each",
        version(&programs.spawnwork, &[]).unwrap_or_default(),
        version("node", &[]).unwrap_or_default(),
        pm2.unwrap_or("-"),
        kernel.trim(),
    )
}
