//! logreopen's own rotation: whatever lies in the directory, the steps make the first number free, write over
//! nothing, and remove nothing but the oldest.

use crate::rotate::{Step, plan};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// One input: how many are kept, then names, a line each. What begins with a digit is made one of ours.
pub fn run(bytes: &[u8]) {
    let Some((keep, names)) = bytes.split_first() else {
        return;
    };
    let keep = 1 + u32::from(*keep % 12);
    let base = OsStr::new("a.log");
    let mut there: BTreeSet<OsString> = BTreeSet::from([base.to_owned()]);
    for name in names.split(|byte| *byte == b'\n') {
        if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
            continue;
        }
        let ours = name[0].is_ascii_digit();
        let name = if ours {
            [b"a.log.", name].concat()
        } else {
            name.to_vec()
        };
        there.insert(OsString::from_vec(name));
    }
    let before = there.clone();
    let list: Vec<OsString> = there.iter().cloned().collect();
    let oldest = format!("a.log.{keep}");
    let mut removed = BTreeSet::new();
    for step in plan(&list, base, keep) {
        match step {
            Step::Remove(name) => {
                let bytes = name.as_bytes();
                assert!(
                    bytes == oldest.as_bytes()
                        || bytes.starts_with(format!("{oldest}.").as_bytes())
                );
                assert!(there.remove(&name));
                removed.insert(name);
            }
            Step::Rename(from, to) => {
                assert!(there.remove(&from), "{from:?} is not there");
                assert!(there.insert(to.clone()), "{to:?} is written over");
            }
        }
    }
    assert_eq!(there.len() + removed.len(), before.len());
    assert!(there.contains(base) && !there.contains(OsStr::new("a.log.1")));
    // What is beyond the numbers that are kept is nobody's business of ours.
    let ours = |name: &&OsString| name.as_bytes().starts_with(b"a.log.");
    let strangers = |names: &BTreeSet<OsString>| -> Vec<OsString> {
        names.iter().filter(|name| !ours(name)).cloned().collect()
    };
    assert_eq!(strangers(&there), strangers(&before));
}
