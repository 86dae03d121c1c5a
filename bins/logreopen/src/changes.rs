//! Files that are changed for others: who asks for it, what the writers say of it, and who is told.

use crate::control::{self, Request, Row};
use crate::cut::Cut;
use crate::events;
use crate::feed::Feed;
use crate::run::{ACTION, Output, Pumping};
use crate::shared::Report;
use crate::tell::gap_fields;
use common::action::Action;
use common::control::Reply;
use common::error::describe;
use common::event::{Level, Value};
use common::exit::{End, Exit};
use common::lines::{Buffer, Run};
use common::wait::{Interest, Wake};
use std::collections::BTreeMap;
use std::time::{Instant, SystemTime};

/// A client that waits for what it has asked.
#[derive(Debug)]
pub(crate) struct Asker {
    pub(crate) client: u64,
    /// Outputs, with the request that must be done.
    pub(crate) open: Vec<(usize, u64)>,
    /// What became of each, by output.
    pub(crate) said: BTreeMap<usize, std::result::Result<String, String>>,
}

impl Pumping {
    // ---- changing files ----

    /// Asks for all files to be reopened; `client` gets an answer when that is done.
    pub(crate) fn reopen_all(&mut self, client: Option<u64>, now: Instant) {
        self.change_all(client, false, now);
    }

    fn change_all(&mut self, client: Option<u64>, rotate: bool, now: Instant) {
        let mut open = Vec::new();
        for index in 0..self.files {
            let output = &mut self.outputs[index];
            output.request += 1;
            output.rotate = rotate;
            open.push((index, output.request));
            if self.cut_in_passing(index) {
                continue;
            }
            let mut inside = Vec::new();
            for number in 0..self.streams.len() {
                if self.streams[number].output == index {
                    self.take_back(number, now);
                    self.arm(number);
                    if self.streams[number].is_inside() {
                        inside.push(number);
                    }
                }
            }
            self.outputs[index].cut.ask(&inside, now);
            for stream in inside {
                // The newline may lie in the pipe.
                self.on_stream(stream, now);
            }
        }
        // Who has lost patience with a disk that hangs is not kept in mind for ever.
        if let Some(server) = &self.server {
            self.askers.retain(|asker| server.has(asker.client));
        }
        if let Some(client) = client {
            self.askers.push(Asker {
                client,
                open,
                said: BTreeMap::new(),
            });
        }
        for index in 0..self.files {
            self.cut_if_due(index, now);
        }
        for index in 0..self.streams.len() {
            self.lend(index, now);
            self.arm(index);
        }
    }

    /// A writer that reads its stream itself, and is between two lines, changes its file before it reads on.
    fn cut_in_passing(&mut self, index: usize) -> bool {
        let output = &self.outputs[index];
        let mut inner = output.shared.lock();
        let between = inner.feed.as_ref().is_some_and(Feed::is_between_lines);
        if between {
            inner.queue.change(output.request, output.rotate);
            output.shared.wake(inner);
        }
        between
    }

    pub(crate) fn cut_if_due(&mut self, index: usize, now: Instant) {
        if self.outputs[index].cut.take_due(now) {
            self.cut(index);
        }
    }

    pub(crate) fn cut_now(&mut self, index: usize) {
        if self.outputs[index].cut.is_wanted() {
            self.outputs[index].cut = Cut::default();
            self.cut(index);
        }
    }

    fn cut(&mut self, index: usize) {
        self.break_line(index);
        let output = &self.outputs[index];
        let mut inner = output.shared.lock();
        inner.queue.change(output.request, output.rotate);
        output.shared.wake(inner);
    }

    /// A line that was handed on in part ends here, and its rest will be another one.
    pub(crate) fn break_line(&mut self, index: usize) {
        let Some((stream, _)) = self.outputs[index].inside.take() else {
            return;
        };
        self.streams[stream].pump.break_line();
        let newline = Run {
            buffer: Buffer::from(&b"\n"[..]),
            starts: false,
            ends: true,
        };
        let number = self.streams[stream].number;
        let output = &self.outputs[index];
        let mut inner = output.shared.lock();
        let _ = inner.queue.offer(newline, number, SystemTime::now());
        output.shared.wake(inner);
        let file = output.name();
        self.say(
            Level::Warning,
            events::LINE_SPLIT,
            &[("file", file.into())],
            Some(index),
        );
    }

    pub(crate) fn on_inotify(&mut self) {
        let Some(inotify) = &self.inotify else {
            return;
        };
        // EAGAIN: all of them are read.
        while let Ok(happened) = inotify.read_events() {
            for event in happened {
                for output in &self.outputs[..self.files] {
                    output.shared.look_if_watched(event.wd);
                }
            }
        }
    }

    // ---- what the writers say ----

    pub(crate) fn on_reports(&mut self, index: usize, now: Instant) {
        for report in self.outputs[index].shared.take_reports() {
            self.on_report(index, report, now);
        }
        // Something may have been written: who was held may go on.
        for number in 0..self.streams.len() {
            let stream = &self.streams[number];
            if stream.output != index || stream.ended {
                continue;
            }
            let back = stream.lent && self.outputs[index].shared.has_given_back();
            if stream.held.is_some() || back {
                self.on_stream(number, now);
            } else if !stream.lent {
                self.lend(number, now);
                self.arm(number);
            }
        }
    }

