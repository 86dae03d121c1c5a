//! The figures in short: a line for each, ours first and then the others, the best one first; as Markdown for README,
//! and for the man page of each program. And the figures in which another one is better than ours.

use crate::Record;
use crate::table::{in_table, number, ours};
use std::cmp::Ordering;
use std::fmt::Write;

/// Whose figures they are, and in which order.
pub const TOOLS: [(&str, &[&str]); 5] = [
    (
        "spawnwork",
        &[
            "start", "respawn", "idle", "many", "requests", "reload", "crash", "master", "deploys",
        ],
    ),
    ("heartbeat", &["check"]),
    ("logreopen", &["logs", "lost"]),
    ("watchtouch", &["touch", "nfs"]),
    ("replsock", &["repl", "app"]),
];

/// Scenarios, and what the names of their figures have in them, for README and the man pages.
const HEADLINES: [(&str, &str); 28] = [
    ("start", ""),
    ("respawn", "kill -9 to"),
    ("idle", "PSS"),
    ("idle", "wake-ups"),
    ("many", "500 workers: PSS"),
    ("many", "500 workers: all"),
    ("requests", ""),
    ("reload", "failed"),
    ("crash", ""),
    ("master", ""),
    ("deploys", "failed requests"),
    ("deploys", "not said"),
    ("logs", "lines of 100 B, tmpfs"),
    ("logs", "lines of 64 KiB, tmpfs"),
    ("logs", "a lone"),
    ("logs", "a signal"),
    ("logs", "the longest"),
    ("logs", "lost"),
    ("lost", ""),
    ("check", "from fork"),
    ("check", "idle"),
    ("touch", "to a"),
    ("touch", "idle: RSS"),
    ("nfs", ""),
    ("repl", ""),
    ("app", "requests"),
    ("app", "1+1"),
    ("app", "more RSS"),
];

/// What the machine itself takes, without anybody's program: nobody is better.
const FLOORS: [&str; 5] = ["floor", "bare ", "no logger", "in C", "static answer"];

fn is_floor(one: &Record) -> bool {
    FLOORS.iter().any(|word| one.subject.contains(word))
}

/// All of one figure: ours, and the others, the best first.
struct Line<'a> {
    scenario: &'a str,
    figure: &'a str,
    unit: &'a str,
    ours: Vec<&'a Record>,
    others: Vec<&'a Record>,
    /// Those that never do it.
    never: Vec<&'a str>,
}

/// True when `one` is the better one of the two.
fn order(one: &Record, other: &Record) -> Ordering {
    let order = one.median().total_cmp(&other.median());
    if one.more_is_better {
        order.reverse()
    } else {
        order
    }
}

fn lines<'a>(all: &'a [Record], scenario: &'a str) -> Vec<Line<'a>> {
    let mut lines: Vec<Line<'a>> = Vec::new();
    let measured = |one: &&Record| one.scenario == scenario && !one.values.is_empty();
    for one in all.iter().filter(measured) {
        let line = match lines.iter_mut().find(|line| line.figure == one.figure) {
            Some(line) => line,
            None => {
                lines.push(Line {
                    scenario,
                    figure: &one.figure,
                    unit: &one.unit,
                    ours: Vec::new(),
                    others: Vec::new(),
                    never: Vec::new(),
                });
                lines.last_mut().unwrap()
            }
        };
        if one.is_ours() {
            line.ours.push(one);
        } else {
            line.others.push(one);
        }
    }
    for line in &mut lines {
        line.others.sort_by(|one, other| order(one, other));
        let of_it = |one: &&Record| one.scenario == scenario && one.note.starts_with("never");
        let never = all.iter().filter(of_it);
        line.never = never.map(|one| one.subject.as_str()).collect();
    }
    lines.retain(|line| !line.ours.is_empty());
    lines
}

