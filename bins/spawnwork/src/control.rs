//! What the control socket can be asked, and what follows.

use crate::deaths::By;
use crate::events;
use crate::pool::Phase;
use crate::resize::Resized;
use crate::run::{Master, Token};
use common::control::Reply;
use common::event::{Level, Value};
use common::exit::Exit;
use common::wait::Wake;
use std::time::Instant;

/// The result of a reload that a newer one took the place of.
pub const SUPERSEDED: u8 = 3;
/// The result of a reload that was not begun.
pub const REFUSED: u8 = 4;

/// Signals that are sent to end somebody: INT, QUIT, ABRT, KILL, TERM.
pub(crate) const ENDING: [i32; 5] = [2, 3, 6, 9, 15];

/// How status is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// For people.
    Table,
    /// For scripts.
    Json,
}

/// Whether the answer waits for the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// It comes at once.
    Begun,
    /// It comes when everything is done.
    Done,
}

/// Which workers are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// All.
    All,
    /// That of this slot.
    Slot(usize),
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// `status [json]`
    Status(Form),
    /// `reload [nowait]`
    Reload(Until),
    /// `stop [nowait]`
    Stop(Until),
    /// `quit [nowait]`
    Quit(Until),
    /// `add [n]`
    Add(usize),
    /// `remove [n]`
    Remove(usize),
    /// `workers N`
    Workers(usize),
    /// `restart ID|all`
    Restart(Whom),
    /// `signal SIG [ID|all]`
    Signal(i32, Whom),
    /// `clear`
    Clear,
    /// `events`
    Events,
    /// `metrics`
    Metrics,
    /// `reexec`
    Reexec,
    /// `version`
    Version,
    /// `help`
    Help,
}

const HELP: &str = "\
status [json]          who serves, since when, and what died
reload [nowait]        a new generation; its result
stop [nowait]          finish what was begun, and end
quit [nowait]          end at once
add [N]                N workers more (1)
remove [N]             N workers fewer (1)
workers N              so many workers
restart ID|all         a new worker of the same generation in one slot or in all
signal SIG [ID|all]    a signal to one worker's group or to all
clear                  forget the failed deploy and the deaths counted against slots
events                 each event as it happens
metrics                Prometheus' text
reexec                 the program that is installed now takes over
version                of this master
help                   this list";

impl Request {
    /// Reads a request line.
    ///
    /// # Errors
    /// What is wrong with it, and what would do.
    pub fn parse(line: &str) -> Result<Request, String> {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let (name, rest) = words.split_first().ok_or("an empty request; try help")?;
        let count = |text: &str| match text.parse::<usize>() {
            Ok(count) if (1..=10_000).contains(&count) => Ok(count),
            _ => Err(format!("'{text}': a number from 1 to 10000 would do")),
        };
        let until = |rest: &[&str]| match rest {
            [] => Some(Until::Done),
            ["nowait"] => Some(Until::Begun),
            _ => None,
        };
        let whom = |text: &str| match (text, text.parse::<usize>()) {
            ("all", _) => Ok(Whom::All),
            (_, Ok(slot)) => Ok(Whom::Slot(slot)),
            (_, Err(_)) => Err(format!("'{text}': a worker's number, or all, would do")),
        };
        let read = match (*name, rest) {
            ("status", []) => Some(Request::Status(Form::Table)),
            ("status", ["json"]) => Some(Request::Status(Form::Json)),
            ("reload", rest) => until(rest).map(Request::Reload),
            ("stop", rest) => until(rest).map(Request::Stop),
            ("quit", rest) => until(rest).map(Request::Quit),
            ("add", []) => Some(Request::Add(1)),
            ("add", [text]) => Some(Request::Add(count(text)?)),
            ("remove", []) => Some(Request::Remove(1)),
            ("remove", [text]) => Some(Request::Remove(count(text)?)),
            ("workers", [text]) => Some(Request::Workers(count(text)?)),
            ("restart", [target]) => Some(Request::Restart(whom(target)?)),
            ("signal", [text]) => Some(Request::Signal(common::cli::signal(text)?, Whom::All)),
            ("signal", [text, target]) => {
                Some(Request::Signal(common::cli::signal(text)?, whom(target)?))
            }
            ("clear", []) => Some(Request::Clear),
            ("events", []) => Some(Request::Events),
            ("metrics", []) => Some(Request::Metrics),
            ("reexec", []) => Some(Request::Reexec),
            ("version", []) => Some(Request::Version),
            ("help", []) => Some(Request::Help),
            _ => None,
        };
        read.ok_or_else(|| {
            let usage = HELP
                .lines()
                .find(|line| line.split(' ').next() == Some(name))
                .and_then(|line| line.split("  ").next());
            match usage {
                Some(usage) => format!("{name} is asked as: {usage}"),
                None => format!("unknown request '{name}'; try help"),
            }
        })
    }
}

