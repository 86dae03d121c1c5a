//! `make bench`: every part in turn, then one table and one picture for each scenario, with the versions, the machine
//! and the date, as TSV, Markdown and SVG. `ONLY=reload,idle` takes some of the scenarios.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs
)]

mod chart;
mod machine;
mod summary;
mod table;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

/// The benches, and which scenarios each of them has.
const PARTS: [(&str, &[&str]); 8] = [
    ("spawnwork", &["idle", "respawn", "requests", "reload"]),
    ("masters", &["start", "crash", "many"]),
    ("deploys", &["deploys", "master"]),
    ("logs", &["logs", "lost"]),
    ("heartbeat", &["check"]),
    ("watch", &["touch", "nfs"]),
    ("repl", &["repl", "app"]),
    ("size", &["size"]),
];

/// One program's values of one figure.
#[derive(Clone, Debug)]
pub struct Record {
    pub scenario: String,
    /// Empty: the program is absent, and `note` says why.
    pub figure: String,
    pub unit: String,
    pub more_is_better: bool,
    pub subject: String,
    pub values: Vec<f64>,
    pub note: String,
}

impl Record {
    fn parse(line: &str) -> Option<Record> {
        let fields: Vec<&str> = line.split('\t').collect();
        let [scenario, figure, unit, better, subject, values] = fields.as_slice() else {
            return None;
        };
        let absent = figure.is_empty();
        Some(Record {
            scenario: (*scenario).to_owned(),
            figure: (*figure).to_owned(),
            unit: (*unit).to_owned(),
            more_is_better: *better == "more",
            subject: (*subject).to_owned(),
            values: if absent {
                Vec::new()
            } else {
                let mut values: Vec<f64> = values
                    .split(' ')
                    .filter_map(|value| value.parse().ok())
                    .collect();
                values.sort_by(f64::total_cmp);
                values
            },
            note: if absent {
                (*values).to_owned()
            } else {
                String::new()
            },
        })
    }

    pub fn median(&self) -> f64 {
        let middle = self.values.len() / 2;
        if self.values.len() % 2 == 1 {
            self.values[middle]
        } else {
            (self.values[middle - 1] + self.values[middle]) / 2.0
        }
    }

    pub fn least(&self) -> f64 {
        self.values[0]
    }

    pub fn most(&self) -> f64 {
        self.values[self.values.len() - 1]
    }

    /// The middle half of the values: of three, all of them.
    pub fn middle(&self) -> (f64, f64) {
        let cut = self.values.len() / 4;
        (self.values[cut], self.values[self.values.len() - 1 - cut])
    }

    /// One of the five, however it is called with.
    pub fn is_ours(&self) -> bool {
        [
            "heartbeat",
            "logreopen",
            "replsock",
            "spawnwork",
            "watchtouch",
        ]
        .iter()
        .any(|name| self.subject.starts_with(name))
    }
}

fn only() -> Result<BTreeSet<String>, String> {
    let known: BTreeSet<&str> = PARTS
        .iter()
        .flat_map(|(_, names)| names.iter().copied())
        .collect();
    let text = std::env::var("ONLY").unwrap_or_default();
    let names: BTreeSet<String> = text
        .split(',')
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .collect();
    match names.iter().find(|name| !known.contains(name.as_str())) {
        Some(name) => Err(format!(
            "ONLY={name}: no such scenario; there are {}",
            known.into_iter().collect::<Vec<_>>().join(", ")
        )),
        None => Ok(names),
    }
}

fn run_parts(names: &BTreeSet<String>, records: &Path) -> Vec<String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut failed = Vec::new();
    for (bench, scenarios) in PARTS {
        let wanted = |name: &&str| names.is_empty() || names.contains(*name);
        if !scenarios.iter().any(wanted) {
            continue;
        }
        let began = Instant::now();
        println!("\n== {bench}");
        let status = Command::new(&cargo)
            .args(["bench", "--quiet", "--package", "bench", "--bench", bench])
            .env("BENCH_RECORDS", records)
            .status();
        if !status.is_ok_and(|status| status.success()) {
            failed.push(bench.to_owned());
        }
        println!("== {bench}: {} s", began.elapsed().as_secs());
    }
    failed
}