    fn on_report(&mut self, index: usize, report: Report, now: Instant) {
        let name = self.outputs[index].name();
        let file = || Value::from(name.clone());
        match report {
            Report::Reopened(reopened) => {
                self.outputs[index].failing = false;
                let fields = [
                    ("file", file()),
                    ("old", reopened.old.into()),
                    ("inode", reopened.new.into()),
                    ("bytes", reopened.bytes.into()),
                    ("lines", reopened.lines.into()),
                    ("took", reopened.took.into()),
                ];
                self.say(Level::Info, events::OUTPUT_REOPENED, &fields, Some(index));
                let said = format!(
                    "{name} reopened: inode {} to {}, {} lines in the old one",
                    reopened.old, reopened.new, reopened.lines
                );
                self.done(index, reopened.request, Ok(said), now);
            }
            Report::Unchanged(request) => {
                // A reopen before this one may have failed.
                let shared = &self.outputs[index].shared;
                let failing = shared.lock().stats.trouble.is_some();
                self.outputs[index].failing = failing;
                self.say(
                    Level::Debug,
                    events::OUTPUT_UNCHANGED,
                    &[("file", file())],
                    Some(index),
                );
                let said = format!("{name} unchanged");
                self.done(index, request, Ok(said), now);
            }
            Report::ReopenFailed {
                request,
                why,
                again,
            } => {
                self.outputs[index].failing = true;
                if !again {
                    let fields = [("file", file()), ("error", why.clone().into())];
                    self.say(Level::Error, events::REOPEN_FAILED, &fields, Some(index));
                }
                self.done(index, request, Err(format!("{name}: {why}")), now);
            }
            Report::Moved => {
                self.say(
                    Level::Info,
                    events::OUTPUT_MOVED,
                    &[("file", file())],
                    Some(index),
                );
            }
            Report::WriteFailed(why) => {
                self.outputs[index].failing = true;
                let fields = [("file", file()), ("error", why.into())];
                self.say(Level::Error, events::WRITE_FAILED, &fields, Some(index));
            }
            Report::SyncFailed(why) => {
                let fields = [("file", file()), ("error", why.into())];
                self.say(Level::Error, events::SYNC_FAILED, &fields, Some(index));
            }
            Report::Recovered { after, held } => {
                self.outputs[index].failing = false;
                let lost = self.outputs[index].shared.lock().queue.lost();
                let fields = [
                    ("file", file()),
                    ("held", held.into()),
                    ("lost", lost.0.into()),
                    ("took", after.into()),
                ];
                self.say(
                    Level::Warning,
                    events::WRITE_RECOVERED,
                    &fields,
                    Some(index),
                );
            }
            Report::Lost(gap) => {
                self.lost = true;
                let [lines, bytes, since, until] = gap_fields(&gap).map(|(_, value)| value);
                let fields = [
                    ("file", file()),
                    ("lines", lines),
                    ("bytes", bytes),
                    ("since", since),
                    ("until", until),
                ];
                self.say(Level::Warning, events::LINES_LOST, &fields, Some(index));
            }
            Report::Split => {
                self.say(
                    Level::Warning,
                    events::LINE_SPLIT,
                    &[("file", file())],
                    Some(index),
                );
            }
            Report::Truncated(from, to) => {
                let fields = [
                    ("file", file()),
                    ("from", from.into()),
                    ("to", to.into()),
                    (
                        "error",
                        "what was written between its copy and its truncation is lost (copytruncate)"
                            .into(),
                    ),
                ];
                self.say(Level::Warning, events::TRUNCATED, &fields, Some(index));
            }
            Report::Rotated(to, rotated) => {
                let fields = [
                    ("file", file()),
                    ("to", to.to_string_lossy().into_owned().into()),
                    ("bytes", rotated.bytes.into()),
                    ("lines", rotated.lines.into()),
                    ("took", rotated.took.into()),
                ];
                self.say(Level::Info, events::ROTATED, &fields, Some(index));
                let said = format!("{name} rotated to {}", to.display());
                self.done(index, rotated.request, Ok(said), now);
                if self.plan.on_rotate.is_some() {
                    self.actions.push_back((index, to));
                    self.next_action(now);
                }
            }
            Report::RotateFailed(request, why) => {
                let fields = [("file", file()), ("error", why.clone().into())];
                self.say(Level::Error, events::ROTATE_FAILED, &fields, Some(index));
                self.done(index, request, Err(format!("{name}: {why}")), now);
            }
            Report::Ended => self.outputs[index].ended = true,
        }
    }

