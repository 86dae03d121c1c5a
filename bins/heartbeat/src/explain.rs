//! `--explain`: how long a fault takes to be seen and acted on. Pure.

use crate::plan::Plan;
use common::time::say;
use std::time::Duration;

/// A time from .. to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// At best.
    pub best: Duration,
    /// At worst.
    pub worst: Duration,
}

/// How the service fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// How long a check takes to fail: nothing when it is refused, `--timeout` when it hangs.
    pub takes: Duration,
}

/// The options that the time depends on.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// `--interval`
    pub interval: Duration,
    /// `--fast-interval`
    pub fast: Duration,
    /// `--jitter`, in percent.
    pub jitter: u32,
    /// N of `--fails`
    pub fails: u32,
}

/// From the fault to the last failure that it takes:
/// best  = (N - 1) * step(d) + d
/// worst = interval * (1 + j) + (N - 1) * step(d + fast * j) + fast * j + d, with
/// step(x) = fast * (floor(x / fast) + 1), because a check that takes longer than an interval is followed
/// by the next tick after its end.
#[must_use]
pub fn seen(options: Options, fault: Fault) -> Span {
    let jitter = f64::from(options.jitter) / 100.0;
    let step = |takes: Duration| {
        let ticks = takes.as_nanos() / options.fast.as_nanos().max(1);
        options.fast * (u32::try_from(ticks).unwrap_or(u32::MAX - 1) + 1)
    };
    let more = options.fails.saturating_sub(1);
    let late = options.fast.mul_f64(jitter);
    let last_late = if more > 0 { late } else { Duration::ZERO };
    Span {
        best: step(fault.takes) * more + fault.takes,
        worst: options.interval.mul_f64(1.0 + jitter)
            + step(fault.takes + late) * more
            + last_late
            + fault.takes,
    }
}

/// The lines of `--explain`.
#[must_use]
pub fn lines(plan: &Plan) -> Vec<String> {
    let times = &plan.times;
    let options = Options {
        interval: times.normal,
        fast: times.fast,
        jitter: times.jitter,
        fails: plan.rules.fails.fails,
    };
    let mut lines = vec![
        format!(
            "N = {} of {} checks, interval = {}, fast = {}, j = {}%, d = how long a failing check takes",
            plan.rules.fails.fails,
            plan.rules.fails.of,
            say(times.normal),
            say(times.fast),
            times.jitter
        ),
        "seen, best:  (N - 1) * step(d) + d".to_owned(),
        "seen, worst: interval * (1 + j) + (N - 1) * step(d + fast * j) + fast * j + d".to_owned(),
        "step(x) = fast * (floor(x / fast) + 1); acted on: d later, after one more check"
            .to_owned(),
    ];
    let mut row = |what: String, seen: Span, again: Duration| {
        lines.push(format!(
            "{what}: seen after {} to {}, acted on after {} to {}",
            say(seen.best),
            say(seen.worst),
            say(seen.best + again),
            say(seen.worst + again)
        ));
    };
    let refused = Fault {
        takes: Duration::ZERO,
    };
    let hangs = Fault {
        takes: times.timeout,
    };
    row(
        "refused (d = 0)".to_owned(),
        seen(options, refused),
        Duration::ZERO,
    );
    let what = format!("hangs (d = {})", say(times.timeout));
    row(what, seen(options, hangs), times.timeout);
    if let (Some(stuck), Some(period)) = (plan.process.stuck, plan.process.period()) {
        let span = Span {
            best: stuck,
            worst: stuck + period.min(times.normal) * 2,
        };
        row(
            format!("a loop that spins (--stuck {})", say(stuck)),
            span,
            Duration::ZERO,
        );
    }
    lines.push(format!(
        "until the first success, for at most {}: checks each {}, and no failure counts",
        say(times.start_period),
        say(times.start)
    ));
    lines.push(format!(
        "after an action: {} of grace, then as above; the next action not before {}, doubling up to {}, at most {}",
        say(times.grace),
        say(plan.limits.cooldown),
        say(plan.limits.cooldown_max.max(plan.limits.cooldown)),
        match plan.limits.limit.count {
            0 => "as often as it takes".to_owned(),
            count => format!("{count} in {}", say(plan.limits.limit.per)),
        }
    ));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        let ms = Duration::from_millis;
        for (interval, fast, jitter, fails, takes, best, worst) in [
            // Every second, the first failure is enough, refused.
            (1000, 200, 0, 1, 0, 0, 1000),
            // Three in a row, refused: two fast intervals more.
            (10_000, 2000, 0, 3, 0, 4000, 14_000),
            // A hang of 10 s with fast ticks of 2 s: the next check is 12 s after the one before.
            (10_000, 2000, 0, 3, 10_000, 34_000, 44_000),
            // Jitter makes the worst worse: 11 + 2 * 2 + 0.2.
            (10_000, 2000, 10, 3, 0, 4000, 15_200),
            // A hang that is shorter than the interval.
            (10_000, 2000, 0, 2, 1000, 3000, 13_000),
        ] {
            let options = Options {
                interval: ms(interval),
                fast: ms(fast),
                jitter,
                fails,
            };
            let fault = Fault { takes: ms(takes) };
            let expected = Span {
                best: ms(best),
                worst: ms(worst),
            };
            assert_eq!(seen(options, fault), expected, "{options:?} {fault:?}");
        }
    }
}
