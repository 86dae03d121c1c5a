//! The pool under random events, with workers that are made up: whatever happens in whatever order, no
//! slot has two masters, no decision of ours takes a server away that has no successor, everybody is
//! reaped, nobody is signalled without end, and in the end all serve or all are gone.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::deaths::Oom;
use proptest::prelude::*;

const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// What a release makes of its workers.
#[derive(Clone, Copy, Debug)]
enum Quality {
    Good,
    /// Ends before it is ready, with this status.
    Crash(i32),
    /// Is never ready.
    Hang,
    /// Is ready, and dies so many milliseconds later.
    Late(u64),
}

/// How its workers leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manners {
    /// Some time after they were asked.
    Polite(u64),
    /// Not before they are killed.
    Deaf,
    /// Not even then: they hang in the kernel until that lets go.
    Frozen,
}

#[derive(Clone, Debug)]
struct Process {
    manners: Manners,
    rss: u64,
    settles_at: Option<Instant>,
    ready_at: Option<Instant>,
    late_at: Option<Instant>,
    ends_at: Option<(Instant, End)>,
    frozen: bool,
    signals: [u32; 3],
}

#[derive(Clone, Debug)]
enum Op {
    Pass(u64),
    Reload(Quality, Manners),
    Die(usize),
    Hang(usize),
    Resize(usize),
    Restart(usize),
    RestartAll,
    Clear,
    /// The next so many starts fail.
    NoProcesses(usize),
    Check(bool),
    Probe(bool),
    Grow(usize),
    Thaw,
    PutOff(u64),
    Stop,
    Quit,
}

struct World {
    pool: Pool,
    now: Instant,
    processes: BTreeMap<u64, Process>,
    releases: BTreeMap<u32, (Quality, Manners)>,
    no_processes: usize,
    checking: Option<u32>,
    probing: Option<u64>,
    /// Those that may accept, now or as soon as they listen.
    open_to_all: BTreeSet<u64>,
    /// Reloads whose result is still to come.
    open: BTreeSet<u32>,
    queued: Option<(Quality, Manners)>,
    most_slots: usize,
    started: usize,
    reaped: usize,
    count: u64,
    /// All that was due is done.
    at_rest: bool,
}

impl World {
    fn new(workers: usize, policy: Policy) -> World {
        let now = Instant::now();
        let mut world = World {
            pool: Pool::new(workers, policy, 7, now),
            now,
            processes: BTreeMap::new(),
            releases: BTreeMap::from([(1, (Quality::Good, Manners::Polite(100)))]),
            no_processes: 0,
            checking: None,
            probing: None,
            open_to_all: BTreeSet::new(),
            open: BTreeSet::new(),
            queued: None,
            most_slots: workers,
            started: 0,
            reaped: 0,
            count: 0,
            at_rest: false,
        };
        world.turn();
        world
    }

    /// A turn of the loop: what is due, and all that follows.
    fn turn(&mut self) {
        let now = self.now;
        loop {
            let mut quiet = true;
            let ids: Vec<u64> = self.processes.keys().copied().collect();
            for id in ids {
                let process = &mut self.processes.get_mut(&id).unwrap();
                if let Some((at, end)) = process.ends_at.filter(|(at, _)| *at <= now) {
                    let _ = at;
                    self.processes.remove(&id);
                    self.reaped += 1;
                    let ended = Ended {
                        end: Some(end),
                        oom: Oom::No,
                        words: vec!["said".to_owned()],
                        unstarted: None,
                    };
                    self.call(true, |pool| pool.ended(id, ended, now));
                    quiet = false;
                } else if process.settles_at.is_some_and(|at| at <= now) {
                    process.settles_at = None;
                    self.call(false, |pool| pool.settled(id));
                    quiet = false;
                } else if process.ready_at.is_some_and(|at| at <= now) {
                    process.ready_at = None;
                    process.late_at = None;
                    self.call(false, |pool| pool.ready(id, now));
                    quiet = false;
                } else if process.late_at.is_some_and(|at| at <= now) {
                    process.late_at = None;
                    self.call(false, |pool| pool.late(id, "not ready".to_owned(), now));
                    quiet = false;
                }
            }
            self.call(false, |pool| pool.on_time(now));
            let rss: BTreeMap<i32, u64> = self
                .processes
                .iter()
                .map(|(id, process)| (*id as i32, process.rss))
                .collect();
            self.call(false, |pool| {
                pool.recycle(&mut |pid| rss.get(&pid).copied(), now);
            });
            if quiet {
                self.at_rest = true;
                self.check();
                self.at_rest = false;
                return;
            }
        }
    }

