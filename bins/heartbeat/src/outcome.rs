//! What a check has found.

use std::time::Duration;

/// Why it failed: `HEARTBEAT_REASON`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Not all of it within the time limit.
    Timeout,
    /// Nobody listens, or the address cannot be reached.
    Refused,
    /// The connection was broken off.
    Reset,
    /// It ended before the reply was whole.
    Eof,
    /// Another status than expected.
    Status,
    /// The body, or the answer of a dialogue, is not what it should be.
    Body,
    /// TLS failed, or one side speaks it alone.
    Tls,
    /// The certificate is not to be trusted.
    Cert,
    /// The name was not found.
    Dns,
    /// No HTTP.
    Protocol,
    /// The command failed.
    Exec,
    /// An event loop spins.
    Stuck,
    /// Too much processor time.
    Cpu,
    /// Too much memory.
    Rss,
    /// Too many descriptors.
    Fds,
    /// The process is not there.
    Gone,
}

impl Reason {
    /// All of them.
    pub const ALL: [Reason; 16] = [
        Reason::Timeout,
        Reason::Refused,
        Reason::Reset,
        Reason::Eof,
        Reason::Status,
        Reason::Body,
        Reason::Tls,
        Reason::Cert,
        Reason::Dns,
        Reason::Protocol,
        Reason::Exec,
        Reason::Stuck,
        Reason::Cpu,
        Reason::Rss,
        Reason::Fds,
        Reason::Gone,
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Reason::Timeout => "timeout",
            Reason::Refused => "refused",
            Reason::Reset => "reset",
            Reason::Eof => "eof",
            Reason::Status => "status",
            Reason::Body => "body",
            Reason::Tls => "tls",
            Reason::Cert => "cert",
            Reason::Dns => "dns",
            Reason::Protocol => "protocol",
            Reason::Exec => "exec",
            Reason::Stuck => "stuck",
            Reason::Cpu => "cpu",
            Reason::Rss => "rss",
            Reason::Fds => "fds",
            Reason::Gone => "gone",
        }
    }
}

/// A check that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Why.
    pub reason: Reason,
    /// In words: `after 10.0s (connected, no reply)`. May hold what a peer has sent, escaped.
    pub detail: String,
    /// The process it is about, where that is not the service's own: a worker.
    pub pid: Option<i32>,
    /// It has looked over a time of its own.
    pub decisive: bool,
    /// We ourselves did not run when its time was up.
    pub late: bool,
}

impl Failure {
    /// A plain one.
    #[must_use]
    pub fn new(reason: Reason, detail: impl Into<String>) -> Failure {
        Failure {
            reason,
            detail: detail.into(),
            pid: None,
            decisive: false,
            late: false,
        }
    }

    /// `timeout after 10.0s (connected, no reply)`
    #[must_use]
    pub fn say(&self) -> String {
        if self.detail.is_empty() {
            self.reason.name().to_owned()
        } else {
            format!("{} {}", self.reason.name(), self.detail)
        }
    }
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Well.
    Well,
    /// Well, but: slow, or the certificate ends soon.
    Warning(String),
    /// Not well.
    Failed(Failure),
    /// We could not even try, for want of descriptors or memory: it says nothing about the service.
    Unknown(String),
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What it means.
    pub verdict: Verdict,
    /// The status of an HTTP reply.
    pub status: Option<u16>,
    /// From the beginning to the verdict.
    pub latency: Duration,
    /// Who answered.
    pub address: Option<String>,
}

impl Outcome {
    /// One without a reply.
    #[must_use]
    pub fn new(verdict: Verdict, latency: Duration) -> Outcome {
        Outcome {
            verdict,
            status: None,
            latency,
            address: None,
        }
    }
}

/// A duration as the lines have it: `3.2ms`, `10.0s`.
#[must_use]
pub fn short(length: Duration) -> String {
    if length < Duration::from_secs(1) {
        format!("{:.1}ms", length.as_secs_f64() * 1000.0)
    } else if length < Duration::from_secs(100) {
        format!("{:.1}s", length.as_secs_f64())
    } else {
        common::time::say(length)
    }
}

/// The first bytes that a peer has sent, so that a person sees what it is and no terminal obeys them.
#[must_use]
pub fn shown(bytes: &[u8]) -> String {
    let mut text = String::from("\"");
    for byte in bytes.iter().take(32) {
        text.extend(std::ascii::escape_default(*byte).map(char::from));
    }
    text.push('"');
    if bytes.len() > 32 {
        text.push_str("...");
    }
    text
}
