//! How it is said: lines for people, JSON, a plug-in's line for Nagios. Events are those of all tools.

use crate::cli::{Cli, Format};
use crate::outcome::{Outcome, Verdict, short};
use crate::plan::Plan;
use clap::Parser;
use common::error::{Error, Result};
use common::event::{self, Level, Log, Value};
use common::exit::Exit;
use common::output::Output;
use std::ffi::OsString;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What Nagios calls them: OK, WARNING, CRITICAL, UNKNOWN.
const NAGIOS: [&str; 4] = ["OK", "WARNING", "CRITICAL", "UNKNOWN"];

/// Where it is said.
#[derive(Debug)]
pub struct Voice {
    /// Lines of the product; `None` while a command has our stdout.
    out: Option<Output>,
    err: Output,
    format: Format,
    /// Of the product.
    product: Log,
    /// Of events on stderr.
    log: Log,
    threshold: Level,
    lost: u64,
    heard: bool,
}

impl Voice {
    /// Speaks as the plan says.
    #[must_use]
    pub fn new(plan: &Plan) -> Voice {
        Voice {
            out: plan.command.is_empty().then(|| Output::open(1)),
            err: Output::open(2),
            format: plan.format,
            product: Log::new("heartbeat", Some(event::Format::Json), plan.threshold),
            log: Log::new("heartbeat", plan.log_format, plan.threshold),
            threshold: plan.threshold,
            lost: 0,
            heard: true,
        }
    }

    /// A line of the product: `human` follows the time. While a command is wrapped it is an event.
    pub fn report(&mut self, level: Level, event: &str, fields: &[(&str, Value)], human: &str) {
        let Some(out) = &mut self.out else {
            return self.say(level, event, fields);
        };
        if level > self.threshold {
            return;
        }
        let line = match self.format {
            Format::Json => self.product.line(level, event, fields).unwrap_or_default(),
            Format::Human | Format::Nagios => {
                // Whatever a server has sent: one line, and nothing that a terminal obeys.
                let human = human.replace(char::is_control, "?");
                let mut line = format!("{} {human}", now());
                // A line is one write of a pipe, whatever a server has sent.
                let mut end = line.len().min(event::LONGEST - 1);
                while !line.is_char_boundary(end) {
                    end -= 1;
                }
                line.truncate(end);
                line.push('\n');
                line.into_bytes()
            }
        };
        // A reader that has stopped must not stop the checks: what does not fit is dropped and counted.
        out.write_or_drop(&line);
        let lost = out.take_lost();
        self.lost += lost;
        if out.is_gone() {
            self.heard = false;
        }
    }

    /// An event on stderr.
    pub fn say(&mut self, level: Level, event: &str, fields: &[(&str, Value)]) {
        if let Some(line) = self.log.line(level, event, fields) {
            self.err.write_or_drop(&line);
        }
    }

    /// A line of the product as it is.
    pub fn print(&mut self, line: &str) {
        if let Some(out) = &mut self.out {
            out.write_or_drop(format!("{line}\n").as_bytes());
        }
    }

    /// What waits for a reader is tried again.
    pub fn flush(&mut self) {
        if let Some(out) = &mut self.out {
            if out.wants_to_write() {
                out.flush();
            }
        }
        if self.err.wants_to_write() {
            self.err.flush();
        }
    }

    /// Lines that were dropped, when there is a reader again.
    pub fn take_lost(&mut self) -> Option<u64> {
        let waits = self.out.as_ref().is_some_and(Output::wants_to_write);
        (self.lost > 0 && !waits && self.heard).then(|| std::mem::take(&mut self.lost))
    }

    /// Somebody may still read stdout.
    #[must_use]
    pub fn heard(&self) -> bool {
        self.heard
    }

    /// The last words.
    pub fn finish(&mut self) {
        let patience = Duration::from_millis(100);
        if let Some(out) = &mut self.out {
            out.finish(patience);
        }
        self.err.finish(patience);
    }
}

fn now() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    event::rfc3339(now.unwrap_or_default())
}

/// `21:00:10Z`
#[must_use]
pub fn clock(ago: Duration) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let text = event::rfc3339(now.saturating_sub(ago));
    let time = text
        .split('T')
        .nth(1)
        .and_then(|time| time.split('.').next());
    format!("{}Z", time.unwrap_or_default())
}

