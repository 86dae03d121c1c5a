//! The event line: built whole, quoted, bounded; written by one write(2) of whoever has the output.

use crate::exit::End;
use std::fmt::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The longest line, in bytes: PIPE_BUF, so that a pipe never tears it.
pub const LONGEST: usize = 4096;

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Somebody must act.
    Error,
    /// Somebody should know.
    Warning,
    /// What happened.
    Info,
    /// Each step.
    Debug,
}

/// `--log-format`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Time, tool, event, key=value.
    Text,
    /// JSON Lines.
    Json,
    /// For systemd's journal: `<N>` in front, which brings time and name itself.
    Journal,
}

/// A field's value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A number.
    Int(i64),
    /// Words, quoted where they need it.
    Text(String),
    /// A duration: `142ms` in text, seconds in JSON.
    Time(Duration),
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Text(text)
    }
}

impl From<Duration> for Value {
    fn from(length: Duration) -> Value {
        Value::Time(length)
    }
}

impl From<End> for Value {
    fn from(end: End) -> Value {
        Value::Text(end.to_string())
    }
}

macro_rules! from_numbers {
    ($($number:ty),*) => { $(impl From<$number> for Value {
        fn from(number: $number) -> Value {
            Value::Int(i64::try_from(number).unwrap_or(i64::MAX))
        }
    })* };
}
from_numbers!(i64, i32, u32, u64, usize);

/// Who speaks, and how.
#[derive(Clone, Debug)]
pub struct Log {
    tool: &'static str,
    pid: u32,
    format: Format,
    threshold: Level,
}

impl Log {
    /// A log for `tool`. Without a format it is journal's where stderr leads there, else text.
    #[must_use]
    pub fn new(tool: &'static str, format: Option<Format>, threshold: Level) -> Log {
        let format = format.unwrap_or_else(|| {
            if stderr_is_journal() {
                Format::Journal
            } else {
                Format::Text
            }
        });
        Log {
            tool,
            pid: std::process::id(),
            format,
            threshold,
        }
    }

    /// One complete line; `None` when it is not wanted.
    #[must_use]
    pub fn line(&self, level: Level, event: &str, fields: &[(&str, Value)]) -> Option<Vec<u8>> {
        if level > self.threshold {
            return None;
        }
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let mut room = LONGEST / 2;
        loop {
            let line = self.build(now, level, event, fields, room);
            if line.len() <= LONGEST || room < 32 {
                return Some(line.into_bytes());
            }
            // A long value gives way, never the line's end.
            room -= room / 4;
        }
    }

    fn build(
        &self,
        now: Duration,
        level: Level,
        event: &str,
        fields: &[(&str, Value)],
        room: usize,
    ) -> String {
        let mut line = String::with_capacity(160);
        let (tool, pid) = (self.tool, self.pid);
        // Writing to a string does not fail.
        let _ = match self.format {
            Format::Text => write!(line, "{} {tool}[{pid}]: {event}", rfc3339(now)),
            Format::Journal => write!(line, "<{}>{event}", priority(level)),
            Format::Json => write!(
                line,
                "{{\"time\":\"{}\",\"tool\":\"{tool}\",\"pid\":{pid},\"level\":\"{}\",\"event\":\"{event}\"",
                rfc3339(now),
                level_name(level)
            ),
        };
        for (key, value) in fields {
            if self.format == Format::Json {
                let _ = write!(line, ",\"{key}\":");
                match value {
                    Value::Int(number) => line.push_str(&number.to_string()),
                    Value::Time(length) => {
                        line.push_str(&(length.as_millis() as f64 / 1000.0).to_string())
                    }
                    Value::Text(text) => quote(&mut line, shortened(text, room).as_ref()),
                }
            } else {
                let _ = write!(line, " {key}=");
                match value {
                    Value::Int(number) => line.push_str(&number.to_string()),
                    Value::Time(length) => line.push_str(&crate::time::say(*length)),
                    Value::Text(text) if plain(text) && text.len() <= room => line.push_str(text),
                    Value::Text(text) => quote(&mut line, shortened(text, room).as_ref()),
                }
            }
        }
        line.push_str(if self.format == Format::Json {
            "}\n"
        } else {
            "\n"
        });
        line
    }
}

