//! A request line of spawnwork's control socket: read, or refused in one line that says what would do.

use crate::control::{Request, Whom};

/// One input.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    // No other line comes out of the socket: see the target `control`.
    if text.chars().any(char::is_control) {
        return;
    }
    let read = Request::parse(text);
    match &read {
        Ok(Request::Add(count) | Request::Remove(count) | Request::Workers(count)) => {
            assert!((1..=10_000).contains(count));
        }
        Ok(Request::Signal(signal, _)) => assert!((1..=64).contains(signal)),
        Ok(Request::Restart(Whom::All | Whom::Slot(_))) | Ok(_) => {}
        Err(why) => {
            assert!(!why.is_empty() && !why.chars().any(char::is_control));
            // Nothing is repeated more than once.
            assert!(why.len() <= text.len() + 200, "{why}");
        }
    }
    // Blanks say nothing.
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    assert_eq!(Request::parse(&words.join(" ")), read);
    assert_eq!(Request::parse(&format!("  {} ", words.join("   "))), read);
}
