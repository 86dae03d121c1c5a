//! The lines on stdout: pure.

use crate::act::{Item, seconds};
use crate::plan::Lines;
use crate::signature::Seen;
use common::event::{quote, rfc3339};
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// One touch, ready to be written.
#[must_use]
pub fn line(item: &Item, count: u32, time: Duration, lines: Lines) -> Vec<u8> {
    match lines {
        Lines::Null => {
            let mut line = item.path.as_os_str().as_bytes().to_vec();
            line.push(0);
            line
        }
        Lines::Text => {
            let (time, event) = (rfc3339(time), item.change.name());
            format!("{time} {event} {}\n", escaped(&item.path)).into_bytes()
        }
        Lines::Json => json(item, count, time).into_bytes(),
    }
}

/// A path on one line: control bytes, the backslash and what is not UTF-8 are written as in C.
#[must_use]
pub fn escaped(path: &Path) -> String {
    let mut text = String::new();
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\t' => text.push_str("\\t"),
                '\r' => text.push_str("\\r"),
                letter if letter.is_control() => {
                    let mut bytes = [0; 4];
                    for byte in letter.encode_utf8(&mut bytes).bytes() {
                        let _ = write!(text, "\\x{byte:02x}");
                    }
                }
                letter => text.push(letter),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

fn json(item: &Item, count: u32, time: Duration) -> String {
    let mut line = format!(
        "{{\"time\":\"{}\",\"event\":\"{}\"",
        rfc3339(time),
        item.change.name()
    );
    line.push_str(",\"path\":");
    quote(&mut line, &item.path.to_string_lossy());
    let bytes = item.path.as_os_str().as_bytes();
    if std::str::from_utf8(bytes).is_err() {
        // Writing to a string does not fail.
        let _ = write!(line, ",\"path_bytes\":\"{}\"", base64(bytes));
    }
    if let Seen::There(found) = item.seen {
        let _ = write!(
            line,
            ",\"mtime\":{},\"ino\":{},\"size\":{}",
            seconds(found.mtime),
            found.ino,
            found.size
        );
    }
    if let Some(previous) = item.previous {
        let _ = write!(line, ",\"previous_mtime\":{}", seconds(previous));
    }
    let _ = write!(line, ",\"via\":\"{}\",\"count\":{count}}}", item.via.name());
    line.push('\n');
    line
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut three = [0; 3];
        three[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for place in 0..4 {
            if place <= chunk.len() {
                let index = (bits >> (18 - 6 * place)) & 63;
                text.push(char::from(LETTERS[index as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::eye::Via;
    use crate::signature::{Change, Signature};
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    fn item(path: &[u8]) -> Item {
        Item {
            file: 0,
            path: OsString::from_vec(path.to_vec()).into(),
            change: Change::Touched,
            via: Via::Inotify,
            seen: Seen::There(Signature {
                dev: 1,
                ino: 7,
                size: 3,
                mtime: (5, 6),
                btime: None,
                ctime: (5, 6),
            }),
            previous: Some((4, 0)),
        }
    }

    #[test]
    fn every_name_stays_on_its_line() {
        let time = Duration::from_millis(1_795_467_600_123);
        let text =
            |path: &[u8], lines| String::from_utf8(line(&item(path), 2, time, lines)).unwrap();
        assert_eq!(
            text(b"/srv/restart", Lines::Text),
            "2026-11-23T21:00:00.123Z touched /srv/restart\n"
        );
        assert_eq!(
            text(b"/a\n\xff\\\x1b", Lines::Text),
            "2026-11-23T21:00:00.123Z touched /a\\n\\xff\\\\\\x1b\n"
        );
        assert_eq!(
            line(&item(b"/a\n\xff"), 1, time, Lines::Null),
            b"/a\n\xff\0"
        );
        assert_eq!(
            text(b"/a\xff", Lines::Json),
            "{\"time\":\"2026-11-23T21:00:00.123Z\",\"event\":\"touched\",\"path\":\"/a\u{fffd}\",\
             \"path_bytes\":\"L2H/\",\"mtime\":5.000000006,\"ino\":7,\"size\":3,\
             \"previous_mtime\":4.000000000,\"via\":\"inotify\",\"count\":2}\n"
        );
    }

    #[test]
    fn the_letters_of_rfc_4648() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
