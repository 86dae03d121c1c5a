//! The command line: one `main` for all tools, one parser for each kind of value.

use crate::error::{Doing, Error, Result};
use crate::exit::{End, Exit};
use crate::socket::Address;
use crate::time::Rate;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Parses the command line, runs, and says what went wrong in one line.
pub fn main<C: clap::Parser>(tool: &'static str, run: impl FnOnce(C) -> Result<Exit>) -> ExitCode {
    main_with(tool, std::env::args_os().collect(), run)
}

/// The same with a command line that was looked at before.
pub fn main_with<C: clap::Parser>(
    tool: &'static str,
    words: Vec<OsString>,
    run: impl FnOnce(C) -> Result<Exit>,
) -> ExitCode {
    crate::exit::abort_on_panic();
    match C::try_parse_from(words) {
        Ok(cli) => finish(tool, run(cli)),
        Err(why) if why.use_stderr() => {
            finish(tool, Err(Error::usage(one_line(&why.to_string(), tool))))
        }
        Err(help) => {
            // --help and --version; a closed stdout is nobody's fault.
            let text = help.to_string();
            let _ = write_all(crate::sys::standard(1), text.as_bytes(), PollTimeout::NONE);
            ExitCode::SUCCESS
        }
    }
}

/// The status, and for an error its line on stderr.
pub fn finish(tool: &str, result: Result<Exit>) -> ExitCode {
    let exit = result.unwrap_or_else(|error| {
        note(&format!("{tool}: {error}"));
        error.exit
    });
    ExitCode::from(exit.code())
}

/// Prints a line of the product on stdout; false when nobody reads there any more.
///
/// # Errors
/// It cannot be written: a full disk, for one.
pub fn print(line: &str) -> Result<bool> {
    let line = format!("{line}\n");
    match write_all(crate::sys::standard(1), line.as_bytes(), PollTimeout::NONE) {
        Ok(()) => Ok(true),
        Err(nix::Error::EPIPE | nix::Error::ECONNRESET) => Ok(false),
        Err(why) => Err(why).doing("write to standard output"),
    }
}

/// Prints a line on stderr that is no error of ours.
pub fn note(line: &str) {
    let line = format!("{line}\n");
    // Nobody is held up for long by who does not read what we complain of.
    let _ = write_all(crate::sys::standard(2), line.as_bytes(), 100u8.into());
}

fn write_all(fd: impl AsFd, mut bytes: &[u8], patience: PollTimeout) -> nix::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(&fd, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(nix::Error::EINTR) => {}
            // Whoever shares it with us (node, for one) may have made it non-blocking.
            Err(nix::Error::EAGAIN) => {
                let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
                if poll(&mut fds, patience) == Ok(0) {
                    return Err(nix::Error::EAGAIN);
                }
            }
            Err(why) => return Err(why),
        }
    }
    Ok(())
}

/// clap's message without its paragraphs.
fn one_line(text: &str, tool: &str) -> String {
    let message = text.split("\nUsage:").next().unwrap_or(text);
    let message = message
        .split("\n\nFor more information")
        .next()
        .unwrap_or(message);
    let words: Vec<&str> = message
        .trim_start_matches("error: ")
        .split_whitespace()
        .collect();
    format!("{} (see {tool} --help)", words.join(" "))
}

/// A duration: what humantime reads, or a number of seconds as in sleep(1).
///
/// # Errors
/// What would do.
pub fn duration(text: &str) -> std::result::Result<Duration, String> {
    let text = text.trim();
    let wrong = || format!("'{text}' is no duration; 10s, 1m 30s, 500ms or 0.5 would do");
    if text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        return text
            .parse::<f64>()
            .ok()
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .filter(|length| *length <= LONGEST)
            .ok_or_else(wrong);
    }
    humantime::parse_duration(text)
        .ok()
        .filter(|length| *length <= LONGEST)
        .ok_or_else(wrong)
}

