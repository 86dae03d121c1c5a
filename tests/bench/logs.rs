//! `make bench`, third part: logreopen beside no logger at all and those that are there already.
//!
//! A program writes lines into a pipe, a logger writes them to a file: how fast, for how much of the processor, with how
//! many wake-ups; then a lone line, a reopen, a disk that hangs for four seconds, and a burst before `process.exit`. All
//! figures are taken from outside, in the same way for all; the best of three rounds counts. BENCH_MB sets how much is
//! written in a round. A peer that is not installed is left out, and named.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs
)]

mod lost;
mod report;

use kit::Dir;
use kit::mount::Mounted;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use report::{Better, Figure, wanted};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: usize = 3;
const TRIES: usize = 50;
const BURST: usize = 100_000;

/// A logger: its command in the shell, `$DIR` being where it writes.
struct Logger {
    name: &'static str,
    command: String,
    /// The file that is written, below `$DIR`; empty: the only one there.
    file: &'static str,
    /// What makes it change its file.
    reopen: Option<Signal>,
    needs: &'static str,
}

fn program() -> PathBuf {
    let root = kit::root().canonicalize().unwrap();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from);
    let ours = root.join(target).join("release/logreopen");
    assert!(
        ours.exists(),
        "{} is missing: run 'make' first",
        ours.display()
    );
    ours
}

fn loggers() -> Vec<Logger> {
    let ours = program();
    let logger = |name, command: &str, file, reopen, needs| Logger {
        name,
        command: command.to_owned(),
        file,
        reopen,
        needs,
    };
    vec![
        logger("no logger", "", "log", None, "true"),
        logger(
            "logreopen",
            &format!("exec {} -q \"$DIR/log\"", ours.display()),
            "log",
            Some(Signal::SIGHUP),
            "true",
        ),
        logger("cat", "exec cat >> \"$DIR/log\"", "log", None, "cat"),
        logger(
            "rotatelogs",
            "exec rotatelogs \"$DIR/log\" 86400",
            "",
            None,
            "rotatelogs",
        ),
        logger(
            "cronolog",
            "exec cronolog \"$DIR/log\"",
            "log",
            None,
            "cronolog",
        ),
        logger(
            "multilog",
            "exec multilog n1000 s16777215 \"$DIR/log\"",
            "log/current",
            Some(Signal::SIGALRM),
            "multilog",
        ),
        logger(
            "svlogd",
            "mkdir -p \"$DIR/log\" && exec svlogd \"$DIR/log\"",
            "log/current",
            Some(Signal::SIGALRM),
            "svlogd",
        ),
        logger(
            "s6-log",
            "exec s6-log n1000 s268435455 \"$DIR/log\"",
            "log/current",
            Some(Signal::SIGALRM),
            "s6-log",
        ),
    ]
}

fn installed(program: &str) -> bool {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("command -v {program}")]);
    shell.stdout(Stdio::null()).status().unwrap().success()
}

