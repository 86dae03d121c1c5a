//! When a file may be changed: between two lines. A line that has begun is waited for, but not for ever.

use std::time::{Duration, Instant};

/// A line whose end has not come is waited for that long.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// The change of one file that is asked for.
#[derive(Debug, Default)]
pub struct Cut {
    wanted: Option<Wanted>,
}

#[derive(Debug)]
struct Wanted {
    limit: Instant,
    /// The sources that are in the middle of a line since it was asked for.
    open: Vec<usize>,
}

impl Cut {
    /// It is asked for, while the sources `open` are in the middle of a line. Asked again before it was
    /// done, it is the same one.
    pub fn ask(&mut self, open: &[usize], now: Instant) {
        if self.wanted.is_none() {
            self.wanted = Some(Wanted {
                limit: now + PATIENCE,
                open: open.to_vec(),
            });
        }
    }

    /// A line of `source` has ended, or the source itself.
    pub fn line_ended(&mut self, source: usize) {
        if let Some(wanted) = &mut self.wanted {
            wanted.open.retain(|open| *open != source);
        }
    }

    /// It is to be done now; true once for each.
    pub fn take_due(&mut self, now: Instant) -> bool {
        let due = self
            .wanted
            .as_ref()
            .is_some_and(|wanted| wanted.open.is_empty() || now >= wanted.limit);
        if due {
            self.wanted = None;
        }
        due
    }

    /// When [`Cut::take_due`] may have another answer by time alone.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.wanted.as_ref().map(|wanted| wanted.limit)
    }

    /// It waits.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.wanted.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_lines_it_is_done_at_once_and_within_one_at_its_end_or_after_a_second() {
        let now = Instant::now();
        let second = now + PATIENCE;
        let almost = second - Duration::from_millis(1);
        // Open sources, those whose line ends, when it is looked at: done or not.
        for (open, ended, at, due) in [
            (&[][..], &[][..], now, true),
            (&[0], &[], now, false),
            (&[0], &[], almost, false),
            (&[0], &[], second, true),
            (&[0], &[0], now, true),
            (&[0], &[1], almost, false),
            (&[0, 1], &[0], almost, false),
            (&[0, 1], &[0, 1], now, true),
            (&[0, 1], &[0], second, true),
        ] {
            let mut cut = Cut::default();
            assert!(!cut.take_due(second), "not asked for");
            cut.ask(open, now);
            ended.iter().for_each(|source| cut.line_ended(*source));
            assert_eq!(cut.take_due(at), due, "{open:?} {ended:?}");
            assert!(due != cut.is_wanted());
        }
    }

    #[test]
    fn asked_twice_it_waits_no_longer() {
        let now = Instant::now();
        let mut cut = Cut::default();
        cut.ask(&[0], now);
        cut.ask(&[0], now + PATIENCE / 2);
        assert_eq!(cut.deadline(), Some(now + PATIENCE));
        assert!(cut.take_due(now + PATIENCE) && !cut.take_due(now + PATIENCE));
    }
}