/// What a client waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// The result of the reload to this generation.
    Generation(u32),
    /// That of the reload that begins when the present one has ended.
    Queued,
    /// The end of the restarts that were asked for.
    Restart,
    /// Our end.
    End,
}

/// A client whose request is under way.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    client: u64,
    what: Awaited,
}

/// What became of a request to reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    /// It runs.
    Started(u32),
    /// It waits for the one that changes slots.
    Queued,
    /// It will not be.
    Refused(String),
}

impl Master {
    pub(crate) fn on_door(&mut self, now: Instant) {
        if let Some(control) = self.control.as_mut() {
            control.accept(&self.events, Token::Control.number(), now);
        }
    }

    pub(crate) fn on_client(&mut self, id: u64, wake: Wake, now: Instant) {
        let Some(control) = self.control.as_mut() else {
            return;
        };
        let heard = control.hear(&self.events, id, wake, now);
        if !control.has(id) {
            self.waiting.retain(|waiting| waiting.client != id);
            self.subscribers.retain(|client| *client != id);
        }
        if let Some(line) = heard {
            match Request::parse(&line) {
                Ok(request) => self.on_request(id, request, now),
                Err(why) => self.answer(id, &Reply::Err(Exit::Usage.code(), why), now),
            }
        }
    }

    fn on_request(&mut self, client: u64, request: Request, now: Instant) {
        match request {
            Request::Status(form) => {
                let status = self.snapshot(now);
                let (healthy, words) = status.verdict();
                match form {
                    Form::Table => self.tell(client, &status.table(), now),
                    Form::Json => match status.json() {
                        Ok(text) => self.tell(client, &text, now),
                        Err(why) => {
                            self.answer(client, &Reply::Err(Exit::Fault.code(), why), now);
                            return;
                        }
                    },
                }
                let reply = if healthy {
                    Reply::Ok(words)
                } else {
                    Reply::Err(Exit::No.code(), words)
                };
                self.answer(client, &reply, now);
            }
            Request::Reload(until) => {
                // Waited for from before it begins: it may be over when reload() returns.
                let expected = self.pool.last_generation + 1;
                if until == Until::Done {
                    self.await_result(client, Awaited::Generation(expected));
                }
                let begun = self.reload(now);
                match (begun, until) {
                    (Begun::Refused(why), _) => {
                        self.waiting.retain(|waiting| waiting.client != client);
                        self.answer(client, &Reply::Err(REFUSED, why), now);
                    }
                    (Begun::Started(generation), Until::Begun) => {
                        let text = format!("reload to generation {generation} begun");
                        self.answer(client, &Reply::Ok(text), now);
                    }
                    (Begun::Queued, Until::Begun) => {
                        self.answer(client, &Reply::Ok("reload queued".to_owned()), now);
                    }
                    (Begun::Queued, Until::Done) => {
                        self.waiting.retain(|waiting| waiting.client != client);
                        self.await_result(client, Awaited::Queued);
                        self.tell(client, "progress queued behind the reload under way", now);
                    }
                    (Begun::Started(_), Until::Done) => {}
                }
            }
            Request::Stop(until) | Request::Quit(until) => {
                let at_once = matches!(request, Request::Quit(_));
                let fields = [("by", Value::from(By::Operator.name()))];
                self.say(Level::Info, events::STOP_REQUESTED, &fields);
                match until {
                    Until::Begun => self.answer(client, &Reply::Ok("stopping".to_owned()), now),
                    Until::Done => self.await_result(client, Awaited::End),
                }
                let again = matches!(self.pool.phase, Phase::Stopping(_));
                self.stop(Exit::Ok, now);
                if at_once {
                    self.kill_all("quit", now);
                } else if again {
                    self.kill_all("a second request to stop", now);
                }
            }
            Request::Add(count) => {
                let resized = self.add_workers(count, now);
                self.answer_resized(client, resized, now);
            }
            Request::Remove(count) => {
                let resized = self.remove_workers(count, now);
                self.answer_resized(client, resized, now);
            }
            Request::Workers(count) => {
                let resized = self.set_workers(count, now);
                self.answer_resized(client, resized, now);
            }
            Request::Restart(whom) => {
                let count = self.pool.slots.len();
                let (from, to) = match whom {
                    Whom::All => (0, count),
                    Whom::Slot(slot) => (slot, slot + 1),
                };
                let why = match self.pool.phase {
                    _ if to > count => Some(format!("there is no slot {from}")),
                    Phase::Running => None,
                    Phase::Initial => Some("the first generation is still starting".to_owned()),
                    Phase::Reloading(_) => Some("a reload is under way".to_owned()),
                    Phase::Stopping(_) => Some("we are stopping".to_owned()),
                };
                match why {
                    Some(why) => self.answer(client, &Reply::Err(Exit::No.code(), why), now),
                    None => {
                        self.await_result(client, Awaited::Restart);
                        self.pool.restart(from..to);
                        self.recycle(now);
                    }
                }
            }
            Request::Signal(signal, whom) => {
                let ids: Vec<u64> = self
                    .pool
                    .slots
                    .iter()
                    .enumerate()
                    .filter(|(index, _)| whom == Whom::All || whom == Whom::Slot(*index))
                    .filter_map(|(_, slot)| slot.current)
                    .collect();
                if let (Whom::Slot(slot), true) = (whom, ids.is_empty()) {
                    let why = format!("slot {slot} has no worker");
                    self.answer(client, &Reply::Err(Exit::No.code(), why), now);
                    return;
                }
                for id in &ids {
                    if let Some(worker) = self.workers.get_mut(id) {
                        // HUP and its like it may survive, and die of something else.
                        if ENDING.contains(&signal) {
                            self.pool.blame(*id, By::Operator);
                        }
                        worker.child.signal_group(signal);
                    }
                }
                let name = common::signal::name(signal);
                let s = if ids.len() == 1 { "" } else { "s" };
                let text = format!("{name} to {} worker{s}", ids.len());
                self.answer(client, &Reply::Ok(text), now);
            }
            Request::Clear => {
                self.pool.clear();
                self.act(now);
                self.answer(client, &Reply::Ok("cleared".to_owned()), now);
            }
            Request::Events => {
                self.tell(client, "# events from now on", now);
                self.subscribers.push(client);
            }
            Request::Metrics => {
                let text = self.snapshot(now).metrics();
                self.tell(client, &text, now);
                self.answer(client, &Reply::Ok(String::new()), now);
            }
            Request::Reexec => self.reexec(client, now),
            Request::Version => {
                let text = format!("spawnwork {}", env!("CARGO_PKG_VERSION"));
                self.answer(client, &Reply::Ok(text), now);
            }
            Request::Help => {
                self.tell(client, HELP, now);
                self.answer(client, &Reply::Ok(String::new()), now);
            }
        }
    }

