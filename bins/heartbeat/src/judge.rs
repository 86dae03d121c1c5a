//! The judge: what a result means, after those before it. Pure: results and the time in, the state out.

use crate::outcome::Failure;
use std::time::{Duration, Instant};

/// `--fails N` or `N/M`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quorum {
    /// So many failures ...
    pub fails: u32,
    /// ... among the last so many results; as many: in a row. At most 64.
    pub of: u32,
}

/// Its rules.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// `--fails`
    pub fails: Quorum,
    /// `--rises`
    pub rises: u32,
}

/// How the service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It was never well.
    Starting,
    /// Well.
    Up,
    /// It answers, but late, or its certificate ends soon.
    Slow,
    /// Not well.
    Down,
}

impl State {
    /// As `HEARTBEAT_STATE` has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Up => "up",
            State::Slow => "slow",
            State::Down => "down",
        }
    }
}

/// The result of a round of checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// All passed.
    Well,
    /// All passed, one of them with a warning.
    Slow,
    /// One failed.
    Failed,
    /// One failed that has looked over a time of its own (`--stuck`, `--max-cpu`): once is enough.
    Decisive,
    /// One failed, but this process itself did not run in time to see it.
    Late,
}

impl Sight {
    /// The one of a failure.
    #[must_use]
    pub fn of(failure: &Failure) -> Sight {
        if failure.late {
            Sight::Late
        } else if failure.decisive {
            Sight::Decisive
        } else {
            Sight::Failed
        }
    }
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// Nothing new; of a failure, so many count by now (0: it does not count).
    Same {
        /// Failures that count.
        count: u32,
    },
    /// Enough failures: the service is down as soon as [`Judge::confirm`] is called.
    Enough {
        /// Failures that count.
        count: u32,
    },
    /// The state has changed from this one.
    Changed(State),
}

/// Judges one service.
#[derive(Clone, Debug)]
pub struct Judge {
    rules: Rules,
    state: State,
    /// Until then, or the first success, failures don't count.
    quiet: Option<Instant>,
    /// The last results, newest in bit 0; 1 is a failure.
    window: u64,
    decisive: bool,
    successes: u32,
    slow: u32,
    swift: u32,
    late: bool,
    /// The first of the failures that led here.
    failing_since: Option<Instant>,
    /// It was told to end, and may do so until then.
    leaving: Option<Instant>,
}

/// Who was told to end is given so long: supervisors' limits are 10 (docker) to 90 seconds (systemd).
const LEAVING: Duration = Duration::from_secs(90);
/// Longer than any service takes to end.
const FOR_GOOD: Duration = Duration::from_secs(365 * 24 * 3600);

impl Judge {
    /// One that has seen nothing, and begins with a start period.
    #[must_use]
    pub fn new(rules: Rules, start_period: Duration, now: Instant) -> Judge {
        Judge {
            rules,
            state: State::Starting,
            quiet: Some(now + start_period),
            window: 0,
            decisive: false,
            successes: 0,
            slow: 0,
            swift: 0,
            late: false,
            failing_since: None,
            leaving: None,
        }
    }

    /// How the service is.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Failures don't count now.
    #[must_use]
    pub fn quiet(&self, now: Instant) -> bool {
        self.quiet.is_some_and(|until| now < until)
    }

    /// It may soon have another state.
    #[must_use]
    pub fn in_doubt(&self) -> bool {
        match self.state {
            State::Starting | State::Up => self.window != 0 || self.slow > 0 || self.late,
            State::Slow => self.window != 0 || self.swift > 0,
            State::Down => self.successes > 0,
        }
    }

    /// When the failures began that have not been made good yet.
    #[must_use]
    pub fn failing_since(&self) -> Option<Instant> {
        self.failing_since
    }

