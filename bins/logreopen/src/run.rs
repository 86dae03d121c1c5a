//! The loop: what happened in, what is done about it out. It never touches a file.

use crate::changes::Asker;
use crate::cut::{Cut, PATIENCE};
use crate::events;
use crate::feed::{Feed, WATCH};
use crate::plan::Plan;
use crate::queue::Room;
use crate::shared::{Report, Shared};
use crate::stream::{SHOWN, Stream, Turn};
use crate::tell::{Voice, speaker};
use common::action::Action;
use common::control::{Reply, Server};
use common::error::Result;
use common::event::{Level, Log, Value};
use common::exit::{End, Exit};
use common::file::PidFile;
use common::lines::{Buffer, Pool, Run, count};
use common::output::Output as Own;
use common::signal::{Received, Signals};
use common::wait::{Interest, Loop, Wake};
use common::wrap::{self, Wrapped};
use nix::sys::inotify::Inotify;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

pub(crate) const SIGNALS: u64 = 0;
pub(crate) const COMMAND: u64 = 1;
pub(crate) const DOOR: u64 = 2;
pub(crate) const INOTIFY: u64 = 3;
pub(crate) const ACTION: u64 = 4;
const OWN: u64 = 10;
pub(crate) const STREAM: u64 = 20;
pub(crate) const WRITER: u64 = 30;
pub(crate) const ALARM: u64 = 40;
/// Tokens of clients begin here.
pub(crate) const CLIENT: u64 = 1 << 32;

/// Reads of one stream in a turn, a pipe full: the other one, and signals, have theirs.
const TURN: usize = 16;
/// So many of them, and the writer is woken before the turn is over.
const TOGETHER: usize = 4;
/// A stream that the kernel could not wait for is read so much later.
const AGAIN: Duration = Duration::from_millis(50);
/// Buffers that are kept while lines come.
const SPARE: usize = 64;
/// After so much silence no memory is kept.
pub(crate) const IDLE: Duration = Duration::from_secs(1);
/// A pipe that a grandchild still holds when the command has ended: so much silence is its end ...
const QUIET: Duration = Duration::from_millis(200);
/// ... or so long in all.
const LINGER: Duration = Duration::from_secs(5);
/// For the last words on a stderr that nobody reads, and for clients.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// A file, as the loop knows it.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) shared: Arc<Shared>,
    /// `None`: one of our own descriptors that leads to a file.
    pub(crate) path: Option<PathBuf>,
    pub(crate) cut: Cut,
    /// It is to be rotated rather than reopened.
    pub(crate) rotate: bool,
    /// The newest request.
    pub(crate) request: u64,
    /// The stream whose line was handed on in part, and when that last went on.
    pub(crate) inside: Option<(usize, Instant)>,
    pub(crate) failing: bool,
    pub(crate) ended: bool,
}

impl Output {
    pub(crate) fn new(shared: Arc<Shared>, path: Option<PathBuf>) -> Output {
        Output {
            shared,
            path,
            cut: Cut::default(),
            rotate: false,
            request: 0,
            inside: None,
            failing: false,
            ended: false,
        }
    }

