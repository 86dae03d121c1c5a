//! replsock's frames: whatever a client or a server sends, cut wherever, gives the same frames as in one piece,
//! and none is longer than was agreed.

#[path = "../../../bins/replsock/src/frames.rs"]
mod frames;

use frames::{Decoder, Hello, Kind, put, size_of_body};

const LIMIT: usize = 4096;

fn all(bytes: &[u8], step: usize) -> (Vec<(Kind, Vec<u8>)>, bool) {
    let mut decoder = Decoder::new(LIMIT);
    let mut out = Vec::new();
    for part in bytes.chunks(step.max(1)) {
        decoder.push(part);
        loop {
            match decoder.take() {
                Ok(Some(frame)) => out.push((frame.kind, frame.body)),
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
    let (frames, well) = all(bytes, usize::from(*step));
    assert_eq!((frames.clone(), well), all(bytes, usize::MAX));
    let mut again = Vec::new();
    for (kind, body) in &frames {
        assert!(body.len() <= LIMIT);
        put(&mut again, *kind, body);
        match kind {
            Kind::Hello => {
                if let Some(hello) = Hello::read(body) {
                    assert_eq!(Hello::read(&hello.body()), Some(hello));
                }
            }
            Kind::Winch => drop(size_of_body(body)),
            _ => {}
        }
    }
    // They are all that was there, in its order.
    assert!(bytes.starts_with(&again));
}
