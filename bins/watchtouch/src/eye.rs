//! One file, looked at by a thread of its own, for a look may hang in the kernel for as long as a file
//! server is away. It tells the loop what it sees, and only when that is news.

use crate::notice::{Notices, Outcome, Poke, lock};
use crate::place::{Class, Places};
use crate::signature::{Ground, Seen};
use crate::walk::{Spot, Step, walk};
use common::error::describe;
use nix::sys::eventfd::EventFd;
use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Between two looks at what lies on an overlay, whose layers may be changed behind it.
const LAYERED: Duration = Duration::from_secs(5);
/// After so long inotify is tried again.
const AGAIN: Duration = Duration::from_secs(60);
/// Looks until the watches stand: each may find the way changed since the one before.
const TURNS: u32 = 8;
/// News of one file that the loop has not taken yet; beyond that the last one is replaced.
const WAITING: usize = 16;
/// A look needs little.
const STACK: usize = 256 << 10;

/// How a file is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By inotify, or by looking where that says nothing.
    Auto,
    /// `--poll`
    Poll,
    /// `--no-poll`
    NoPoll,
}

/// What led to a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// inotify.
    Inotify,
    /// The time for it had come.
    Poll,
    /// USR1.
    Signal,
    /// `--run-at-start`, `--since`.
    Start,
}

impl Via {
    /// In one word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Via::Inotify => "inotify",
            Via::Poll => "poll",
            Via::Signal => "signal",
            Via::Start => "start",
        }
    }
}

/// How a look went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Which file.
    pub file: usize,
    /// What stands there, or why that cannot be said: errno, and in words.
    pub seen: Result<Seen, (i32, String)>,
    /// Its type and permissions.
    pub mode: u32,
    /// Whether something was mounted on the way.
    pub ground: Ground,
    /// What led to the look.
    pub via: Via,
    /// The kind of file system.
    pub class: Class,
    /// Its links lead in a circle.
    pub circle: bool,
    /// Why inotify cannot be had, if so.
    pub degraded: Option<String>,
    /// [`Handle::glances`] when the look began.
    pub glances: u64,
}

/// What the eyes tell, and the descriptor that says there is something.
#[derive(Debug)]
pub struct Inbox {
    news: Mutex<VecDeque<Sighting>>,
    bell: EventFd,
}

impl Inbox {
    /// With the descriptor to wait for.
    #[must_use]
    pub fn new(bell: EventFd) -> Inbox {
        Inbox {
            news: Mutex::default(),
            bell,
        }
    }

    /// To be waited for.
    #[must_use]
    pub fn bell(&self) -> &EventFd {
        &self.bell
    }

    /// Nothing is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        lock(&self.news).is_empty()
    }

    /// All that is there, in order.
    pub fn take(&self) -> Vec<Sighting> {
        let _ = self.bell.read();
        lock(&self.news).drain(..).collect()
    }

    fn put(&self, mut sighting: Sighting) {
        let mut news = lock(&self.news);
        let of_file = |other: &&Sighting| other.file == sighting.file;
        if news.iter().filter(of_file).count() >= WAITING {
            let last = news.iter().rposition(|other| other.file == sighting.file);
            if let Some(old) = last.and_then(|at| news.remove(at)) {
                if old.ground == Ground::Moved {
                    sighting.ground = Ground::Moved;
                }
            }
        }
        news.push_back(sighting);
        drop(news);
        let _ = self.bell.write(1);
    }
}

/// What the loop holds of an eye.
#[derive(Debug, Default)]
pub struct Handle {
    /// Wakes it.
    pub poke: Arc<Poke>,
    /// Since when it looks, in ms since `Eye::born`, and one; 0: it does not.
    pub busy: Arc<AtomicU64>,
    /// How often the loop has looked itself. What an eye saw before or during that may be older than what
    /// the loop saw.
    pub glances: Arc<AtomicU64>,
    /// Where the loop may look itself, by the last look.
    pub spot: Arc<Mutex<Option<Spot>>>,
}

impl Handle {
    /// The loop's own look, without waiting for the eye or anything else, for a touch that inotify has told
    /// of: a wake-up of another thread takes longer than all that is to be done. `None`: only the eye can
    /// say.
    #[must_use]
    pub fn glance(&self) -> Option<Seen> {
        let spot = lock(&self.spot).clone()?;
        let seen = spot.glance();
        self.glances.fetch_add(1, Ordering::SeqCst);
        seen.map(Seen::There)
    }
}

/// What an eye needs.
#[derive(Debug)]
pub struct Eye {
    /// Which file.
    pub file: usize,
    /// Its path, absolute.
    pub path: PathBuf,
    /// How.
    pub way: Way,
    /// `--interval`
    pub interval: Duration,
    /// `--safety`
    pub safety: Option<Duration>,
    /// inotify.
    pub notices: Arc<Notices>,
    /// Where the news go.
    pub inbox: Arc<Inbox>,
    /// See [`Handle`].
    pub poke: Arc<Poke>,
    /// See [`Handle`].
    pub busy: Arc<AtomicU64>,
    /// See [`Handle`].
    pub glances: Arc<AtomicU64>,
    /// See [`Handle`].
    pub spot: Arc<Mutex<Option<Spot>>>,
    /// The zero of `busy`.
    pub born: Instant,
}

/// What an eye remembers.
struct Memory {
    places: Places,
    devices: HashMap<PathBuf, u64>,
    last: Option<Sighting>,
    degraded: Option<String>,
    again: Option<Instant>,
    class: Class,
}

