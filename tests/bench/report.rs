//! What a part of the bench hands to the whole: figures, one line of a file each, whose name is in `BENCH_RECORDS`.
//! Without that the part only prints its own table.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]
// Each part of the bench uses some of it.
#![allow(dead_code)]

use std::fs::OpenOptions;
use std::io::Write;

/// Which way is better.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Better {
    Less,
    More,
}

/// A figure of several programs, in one scenario.
#[derive(Clone, Copy)]
pub struct Figure<'a> {
    pub scenario: &'a str,
    pub name: &'a str,
    /// As it stands behind a number; empty for a count.
    pub unit: &'a str,
    pub better: Better,
}

/// True for each scenario that `ONLY` names, with commas between; all of them when it names none.
pub fn wanted(scenario: &str) -> bool {
    let only = std::env::var("ONLY").unwrap_or_default();
    only.trim().is_empty() || only.split(',').any(|name| name.trim() == scenario)
}

/// One of several is wanted.
pub fn any_wanted(scenarios: &[&str]) -> bool {
    scenarios.iter().any(|scenario| wanted(scenario))
}

/// The values of one program, a round each.
pub fn figure(figure: Figure<'_>, subject: &str, values: &[f64]) {
    if values.is_empty() {
        return;
    }
    let values: Vec<String> = values.iter().map(|value| format!("{value:.6}")).collect();
    let better = match figure.better {
        Better::Less => "less",
        Better::More => "more",
    };
    record(&[
        figure.scenario,
        figure.name,
        figure.unit,
        better,
        subject,
        &values.join(" "),
    ]);
}

/// One of which less is better.
pub fn less(scenario: &str, name: &str, unit: &str, subject: &str, values: &[f64]) {
    let better = Better::Less;
    figure(
        Figure {
            scenario,
            name,
            unit,
            better,
        },
        subject,
        values,
    );
}

/// One of which more is better.
pub fn more(scenario: &str, name: &str, unit: &str, subject: &str, values: &[f64]) {
    let better = Better::More;
    figure(
        Figure {
            scenario,
            name,
            unit,
            better,
        },
        subject,
        values,
    );
}

/// A program that is not there, or did not do it.
pub fn absent(scenario: &str, subject: &str, why: &str) {
    record(&[scenario, "", "", "", subject, why]);
}

fn record(fields: &[&str]) {
    let Some(path) = std::env::var_os("BENCH_RECORDS").filter(|path| !path.is_empty()) else {
        return;
    };
    let fields: Vec<String> = fields
        .iter()
        .map(|field| field.replace(['\t', '\n'], " "))
        .collect();
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .unwrap();
    writeln!(file, "{}", fields.join("\t")).unwrap();
}