    /// Failures that count, by now.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.window.count_ones()
    }

    /// One result.
    pub fn see(&mut self, sight: Sight, now: Instant) -> Ruling {
        let late_before = std::mem::take(&mut self.late);
        match sight {
            Sight::Well | Sight::Slow => self.see_success(sight == Sight::Slow, now),
            Sight::Late if !late_before => {
                self.late = true;
                Ruling::Same {
                    count: self.count(),
                }
            }
            Sight::Failed | Sight::Decisive | Sight::Late => {
                self.see_failure(sight == Sight::Decisive, now)
            }
        }
    }

    fn see_failure(&mut self, decisive: bool, now: Instant) -> Ruling {
        self.successes = 0;
        self.swift = 0;
        self.slow = 0;
        if self.quiet(now) {
            return Ruling::Same { count: 0 };
        }
        self.quiet = None;
        self.failing_since.get_or_insert(now);
        self.push(true);
        self.decisive = decisive;
        let count = self.count();
        if count >= self.rules.fails.fails || decisive {
            Ruling::Enough { count }
        } else {
            Ruling::Same { count }
        }
    }

    fn see_success(&mut self, slow: bool, now: Instant) -> Ruling {
        if self.leaving.is_none_or(|until| now >= until) {
            self.leaving = None;
            self.quiet = None;
        }
        self.push(false);
        self.successes = self.successes.saturating_add(1);
        if slow {
            self.slow = self.slow.saturating_add(1);
            self.swift = 0;
        } else {
            self.slow = 0;
            self.swift = self.swift.saturating_add(1);
        }
        if self.window == 0 && self.state != State::Down {
            self.failing_since = None;
        }
        let next = match self.state {
            State::Starting => State::Up,
            State::Down if self.successes >= self.rules.rises => State::Up,
            State::Up if self.slow >= self.rules.fails.fails => State::Slow,
            State::Slow if self.swift >= self.rules.rises => State::Up,
            same => same,
        };
        if next == self.state {
            return Ruling::Same {
                count: self.count(),
            };
        }
        if next == State::Up {
            self.window = 0;
            self.failing_since = None;
        }
        self.change(next)
    }

    /// The service is down: the failures were enough, and the check just before the action failed too.
    /// `None`: it was down already.
    pub fn confirm(&mut self) -> Option<State> {
        (self.state != State::Down).then(|| {
            let before = self.state;
            self.change(State::Down);
            before
        })
    }

    /// An action has ended: the service has `grace` to come back.
    pub fn acted(&mut self, grace: Duration, now: Instant) {
        self.window = 0;
        self.decisive = false;
        if self.leaving.is_none() {
            self.quiet = Some(now + grace);
        }
    }

    /// The service was told to end: that it fails while it does so is no fault. One that goes on is judged again
    /// from its first success after [`LEAVING`] on: what it answers before may be what it drains.
    pub fn leaving(&mut self, now: Instant) {
        self.acted(FOR_GOOD, now);
        self.leaving = Some(now + LEAVING);
    }

    /// Another process is the service from now on: it is given a start period of its own.
    pub fn restarted(&mut self, start_period: Duration, now: Instant) {
        self.acted(start_period, now);
        if self.state != State::Down {
            self.failing_since = None;
        }
    }

    fn change(&mut self, next: State) -> Ruling {
        let before = std::mem::replace(&mut self.state, next);
        // What made it up does not make it slow as well.
        self.slow = 0;
        Ruling::Changed(before)
    }

    fn push(&mut self, failed: bool) {
        let keep = if self.rules.fails.of >= 64 {
            u64::MAX
        } else {
            (1 << self.rules.fails.of) - 1
        };
        self.window = (self.window << 1 | u64::from(failed)) & keep;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Results, one a second: `.` well, `s` slow, `x` failed, `d` decisive, `l` late, `A` an action ended
    /// with a grace of 5 s, `R` another process with a start period of 5 s. Out: the state's letter after
    /// each (S starting, U up, L slow, D down), small while enough failures are not confirmed yet.
    fn told(fails: u32, of: u32, rises: u32, start: u64, results: &str) -> String {
        let begin = Instant::now();
        let rules = Rules {
            fails: Quorum { fails, of },
            rises,
        };
        let mut judge = Judge::new(rules, SECOND * start as u32, begin);
        let mut out = String::new();
        for (second, letter) in results.chars().enumerate() {
            let now = begin + SECOND * second as u32;
            let sight = match letter {
                '.' => Sight::Well,
                's' => Sight::Slow,
                'x' => Sight::Failed,
                'd' => Sight::Decisive,
                'l' => Sight::Late,
                'A' => {
                    judge.acted(SECOND * 5, now);
                    out.push('A');
                    continue;
                }
                _ => {
                    judge.restarted(SECOND * 5, now);
                    out.push('R');
                    continue;
                }
            };
            if let Ruling::Enough { .. } = judge.see(sight, now) {
                judge.confirm();
            }
            out.push(match judge.state() {
                State::Starting => 'S',
                State::Up => 'U',
                State::Slow => 'L',
                State::Down => 'D',
            });
        }
        out
    }

    #[test]
    fn who_was_told_to_end_is_judged_again_when_it_goes_on() {
        let begin = Instant::now();
        let fails = Quorum { fails: 1, of: 1 };
        let mut judge = Judge::new(Rules { fails, rises: 1 }, SECOND, begin);
        let see = |judge: &mut Judge, sight, second| judge.see(sight, begin + SECOND * second);
        let none = Ruling::Same { count: 0 };
        assert!(matches!(
            see(&mut judge, Sight::Well, 1),
            Ruling::Changed(_)
        ));
        judge.leaving(begin + SECOND * 2);
        // It drains, and answers now and then; an action that ran ends.
        for (second, sight) in [Sight::Failed, Sight::Well, Sight::Decisive]
            .into_iter()
            .enumerate()
        {
            assert_eq!(see(&mut judge, sight, 3 + second as u32), none);
        }
        judge.acted(SECOND, begin + SECOND * 6);
        assert_eq!(see(&mut judge, Sight::Failed, 60), none);
        // Not ended, and not well either: that is for who told it to.
        assert_eq!(see(&mut judge, Sight::Failed, 1000), none);
        assert_eq!(see(&mut judge, Sight::Well, 1001), none);
        assert_eq!(
            see(&mut judge, Sight::Failed, 1002),
            Ruling::Enough { count: 1 }
        );
    }

    #[test]
    fn the_table() {
        // Edge case 31: flapping never is three in a row, but it is three of five.
        for ((fails, of, rises, start), results, states) in [
            ((3, 3, 1, 0), ".xxx.", "UUUDU"),
            ((3, 3, 1, 0), ".xx.xx.xx.", "UUUUUUUUUU"),
            ((3, 3, 1, 0), ".x.x.x.x.", "UUUUUUUUU"),
            ((3, 5, 1, 0), ".x.x.x.x.", "UUUUUDUUU"),
            ((1, 1, 2, 0), ".x.x..", "UDDDDU"),
            ((1, 1, 1, 0), "x", "D"),
            // The start period ends at its end, or with the first success.
            ((1, 1, 1, 3), "xxxx", "SSSD"),
            ((1, 1, 1, 30), "xx.x", "SSUD"),
            ((2, 2, 1, 3), "xxxx.", "SSSSU"),
            // Edge case 32: never well since the start is down like any other.
            ((3, 3, 1, 2), "xxxxxx", "SSSSDD"),
            // What has looked over a time of its own is enough at once, but not in the start period.
            ((3, 3, 1, 0), ".d", "UD"),
            ((3, 3, 1, 30), "dd.d", "SSUD"),
            // Slow is a success, and a state of its own after as many.
            ((3, 3, 1, 0), ".ssss.", "UUULLU"),
            ((3, 3, 1, 0), ".ss.ss", "UUUUUU"),
            ((3, 3, 1, 0), "sxxxs", "UUUDU"),
            ((2, 2, 1, 0), ".ss.xx", "UULUUD"),
            ((2, 2, 2, 0), ".ss.s..", "UULLLLU"),
            // A failure between ends both counts.
            ((3, 3, 1, 0), ".ssxs", "UUUUU"),
            ((3, 3, 2, 0), ".sss.x..", "UUULLLLU"),
            // They begin anew with each state.
            ((2, 2, 1, 0), "sss", "UUL"),
            ((2, 2, 3, 0), ".xxsssss", "UUDDDUUL"),
            // Edge case 23: our own starvation does not count once; twice in a row it does.
            ((1, 1, 1, 0), ".l.l.", "UUUUU"),
            ((1, 1, 1, 0), ".ll", "UUD"),
            // After an action nothing counts for 5 s, or until the first success.
            ((1, 1, 1, 0), ".xAxxxxx", "UDADDDDD"),
            ((2, 2, 1, 0), ".xxA.xx", "UUDAUUD"),
            // A new process has a start period.
            ((1, 1, 1, 0), ".RxxxxxR.x", "URUUUUDRUD"),
        ] {
            assert_eq!(told(fails, of, rises, start, results), states, "{results}");
        }
    }

    #[test]
    fn after_an_action_as_many_failures_are_needed_again() {
        let begin = Instant::now();
        let rules = Rules {
            fails: Quorum { fails: 2, of: 2 },
            rises: 1,
        };
        let mut judge = Judge::new(rules, Duration::ZERO, begin);
        assert_eq!(judge.see(Sight::Failed, begin), Ruling::Same { count: 1 });
        assert_eq!(judge.see(Sight::Failed, begin), Ruling::Enough { count: 2 });
        assert_eq!(judge.confirm(), Some(State::Starting));
        judge.acted(SECOND, begin);
        assert_eq!(judge.see(Sight::Failed, begin), Ruling::Same { count: 0 });
        let later = begin + SECOND;
        assert_eq!(judge.see(Sight::Failed, later), Ruling::Same { count: 1 });
        assert_eq!(judge.see(Sight::Failed, later), Ruling::Enough { count: 2 });
        assert_eq!(judge.confirm(), None);
        assert_eq!(judge.failing_since(), Some(begin));
        assert_eq!(judge.see(Sight::Well, later), Ruling::Changed(State::Down));
        assert_eq!(judge.failing_since(), None);
    }

    fn judge(fails: u32, of: u32, rises: u32, begin: Instant) -> Judge {
        let rules = Rules {
            fails: Quorum { fails, of },
            rises,
        };
        Judge::new(rules, Duration::ZERO, begin)
    }

    #[test]
    fn the_last_of_sixty_four_and_no_more() {
        for (of, down) in [(63, false), (64, true)] {
            let begin = Instant::now();
            let mut judge = judge(2, of, 1, begin);
            judge.see(Sight::Well, begin);
            judge.see(Sight::Failed, begin);
            for _ in 0..62 {
                judge.see(Sight::Well, begin);
            }
            let enough = Ruling::Enough { count: 2 };
            let ruling = judge.see(Sight::Failed, begin);
            assert_eq!(ruling == enough, down, "{of}: {ruling:?}");
        }
    }

    #[test]
    fn since_when_it_fails() {
        let begin = Instant::now();
        let at = |second: u32| begin + SECOND * second;
        // The first of those that count, though a success was between.
        let mut flaps = judge(2, 3, 1, begin);
        flaps.see(Sight::Well, at(0));
        flaps.see(Sight::Failed, at(1));
        flaps.see(Sight::Well, at(2));
        assert_eq!(flaps.failing_since(), Some(at(1)));
        // None, once they are too long ago to count.
        flaps.see(Sight::Well, at(3));
        flaps.see(Sight::Well, at(4));
        assert_eq!(flaps.failing_since(), None);
        // While it is down it has not been made good before enough successes, or by another process.
        let mut judge = judge(1, 1, 2, begin);
        judge.see(Sight::Failed, at(5));
        judge.confirm();
        judge.see(Sight::Well, at(6));
        assert_eq!(judge.failing_since(), Some(at(5)));
        judge.restarted(SECOND, at(7));
        assert_eq!(judge.failing_since(), Some(at(5)));
        judge.see(Sight::Well, at(8));
        assert_eq!((judge.state(), judge.failing_since()), (State::Up, None));
        // Before that another process ends it.
        judge.see(Sight::Failed, at(9));
        assert_eq!(judge.failing_since(), Some(at(9)));
        judge.restarted(SECOND, at(10));
        assert_eq!(judge.failing_since(), None);
    }

    /// After these results (as above) the state may change soon: what --fast-interval is for.
    #[test]
    fn when_it_is_in_doubt() {
        for (results, doubt) in [
            ("", false),
            (".", false),
            ("x", true),
            (".x", true),
            (".x.", true),
            (".x...", false),
            (".l", true),
            (".l.", false),
            (".s", true),
            (".s.", false),
            (".sss", false),
            (".sss.", true),
            (".sss.s", false),
            (".sssx", true),
            (".xxx", false),
            (".xxx.", true),
            (".xxx.x", false),
            (".xxx..", false),
        ] {
            let begin = Instant::now();
            let mut judge = judge(3, 3, 2, begin);
            for letter in results.chars() {
                let sight = match letter {
                    '.' => Sight::Well,
                    's' => Sight::Slow,
                    'l' => Sight::Late,
                    _ => Sight::Failed,
                };
                if let Ruling::Enough { .. } = judge.see(sight, begin) {
                    judge.confirm();
                }
            }
            assert_eq!(judge.in_doubt(), doubt, "{results}");
        }
    }

    #[test]
    fn our_own_lateness_comes_before_what_was_seen() {
        let mut failure = Failure::new(crate::outcome::Reason::Stuck, "");
        assert_eq!(Sight::of(&failure), Sight::Failed);
        failure.decisive = true;
        assert_eq!(Sight::of(&failure), Sight::Decisive);
        failure.late = true;
        assert_eq!(Sight::of(&failure), Sight::Late);
    }
}