    /// One event for the pool, its effects, and what must hold after it. Only the end of a worker, or
    /// what the operator asks for, may leave fewer slots that serve.
    fn call(&mut self, may_lose: bool, event: impl FnOnce(&mut Pool)) {
        let (before, slots) = (self.pool.serving(), self.pool.slots.len());
        let was_stopping = self.pool.stopping();
        event(&mut self.pool);
        while let Some(effect) = self.pool.next_effect() {
            self.perform(effect, was_stopping);
        }
        let may_lose = may_lose
            || self.pool.stopping()
            || self.pool.slots.len() < slots
            || matches!(self.pool.policy.surge, Surge::Count(0));
        assert!(
            may_lose || self.pool.serving() >= before,
            "{} of {before} serve",
            self.pool.serving()
        );
        self.check();
    }

    fn perform(&mut self, effect: Effect, was_stopping: bool) {
        match effect {
            Effect::Start {
                id,
                generation,
                beginning,
                ..
            } => {
                assert!(!was_stopping, "a start after the request to stop");
                if beginning == Beginning::Open {
                    self.open_to_all.insert(id);
                }
                if self.no_processes > 0 {
                    self.no_processes -= 1;
                    self.pool.start_failed(id, "fork: EAGAIN", self.now);
                    return;
                }
                self.count += 1;
                self.started += 1;
                // Times differ from worker to worker, but not from run to run.
                let ms = |most: u64| Duration::from_millis(1 + self.count * 7919 % most);
                let (quality, manners) = self.releases[&generation];
                let ready = self.now + ms(900);
                let (ready_at, ends_at) = match quality {
                    Quality::Good => (Some(ready), None),
                    Quality::Crash(status) => (None, Some((ready, End::Exited(status)))),
                    Quality::Hang => (None, None),
                    Quality::Late(length) => {
                        let at = ready + Duration::from_millis(length);
                        (Some(ready), Some((at, End::Exited(1))))
                    }
                };
                let process = Process {
                    manners,
                    rss: 10,
                    // Some only have to live on, after a while.
                    settles_at: (self.count % 2 == 0).then(|| self.now + ms(300)),
                    ready_at,
                    late_at: Some(self.now + READY_TIMEOUT),
                    ends_at,
                    frozen: false,
                    signals: [0; 3],
                };
                assert!(self.processes.insert(id, process).is_none(), "an id again");
                self.pool.started(id, id as i32, self.now);
            }
            Effect::Stop(id) => self.signal(id, 0),
            Effect::Abort(id) => self.signal(id, 1),
            Effect::Kill(id) => self.signal(id, 2),
            Effect::Check(generation) => {
                assert!(self.checking.replace(generation).is_none());
            }
            Effect::DropCheck => self.checking = None,
            Effect::Probe(id) => assert!(self.probing.replace(id).is_none()),
            Effect::DropProbe => self.probing = None,
            Effect::Result(generation, ..) => {
                // That of the first generation is nobody's request.
                self.open.remove(&generation);
            }
            Effect::NoResult(_) => self.open.clear(),
            Effect::NextReload => {
                if let Some((quality, manners)) = self.queued.take() {
                    self.reload(quality, manners);
                }
            }
            Effect::Accept(id) => assert!(self.open_to_all.insert(id), "told twice"),
            Effect::Say(..)
            | Effect::Progress(..)
            | Effect::Restarted(_)
            | Effect::Outcome(_)
            | Effect::Serving
            | Effect::Tidy => {}
        }
    }

    fn signal(&mut self, id: u64, which: usize) {
        let Some(process) = self.processes.get_mut(&id) else {
            return;
        };
        process.signals[which] += 1;
        let most = [1, 1, 2][which];
        assert!(
            process.signals[which] <= most,
            "{:?} for one worker",
            process.signals
        );
        let soon = self.now + Duration::from_millis(20);
        let end = match (which, process.manners) {
            (0, Manners::Polite(ms)) => (self.now + Duration::from_millis(ms), End::Exited(0)),
            (0 | 1, Manners::Deaf) => return,
            (_, Manners::Frozen) => {
                process.frozen |= which == 2;
                return;
            }
            (1, Manners::Polite(_)) => (soon, End::Killed(6)),
            _ => (soon, End::Killed(9)),
        };
        if process.ends_at.is_none_or(|(at, _)| at > end.0) {
            process.ends_at = Some(end);
        }
    }

