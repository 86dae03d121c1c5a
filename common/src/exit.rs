//! Exit statuses: conventions for all tools, and how a process ended.

use std::fmt;

/// A panic of any thread ends the process, in a build that unwinds as in the release: to be called first of all. The
/// builds for development unwind because tests do, and share their libraries with them.
pub fn abort_on_panic() {
    if cfg!(panic = "unwind") {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |what| {
            before(what);
            // The panic has said why.
            #[allow(clippy::disallowed_methods)]
            std::process::abort();
        }));
    }
}

/// What a tool ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: what was asked for happened.
    Ok,
    /// 1: it ran, and the answer is no.
    No,
    /// 2: wrong usage.
    Usage,
    /// 124: a time limit of the user's ran out.
    TimedOut,
    /// 125: the tool itself could not do its work.
    Fault,
    /// 126: the command cannot be executed.
    NotExecutable,
    /// 127: the command was not found.
    NotFound,
    /// The command's own.
    Code(u8),
    /// 128+N: the command was killed by signal N.
    Signal(i32),
}

/// What each status means, for all tools.
pub const TABLE: &[(u8, &str)] = &[
    (0, "what was asked for happened"),
    (1, "it ran, and the answer is no"),
    (2, "wrong usage"),
    (124, "a time limit given by the user ran out"),
    (125, "the tool itself could not do its work"),
    (126, "the command cannot be executed"),
    (127, "the command was not found"),
];

impl Exit {
    /// The number.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Exit::Ok => 0,
            Exit::No => 1,
            Exit::Usage => 2,
            Exit::TimedOut => 124,
            Exit::Fault => 125,
            Exit::NotExecutable => 126,
            Exit::NotFound => 127,
            Exit::Code(code) => code,
            Exit::Signal(signal) => u8::try_from(128 + signal).unwrap_or(255),
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

impl fmt::Display for End {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Exited(status) => write!(formatter, "status {status}"),
            End::Killed(signal) => write!(formatter, "signal {}", crate::signal::name(*signal)),
        }
    }
}

impl From<End> for Exit {
    fn from(end: End) -> Exit {
        match end {
            End::Exited(status) => Exit::Code(u8::try_from(status & 255).unwrap_or(255)),
            End::Killed(signal) => Exit::Signal(signal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_command_is_128_and_its_signal() {
        assert_eq!(Exit::from(End::Killed(9)).code(), 137);
        assert_eq!(Exit::from(End::Exited(3)).code(), 3);
        assert_eq!(End::Killed(15).to_string(), "signal TERM");
    }
}
