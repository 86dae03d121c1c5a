//! How often a healer may act: an exponential cool-down, a limit, and when it gives up. Pure: time is
//! given, nothing is done.

use crate::time::Rate;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What limits the actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Between the end of the first action and the next one.
    pub cooldown: Duration,
    /// It doubles up to that.
    pub cooldown_max: Duration,
    /// So many actions in so long; then it gives up. A count of 0: no limit.
    pub limit: Rate,
}

/// The answer to "may I act now?"
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Yes. It is the attempt of this number, and the next one is not before so long after its end.
    Act {
        /// From 1 on, since the service was last well for long enough.
        attempt: u32,
        /// The cool-down that follows it.
        cooldown: Duration,
    },
    /// Not before then.
    NotBefore(Instant),
    /// The limit is reached, just now: said once.
    GiveUp,
    /// It had given up before.
    GivenUp,
}

/// Remembers the actions of one service.
#[derive(Clone, Debug)]
pub struct Limiter {
    limits: Limits,
    attempts: u32,
    not_before: Option<Instant>,
    begun: VecDeque<Instant>,
    gave_up: bool,
    well_since: Option<Instant>,
}

impl Limiter {
    /// One that has seen no action yet.
    #[must_use]
    pub fn new(limits: Limits) -> Limiter {
        Limiter {
            limits,
            attempts: 0,
            not_before: None,
            begun: VecDeque::new(),
            gave_up: false,
            well_since: None,
        }
    }

    /// May an action begin now? Changes nothing but that it gives up.
    pub fn ask(&mut self, now: Instant) -> Leave {
        if self.gave_up {
            return Leave::GivenUp;
        }
        // Back to the first cool-down after as long a time of health as the limit looks back.
        if self
            .well_since
            .is_some_and(|since| now.duration_since(since) >= self.limits.limit.per)
        {
            self.attempts = 0;
            self.well_since = None;
        }
        if let Some(at) = self.not_before {
            if now < at {
                return Leave::NotBefore(at);
            }
        }
        let per = self.limits.limit.per;
        while self
            .begun
            .front()
            .is_some_and(|at| now.duration_since(*at) >= per)
        {
            self.begun.pop_front();
        }
        if self.limits.limit.count > 0 && self.begun.len() >= self.limits.limit.count as usize {
            self.gave_up = true;
            return Leave::GiveUp;
        }
        Leave::Act {
            attempt: self.attempts + 1,
            cooldown: self.cooldown_after(self.attempts + 1),
        }
    }

    /// An action has begun, or could not be started, which counts as much.
    pub fn begun(&mut self, now: Instant) {
        self.attempts = self.attempts.saturating_add(1);
        self.well_since = None;
        self.begun.push_back(now);
        if self.begun.len() > self.limits.limit.count.max(1) as usize {
            self.begun.pop_front();
        }
        self.not_before = Some(now + self.cooldown_after(self.attempts));
    }

    /// It has ended: the cool-down counts from here.
    pub fn ended(&mut self, now: Instant) {
        self.not_before = Some(now + self.cooldown_after(self.attempts));
    }

    /// The service is well: whoever gave up may act again, within the limit.
    pub fn well(&mut self, now: Instant) {
        self.gave_up = false;
        self.well_since.get_or_insert(now);
    }

    /// The service is not well any more.
    pub fn unwell(&mut self, now: Instant) {
        if let Some(since) = self.well_since.take() {
            if now.duration_since(since) >= self.limits.limit.per {
                self.attempts = 0;
            }
        }
    }

    /// It has given up.
    #[must_use]
    pub fn gave_up(&self) -> bool {
        self.gave_up
    }

    /// Actions since the service was last well for long enough.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    fn cooldown_after(&self, attempt: u32) -> Duration {
        let doublings = attempt.saturating_sub(1).min(31);
        self.limits
            .cooldown
            .saturating_mul(1 << doublings)
            .min(self.limits.cooldown_max.max(self.limits.cooldown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn limiter(cooldown: u64, most: u64, count: u32, per: u64) -> Limiter {
        Limiter::new(Limits {
            cooldown: SECOND * cooldown as u32,
            cooldown_max: SECOND * most as u32,
            limit: Rate {
                count,
                per: SECOND * per as u32,
            },
        })
    }

    #[test]
    fn the_cooldown_doubles_up_to_its_most_and_counts_from_the_end() {
        let start = Instant::now();
        let mut limiter = limiter(30, 100, 0, 600);
        let mut now = start;
        for (attempt, cooldown) in [(1, 30), (2, 60), (3, 100), (4, 100)] {
            let expected = Leave::Act {
                attempt,
                cooldown: SECOND * cooldown,
            };
            assert_eq!(limiter.ask(now), expected);
            limiter.begun(now);
            now += SECOND * 5;
            limiter.ended(now);
            let next = now + SECOND * cooldown;
            assert_eq!(limiter.ask(next - SECOND), Leave::NotBefore(next));
            now = next;
        }
    }

    #[test]
    fn it_gives_up_at_the_limit_until_the_service_is_well() {
        let start = Instant::now();
        let mut limiter = limiter(0, 0, 3, 600);
        for second in 0..3 {
            let now = start + SECOND * second;
            assert!(matches!(limiter.ask(now), Leave::Act { .. }), "{second}");
            limiter.begun(now);
            limiter.ended(now);
        }
        let now = start + SECOND * 10;
        assert_eq!(limiter.ask(now), Leave::GiveUp);
        assert_eq!(limiter.ask(now), Leave::GivenUp);
        assert_eq!(limiter.ask(now + SECOND * 10_000), Leave::GivenUp);
        limiter.well(now);
        // Well again, but within the same ten minutes: no fourth action.
        limiter.unwell(now + SECOND);
        assert_eq!(limiter.ask(now + SECOND), Leave::GiveUp);
        limiter.well(now + SECOND * 2);
        limiter.unwell(now + SECOND * 700);
        let expected = Leave::Act {
            attempt: 1,
            cooldown: Duration::ZERO,
        };
        assert_eq!(limiter.ask(now + SECOND * 700), expected);
    }

    #[test]
    fn a_short_recovery_does_not_shorten_the_cooldown() {
        let start = Instant::now();
        let mut limiter = limiter(30, 900, 5, 600);
        limiter.begun(start);
        limiter.ended(start);
        limiter.well(start + SECOND);
        limiter.unwell(start + SECOND * 60);
        let second = Leave::Act {
            attempt: 2,
            cooldown: SECOND * 60,
        };
        assert_eq!(limiter.ask(start + SECOND * 61), second);
        limiter.well(start + SECOND * 62);
        limiter.unwell(start + SECOND * 662);
        let first = Leave::Act {
            attempt: 1,
            cooldown: SECOND * 30,
        };
        assert_eq!(limiter.ask(start + SECOND * 662), first);
    }
}
