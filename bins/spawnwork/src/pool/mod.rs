//! The workers as a whole, as a state machine: what happens to them goes in, what is to be done comes
//! out as a list of effects. Nothing here starts, signals or reads anything: perform.rs does what is
//! decided here, and the tests in sim.rs do it with workers that are made up.
//!
//! A worker: starting -> serving -> draining -> killing -> stuck, and gone from each of them; a hung
//! one aborting instead of draining. The pool: [`Phase`].

mod death;
mod deploy;
mod recycle;
pub mod reload;
pub mod respawn;

pub use deploy::{Asked, Reloading};
pub use recycle::Recycling;

use crate::cli::{OnLimit, Surge};
use crate::deaths::{By, Deaths};
use crate::events;
use crate::status::{Frozen, Reloads};
use crate::supervisor::Outcome;
use common::control::Reply;
use common::event::{Level, Value};
use common::exit::{End, Exit};
use reload::Trial;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// A worker that has started as one of the newest counts as starting for this long: others need not
/// wait for one that hangs.
const STAGGER: Duration = Duration::from_secs(2);

/// A new worker that never had a client, and is not wanted any more, has this long to leave.
const ABORT: Duration = Duration::from_secs(5);

/// How long the core dump of a worker that hangs may take, unless `--stop-timeout` is shorter.
const DUMP: Duration = Duration::from_secs(5);

/// A killed worker that is not gone by then is killed once more, and then left to the kernel.
const KILLED: Duration = Duration::from_secs(1);

/// How long the end waits for workers that the kernel does not let go.
pub const STUCK: Duration = Duration::from_secs(5);

/// So many workers of one slot may hang in the kernel: a file server that is gone takes each new one
/// too, and they are never fewer than before.
const MOST_STUCK: usize = 3;

/// So many generations may finish what they had begun; the oldest of more is ended.
const MOST_DRAINING: usize = 3;

/// What the user allows.
#[derive(Clone, Debug)]
pub struct Policy {
    /// `--surge`
    pub surge: Surge,
    /// `--start-parallel`
    pub parallel: usize,
    /// `--probation`
    pub probation: Duration,
    /// There is a `--check`.
    pub check: bool,
    /// There is a `--probe`.
    pub probe: bool,
    /// New workers can be kept from accepting before they have their slots.
    pub holds: bool,
    /// And so can one that has its slot: what it leaves is taken by the others.
    pub shares: bool,
    /// `--stop-timeout`
    pub stop_timeout: Duration,
    /// `--respawn-limit`, `--backoff`
    pub respawn: respawn::Policy,
    /// `--on-limit`
    pub on_limit: OnLimit,
    /// `--max-rss`, in bytes
    pub max_rss: Option<u64>,
    /// `--max-lifetime`
    pub max_lifetime: Option<Duration>,
    /// `--jitter`, in percent
    pub jitter: u32,
}

impl Policy {
    /// The rules of a reload of `workers` workers.
    #[must_use]
    pub fn rules(&self, workers: usize) -> reload::Rules {
        let surge = match self.surge {
            Surge::Count(count) => count,
            Surge::Percent(percent) => (workers * percent as usize).div_ceil(100),
        };
        reload::Rules {
            surge: surge.min(workers),
            parallel: self.parallel,
            probation: self.probation,
            probe: self.probe,
        }
    }
}

/// Where a worker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum State {
    /// Not ready yet.
    Starting,
    /// Ready.
    Serving,
    /// Asked to stop.
    Draining,
    /// Its watchdog was not fed: it has got SIGABRT.
    Aborting,
    /// Killed, and not gone yet.
    Killing,
    /// Killed, and not gone although it had time: it hangs in the kernel (D state), where no signal
    /// reaches it. Its slot has another one.
    Stuck,
}

impl State {
    /// For the status.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Serving => "serving",
            State::Draining => "draining",
            State::Aborting => "aborting",
            State::Killing => "killing",
            State::Stuck => "stuck",
        }
    }
}

/// A worker, as far as decisions about it go.
#[derive(Clone, Debug)]
pub struct Member {
    /// Never reused.
    pub id: u64,
    /// Its slot.
    pub slot: usize,
    /// Its generation.
    pub generation: u32,
    /// Its pid, for those who read what we say; 0 before it has one.
    pub pid: i32,
    /// Where it is in its life.
    pub state: State,
    /// When it was started.
    pub started: Instant,
    /// How long it may live, its own jitter included.
    pub lifetime: Option<Duration>,
    /// When it became ready.
    pub ready_at: Option<Instant>,
    /// When patience ends with one that is to go; of a stuck one, when it became that.
    pub until: Option<Instant>,
    /// SIGKILLs that it has got.
    pub kills: u32,
    /// Why we ended it, if we did.
    pub cause: Option<String>,
    /// Who ended it, as far as we know before its end.
    pub by: Option<By>,
    /// It gets no connection until its generation has the slots.
    pub held: bool,
    /// It never had a client, and never will.
    pub aborted: bool,
    /// It was not ready in time.
    pub late: bool,
    /// It has started, and only has to live on until it counts as ready.
    pub settled: bool,
}