    pub(crate) fn name(&self) -> String {
        match &self.path {
            Some(path) => path.to_string_lossy().into_owned(),
            None => "-".to_owned(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Running,
    /// The command has ended; what is in the pipes is read.
    Lingering {
        until: Instant,
        quiet: Instant,
    },
    /// All is read; the writers finish, until then.
    Closing(Instant),
    Over,
}

/// What a loop begins with.
pub(crate) struct Base {
    pub(crate) plan: Plan,
    pub(crate) log: Log,
    pub(crate) events: Loop,
    pub(crate) signals: Signals,
    pub(crate) inotify: Option<Arc<Inotify>>,
    pub(crate) outputs: Vec<Output>,
    pub(crate) files: usize,
    pub(crate) own: [Option<Own>; 2],
    pub(crate) own_writers: [Option<usize>; 2],
    pub(crate) one: bool,
    pub(crate) voice: Voice,
    pub(crate) server: Option<Server>,
    pub(crate) pid_file: Option<PidFile>,
}

/// The program while it pumps.
pub(crate) struct Pumping {
    pub(crate) plan: Plan,
    pub(crate) log: Log,
    pub(crate) events: Loop,
    pub(crate) signals: Signals,
    pub(crate) inotify: Option<Arc<Inotify>>,
    pub(crate) outputs: Vec<Output>,
    /// So many of them are files that were named; the others are our own descriptors.
    pub(crate) files: usize,
    pub(crate) streams: Vec<Stream>,
    pub(crate) own: [Option<Own>; 2],
    pub(crate) own_writers: [Option<usize>; 2],
    pub(crate) own_armed: [bool; 2],
    /// stdout and stderr lead to the same place.
    pub(crate) one: bool,
    pub(crate) voice: Voice,
    pub(crate) wrapped: Option<Wrapped>,
    pub(crate) small_pipes: Vec<usize>,
    pub(crate) server: Option<Server>,
    pub(crate) _pid_file: Option<PidFile>,
    pub(crate) askers: Vec<Asker>,
    pub(crate) action: Option<(Action, usize)>,
    pub(crate) actions: VecDeque<(usize, PathBuf)>,
    pub(crate) pool: Pool,
    pub(crate) idle_at: Option<Instant>,
    pub(crate) phase: Phase,
    pub(crate) end: Option<End>,
    pub(crate) asked_to_end: u32,
    pub(crate) end_signal: Option<i32>,
    pub(crate) lost: bool,
    pub(crate) tee_lost: u64,
}

/// Pumps until the command ends, or the input does.
///
/// # Errors
/// A file cannot be opened, the socket or pid file not be made, the command not be started.
pub fn run(plan: Plan) -> Result<Exit> {
    let mut pumping = crate::start::start(plan)?;
    let exit = pumping.serve()?;
    // The socket and the pid file go with it.
    drop(pumping);
    wrap::end_by_signal(exit);
    Ok(exit)
}

impl Pumping {
    pub(crate) fn new(base: Base) -> Pumping {
        Pumping {
            plan: base.plan,
            log: base.log,
            events: base.events,
            signals: base.signals,
            inotify: base.inotify,
            outputs: base.outputs,
            files: base.files,
            streams: Vec::new(),
            own: base.own,
            own_writers: base.own_writers,
            own_armed: [false; 2],
            one: base.one,
            voice: base.voice,
            wrapped: None,
            small_pipes: Vec::new(),
            server: base.server,
            _pid_file: base.pid_file,
            askers: Vec::new(),
            action: None,
            actions: VecDeque::new(),
            pool: Pool::new(crate::stream::BUFFER, SPARE),
            idle_at: None,
            phase: Phase::Running,
            end: None,
            asked_to_end: 0,
            end_signal: None,
            lost: false,
            tee_lost: 0,
        }
    }

    /// The loop, to its end.
    fn serve(&mut self) -> Result<Exit> {
        let now = Instant::now();
        for index in 0..self.streams.len() {
            self.lend(index, now);
            self.arm(index);
        }
        let mut wakes = Vec::new();
        while self.phase != Phase::Over {
            let deadline = self.deadline();
            self.events.wait(deadline, &mut wakes)?;
            let now = Instant::now();
            for wake in &wakes {
                self.on_wake(*wake, now);
            }
            self.on_time(now);
        }
        Ok(self.finish())
    }

    fn on_wake(&mut self, wake: Wake, now: Instant) {
        match wake.token {
            SIGNALS => {
                while let Some(received) = self.signals.next() {
                    self.on_signal(received, now);
                }
            }
            COMMAND => self.on_command_end(now),
            DOOR => {
                if let Some(server) = &mut self.server {
                    server.accept(&self.events, DOOR, now);
                }
            }
            INOTIFY => self.on_inotify(),
            ACTION => self.on_action_end(),
            token if token >= CLIENT => self.on_client(token - CLIENT, wake, now),
            token if token >= ALARM => self.on_alarm((token - ALARM) as usize, now),
            token if token >= WRITER => self.on_reports((token - WRITER) as usize, now),
            token if token >= STREAM => self.on_stream((token - STREAM) as usize, now),
            token if token >= OWN => self.flush_own((token - OWN) as usize),
            _ => {}
        }
    }

    // ---- time ----

    fn deadline(&self) -> Option<Instant> {
        let mut all: Vec<Instant> = Vec::with_capacity(8);
        for stream in self.streams.iter().filter(|stream| !stream.ended) {
            all.extend(stream.pause);
            all.extend(stream.held.flatten());
            all.extend(stream.show);
            if stream.always && stream.held.is_none() {
                all.push(Instant::now());
            }
        }
        all.extend(
            self.outputs
                .iter()
                .filter_map(|output| output.cut.deadline()),
        );
        all.extend(self.idle_at);
        all.extend(self.server.as_ref().and_then(Server::deadline));
        all.extend(self.action.as_ref().map(|(action, _)| action.deadline()));
        match self.phase {
            Phase::Lingering { until, quiet } if self.any_held() => all.push(until.max(quiet)),
            Phase::Lingering { until, quiet } => all.push(until.min(quiet)),
            Phase::Closing(until) => all.push(until),
            Phase::Running | Phase::Over => {}
        }
        all.into_iter().min()
    }

    fn on_time(&mut self, now: Instant) {
        for index in 0..self.streams.len() {
            let stream = &self.streams[index];
            if stream.ended {
                continue;
            }
            let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
            let read = due(stream.pause)
                || due(stream.held.flatten())
                || (stream.always && stream.held.is_none());
            if read {
                self.on_stream(index, now);
            }
            if due(self.streams[index].show) {
                self.show(index, now);
            }
        }
        for index in 0..self.outputs.len() {
            self.cut_if_due(index, now);
        }
        if let Some(server) = &mut self.server {
            server.expire(&self.events, now);
        }
        if let Some((action, _)) = &mut self.action {
            action.expire(now);
        }
        if self.idle_at.is_some_and(|at| at <= now) {
            self.idle_at = None;
            self.pool.empty();
            for output in &self.outputs {
                output.shared.lock().spare = Vec::new();
            }
        }
        match self.phase {
            // Silence is only that of a pipe that could be read.
            Phase::Lingering { until, quiet }
                if now >= until || (now >= quiet && !self.any_held()) =>
            {
                for index in 0..self.streams.len() {
                    self.last_of(index, now);
                    self.end_stream(index, now);
                }
            }
            Phase::Closing(until) if now >= until => self.give_up(),
            Phase::Running | Phase::Lingering { .. } | Phase::Closing(_) | Phase::Over => {}
        }
        self.go_on(now);
    }

    fn any_held(&self) -> bool {
        let mut streams = self.streams.iter();
        streams.any(|stream| !stream.ended && stream.held.is_some())
    }

    /// What is still in a pipe that nobody reads on, because its file cannot be written: it is counted.
    fn last_of(&mut self, index: usize, now: Instant) {
        let stream = &self.streams[index];
        if stream.ended || stream.held.is_none() {
            return;
        }
        let shared = Arc::clone(&self.outputs[stream.output].shared);
        shared.lock().queue.give_up();
        // More than a pipe holds cannot be there; whoever still writes is not waited for.
        for _ in 0..=stream.size() / crate::stream::LONGEST {
            self.on_stream(index, now);
        }
    }

    /// What follows when all streams have ended, and then when all is written.
    fn go_on(&mut self, now: Instant) {
        let read = self.streams.iter().all(|stream| stream.ended);
        let command_gone = self.wrapped.is_none() || self.end.is_some();
        if matches!(self.phase, Phase::Running | Phase::Lingering { .. }) && read && command_gone {
            self.phase = Phase::Closing(now + self.plan.drain_timeout);
            if let Some(end) = self.end {
                let fields = match end {
                    End::Exited(status) => [("status", status.into())],
                    End::Killed(signal) => [("signal", common::signal::name(signal).into())],
                };
                self.say(Level::Info, events::COMMAND_EXITED, &fields, None);
            }
            for index in 0..self.files {
                // A file that is to be changed at the end of a line has got there.
                self.cut_now(index);
                let output = &self.outputs[index];
                let mut inner = output.shared.lock();
                inner.queue.close();
                inner.end = true;
                output.shared.wake(inner);
            }
        }
        if let Phase::Closing(_) = self.phase {
            let written = self.outputs[..self.files].iter().all(|output| output.ended);
            if written && self.action.is_none() && self.actions.is_empty() {
                self.phase = Phase::Over;
            }
        }
    }

    // ---- signals, the command ----

    fn on_signal(&mut self, received: Received, now: Instant) {
        match received.signal {
            own_signals::HUP => self.reopen_all(None, now),
            own_signals::CHLD => self.reap_strangers(),
            signal => match &self.wrapped {
                Some(wrapped) => wrapped.forward(received),
                None if matches!(signal, own_signals::TERM | own_signals::INT) => {
                    // The program before us in the pipe may have last words: the end is the end of
                    // input, unless somebody insists.
                    self.asked_to_end += 1;
                    if self.asked_to_end > 1 {
                        self.end_signal = Some(signal);
                        for index in 0..self.streams.len() {
                            self.end_stream(index, now);
                        }
                    }
                }
                None if signal == own_signals::QUIT => {
                    self.end_signal = Some(signal);
                    for index in 0..self.streams.len() {
                        self.end_stream(index, now);
                    }
                }
                // Control-Z stops the whole pipeline, or the shell would wait for us.
                None if signal == nix::libc::SIGTSTP => wrap::stop_like_the_job(),
                None => {}
            },
        }
    }

    /// As process 1 of a container we get everybody's orphans. Our own two are reaped where they are held.
    pub(crate) fn reap_strangers(&self) {
        let own = self.wrapped.as_ref().map(|wrapped| wrapped.child().pid());
        let action = self.action.as_ref().map(|(action, _)| action.pid());
        while let Some(pid) = common::child::next_ended() {
            if Some(pid) == own || Some(pid) == action {
                break;
            }
            common::child::reap_stranger(pid);
        }
    }

    fn on_command_end(&mut self, now: Instant) {
        let Some(wrapped) = &self.wrapped else {
            return;
        };
        let Some(end) = wrapped.ended() else {
            return;
        };
        self.events.remove(wrapped.child());
        self.end = Some(end);
        self.phase = Phase::Lingering {
            until: now + LINGER,
            quiet: now + QUIET,
        };
        for index in 0..self.streams.len() {
            self.on_stream(index, now);
        }
    }

    pub(crate) fn say_started(&mut self) {
        let sizes: Vec<usize> = std::mem::take(&mut self.small_pipes);
        for size in sizes {
            self.say(
                Level::Debug,
                events::PIPE_SMALL,
                &[("size", size.into())],
                None,
            );
        }
        if let Some(wrapped) = &self.wrapped {
            let fields = [
                ("pid", wrapped.child().pid().into()),
                (
                    "command",
                    wrapped.program().to_string_lossy().into_owned().into(),
                ),
            ];
            self.say(Level::Info, events::COMMAND_STARTED, &fields, None);
        }
        // A shell script may start a hundred of us, which then do little for as long as they live.
        common::sys::forget_start();
    }

    // ---- lines ----

    /// Reads a stream until it is empty for now, or has had its turn.
    pub(crate) fn on_stream(&mut self, index: usize, now: Instant) {
        self.take_back(index, now);
        // Its moment has come; where there is no room now, something else tells when there is.
        self.streams[index].pause = None;
        let (mut total, mut waiting) = (0, 0);
        for _ in 0..TURN {
            if self.streams[index].ended || !self.has_room(index, now) {
                break;
            }
            let mut run = None;
            let stream = &mut self.streams[index];
            let turn = stream.read(&mut self.pool, &mut |whole| run = Some(whole));
            if let Some(run) = run {
                self.deliver(index, run, now);
                waiting += 1;
            }
            if waiting == TOGETHER {
                self.wake_writer(index);
                waiting = 0;
            }
            match turn {
                Turn::More(got) => total += got,
                Turn::Empty(got) => {
                    total += got;
                    self.streams[index].emptied(total, now);
                    break;
                }
                Turn::End => {
                    self.end_stream(index, now);
                    break;
                }
            }
        }
        if waiting > 0 {
            self.wake_writer(index);
        }
        if total > 0 {
            let output = self.streams[index].output;
            // Where two streams meet, the beginning of a line would keep the other one waiting.
            let alone = self.is_alone(index);
            let stream = &mut self.streams[index];
            stream.show = (alone && !stream.pump.tail().is_empty()).then(|| now + SHOWN);
            self.idle_at = Some(now + IDLE);
            if let Phase::Lingering { until, .. } = self.phase {
                self.phase = Phase::Lingering {
                    until,
                    quiet: now + QUIET,
                };
            }
            if self.outputs[output].cut.is_wanted() {
                // Its newline is waited for.
                self.streams[index].pause = None;
                self.cut_if_due(output, now);
            }
        }
        self.lend(index, now);
        self.arm(index);
    }

    /// The writer reads the stream itself from now on, if it can write, and nothing has to be seen to on the way.
    pub(crate) fn lend(&mut self, index: usize, now: Instant) {
        let stream = &self.streams[index];
        let output = &self.outputs[stream.output];
        if stream.ended
            || stream.lent
            || stream.tee.is_some()
            || stream.held.is_some()
            || stream.is_inside()
            || self.plan.head.is_some()
            || self.phase != Phase::Running
            || output.cut.is_wanted()
            || output.inside.is_some()
            || !self.is_alone(index)
        {
            return;
        }
        let mut inner = output.shared.lock();
        if inner.stats.trouble.is_some() || inner.hangs(now) || !inner.queue.is_calm() {
            return;
        }
        let stream = &mut self.streams[index];
        inner.feed = stream.lend();
        if inner.feed.is_some() {
            stream.lent = true;
            stream.pause = None;
            stream.show = None;
            if inner.away.is_some() {
                // It has not heard of it yet, and may hang.
                output.shared.wind(WATCH);
            }
            output.shared.wake(inner);
        }
    }

    /// No other stream goes to the same file.
    fn is_alone(&self, index: usize) -> bool {
        let output = self.streams[index].output;
        let mut others = self.streams.iter().enumerate();
        !others.any(|(other, stream)| other != index && stream.output == output)
    }

    /// A writer that reads a stream was not heard of for a while.
    fn on_alarm(&mut self, index: usize, now: Instant) {
        let shared = Arc::clone(&self.outputs[index].shared);
        shared.heard();
        let inner = shared.lock();
        let (lent, away) = (inner.feed.is_some(), inner.away);
        let hangs = inner.hangs(now);
        drop(inner);
        match away {
            Some(_) if lent && hangs => {
                for number in 0..self.streams.len() {
                    if self.streams[number].output == index && self.streams[number].lent {
                        self.on_stream(number, now);
                    }
                }
            }
            Some(_) if lent => shared.wind(WATCH),
            // It waits for us or for the stream, and will wind the alarm again.
            Some(_) | None => {}
        }
    }

    /// The stream is read by the loop again.
    pub(crate) fn take_back(&mut self, index: usize, now: Instant) {
        let stream = &mut self.streams[index];
        if !stream.lent {
            return;
        }
        let output = &mut self.outputs[stream.output];
        if let Some(feed) = output.shared.lock().feed.take() {
            stream.take_back(feed);
        }
        output.inside = stream.pump.inside().then_some((index, now));
        stream.show = (!stream.pump.tail().is_empty()).then(|| now + SHOWN);
        self.idle_at = Some(now + IDLE);
    }

    /// The output takes more, and no other stream is in the middle of a line there.
    fn has_room(&mut self, index: usize, now: Instant) -> bool {
        let stream = &self.streams[index];
        let output = &mut self.outputs[stream.output];
        if let Some((other, since)) = output.inside {
            if other != index {
                let limit = since + PATIENCE;
                if now < limit {
                    self.streams[index].held = Some(Some(limit));
                    return false;
                }
                let output = stream.output;
                self.break_line(output);
            }
        }
        let stream = &mut self.streams[index];
        let shared = &self.outputs[stream.output].shared;
        let mut inner = shared.lock();
        let room = shared.room(&mut inner, now);
        stream.held = match room {
            Room::Yes => None,
            Room::Later(then) => Some(Some(then)),
            Room::No => Some(None),
        };
        inner.tell |= room != Room::Yes;
        room == Room::Yes
    }

    /// A run of a stream goes to its file, and to our own output if it is to.
    fn deliver(&mut self, index: usize, run: Run, now: Instant) {
        let wall = SystemTime::now();
        let output = self.streams[index].output;
        let ends_line = run.ends || run.buffer.filled().contains(&b'\n');
        match &self.plan.head {
            None => self.hand_over(index, run, wall, now),
            Some(head) => {
                let mut runs = Vec::new();
                head.put(run, wall, &mut self.pool, &mut |run| runs.push(run));
                for run in runs {
                    self.hand_over(index, run, wall, now);
                }
            }
        }
        if ends_line {
            self.outputs[output].cut.line_ended(index);
        }
    }

    fn hand_over(&mut self, index: usize, run: Run, wall: SystemTime, now: Instant) {
        let stream = &self.streams[index];
        let (output, number) = (stream.output, stream.number);
        if let Some(own) = stream.tee {
            self.tee(own, run.buffer.filled(), wall);
        }
        self.outputs[output].inside = (!run.ends).then_some((index, now));
        let shared = Arc::clone(&self.outputs[output].shared);
        let mut inner = shared.lock();
        let free = inner.queue.offer(run, number, wall);
        let spare = std::mem::take(&mut inner.spare);
        drop(inner);
        for buffer in free.into_iter().chain(spare) {
            self.pool.give(buffer);
        }
    }

    /// After lines were handed over; not after each, or it would wake for each.
    fn wake_writer(&self, index: usize) {
        let shared = &self.outputs[self.streams[index].output].shared;
        shared.wake(shared.lock());
    }

    fn tee(&mut self, own: usize, bytes: &[u8], wall: SystemTime) {
        if let Some(writer) = self.own_writers[own] {
            self.queue_line(writer, bytes, wall);
        } else if let Some(output) = &mut self.own[own] {
            if output.has_room() {
                output.write(bytes);
                self.tee_lost += output.take_lost();
            } else {
                self.tee_lost += count(bytes);
            }
            self.arm_own(own);
        }
    }

    /// Bytes of our own into an output's queue.
    fn queue_line(&mut self, output: usize, bytes: &[u8], wall: SystemTime) {
        // A line that was handed on in part is not to be glued to ours.
        if self.outputs[output].inside.is_some() && self.outputs[output].path.is_some() {
            return;
        }
        let shared = Arc::clone(&self.outputs[output].shared);
        let mut inner = shared.lock();
        if inner.feed.as_ref().is_some_and(Feed::has_begun) {
            return;
        }
        let run = Run {
            buffer: Buffer::from(bytes),
            starts: true,
            ends: bytes.ends_with(b"\n"),
        };
        // 1: the second of two sources at most, none of which is in a line that was dropped in part by us.
        let _ = inner.queue.offer(run, 1, wall);
        shared.wake(inner);
    }

    /// The beginning of a line goes to the file without its end.
    fn show(&mut self, index: usize, now: Instant) {
        self.streams[index].show = None;
        if let Some(run) = self.streams[index].pump.flush() {
            self.deliver(index, run, now);
            self.wake_writer(index);
        }
    }

    fn end_stream(&mut self, index: usize, now: Instant) {
        self.take_back(index, now);
        let stream = &mut self.streams[index];
        if stream.ended {
            return;
        }
        if std::mem::replace(&mut stream.registered, false) {
            self.events.remove(&*stream);
        }
        stream.show = None;
        stream.pause = None;
        stream.held = None;
        let rest = stream.pump.finish();
        if let Some(run) = rest {
            self.deliver(index, run, now);
            self.wake_writer(index);
        }
        let stream = &mut self.streams[index];
        stream.ended = true;
        let output = stream.output;
        self.outputs[output].cut.line_ended(index);
        self.cut_if_due(output, now);
    }

    pub(crate) fn arm(&mut self, index: usize) {
        let stream = &mut self.streams[index];
        if stream.ended || stream.always {
            return;
        }
        let token = STREAM + index as u64;
        let ours = stream.held.is_none() && !stream.lent;
        // Taken out while its output takes nothing, or reads it itself: that its writers are gone would be said
        // all the time.
        match (ours, stream.registered) {
            (true, false) => {
                stream.registered = self.events.add(&*stream, token, Interest::Read).is_ok();
                if !stream.registered {
                    // Short of memory. Without a further try nobody would ever read it.
                    stream.pause = Some(Instant::now() + AGAIN);
                }
            }
            (true, true) if stream.pause.is_none() => {
                self.events.set(&*stream, token, Interest::Read)
            }
            (true, true) => self.events.set(&*stream, token, Interest::Nothing),
            (false, true) => {
                self.events.remove(&*stream);
                stream.registered = false;
            }
            (false, false) => {}
        }
    }

    // ---- events ----

    pub(crate) fn say(
        &mut self,
        level: Level,
        event: &str,
        fields: &[(&str, Value)],
        about: Option<usize>,
    ) {
        let Some(line) = self.log.line(level, event, fields) else {
            return;
        };
        let failing: Vec<bool> = self.outputs[..self.files]
            .iter()
            .map(|output| output.failing)
            .collect();
        match (self.voice, speaker(self.voice, about, &failing)) {
            (_, Some(output)) => self.queue_line(output, &line, SystemTime::now()),
            (Voice::Stderr, None) => {
                if let Some(own) = &mut self.own[1] {
                    own.write_or_drop(&line);
                    self.arm_own(1);
                }
            }
            (Voice::Through(_) | Voice::Writer(_), None) => {}
        }
    }

    fn flush_own(&mut self, own: usize) {
        if let Some(output) = self.own.get_mut(own).and_then(Option::as_mut) {
            output.flush();
            self.tee_lost += output.take_lost();
            self.arm_own(own);
        }
    }

    /// Waits for the reader of one of our own descriptors while something waits for him.
    fn arm_own(&mut self, own: usize) {
        let Some(output) = &self.own[own] else {
            return;
        };
        if output.descriptor().is_none() && self.own_armed[own] {
            // Its reader is gone.
            self.own_armed[own] = false;
            self.events.remove(common::sys::standard(own as i32 + 1));
        }
        let wanted = output.wants_to_write();
        if let (Some(fd), true) = (output.descriptor(), wanted != self.own_armed[own]) {
            self.own_armed[own] = wanted;
            if wanted {
                let _ = self.events.add(fd, OWN + own as u64, Interest::Write);
            } else {
                self.events.remove(fd);
            }
        }
    }

    // ---- the end ----

    /// What is not on disk by now is not going to be.
    fn give_up(&mut self) {
        for index in 0..self.files {
            if self.outputs[index].ended {
                continue;
            }
            let inner = self.outputs[index].shared.lock();
            let (held, lost) = (inner.queue.held(), inner.queue.lost());
            drop(inner);
            if held > 0 || lost.0 > 0 {
                self.lost = true;
            }
            // It speaks of its own end: through itself nobody would hear it.
            self.outputs[index].failing = true;
            let fields = [
                ("file", self.outputs[index].name().into()),
                ("held", held.into()),
                ("lost", lost.0.into()),
            ];
            self.say(Level::Error, events::DRAIN_GAVE_UP, &fields, Some(index));
        }
        self.phase = Phase::Over;
    }

    fn finish(&mut self) -> Exit {
        if self.tee_lost > 0 {
            let lines = std::mem::take(&mut self.tee_lost);
            self.say(
                Level::Warning,
                events::LINES_LOST,
                &[("file", "-".into()), ("lines", lines.into())],
                None,
            );
        }
        let now = Instant::now();
        if let Some(server) = &mut self.server {
            let reply = Reply::Err(Exit::Fault.code(), "logreopen ends".to_owned());
            for asker in std::mem::take(&mut self.askers) {
                server.end(&self.events, asker.client, &reply, now);
            }
            server.unlink();
            server.finish(&self.events, LAST_WORDS);
        }
        for own in self.own.iter_mut().flatten() {
            own.finish(LAST_WORDS);
        }
        self.finish_own_writers();
        match (self.end, self.end_signal) {
            (Some(end), _) => end.into(),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) if self.lost => Exit::No,
            (None, None) => Exit::Ok,
        }
    }

    /// Those of our own descriptors that lead to files get a moment for their last lines.
    fn finish_own_writers(&mut self) {
        let limit = Instant::now() + LAST_WORDS * 10;
        for output in &self.outputs[self.files..] {
            let mut inner = output.shared.lock();
            inner.queue.close();
            inner.end = true;
            output.shared.wake(inner);
        }
        let mut wakes = Vec::new();
        while Instant::now() < limit
            && self.outputs[self.files..]
                .iter()
                .any(|output| !output.ended)
        {
            if self.events.wait(Some(limit), &mut wakes).is_err() {
                return;
            }
            for index in self.files..self.outputs.len() {
                for report in self.outputs[index].shared.take_reports() {
                    if matches!(report, Report::Ended) {
                        self.outputs[index].ended = true;
                    }
                }
            }
        }
    }
}

/// The signals that mean something to us.
mod own_signals {
    pub const HUP: i32 = nix::libc::SIGHUP;
    pub const INT: i32 = nix::libc::SIGINT;
    pub const QUIT: i32 = nix::libc::SIGQUIT;
    pub const TERM: i32 = nix::libc::SIGTERM;
    pub const CHLD: i32 = nix::libc::SIGCHLD;
}
