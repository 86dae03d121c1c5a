//! Questions that a program asks its terminal, answered where nobody there can: irb, for one, waits for
//! the place of the cursor for ever.

/// The longest parameters that are looked at.
const LONGEST: usize = 3;

/// What was seen of an escape sequence, which may come in parts.
#[derive(Debug, Default)]
pub struct Queries {
    state: State,
    parameters: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Text,
    Escape,
    Sequence,
}

impl Queries {
    /// A sequence has begun, and its end has not come.
    pub fn is_within(&self) -> bool {
        self.state != State::Text
    }

    /// What is to be typed for the questions in `bytes` (ECMA-48: DSR, DA).
    pub fn answers(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut answers = Vec::new();
        for byte in bytes {
            match (self.state, *byte) {
                (_, 0x1b) => self.state = State::Escape,
                (State::Text, _) => {}
                (State::Escape, b'[') => {
                    self.state = State::Sequence;
                    self.parameters.clear();
                }
                (State::Escape, _) => self.state = State::Text,
                (State::Sequence, b'0'..=b'?') if self.parameters.len() < LONGEST => {
                    self.parameters.push(*byte);
                }
                (State::Sequence, last) => {
                    self.state = State::Text;
                    let answer: &[u8] = match (self.parameters.as_slice(), last) {
                        // Where the cursor is.
                        (b"6", b'n') => b"\x1b[1;1R",
                        // Whether all is well.
                        (b"5", b'n') => b"\x1b[0n",
                        // What kind it is.
                        (b"" | b"0", b'c') => b"\x1b[?62c",
                        _ => b"",
                    };
                    answers.extend_from_slice(answer);
                }
            }
        }
        answers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_answered_however_they_are_cut() {
        let text = b"a\x1b[1;31mred\x1b[6n\x1b[5nx\x1b[c\x1b[0c\x1b[?25h\x1b[16n";
        for step in 1..text.len() {
            let mut queries = Queries::default();
            let answers: Vec<u8> = text
                .chunks(step)
                .flat_map(|part| queries.answers(part))
                .collect();
            assert_eq!(answers, b"\x1b[1;1R\x1b[0n\x1b[?62c\x1b[?62c", "{step}");
        }
    }
}