impl Eye {
    /// Opens it; it looks at once, and for as long as the program runs.
    ///
    /// # Errors
    /// EAGAIN: no further thread.
    pub fn open(self) -> std::io::Result<()> {
        let name = format!("eye-{}", self.file);
        let thread = std::thread::Builder::new().name(name).stack_size(STACK);
        thread.spawn(move || self.look_on()).map(|_| ())
    }

    fn look_on(self) {
        let mut memory = Memory {
            places: Places::default(),
            devices: HashMap::new(),
            last: None,
            degraded: None,
            again: None,
            class: Class::Remote,
        };
        let (mut via, mut rearm, mut forced) = (Via::Poll, false, false);
        // Of many hosts on one file server each looks at another moment.
        let mut phase = chance();
        loop {
            let began = Instant::now();
            let since = self.born.elapsed().as_millis() as u64 + 1;
            self.busy.store(since, Ordering::Relaxed);
            let sighting = self.look(&mut memory, via, rearm, forced);
            self.busy.store(0, Ordering::Relaxed);
            self.tell(&mut memory, sighting);
            // All that waited for a server that was away have their answer at one moment, and must not stay in step.
            // Even so the next look begins more than an interval after this one did.
            if began.elapsed() > self.interval {
                phase = chance();
            }
            let pause = self.pause(&memory);
            let pause = pause.map(|pause| pause.mul_f64(1.0 - std::mem::take(&mut phase)));
            let cause = self.poke.wait(pause.map(|pause| Instant::now() + pause));
            via = if cause.noticed {
                Via::Inotify
            } else {
                Via::Poll
            };
            // Watches of a file system that was unmounted and mounted again are dead without a word: the
            // look for safety makes all anew.
            rearm = cause.rearm || !cause.noticed;
            forced = cause.rearm;
        }
    }

    /// `None`: only when somebody says so.
    fn pause(&self, memory: &Memory) -> Option<Duration> {
        let polls = self.way == Way::Poll
            || memory.degraded.is_some()
            || (memory.class == Class::Remote && self.way == Way::Auto);
        if polls {
            Some(self.interval)
        } else if memory.class == Class::Layered && self.way == Way::Auto {
            Some(self.safety.map_or(LAYERED, |safety| safety.min(LAYERED)))
        } else {
            self.safety
        }
    }

    fn look(&self, memory: &mut Memory, via: Via, rearm: bool, forced: bool) -> Sighting {
        let glances = self.glances.load(Ordering::SeqCst);
        let mut ground = Ground::Same;
        let mut found = walk(&self.path, &mut memory.places);
        let (mut rearm, mut forced) = (rearm, forced);
        for _ in 0..TURNS {
            if moved(&memory.devices, &found.steps) {
                ground = Ground::Moved;
                // Numbers of devices are given again.
                memory.places.forget();
                found = walk(&self.path, &mut memory.places);
                (rearm, forced) = (true, true);
            }
            memory.devices = devices(&found.steps);
            let now = Instant::now();
            let wait = memory.again.is_some_and(|at| now < at) && !forced;
            if self.way == Way::Poll || wait {
                break;
            }
            let whole = found.spot.is_some();
            let steps = &found.steps;
            match self.notices.want(self.file, steps, whole, rearm, forced) {
                Outcome::Stand => {
                    (memory.degraded, memory.again) = (None, None);
                    break;
                }
                Outcome::Made => {
                    (memory.degraded, memory.again) = (None, None);
                    (rearm, forced) = (false, false);
                    found = walk(&self.path, &mut memory.places);
                }
                // When that is over is known there.
                Outcome::Noisy(why) => {
                    (memory.degraded, memory.again) = (Some(why), None);
                    break;
                }
                Outcome::Failed(why) => {
                    (memory.degraded, memory.again) = (Some(why), Some(now + AGAIN));
                    break;
                }
            }
        }
        // A file system that is not mounted for a moment may be back in the next, and inotify tells of no mount:
        // as long as the file is missing, the interval counts on.
        let there = matches!(found.seen, Ok(Seen::There(_)));
        let away = memory.last.is_some() && memory.class == Class::Remote && !there;
        memory.class = if away { Class::Remote } else { found.class };
        *lock(&self.spot) = found.spot;
        let seen = found.seen.map_err(|why| {
            let errno = why.raw_os_error().unwrap_or(0);
            (errno, describe(&why))
        });
        Sighting {
            file: self.file,
            seen,
            mode: found.mode,
            ground,
            via,
            class: found.class,
            circle: found.circle,
            degraded: memory.degraded.clone(),
            glances,
        }
    }

    fn tell(&self, memory: &mut Memory, sighting: Sighting) {
        let same = memory.last.as_ref().is_some_and(|last| {
            let now = &sighting;
            (&last.seen, &last.degraded, last.circle, last.class)
                == (&now.seen, &now.degraded, now.circle, now.class)
                // What was told before, the loop may not have believed, and have seen more since.
                && last.glances == now.glances
                && now.ground == Ground::Same
        });
        if !same {
            self.inbox.put(sighting.clone());
            memory.last = Some(sighting);
        }
    }
}

/// From 0 to 1, without 1.
fn chance() -> f64 {
    (common::time::random() >> 11) as f64 / (1u64 << 53) as f64
}

fn devices(steps: &[Step]) -> HashMap<PathBuf, u64> {
    let device = |step: &Step| (step.directory.clone(), step.attributes.dev);
    steps.iter().map(device).collect()
}

/// A directory that was on the way before is on another device now.
fn moved(before: &HashMap<PathBuf, u64>, steps: &[Step]) -> bool {
    steps.iter().any(|step| {
        let before = before.get(&step.directory);
        before.is_some_and(|device| *device != step.attributes.dev)
    })
}
