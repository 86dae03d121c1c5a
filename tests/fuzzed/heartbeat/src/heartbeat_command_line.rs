//! heartbeat's command line, a word a line: refused in words, or within the limits that the page names.

use crate::cli::{Cli, Fds};
use clap::Parser;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// One input.
pub fn run(bytes: &[u8]) {
    let words = bytes.split(|byte| *byte == b'\n').map(OsStr::from_bytes);
    let words = std::iter::once(OsStr::new("heartbeat")).chain(words);
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(why) => {
            assert!(!why.to_string().is_empty());
            return;
        }
    };
    assert!(!cli.interval.is_zero() && !cli.start_interval.is_zero() && !cli.timeout.is_zero());
    assert!(cli.jitter <= 100 && cli.rises > 0);
    assert!((1..=64).contains(&cli.fails.of) && (1..=cli.fails.of).contains(&cli.fails.fails));
    if let Some(cpu) = cli.max_cpu {
        assert!(cpu.percent > 0 && !cpu.over.is_zero());
    }
    match cli.max_fds {
        Some(Fds::Percent(percent)) => assert!((1..=100).contains(&percent)),
        Some(Fds::Count(count)) => assert!(count > 0),
        None => {}
    }
    assert!(cli.max_rss != Some(0));
}
