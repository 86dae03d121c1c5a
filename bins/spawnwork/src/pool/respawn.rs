//! When a slot whose worker died may start the next one. Pure: (history, death, now) -> verdict.

use common::exit::End;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What the user allows.
#[derive(Clone, Debug)]
pub struct Policy {
    /// So many deaths ...
    pub count: u32,
    /// ... in so long are allowed; `count` 0: any number.
    pub per: Duration,
    /// Only these deaths count; empty: all.
    pub filter: Vec<End>,
    /// The first wait.
    pub min: Duration,
    /// The longest wait.
    pub max: Duration,
}

/// A worker that lived so long comes back at once.
const HEALTHY: Duration = Duration::from_secs(1);

/// A slot's memory of its deaths.
#[derive(Clone, Debug, Default)]
pub struct History {
    deaths: VecDeque<Instant>,
    short_lives: u32,
}

/// When to start the next worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Now.
    AtOnce,
    /// After this wait.
    After(Duration),
    /// The limit is passed; if the slot is held, after this wait.
    Over(Duration),
}

impl History {
    /// Takes note of a death. `random` spreads the waits of slots that die together.
    pub fn died(
        &mut self,
        policy: &Policy,
        end: Option<End>,
        uptime: Duration,
        now: Instant,
        random: u64,
    ) -> Verdict {
        let counts = policy.count > 0
            && (policy.filter.is_empty() || end.is_some_and(|end| policy.filter.contains(&end)));
        if counts {
            self.deaths.push_back(now);
        }
        while self
            .deaths
            .front()
            .is_some_and(|first| now.duration_since(*first) > policy.per)
        {
            self.deaths.pop_front();
        }
        if counts && self.deaths.len() > policy.count as usize {
            // As many as are needed to stay over the limit until the window has passed.
            self.deaths.pop_front();
            return Verdict::Over(common::time::jittered(policy.max, 10, random));
        }
        if uptime >= HEALTHY {
            self.short_lives = 0;
            return Verdict::AtOnce;
        }
        let doubled = policy.min.saturating_mul(1u32 << self.short_lives.min(20));
        self.short_lives = self.short_lives.saturating_add(1);
        Verdict::After(common::time::jittered(doubled.min(policy.max), 10, random))
    }

    /// Forgets everything: a new generation, new code.
    pub fn clear(&mut self) {
        *self = History::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        Policy {
            count: 5,
            per: Duration::from_secs(60),
            filter: vec![],
            min: Duration::from_millis(100),
            max: Duration::from_secs(30),
        }
    }

    fn wait(verdict: Verdict) -> Duration {
        match verdict {
            Verdict::AtOnce => Duration::ZERO,
            Verdict::After(wait) | Verdict::Over(wait) => wait,
        }
    }

    #[test]
    fn five_in_sixty_seconds_are_allowed_the_sixth_is_over() {
        let mut history = History::default();
        let start = Instant::now();
        for second in 0..5 {
            let now = start + Duration::from_secs(second);
            let verdict = history.died(&policy(), Some(End::Exited(1)), Duration::ZERO, now, 0);
            assert!(
                matches!(verdict, Verdict::After(_)),
                "death {second}: {verdict:?}"
            );
        }
        let verdict = history.died(
            &policy(),
            Some(End::Exited(1)),
            Duration::ZERO,
            start + Duration::from_secs(6),
            0,
        );
        assert!(matches!(verdict, Verdict::Over(_)), "{verdict:?}");
        // Long after, it may try again as if nothing had been.
        let verdict = history.died(
            &policy(),
            Some(End::Exited(1)),
            Duration::from_secs(9),
            start + Duration::from_secs(600),
            0,
        );
        assert_eq!(verdict, Verdict::AtOnce);
    }

    #[test]
    fn waits_double_up_to_the_longest_and_begin_anew_after_health() {
        let policy = Policy {
            count: 0,
            ..policy()
        };
        let mut history = History::default();
        let now = Instant::now();
        let mut last = Duration::ZERO;
        for _ in 0..9 {
            let next = wait(history.died(&policy, None, Duration::ZERO, now, 0));
            assert!(next > last, "{next:?} after {last:?}");
            last = next;
        }
        for _ in 0..50 {
            last = wait(history.died(&policy, None, Duration::ZERO, now, u64::MAX));
        }
        assert!(last <= Duration::from_secs(33), "{last:?}");
        let healthy = history.died(&policy, None, Duration::from_secs(1), now, 0);
        assert_eq!(healthy, Verdict::AtOnce);
        assert!(
            wait(history.died(&policy, None, Duration::ZERO, now, 0)) <= Duration::from_millis(110)
        );
    }

    #[test]
    fn a_worker_that_was_up_for_a_second_comes_back_at_once() {
        let mut history = History::default();
        let verdict = history.died(
            &policy(),
            Some(End::Killed(9)),
            Duration::from_secs(1),
            Instant::now(),
            7,
        );
        assert_eq!(verdict, Verdict::AtOnce);
    }

    #[test]
    fn only_what_the_filter_names_counts() {
        let policy = Policy {
            count: 1,
            filter: vec![End::Killed(11), End::Exited(3)],
            ..policy()
        };
        let mut history = History::default();
        let now = Instant::now();
        for _ in 0..10 {
            let verdict = history.died(&policy, Some(End::Exited(1)), Duration::ZERO, now, 0);
            assert!(matches!(verdict, Verdict::After(_)));
        }
        let _ = history.died(&policy, Some(End::Killed(11)), Duration::ZERO, now, 0);
        let verdict = history.died(&policy, Some(End::Exited(3)), Duration::ZERO, now, 0);
        assert!(matches!(verdict, Verdict::Over(_)));
    }
}