impl Logger {
    fn start(&self, directory: &Path) -> Child {
        Command::new("sh")
            .args(["-c", &self.command])
            .env("DIR", directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn path(&self, directory: &Path) -> Option<PathBuf> {
        if !self.file.is_empty() {
            return Some(directory.join(self.file)).filter(|path| path.exists());
        }
        Some(fs::read_dir(directory).ok()?.next()?.ok()?.path())
    }

    /// The program's output: into the logger, or straight into the file.
    fn attach(&self, directory: &Path) -> (Stdio, Option<Child>) {
        if self.command.is_empty() {
            let file = File::create(directory.join(self.file)).unwrap();
            return (file.into(), None);
        }
        let mut child = self.start(directory);
        (child.stdin.take().unwrap().into(), Some(child))
    }
}

#[derive(Default, Clone)]
struct Speed {
    /// GB a second.
    rate: f64,
    /// Of the logger, for a GB; of the program itself where there is none.
    cpu: f64,
    wakes: f64,
}

/// One round: `count` lines of `length` bytes.
fn speed(logger: &Logger, numbers: &Path, directory: &Path, count: u64, length: usize) -> Speed {
    let used = || {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
        let seconds = |time: nix::sys::time::TimeVal| {
            time.tv_sec() as f64 + time.tv_usec() as f64 / 1_000_000.0
        };
        (
            seconds(usage.user_time()) + seconds(usage.system_time()),
            usage.voluntary_context_switches() as f64,
        )
    };
    let begun = Instant::now();
    let (out, child) = logger.attach(directory);
    let before = used();
    let mut program = Command::new(numbers)
        .args([count.to_string(), length.to_string()])
        .args(["0", "0"])
        .env("NUMBERS_END", "1")
        .stdout(out)
        .spawn()
        .unwrap();
    program.wait().unwrap();
    let mut from = used();
    match child {
        Some(mut child) => {
            child.wait().unwrap();
        }
        None => from = before,
    }
    let (took, to) = (begun.elapsed().as_secs_f64(), used());
    let gb = (count as f64 * length as f64) / 1e9;
    Speed {
        rate: gb / took,
        cpu: (to.0 - from.0) / gb,
        wakes: (to.1 - from.1) / gb,
    }
}

fn hand_over(better: Better, name: &str, unit: &str, subject: &str, values: &[f64]) {
    let figure = Figure {
        scenario: "logs",
        name,
        unit,
        better,
    };
    report::figure(figure, subject, values);
}

/// One of the four kinds of load.
struct Case<'a> {
    what: &'a str,
    place: &'a Path,
    length: usize,
}

/// Every logger once in each round, each of them first once; the best round of each.
fn speeds(case: &Case<'_>, loggers: &[Logger], numbers: &Path, bytes: u64) -> Vec<Speed> {
    let mut all: Vec<Vec<Speed>> = vec![Vec::new(); loggers.len()];
    for round in 0..ROUNDS {
        progress(&format!("{}, round {round}", case.what));
        for step in 0..loggers.len() {
            let which = (round + step) % loggers.len();
            let directory = case.place.join("round");
            fs::create_dir_all(&directory).unwrap();
            let count = bytes / case.length as u64;
            let one = speed(&loggers[which], numbers, &directory, count, case.length);
            fs::remove_dir_all(&directory).unwrap();
            all[which].push(one);
        }
    }
    for (logger, rounds) in loggers.iter().zip(&all) {
        let of = |get: fn(&Speed) -> f64| rounds.iter().map(get).collect::<Vec<_>>();
        let rates = of(|one| one.rate);
        hand_over(Better::More, case.what, "GB/s", logger.name, &rates);
        let cpu = format!("{}: CPU", case.what);
        hand_over(Better::Less, &cpu, "s/GB", logger.name, &of(|one| one.cpu));
    }
    let best = |rounds: Vec<Speed>| {
        let better = |a: Speed, b: Speed| if b.rate > a.rate { b } else { a };
        rounds.into_iter().reduce(better).unwrap_or_default()
    };
    all.into_iter().map(best).collect()
}

fn pause(length: Duration) {
    std::thread::sleep(length);
}

/// Waits for `what`, looking as often as possible.
fn spin<T>(what: impl FnMut() -> Option<T>) -> Option<(T, Duration)> {
    spin_since(Instant::now(), what)
}

/// The same, with the time since `begun`.
fn spin_since<T>(begun: Instant, mut what: impl FnMut() -> Option<T>) -> Option<(T, Duration)> {
    while begun.elapsed() < Duration::from_secs(10) {
        if let Some(found) = what() {
            return Some((found, begun.elapsed()));
        }
        // Whoever is waited for may need this very processor.
        std::thread::yield_now();
    }
    None
}

fn ms(all: &[Duration]) -> Vec<f64> {
    let mut all: Vec<f64> = all.iter().map(|one| one.as_secs_f64() * 1000.0).collect();
    all.sort_by(f64::total_cmp);
    all
}

fn median(sorted: &[f64]) -> Option<f64> {
    sorted.get(sorted.len() / 2).copied()
}

/// Runs a logger for `use_it`; its input is closed and its end awaited afterwards.
fn with<T>(
    logger: &Logger,
    directory: &Path,
    use_it: impl FnOnce(i32, &mut ChildStdin) -> Option<T>,
) -> Option<T> {
    let mut child = logger.start(directory);
    let mut stdin = child.stdin.take().unwrap();
    let result = use_it(child.id() as i32, &mut stdin);
    drop(stdin);
    child.wait().unwrap();
    result
}

/// From the write of a line after silence to its being in the file, in ms.
fn lone_line(logger: &Logger, directory: &Path) -> Vec<f64> {
    let took = with(logger, directory, |_, stdin| {
        lone_lines(logger, directory, stdin)
    });
    ms(&took.unwrap_or_default())
}

fn lone_lines(logger: &Logger, directory: &Path, stdin: &mut ChildStdin) -> Option<Vec<Duration>> {
    stdin.write_all(b"first\n").ok()?;
    let (file, _) = spin(|| File::open(logger.path(directory)?).ok())?;
    let size = || file.metadata().unwrap().len();
    let mut all = Vec::new();
    for _ in 0..TRIES {
        pause(Duration::from_millis(30));
        let before = size();
        let begun = Instant::now();
        stdin.write_all(b"a lone line\n").ok()?;
        all.push(spin_since(begun, || (size() > before).then_some(()))?.1);
    }
    Some(all)
}

/// From the signal to another file at the path, in ms.
fn reopen(logger: &Logger, directory: &Path) -> Vec<f64> {
    let took = logger.reopen.and_then(|signal| {
        with(logger, directory, |pid, stdin| {
            reopens(logger, directory, pid, signal, stdin)
        })
    });
    ms(&took.unwrap_or_default())
}

fn reopens(
    logger: &Logger,
    directory: &Path,
    pid: i32,
    signal: Signal,
    stdin: &mut ChildStdin,
) -> Option<Vec<Duration>> {
    let mut all = Vec::new();
    for number in 0..TRIES {
        // An empty file is not rotated by those that rotate themselves.
        stdin.write_all(b"line\n").ok()?;
        let (path, _) = spin(|| {
            let path = logger.path(directory)?;
            (fs::metadata(&path).ok()?.len() > 0).then_some(path)
        })?;
        pause(Duration::from_millis(30));
        let before = fs::metadata(&path).ok()?.ino();
        if logger.name == "logreopen" {
            fs::rename(&path, path.with_extension(number.to_string())).ok()?;
        }
        let begun = Instant::now();
        kill(Pid::from_raw(pid), signal).ok()?;
        let changed = spin_since(begun, || {
            let now = fs::metadata(&path).ok()?.ino();
            (now != before).then_some(())
        });
        all.push(changed?.1);
    }
    Some(all)
}

/// The program's longest write while the disk hangs for four seconds, in ms.
fn frozen(logger: &Logger, numbers: &Path) -> f64 {
    let mut disk = Mounted::ext4();
    let directory = disk.path().to_owned();
    let report = Dir::new();
    let (out, child) = logger.attach(&directory);
    let mut program = Command::new(numbers)
        .args(["0", "200", "1000", "1"])
        .env("NUMBERS_REPORT", report.path().join("report"))
        .stdout(out)
        .spawn()
        .unwrap();
    pause(Duration::from_millis(500));
    disk.freeze();
    pause(Duration::from_secs(4));
    disk.thaw();
    pause(Duration::from_millis(200));
    kill(Pid::from_raw(program.id() as i32), Signal::SIGTERM).unwrap();
    program.wait().unwrap();
    if let Some(mut child) = child {
        child.wait().unwrap();
    }
    let longest = kit::logs::report(&report.path().join("report"))
        .unwrap()
        .longest;
    longest as f64 / 1000.0
}

/// Lines that arrive of a burst before process.exit.
fn burst(logger: &Logger, directory: &Path) -> usize {
    let (out, child) = logger.attach(directory);
    let mut program = Command::new("node")
        .arg(kit::app("burst.js"))
        .arg(BURST.to_string())
        .stderr(out)
        .spawn()
        .unwrap();
    program.wait().unwrap();
    if let Some(mut child) = child {
        child.wait().unwrap();
    }
    fn lines(directory: &Path) -> usize {
        let count = |path: PathBuf| {
            if path.is_dir() {
                return lines(&path);
            }
            let bytes = fs::read(path).unwrap_or_default();
            bytes
                .split(|byte| *byte == b'\n')
                .filter(|line| line.starts_with(b"burst "))
                .count()
        };
        let entries = fs::read_dir(directory).unwrap();
        entries.map(|entry| count(entry.unwrap().path())).sum()
    }
    lines(directory)
}

/// A directory of its own for each use.
fn within<T>(place: &Path, use_it: impl FnOnce(&Path) -> T) -> T {
    let directory = place.join("use");
    fs::create_dir_all(&directory).unwrap();
    let result = use_it(&directory);
    fs::remove_dir_all(&directory).unwrap();
    result
}

fn progress(text: &str) {
    let _ = writeln!(std::io::stderr(), "bench: {text}");
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
}

fn main() {
    // `cargo test --all-targets` runs this program too, without that argument.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("to measure: cargo bench --package bench --bench logs");
        return;
    }
    let mb: u64 = std::env::var("BENCH_MB")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(300);
    let root = nix::unistd::geteuid().is_root();
    let disk = Dir::new();
    let numbers = kit::logs::numbers(&disk);
    let memory = PathBuf::from(format!("/dev/shm/logreopen-bench-{}", std::process::id()));
    fs::create_dir_all(&memory).unwrap();
    let node = installed("node");
    if wanted("lost") {
        lost::measure(&numbers, &memory);
    }
    if !wanted("logs") {
        fs::remove_dir_all(&memory).unwrap();
        return;
    }
    println!(
        "{mb} MB a round (a third of it in lines of 100 B), the best of {ROUNDS}; GB/s, CPU seconds of the logger a GB, wake-ups a GB\n"
    );
    println!(
        "{:<11} {:>24} {:>24} {:>24} {:>24} {:>8} {:>8} {:>8} {:>8}",
        "",
        "100 B, tmpfs",
        "100 B, disk",
        "64 KiB, tmpfs",
        "64 KiB, disk",
        "line",
        "reopen",
        "frozen",
        "burst"
    );
    let (there, missing): (Vec<Logger>, Vec<Logger>) =
        loggers().into_iter().partition(|one| installed(one.needs));
    for logger in &missing {
        report::absent("logs", logger.name, "not installed");
    }
    let cases = [
        (100, &*memory, "lines of 100 B, tmpfs"),
        (100, disk.path(), "lines of 100 B, disk"),
        (65_536, &*memory, "lines of 64 KiB, tmpfs"),
        (65_536, disk.path(), "lines of 64 KiB, disk"),
    ];
    let best = cases.map(|(length, place, what)| {
        let case = Case {
            what,
            place,
            length,
        };
        // Small lines take ten times as long, and say as much in a third of them.
        let mb = if length < 1000 { mb / 3 } else { mb };
        speeds(&case, &there, &numbers, mb * 1_000_000)
    });
    for (which, logger) in there.iter().enumerate() {
        progress(logger.name);
        let mut line = format!("{:<11}", logger.name);
        for case in &best {
            let speed = &case[which];
            line += &format!(
                " {:>8.3} {:>6.2} {:>8.0}",
                speed.rate, speed.cpu, speed.wakes
            );
        }
        let lone = if logger.command.is_empty() {
            Vec::new()
        } else {
            within(&memory, |directory| lone_line(logger, directory))
        };
        let reopened = within(&memory, |directory| reopen(logger, directory));
        let hung = root.then(|| frozen(logger, &numbers));
        let arrived = node.then(|| within(&memory, |directory| burst(logger, directory)) as f64);
        let less = |name: &str, unit: &str, values: &[f64]| {
            hand_over(Better::Less, name, unit, logger.name, values);
        };
        less("a lone line, to the file", "ms", &lone);
        less("a signal, to the new file", "ms", &reopened);
        less(
            "the longest write while the disk hangs for 4 s",
            "ms",
            &Vec::from_iter(hung),
        );
        let gone = arrived.map(|arrived| BURST as f64 - arrived);
        less(
            "lost of 100,000 lines before process.exit",
            "",
            &Vec::from_iter(gone),
        );
        line += &format!(
            " {:>8} {:>8} {:>8} {:>8}",
            number(median(&lone), 3),
            number(median(&reopened), 3),
            number(hung, 1),
            number(arrived, 0)
        );
        println!("{line}");
    }
    fs::remove_dir_all(&memory).unwrap();
    println!(
        "\nline: ms from a lone line's write to its being in the file, the median of {TRIES}; reopen: ms from the signal to\n\
         the new file, likewise; frozen: the program's longest write in ms while the disk hangs for 4 s; burst: lines of\n\
         {BURST} that arrive before process.exit. multilog, svlogd and s6-log rotate by themselves, which 16 MB and 256 MB\n\
         files make them do here. Without a logger the CPU is that of the program."
    );
    if !missing.is_empty() {
        let names: Vec<&str> = missing.iter().map(|one| one.name).collect();
        println!("not installed: {} (tests/setup.sh bench)", names.join(", "));
    }
}
