//! Numbered lines, as `tests/apps/numbers.c` writes them: what of them arrived in files.

use crate::{Dir, Run, app};
use std::path::{Path, PathBuf};

/// The program that writes them, compiled into `dir`.
#[must_use]
pub fn numbers(dir: &Dir) -> PathBuf {
    let binary = dir.path().join("numbers");
    let built = Run::new("cc")
        .args([app("numbers.c").as_path(), Path::new("-O1")])
        .args([Path::new("-Wall"), Path::new("-o"), &binary])
        .finish();
    assert_eq!((built.status, &*built.err), (0, ""), "cc numbers.c");
    binary
}

/// What its report says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Lines that it wrote.
    pub lines: u64,
    /// Its longest write, in microseconds.
    pub longest: u64,
    /// Writes that failed.
    pub failed: u64,
}

/// The report in `path`, when it is there.
#[must_use]
pub fn report(path: &Path) -> Option<Report> {
    let text = std::fs::read_to_string(path).ok()?;
    let mut words = text.split_whitespace().map(|word| word.parse().unwrap());
    Some(Report {
        lines: words.next()?,
        longest: words.next()?,
        failed: words.next()?,
    })
}

/// What was found in files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Whole lines, each counted once.
    pub lines: u64,
    /// Numbers from 1 on that are nowhere.
    pub lost: u64,
    /// Lines that are not whole.
    pub torn: u64,
    /// Numbers that are there more than once.
    pub twice: u64,
    /// Numbers that stand behind a greater one in the same file.
    pub disorder: u64,
    /// Files that do not end with a newline.
    pub ragged: u64,
    /// Event lines, of ours and of spawnwork.
    pub notes: Vec<String>,
    /// A torn line.
    pub example: String,
}

impl Found {
    /// All of `lines` are there once, and nothing else is.
    pub fn assert_all(&self, lines: u64) {
        let expected = Found {
            lines,
            ..Found::default()
        };
        assert_eq!(*self, expected);
    }
}

/// Looks for the numbers 1 to `count`, in lines of `length` bytes, in files that may be gzipped.
#[must_use]
pub fn found(files: &[PathBuf], count: u64, length: usize) -> Found {
    let mut found = Found::default();
    let mut seen = vec![0u8; count as usize + 1];
    for file in files {
        let bytes = if file.extension().is_some_and(|ending| ending == "gz") {
            gunzipped(file)
        } else {
            std::fs::read(file).unwrap_or_else(|why| panic!("{}: {why}", file.display()))
        };
        if bytes.last().is_some_and(|byte| *byte != b'\n') {
            found.ragged += 1;
        }
        let mut last = 0;
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let number = number_of(line, length);
            match number {
                Some(number) if number >= 1 && number <= count => {
                    let times = &mut seen[number as usize];
                    *times = times.saturating_add(1);
                    found.disorder += u64::from(number < last);
                    last = number;
                }
                _ => {
                    let text = String::from_utf8_lossy(line);
                    if text.contains("Z logreopen[") || text.contains("Z spawnwork[") {
                        found.notes.push(text.into_owned());
                    } else {
                        found.torn += 1;
                        found.example = text.chars().take(200).collect();
                    }
                }
            }
        }
    }
    for times in &seen[1..] {
        match times {
            0 => found.lost += 1,
            1 => found.lines += 1,
            _ => {
                found.lines += 1;
                found.twice += 1;
            }
        }
    }
    found
}

fn number_of(line: &[u8], length: usize) -> Option<u64> {
    let digits = |bytes: &[u8]| -> Option<u64> { std::str::from_utf8(bytes).ok()?.parse().ok() };
    if line.len() != length {
        return None;
    }
    let (first, last) = (&line[..10], &line[length - 11..length - 1]);
    if first != last {
        return None;
    }
    digits(first)
}

/// What a gzipped file holds; a file that gzip complains about fails the test.
#[must_use]
pub fn gunzipped(file: &Path) -> Vec<u8> {
    #[allow(clippy::disallowed_methods)]
    let output = std::process::Command::new("gzip")
        .arg("-dc")
        .arg(file)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}");
    output.stdout
}

/// The files of a directory whose names begin with `prefix`.
#[must_use]
pub fn files(directory: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut list: Vec<PathBuf> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            name.starts_with(prefix)
        })
        .collect();
    list.sort();
    list
}