impl Member {
    /// For the status.
    #[must_use]
    pub fn state_name(&self) -> &'static str {
        if self.state == State::Serving && self.held {
            "probation"
        } else {
            self.state.name()
        }
    }

    /// It has not been told to go.
    #[must_use]
    pub fn stays(&self) -> bool {
        matches!(self.state, State::Starting | State::Serving)
    }

    /// How long it has taken to become ready, by now.
    fn took(&self, now: Instant) -> Duration {
        self.ready_at
            .unwrap_or(now)
            .saturating_duration_since(self.started)
    }

    fn fields(&self) -> Vec<(&'static str, Value)> {
        vec![("slot", self.slot.into()), ("pid", self.pid.into())]
    }
}

/// Why a slot has no worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// It has one, or is to have none.
    Nothing,
    /// It is in the line of those that start.
    Queued,
    /// Until then, by the backoff.
    Backoff(Instant),
    /// Until then, over its limit.
    Held(Instant),
}

/// A place for a worker.
#[derive(Clone, Debug)]
pub struct Slot {
    /// The worker that serves here.
    pub current: Option<u64>,
    /// The worker that is to take its place: of the next generation, or of the same.
    pub next: Option<u64>,
    /// The generation whose workers belong here.
    pub generation: u32,
    /// The deaths that count.
    pub history: respawn::History,
    /// What it waits for.
    pub wait: Wait,
    /// No worker of it has lived through its trial yet, or the last one died in it: where others serve,
    /// the next one gets no client before its own is over.
    pub unproven: bool,
    /// Workers that were started here after the first.
    pub restarts: u64,
    /// How the last one ended.
    pub last_end: Option<End>,
    /// How the last ones ended, and what the last one said.
    pub deaths: Deaths,
}

impl Slot {
    /// An empty slot of a generation.
    #[must_use]
    pub fn new(generation: u32) -> Slot {
        Slot {
            current: None,
            next: None,
            generation,
            history: respawn::History::default(),
            wait: Wait::Queued,
            unproven: false,
            restarts: 0,
            last_end: None,
            deaths: Deaths::default(),
        }
    }
}

/// What the pool as a whole is doing.
#[derive(Clone, Debug)]
pub enum Phase {
    /// The first generation starts.
    Initial,
    /// It serves.
    Running,
    /// A new generation comes.
    Reloading(Reloading),
    /// Everybody goes; then we end with this status.
    Stopping(Exit),
}

/// Whether a worker may take connections as soon as it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// It may.
    Open,
    /// Not before [`Effect::Accept`].
    Held,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Start a worker; [`Pool::started`] or [`Pool::start_failed`] tells what became of it.
    Start {
        /// Its id.
        id: u64,
        /// Its slot.
        slot: usize,
        /// Its generation.
        generation: u32,
        /// Whether it may accept.
        beginning: Beginning,
    },
    /// Ask it to go: it finishes what it has begun.
    Stop(u64),
    /// SIGABRT.
    Abort(u64),
    /// SIGKILL, to all that is known to belong to it.
    Kill(u64),
    /// It was held back, and has a slot now.
    Accept(u64),
    /// Run `--check` for this generation; [`Pool::check_passed`] or [`Pool::check_failed`] tells.
    Check(u32),
    /// Nobody wants its result any more.
    DropCheck,
    /// Ask the canary; [`Pool::probe_passed`] or [`Pool::probe_failed`] tells.
    Probe(u64),
    /// Nobody wants its result any more.
    DropProbe,
    /// An event line.
    Say(Level, &'static str, Vec<(&'static str, Value)>),
    /// A step of the reload to this generation, for those who wait for its result.
    Progress(u32, String),
    /// The result of the reload to this generation, with what its failing worker had said.
    Result(u32, Reply, Vec<String>),
    /// The restarts that were asked for are over.
    Restarted(Reply),
    /// How a reload ended, for the supervisor.
    Outcome(Outcome),
    /// A generation serves in all slots.
    Serving,
    /// The reload that had to wait may be asked for again.
    NextReload,
    /// Sockets may have lost the last one who wanted them.
    Tidy,
    /// We stop: no result will come any more.
    NoResult(Exit),
}

