//! logreopen's lines: what comes out of a stream is what came in, however it was cut on the way, each line
//! with its head and nothing else between.

use crate::stamp::Head;
use common::lines::{LastLines, Pool, Pump, Run, batches, count, each_line};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Out of the first bytes: sizes of buffers and lines, how it is read, and the head.
struct Shape<'a> {
    size: usize,
    longest: usize,
    steps: &'a [u8],
    head: &'a [u8],
    flush: u8,
}

/// The runs that come out, and what they are.
fn through(text: &[u8], shape: &Shape<'_>) -> Vec<Run> {
    let mut pool = Pool::new(shape.size, 2);
    let mut pump = Pump::new(shape.longest);
    let mut runs: Vec<Run> = Vec::new();
    let mut rest = text;
    let mut steps = shape.steps.iter().cycle();
    let mut turns = 0u8;
    let mut waited = false;
    while !rest.is_empty() {
        let step = usize::from(*steps.next().unwrap_or(&255));
        let mut read = |room: &mut [u8]| {
            // 0 stands for a pipe that is empty for now.
            if step == 0 && !waited {
                return Err(nix::Error::EAGAIN);
            }
            let count = room.len().min(rest.len()).min(step.max(1));
            room[..count].copy_from_slice(&rest[..count]);
            rest = &rest[count..];
            Ok(count)
        };
        let before = pump.tail().len();
        let got = pump.fill(&mut pool, &mut read, &mut |run| runs.push(run));
        waited = got.is_err();
        if waited {
            assert_eq!(pump.tail().len(), before);
        }
        turns = turns.wrapping_add(1);
        if shape.flush != 0 && turns % shape.flush == 0 {
            // The beginning of a line is shown.
            runs.extend(pump.flush());
        }
        assert!(pump.tail().len() <= shape.longest.max(shape.size) * 2 + 4096);
        assert!(!pump.tail().contains(&b'\n'));
    }
    runs.extend(pump.finish());
    assert!(pump.tail().is_empty() && !pump.inside());
    runs
}

fn bytes_of(runs: &[Run]) -> Vec<u8> {
    runs.iter()
        .flat_map(|run| run.buffer.filled())
        .copied()
        .collect()
}

/// One input.
pub fn run(bytes: &[u8]) {
    let [size, longest, steps, head, flush, rest @ ..] = bytes else {
        return;
    };
    let (steps, rest) = rest.split_at(rest.len().min(usize::from(*steps % 16)));
    let (head, text) = rest.split_at(rest.len().min(usize::from(*head % 8)));
    let shape = Shape {
        size: 1 + usize::from(*size),
        longest: 1 + usize::from(*longest) * 4,
        steps,
        head,
        flush: *flush,
    };
    let mut expected = text.to_vec();
    if !text.is_empty() && !text.ends_with(b"\n") {
        expected.push(b'\n');
    }
    let runs = through(text, &shape);
    assert_eq!(bytes_of(&runs), expected);
    let mut begins = true;
    for run in &runs {
        let filled = run.buffer.filled();
        assert!(!filled.is_empty() && run.starts == begins);
        assert_eq!(run.ends, filled.ends_with(b"\n"));
        begins = run.ends;
    }
    assert!(begins);
    // Whole lines, where nothing is too long and nobody looks in between.
    let longest = expected.split(|byte| *byte == b'\n').map(<[u8]>::len).max();
    if shape.flush == 0 && longest.unwrap_or(0) < shape.longest {
        assert!(runs.iter().all(|run| run.ends));
    }
    counted(&expected, &shape);
    headed(runs, &expected, &shape);
}

/// Counts, batches and last lines.
fn counted(text: &[u8], shape: &Shape<'_>) {
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    assert_eq!(count(text), lines.len() as u64);
    let mut seen = Vec::new();
    each_line(text, |line| seen.push(line.to_vec()));
    assert_eq!(seen, lines);
    let mut all = Vec::new();
    for batch in batches(text, shape.size) {
        assert!(batch.ends_with(b"\n"));
        assert!(batch.len() <= shape.size || count(batch) == 1);
        all.extend_from_slice(batch);
    }
    assert_eq!(all, text);
    let (most, width) = (1 + shape.longest % 5, shape.size);
    let mut last = LastLines::new(most, width);
    if !text.is_empty() {
        last.push(text);
    }
    assert_eq!(last.lines().count(), lines.len().min(most));
    for (kept, line) in last.lines().zip(&lines[lines.len().saturating_sub(most)..]) {
        assert!(kept.len() <= width, "{kept:?} of at most {width} bytes");
        if let Ok(line) = std::str::from_utf8(line) {
            let line = line.trim_end_matches('\n');
            assert!(line.starts_with(kept), "{line:?} {kept:?}");
        }
    }
}

/// Each line has its head, once, and without them it is the text.
fn headed(runs: Vec<Run>, text: &[u8], shape: &Shape<'_>) {
    let Some(head) = Head::new(None, Some(OsStr::from_bytes(shape.head))) else {
        return;
    };
    let now: SystemTime = UNIX_EPOCH + Duration::from_millis(1_795_467_600_123);
    let mut pool = Pool::new(shape.size, 2);
    let mut out = Vec::new();
    for run in runs {
        let (starts, ends) = (run.starts, run.ends);
        let mut parts: Vec<Run> = Vec::new();
        head.put(run, now, &mut pool, &mut |run| parts.push(run));
        assert_eq!(parts.first().map(|run| run.starts), Some(starts));
        assert_eq!(parts.last().map(|run| run.ends), Some(ends));
        for run in parts {
            out.extend_from_slice(run.buffer.filled());
            pool.give(run.buffer);
        }
    }
    let mut expected = Vec::new();
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        expected.extend_from_slice(shape.head);
        expected.extend_from_slice(line);
    }
    assert_eq!(out, expected);
}
