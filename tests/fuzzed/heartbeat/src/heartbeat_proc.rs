//! What /proc says to heartbeat of a process that names itself as it likes, and what is made of samples of it.

use crate::process::{self, History, Sample};
use std::time::{Duration, Instant};

/// Numbers out of bytes.
fn numbers(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.chunks(8).map(|part| {
        let mut word = [0; 8];
        word[..part.len()].copy_from_slice(part);
        u64::from_le_bytes(word)
    })
}

/// One input.
pub fn run(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = process::ticks(bytes);
    let _ = process::schedstat(&text);
    let _ = process::memory_in(&text);
    let _ = process::number_after(&text, "Max open files");
    if let Some((all, stolen)) = process::times_in(&text) {
        assert!(stolen <= all);
    }
    let mut all = numbers(bytes);
    let mut next = || all.next().unwrap_or_default();
    // Whatever its name is, and however long it has run.
    let (user, system) = (next(), next());
    let name = bytes.get(16..).unwrap_or_default();
    let fields = format!(") S 1 1 1 0 -1 0 0 0 0 0 {user} {system} 0 0 20 0 1 0 7");
    let line = [b"1 (", name, fields.as_bytes()].concat();
    assert_eq!(process::ticks(&line), Some(user.saturating_add(system)));
    let (before, after) = ((next(), next()), (next(), next()));
    if let Some(percent) = process::stolen(Some(before), Some(after)) {
        assert!(after.0 > before.0);
        assert!(percent <= 100 || after.1 - before.1 > after.0 - before.0);
    }
    samples(bytes);
}

/// Seven bytes are a sample, a byte before them the window.
fn samples(bytes: &[u8]) {
    let Some((window, bytes)) = bytes.split_first() else {
        return;
    };
    let window = Duration::from_millis(100 + 50 * u64::from(*window));
    let mut at = Instant::now();
    let (mut main, mut all, mut voluntary, mut calls) = (Duration::ZERO, Duration::ZERO, 0, 0);
    let mut history = History::default();
    let begun = at;
    for part in bytes.chunks_exact(7) {
        let step = Duration::from_millis(u64::from(part[0]) * 4);
        at += step;
        // A thread has not run longer than time has passed.
        main += step * u32::from(part[1]) / 255;
        all += step * u32::from(part[2]);
        voluntary += u64::from(part[3] & 1);
        calls += u64::from(part[4] & 1);
        let sample = Sample {
            at,
            main,
            all,
            voluntary,
            calls: (part[5] & 1 == 0).then_some((calls, calls)),
        };
        history.push(sample, window);
        let old = at - begun >= window;
        if let Some((share, time)) = history.spinning(window) {
            assert!(old && time >= window && (90..=100).contains(&share));
        }
        if let Some(percent) = history.cpu(window) {
            assert!(old && percent <= 25_500);
        }
    }
}