/// The end of a long text says more than its beginning only in reports, and those are cut by whoever
/// makes them: here the beginning stays.
fn shortened(text: &str, room: usize) -> String {
    if text.len() <= room {
        return text.to_owned();
    }
    let mut end = room;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &text[..end])
}

fn plain(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_./:@%+,-[]*".contains(&byte))
}

/// In double quotes, as JSON escapes, which also serves the text format: no program's output can
/// forge a line or a field.
pub fn quote(line: &mut String, text: &str) {
    line.push('"');
    for letter in text.chars() {
        match letter {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\n' => line.push_str("\\n"),
            '\t' => line.push_str("\\t"),
            '\r' => line.push_str("\\r"),
            // Control bytes, and the C1 controls that terminals obey too.
            letter if letter.is_control() => {
                line.push_str(&format!("\\u{:04x}", u32::from(letter)))
            }
            letter => line.push(letter),
        }
    }
    line.push('"');
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warning => "warning",
        Level::Info => "info",
        Level::Debug => "debug",
    }
}

/// syslog(3), as sd-daemon(3) writes it.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warning => 4,
        Level::Info => 6,
        Level::Debug => 7,
    }
}

/// A time since 1970 as RFC 3339 has it: UTC, milliseconds.
#[must_use]
pub fn rfc3339(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days to a date of the Gregorian calendar, in eras of 400 years that begin on 1 March 0000.
    let shifted = days as i64 + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    let ms = since_epoch.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// `JOURNAL_STREAM` holds device and inode of the stream to the journal (systemd.exec(5)).
fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(stat) = nix::sys::stat::fstat(crate::sys::standard(2)) else {
        return false;
    };
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn log(format: Format) -> Log {
        Log {
            tool: "spawnwork",
            pid: 812,
            format,
            threshold: Level::Info,
        }
    }

    fn built(format: Format, fields: &[(&str, Value)]) -> String {
        log(format).build(
            Duration::from_millis(1_795_467_600_123),
            Level::Info,
            "worker-ready",
            fields,
            2000,
        )
    }

    #[test]
    fn the_three_formats() {
        let fields = [
            ("slot", 2usize.into()),
            ("took", Duration::from_millis(142).into()),
            ("error", "a b".into()),
        ];
        assert_eq!(
            built(Format::Text, &fields),
            "2026-11-23T21:00:00.123Z spawnwork[812]: worker-ready slot=2 took=142ms error=\"a b\"\n"
        );
        assert_eq!(
            built(Format::Journal, &fields),
            "<6>worker-ready slot=2 took=142ms error=\"a b\"\n"
        );
        assert_eq!(
            built(Format::Json, &fields),
            "{\"time\":\"2026-11-23T21:00:00.123Z\",\"tool\":\"spawnwork\",\"pid\":812,\"level\":\"info\",\"event\":\"worker-ready\",\"slot\":2,\"took\":0.142,\"error\":\"a b\"}\n"
        );
    }

    #[test]
    fn nothing_can_forge_a_line() {
        let text = built(
            Format::Text,
            &[(
                "error",
                "x\n2026 spawnwork[1]: stopped \"\u{1b}[31m\u{9b}".into(),
            )],
        );
        assert_eq!(text.matches('\n').count(), 1);
        assert!(
            !text.contains('\u{1b}') && !text.contains('\u{9b}'),
            "{text}"
        );
    }

    #[test]
    fn a_line_is_never_longer_than_a_pipe_takes_whole() {
        for format in [Format::Text, Format::Json, Format::Journal] {
            let long: Value = "\u{1}é".repeat(5000).into();
            let line = log(format)
                .line(Level::Error, "x", &[("a", long.clone()), ("b", long)])
                .unwrap();
            assert!(
                line.len() <= LONGEST && line.ends_with(b"\n"),
                "{}",
                line.len()
            );
        }
        assert!(log(Format::Text).line(Level::Debug, "x", &[]).is_none());
    }

    #[test]
    fn dates() {
        assert_eq!(rfc3339(Duration::ZERO), "1970-01-01T00:00:00.000Z");
        assert_eq!(
            rfc3339(Duration::from_secs(951_782_400)),
            "2000-02-29T00:00:00.000Z"
        );
        assert_eq!(
            rfc3339(Duration::from_secs(1_798_761_599)),
            "2026-12-31T23:59:59.000Z"
        );
    }
}
