//! One picture for each scenario: a bar for each program, a group for each figure. The longest bar of a group fills
//! the width; a line through a bar's end is the spread.

use crate::Record;
use crate::table::{by_scenario, number};
use std::fmt::Write;

const WIDTH: f64 = 860.0;
const LEFT: f64 = 230.0;
const RIGHT: f64 = 130.0;
const ROW: f64 = 18.0;
const GAP: f64 = 26.0;

fn escaped(text: &str) -> String {
    // Code is marked so in Markdown alone.
    text.replace('`', "")
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

pub fn draw(all: &[Record], heading: &str) -> Vec<(String, String)> {
    by_scenario(all)
        .into_iter()
        .filter(|(_, _, figures)| !figures.is_empty())
        .map(|(scenario, title, figures)| {
            let mut body = String::new();
            let mut y = 48.0;
            for figure in &figures {
                y = group(&mut body, all, &scenario, figure, y);
            }
            let picture = format!(
                "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n\
                 <title>{title}</title>\n\
                 <style>text{{font:12px sans-serif;fill:#333}}.t{{font-size:15px;font-weight:600}}.f{{font-weight:600}}.s{{font-size:10px;fill:#777}}.o{{fill:#2b6cb0}}.p{{fill:#b8c2cc}}line{{stroke:#333}}</style>\n\
                 <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n\
                 <text class=\"t\" x=\"12\" y=\"20\">{title}</text>\n\
                 <text class=\"s\" x=\"12\" y=\"34\">{heading}</text>\n{body}</svg>\n",
                height = y + 4.0,
                title = escaped(&title),
                heading = escaped(heading),
            );
            (scenario, picture)
        })
        .collect()
}

/// The bars of one figure, from `y` on; the end of them.
fn group(body: &mut String, all: &[Record], scenario: &str, figure: &str, mut y: f64) -> f64 {
    let rows: Vec<&Record> = all
        .iter()
        .filter(|one| one.scenario == scenario && one.figure == figure)
        .collect();
    let Some(first) = rows.first() else { return y };
    let better = if first.more_is_better {
        "more is better"
    } else {
        "less is better"
    };
    let unit = if first.unit.is_empty() {
        String::new()
    } else {
        format!(", {}", first.unit)
    };
    let _ = writeln!(
        body,
        "<text class=\"f\" x=\"12\" y=\"{}\">{}</text>",
        y + 14.0,
        escaped(&format!("{figure}{unit} ({better})"))
    );
    y += ROW + 2.0;
    let most = rows.iter().map(|one| one.most()).fold(0.0, f64::max);
    let scale = if most > 0.0 {
        (WIDTH - LEFT - RIGHT) / most
    } else {
        0.0
    };
    for one in rows {
        let class = if one.is_ours() { "o" } else { "p" };
        let (low, middle, high) = (one.least(), one.median(), one.most());
        let bar = (middle * scale).max(1.0);
        let _ = writeln!(
            body,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text><rect class=\"{class}\" x=\"{LEFT}\" y=\"{}\" width=\"{bar:.1}\" height=\"12\"/>",
            LEFT - 8.0,
            y + 11.0,
            escaped(&one.subject),
            y + 1.0,
        );
        if high > low {
            let _ = writeln!(
                body,
                "<line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{2}\" y2=\"{2}\"/>",
                LEFT + low * scale,
                LEFT + high * scale,
                y + 7.0
            );
        }
        let _ = writeln!(
            body,
            "<text x=\"{:.1}\" y=\"{}\">{}</text>",
            LEFT + (high * scale).max(bar) + 6.0,
            y + 11.0,
            number(middle)
        );
        y += ROW;
    }
    y + GAP - ROW
}
