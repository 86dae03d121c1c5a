//! Actions: what is run when, in which order, and with which variables. One at a time.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Why something is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// `--before-action`
    Before,
    /// `--signal`
    Signal(i32),
    /// `--on-fail`
    Fail,
    /// `--on-recover`
    Recover,
    /// `--on-slow`
    Slow,
    /// `--on-change`
    Change,
    /// `--on-ok`
    Ok,
}

impl Why {
    /// It is part of what heals the service: until it has ended, results don't count.
    #[must_use]
    pub fn heals(self) -> bool {
        match self {
            Why::Before | Why::Signal(_) | Why::Fail => true,
            Why::Recover | Why::Slow | Why::Change | Why::Ok => false,
        }
    }

    /// Its option.
    #[must_use]
    pub fn option(self) -> &'static str {
        match self {
            Why::Before => "before-action",
            Why::Signal(_) => "signal",
            Why::Fail => "on-fail",
            Why::Recover => "on-recover",
            Why::Slow => "on-slow",
            Why::Change => "on-change",
            Why::Ok => "on-ok",
        }
    }
}

/// Something to be run.
#[derive(Clone, Debug)]
pub struct Task {
    /// Why.
    pub why: Why,
    /// The shell command; empty for a signal.
    pub command: OsString,
    /// `HEARTBEAT_...`, without what is unknown.
    pub variables: Vec<(&'static str, String)>,
    /// The worker that it is about; `None`: the service.
    pub worker: Option<i32>,
}

/// What waits to be run.
#[derive(Debug, Default)]
pub struct Queue(VecDeque<Task>);

impl Queue {
    /// One more: what heals comes before what only tells, and of what tells, only the newest of a kind
    /// waits.
    pub fn push(&mut self, task: Task) {
        if task.why.heals() {
            let at = self.0.iter().take_while(|other| other.why.heals()).count();
            self.0.insert(at, task);
            return;
        }
        self.0.retain(|other| other.why != task.why);
        self.0.push_back(task);
    }

    /// The next one.
    pub fn pop(&mut self) -> Option<Task> {
        self.0.pop_front()
    }

    /// Something that heals waits.
    #[must_use]
    pub fn heals(&self) -> bool {
        self.0.iter().any(|task| task.why.heals())
    }

    /// Nothing will be run any more.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// A command as the line has it: with the pid in place of `$PID`.
#[must_use]
pub fn shown(command: &OsStr, pid: Option<i32>) -> String {
    let mut text = command.to_string_lossy().into_owned();
    if let Some(pid) = pid {
        let pid = pid.to_string();
        text = text.replace("${PID}", &pid);
        let mut out = String::new();
        let mut rest = text.as_str();
        while let Some(at) = rest.find("$PID") {
            let (before, after) = (&rest[..at], &rest[at + 4..]);
            out.push_str(before);
            let longer =
                after.starts_with(|next: char| next.is_ascii_alphanumeric() || next == '_');
            out.push_str(if longer { "$PID" } else { &pid });
            rest = after;
        }
        text = out + rest;
    }
    text.chars().flat_map(plain).collect()
}

/// A letter stays as it is; what a terminal would obey does not.
fn plain(letter: char) -> Vec<char> {
    if letter.is_control() {
        letter.escape_debug().collect()
    } else {
        vec![letter]
    }
}

/// The variables of a command, over our own environment: what is `None` is unset. Our options, which may
/// stand there too, are none of the command's business: it may be a heartbeat itself.
#[must_use]
pub fn environment(task: &Task, pid: Option<i32>) -> Vec<(String, Option<OsString>)> {
    let mut list: Vec<(String, Option<OsString>)> = std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| name.starts_with("HEARTBEAT_"))
        .map(|name| (name, None))
        .collect();
    for (name, value) in &task.variables {
        list.retain(|(other, _)| other != name);
        // What a peer has sent may hold anything; a NUL byte would end the string.
        let value: Vec<u8> = value.bytes().filter(|byte| *byte != 0).collect();
        list.push(((*name).to_owned(), Some(OsString::from_vec(value))));
    }
    let pid = pid.map(|pid| OsStr::from_bytes(pid.to_string().as_bytes()).to_owned());
    list.push(("PID".to_owned(), pid));
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(why: Why) -> Task {
        Task {
            why,
            command: OsString::new(),
            variables: Vec::new(),
            worker: None,
        }
    }

    #[test]
    fn what_heals_comes_first_and_news_replace_old_news() {
        let mut queue = Queue::default();
        for why in [
            Why::Ok,
            Why::Change,
            Why::Ok,
            Why::Before,
            Why::Signal(12),
            Why::Fail,
        ] {
            queue.push(task(why));
        }
        let mut order = Vec::new();
        while let Some(task) = queue.pop() {
            order.push(task.why);
        }
        let expected = [
            Why::Before,
            Why::Signal(12),
            Why::Fail,
            Why::Change,
            Why::Ok,
        ];
        assert_eq!(order, expected);
    }

    #[test]
    fn commands_are_shown_with_the_pid() {
        for (command, text) in [
            ("kill -USR2 $PID", "kill -USR2 12"),
            ("kill ${PID};echo $PIDS $PID_", "kill 12;echo $PIDS $PID_"),
            ("a\nb", "a\\nb"),
        ] {
            assert_eq!(shown(OsStr::new(command), Some(12)), text);
        }
        assert_eq!(shown(OsStr::new("kill $PID"), None), "kill $PID");
    }
}
