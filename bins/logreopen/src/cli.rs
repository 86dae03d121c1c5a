//! What was typed. Nothing is computed here: see plan.rs.

use clap::builder::BoolishValueParser;
use clap::{CommandFactory, Parser, ValueEnum};
use common::cli::{count, duration, log_format, mode, size};
use common::event::Format;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  logreopen -l app.out -e app.err --control log.sock -- node app.js
  node app.js 2>&1 | logreopen app.log

Everything else: man logreopen";

/// log files that survive rotation, a full disk and a hung one
#[derive(Debug, Parser)]
#[command(
    name = "logreopen",
    version,
    about,
    after_help = EXAMPLES,
    override_usage = "logreopen -l FILE -e FILE [options] [--] command [argument...]\n       \
                      program | logreopen [options] FILE\n       \
                      logreopen --ctl SOCKET reopen|status|rotate",
    disable_help_subcommand = true,
    args_override_self = false
)]
pub struct Cli {
    /// The command's stdout goes there
    #[arg(
        short = 'l',
        long,
        value_name = "FILE",
        env = "LOGREOPEN_STDOUT",
        hide_env = true,
        help_heading = "Files"
    )]
    pub stdout: Option<PathBuf>,
    /// Its stderr; the same FILE twice is fine
    #[arg(
        short = 'e',
        long,
        value_name = "FILE",
        env = "LOGREOPEN_STDERR",
        hide_env = true,
        help_heading = "Files"
    )]
    pub stderr: Option<PathBuf>,
    /// Also to our own stdout and stderr
    #[arg(long, env = "LOGREOPEN_TEE", value_parser = BoolishValueParser::new(), hide_env = true, help_heading = "Files")]
    pub tee: bool,
    /// Of files that we make
    #[arg(long, value_name = "MODE", env = "LOGREOPEN_MODE", hide_env = true, help_heading = "Files", value_parser = mode, default_value = "0640")]
    pub mode: u32,
    /// Of files that we make [default: --user]
    #[arg(
        long,
        value_name = "USER[:GROUP]",
        env = "LOGREOPEN_OWNER",
        hide_env = true,
        help_heading = "Files"
    )]
    pub owner: Option<String>,
    /// Drop root for good once all is open
    #[arg(
        short = 'u',
        long,
        value_name = "USER[:GROUP]",
        env = "LOGREOPEN_USER",
        hide_env = true,
        help_heading = "Files"
    )]
    pub user: Option<String>,
    /// Make missing directories, mode 0750
    #[arg(long, env = "LOGREOPEN_MKDIR", value_parser = BoolishValueParser::new(), hide_env = true, help_heading = "Files")]
    pub mkdir: bool,
    /// Sync each D, or at a reopen
    #[arg(long, value_name = "WHEN", env = "LOGREOPEN_FSYNC", hide_env = true, help_heading = "Files", value_parser = fsync, default_value = "never")]
    pub fsync: Fsync,

    /// Before each line: rfc3339, epoch, tai64n
    #[arg(
        long,
        value_name = "STYLE",
        env = "LOGREOPEN_STAMP",
        hide_env = true,
        help_heading = "Lines",
        value_enum,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "rfc3339",
        hide_possible_values = true
    )]
    pub stamp: Option<Stamp>,
    /// Before each line, after the stamp
    #[arg(
        long,
        value_name = "TEXT",
        env = "LOGREOPEN_PREFIX",
        hide_env = true,
        help_heading = "Lines"
    )]
    pub prefix: Option<OsString>,
    /// Held while a file cannot be written
    #[arg(long, value_name = "SIZE", env = "LOGREOPEN_BUFFER", hide_env = true, help_heading = "Lines", value_parser = buffer, default_value = "16M")]
    pub buffer: u64,
    /// Or block: hold the command up
    #[arg(
        long,
        value_name = "WHAT",
        env = "LOGREOPEN_ON_FULL",
        hide_env = true,
        help_heading = "Lines",
        value_enum,
        hide_possible_values = true,
        default_value = "drop"
    )]
    pub on_full: OnFull,
    /// At the end, for a disk that hangs
    #[arg(long, value_name = "D", env = "LOGREOPEN_DRAIN_TIMEOUT", hide_env = true, help_heading = "Lines", value_parser = duration, default_value = "5s")]
    pub drain_timeout: Duration,

    /// Wait for a file that was moved; 0: off
    #[arg(long, value_name = "D", env = "LOGREOPEN_FOLLOW", hide_env = true, help_heading = "Rotation", value_parser = duration, default_value = "2s")]
    pub follow: Duration,
    /// Rotate by ourselves: FILE.1, FILE.2, ...
    #[arg(long, value_name = "SIZE", env = "LOGREOPEN_MAX_SIZE", hide_env = true, help_heading = "Rotation", value_parser = max_size)]
    pub max_size: Option<u64>,
    /// So many old files
    #[arg(long, value_name = "N", env = "LOGREOPEN_KEEP", hide_env = true, help_heading = "Rotation", value_parser = count, default_value = "7")]
    pub keep: u32,
    /// After that, with LOGREOPEN_FILE set
    #[arg(
        long,
        value_name = "CMD",
        env = "LOGREOPEN_ON_ROTATE",
        hide_env = true,
        help_heading = "Rotation"
    )]
    pub on_rotate: Option<OsString>,
    /// How long that may take
    #[arg(long, value_name = "D", env = "LOGREOPEN_ACTION_TIMEOUT", hide_env = true, help_heading = "Rotation", value_parser = duration, default_value = "60s")]
    pub action_timeout: Duration,

    /// Our pid, locked while we live
    #[arg(
        long,
        value_name = "FILE",
        env = "LOGREOPEN_PID_FILE",
        hide_env = true,
        help_heading = "Control"
    )]
    pub pid_file: Option<PathBuf>,
    /// A socket to be asked over
    #[arg(
        long,
        value_name = "FILE",
        env = "LOGREOPEN_CONTROL",
        hide_env = true,
        help_heading = "Control"
    )]
    pub control: Option<PathBuf>,
    /// Ask a running one: help lists what
    #[arg(
        long,
        value_name = "FILE",
        env = "LOGREOPEN_CTL",
        hide_env = true,
        help_heading = "Control"
    )]
    pub ctl: Option<PathBuf>,
    /// How long an answer is waited for
    #[arg(long, value_name = "D", env = "LOGREOPEN_TIMEOUT", hide_env = true, help_heading = "Control", value_parser = duration, default_value = "10s")]
    pub timeout: Duration,
    /// Of events: text, json, journal
    #[arg(long, value_name = "FORMAT", env = "LOGREOPEN_LOG_FORMAT", hide_env = true, help_heading = "Control", value_parser = log_format)]
    pub log_format: Option<Format>,
    /// Only warnings and errors
    #[arg(short, long, env = "LOGREOPEN_QUIET", value_parser = BoolishValueParser::new(), hide_env = true, help_heading = "Control", conflicts_with = "verbose")]
    pub quiet: bool,
    /// Each step too
    #[arg(short, long, env = "LOGREOPEN_VERBOSE", value_parser = BoolishValueParser::new(), hide_env = true, help_heading = "Control")]
    pub verbose: bool,

    /// The command and its arguments, or FILE, or a request
    #[arg(trailing_var_arg = true, hide = true)]
    pub words: Vec<OsString>,
}