    fn reload(&mut self, quality: Quality, manners: Manners) {
        let asked = self.pool.ask_reload();
        match asked {
            Asked::Not(crate::control::Begun::Queued) => self.queued = Some((quality, manners)),
            Asked::Not(_) => {}
            Asked::Begin(number) => {
                assert!(self.open.insert(number), "a generation's number again");
                self.releases.insert(number, (quality, manners));
                let now = self.now;
                self.pool.begin_reload(number, now);
            }
        }
    }

    fn nth(&self, n: usize) -> Option<u64> {
        let ids: Vec<u64> = self.processes.keys().copied().collect();
        (!ids.is_empty()).then(|| ids[n % ids.len()])
    }

    fn apply(&mut self, op: Op) {
        let now = self.now;
        match op {
            Op::Pass(ms) => self.pass(Duration::from_millis(ms)),
            Op::Reload(quality, manners) => {
                let (before, initial) = (
                    self.pool.serving(),
                    matches!(self.pool.phase, Phase::Initial),
                );
                self.reload(quality, manners);
                self.call(true, |_| {});
                let first = matches!(self.pool.policy.surge, Surge::Count(0));
                assert!(initial || first || self.pool.stopping() || self.pool.serving() >= before);
            }
            Op::Die(n) => {
                if let Some(id) = self.nth(n) {
                    let process = self.processes.get_mut(&id).unwrap();
                    if !process.frozen {
                        process.ends_at = Some((now, End::Killed(9)));
                    }
                }
            }
            Op::Hang(n) => {
                if let Some(id) = self.nth(n) {
                    self.call(true, |pool| pool.abort(id, "hung".to_owned(), now));
                }
            }
            Op::Resize(count) => {
                self.most_slots = self.most_slots.max(count);
                self.call(true, |pool| pool.resize(count, now));
            }
            Op::Restart(slot) => {
                let slot = slot % self.pool.slots.len();
                self.call(false, |pool| pool.restart(slot..slot + 1));
            }
            Op::RestartAll => {
                let all = 0..self.pool.slots.len();
                self.call(false, |pool| pool.restart(all));
            }
            Op::Clear => self.call(false, Pool::clear),
            Op::NoProcesses(count) => self.no_processes = count,
            Op::Check(good) => {
                if let Some(number) = self.checking.take() {
                    self.call(false, |pool| match good {
                        true => pool.check_passed(number, Duration::ZERO, now),
                        false => pool.check_failed(number, "no", Vec::new(), now),
                    });
                }
            }
            Op::Probe(good) => {
                if let Some(id) = self.probing.take() {
                    self.call(false, |pool| match good {
                        true => pool.probe_passed(200, Duration::ZERO, now),
                        false => pool.probe_failed(id, "no", Vec::new(), now),
                    });
                }
            }
            Op::Grow(n) => {
                if let Some(id) = self.nth(n) {
                    self.processes.get_mut(&id).unwrap().rss = 1000;
                }
            }
            Op::Thaw => self.thaw(),
            Op::PutOff(ms) => {
                let late = Duration::from_millis(ms);
                self.now += late;
                for process in self.processes.values_mut() {
                    process.late_at = process.late_at.map(|at| at + late);
                }
                self.call(false, |pool| pool.put_off(late));
            }
            Op::Stop => self.call(true, |pool| pool.stop(Exit::Ok, now)),
            Op::Quit => self.call(true, |pool| {
                pool.stop(Exit::Ok, now);
                pool.kill_all("quit", now);
            }),
        }
        self.turn();
    }

    fn thaw(&mut self) {
        for process in self.processes.values_mut() {
            if std::mem::take(&mut process.frozen) {
                process.ends_at = Some((self.now, End::Killed(9)));
            }
            if process.manners == Manners::Frozen {
                process.manners = Manners::Deaf;
            }
        }
    }

    fn next_event(&self) -> Option<Instant> {
        let processes = self.processes.values().flat_map(|process| {
            let ends = process.ends_at.map(|(at, _)| at);
            [ends, process.settles_at, process.ready_at, process.late_at]
        });
        let due = processes.flatten().min();
        let pool = [self.pool.deadline(self.now), self.pool.recycle_deadline()];
        pool.into_iter().chain([due]).flatten().min()
    }