    fn answer_resized(&mut self, client: u64, resized: Resized, now: Instant) {
        let reply = match (resized, &self.pool.phase) {
            (Resized::Now(count), _) => Reply::Ok(format!("{count} workers")),
            (Resized::Later(count), Phase::Reloading(_)) => {
                Reply::Ok(format!("{count} workers when the reload is done"))
            }
            (Resized::Later(count), _) => {
                Reply::Ok(format!("{count} workers when their queues are empty"))
            }
            (Resized::Refused, _) => Reply::Err(REFUSED, "we are stopping".to_owned()),
        };
        self.answer(client, &reply, now);
    }

    fn await_result(&mut self, client: u64, what: Awaited) {
        self.waiting.push(Waiting { client, what });
    }

    fn tell(&mut self, client: u64, text: &str, now: Instant) {
        if let Some(control) = self.control.as_mut() {
            control.line(&self.events, client, text, now);
        }
    }

    pub(crate) fn answer(&mut self, client: u64, reply: &Reply, now: Instant) {
        if let Some(control) = self.control.as_mut() {
            control.end(&self.events, client, reply, now);
        }
    }

    /// A step of the reload to `generation`, for those who wait for its result.
    pub(crate) fn progress(&mut self, generation: u32, text: &str, now: Instant) {
        let line = format!("progress {text}");
        for waiting in self.waiting.clone() {
            if waiting.what == Awaited::Generation(generation) {
                self.tell(waiting.client, &line, now);
            }
        }
    }