/// Ten years: longer ones are slips, and the kernel's clocks need not stand them.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// `COUNT/DURATION`; upstart's `5 60` is read too.
///
/// # Errors
/// What would do.
pub fn rate(text: &str) -> std::result::Result<Rate, String> {
    let wrong = || format!("'{text}' is no rate; 5/60s would do");
    if text.trim() == "0" {
        return Ok(Rate {
            count: 0,
            per: Duration::ZERO,
        });
    }
    let (count, per) = text.trim().split_once(['/', ' ']).ok_or_else(wrong)?;
    let count = count.trim().parse().map_err(|_| wrong())?;
    let per = duration(per).map_err(|_| wrong())?;
    if per.is_zero() {
        return Err(wrong());
    }
    Ok(Rate { count, per })
}

/// A rate of deaths, and which of them count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateFilter {
    /// How many in how long.
    pub rate: Rate,
    /// Only these; empty: all.
    pub filter: Vec<End>,
}

/// `COUNT/DURATION[:STATUS|SIGNAL,...]`, as in `5/60s:1,SEGV`.
///
/// # Errors
/// What would do.
pub fn rate_filter(text: &str) -> std::result::Result<RateFilter, String> {
    let (rate_text, filter) = text
        .split_once(':')
        .map_or((text, None), |(rate, filter)| (rate, Some(filter)));
    let rate = rate(rate_text)?;
    let filter = match filter {
        None => Vec::new(),
        Some(filter) => filter
            .split(',')
            .map(|one| match one.parse::<i32>() {
                Ok(status) if (0..=255).contains(&status) => Ok(End::Exited(status)),
                Ok(_) => Err(format!("'{one}' is no exit status; 0 to 255 would do")),
                Err(_) => signal(one).map(End::Killed),
            })
            .collect::<std::result::Result<_, _>>()?,
    };
    Ok(RateFilter { rate, filter })
}

/// Bytes, or with K, M, G.
///
/// # Errors
/// What would do.
pub fn size(text: &str) -> std::result::Result<u64, String> {
    let wrong = || format!("'{text}' is no size; 4096, 64K, 16M or 1G would do");
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

/// `TERM`, `SIGTERM`, `term` or `15`.
///
/// # Errors
/// What would do.
pub fn signal(text: &str) -> std::result::Result<i32, String> {
    let wrong = || format!("'{text}' is no signal; TERM, SIGTERM or 15 would do");
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) {
            Ok(number)
        } else {
            Err(wrong())
        };
    }
    let name = text.to_ascii_uppercase();
    let name = if name.starts_with("SIG") {
        name
    } else {
        format!("SIG{name}")
    };
    name.parse::<nix::sys::signal::Signal>()
        .map(|signal| signal as i32)
        .map_err(|_| wrong())
}

/// A whole number from 1 on.
///
/// # Errors
/// What would do.
pub fn count(text: &str) -> std::result::Result<u32, String> {
    match text.parse::<u32>() {
        Ok(count) if count > 0 && count <= i32::MAX as u32 => Ok(count),
        _ => Err("a whole number from 1 on would do".to_owned()),
    }
}

/// Permissions of a file in octal, as in `0640`.
///
/// # Errors
/// What would do.
pub fn mode(text: &str) -> std::result::Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(format!(
            "'{text}' is no mode; an octal one like 0640 would do"
        )),
    }
}

/// `text`, `json` or `journal`.
///
/// # Errors
/// What would do.
pub fn log_format(text: &str) -> std::result::Result<crate::event::Format, String> {
    match text {
        "text" => Ok(crate::event::Format::Text),
        "json" => Ok(crate::event::Format::Json),
        "journal" => Ok(crate::event::Format::Journal),
        _ => Err(format!(
            "'{text}' is no format; text, json or journal would do"
        )),
    }
}

/// `NAME=value`
///
/// # Errors
/// What would do.
pub fn env_pair(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() && !text.contains('\0') => {
            Ok((name.to_owned(), value.to_owned()))
        }
        _ => Err("NAME=value would do".to_owned()),
    }
}