    /// Time passes, from one event or deadline to the next, as the loop would wake.
    fn pass(&mut self, length: Duration) {
        let end = self.now + length;
        let mut at_once = 0;
        loop {
            match self.next_event().filter(|at| *at <= end) {
                Some(at) if at > self.now => {
                    self.now = at;
                    at_once = 0;
                }
                Some(_) => {
                    at_once += 1;
                    assert!(at_once < 100, "the loop spins: {:?}", self.pool);
                }
                None => {
                    self.now = end;
                    return;
                }
            }
            self.turn();
        }
    }

    fn check(&self) {
        let pool = &self.pool;
        let mut placed = BTreeSet::new();
        for (index, slot) in pool.slots.iter().enumerate() {
            for id in [slot.current, slot.next].into_iter().flatten() {
                assert!(placed.insert(id), "{id} has two places");
                let member = pool
                    .members
                    .get(&id)
                    .expect("somebody who is gone has a slot");
                assert_eq!(member.slot, index);
                assert_ne!(member.state, State::Stuck);
            }
            assert!(
                slot.next.is_none() || !matches!(pool.phase, Phase::Initial | Phase::Stopping(_))
            );
            assert!(
                slot.current.is_none() || slot.wait == Wait::Nothing,
                "{slot:?}"
            );
        }
        for member in pool.members.values() {
            assert!(
                !member.stays() || placed.contains(&member.id),
                "forgotten: {member:?}"
            );
            assert!(
                self.processes.contains_key(&member.id),
                "a ghost: {member:?}"
            );
        }
        for id in self.processes.keys() {
            assert!(pool.members.contains_key(id), "{id} would never be reaped");
        }
        let there = pool
            .members
            .values()
            .filter(|one| one.stays() || (one.aborted && one.state != State::Stuck))
            .count();
        assert!(
            there <= 2 * self.most_slots,
            "{there} workers for {} slots",
            self.most_slots
        );
        assert_eq!(self.started, self.reaped + self.processes.len());
        for member in pool.members.values() {
            assert_ne!(member.held, self.open_to_all.contains(&member.id));
        }
        // Nobody waits for clients while there is none who has them.
        let ready: Vec<&Member> = pool
            .slots
            .iter()
            .filter_map(|slot| pool.members.get(&slot.current?))
            .filter(|one| one.state == State::Serving)
            .collect();
        if self.at_rest && !ready.is_empty() {
            assert!(ready.iter().any(|one| !one.held), "{ready:?}");
        }
    }

    /// From now on all is well: everybody serves soon, or it had been given up before.
    fn comes_to_rest(&mut self) {
        for release in self.releases.values_mut() {
            *release = (Quality::Good, Manners::Polite(100));
        }
        self.queued = self.queued.map(|_| (Quality::Good, Manners::Polite(100)));
        self.no_processes = 0;
        self.thaw();
        for process in self.processes.values_mut() {
            process.rss = 10;
            if process.ready_at.is_none() && process.late_at.is_some() {
                process.ready_at = Some(self.now);
            }
        }
        for _ in 0..40 {
            self.pass(Duration::from_secs(10));
            self.apply(Op::Check(true));
            self.apply(Op::Probe(true));
        }
        if self.pool.stopping() {
            assert!(self.pool.end(self.now).is_some(), "{:?}", self.pool);
            assert!(self.processes.is_empty());
        } else {
            let all = self.pool.slots.len();
            assert!(
                matches!(self.pool.phase, Phase::Running) && self.pool.serving() == all,
                "{:?}",
                self.pool
            );
            let old = |slot: &&Slot| slot.generation != self.pool.generation;
            assert_eq!(
                self.pool.slots.iter().find(old).map(|slot| slot.generation),
                None
            );
            // Beside them at most one that is to replace one of them.
            let stay = self.pool.members.values().filter(|one| one.stays());
            assert!(stay.count() <= all + 1, "{:?}", self.pool);
        }
        assert!(self.open.is_empty(), "no result for {:?}", self.open);
    }

    /// And at the end nobody is left whom a signal can reach.
    fn stops(&mut self) {
        self.apply(Op::Stop);
        let limit = self.pool.policy.stop_timeout + STUCK + 4 * KILLED;
        self.pass(limit);
        assert!(self.pool.end(self.now).is_some(), "{:?}", self.pool);
        assert!(self.processes.values().all(|process| process.frozen));
        let before = self.started;
        self.thaw();
        self.pass(Duration::from_secs(1));
        assert!(self.processes.is_empty() && self.started == before);
    }
}

fn quality() -> impl Strategy<Value = Quality> {
    prop_oneof![
        3 => Just(Quality::Good),
        1 => (0i32..3).prop_map(Quality::Crash),
        1 => Just(Quality::Hang),
        2 => (0u64..9000).prop_map(Quality::Late),
    ]
}

