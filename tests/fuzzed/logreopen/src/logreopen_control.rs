//! What logreopen's `--control` can be asked, and what it says of files whose names are anybody's.

use crate::control::{Request, Row, json, table};
use crate::shared::Stats;

/// One input.
pub fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let read = Request::parse(&text);
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(Request::parse(&words.join(" ")), read);
    if read.is_some() {
        assert!(words.len() <= 2 && words.concat().len() <= 10);
    }
    let mut parts = text.split('\0');
    let mut rows = Vec::new();
    while let Some(file) = parts.next() {
        let number = file.len();
        rows.push(Row {
            file: file.to_owned(),
            stats: Stats {
                inode: number as u64,
                bytes: u64::MAX - number as u64,
                lines: 1,
                reopens: 0,
                trouble: parts.next().map(str::to_owned),
                last_error: parts.next().map(str::to_owned),
            },
            held: number,
            lost: (u64::MAX, 0),
        });
    }
    let said = json(&rows, 7, rows.first().map(|_| 8));
    // One line, whatever the names are.
    assert!(!said.chars().any(char::is_control));
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    let outputs = said["outputs"].as_array().unwrap();
    assert_eq!(outputs.len(), rows.len());
    for (output, row) in outputs.iter().zip(&rows) {
        assert_eq!(output["file"], row.file.as_str());
        assert_eq!(output["error"].as_str(), row.stats.trouble.as_deref());
        assert_eq!(
            output["last_error"].as_str(),
            row.stats.last_error.as_deref()
        );
        assert_eq!(output["bytes"].as_u64(), Some(row.stats.bytes));
    }
    let drawn = table(&rows);
    assert!(drawn.ends_with('\n'));
}