impl Line<'_> {
    fn name(&self) -> String {
        if self.unit.is_empty() {
            self.figure.to_owned()
        } else {
            format!("{}, {}", self.figure, self.unit)
        }
    }

    /// Of several ones of ours each says which one it is.
    fn own(&self) -> String {
        let several = self.ours.len() > 1;
        let each = self.ours.iter().map(|one| {
            let value = number(one.median());
            if several {
                format!("{} {value}", one.subject)
            } else {
                value
            }
        });
        each.collect::<Vec<_>>().join("; ")
    }

    fn other(&self) -> String {
        let each =
            (self.others.iter()).map(|one| format!("{} {}", one.subject, number(one.median())));
        let never = self.never.iter().map(|name| format!("{name} never"));
        each.chain(never).collect::<Vec<_>>().join("; ")
    }
}

/// Those of a program that README and its page have.
fn headlines<'a>(all: &'a [Record], scenarios: &[&'a str]) -> Vec<Line<'a>> {
    let mut list: Vec<Line<'a>> = scenarios
        .iter()
        .flat_map(|scenario| lines(all, scenario))
        .collect();
    list.retain(|line| {
        HEADLINES
            .iter()
            .any(|(scenario, figure)| *scenario == line.scenario && line.figure.contains(figure))
    });
    list
}

/// A table for each program.
pub fn markdown(all: &[Record], date: &str) -> String {
    let mut text = format!("\nOf {date} UTC; medians.\n");
    for (tool, scenarios) in TOOLS {
        let _ = write!(
            text,
            "\n| {tool} | ours | others, the best first |\n| --- | --- | --- |\n"
        );
        for line in headlines(all, scenarios) {
            let _ = writeln!(
                text,
                "| `{}`: {} | {} | {} |",
                line.scenario,
                line.name(),
                line.own(),
                in_table(&line.other())
            );
        }
    }
    text.push('\n');
    text
}

/// The same for its man page, in mdoc(7).
pub fn page(all: &[Record], tool: &str, date: &str) -> String {
    let escaped = |text: &str| {
        text.replace('\\', "\\e")
            .replace('-', "\\-")
            .replace("()", "\\&()")
    };
    let mut text = format!(
        "Medians of\n.Ql make bench\non {date} UTC, ours first, then the others, the best one first.\n.Bl -bullet -compact\n"
    );
    let scenarios = TOOLS.iter().find(|(name, _)| *name == tool);
    let scenarios = scenarios.map_or(&[][..], |(_, scenarios)| scenarios);
    for line in headlines(all, scenarios) {
        let _ = write!(text, ".It\n{}\n({}):", escaped(&line.name()), line.scenario);
        // A line for each: none is longer than mandoc's 80 bytes.
        let all = format!("ours {}; {}", line.own(), line.other());
        let list: Vec<&str> = all.split("; ").filter(|one| !one.is_empty()).collect();
        text.push('\n');
        text.push_str(&escaped(&list.join(";\n")));
        text.push('\n');
    }
    text.push_str(".El\n");
    text
}

/// Where another one is better, and the spreads do not overlap.
pub fn behind(all: &[Record]) -> Vec<String> {
    let mut list = Vec::new();
    for scenario in TOOLS.iter().flat_map(|(_, scenarios)| scenarios.iter()) {
        for line in lines(all, scenario) {
            let Some(own) = ours(all, scenario, line.figure) else {
                continue;
            };
            let best = line.ours.iter().copied().min_by(|a, b| order(a, b));
            let own = best.unwrap_or(own);
            for other in line.others.iter().filter(|one| !is_floor(one)) {
                let ((low, high), (our_low, our_high)) = (other.middle(), own.middle());
                let apart = low > our_high || our_low > high;
                if apart && order(other, own) == Ordering::Less {
                    list.push(format!(
                        "`{scenario}`: {}: {} {}, ours {}",
                        line.name(),
                        other.subject,
                        number(other.median()),
                        number(own.median())
                    ));
                }
            }
        }
    }
    list
}
