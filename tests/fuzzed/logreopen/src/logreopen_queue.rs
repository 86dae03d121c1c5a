//! What is held for one file: of whatever comes from two sources, each line is kept whole and in its order,
//! or counted as lost, and no more is held than was agreed.

use crate::cli::OnFull;
use crate::queue::{Item, Queue, Room};
use common::lines::{Buffer, Run};
use std::time::{Duration, Instant, UNIX_EPOCH};

/// What has come out.
#[derive(Default)]
struct Out {
    text: Vec<u8>,
    gaps: (u64, u64),
    changes: Vec<u64>,
}

impl Out {
    fn take(&mut self, queue: &mut Queue, now: Instant) -> bool {
        match queue.pop() {
            Some(Item::Run(run)) => {
                let filled = run.buffer.filled();
                assert!(!filled.is_empty());
                assert_eq!(run.ends, filled.ends_with(b"\n"));
                self.text.extend_from_slice(filled);
                queue.written(filled.len(), now);
            }
            Some(Item::Gap(gap)) => {
                assert!(gap.bytes > 0 && gap.lines <= gap.bytes && gap.since <= gap.until);
                self.gaps.0 += gap.lines;
                self.gaps.1 += gap.bytes;
            }
            Some(Item::Cut(number) | Item::Rotate(number)) => self.changes.push(number),
            None => return false,
        }
        true
    }
}

/// One input: two bytes of limits, then steps of two bytes.
pub fn run(bytes: &[u8]) {
    let [limit, policy, steps @ ..] = bytes else {
        return;
    };
    let limit = 1 + usize::from(*limit);
    let policy = if policy & 1 == 0 {
        OnFull::Drop
    } else {
        OnFull::Block
    };
    let mut queue = Queue::new(limit, policy);
    let mut now = Instant::now();
    let mut out = Out::default();
    // Two sources, told apart by their letters: lines of `a<number>` and of `b<number>`.
    let mut numbers = [0u64; 2];
    let mut offered = 0;
    let mut blocks = policy == OnFull::Block;
    let mut request = 0;
    let mut largest = 0;
    for step in steps.chunks_exact(2) {
        now += Duration::from_millis(u64::from(step[1] & 15));
        match step[0] % 8 {
            0..=3 => {
                let room = queue.room(now, &mut || step[1] & 16 != 0);
                if room != Room::Yes {
                    assert!(queue.held() > 0);
                    continue;
                }
                let source = usize::from(step[0] & 1);
                let mut text = String::new();
                for _ in 0..1 + step[1] % 7 {
                    let letter = ['a', 'b'][source];
                    text.push_str(&format!("{letter}{}\n", numbers[source]));
                    numbers[source] += 1;
                }
                largest = largest.max(text.len());
                offered += text.len() as u64;
                let mut buffer = Buffer::new(text.len() + usize::from(step[0] >> 3));
                buffer.extend(text.as_bytes());
                let run = Run {
                    buffer,
                    starts: true,
                    ends: true,
                };
                queue.offer(run, source, UNIX_EPOCH);
            }
            4 | 5 => {
                for _ in 0..1 + step[1] % 4 {
                    if !out.take(&mut queue, now) {
                        break;
                    }
                }
            }
            6 => {
                request += 1;
                queue.change(request, step[1] & 1 == 0);
            }
            _ => {
                if step[1] == 0 {
                    queue.give_up();
                    blocks = false;
                } else {
                    now += Duration::from_secs(u64::from(step[1]) / 64);
                }
            }
        }
        // One read more than the limit is let in, never another one.
        assert!(queue.held() <= limit + largest, "{} {limit}", queue.held());
        if blocks {
            assert_eq!(queue.lost(), (0, 0));
        }
    }
    queue.close();
    while out.take(&mut queue, now) {}
    assert_eq!(queue.held(), 0);
    assert_eq!(out.gaps, queue.lost());
    assert_eq!(out.text.len() as u64 + out.gaps.1, offered);
    assert!(out.changes.windows(2).all(|pair| pair[0] < pair[1]));
    let text = String::from_utf8(out.text).unwrap();
    let (mut last, mut lines) = ([None; 2], 0);
    for line in text.lines() {
        let (letter, number) = line.split_at(1);
        let source = usize::from(letter == "b");
        let number: u64 = number.parse().unwrap();
        assert!(number < numbers[source] && last[source] < Some(number));
        last[source] = Some(number);
        lines += 1;
    }
    assert_eq!(lines + out.gaps.0, numbers[0] + numbers[1]);
}
