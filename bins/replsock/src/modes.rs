//! What a program has switched on in our terminal (full screen, the mouse, pasting in brackets), so that it
//! can be switched off when we leave the program behind.

use std::collections::BTreeSet;

/// Private modes that are off in a terminal at rest (xterm's ctlseqs, "DEC Private Mode Set").
const OFF_AT_REST: [u16; 15] = [
    1, 9, 47, 66, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1015, 1047, 1049, 2004,
];
/// And those that are on: wrapping, the cursor.
const ON_AT_REST: [u16; 2] = [7, 25];
/// Longer ones are none of these.
const LONGEST: usize = 40;

/// What was seen.
#[derive(Debug, Default)]
pub struct Modes {
    state: State,
    parameters: Vec<u8>,
    changed: BTreeSet<u16>,
    coloured: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Text,
    Escape,
    Sequence,
}

impl Modes {
    /// Looks at output; whether something has changed.
    pub fn see(&mut self, bytes: &[u8]) -> bool {
        let mut changed = false;
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.state == State::Text {
                let Some(at) = rest.iter().position(|byte| *byte == 0x1b) else {
                    return changed;
                };
                self.state = State::Escape;
                rest = rest.get(at + 1..).unwrap_or_default();
                continue;
            }
            let Some((byte, behind)) = rest.split_first() else {
                return changed;
            };
            rest = behind;
            match (self.state, *byte) {
                (_, 0x1b) => self.state = State::Escape,
                (State::Escape, b'[') => {
                    self.state = State::Sequence;
                    self.parameters.clear();
                }
                (State::Sequence, b'0'..=b'?') if self.parameters.len() < LONGEST => {
                    self.parameters.push(*byte);
                }
                (State::Sequence, b'h') => {
                    changed |= self.set(true);
                    self.state = State::Text;
                }
                (State::Sequence, b'l') => {
                    changed |= self.set(false);
                    self.state = State::Text;
                }
                (State::Sequence, b'm') => {
                    let plain = matches!(self.parameters.as_slice(), b"" | b"0");
                    changed |= self.coloured == plain;
                    self.coloured = !plain;
                    self.state = State::Text;
                }
                (State::Text | State::Escape | State::Sequence, _) => self.state = State::Text,
            }
        }
        changed
    }

    fn set(&mut self, on: bool) -> bool {
        let Some(list) = self.parameters.strip_prefix(b"?") else {
            return false;
        };
        let mut changed = false;
        for number in list.split(|byte| *byte == b';') {
            let number = std::str::from_utf8(number).ok();
            let Some(number) = number.and_then(|text| text.parse::<u16>().ok()) else {
                continue;
            };
            let at_rest = if OFF_AT_REST.contains(&number) {
                !on
            } else if ON_AT_REST.contains(&number) {
                on
            } else {
                continue;
            };
            changed |= if at_rest {
                self.changed.remove(&number)
            } else {
                self.changed.insert(number)
            };
        }
        changed
    }

    /// What brings the terminal to rest.
    pub fn undo(&self) -> String {
        let mut text = String::new();
        for number in &self.changed {
            let end = if ON_AT_REST.contains(number) {
                'h'
            } else {
                'l'
            };
            text.push_str(&format!("\x1b[?{number}{end}"));
        }
        if self.coloured {
            text.push_str("\x1b[m");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_switched_on_is_switched_off() {
        let mut modes = Modes::default();
        assert!(!modes.see(b"text\x1b[2J\x1b[4h\x1b[?7777h"));
        for byte in b"\x1b[?1049h\x1b[?1000;1006h\x1b[?25l\x1b[1;31mred" {
            modes.see(&[*byte]);
        }
        assert_eq!(
            modes.undo(),
            "\x1b[?25h\x1b[?1000l\x1b[?1006l\x1b[?1049l\x1b[m"
        );
        assert!(modes.see(b"\x1b[0m\x1b[?1049l\x1b[?1000l\x1b[?1006l\x1b[?25h"));
        assert_eq!(modes.undo(), "");
    }
}
