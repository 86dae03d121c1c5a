//! A file of `--env-file`: variables that a program can be given, or the line that is none.

use crate::launch::parse_env_file;
use std::os::unix::ffi::OsStrExt;

/// One input.
pub fn run(bytes: &[u8]) {
    let lines = bytes.split(|byte| *byte == b'\n').count();
    let list = match parse_env_file(bytes) {
        Ok(list) => list,
        Err(line) => {
            assert!((1..=lines).contains(&line));
            // What stands before it is well.
            let before: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').take(line - 1).collect();
            assert!(parse_env_file(&before.join(&b'\n')).is_ok());
            return;
        }
    };
    assert!(list.len() <= lines);
    let mut text = Vec::new();
    for (name, value) in &list {
        let (name, value) = (name.as_bytes(), value.as_bytes());
        assert!(!name.is_empty() && !name.contains(&b'=') && !name.contains(&0));
        assert!(!name.starts_with(b"#"));
        assert!(!name.iter().any(u8::is_ascii_whitespace), "{name:?}");
        assert!(!value.contains(&0) && !value.contains(&b'\n'));
        // In quotes a value comes back whatever it is.
        text.extend_from_slice(&[name, b"=\"", value, b"\"\n"].concat());
    }
    assert_eq!(parse_env_file(&text), Ok(list));
}
