//! What can be asked over `--control`.

use crate::shared::Stats;
use common::event::quote;
use std::fmt::Write;

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Let the old files go.
    Reopen,
    /// Rotate by ourselves.
    Rotate,
    /// As a table.
    Status,
    /// As JSON.
    StatusJson,
    /// Which version runs.
    Version,
    /// What there is.
    Help,
}

/// One line each.
pub const HELP: &str = "\
reopen       let the old files go; answered when that is done
status       each file, and whether it can be written; 1 if one cannot
status json  the same for programs
rotate       rotate by ourselves now (needs --max-size)
version      which version runs
help         this list";

impl Request {
    /// From the words of a request.
    #[must_use]
    pub fn parse(text: &str) -> Option<Request> {
        let words: Vec<&str> = text.split_whitespace().collect();
        match words.as_slice() {
            ["reopen"] => Some(Request::Reopen),
            ["rotate"] => Some(Request::Rotate),
            ["status"] => Some(Request::Status),
            ["status", "json"] => Some(Request::StatusJson),
            ["version"] => Some(Request::Version),
            ["help"] => Some(Request::Help),
            _ => None,
        }
    }
}

/// One file, as the status shows it.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its path.
    pub file: String,
    /// What its writer says.
    pub stats: Stats,
    /// Bytes in memory.
    pub held: usize,
    /// Lines and bytes that were dropped.
    pub lost: (u64, u64),
}

/// A table for people.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let head = [
        "file", "inode", "bytes", "lines", "held", "lost", "reopens", "error",
    ]
    .map(str::to_owned);
    let mut cells = vec![head];
    for row in rows {
        let error = match (&row.stats.trouble, &row.stats.last_error) {
            (Some(now), _) => now.clone(),
            (None, Some(before)) => format!("(was: {before})"),
            (None, None) => "-".to_owned(),
        };
        cells.push([
            row.file.clone(),
            row.stats.inode.to_string(),
            row.stats.bytes.to_string(),
            row.stats.lines.to_string(),
            row.held.to_string(),
            row.lost.0.to_string(),
            row.stats.reopens.to_string(),
            error,
        ]);
    }
    let mut widths = [0; 8];
    for row in &cells {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &cells {
        let mut line = String::new();
        for (index, (width, cell)) in widths.iter().zip(row).enumerate() {
            // Numbers to the right.
            let _ = if (1..7).contains(&index) {
                write!(line, "{cell:>width$}  ")
            } else {
                write!(line, "{cell:<width$}  ")
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// One line for programs; sizes in bytes.
#[must_use]
pub fn json(rows: &[Row], pid: u32, command: Option<i32>) -> String {
    let mut text = format!(
        "{{\"version\":\"{}\",\"pid\":{pid}",
        env!("CARGO_PKG_VERSION")
    );
    if let Some(command) = command {
        let _ = write!(text, ",\"command_pid\":{command}");
    }
    text.push_str(",\"outputs\":[");
    for (index, row) in rows.iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        text.push_str("{\"file\":");
        quote(&mut text, &row.file);
        let _ = write!(
            text,
            ",\"inode\":{},\"bytes\":{},\"lines\":{},\"held\":{},\"lost_lines\":{},\"lost_bytes\":{},\"reopens\":{}",
            row.stats.inode,
            row.stats.bytes,
            row.stats.lines,
            row.held,
            row.lost.0,
            row.lost.1,
            row.stats.reopens
        );
        for (key, value) in [
            ("error", &row.stats.trouble),
            ("last_error", &row.stats.last_error),
        ] {
            let _ = write!(text, ",\"{key}\":");
            match value {
                Some(value) => quote(&mut text, value),
                None => text.push_str("null"),
            }
        }
        text.push('}');
    }
    text.push_str("]}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_words() {
        assert_eq!(Request::parse("reopen"), Some(Request::Reopen));
        assert_eq!(Request::parse(" status  json "), Some(Request::StatusJson));
        for wrong in ["", "reopen now", "status xml", "stop"] {
            assert_eq!(Request::parse(wrong), None, "{wrong}");
        }
        for line in HELP.lines() {
            let (words, _) = line.split_once("  ").unwrap_or((line, ""));
            assert!(Request::parse(words).is_some(), "{words}");
        }
    }

    #[test]
    fn the_two_forms_of_the_status() {
        let row = Row {
            file: "a \"b\"".to_owned(),
            stats: Stats {
                inode: 7,
                bytes: 10,
                lines: 2,
                reopens: 1,
                trouble: None,
                last_error: Some("no space left on device".to_owned()),
            },
            held: 0,
            lost: (3, 30),
        };
        let text = table(std::slice::from_ref(&row));
        assert_eq!(text.lines().count(), 2);
        assert!(text.contains("(was: no space left on device)"), "{text}");
        assert_eq!(
            json(&[row], 5, Some(6)),
            format!(
                "{{\"version\":\"{}\",\"pid\":5,\"command_pid\":6,\"outputs\":[{{\"file\":\"a \\\"b\\\"\",\"inode\":7,\"bytes\":10,\"lines\":2,\"held\":0,\"lost_lines\":3,\"lost_bytes\":30,\"reopens\":1,\"error\":null,\"last_error\":\"no space left on device\"}}]}}",
                env!("CARGO_PKG_VERSION")
            )
        );
    }
}