/// `http://localhost:3000/ 200 3.2ms 127.0.0.1:3000`
#[must_use]
pub fn good(target: &str, outcome: &Outcome) -> String {
    let status = outcome
        .status
        .map(|status| format!(" {status}"))
        .unwrap_or_default();
    let address = outcome
        .address
        .as_ref()
        .filter(|address| !target.contains(address.as_str()));
    let address = address
        .map(|address| format!(" {address}"))
        .unwrap_or_default();
    let warning = match &outcome.verdict {
        Verdict::Warning(why) => format!(" {why}"),
        Verdict::Well | Verdict::Failed(_) | Verdict::Unknown(_) => String::new(),
    };
    let latency = short(outcome.latency);
    format!("{target}{status} {latency}{address}{warning}")
}

/// One line for Nagios, and its status: the worst of all checks.
#[must_use]
pub fn nagios(plan: &Plan, outcomes: &[Outcome]) -> (u8, String) {
    let rank = |outcome: &Outcome| match &outcome.verdict {
        Verdict::Well => 0,
        Verdict::Warning(_) => 1,
        // Whose name server hangs is unknown, not dead.
        Verdict::Failed(failure) if failure.reason == crate::outcome::Reason::Dns => 3,
        Verdict::Failed(_) => 2,
        Verdict::Unknown(_) => 3,
    };
    // Critical is worse than unknown.
    let weight = |rank: u8| [0u8, 1, 3, 2][usize::from(rank)];
    let status = outcomes
        .iter()
        .map(rank)
        .max_by_key(|rank| weight(*rank))
        .unwrap_or(3);
    let mut words = Vec::new();
    let mut data = Vec::new();
    for (check, outcome) in plan.checks.iter().zip(outcomes) {
        if rank(outcome) == status {
            words.push(match &outcome.verdict {
                Verdict::Failed(failure) => format!("{} {}", check.target, failure.say()),
                Verdict::Unknown(why) => format!("{} {why}", check.target),
                Verdict::Well | Verdict::Warning(_) => good(&check.target, outcome),
            });
        }
        let label = if outcomes.len() == 1 {
            "time".to_owned()
        } else {
            format!("time{}", data.len() + 1)
        };
        let slow = plan
            .slow
            .map(|slow| slow.as_secs_f64().to_string())
            .unwrap_or_default();
        let limit = plan.times.timeout.as_secs_f64();
        let seconds = outcome.latency.as_secs_f64();
        data.push(format!("{label}={seconds:.6}s;{slow};{limit};0;{limit}"));
    }
    // A bar begins the performance data.
    let words = words
        .join(", ")
        .replace('|', "/")
        .replace(char::is_control, "?");
    let mut line = format!("HEARTBEAT {} - {words}", NAGIOS[usize::from(status)]);
    let data = data.join(" ");
    let mut end = line
        .len()
        .min(event::LONGEST.saturating_sub(data.len() + 4));
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line.truncate(end);
    (status, format!("{line} | {data}"))
}

/// The answer is for Nagios, so a slip of the command line must not look critical.
#[must_use]
pub fn for_nagios(words: &[OsString]) -> bool {
    let own = words.iter().take_while(|word| *word != "--");
    let own: Vec<&OsString> = own.collect();
    own.iter().any(|word| *word == "--format=nagios")
        || own
            .windows(2)
            .any(|pair| pair[0] == "--format" && pair[1] == "nagios")
        || std::env::var_os("HEARTBEAT_FORMAT").is_some_and(|format| format == "nagios")
}

/// As the shared one, but what goes wrong is UNKNOWN, on stdout, with status 3.
pub fn nagios_main(words: Vec<OsString>, run: impl FnOnce(Plan) -> Result<Exit>) -> ExitCode {
    common::exit::abort_on_panic();
    let parsed = Cli::try_parse_from(&words);
    let result = match parsed {
        Ok(cli) => Plan::make(cli).and_then(run),
        Err(why) if why.use_stderr() => {
            let text = why.to_string();
            let text = text
                .split("\n\n")
                .next()
                .unwrap_or_default()
                .replace('\n', " ");
            Err(Error::usage(text.trim_start_matches("error: ").to_owned()))
        }
        Err(_) => {
            return common::cli::main_with::<Cli>("heartbeat", words, |_| Ok(Exit::Ok));
        }
    };
    match result {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(error) => {
            let _ = common::cli::print(&format!("HEARTBEAT UNKNOWN - {error}").replace('|', "/"));
            ExitCode::from(3)
        }
    }
}
