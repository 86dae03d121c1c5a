//! `--stamp` and `--prefix`: what stands before each line.

use crate::cli::Stamp;
use common::lines::{Buffer, Pool, Run};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// TAI was 10 s ahead of UTC when time_t began; leap seconds since then are not counted, as multilog does.
const TAI_AHEAD: u64 = 10;

/// What is put before lines.
#[derive(Clone, Debug)]
pub struct Head {
    stamp: Option<Stamp>,
    prefix: Vec<u8>,
}

impl Head {
    /// By the two options; `None` when there is nothing to put.
    #[must_use]
    pub fn new(stamp: Option<Stamp>, prefix: Option<&OsStr>) -> Option<Head> {
        let prefix = prefix.map_or(Vec::new(), |text| text.as_bytes().to_vec());
        (stamp.is_some() || !prefix.is_empty()).then_some(Head { stamp, prefix })
    }

    /// The bytes for lines that were read at `now`.
    #[must_use]
    pub fn at(&self, now: SystemTime) -> Vec<u8> {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut text = self
            .stamp
            .map_or(Vec::new(), |stamp| written(stamp, since).into_bytes());
        text.extend_from_slice(&self.prefix);
        text
    }

    /// The same lines, each with its head, in as many buffers as they need; `run`'s own is given back.
    pub fn put(&self, run: Run, now: SystemTime, pool: &mut Pool, sink: &mut dyn FnMut(Run)) {
        let head = self.at(now);
        let mut out = pool.take();
        let mut starts = run.starts;
        let mut first = true;
        for line in run.buffer.filled().split_inclusive(|byte| *byte == b'\n') {
            let begins = run.starts || !first;
            let need = line.len() + if begins { head.len() } else { 0 };
            if need > out.spare().len() && !out.filled().is_empty() {
                let full = std::mem::replace(&mut out, pool.take());
                sink(whole(full, starts));
                starts = true;
            }
            if begins {
                out.extend(&head);
            }
            out.extend(line);
            first = false;
        }
        pool.give(run.buffer);
        sink(Run {
            ends: run.ends,
            ..whole(out, starts)
        });
    }
}

fn whole(buffer: Buffer, starts: bool) -> Run {
    Run {
        buffer,
        starts,
        ends: true,
    }
}

fn written(stamp: Stamp, since: Duration) -> String {
    match stamp {
        Stamp::Rfc3339 => common::event::rfc3339(since) + " ",
        Stamp::Epoch => format!("{}.{:03} ", since.as_secs(), since.subsec_millis()),
        Stamp::Tai64n => format!(
            "@{:016x}{:08x} ",
            (1u64 << 62) + TAI_AHEAD + since.as_secs(),
            since.subsec_millis() * 1_000_000
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_three_styles() {
        let time = Duration::from_millis(1_795_467_600_123);
        for (stamp, expected) in [
            (Stamp::Rfc3339, "2026-11-23T21:00:00.123Z "),
            (Stamp::Epoch, "1795467600.123 "),
            (Stamp::Tai64n, "@400000006b04a95a0754d4c0 "),
        ] {
            assert_eq!(written(stamp, time), expected);
        }
        assert!(Head::new(None, None).is_none());
        assert!(Head::new(None, Some(OsStr::new(""))).is_none());
    }

    fn put(head: &str, text: &[u8], starts: bool, size: usize) -> Vec<Vec<u8>> {
        let head = Head {
            stamp: None,
            prefix: head.as_bytes().to_vec(),
        };
        let run = Run {
            buffer: Buffer::from(text),
            starts,
            ends: text.ends_with(b"\n"),
        };
        let mut out = Vec::new();
        let mut previous = starts;
        head.put(run, UNIX_EPOCH, &mut Pool::new(size, 2), &mut |run| {
            assert_eq!(run.starts, previous);
            assert_eq!(run.ends, run.buffer.filled().ends_with(b"\n"));
            previous = run.ends;
            out.push(run.buffer.filled().to_vec());
        });
        out
    }

    #[test]
    fn before_each_line_and_not_within_one() {
        assert_eq!(put("%d ", b"a\n\nb\n", true, 100), [b"%d a\n%d \n%d b\n"]);
        assert_eq!(put("> ", b"rest\nb", false, 100), [b"rest\n> b"]);
        assert_eq!(
            put("> ", b"a\nlonger\nb\n", true, 8),
            // A line that needs more room makes it.
            [&b"> a\n"[..], b"> longer\n> b\n"]
        );
    }

    proptest! {
        #[test]
        fn nothing_but_heads_is_added(text in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'x')], 1..100), size in 1usize..50) {
            let out = put("<>", &text, true, size).concat();
            let mut expected = Vec::new();
            for line in text.split_inclusive(|byte| *byte == b'\n') {
                expected.extend_from_slice(b"<>");
                expected.extend_from_slice(line);
            }
            prop_assert_eq!(out, expected);
        }
    }
}