/// How a worker ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its status; `None` where that is not known.
    pub end: Option<End>,
    /// Whether the kernel's count of OOM kills has gone up since it was started.
    pub oom: crate::deaths::Oom,
    /// The last lines of its stderr.
    pub words: Vec<String>,
    /// Its program was never executed: why, and what the master's end would be.
    pub unstarted: Option<(String, Exit)>,
}

/// The workers.
#[derive(Clone, Debug)]
pub struct Pool {
    /// What the user allows.
    pub policy: Policy,
    /// The places.
    pub slots: Vec<Slot>,
    /// Who is there, in a slot or on the way out.
    pub members: BTreeMap<u64, Member>,
    /// The id that was given last.
    pub last_id: u64,
    /// The generation that serves.
    pub generation: u32,
    /// The newest that was tried.
    pub last_generation: u32,
    /// What the whole is doing.
    pub phase: Phase,
    /// A reload waits for the one under way.
    pub queued_reload: bool,
    /// A deploy that failed, until the next good one.
    pub frozen: Option<Frozen>,
    /// What may be taken back, and what would come in its place.
    pub trial: Option<(Trial, u32)>,
    /// How reloads ended.
    pub reloads: Reloads,
    /// How workers ended.
    pub deaths: BTreeMap<By, u64>,
    /// Replacements.
    pub recycling: Recycling,
    /// The first generation, or one that was taken over, has served as a whole.
    pub served: bool,
    /// When the first worker was asked for.
    pub since: Instant,
    line: VecDeque<usize>,
    ever_ready: bool,
    random: u64,
    out: VecDeque<Effect>,
}

impl Pool {
    /// A pool of `workers` slots of generation 1, which are to start. `seed` spreads what is random.
    #[must_use]
    pub fn new(workers: usize, policy: Policy, seed: u64, now: Instant) -> Pool {
        Pool {
            policy,
            slots: (0..workers).map(|_| Slot::new(1)).collect(),
            members: BTreeMap::new(),
            last_id: 0,
            generation: 1,
            last_generation: 1,
            phase: Phase::Initial,
            queued_reload: false,
            frozen: None,
            trial: None,
            reloads: Reloads::default(),
            deaths: BTreeMap::new(),
            recycling: Recycling::default(),
            served: false,
            since: now,
            line: (0..workers).collect(),
            ever_ready: false,
            random: seed,
            out: VecDeque::new(),
        }
    }