fn manners() -> impl Strategy<Value = Manners> {
    prop_oneof![
        3 => (0u64..8000).prop_map(Manners::Polite),
        1 => Just(Manners::Deaf),
        1 => Just(Manners::Frozen),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => (0u64..9000).prop_map(Op::Pass),
        3 => (0u64..200).prop_map(Op::Pass),
        6 => (quality(), manners()).prop_map(|(quality, manners)| Op::Reload(quality, manners)),
        5 => (0usize..20).prop_map(Op::Die),
        2 => (0usize..20).prop_map(Op::Hang),
        2 => (1usize..7).prop_map(Op::Resize),
        1 => (0usize..7).prop_map(Op::Restart),
        1 => Just(Op::RestartAll),
        1 => Just(Op::Clear),
        1 => (0usize..5).prop_map(Op::NoProcesses),
        4 => any::<bool>().prop_map(Op::Check),
        4 => any::<bool>().prop_map(Op::Probe),
        2 => (0usize..20).prop_map(Op::Grow),
        1 => Just(Op::Thaw),
        1 => (250u64..90_000).prop_map(Op::PutOff),
    ]
}

fn policy() -> impl Strategy<Value = Policy> {
    let surge = prop_oneof![
        3 => Just(Surge::Percent(100)),
        1 => Just(Surge::Percent(40)),
        1 => (0usize..3).prop_map(Surge::Count),
    ];
    let limits = (
        proptest::option::of(Just(500u64)),
        proptest::option::of(Just(Duration::from_secs(60))),
        prop_oneof![Just(0u32), Just(2), Just(5)],
    );
    (surge, 1usize..5, any::<[bool; 3]>(), limits).prop_map(
        |(surge, parallel, [check, probe, holds], (max_rss, max_lifetime, count))| Policy {
            surge,
            parallel,
            probation: Duration::from_secs(3),
            check,
            probe,
            holds,
            shares: holds && !probe,
            stop_timeout: Duration::from_secs(6),
            respawn: respawn::Policy {
                count,
                per: Duration::from_secs(60),
                filter: Vec::new(),
                min: Duration::from_millis(100),
                max: Duration::from_secs(30),
            },
            on_limit: OnLimit::Hold,
            max_rss,
            max_lifetime,
            jitter: 10,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_it_comes_to_rest(
        workers in 1usize..6, policy in policy(), ops in proptest::collection::vec(op(), 0..60),
    ) {
        let mut world = World::new(workers, policy);
        for op in ops {
            world.apply(op);
        }
        world.comes_to_rest();
    }

    #[test]
    fn whatever_happens_it_can_be_stopped(
        workers in 1usize..6, policy in policy(), ops in proptest::collection::vec(op(), 0..60),
        quit in proptest::option::of(0u64..4000),
    ) {
        let mut world = World::new(workers, policy);
        for op in ops {
            world.apply(op);
        }
        if let Some(ms) = quit {
            world.apply(Op::Stop);
            world.apply(Op::Pass(ms));
            world.apply(Op::Quit);
        }
        world.stops();
    }
}

fn calm(workers: usize) -> World {
    let policy = Policy {
        surge: Surge::Percent(100),
        parallel: 8,
        probation: Duration::from_secs(3),
        check: false,
        probe: false,
        holds: true,
        shares: true,
        stop_timeout: Duration::from_secs(6),
        respawn: respawn::Policy {
            count: 5,
            per: Duration::from_secs(60),
            filter: Vec::new(),
            min: Duration::from_millis(100),
            max: Duration::from_secs(30),
        },
        on_limit: OnLimit::Hold,
        max_rss: None,
        max_lifetime: None,
        jitter: 10,
    };
    let mut world = World::new(workers, policy);
    world.apply(Op::Pass(5000));
    world
}

#[test]
fn a_worker_that_hangs_in_the_kernel_is_replaced_and_marked() {
    let mut world = calm(2);
    world
        .releases
        .insert(1, (Quality::Good, Manners::Polite(0)));
    let id = world.pool.slots[0].current.unwrap();
    world.processes.get_mut(&id).unwrap().manners = Manners::Frozen;
    world.apply(Op::Hang(0));
    // SIGABRT has five seconds, two SIGKILLs one each.
    world.apply(Op::Pass(6900));
    assert_eq!(world.pool.state(id), Some(State::Killing));
    assert_eq!(world.pool.slots[0].current, Some(id));
    world.apply(Op::Pass(2000));
    assert_eq!(world.pool.state(id), Some(State::Stuck));
    assert_eq!(world.pool.serving(), 2);
    assert_ne!(world.pool.slots[0].current, Some(id));
    // It ends after all, and that is no death of the slot's new worker.
    let restarts = world.pool.slots[0].restarts;
    world.apply(Op::Thaw);
    assert_eq!(world.pool.state(id), None);
    assert_eq!(
        (world.pool.serving(), world.pool.slots[0].restarts),
        (2, restarts)
    );
}

#[test]
fn a_slot_whose_workers_all_hang_in_the_kernel_gets_no_more_than_three_of_them() {
    let mut world = calm(2);
    world.releases.insert(1, (Quality::Hang, Manners::Frozen));
    world.apply(Op::Die(0));
    world.apply(Op::Pass(900_000));
    assert_eq!(world.pool.stuck().count(), 3);
    assert_eq!(world.pool.serving(), 1);
    world.comes_to_rest();
}

#[test]
fn the_end_waits_five_seconds_for_those_that_hang_and_no_longer() {
    let mut world = calm(3);
    let id = world.pool.slots[1].current.unwrap();
    world.processes.get_mut(&id).unwrap().manners = Manners::Frozen;
    world.apply(Op::Stop);
    // The limit to stop, two SIGKILLs, and then the five seconds.
    world.apply(Op::Pass(6000 + 2000 + 4900));
    assert_eq!(world.pool.end(world.now), None);
    world.apply(Op::Pass(200));
    assert_eq!(world.pool.end(world.now), Some(Exit::Ok));
}

#[test]
fn a_reload_whose_canary_hangs_in_the_kernel_fails_like_any_other() {
    let mut world = calm(2);
    world.apply(Op::Reload(Quality::Hang, Manners::Frozen));
    world.apply(Op::Pass(10_000 + 2_100));
    assert!(matches!(world.pool.phase, Phase::Running));
    assert_eq!(
        world.pool.frozen.as_ref().map(|frozen| frozen.generation),
        Some(2)
    );
    assert_eq!(world.pool.serving(), 2);
}

#[test]
fn files_that_went_bad_under_a_generation_take_no_place_and_no_client() {
    for length in [0, 60, 2900] {
        let mut world = calm(3);
        let before: Vec<Option<u64>> = world.pool.slots.iter().map(|slot| slot.current).collect();
        world
            .releases
            .insert(1, (Quality::Late(length), Manners::Polite(0)));
        let good = world.open_to_all.clone();
        world.apply(Op::RestartAll);
        world.apply(Op::Pass(20_000));
        world.apply(Op::Resize(4));
        world.apply(Op::Pass(120_000));
        let after: Vec<Option<u64>> = world.pool.slots[..3]
            .iter()
            .map(|slot| slot.current)
            .collect();
        assert_eq!(before, after);
        assert_eq!(world.pool.serving(), 3);
        assert!(world.started > 8, "they were tried: {}", world.started);
        assert_eq!(world.open_to_all, good);
        // Good again: the new one serves, once it is through.
        world
            .releases
            .insert(1, (Quality::Good, Manners::Polite(0)));
        world.apply(Op::Clear);
        world.apply(Op::Pass(40_000));
        assert_eq!(world.pool.serving(), 4);
    }
}

#[test]
fn a_replacement_has_not_lived_through_a_pause_of_the_whole_machine() {
    let mut world = calm(1);
    let old = world.pool.slots[0].current;
    world
        .releases
        .insert(1, (Quality::Late(2900), Manners::Polite(0)));
    world.apply(Op::Restart(0));
    world.apply(Op::Pass(2000));
    assert!(world.pool.slots[0].next.is_some());
    for process in world.processes.values_mut() {
        process.ends_at = process
            .ends_at
            .map(|(at, end)| (at + Duration::from_secs(60), end));
    }
    world.apply(Op::PutOff(60_000));
    world.apply(Op::Pass(5000));
    assert_eq!(world.pool.slots[0].current, old);
}

#[test]
fn a_worker_on_trial_has_clients_at_once_when_nobody_else_has() {
    let mut world = calm(1);
    world.apply(Op::Resize(2));
    world.apply(Op::Pass(1000));
    let new = world.pool.slots[1].current.unwrap();
    assert_eq!(world.pool.state(new), Some(State::Serving));
    assert!(!world.open_to_all.contains(&new));
    world.apply(Op::Die(0));
    assert!(world.open_to_all.contains(&new));
}
