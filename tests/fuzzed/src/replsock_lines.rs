//! replsock's JSON lines: whatever an agent says, in whatever pieces, is read as answers or ends the session.

#[path = "../../../bins/replsock/src/wire.rs"]
mod wire;

fn all(bytes: &[u8], step: usize) -> (Vec<String>, bool) {
    let mut lines = wire::Lines::default();
    let mut out = Vec::new();
    for part in bytes.chunks(step.max(1)) {
        lines.push(part);
        loop {
            match lines.take() {
                Ok(Some(answer)) => out.push(format!("{answer:?}")),
                Ok(None) => break,
                Err(_) => return (out, false),
            }
        }
    }
    (out, true)
}

/// One input.
pub fn run(bytes: &[u8]) {
    let Some((step, bytes)) = bytes.split_first() else {
        return;
    };
    let (answers, well) = all(bytes, usize::from(*step));
    assert_eq!((answers, well), all(bytes, usize::MAX));
}
