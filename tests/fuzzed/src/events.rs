//! The event line: whatever a program, a peer or a file's name has put into a field, it is one line of bounded
//! length, as JSON it says the same, and nothing in it commands a terminal.

use common::event::{Format, LONGEST, Level, Log, Value};
use std::time::Duration;

/// One input: fields, with NUL between.
pub fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let names = ["a", "b", "c", "d", "e", "f"];
    let fields: Vec<(&str, Value)> = names
        .into_iter()
        .zip(text.split('\0'))
        .map(|(name, text)| (name, text.into()))
        .chain([
            ("took", Duration::from_millis(bytes.len() as u64).into()),
            ("count", bytes.len().into()),
        ])
        .collect();
    for format in [Format::Text, Format::Json, Format::Journal] {
        let log = Log::new("spawnwork", Some(format), Level::Info);
        let line = log.line(Level::Info, "worker-ended", &fields).unwrap();
        assert!(line.len() <= LONGEST);
        let line = String::from_utf8(line).unwrap();
        let line = line.strip_suffix('\n').unwrap();
        assert!(!line.chars().any(char::is_control), "{line:?}");
        if format != Format::Json {
            // Outside of quotes there are our names alone.
            assert!(line.contains(" a="));
            continue;
        }
        let said: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(said["event"], "worker-ended");
        assert_eq!(said["count"].as_u64(), Some(bytes.len() as u64));
        for (name, text) in names.into_iter().zip(text.split('\0')) {
            let heard = said[name].as_str().unwrap();
            match heard.strip_suffix('…') {
                Some(beginning) if heard != text => assert!(text.starts_with(beginning)),
                Some(_) | None => assert_eq!(heard, text),
            }
        }
    }
}