    /// Slots and workers that another program had, whose place we take. Those without a worker start.
    pub fn restore(&mut self, slots: Vec<Slot>, members: Vec<Member>) {
        self.line = slots
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.wait == Wait::Queued)
            .map(|(index, _)| index)
            .collect();
        self.slots = slots;
        self.members = members.into_iter().map(|one| (one.id, one)).collect();
        self.phase = Phase::Running;
        self.ever_ready = true;
        self.served = true;
    }

    /// What is to be done next.
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.out.pop_front()
    }

    fn give(&mut self, effect: Effect) {
        self.out.push_back(effect);
    }

    fn say(
        &mut self,
        level: Level,
        event: &'static str,
        fields: impl Into<Vec<(&'static str, Value)>>,
    ) {
        self.give(Effect::Say(level, event, fields.into()));
    }

    /// An id that nobody has or had.
    pub fn new_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    // splitmix64
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    // ---- what is asked about it ----

    /// The state of a worker that is there.
    #[must_use]
    pub fn state(&self, id: u64) -> Option<State> {
        self.members.get(&id).map(|member| member.state)
    }

    /// It is there, and has something to do yet before it serves.
    #[must_use]
    pub fn starts(&self, id: u64) -> bool {
        self.members
            .get(&id)
            .is_some_and(|member| member.state == State::Starting && !member.settled)
    }

    /// It is there, and has not been told to go.
    #[must_use]
    pub fn stays(&self, id: u64) -> bool {
        self.members.get(&id).is_some_and(Member::stays)
    }

    /// We stop.
    #[must_use]
    pub fn stopping(&self) -> bool {
        matches!(self.phase, Phase::Stopping(_))
    }

    /// Whether a worker serves in the slot: ready, and not on trial.
    #[must_use]
    pub fn serves(&self, slot: &Slot) -> bool {
        slot.current
            .and_then(|id| self.members.get(&id))
            .is_some_and(|member| member.state == State::Serving && !member.held)
    }

    /// Slots that serve.
    #[must_use]
    pub fn serving(&self) -> usize {
        self.slots.iter().filter(|slot| self.serves(slot)).count()
    }

    /// Whether anybody or anything may still need what belongs to this generation.
    #[must_use]
    pub fn needs(&self, generation: u32) -> bool {
        let reload = match &self.phase {
            Phase::Reloading(reloading) => [reloading.target, reloading.old].contains(&generation),
            Phase::Initial | Phase::Running | Phase::Stopping(_) => false,
        };
        reload
            || self.generation == generation
            || self.trial.as_ref().is_some_and(|one| one.1 == generation)
            || self.slots.iter().any(|slot| slot.generation == generation)
            || self
                .members
                .values()
                .any(|one| one.generation == generation)
    }

    /// The status to end with, once everybody is gone who can be waited for, and nothing else is to be
    /// waited for.
    #[must_use]
    pub fn end(&self, now: Instant) -> Option<Exit> {
        let Phase::Stopping(exit) = self.phase else {
            return None;
        };
        let given_up = |member: &Member| {
            member.state == State::Stuck && member.until.is_none_or(|since| since + STUCK <= now)
        };
        self.members.values().all(given_up).then_some(exit)
    }

    /// Workers that the kernel does not let go.
    pub fn stuck(&self) -> impl Iterator<Item = &Member> {
        self.members
            .values()
            .filter(|member| member.state == State::Stuck)
    }

    // ---- start ----

    fn starting_now(&self, now: Instant) -> usize {
        self.members
            .values()
            .filter(|member| {
                member.state == State::Starting
                    && !member.settled
                    && now.saturating_duration_since(member.started) < STAGGER
            })
            .count()
    }

    /// When the line moves without an event.
    fn next_start(&self, now: Instant) -> Option<Instant> {
        if self.line.is_empty() || !self.first_may_start() {
            // The end of one that leaves tells.
            return None;
        }
        if self.starting_now(now) < self.policy.parallel.max(1) {
            return Some(now);
        }
        self.members
            .values()
            .filter(|member| member.state == State::Starting)
            .map(|member| member.started + STAGGER)
            .filter(|at| *at > now)
            .min()
    }

    /// Whether the next worker waits for nothing but those that start, so that it is worth a look whether
    /// one of them has [`Pool::settled`].
    #[must_use]
    pub fn waits_for_starts(&self, now: Instant) -> bool {
        let full = self.starting_now(now) >= self.policy.parallel.max(1);
        let reload = match &self.phase {
            Phase::Reloading(reloading) => {
                !reloading.checking && reloading.steps.waits_for_starts()
            }
            Phase::Initial | Phase::Running | Phase::Stopping(_) => false,
        };
        reload || (full && !self.line.is_empty() && self.first_may_start())
    }

    /// A worker that starts does nothing more, and only has to live on until it counts as ready: the next
    /// one takes nothing from it.
    pub fn settled(&mut self, id: u64) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        if member.state != State::Starting {
            return;
        }
        member.settled = true;
        let slot = member.slot;
        let is_next = self
            .slots
            .get(slot)
            .is_some_and(|slot| slot.next == Some(id));
        if let Phase::Reloading(reloading) = &mut self.phase {
            if is_next && !self.recycling.replaces(slot) {
                reloading.steps.settled(slot);
            }
        }
    }

    /// Workers that count against two for each slot: all but those that finish for their clients, and
    /// those that only the kernel can end.
    fn crowd(&self) -> usize {
        self.members
            .values()
            .filter(|member| member.stays() || (member.aborted && member.state != State::Stuck))
            .count()
    }

    /// How many more workers there may be beside those that serve: never more than two for a slot. A slot
    /// that is empty for the moment, or will be, has its place kept.
    fn room(&self) -> usize {
        let stays = |slot: &&Slot| slot.current.is_some_and(|id| self.stays(id));
        let kept = self.slots.len() - self.slots.iter().filter(stays).count();
        (2 * self.slots.len()).saturating_sub(self.crowd() + kept)
    }

    /// There is place for another worker of the first generation.
    fn first_may_start(&self) -> bool {
        !matches!(self.phase, Phase::Initial) || self.crowd() < 2 * self.slots.len()
    }

    /// The slot is to have a worker.
    fn queue(&mut self, index: usize) {
        if let Some(slot) = self.slots.get_mut(index) {
            if slot.wait != Wait::Queued {
                slot.wait = Wait::Queued;
                self.line.push_back(index);
            }
        }
    }

    /// All slots without a worker that wait for nothing are to have one.
    fn queue_empty(&mut self) {
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            if slot.current.is_none() && slot.wait == Wait::Nothing {
                self.queue(index);
            }
        }
    }

    fn start_line(&mut self, now: Instant) {
        while !self.line.is_empty() && self.starting_now(now) < self.policy.parallel.max(1) {
            if !self.first_may_start() {
                return;
            }
            let Some(index) = self.line.pop_front() else {
                return;
            };
            let wanted = self
                .slots
                .get(index)
                .is_some_and(|slot| slot.wait == Wait::Queued && slot.current.is_none());
            if !wanted || self.stopping() {
                continue;
            }
            let may_hold = self.policy.shares && !matches!(self.phase, Phase::Initial);
            let others = self.others_take_clients(index);
            let slot = &mut self.slots[index];
            slot.wait = Wait::Nothing;
            let generation = slot.generation;
            let beginning = if slot.unproven && may_hold && others {
                Beginning::Held
            } else {
                Beginning::Open
            };
            let id = self.start(index, generation, beginning, now);
            self.slots[index].current = Some(id);
            self.unless_too_many_are_stuck(id, now);
        }
    }

    /// Whether clients find somebody in a slot other than this one.
    fn others_take_clients(&self, index: usize) -> bool {
        let others = self.slots.iter().enumerate();
        others
            .filter(|(other, _)| *other != index)
            .any(|(_, slot)| self.serves(slot))
    }

    /// The worker that has this slot may have clients.
    fn let_accept(&mut self, index: usize) {
        let current = self.slots.get_mut(index).and_then(|slot| {
            slot.unproven = false;
            slot.current
        });
        let held = current
            .and_then(|id| self.members.get_mut(&id))
            .filter(|member| member.held);
        if let Some(member) = held {
            member.held = false;
            let id = member.id;
            self.give(Effect::Accept(id));
        }
    }

    /// When the trial of a worker that has its slot, and no clients yet, is over.
    fn proven_at(&self, slot: &Slot) -> Option<Instant> {
        let member = self.members.get(&slot.current?)?;
        let on_trial = member.held && member.state == State::Serving;
        Some(member.ready_at? + self.policy.probation).filter(|_| on_trial)
    }

    /// Those whose trial is over get clients, and all do when nobody else has any.
    fn prove(&mut self, now: Instant) {
        for index in 0..self.slots.len() {
            let due = self.proven_at(&self.slots[index]);
            if due.is_some_and(|at| at <= now || !self.others_take_clients(index)) {
                self.let_accept(index);
            }
        }
    }

    /// Makes a member, and asks for its process.
    fn start(&mut self, slot: usize, generation: u32, beginning: Beginning, now: Instant) -> u64 {
        let id = self.new_id();
        let random = self.random();
        let member = Member {
            id,
            slot,
            generation,
            pid: 0,
            state: State::Starting,
            started: now,
            lifetime: self
                .policy
                .max_lifetime
                .map(|length| common::time::jittered(length, self.policy.jitter, random)),
            ready_at: None,
            until: None,
            kills: 0,
            cause: None,
            by: None,
            held: beginning == Beginning::Held,
            aborted: false,
            late: false,
            settled: false,
        };
        self.members.insert(id, member);
        self.give(Effect::Start {
            id,
            slot,
            generation,
            beginning,
        });
        id
    }

    fn unless_too_many_are_stuck(&mut self, id: u64, now: Instant) {
        let slot = self.members.get(&id).map(|member| member.slot);
        let stuck = self.stuck().filter(|one| Some(one.slot) == slot).count();
        if stuck >= MOST_STUCK {
            self.out.retain(
                |effect| !matches!(effect, Effect::Start { id: asked, .. } if *asked == id),
            );
            let why = format!("{stuck} of its workers hang in the kernel, and so would the next");
            self.start_failed(id, &why, now);
        }
    }

    /// A worker has its process, since then.
    pub fn started(&mut self, id: u64, pid: i32, at: Instant) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        member.pid = pid;
        member.started = at;
        let mut fields = member.fields();
        fields.push(("generation", member.generation.into()));
        self.say(Level::Info, events::WORKER_STARTED, fields);
    }

    /// It could not be started: fork's EAGAIN and ENOMEM, EMFILE.
    pub fn start_failed(&mut self, id: u64, why: &str, now: Instant) {
        let Some(member) = self.members.remove(&id) else {
            return;
        };
        let index = member.slot;
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        if slot.next == Some(id) {
            slot.next = None;
            if self.recycling.replaces(index) {
                self.recycle_failed(why, now);
            } else {
                self.reload_failed(why, Vec::new(), now);
            }
        } else if slot.current == Some(id) {
            slot.current = None;
            self.say(
                Level::Error,
                events::WORKER_FAILED,
                [
                    ("slot", index.into()),
                    ("generation", member.generation.into()),
                    ("error", why.into()),
                ],
            );
            // The others live on, this one waits.
            self.after_death(index, None, Duration::ZERO, now);
        }
    }

    /// Slots that wait, for whatever reason, are started when it is next looked what is due: not before
    /// the loop runs, since sockets may still be missing.
    fn start_waiting(&mut self) {
        for index in 0..self.slots.len() {
            if matches!(self.slots[index].wait, Wait::Backoff(_) | Wait::Held(_)) {
                self.queue(index);
            }
        }
    }

    /// The operator wants the failed deploy and the deaths that count to be forgotten.
    pub fn clear(&mut self) {
        self.frozen = None;
        for slot in &mut self.slots {
            slot.history.clear();
        }
        self.start_waiting();
        self.say(Level::Info, events::CLEARED, []);
    }

    // ---- ready ----

    /// A worker shows that it serves.
    pub fn ready(&mut self, id: u64, now: Instant) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        if member.state != State::Starting {
            return;
        }
        member.state = State::Serving;
        member.ready_at = Some(now);
        let slot = member.slot;
        let mut fields = member.fields();
        fields.push(("generation", member.generation.into()));
        fields.push(("took", member.took(now).into()));
        self.ever_ready = true;
        self.say(Level::Info, events::WORKER_READY, fields);
        let is_next = self
            .slots
            .get(slot)
            .is_some_and(|slot| slot.next == Some(id));
        if is_next && self.recycling.replaces(slot) {
            self.replacement_is_ready(now);
        } else if is_next {
            self.next_is_ready(id, now);
        }
        self.first_generation_serves(now);
    }

    /// Whether all slots of the first generation serve by now.
    fn first_generation_serves(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Initial) && self.serving() == self.slots.len() {
            self.phase = Phase::Running;
            self.say_serving(now, self.since);
            let generation = self.generation;
            let reply = Reply::Ok(format!("generation {generation} serves"));
            self.give(Effect::Result(generation, reply, Vec::new()));
        }
    }

    fn say_serving(&mut self, now: Instant, since: Instant) {
        self.served = true;
        self.say(
            Level::Info,
            events::GENERATION_SERVING,
            [
                ("generation", self.generation.into()),
                ("workers", self.slots.len().into()),
                ("took", now.saturating_duration_since(since).into()),
            ],
        );
        self.give(Effect::Serving);
    }

    /// A worker was not ready in time.
    pub fn late(&mut self, id: u64, error: String, now: Instant) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        if member.state != State::Starting {
            return;
        }
        member.late = true;
        member.cause = Some(error.clone());
        member.by = Some(By::ReadyTimeout);
        let fields = [
            ("slot", member.slot.into()),
            ("generation", member.generation.into()),
            ("error", Value::from(error)),
        ];
        self.say(Level::Error, events::WORKER_FAILED, fields);
        self.kill(id, now);
    }

    // ---- the way out ----

    /// Asks a worker to go.
    fn leave(&mut self, id: u64, now: Instant) {
        let limit = now + self.policy.stop_timeout;
        let Some(member) = self.members.get_mut(&id).filter(|member| member.stays()) else {
            return;
        };
        member.state = State::Draining;
        member.by.get_or_insert(By::Asked);
        member.until = Some(limit);
        let fields = member.fields();
        self.give(Effect::Stop(id));
        self.say(Level::Info, events::WORKER_STOPPING, fields);
    }

    /// Asks a worker to go for a fault of its own, and has another one in its place.
    pub fn dismiss(&mut self, id: u64, cause: String, now: Instant) {
        if let Some(member) = self.members.get_mut(&id).filter(|member| member.stays()) {
            member.cause = Some(cause);
            self.leave(id, now);
            self.lost_in_reload(id);
        }
    }

    /// Asks a worker to go that has no client and never will.
    fn call_off(&mut self, id: u64, now: Instant) {
        let limit = now + self.policy.stop_timeout.min(ABORT);
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        member.aborted |= member.held || member.state == State::Starting;
        self.leave(id, now);
        if let Some(member) = self.members.get_mut(&id) {
            if member.aborted && member.state == State::Draining {
                member.until = member.until.map(|at| at.min(limit));
            }
        }
    }

    /// It hangs: SIGABRT, for the core dump that shows where; what does not die of it is killed.
    pub fn abort(&mut self, id: u64, cause: String, now: Instant) {
        let limit = now + DUMP.min(self.policy.stop_timeout);
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        if member.state != State::Serving {
            return;
        }
        member.state = State::Aborting;
        member.until = Some(limit);
        member.cause = Some(cause.clone());
        member.by = Some(By::Watchdog);
        let mut fields = member.fields();
        fields.push(("error", cause.into()));
        self.give(Effect::Abort(id));
        self.say(Level::Error, events::WORKER_HUNG, fields);
        self.lost_in_reload(id);
    }

    /// It will end, and then the reload has failed; until then it must not get its slot.
    fn lost_in_reload(&mut self, id: u64) {
        let slot = self.slots.iter().position(|slot| slot.next == Some(id));
        if let (Phase::Reloading(reloading), Some(slot)) = (&mut self.phase, slot) {
            reloading.steps.lost(slot);
            if let Some(member) = self.members.get_mut(&id) {
                member.aborted |= member.held;
            }
        }
    }

    fn kill(&mut self, id: u64, now: Instant) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        match member.state {
            State::Starting | State::Serving | State::Draining | State::Aborting => {
                member.aborted |= member.state == State::Starting;
                member.state = State::Killing;
                member.until = Some(now + KILLED);
                member.kills = 1;
                self.give(Effect::Kill(id));
            }
            State::Killing | State::Stuck => {}
        }
    }

    /// Somebody's signal will end it, if anything does: so its end is not its own.
    pub fn blame(&mut self, id: u64, by: By) {
        if let Some(member) = self.members.get_mut(&id) {
            member.by.get_or_insert(by);
        }
    }

    /// Everybody is to end at once.
    pub fn kill_all(&mut self, cause: &str, now: Instant) {
        let ids: Vec<u64> = self.members.keys().copied().collect();
        for id in ids {
            if let Some(member) = self.members.get_mut(&id) {
                member.cause.get_or_insert_with(|| cause.to_owned());
                member.by = Some(By::Operator);
            }
            self.kill(id, now);
        }
    }

    /// Everybody goes, and then we end with this status.
    pub fn stop(&mut self, exit: Exit, now: Instant) {
        if self.stopping() {
            return;
        }
        self.drop_recycle("we are stopping", now);
        self.give(Effect::DropCheck);
        self.give(Effect::DropProbe);
        self.phase = Phase::Stopping(exit);
        self.give(Effect::NoResult(exit));
        self.queued_reload = false;
        self.trial = None;
        self.line.clear();
        for slot in &mut self.slots {
            slot.wait = Wait::Nothing;
            slot.next = None;
        }
        let ids: Vec<u64> = self.members.keys().copied().collect();
        ids.into_iter().for_each(|id| self.leave(id, now));
    }

    // ---- more or fewer ----

    /// There are to be so many slots from now on; not during a reload, which counts them when it begins.
    pub fn resize(&mut self, wanted: usize, now: Instant) {
        let wanted = wanted.max(1);
        match self.phase {
            Phase::Initial | Phase::Running => {}
            Phase::Reloading(_) | Phase::Stopping(_) => return,
        }
        let present = self.slots.len();
        if wanted < present {
            self.drop_recycle("there will be fewer workers", now);
        }
        while self.slots.len() > wanted {
            if let Some(slot) = self.slots.pop() {
                slot.current.into_iter().for_each(|id| self.leave(id, now));
            }
        }
        while self.slots.len() < wanted {
            let mut slot = Slot::new(self.generation);
            slot.unproven = true;
            self.slots.push(slot);
            self.line.push_back(self.slots.len() - 1);
        }
        if wanted != present {
            self.say(
                Level::Info,
                events::WORKERS_CHANGED,
                [("workers", wanted.into())],
            );
        }
        self.give(Effect::Tidy);
        self.first_generation_serves(now);
    }

    // ---- time ----

    /// What is due: those whose time to go is over, those who may start, the steps of a reload.
    pub fn on_time(&mut self, now: Instant) {
        let due: Vec<u64> = self
            .members
            .values()
            .filter(|member| member.until.is_some_and(|at| at <= now))
            .map(|member| member.id)
            .collect();
        due.into_iter().for_each(|id| self.out_of_time(id, now));
        for index in 0..self.slots.len() {
            match self.slots[index].wait {
                Wait::Backoff(until) | Wait::Held(until) if until <= now => self.queue(index),
                Wait::Backoff(_) | Wait::Held(_) | Wait::Nothing | Wait::Queued => {}
            }
        }
        self.advance_reload(now);
        self.advance_recycle(now);
        self.prove(now);
        self.start_line(now);
    }

    fn out_of_time(&mut self, id: u64, now: Instant) {
        let stop_timeout = self.policy.stop_timeout;
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        let mut fields = member.fields();
        match member.state {
            State::Starting | State::Serving | State::Stuck => {}
            State::Draining => {
                let patience = if member.aborted {
                    stop_timeout.min(ABORT)
                } else {
                    stop_timeout
                };
                let error = format!("not gone within {}", common::time::say(patience));
                member.cause = Some(error.clone());
                member.by = Some(By::StopTimeout);
                fields.push(("error", error.into()));
                self.say(Level::Warning, events::WORKER_KILLED, fields);
                self.kill(id, now);
            }
            State::Aborting => {
                fields.push(("error", "SIGABRT did not end it".into()));
                self.say(Level::Warning, events::WORKER_KILLED, fields);
                self.kill(id, now);
            }
            State::Killing if member.kills < 2 => {
                member.kills += 1;
                member.until = Some(now + KILLED);
                self.give(Effect::Kill(id));
            }
            State::Killing => self.is_stuck(id, now),
        }
    }

    /// When [`Pool::on_time`] has something to do; see also [`Pool::recycle_deadline`].
    #[must_use]
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let members = self
            .members
            .values()
            .filter_map(|member| match member.state {
                State::Starting | State::Serving => None,
                State::Draining | State::Aborting | State::Killing => member.until,
                State::Stuck if self.stopping() => member
                    .until
                    .map(|since| since + STUCK)
                    .filter(|at| *at > now),
                State::Stuck => None,
            });
        let slots = self.slots.iter().filter_map(|slot| match slot.wait {
            Wait::Backoff(until) | Wait::Held(until) => Some(until),
            Wait::Nothing | Wait::Queued => None,
        });
        let reload = match &self.phase {
            Phase::Reloading(reloading) if !reloading.checking => reloading.steps.deadline(),
            Phase::Reloading(_) | Phase::Initial | Phase::Running | Phase::Stopping(_) => None,
        };
        let trials = self.slots.iter().filter_map(|slot| self.proven_at(slot));
        members
            .chain(slots)
            .chain(reload)
            .chain(trials)
            .chain(self.replacement_due())
            .chain(self.next_start(now))
            .min()
    }

    /// We have not looked for `late`: stopped, or with the whole machine. Nobody is late because we were,
    /// and nobody has passed a trial by that.
    pub fn put_off(&mut self, late: Duration) {
        if let Phase::Reloading(reloading) = &mut self.phase {
            reloading.steps.put_off(late);
        }
        self.put_off_replacement(late);
        for member in self.members.values_mut() {
            if member.held && member.state == State::Serving {
                member.ready_at = member.ready_at.map(|at| at + late);
            }
            if member.state != State::Stuck {
                member.until = member.until.map(|at| at + late);
            }
        }
    }

    fn of_generations_that_drain(&self) -> BTreeSet<u32> {
        self.members
            .values()
            .filter(|member| member.state == State::Draining && !member.aborted)
            .map(|member| member.generation)
            .filter(|number| *number != self.generation)
            .collect()
    }

    /// Of too many generations that drain, the oldest has had its time.
    fn limit_draining(&mut self, now: Instant) {
        let old = self.of_generations_that_drain();
        let Some(oldest) = old.first().filter(|_| old.len() > MOST_DRAINING) else {
            return;
        };
        let ids: Vec<u64> = self
            .members
            .values()
            .filter(|member| member.state == State::Draining && member.generation == *oldest)
            .map(|member| member.id)
            .collect();
        for id in ids {
            let Some(member) = self.members.get_mut(&id) else {
                continue;
            };
            let error = format!("{MOST_DRAINING} newer generations are draining, too");
            member.cause = Some(error.clone());
            member.by = Some(By::StopTimeout);
            let mut fields = member.fields();
            fields.push(("error", error.into()));
            self.say(Level::Warning, events::WORKER_KILLED, fields);
            self.kill(id, now);
        }
    }
}

/// Lines in one, for an event: the end of them, which tells most.
fn in_one_line(lines: &[String]) -> Option<String> {
    let text = lines.join(" | ");
    if text.is_empty() {
        return None;
    }
    // An event line has 4096 bytes for everything, and the end of a report tells more than its start.
    let mut from = text.len().saturating_sub(2500);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    Some(text[from..].to_owned())
}

#[cfg(test)]
mod sim;
