//! When the next check begins. Pure: fixed ticks of the monotonic clock, and late ones are skipped.

use std::time::{Duration, Instant};

/// A service may be young, and a hundred of them on one host must not beat as one: the first check is at
/// a random moment of the interval, but not later than that.
const FIRST: Duration = Duration::from_secs(5);

/// Ticks.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// A tick that was, or that the first is counted from.
    base: Instant,
    interval: Duration,
    jitter: u32,
    next: Instant,
}

impl Schedule {
    /// The first tick is at once (`jitter` 0 percent), or at random within the first `interval`.
    #[must_use]
    pub fn new(start: Instant, interval: Duration, jitter: u32, random: u64) -> Schedule {
        let phase = if jitter == 0 {
            Duration::ZERO
        } else {
            interval.min(FIRST).mul_f64(share(random))
        };
        Schedule {
            base: start + phase,
            interval,
            jitter,
            next: start + phase,
        }
    }

    /// When the next check begins.
    #[must_use]
    pub fn next(&self) -> Instant {
        self.next
    }

    /// A check has ended: the next one is at the next tick of `interval`. Ticks that have passed
    /// meanwhile are skipped. Another interval than before counts from the last tick.
    pub fn advance(&mut self, now: Instant, interval: Duration, random: u64) {
        if interval != self.interval {
            // The check that has just ended began at the last tick, or a little later.
            let passed = whole(now.saturating_duration_since(self.base), self.interval);
            self.base += self.interval.saturating_mul(passed);
            self.interval = interval;
        }
        let passed = whole(now.saturating_duration_since(self.base), self.interval);
        let tick = self.base + self.interval.saturating_mul(passed.saturating_add(1));
        // Tick by tick, so that the count of them stays small for as long as we run.
        self.base = tick - self.interval;
        self.next = tick + interval.mul_f64(f64::from(self.jitter) / 100.0 * share(random));
    }

    /// It is asked for now; the ticks stay where they are.
    pub fn hurry(&mut self, now: Instant) {
        self.next = self.next.min(now);
    }
}

/// A number from 0 to 1.
fn share(random: u64) -> f64 {
    (random >> 11) as f64 / (1u64 << 53) as f64
}

fn whole(length: Duration, interval: Duration) -> u32 {
    let count = length.as_nanos() / interval.as_nanos().max(1);
    u32::try_from(count).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_table() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        // Each: when the check ended, the interval from then on, the next tick; all in ms.
        for rows in [
            // A check is short, or takes most of the interval: the ticks do not drift.
            &[(5, 1000, 1000), (1005, 1000, 2000), (2900, 1000, 3000)][..],
            // Edge case 22: it takes longer than the interval: the next tick that is still to come.
            &[(1500, 1000, 2000), (5100, 1000, 6000)],
            // Edge case 23: a minute of suspension: one check, no burst.
            &[(5, 1000, 1000), (60_500, 1000, 61_000)],
            // Another interval counts from the last tick.
            &[(5, 1000, 1000), (1005, 200, 1200), (1205, 1000, 2200)],
            &[
                (5, 10_000, 10_000),
                (10_050, 2000, 12_000),
                (12_003, 10_000, 22_000),
            ],
            // A check that ends just on a tick is followed by the next one.
            &[(1000, 1000, 2000)],
        ] {
            let mut schedule = Schedule::new(start, Duration::from_millis(rows[0].1), 0, 0);
            assert_eq!(schedule.next(), start);
            for (ended, interval, next) in rows {
                schedule.advance(at(*ended), Duration::from_millis(*interval), u64::MAX);
                assert_eq!(schedule.next(), at(*next), "{rows:?}");
            }
        }
    }

    #[test]
    fn jitter_is_later_never_earlier_and_does_not_add_up() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, SECOND, 10, u64::MAX);
        assert!(schedule.next() > start && schedule.next() <= start + SECOND);
        // Edge case 46: however long the interval is, the first check comes within five seconds.
        assert!(Schedule::new(start, SECOND * 600, 10, u64::MAX).next() <= start + FIRST);
        let base = schedule.next();
        let mut later = 0;
        for tick in 1..100 {
            let nominal = base + SECOND * tick;
            schedule.advance(
                schedule.next() + SECOND / 100,
                SECOND,
                crate::schedule::tests::odd(tick),
            );
            assert!(schedule.next() >= nominal && schedule.next() <= nominal + SECOND / 10);
            later += u32::from(schedule.next() > nominal + SECOND / 20);
        }
        assert!((20..80).contains(&later), "{later} of 99");
        // Without jitter nothing is random.
        assert_eq!(Schedule::new(start, SECOND, 0, u64::MAX).next(), start);
    }

    #[test]
    fn the_ticks_are_counted_from_the_first_check() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, SECOND, 10, u64::MAX / 2);
        let first = schedule.next();
        schedule.advance(first, SECOND, 0);
        assert_eq!(schedule.next(), first + SECOND);
    }

    #[test]
    fn years_of_short_intervals() {
        let interval = Duration::from_millis(10);
        let mut now = Instant::now();
        let mut schedule = Schedule::new(now, interval, 0, 0);
        // More ticks than 32 bits hold.
        for _ in 0..4 {
            now += SECOND * 300 * 86_400;
            schedule.advance(now, interval, 0);
            assert!(schedule.next() > now && schedule.next() <= now + interval);
        }
    }

    fn odd(tick: u32) -> u64 {
        u64::from(tick).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    #[test]
    fn hurry_brings_it_forward_only() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, SECOND, 0, 0);
        schedule.advance(start, SECOND, 0);
        schedule.hurry(start + SECOND / 2);
        assert_eq!(schedule.next(), start + SECOND / 2);
        schedule.hurry(start + SECOND * 3 / 4);
        assert_eq!(schedule.next(), start + SECOND / 2);
        schedule.advance(start + SECOND / 2, SECOND, 0);
        assert_eq!(schedule.next(), start + SECOND);
    }
}