/// `--stamp`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Stamp {
    /// 2026-11-23T21:00:00.123Z
    Rfc3339,
    /// 1795467600.123
    Epoch,
    /// @400000006b046ba6075654c0
    Tai64n,
}

/// `--on-full`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnFull {
    /// New lines are dropped and counted.
    Drop,
    /// The command waits.
    Block,
}

/// `--fsync`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fsync {
    /// So often, while there is something new.
    Every(Duration),
    /// Before an old file is let go, and at the end.
    Reopen,
    /// When the kernel likes.
    Never,
}

fn fsync(text: &str) -> Result<Fsync, String> {
    match text {
        "never" => Ok(Fsync::Never),
        "reopen" => Ok(Fsync::Reopen),
        _ => match duration(text) {
            Ok(length) if !length.is_zero() => Ok(Fsync::Every(length)),
            _ => Err(format!("'{text}': 1s, reopen or never would do")),
        },
    }
}

fn buffer(text: &str) -> Result<u64, String> {
    match size(text)? {
        size @ 65_536.. => Ok(size),
        _ => Err(format!("'{text}' is too small; from 64K on would do")),
    }
}

fn max_size(text: &str) -> Result<u64, String> {
    match size(text)? {
        0 => Err("'0' would rotate for ever; 100M would do".to_owned()),
        size => Ok(size),
    }
}

