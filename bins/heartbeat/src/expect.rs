//! `--expect`: which statuses are well.

/// A list such as `200,302,500-503,2xx,!404`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expect {
    /// What is well, from and to; empty: 200-399, less what is refused.
    wanted: Vec<(u16, u16)>,
    /// What is not, whatever else is said.
    refused: Vec<(u16, u16)>,
}

impl Expect {
    /// A reply with this status is what was expected.
    #[must_use]
    pub fn takes(&self, status: u16) -> bool {
        let within = |list: &[(u16, u16)]| {
            list.iter()
                .any(|(from, to)| (*from..=*to).contains(&status))
        };
        let wanted = if self.wanted.is_empty() {
            (200..=399).contains(&status)
        } else {
            within(&self.wanted)
        };
        wanted && !within(&self.refused)
    }
}

/// Reads such a list.
///
/// # Errors
/// What would do.
pub fn parse(text: &str) -> Result<Expect, String> {
    let wrong = |part: &str| {
        format!("'{part}' is no status; 200, 500-503, 2xx, !404 or a list of them would do")
    };
    let mut expect = Expect {
        wanted: Vec::new(),
        refused: Vec::new(),
    };
    for part in text.split(',').map(str::trim) {
        let (list, bare) = match part.strip_prefix('!') {
            Some(bare) => (&mut expect.refused, bare),
            None => (&mut expect.wanted, part),
        };
        let number = |text: &str| -> Option<u16> {
            let digits = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|number| digits && *number >= 100)
        };
        let range = match bare.as_bytes() {
            [class @ b'1'..=b'5', b'x' | b'X', b'x' | b'X'] => {
                let from = u16::from(class - b'0') * 100;
                Some((from, from + 99))
            }
            _ => match bare.split_once('-') {
                Some((from, to)) => number(from).zip(number(to)).filter(|(from, to)| from <= to),
                None => number(bare).map(|status| (status, status)),
            },
        };
        list.push(range.ok_or_else(|| wrong(part))?);
    }
    Ok(expect)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn statuses() {
        for (list, well, ill) in [
            ("200-399", &[200, 302, 399][..], &[199, 400, 500, 101][..]),
            ("200,302", &[200, 302], &[201, 301]),
            ("500-503,2xx", &[500, 503, 200, 299], &[504, 300]),
            ("!404", &[200, 302], &[404, 500]),
            ("4xx,!404", &[400, 499], &[404, 200]),
            ("101", &[101], &[200]),
        ] {
            let expect = parse(list).unwrap();
            assert!(well.iter().all(|status| expect.takes(*status)), "{list}");
            assert!(!ill.iter().any(|status| expect.takes(*status)), "{list}");
        }
        for list in [
            "", "abc", "20", "2000", "099", "302-200", "6xx", "200,", "!", "2x", "+20",
        ] {
            assert!(parse(list).unwrap_err().contains("would do"), "{list}");
        }
    }

    /// A part of a list, and what it takes.
    fn part() -> impl Strategy<Value = (bool, u16, u16, String)> {
        let numbers = (100u16..=999, 100u16..=999)
            .prop_map(|(one, other)| (one.min(other), one.max(other)))
            .prop_map(|(from, to)| (from, to, format!("{from}-{to}")));
        let one = (100u16..=999).prop_map(|status| (status, status, status.to_string()));
        let class =
            (1u16..=5).prop_map(|class| (class * 100, class * 100 + 99, format!("{class}xX")));
        (any::<bool>(), prop_oneof![numbers, one, class]).prop_map(|(not, (from, to, text))| {
            let text = if not { format!("!{text}") } else { text };
            (not, from, to, text)
        })
    }

    proptest! {
        #[test]
        fn a_list_takes_what_its_parts_say(parts in prop::collection::vec(part(), 1..6), status in 100u16..=999) {
            let list: Vec<&str> = parts.iter().map(|(_, _, _, text)| text.as_str()).collect();
            let within = |refused: bool| {
                let mut asked = parts.iter().filter(|(not, ..)| *not == refused).peekable();
                let any = asked.peek().is_some();
                (any, asked.any(|(_, from, to, _)| (*from..=*to).contains(&status)))
            };
            let wanted = match within(false) {
                (true, found) => found,
                (false, _) => (200..400).contains(&status),
            };
            let expected = wanted && !within(true).1;
            for list in [list.join(","), list.join(" , ")] {
                assert_eq!(parse(&list).unwrap().takes(status), expected, "{list}");
            }
        }

        #[test]
        fn whatever_is_typed_is_a_list_or_is_refused(text in "\\PC{0,20}", near in "[0-9xX,! -]{0,12}", status in any::<u16>()) {
            for text in [text, near] {
                match parse(&text) {
                    Ok(expect) => drop(expect.takes(status)),
                    Err(why) => assert!(why.contains("would do")),
                }
            }
        }
    }
}
