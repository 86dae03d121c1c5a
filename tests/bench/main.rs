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
mod report;
mod system;

use load::{CONNECTIONS, Count, Load, Shape};
use report::{Better, Figure, any_wanted, wanted};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
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
    /// In ms.
    respawn: Vec<f64>,
    from_end: Vec<f64>,
    keep_alive: Vec<f64>,
    fresh: Vec<f64>,
    reload: Option<Count>,
    reloads: Option<Count>,
    /// In ms.
    took: Vec<f64>,
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
    let heading = heading(&programs);
    system::stop_all_on_signals(programs.scratch.clone());
    let _remove = Scratch(programs.scratch.clone());
    let mut columns = Kind::ALL.map(|kind| Column {
        kind,
        figures: Figures::default(),
        notes: Vec::new(),
        gone: false,
    });

    // One after another, each alone on the machine: pages that several share would make each smaller.
    if any_wanted(&["idle", "respawn"]) {
        for column in &mut columns {
            progress(&format!("{}: idle, respawn", column.kind.name()));
            let outcome = alone(column.kind, &programs, &mut column.figures);
            column.check(outcome);
        }
    }
    if any_wanted(&["requests", "reload"]) {
        together(&programs, &mut columns);
    }
    hand_over(&columns);
    print!("{}", table(&heading, &columns));
}

/// What needs all of them at the same time: each round falls on all.
fn together(programs: &Programs, columns: &mut [Column; 3]) {
    let mut systems: Vec<Option<System>> = Vec::new();
    for column in columns.iter_mut() {
        let system = (!column.gone).then(|| System::start(column.kind, programs));
        systems.push(system.and_then(|outcome| column.check(outcome)));
    }
    let rounds = if wanted("requests") { ROUNDS + 1 } else { 0 };
    for round in 0..rounds {
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
        if !wanted("reload") {
            break;
        }
        if let Some(system) = system {
            progress(&format!("{}: reloads", column.kind.name()));
            let outcome = reloads(system, &mut column.figures);
            column.check(outcome);
        }
    }
}

/// The same figures for the tables of all scenarios.
fn hand_over(columns: &[Column]) {
    for column in columns {
        let name = column.kind.name();
        for row in rows() {
            let figure = Figure {
                scenario: row.scenario,
                name: row.name,
                unit: row.unit,
                better: row.better,
            };
            report::figure(figure, name, &(row.values)(&column.figures));
        }
        for note in &column.notes {
            report::absent("requests", name, note);
        }
    }
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

    for _ in 0..RESPAWNS {
        let (from_kill, from_end) = system.respawn()?;
        figures.respawn.push(from_kill.as_secs_f64() * 1000.0);
        figures.from_end.push(from_end.as_secs_f64() * 1000.0);
        std::thread::sleep(APART);
    }
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
    for times in [1, RELOADS] {
        let load = Load::start(system.port, Shape::Mixed);
        for _ in 0..times {
            std::thread::sleep(Duration::from_secs(1));
            let began = Instant::now();
            system.reload()?;
            figures.took.push(began.elapsed().as_secs_f64() * 1000.0);
        }
        std::thread::sleep(LEAVE);
        let workers = system.workers().len();
        let (count, _) = load.finish();
        if times == 1 {
            figures.reload = Some(count);
        } else {
            figures.reloads = Some(count);
            figures.left = Some(workers.saturating_sub(WORKERS) as f64);
        }
    }
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

/// The middle half of the values: of three, all of them.
fn spread(values: &[f64]) -> Option<(f64, f64)> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let cut = sorted.len() / 4;
    let last = sorted.len().checked_sub(1)?;
    Some((sorted[cut], sorted[last - cut]))
}

/// A row of the table: its values, of which there are several where it is measured several times.
struct Row {
    scenario: &'static str,
    name: &'static str,
    unit: &'static str,
    digits: usize,
    better: Better,
    compared: bool,
    values: fn(&Figures) -> Vec<f64>,
}

fn row(
    scenario: &'static str,
    name: &'static str,
    unit: &'static str,
    values: fn(&Figures) -> Vec<f64>,
) -> Row {
    Row {
        scenario,
        name,
        unit,
        digits: usize::from(unit == "ms"),
        better: Better::Less,
        compared: true,
        values,
    }
}

fn count(name: &'static str, values: fn(&Figures) -> Vec<f64>) -> Row {
    Row {
        compared: false,
        ..row("reload", name, "", values)
    }
}

