//! The state that a master hands to the program in its place: refused, or read as what was written.

use crate::state::{Hex, Saved};

/// One input.
pub fn run(bytes: &[u8]) {
    let hex = Hex::new(bytes);
    assert_eq!(hex.bytes(), bytes);
    if let Ok(text) = serde_json::to_string(bytes_as_text(bytes).as_ref()) {
        if let Ok(hex) = serde_json::from_str::<Hex>(&text) {
            // What is read of any text is its beginning.
            let read = Hex::new(&hex.bytes());
            let (read, text) = (serde_json::to_string(&read), text.to_ascii_lowercase());
            assert!(text.starts_with(read.unwrap().trim_end_matches('"')));
        }
    }
    // The process that it is of stands in it.
    for pid in [7, u32::MAX] {
        let Ok(saved) = Saved::read(bytes, pid) else {
            continue;
        };
        let written = saved.write().unwrap();
        let again = Saved::read(&written, pid).unwrap();
        assert_eq!(again.write().unwrap(), written);
        assert!(Saved::read(&written, pid - 1).is_err());
    }
}

fn bytes_as_text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}
