//! Durations and rates. Waiting is done in monotonic time only.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// `COUNT/DURATION`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// So many ...
    pub count: u32,
    /// ... in so long.
    pub per: Duration,
}

/// `length`, up to `percent` longer, so that what happened together is not repeated together.
#[must_use]
pub fn jittered(length: Duration, percent: u32, random: u64) -> Duration {
    let share = (random >> 11) as f64 / (1u64 << 53) as f64;
    length.mul_f64(1.0 + share * f64::from(percent) / 100.0)
}

/// A random number: for jitter and for names that nobody knows beforehand (the keys of the standard
/// library's hash maps come from getrandom(2)).
#[must_use]
pub fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A duration in one word, as a person reads it: `142ms`, `3s`, `1.5s`, `1h30m`.
#[must_use]
pub fn say(length: Duration) -> String {
    if length < Duration::from_secs(1) {
        return format!("{}ms", length.as_millis());
    }
    if length < Duration::from_secs(60) {
        let seconds = format!("{}.{:03}", length.as_secs(), length.subsec_millis());
        return format!("{}s", seconds.trim_end_matches('0').trim_end_matches('.'));
    }
    humantime::format_duration(Duration::from_secs(length.as_secs()))
        .to_string()
        .replace(' ', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_only_lengthens_and_only_by_so_much() {
        let second = Duration::from_secs(1);
        assert_eq!(jittered(second, 10, 0), second);
        assert!(jittered(second, 10, u64::MAX) <= Duration::from_millis(1101));
        assert_ne!(random(), random());
    }

    #[test]
    fn words() {
        assert_eq!(say(Duration::from_millis(90_000)), "1m30s");
        assert_eq!(say(Duration::from_millis(1266)), "1.266s");
        assert_eq!(say(Duration::from_secs(60)), "1m");
        assert_eq!(say(Duration::from_secs(50)), "50s");
        assert_eq!(say(Duration::from_micros(142_900)), "142ms");
    }
}