/// `PORT`, `HOST:PORT`, `[IPV6]:PORT`, `unix:PATH`, or an absolute path.
///
/// # Errors
/// What would do.
pub fn address(text: &str) -> std::result::Result<Address, String> {
    let wrong = || {
        format!(
            "'{text}' is no address; 3000, 127.0.0.1:3000, [::1]:3000, unix:PATH or /PATH would do"
        )
    };
    if let Some(path) = text.strip_prefix("unix:") {
        return if path.is_empty() {
            Err(wrong())
        } else {
            Ok(Address::Unix(PathBuf::from(path)))
        };
    }
    if text.starts_with('/') {
        return Ok(Address::Unix(PathBuf::from(text)));
    }
    let port = |text: &str| -> Option<u16> {
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            text.parse().ok()
        } else {
            None
        }
    };
    if let Some(port) = port(text) {
        return Ok(Address::Tcp { host: None, port });
    }
    let (host, number) = text.rsplit_once(':').ok_or_else(wrong)?;
    let number = port(number).ok_or_else(wrong)?;
    let host = match host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        Some(inside) if inside.parse::<std::net::Ipv6Addr>().is_ok() => inside,
        Some(_) => return Err(wrong()),
        None if host.is_empty() || host.contains([':', '/', ' ', '[', ']']) => return Err(wrong()),
        None => host,
    };
    Ok(Address::Tcp {
        host: Some(host.to_owned()),
        port: number,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations() {
        for (text, ms) in [
            ("10", 10_000),
            ("0.5", 500),
            ("10s", 10_000),
            ("1m 30s", 90_000),
            ("500ms", 500),
            ("0", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in [
            "",
            "x",
            "-1",
            "1.2.3",
            "s",
            "99999999999999999999",
            "10 parsecs",
            "900y",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates_and_filters() {
        let minute = Rate {
            count: 5,
            per: Duration::from_secs(60),
        };
        for text in ["5/60s", "5/60", "5 60", "5/1m"] {
            assert_eq!(rate(text), Ok(minute), "{text}");
        }
        for text in ["", "5", "/60", "5/0", "x/60", "-5/60"] {
            assert!(rate(text).is_err(), "{text}");
        }
        assert_eq!(rate("0").unwrap().count, 0);
        assert_eq!(
            rate_filter("5/60s:1,SEGV").unwrap().filter,
            [End::Exited(1), End::Killed(11)]
        );
        assert!(rate_filter("5/60s:").is_err());
        assert!(rate_filter("5/60s:256").is_err());
    }

    #[test]
    fn sizes_signals_pairs() {
        assert_eq!(size("16M"), Ok(16 << 20));
        assert!(size("16T").is_err() && size("").is_err() && size("99999999999G").is_err());
        for text in ["TERM", "SIGTERM", "term", "15"] {
            assert_eq!(signal(text), Ok(15), "{text}");
        }
        assert!(signal("0").is_err() && signal("NOPE").is_err() && signal("65").is_err());
        assert_eq!(env_pair("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
        assert!(env_pair("A").is_err() && env_pair("=b").is_err());
    }

    #[test]
    fn addresses() {
        let tcp = |host: Option<&str>, port| {
            Ok(Address::Tcp {
                host: host.map(str::to_owned),
                port,
            })
        };
        assert_eq!(address("3000"), tcp(None, 3000));
        assert_eq!(address("127.0.0.1:3000"), tcp(Some("127.0.0.1"), 3000));
        assert_eq!(address("[::1]:80"), tcp(Some("::1"), 80));
        assert_eq!(address("localhost:0"), tcp(Some("localhost"), 0));
        assert_eq!(address("unix:a.sock"), Ok(Address::Unix("a.sock".into())));
        assert_eq!(address("/a.sock"), Ok(Address::Unix("/a.sock".into())));
        for text in [
            "",
            "65536",
            ":80",
            "host",
            "host:",
            "host:http",
            "::1:80",
            "[x]:1",
            "unix:",
            "a/b:1",
            "+1",
        ] {
            assert!(address(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_typed_is_read_or_refused(text in "\\PC{0,20}") {
            let _ = (duration(&text), rate_filter(&text), size(&text), signal(&text), address(&text), env_pair(&text));
        }
    }
}