/// The command line with `--stamp STYLE` as `--stamp=STYLE`: the style may be left out, and then the next
/// word is somebody else's, which the parser cannot know.
#[must_use]
pub fn joined(words: Vec<OsString>) -> Vec<OsString> {
    let command = Cli::command();
    let takes_value = |word: &OsStr| {
        command.get_arguments().any(|argument| {
            let long = argument.get_long().map(|name| format!("--{name}"));
            let short = argument.get_short().map(|name| format!("-{name}"));
            argument.get_action().takes_values()
                && [long, short]
                    .iter()
                    .flatten()
                    .any(|name| word == name.as_str())
        })
    };
    let style = |word: &OsStr| {
        Stamp::value_variants()
            .iter()
            .filter_map(Stamp::to_possible_value)
            .any(|value| word == value.get_name())
    };
    let mut out = Vec::with_capacity(words.len());
    let mut words = words.into_iter().peekable();
    out.extend(words.next());
    while let Some(mut word) = words.next() {
        let is_option = word.as_encoded_bytes().starts_with(b"-") && word != "-" && word != "--";
        let takes = takes_value(&word);
        if word == "--stamp" {
            if let Some(value) = words.next_if(|next| style(next)) {
                word.push("=");
                word.push(value);
            }
        } else if takes {
            out.push(word);
            out.extend(words.next());
            continue;
        }
        out.push(word);
        if !is_option {
            // The command begins; what follows is not ours.
            break;
        }
    }
    out.extend(words);
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Cli, clap::Error> {
        let words = std::iter::once("logreopen").chain(words.iter().copied());
        Cli::try_parse_from(joined(words.map(OsString::from).collect()))
    }

    #[test]
    fn a_stamp_has_a_style_or_none() {
        for (words, stamp, rest) in [
            (&["--stamp", "f"][..], Some(Stamp::Rfc3339), &["f"][..]),
            (&["--stamp", "epoch", "f"], Some(Stamp::Epoch), &["f"]),
            (&["--stamp=tai64n", "f"], Some(Stamp::Tai64n), &["f"]),
            (&["-l", "--stamp", "c"], None, &["c"]),
            (
                &["-l", "f", "--", "c", "--stamp", "epoch"],
                None,
                &["c", "--stamp", "epoch"],
            ),
            (
                &["-l", "f", "c", "--stamp", "epoch"],
                None,
                &["c", "--stamp", "epoch"],
            ),
        ] {
            let expected: Vec<OsString> = rest.iter().map(OsString::from).collect();
            match parsed(words) {
                Ok(cli) => assert_eq!((cli.stamp, cli.words), (stamp, expected), "{words:?}"),
                // `--stamp` as the value of another option is refused by the parser.
                Err(why) => assert_eq!(words[1], "--stamp", "{why}"),
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_would_do() {
        for words in [
            ["--max-size", "0"],
            ["--max-size", "10X"],
            ["--buffer", "1K"],
            ["--fsync", "0s"],
            ["--mode", "999"],
            ["--keep", "0"],
            ["--follow", "soon"],
        ] {
            let why = parsed(&words).unwrap_err().to_string();
            assert!(why.contains("would do") && why.contains(words[0]), "{why}");
        }
    }
}
