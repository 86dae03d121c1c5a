//! What is said, and where: to our own stderr, or through one of the files when stderr leads there, or a
//! thread of its own when it leads to another file.

use crate::queue::Gap;
use common::event::{Value, rfc3339};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where event lines go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Voice {
    /// Our own stderr: a pipe, a terminal, a socket.
    #[default]
    Stderr,
    /// Stderr leads to this output's file: lines go there, so that they follow it when it is changed.
    /// About itself, when it cannot be written, it would never get to say anything: the other one does.
    Through(usize),
    /// Stderr leads to another file, which may hang like any: a writer of its own.
    Writer(usize),
}

/// The output that says something about `about`, of `count` outputs; `None`: nobody can.
#[must_use]
pub fn speaker(voice: Voice, about: Option<usize>, failing: &[bool]) -> Option<usize> {
    match voice {
        Voice::Stderr => None,
        Voice::Writer(index) => Some(index),
        Voice::Through(index) if about == Some(index) && failing.get(index) == Some(&true) => {
            (0..failing.len()).find(|other| *other != index && !failing[*other])
        }
        Voice::Through(index) => Some(index),
    }
}

/// The fields of `lines-lost`.
#[must_use]
pub fn gap_fields(gap: &Gap) -> [(&'static str, Value); 4] {
    let time = |time: SystemTime| rfc3339(time.duration_since(UNIX_EPOCH).unwrap_or_default());
    [
        ("lines", gap.lines.into()),
        ("bytes", gap.bytes.into()),
        ("since", time(gap.since).into()),
        ("until", time(gap.until).into()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_output_never_speaks_of_itself() {
        use Voice::{Stderr, Through, Writer};
        for (voice, about, failing, expected) in [
            (Stderr, Some(0), &[true][..], None),
            (Writer(2), Some(0), &[true, true], Some(2)),
            (Through(1), Some(0), &[true, false], Some(1)),
            (Through(1), None, &[false, false], Some(1)),
            (Through(1), Some(1), &[false, false], Some(1)),
            (Through(1), Some(1), &[false, true], Some(0)),
            (Through(1), Some(1), &[true, true], None),
            (Through(0), Some(0), &[true], None),
        ] {
            assert_eq!(
                speaker(voice, about, failing),
                expected,
                "{voice:?} {about:?} {failing:?}"
            );
        }
    }
}