fn more(row: Row) -> Row {
    Row {
        better: Better::More,
        ..row
    }
}

fn rows() -> [Row; 14] {
    [
        row("idle", "RSS of the master", "kB", |f| list(f.rss)),
        row("idle", "PSS of the master", "kB", |f| list(f.pss)),
        row("idle", "its threads", "", |f| list(f.threads)),
        row("idle", "its wake-ups in 10 s", "", |f| list(f.wakeups)),
        row("respawn", "kill -9 to next exec", "ms", |f| {
            f.respawn.clone()
        }),
        row("respawn", "its end to next exec", "ms", |f| {
            f.from_end.clone()
        }),
        more(row("requests", "keep-alive", "1/s", |f| {
            f.keep_alive.clone()
        })),
        more(row("requests", "fresh connections", "1/s", |f| {
            f.fresh.clone()
        })),
        count("1 reload: failed", |f| of_reload(f, Count::failed)),
        more(count("1 reload: requests", |f| {
            of_reload(f, |count| count.requests)
        })),
        count("5 reloads in a row: failed", |f| {
            of_reloads(f, Count::failed)
        }),
        more(count("5 reloads in a row: requests", |f| {
            of_reloads(f, |count| count.requests)
        })),
        count("old workers still there", |f| list(f.left)),
        row("reload", "a reload takes", "ms", |f| f.took.clone()),
    ]
}

fn list(value: Option<f64>) -> Vec<f64> {
    value.into_iter().collect()
}

fn of_reload(figures: &Figures, get: fn(&Count) -> u64) -> Vec<f64> {
    list(figures.reload.as_ref().map(|count| get(count) as f64))
}

fn of_reloads(figures: &Figures, get: fn(&Count) -> u64) -> Vec<f64> {
    list(figures.reloads.as_ref().map(|count| get(count) as f64))
}

fn cell(row: &Row, column: &Column, first: &Column) -> String {
    let values = (row.values)(&column.figures);
    let (Some(value), Some((low, high))) = (median(&values), spread(&values)) else {
        return "-".to_owned();
    };
    let digits = row.digits;
    let mut text = format!("{value:.digits$}");
    if values.len() > 1 {
        text.push_str(&format!(" [{low:.digits$}-{high:.digits$}]"));
    }
    let ours = (row.values)(&first.figures);
    if let (Some(our), Some((our_low, our_high))) = (median(&ours), spread(&ours)) {
        // Where the spreads overlap this run does not tell the two apart.
        let overlap = values.len() > 1 && low <= our_high && our_low <= high;
        if row.compared && column.kind != first.kind && our > 0.0 && !overlap {
            text.push_str(&format!(" {}", ratio(value / our)));
        }
    }
    text
}

fn table(heading: &str, columns: &[Column]) -> String {
    let figures = rows();
    let mut rows = vec![vec![String::new()]];
    rows[0].extend(columns.iter().map(|column| column.kind.name().to_owned()));
    for figure in &figures {
        let unit = if figure.unit.is_empty() {
            String::new()
        } else {
            format!(", {}", figure.unit)
        };
        let mut row = vec![format!("{}: {}{unit}", figure.scenario, figure.name)];
        row.extend(
            columns
                .iter()
                .map(|column| cell(figure, column, &columns[0])),
        );
        rows.push(row);
    }

    let mut text = format!("{heading}\n\n");
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
         3x: times spawnwork's figure; none where the spreads overlap. [a-b]: the middle half of {RESPAWNS} respawns,\n\
         lowest and highest of {ROUNDS} rounds of requests, behind the median. {CONNECTIONS} connections.\n\
         Reloads: keep-alive connections, one request in ten takes 300 ms, none is tried again; old workers are\n\
         counted {} s after the last reload, under load.\n",
        LEAVE.as_secs()
    ));
    for column in columns {
        let name = column.kind.name();
        let failed = (column.figures.reload.iter())
            .chain(&column.figures.reloads)
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
    // What else the machine does is in every figure.
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "{}, node {}, PM2 {}; Linux {}, {cpus} CPUs, load {} before; {WORKERS} workers each",
        version(&programs.spawnwork, &[]).unwrap_or_default(),
        version("node", &[]).unwrap_or_default(),
        pm2.unwrap_or("-"),
        kernel.trim(),
        load.split(' ').next().unwrap_or("-"),
    )
}
