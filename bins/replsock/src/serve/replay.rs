//! The last output of a shared command, for whoever comes to it.

/// So much of it: some screens.
const KEPT: usize = 32 << 10;

/// The last bytes.
#[derive(Debug, Default)]
pub struct Replay {
    bytes: Vec<u8>,
    /// Some were thrown away.
    cut: bool,
}

impl Replay {
    /// More of them.
    pub fn add(&mut self, bytes: &[u8]) {
        let last = bytes.get(bytes.len().saturating_sub(KEPT)..);
        self.bytes.extend_from_slice(last.unwrap_or_default());
        // Not at each one, so that little is moved.
        if self.bytes.len() > 2 * KEPT {
            self.bytes.drain(..self.bytes.len() - KEPT);
            self.cut = true;
        }
    }

    /// What is shown: whole lines where there are any, so that it begins within no escape sequence and no
    /// letter.
    pub fn shown(&self) -> &[u8] {
        let from = self.bytes.len().saturating_sub(KEPT);
        let last = self.bytes.get(from..).unwrap_or_default();
        if from == 0 && !self.cut {
            return last;
        }
        match last.iter().position(|byte| *byte == b'\n') {
            Some(at) => last.get(at + 1..).unwrap_or_default(),
            None => last,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_and_no_more() {
        let mut replay = Replay::default();
        replay.add(b"first\nsecond");
        assert_eq!(replay.shown(), b"first\nsecond");
        for at in 0..20_000 {
            replay.add(format!("line {at}\n").as_bytes());
        }
        let shown = replay.shown();
        assert!(shown.len() <= KEPT && shown.len() > KEPT - 20);
        assert!(shown.starts_with(b"line ") && shown.ends_with(b"line 19999\n"));
        assert!(replay.bytes.len() <= 2 * KEPT);
        replay.add(&vec![b'x'; 10 * KEPT]);
        assert_eq!(replay.shown(), vec![b'x'; KEPT]);
    }
}
