//! Own rotation: FILE becomes FILE.1, FILE.1 becomes FILE.2 and so on, whatever stands behind the number
//! (`.gz`).

use common::sys::rename_to_free;
use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// One step, within the file's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The oldest goes.
    Remove(OsString),
    /// To a name that is free by then.
    Rename(OsString, OsString),
}

/// The number behind `base.`, and what stands behind the number. Numbers that we would not write (`01`,
/// a date) are somebody else's.
fn number_of<'a>(name: &'a [u8], base: &[u8], keep: u32) -> Option<(u32, &'a [u8])> {
    let rest = name.strip_prefix(base)?.strip_prefix(b".")?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, suffix) = rest.split_at(digits);
    if digits.first() == Some(&b'0') || !(suffix.is_empty() || suffix.starts_with(b".")) {
        return None;
    }
    let number: u32 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (1..=keep).contains(&number).then_some((number, suffix))
}

fn numbered(base: &[u8], number: u32, suffix: &[u8]) -> OsString {
    let mut name = base.to_vec();
    name.extend_from_slice(format!(".{number}").as_bytes());
    name.extend_from_slice(suffix);
    OsString::from_vec(name)
}

/// What makes `base.1` free, given the names in its directory: those below the first gap move up by one;
/// without a gap the oldest of `keep` is removed. Names beyond `keep` are never touched.
#[must_use]
pub fn plan(names: &[OsString], base: &OsStr, keep: u32) -> Vec<Step> {
    let base = base.as_bytes();
    let mut present: BTreeMap<u32, Vec<&[u8]>> = BTreeMap::new();
    for name in names {
        if let Some((number, suffix)) = number_of(name.as_bytes(), base, keep) {
            present.entry(number).or_default().push(suffix);
        }
    }
    let gap = (1..=keep).find(|number| !present.contains_key(number));
    let mut steps = Vec::new();
    if gap.is_none() {
        for suffix in present.get(&keep).into_iter().flatten() {
            steps.push(Step::Remove(numbered(base, keep, suffix)));
        }
    }
    for number in (1..gap.unwrap_or(keep)).rev() {
        for suffix in present.get(&number).into_iter().flatten() {
            steps.push(Step::Rename(
                numbered(base, number, suffix),
                numbered(base, number + 1, suffix),
            ));
        }
    }
    steps
}

/// Moves `path` to its first number, which it returns.
///
/// # Errors
/// The first step that failed; all steps before it stay done, and nothing is lost by them.
pub fn rotate(path: &Path, keep: u32) -> io::Result<PathBuf> {
    let directory = crate::place::directory_of(path);
    let base = path
        .file_name()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let names: Vec<OsString> = std::fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<io::Result<_>>()?;
    for step in plan(&names, base, keep) {
        match step {
            Step::Remove(name) => std::fs::remove_file(directory.join(name))?,
            Step::Rename(from, to) => rename(&directory.join(from), &directory.join(to))?,
        }
    }
    let first = directory.join(numbered(base.as_bytes(), 1, b""));
    rename(path, &first)?;
    Ok(first)
}

fn rename(from: &Path, to: &Path) -> io::Result<()> {
    let text = |path: &Path| {
        CString::new(path.as_os_str().as_bytes())
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
    };
    match rename_to_free(&text(from)?, &text(to)?) {
        // A file system that cannot promise it: looked at before.
        Err(why) if matches!(why.raw_os_error(), Some(22 | 38)) => {
            if to.symlink_metadata().is_ok() {
                return Err(io::Error::from(io::ErrorKind::AlreadyExists));
            }
            std::fs::rename(from, to)
        }
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn up_to_the_first_gap_and_never_over_another() {
        let steps = |names: &[&str], keep| -> Vec<String> {
            let names: Vec<OsString> = names.iter().map(OsString::from).collect();
            let said = |step| match step {
                Step::Remove(name) => format!("-{}", name.to_string_lossy()),
                Step::Rename(from, to) => {
                    format!("{}>{}", from.to_string_lossy(), to.to_string_lossy())
                }
            };
            plan(&names, OsStr::new("a"), keep)
                .into_iter()
                .map(said)
                .collect()
        };
        let none: [&str; 0] = [];
        assert_eq!(steps(&["a", "b.1"], 3), none);
        assert_eq!(steps(&["a.1"], 3), ["a.1>a.2"]);
        assert_eq!(steps(&["a.1", "a.2.gz"], 3), ["a.2.gz>a.3.gz", "a.1>a.2"]);
        assert_eq!(
            steps(&["a.1", "a.2", "a.3"], 3),
            ["-a.3", "a.2>a.3", "a.1>a.2"]
        );
        assert_eq!(
            steps(&["a.1.gz", "a.2", "a.3.gz"], 3),
            ["-a.3.gz", "a.2>a.3", "a.1.gz>a.2.gz"]
        );
        // A gap: what lies behind it stays.
        assert_eq!(steps(&["a.2", "a.3"], 3), none);
        assert_eq!(steps(&["a.1", "a.3"], 3), ["a.1>a.2"]);
        // Both belong to one number.
        assert_eq!(steps(&["a.1", "a.1.gz"], 3), ["a.1>a.2", "a.1.gz>a.2.gz"]);
        // Not ours: beyond what is kept, a date, a leading zero, another name.
        assert_eq!(
            steps(
                &["a.9", "a.20260101", "a.01", "a.1x", "aa.1", "a.", "a.0"],
                3
            ),
            none
        );
        assert_eq!(steps(&["a.1"], 1), ["-a.1"]);
    }
}
