//! The results as text: TSV for programs, Markdown for people.

use crate::Record;
use std::collections::BTreeSet;
use std::fmt::Write;

/// What each scenario is, in the order of the table.
const SCENARIOS: [(&str, &str); 16] = [
    ("start", "From the start of a master to its first answer"),
    (
        "respawn",
        "From the `kill -9` of a worker to the exec of the next",
    ),
    ("idle", "A master that has nothing to do"),
    ("requests", "Requests of an app behind a master"),
    ("reload", "Requests that fail while a master reloads"),
    ("crash", "Requests that fail while workers are killed"),
    ("master", "The master is killed with -9 under requests"),
    ("deploys", "Bad deploys: what clients see in nine seconds"),
    ("many", "A hundred workers, and five hundred"),
    ("logs", "A logger behind a pipe"),
    ("lost", "Lines that are lost over rotations"),
    ("touch", "From a touch to the action"),
    (
        "nfs",
        "From a touch on an NFS server to a line, after 100 s",
    ),
    ("check", "A check over HTTP"),
    ("repl", "A console on a socket"),
    ("app", "What a REPL session costs the app"),
];

/// Scenarios that are there, each with its figures in the order in which they came.
pub fn by_scenario(all: &[Record]) -> Vec<(String, String, Vec<String>)> {
    let mut known: Vec<(String, String)> = SCENARIOS
        .iter()
        .map(|(name, title)| ((*name).to_owned(), (*title).to_owned()))
        .collect();
    known.push(("size".into(), "Programs on disk".into()));
    known
        .into_iter()
        .map(|(scenario, title)| {
            let mut figures: Vec<String> = Vec::new();
            for one in all.iter().filter(|one| one.scenario == scenario) {
                if !one.figure.is_empty() && !figures.contains(&one.figure) {
                    figures.push(one.figure.clone());
                }
            }
            (scenario, title, figures)
        })
        .filter(|(scenario, _, _)| all.iter().any(|one| one.scenario == *scenario))
        .collect()
}

/// Ours of a figure, the first one: what the others are compared with.
pub fn ours<'a>(all: &'a [Record], scenario: &str, figure: &str) -> Option<&'a Record> {
    all.iter()
        .find(|one| one.scenario == scenario && one.figure == figure && one.is_ours())
}

/// Within a table of Markdown.
pub fn in_table(text: &str) -> String {
    text.replace('|', "\\|")
}

/// A number with as many digits as tell something.
pub fn number(value: f64) -> String {
    let size = value.abs();
    if value.fract() == 0.0 || size >= 100.0 {
        format!("{value:.0}")
    } else if size >= 10.0 {
        format!("{value:.1}")
    } else if size >= 1.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.3}")
    }
}

/// Times ours; where the middle halves of the two overlap this run does not tell them apart.
fn ratio(one: &Record, ours: Option<&Record>) -> String {
    let Some(ours) = ours else {
        return String::new();
    };
    if one.subject == ours.subject {
        return "1".to_owned();
    }
    let several = one.values.len() > 1 && ours.values.len() > 1;
    let ((low, high), (our_low, our_high)) = (one.middle(), ours.middle());
    if several && low <= our_high && our_low <= high {
        return "≈".to_owned();
    }
    if ours.median() == 0.0 {
        return if one.median() == 0.0 { "≈" } else { "∞" }.to_owned();
    }
    number(one.median() / ours.median())
}

pub fn tsv(all: &[Record], heading: &str) -> String {
    let mut text = format!(
        "# {heading}\nscenario\tfigure\tunit\tbetter\tprogram\tmin\tmedian\tmax\trounds\tnote\n"
    );
    for one in all {
        let better = if one.more_is_better { "more" } else { "less" };
        let numbers = if one.values.is_empty() {
            "\t\t\t0".to_owned()
        } else {
            format!(
                "{}\t{}\t{}\t{}",
                one.least(),
                one.median(),
                one.most(),
                one.values.len()
            )
        };
        let _ = writeln!(
            text,
            "{}\t{}\t{}\t{better}\t{}\t{numbers}\t{}",
            one.scenario, one.figure, one.unit, one.subject, one.note
        );
    }
    text
}

pub fn markdown(all: &[Record], heading: &str, versions: &str) -> String {
    let mut text = format!(
        "{heading}.\n\n{versions}\n\n`×` is times ours; `≈` where the middle halves of both overlap, so that this run does not tell them apart.\n"
    );
    for (scenario, title, figures) in by_scenario(all) {
        let _ = write!(text, "\n### {title} (`{scenario}`)\n\n");
        if !figures.is_empty() {
            text.push_str("| | program | min | median | max | × |\n| --- | --- | ---: | ---: | ---: | ---: |\n");
        }
        for figure in figures {
            let own = ours(all, &scenario, &figure);
            let rows = all
                .iter()
                .filter(|one| one.scenario == scenario && one.figure == figure);
            let mut first = true;
            for one in rows {
                let name = match (std::mem::take(&mut first), one.unit.as_str()) {
                    (false, _) => String::new(),
                    (true, "") => figure.clone(),
                    (true, unit) => format!("{figure}, {unit}"),
                };
                let (least, most) = if one.values.len() > 1 {
                    (number(one.least()), number(one.most()))
                } else {
                    (String::new(), String::new())
                };
                let _ = writeln!(
                    text,
                    "| {name} | {} | {least} | {} | {most} | {} |",
                    in_table(&one.subject),
                    number(one.median()),
                    ratio(one, own)
                );
            }
        }
        // A part may say so for each of its figures.
        let absent: BTreeSet<String> = all
            .iter()
            .filter(|one| one.scenario == scenario && one.figure.is_empty())
            .map(|one| format!("{}: {}", one.subject, one.note))
            .collect();
        let absent = Vec::from_iter(absent);
        if !absent.is_empty() {
            let _ = write!(text, "\n{}\n", absent.join("; "));
        }
    }
    text
}