    /// A request of an output is done, and all before it: clients that waited for it get their answer.
    fn done(
        &mut self,
        index: usize,
        request: u64,
        result: std::result::Result<String, String>,
        now: Instant,
    ) {
        if request == 0 {
            return;
        }
        for asker in &mut self.askers {
            let before = asker.open.len();
            asker
                .open
                .retain(|(output, wanted)| *output != index || *wanted > request);
            if asker.open.len() < before {
                asker.said.insert(index, result.clone());
            }
        }
        let Some(server) = &mut self.server else {
            return;
        };
        let events = &self.events;
        self.askers.retain(|asker| {
            if !asker.open.is_empty() {
                return true;
            }
            let mut failed = Vec::new();
            for result in asker.said.values() {
                match result {
                    Ok(line) => server.line(events, asker.client, line, now),
                    Err(why) => failed.push(why.as_str()),
                }
            }
            let reply = if failed.is_empty() {
                Reply::Ok(String::new())
            } else {
                Reply::Err(Exit::No.code(), failed.join("; "))
            };
            server.end(events, asker.client, &reply, now);
            false
        });
    }

    // ---- the command of --on-rotate ----

    fn next_action(&mut self, now: Instant) {
        let (None, Some(command)) = (&self.action, self.plan.on_rotate.clone()) else {
            return;
        };
        let Some((index, path)) = self.actions.pop_front() else {
            return;
        };
        let variables = [("LOGREOPEN_FILE", path.as_os_str())];
        let started =
            Action::start(&command, &variables, self.plan.action_timeout, now).and_then(|action| {
                self.events
                    .add(&action, ACTION, Interest::Read)
                    .map_err(|why| std::io::Error::other(why.message))?;
                Ok(action)
            });
        match started {
            Ok(action) => self.action = Some((action, index)),
            Err(why) => {
                let error = describe(&why);
                self.action_failed(index, error);
                self.release_rotation(index);
            }
        }
    }

    pub(crate) fn on_action_end(&mut self) {
        let Some(end) = self.action.as_ref().and_then(|(action, _)| action.ended()) else {
            return;
        };
        let Some((action, index)) = self.action.take() else {
            return;
        };
        self.events.remove(&action);
        action.reap();
        // Those that had ended behind it.
        self.reap_strangers();
        if end != End::Exited(0) {
            self.action_failed(index, end.to_string());
        }
        self.release_rotation(index);
        self.next_action(Instant::now());
    }

    fn action_failed(&mut self, index: usize, error: String) {
        let fields = [
            ("file", self.outputs[index].name().into()),
            ("error", error.into()),
        ];
        self.say(Level::Warning, events::ACTION_FAILED, &fields, Some(index));
    }

    fn release_rotation(&self, index: usize) {
        let shared = &self.outputs[index].shared;
        let mut inner = shared.lock();
        inner.rotation_held = false;
        shared.wake(inner);
    }

    // ---- clients ----

    pub(crate) fn on_client(&mut self, id: u64, wake: Wake, now: Instant) {
        let Some(server) = &mut self.server else {
            return;
        };
        let Some(text) = server.hear(&self.events, id, wake, now) else {
            return;
        };
        let reply = match Request::parse(&text) {
            None => Reply::Err(
                Exit::Usage.code(),
                format!("'{text}' is no request; reopen, status, rotate, version and help are"),
            ),
            Some(Request::Version) => Reply::Ok(format!("logreopen {}", env!("CARGO_PKG_VERSION"))),
            Some(Request::Help) => {
                server.line(&self.events, id, control::HELP, now);
                Reply::Ok(String::new())
            }
            Some(Request::Status) => {
                let rows = self.rows();
                self.answer(id, &control::table(&rows), now);
                self.health()
            }
            Some(Request::StatusJson) => {
                let rows = self.rows();
                let pid = self.wrapped.as_ref().map(|wrapped| wrapped.child().pid());
                let text = control::json(&rows, std::process::id(), pid);
                self.answer(id, &text, now);
                self.health()
            }
            Some(Request::Reopen) => {
                self.reopen_all(Some(id), now);
                return;
            }
            Some(Request::Rotate) if self.plan.rotate.is_none() => Reply::Err(
                Exit::No.code(),
                "we do not rotate ourselves without --max-size".to_owned(),
            ),
            Some(Request::Rotate) => {
                self.change_all(Some(id), true, now);
                return;
            }
        };
        if let Some(server) = &mut self.server {
            server.end(&self.events, id, &reply, now);
        }
    }

    fn answer(&mut self, id: u64, text: &str, now: Instant) {
        if let Some(server) = &mut self.server {
            server.line(&self.events, id, text, now);
        }
    }

    fn rows(&self) -> Vec<Row> {
        let row = |output: &Output| {
            let inner = output.shared.lock();
            Row {
                file: output.name(),
                stats: inner.stats.clone(),
                held: inner.queue.held(),
                lost: inner.queue.lost(),
            }
        };
        self.outputs[..self.files].iter().map(row).collect()
    }

    fn health(&self) -> Reply {
        let wrong: Vec<String> = self
            .rows()
            .into_iter()
            .filter_map(|row| Some(format!("{}: {}", row.file, row.stats.trouble?)))
            .collect();
        if wrong.is_empty() {
            Reply::Ok(String::new())
        } else {
            Reply::Err(Exit::No.code(), wrong.join("; "))
        }
    }
}
