//! A stamp of anybody's: refused, or read as what is written again.

use crate::signature::{Seen, Signature};
use crate::stamp::{parse, text};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// One input.
pub fn run(bytes: &[u8]) {
    let said = String::from_utf8_lossy(bytes);
    // As it is, and behind the line that every stamp has first.
    for said in [said.to_string(), format!("watchtouch-stamp 1\n{said}")] {
        if let Some(entries) = parse(&said) {
            assert!(entries.len() < said.lines().count());
            assert_eq!(parse(&text(&entries)), Some(entries));
        }
    }
    // Whatever the paths are.
    let mut rest = bytes;
    let mut entries = Vec::new();
    while let [length, after @ ..] = rest {
        let (path, after) = after.split_at(after.len().min(usize::from(*length)));
        let mut word = [0; 8];
        let some = path.len().min(8);
        word[..some].copy_from_slice(&path[..some]);
        let number = u64::from_le_bytes(word);
        let time = (number as i64, number as u32);
        let seen = if length & 1 == 0 {
            Seen::Missing
        } else {
            Seen::There(Signature {
                dev: number,
                ino: !number,
                size: number >> 1,
                mtime: time,
                btime: (length & 2 == 0).then_some(time),
                ctime: time,
            })
        };
        entries.push((PathBuf::from(OsString::from_vec(path.to_vec())), seen));
        rest = after;
    }
    assert_eq!(parse(&text(&entries)), Some(entries));
}
