//! spawnwork's command line, a word a line: refused in words, or within the limits that the page names.

use crate::cli::{Cli, NofileArg, Surge, Workers};
use clap::Parser;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// One input.
pub fn run(bytes: &[u8]) {
    let words = bytes.split(|byte| *byte == b'\n').map(OsStr::from_bytes);
    let words = std::iter::once(OsStr::new("spawnwork")).chain(words);
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(why) => {
            assert!(!why.to_string().is_empty());
            return;
        }
    };
    if let Workers::Count(count) = cli.workers {
        assert!((1..=10_000).contains(&count));
    }
    if let Some(NofileArg::Count(count)) = cli.nofile {
        assert!(count >= 16);
    }
    if let Surge::Percent(percent) = cli.surge {
        assert!(percent <= 100);
    }
    assert!(cli.socket_mode <= 0o777 && cli.jitter <= 100 && cli.backlog > 0);
    assert!(cli.backoff.min <= cli.backoff.max);
    assert!(cli.max_rss != Some(0) && cli.max_lifetime.is_none_or(|length| !length.is_zero()));
    assert!(
        cli.stop_signal
            .is_none_or(|signal| (1..=64).contains(&signal))
    );
    for (name, _) in &cli.env {
        assert!(!name.is_empty() && !name.contains('='));
    }
}
