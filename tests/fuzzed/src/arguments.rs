//! What stands on a command line, and what of it can be said again.

use common::cli;
use std::time::Duration;

/// Ten years (`cli::duration`).
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// One input.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(length) = cli::duration(text) {
        assert!(length <= LONGEST);
        // As it is said it is read again, but for what is left out of long ones.
        let _ = cli::duration(&common::time::say(length));
    }
    if let Ok(rate) = cli::rate(text) {
        assert!(rate.count == 0 || !rate.per.is_zero());
    }
    if let Ok(filter) = cli::rate_filter(text) {
        assert!(filter.filter.len() <= text.len());
    }
    if let Ok(mode) = cli::mode(text) {
        assert!(mode <= 0o777);
    }
    if let Ok(signal) = cli::signal(text) {
        assert!((1..=64).contains(&signal));
        assert_eq!(cli::signal(&signal.to_string()), Ok(signal));
    }
    if let Ok(count) = cli::count(text) {
        assert!(count > 0);
    }
    if let Ok((name, value)) = cli::env_pair(text) {
        assert_eq!(format!("{name}={value}"), text);
    }
    let _ = cli::size(text);
    if let Ok(address) = cli::address(text) {
        assert_eq!(cli::address(&address.to_string()), Ok(address));
    }
}
