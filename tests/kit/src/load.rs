//! Load, as clients put it: over connections that are kept, and over fresh ones.

use crate::http::{self, Connection, Failure};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A kept connection on which nothing was asked for so long is not used again. A server may close an idle one at
/// any moment, also just when a request is on its way to it (RFC 9112, 9.3.1): node does after five seconds, and
/// a worker that drains after two (idle in bins/spawnwork/src/node/drain.cjs; less with a shorter --stop-timeout).
/// On a machine that is busy enough a client is kept from its next request for longer than that, and what fails
/// then is in nobody's hands.
const STALE: Duration = Duration::from_secs(1);

/// What the clients do.
#[derive(Clone, Debug)]
pub struct Options {
    /// `HOST:PORT` or `unix:PATH`.
    pub address: String,
    /// Clients that keep their connection.
    pub keep_alive: usize,
    /// Clients that make a new one for each request.
    pub fresh: usize,
    /// Asked for in turn.
    pub paths: Vec<&'static str>,
    /// A body is right when it begins with this. Its second word says who served.
    pub expect: &'static str,
    /// For each step of a request.
    pub timeout: Duration,
}

/// What they saw.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// All requests.
    pub requests: u64,
    /// The failures, each by its kind.
    pub failed: BTreeMap<Failure, u64>,
    /// Who answered how many.
    pub served: BTreeMap<String, u64>,
    /// Failures on connections that had served before: their kind, and who had answered on them.
    pub broken: Vec<(Failure, String)>,
    /// How long each took.
    pub took: Vec<Duration>,
}

impl Tally {
    /// All failures.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Those of a kind.
    #[must_use]
    pub fn of(&self, kind: Failure) -> u64 {
        self.failed.get(&kind).copied().unwrap_or(0)
    }

    /// The failures that the death of the worker `pid` does not explain: what it had in hand was broken
    /// off or not answered, nothing was refused, and connections of others went on.
    #[must_use]
    pub fn not_in_hands_of(&self, pid: &str) -> u64 {
        let own = |kind: &Failure| matches!(kind, Failure::Reset | Failure::Empty);
        let foreign = self
            .broken
            .iter()
            .filter(|(kind, who)| own(kind) && who != pid)
            .count() as u64;
        let others: u64 = self
            .failed
            .iter()
            .filter(|(kind, _)| !own(kind))
            .map(|(_, count)| count)
            .sum();
        foreign + others
    }

    /// The time that `part` (0 to 1) of the requests stayed below.
    #[must_use]
    pub fn quantile(&self, part: f64) -> Duration {
        let mut all = self.took.clone();
        all.sort();
        let index = ((all.len() as f64 - 1.0) * part).round() as usize;
        all.get(index).copied().unwrap_or_default()
    }

    fn add(&mut self, other: Tally) {
        self.requests += other.requests;
        self.took.extend(other.took);
        self.broken.extend(other.broken);
        for (kind, count) in other.failed {
            *self.failed.entry(kind).or_default() += count;
        }
        for (who, count) in other.served {
            *self.served.entry(who).or_default() += count;
        }
    }
}

/// Clients at work.
#[derive(Debug)]
pub struct Load {
    over: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Tally>>,
}

impl Load {
    /// Starts them, at a pace at which some request is in flight at each moment, and the machine has time for
    /// what is tested: as many requests as it can do would take all of it.
    #[must_use]
    pub fn start(options: &Options) -> Load {
        Load::paced(options, Duration::from_millis(10))
    }

    /// Starts them; each lets `pause` pass between two requests. Without one, they ask as fast as they can.
    #[must_use]
    pub fn paced(options: &Options, pause: Duration) -> Load {
        let over = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let clients = (0..options.keep_alive + options.fresh)
            .map(|number| {
                let (options, over, answered) =
                    (options.clone(), Arc::clone(&over), Arc::clone(&answered));
                std::thread::Builder::new()
                    .stack_size(256 * 1024)
                    .spawn(move || client(&options, number, pause, &over, &answered))
                    .unwrap()
            })
            .collect();
        Load {
            over,
            answered,
            clients,
        }
    }

    /// Waits until `count` more requests were answered, so that a step of a test had load on it.
    pub fn answer(&self, count: u64) {
        let target = self.answered.load(Ordering::Relaxed) + count;
        crate::eventually("answers under load", || {
            (self.answered.load(Ordering::Relaxed) >= target).then_some(())
        });
    }

    /// Lets each client finish its request, and adds up.
    #[must_use]
    pub fn stop(self) -> Tally {
        self.over.store(true, Ordering::Relaxed);
        let mut tally = Tally::default();
        for client in self.clients {
            tally.add(client.join().unwrap());
        }
        tally
    }
}

fn client(
    options: &Options,
    number: usize,
    pause: Duration,
    over: &AtomicBool,
    answered: &AtomicU64,
) -> Tally {
    let keep = number < options.keep_alive;
    let mut tally = Tally::default();
    let mut kept: Option<(Connection, String)> = None;
    let mut last = Instant::now();
    let mut turn = number;
    while !over.load(Ordering::Relaxed) {
        if !pause.is_zero() && tally.requests > 0 {
            std::thread::sleep(pause);
        }
        let path = options.paths[turn % options.paths.len()];
        turn += 1;
        let begun = Instant::now();
        tally.requests += 1;
        kept = kept.filter(|_| last.elapsed() < STALE);
        let before = kept.as_ref().map(|(_, who)| who.clone());
        let result = one(options, path, keep, &mut kept);
        last = Instant::now();
        if let (Err(kind), Some(who)) = (&result, before) {
            tally.broken.push((*kind, who));
        }
        match result {
            Ok(body) if body.starts_with(options.expect) => {
                tally.took.push(begun.elapsed());
                let who = who_of(&body);
                *tally.served.entry(who).or_default() += 1;
                answered.fetch_add(1, Ordering::Relaxed);
            }
            Ok(_) => *tally.failed.entry(Failure::Wrong).or_default() += 1,
            Err(kind) => {
                *tally.failed.entry(kind).or_default() += 1;
                // A service that is gone is not asked as fast as the machine can.
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
    tally
}

fn who_of(body: &str) -> String {
    body.split_whitespace().nth(1).unwrap_or("-").to_owned()
}

fn one(
    options: &Options,
    path: &str,
    keep: bool,
    kept: &mut Option<(Connection, String)>,
) -> Result<String, Failure> {
    let mut connection = match kept.take() {
        Some((connection, _)) => connection,
        None => http::connect(&options.address, options.timeout)?,
    };
    // No second try on a kept connection, though RFC 9112 9.3.1 allows one: a drain does without.
    let reply = http::exchange(&mut connection, path, keep)?;
    if keep && reply.keeps {
        *kept = Some((connection, who_of(&reply.body)));
    }
    if reply.status == 200 {
        Ok(reply.body)
    } else {
        Err(Failure::Wrong)
    }
}
