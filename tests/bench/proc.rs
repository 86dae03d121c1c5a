//! What /proc says of a process, seen from outside.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// The number behind `name:` in a file of /proc, such as `VmRSS:  1234 kB`.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

fn status(pid: i32, name: &str) -> Option<u64> {
    field(
        &fs::read_to_string(format!("/proc/{pid}/status")).ok()?,
        name,
    )
}

/// Whether it runs: a zombie does not.
pub fn runs(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|text| !text.contains(") Z "))
}

/// Resident memory, in kB.
pub fn rss(pid: i32) -> Option<u64> {
    status(pid, "VmRSS")
}

/// Resident memory with shared pages divided among those who share them, in kB.
pub fn pss(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    field(&text, "Pss")
}

pub fn threads(pid: i32) -> Option<u64> {
    status(pid, "Threads")
}

fn numbers(directory: &str) -> Vec<i32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// The context switches of each thread since it began.
pub fn switches(pid: i32) -> BTreeMap<i32, u64> {
    let of = |task: i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{task}/status")).ok()?;
        let count = |name| field(&text, name);
        Some((
            task,
            count("voluntary_ctxt_switches")? + count("nonvoluntary_ctxt_switches")?,
        ))
    };
    numbers(&format!("/proc/{pid}/task"))
        .into_iter()
        .filter_map(of)
        .collect()
}

/// The time its threads have run, in ns.
pub fn ran(pid: i32) -> u64 {
    numbers(&format!("/proc/{pid}/task"))
        .into_iter()
        .filter_map(|task| fs::read_to_string(format!("/proc/{pid}/task/{task}/schedstat")).ok())
        .filter_map(|text| text.split(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// The program that it runs.
pub fn program(pid: i32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/exe")).ok()
}

/// It and all below it, parents first.
pub fn below(pid: i32) -> Vec<i32> {
    let mut list = vec![pid];
    let mut next = 0;
    while let Some(pid) = list.get(next) {
        list.extend(children(*pid));
        next += 1;
    }
    list
}

/// The arguments, with zero bytes between them; empty for a zombie, the parent's between fork and exec.
pub fn cmdline(pid: i32) -> Vec<u8> {
    fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

/// The children, oldest first.
pub fn children(pid: i32) -> Vec<i32> {
    let mut list = Vec::new();
    let mut told = false;
    for task in numbers(&format!("/proc/{pid}/task")) {
        if let Ok(text) = fs::read_to_string(format!("/proc/{pid}/task/{task}/children")) {
            told = true;
            list.extend(
                text.split_whitespace()
                    .filter_map(|word| word.parse::<i32>().ok()),
            );
        }
    }
    if !told {
        // A kernel without that file: each process names its parent.
        list = numbers("/proc");
        list.retain(|child| status(*child, "PPid") == u64::try_from(pid).ok());
    }
    list
}