    /// The result of the reload to `generation`, with what its failing worker had said.
    pub(crate) fn reload_ended(
        &mut self,
        generation: u32,
        reply: &Reply,
        words: &[String],
        now: Instant,
    ) {
        let (done, others): (Vec<Waiting>, Vec<Waiting>) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting| waiting.what == Awaited::Generation(generation));
        self.waiting = others;
        for waiting in done {
            for line in words {
                self.tell(waiting.client, &format!("stderr {line}"), now);
            }
            self.answer(waiting.client, reply, now);
        }
    }

    /// The restarts that were asked for are over.
    pub(crate) fn restarts_ended(&mut self, reply: &Reply, now: Instant) {
        let (done, others): (Vec<Waiting>, Vec<Waiting>) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting| waiting.what == Awaited::Restart);
        self.waiting = others;
        for waiting in done {
            self.answer(waiting.client, reply, now);
        }
    }

    /// The reload to `generation` was not begun.
    pub(crate) fn reload_not_begun(
        &mut self,
        generation: u32,
        why: &str,
        words: &[String],
        now: Instant,
    ) {
        self.reload_ended(generation, &Reply::Err(REFUSED, why.to_owned()), words, now);
    }

    /// The queued reload begins now.
    pub(crate) fn reload_from_queue(&mut self, now: Instant) {
        let expected = self.pool.last_generation + 1;
        for waiting in &mut self.waiting {
            if waiting.what == Awaited::Queued {
                waiting.what = Awaited::Generation(expected);
            }
        }
        if let Begun::Refused(why) = self.reload(now) {
            self.reload_not_begun(expected, &why, &[], now);
        }
    }

    /// We stop: no reload will have a result any more.
    pub(crate) fn no_result_will_come(&mut self, exit: Exit, now: Instant) {
        let (end, others): (Vec<Waiting>, Vec<Waiting>) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting| waiting.what == Awaited::End);
        self.waiting = end;
        for waiting in others {
            let reply = match exit {
                Exit::Ok => Reply::Err(REFUSED, "we are stopping".to_owned()),
                _ => Reply::Err(Exit::No.code(), "no worker could be kept".to_owned()),
            };
            self.answer(waiting.client, &reply, now);
        }
    }

    /// Everybody is gone.
    pub(crate) fn say_goodbye(&mut self, now: Instant) {
        for waiting in std::mem::take(&mut self.waiting) {
            self.answer(waiting.client, &Reply::Ok("stopped".to_owned()), now);
        }
        for client in std::mem::take(&mut self.subscribers) {
            self.answer(client, &Reply::Ok("stopped".to_owned()), now);
        }
    }

    /// An event for those who listen to all of them, whatever the log leaves out.
    pub(crate) fn publish(&mut self, level: Level, event: &str, fields: &[(&str, Value)]) {
        if let Some(control) = &self.control {
            self.subscribers.retain(|client| control.has(*client));
        }
        if self.subscribers.is_empty() {
            return;
        }
        let Some(line) = self.feed.line(level, event, fields) else {
            return;
        };
        let line = String::from_utf8_lossy(&line).into_owned();
        let now = Instant::now();
        for client in self.subscribers.clone() {
            self.tell(client, &line, now);
        }
    }
}

/// The loop's token of a client.
#[must_use]
pub fn client_token(id: u64) -> u64 {
    Token::Client(id).number()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_are_read_as_the_help_says() {
        for (line, request) in [
            ("status", Request::Status(Form::Table)),
            ("status json", Request::Status(Form::Json)),
            ("  reload   nowait ", Request::Reload(Until::Begun)),
            ("reload", Request::Reload(Until::Done)),
            ("add", Request::Add(1)),
            ("remove 3", Request::Remove(3)),
            ("workers 8", Request::Workers(8)),
            ("signal hup", Request::Signal(1, Whom::All)),
            ("signal USR1 2", Request::Signal(10, Whom::Slot(2))),
            ("quit", Request::Quit(Until::Done)),
        ] {
            assert_eq!(Request::parse(line), Ok(request), "{line}");
        }
        for line in HELP.lines() {
            let name = line.split(' ').next().unwrap_or_default();
            let why = Request::parse(&format!("{name} x y z")).err();
            let usage = line.split("  ").next().unwrap_or_default();
            assert_eq!(why, Some(format!("{name} is asked as: {usage}")));
        }
    }

    #[test]
    fn what_is_no_request_is_refused_with_a_hint() {
        for (line, part) in [
            ("", "empty"),
            ("bogus", "unknown request 'bogus'"),
            ("add 0", "1 to 10000"),
            ("workers", "asked as: workers N"),
            ("workers 99999999999999999999", "1 to 10000"),
            ("signal", "asked as: signal"),
            ("signal NOPE", "no signal"),
            ("signal HUP some", "or all"),
        ] {
            let why = Request::parse(line).err().unwrap_or_default();
            assert!(why.contains(part), "{line}: {why}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_asked_is_read_or_refused(line in "(status|add|signal|workers|\\PC{0,9})( \\PC{0,9}){0,3}") {
            let _ = Request::parse(&line);
        }
    }
}
