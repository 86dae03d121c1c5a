//! When it acts: pure. Touches, the ends of actions and the time go in, what is to be done comes out.

use crate::cli::Busy;
use std::time::{Duration, Instant};

/// The first pause before an action that failed is tried again; it doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest one.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// So many runs, each for nothing but touches made while the one before ran, and it is the action that
/// touches the file.
const SUSPECT: u32 = 5;
/// A touch may be heard of so long after it was made.
const ECHO: Duration = Duration::from_millis(50);
/// Then it runs once more after so long a quiet, for the last touch may have been somebody else's after
/// all; if that run is touched again, it was not.
const PROBE: Duration = Duration::from_secs(10);

/// The user's wishes.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Quiet for so long ...
    pub settle: Duration,
    /// ... or after so long in any case.
    pub settle_max: Duration,
    /// From one start to the next.
    pub min_gap: Duration,
    /// While an action runs.
    pub busy: Busy,
    /// How often a failed action is tried again.
    pub retries: u32,
    /// The action may touch the file itself: a command, and no line or signal.
    pub may_loop: bool,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The touches have settled: look whether anything differs still, and say so by [`Decider::settled`].
    Settle,
    /// Act, for so many touches, for the so-manieth time after a failure (0: the first try).
    Start {
        /// Touches since the last start.
        count: u32,
        /// Tries before this one.
        attempt: u32,
    },
    /// An action runs, and the touches are to be dropped.
    Ignore,
    /// An action runs, and one more run will follow.
    Queue,
    /// End the running action; a start follows its end.
    Stop,
    /// Signal the running action.
    Signal(i32),
    /// The action seems to touch the file itself: it waits for so long.
    Suspect(Duration),
    /// It does: the touches are to be dropped.
    SelfTouch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Quiet,
    Settling {
        first: Instant,
        last: Instant,
    },
    /// Settled; it acts then.
    Waiting {
        at: Instant,
    },
    /// It acts when the running action has ended.
    Queued,
    /// A failed action is tried again then.
    Retry {
        at: Instant,
    },
}

/// The state of all decisions.
#[derive(Debug)]
pub struct Decider {
    policy: Policy,
    phase: Phase,
    running: bool,
    count: u32,
    attempt: u32,
    /// What the last start was for.
    last_count: u32,
    last_start: Option<Instant>,
    last_end: Option<Instant>,
    /// A touch came while no action ran.
    foreign: bool,
    chain: u32,
    probing: bool,
}

impl Decider {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new(policy: Policy) -> Decider {
        Decider {
            policy,
            phase: Phase::Quiet,
            running: false,
            count: 0,
            attempt: 0,
            last_count: 0,
            last_start: None,
            last_end: None,
            foreign: false,
            chain: 0,
            probing: false,
        }
    }

    /// A touch was seen.
    pub fn touch(&mut self, now: Instant) {
        self.count = self.count.saturating_add(1);
        // Where runs may follow at once, an echo cannot be told from the next touch.
        let echo = ECHO.min(self.policy.min_gap / 2);
        let echo = self.last_end.is_some_and(|end| now < end + echo);
        if !self.running && !echo {
            self.foreign = true;
        }
        match self.phase {
            // It is tried anew, for this touch too, with all its tries.
            Phase::Quiet | Phase::Retry { .. } => {
                self.phase = Phase::Settling {
                    first: now,
                    last: now,
                };
            }
            Phase::Settling { first, .. } => self.phase = Phase::Settling { first, last: now },
            // Somebody else's, so there is nothing to find out.
            Phase::Waiting { .. } if self.probing && self.foreign => {
                self.probing = false;
                self.phase = Phase::Settling {
                    first: now,
                    last: now,
                };
            }
            // Neither the splay nor the gap begins again.
            Phase::Waiting { .. } | Phase::Queued => {}
        }
    }