/// Where the results go: a directory of its own for each run, below target/bench.
fn place(root: &Path, date: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from);
    let name = date.replace([':', ' '], "-");
    root.join(target).join("bench").join(name)
}

/// What was measured, on what, and when.
struct Run {
    date: String,
    heading: String,
    versions: String,
    records: Vec<Record>,
    /// All of it, and nothing failed: README and the pages have figures of such a run only.
    whole: bool,
}

/// Tables and pictures of a run.
fn draw(run: &Run, place: &Path) -> String {
    let all = &run.records;
    fs::write(place.join("results.tsv"), table::tsv(all, &run.heading)).unwrap();
    let mut markdown = table::markdown(all, &run.heading, &run.versions);
    let behind = summary::behind(all);
    if !behind.is_empty() {
        markdown.push_str("\n### Where another one is better than ours\n\n");
        for line in behind {
            markdown.push_str(&format!("- {line}\n"));
        }
    }
    fs::write(place.join("results.md"), &markdown).unwrap();
    if run.whole {
        let text = summary::markdown(all, &run.date);
        fs::write(place.join("summary.md"), text).unwrap();
        for (tool, _) in summary::TOOLS {
            let page = summary::page(all, tool, &run.date);
            fs::write(place.join(format!("{tool}.man")), page).unwrap();
        }
    }
    for (scenario, picture) in chart::draw(all, &run.heading) {
        fs::write(place.join(format!("{scenario}.svg")), picture).unwrap();
    }
    markdown
}

/// The tables of a run once more, from what it left: its directory is the argument.
fn again(place: &Path) -> ExitCode {
    let text = fs::read_to_string(place.join("records")).unwrap_or_default();
    let mut about = text
        .lines()
        .map_while(|line| line.strip_prefix("# ").map(str::to_owned));
    let mut next = || about.next().unwrap_or_default();
    let (date, heading, versions, whole) = (next(), next(), next(), next());
    if date.is_empty() {
        println!("bench: {}: no records of a run", place.display());
        return ExitCode::from(2);
    }
    let run = Run {
        date,
        heading,
        versions,
        records: text.lines().filter_map(Record::parse).collect(),
        whole: whole == "whole",
    };
    draw(&run, place);
    ExitCode::SUCCESS
}

fn main() -> ExitCode {
    if let Some(place) = std::env::args_os().nth(1) {
        return again(Path::new(&place));
    }
    let names = match only() {
        Ok(names) => names,
        Err(why) => {
            println!("bench: {why}");
            return ExitCode::from(2);
        }
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap();
    let date = machine::date();
    let place = place(&root, &date);
    fs::create_dir_all(&place).unwrap();
    let records = place.join("records");
    let _ = fs::remove_file(&records);
    let began = Instant::now();
    let before = machine::load();
    let failed = run_parts(&names, &records);
    let text = fs::read_to_string(&records).unwrap_or_default();
    let heading = format!(
        "{date}; {}; load {before} before, {} behind; {} s in all",
        machine::describe(),
        machine::load(),
        began.elapsed().as_secs()
    );
    let run = Run {
        heading,
        versions: machine::versions(&root),
        records: text.lines().filter_map(Record::parse).collect(),
        whole: names.is_empty() && failed.is_empty(),
        date,
    };
    let whole = if run.whole { "whole" } else { "a part" };
    let about = format!(
        "# {}\n# {}\n# {}\n# {whole}\n",
        run.date, run.heading, run.versions
    );
    fs::write(&records, about + &text).unwrap();
    let markdown = draw(&run, &place);
    println!("\n{markdown}\nwritten to {}", place.display());
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        println!("failed: {}", failed.join(", "));
        ExitCode::FAILURE
    }
}