    /// When [`Decider::tick`] has something to say.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Quiet | Phase::Queued => None,
            Phase::Settling { first, last } => {
                Some((last + self.policy.settle).min(first + self.policy.settle_max))
            }
            Phase::Waiting { at } | Phase::Retry { at } => Some(at),
        }
    }

    /// Time has passed. To be asked until it says nothing.
    pub fn tick(&mut self, now: Instant) -> Option<Order> {
        if self.deadline().is_none_or(|at| at > now) {
            return None;
        }
        match self.phase {
            Phase::Quiet | Phase::Queued => None,
            Phase::Settling { .. } => Some(Order::Settle),
            Phase::Retry { .. } => Some(self.start()),
            Phase::Waiting { .. } if !self.running => {
                self.attempt = 0;
                if let Some(order) = self.suspect(now) {
                    return Some(order);
                }
                Some(self.start())
            }
            Phase::Waiting { .. } => Some(match self.policy.busy {
                Busy::Queue => {
                    self.phase = Phase::Queued;
                    Order::Queue
                }
                Busy::Restart => {
                    self.phase = Phase::Queued;
                    Order::Stop
                }
                Busy::Ignore => {
                    self.drop_all();
                    Order::Ignore
                }
                Busy::Signal(signal) => {
                    self.drop_all();
                    Order::Signal(signal)
                }
            }),
        }
    }

    /// Runs that follow each other only because of what was touched while they ran.
    fn suspect(&mut self, now: Instant) -> Option<Order> {
        if self.foreign || !self.policy.may_loop {
            self.chain = 0;
            self.probing = false;
            return None;
        }
        self.chain += 1;
        if self.chain <= SUSPECT {
            return None;
        }
        if self.chain == SUSPECT + 1 {
            self.probing = true;
            let pause = PROBE.max(self.policy.min_gap);
            self.phase = Phase::Waiting { at: now + pause };
            return Some(Order::Suspect(pause));
        }
        if self.chain == SUSPECT + 2 {
            return None;
        }
        self.chain = 0;
        self.probing = false;
        self.drop_all();
        Some(Order::SelfTouch)
    }

    /// The answer to [`Order::Settle`]: whether anything differs still, and how much later it is to act.
    pub fn settled(&mut self, differs: bool, splay: Duration, now: Instant) {
        if differs {
            let gap = self.last_start.map(|start| start + self.policy.min_gap);
            let at = (now + splay).max(gap.unwrap_or(now));
            self.phase = Phase::Waiting { at };
        } else {
            self.drop_all();
        }
    }

    fn drop_all(&mut self) {
        self.phase = Phase::Quiet;
        self.count = 0;
        self.foreign = false;
    }

    fn start(&mut self) -> Order {
        if !matches!(self.phase, Phase::Retry { .. }) {
            self.last_count = self.count;
        }
        self.drop_all();
        Order::Start {
            count: self.last_count,
            attempt: self.attempt,
        }
    }

    /// The action has begun, at that time.
    pub fn started(&mut self, now: Instant) {
        self.running = true;
        self.last_start = Some(now);
    }

    /// The action has ended, well or not. Gives the pause before the next try, if there is one.
    pub fn ended(&mut self, well: bool, now: Instant) -> Option<Duration> {
        self.running = false;
        self.last_end = Some(now);
        match self.phase {
            // It has waited for the gap before it was queued.
            Phase::Queued => {
                self.phase = Phase::Waiting { at: now };
                None
            }
            Phase::Quiet if !well && self.attempt < self.policy.retries => {
                let pause = FIRST_PAUSE
                    .saturating_mul(1 << self.attempt.min(16))
                    .min(LONGEST_PAUSE);
                self.attempt += 1;
                self.phase = Phase::Retry { at: now + pause };
                Some(pause)
            }
            // What was touched meanwhile is a run of its own.
            Phase::Quiet | Phase::Settling { .. } | Phase::Waiting { .. } | Phase::Retry { .. } => {
                None
            }
        }
    }

    /// An action is to run, soon or when the running one has ended.
    #[must_use]
    pub fn pending(&self) -> bool {
        self.phase != Phase::Quiet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn policy(busy: Busy) -> Policy {
        Policy {
            settle: MS * 100,
            settle_max: MS * 2000,
            min_gap: MS * 1000,
            busy,
            retries: 0,
            may_loop: true,
        }
    }

    /// What happens at which ms, and what is ordered at which ms.
    #[derive(Clone, Copy, Debug)]
    enum In {
        Touch,
        /// The running action ends well, or not.
        End(bool),
    }

    /// Runs a script; the effects are played: a settle finds a difference, a start begins an action that
    /// runs until its `End`.
    fn played(policy: Policy, splay: Duration, script: &[(u32, In)]) -> Vec<(u32, Order)> {
        let zero = Instant::now();
        let mut decider = Decider::new(policy);
        let mut orders = Vec::new();
        let mut script = script.iter().peekable();
        for ms in 0..200_000u32 {
            let now = zero + MS * ms;
            while let Some((_, what)) = script.next_if(|(at, _)| *at == ms) {
                match what {
                    In::Touch => decider.touch(now),
                    In::End(well) => {
                        decider.ended(*well, now);
                    }
                }
            }
            while let Some(order) = decider.tick(now) {
                match order {
                    Order::Settle => decider.settled(true, splay, now),
                    Order::Start { .. } => {
                        decider.started(now);
                        orders.push((ms, order));
                    }
                    _ => orders.push((ms, order)),
                }
            }
        }
        orders
    }

    fn start(count: u32) -> Order {
        Order::Start { count, attempt: 0 }
    }

    #[test]
    fn the_table() {
        use In::{End, Touch};
        let none = Duration::ZERO;
        type Row = (
            &'static str,
            Busy,
            Duration,
            Vec<(u32, In)>,
            Vec<(u32, Order)>,
        );
        let mut slow: Vec<(u32, In)> = (0..60).map(|n| (n * 50, Touch)).collect();
        slow.insert(51, (2520, End(true)));
        let table: Vec<Row> = vec![
            (
                "one touch",
                Busy::Queue,
                none,
                vec![(0, Touch)],
                vec![(100, start(1))],
            ),
            (
                "ten in the settle time are one",
                Busy::Queue,
                none,
                (0..10).map(|n| (n * 10, Touch)).collect(),
                vec![(190, start(10))],
            ),
            (
                "a slow writer is waited for, but not for ever, and its end is not lost",
                Busy::Queue,
                none,
                slow,
                vec![(2000, start(41)), (3050, start(19))],
            ),
            (
                "within the gap it is kept",
                Busy::Queue,
                none,
                vec![(0, Touch), (110, End(true)), (300, Touch)],
                vec![(100, start(1)), (1100, start(1))],
            ),
            (
                "while it runs: one more, however many",
                Busy::Queue,
                none,
                vec![
                    (0, Touch),
                    (2000, Touch),
                    (2500, Touch),
                    (3000, Touch),
                    (5000, End(true)),
                ],
                vec![(100, start(1)), (2100, Order::Queue), (5000, start(3))],
            ),
            (
                "or none",
                Busy::Ignore,
                none,
                vec![(0, Touch), (2000, Touch), (5000, End(true)), (6000, Touch)],
                vec![(100, start(1)), (2100, Order::Ignore), (6100, start(1))],
            ),
            (
                "or it is ended and run again",
                Busy::Restart,
                none,
                vec![(0, Touch), (2000, Touch), (2200, End(false))],
                vec![(100, start(1)), (2100, Order::Stop), (2200, start(1))],
            ),
            (
                "or it is told",
                Busy::Signal(10),
                none,
                vec![(0, Touch), (2000, Touch), (2200, End(true))],
                vec![(100, start(1)), (2100, Order::Signal(10))],
            ),
            (
                "the splay does not begin again",
                Busy::Queue,
                MS * 5000,
                vec![(0, Touch), (3000, Touch), (4000, Touch)],
                vec![(5100, start(3))],
            ),
        ];
        for (what, busy, splay, script, orders) in table {
            assert_eq!(played(policy(busy), splay, &script), orders, "{what}");
        }
    }

    #[test]
    fn what_differs_no_more_is_dropped() {
        let zero = Instant::now();
        let mut decider = Decider::new(policy(Busy::Queue));
        decider.touch(zero);
        assert_eq!(decider.tick(zero + MS * 100), Some(Order::Settle));
        decider.settled(false, Duration::ZERO, zero + MS * 100);
        assert!(!decider.pending() && decider.deadline().is_none());
    }

    #[test]
    fn a_failure_is_tried_again_with_longer_pauses_and_a_touch_begins_anew() {
        use In::{End, Touch};
        let policy = Policy {
            retries: 2,
            ..policy(Busy::Queue)
        };
        let again = |attempt| Order::Start { count: 1, attempt };
        let script = [
            (0, Touch),
            (200, End(false)),
            (1300, End(false)),
            (3400, End(false)),
        ];
        assert_eq!(
            played(policy, Duration::ZERO, &script),
            [(100, again(0)), (1200, again(1)), (3300, again(2))]
        );
        let script = [
            (0, Touch),
            (200, End(false)),
            (1300, End(false)),
            (2000, Touch),
        ];
        assert_eq!(
            played(policy, Duration::ZERO, &script),
            [(100, again(0)), (1200, again(1)), (2200, again(0))]
        );
        // What went well is not.
        let script = [(0, Touch), (200, End(true))];
        assert_eq!(played(policy, Duration::ZERO, &script), [(100, again(0))]);
    }

    #[test]
    fn the_pauses_between_tries_do_not_grow_for_ever() {
        let mut decider = Decider::new(Policy {
            retries: 1000,
            ..policy(Busy::Queue)
        });
        let mut now = Instant::now();
        decider.touch(now);
        now += MS * 100;
        assert_eq!(decider.tick(now), Some(Order::Settle));
        decider.settled(true, Duration::ZERO, now);
        let mut pauses = Vec::new();
        for _ in 0..30 {
            assert!(matches!(decider.tick(now), Some(Order::Start { .. })));
            decider.started(now);
            let pause = decider.ended(false, now);
            now += pause.unwrap_or_default();
            pauses.push(pause.map(|pause| pause.as_secs()));
        }
        let wanted = [1, 2, 4, 8, 16, 32, 60, 60].map(Some);
        assert_eq!(pauses[..8], wanted);
        assert!(pauses[8..].iter().all(|pause| *pause == Some(60)));
    }

    /// Plays an action that takes 20 ms, the touches of it so many ms after its start, and a touch from
    /// outside at each of these ms.
    fn looping(policy: Policy, own: &[u32], outside: &[u32]) -> Vec<(u32, Order)> {
        let zero = Instant::now();
        let mut decider = Decider::new(policy);
        let (mut orders, mut begun, mut runs) = (Vec::new(), None, false);
        for ms in 0..60_000u32 {
            let now = zero + MS * ms;
            let after = begun.map(|begun| ms - begun);
            if outside.contains(&ms) || after.is_some_and(|after| own.contains(&after)) {
                decider.touch(now);
            }
            if runs && after == Some(20) {
                runs = false;
                decider.ended(true, now);
            }
            while let Some(order) = decider.tick(now) {
                match order {
                    Order::Settle => decider.settled(true, Duration::ZERO, now),
                    Order::Start { .. } => {
                        decider.started(now);
                        (begun, runs) = (Some(ms), true);
                    }
                    _ => {}
                }
                if order != Order::Settle && order != Order::Queue {
                    orders.push((ms, order));
                }
            }
        }
        orders
    }

    #[test]
    fn an_action_that_touches_its_own_file_does_not_run_for_ever() {
        let hold = Order::Suspect(PROBE);
        let at_once = Policy {
            settle: Duration::ZERO,
            ..policy(Busy::Queue)
        };
        // While it runs; heard of after its end; the same twice, where the first is acted upon at once.
        for (policy, own, count) in [
            (policy(Busy::Queue), &[10][..], 1),
            (policy(Busy::Queue), &[50], 1),
            (at_once, &[30, 50], 2),
        ] {
            let orders = looping(policy, own, &[0]);
            let kinds: Vec<Order> = orders.iter().map(|(_, order)| *order).collect();
            let mut wanted = vec![start(1)];
            wanted.extend([start(count); 5]);
            wanted.extend([hold, start(count), Order::SelfTouch]);
            assert_eq!(kinds, wanted, "{orders:?}");
            assert_eq!(orders[7].0 - orders[6].0, 10_000, "{orders:?}");
        }
        // Heard of once more while it is held.
        let brief = Policy {
            min_gap: MS * 30,
            ..at_once
        };
        let orders = looping(brief, &[25, 33], &[0]);
        let kinds: Vec<Order> = orders.iter().take(9).map(|(_, order)| *order).collect();
        let mut wanted = vec![start(1); 6];
        wanted.extend([hold, start(2), Order::SelfTouch]);
        assert_eq!(kinds, wanted, "{orders:?}");
        assert_eq!(orders[7].0 - orders[6].0, 10_000, "{orders:?}");
        // The gap may be longer than that.
        let long = Policy {
            min_gap: MS * 20_000,
            ..policy(Busy::Queue)
        };
        let mut decider = Decider::new(long);
        (decider.chain, decider.phase) = (
            SUSPECT,
            Phase::Settling {
                first: Instant::now(),
                last: Instant::now(),
            },
        );
        let now = Instant::now() + MS * 100;
        decider.settled(true, Duration::ZERO, now);
        assert_eq!(decider.tick(now), Some(Order::Suspect(MS * 20_000)));
        // With so small a gap it is taken for somebody else's, always.
        let close = Policy {
            min_gap: MS * 40,
            settle: Duration::ZERO,
            ..policy(Busy::Queue)
        };
        let orders = looping(close, &[50], &[0]);
        assert!(
            orders.len() > 500 && orders.iter().all(|(_, order)| *order == start(1)),
            "{orders:?}"
        );
        // Held, and touched by somebody else: at once, and from the beginning.
        let orders = looping(policy(Busy::Queue), &[10], &[0, 8000]);
        let held = orders.iter().position(|(_, order)| *order == hold);
        let next = held.and_then(|held| orders.get(held + 1));
        assert_eq!(next, Some(&(8100, start(2))), "{orders:?}");
        assert!(orders.len() > 12, "{orders:?}");
        // A line or a signal touches nothing.
        let orders = looping(
            Policy {
                may_loop: false,
                ..policy(Busy::Queue)
            },
            &[10],
            &[0],
        );
        assert!(orders.len() > 40, "{}", orders.len());
    }
}
