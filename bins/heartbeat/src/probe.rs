//! A thread for each check that goes over a socket: it may wait in a name look-up or for a peer, while
//! the loop must not. It keeps its time limit itself; one that does not, because something below it hangs
//! (a path on a dead file server, a module of the name service), is given up.

use crate::http::{Client, Trust};
use crate::outcome::{Failure, Outcome, Reason, Verdict};
use crate::url::Endpoint;
use crate::wire::{Dialogue, Family, Resolver, Run, Wire, part, talk};
use common::aside::{Aside, MOST_HUNG};
use common::error::describe;
use nix::sys::eventfd::EventFd;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

/// TLS needs the most; 8 MiB, the default, would be counted by those who look at VSZ.
const STACK: usize = 512 << 10;

/// A dialogue, and with whom.
#[derive(Debug)]
pub struct Talk {
    /// Where.
    pub endpoint: Endpoint,
    /// `-4`, `-6`
    pub family: Family,
    /// What is said.
    pub dialogue: Dialogue,
    /// For names.
    pub resolver: Resolver,
}

/// What the thread does.
#[derive(Clone, Debug)]
pub enum Probe {
    /// HTTP.
    Http(Arc<Client>),
    /// A dialogue.
    Tcp(Arc<Talk>),
}

impl Probe {
    /// One check, with what is known of it in `run`.
    #[must_use]
    pub fn check(&self, run: &Run) -> Outcome {
        match self {
            Probe::Http(client) => client.check(run),
            Probe::Tcp(talk) => talk.check(run),
        }
    }

    /// The same, with nothing in common that a thread which hangs may hold.
    fn again(&self) -> Probe {
        match self {
            Probe::Http(client) => Probe::Http(Arc::new(client.again())),
            Probe::Tcp(talk) => Probe::Tcp(talk.clone()),
        }
    }
}

impl Talk {
    fn check(&self, run: &Run) -> Outcome {
        let wire = Wire::connect(&self.endpoint, self.family, &self.resolver, run);
        let result = match wire {
            Ok(mut wire) => talk(&mut wire, &self.dialogue),
            Err(why) => {
                let fault = run.facts().fault.take();
                Err(fault.unwrap_or_else(|| Failure::new(Reason::Refused, why.to_string())))
            }
        };
        let mut outcome = Outcome::new(Verdict::Well, run.start.elapsed());
        outcome.address = run.facts().address.take();
        let ours = run.facts().ours.take();
        outcome.verdict = match (result, ours) {
            (Ok(()), _) if outcome.latency > run.limit => Verdict::Failed(run.timed_out()),
            (Ok(()), _) => Verdict::Well,
            (Err(_), Some(ours)) => Verdict::Unknown(ours),
            (Err(failure), None) => Verdict::Failed(failure),
        };
        outcome
    }
}

/// The loop's end of such a thread.
#[derive(Debug)]
pub struct Prober {
    probe: Probe,
    limit: Duration,
    aside: Aside<Run, Outcome>,
    /// What is known of the check that runs, or hung last.
    run: Run,
}

impl Prober {
    /// `limit` is that of each check. After each answer `wake` is written to.
    #[must_use]
    pub fn new(probe: Probe, limit: Duration, wake: Arc<EventFd>) -> Prober {
        Prober {
            probe,
            limit,
            aside: Aside::new("probe", STACK, wake),
            run: Run::new(limit),
        }
    }

    /// Begins a check; the one before has been answered, or given up. An answer at once is that it cannot
    /// be made.
    #[must_use]
    pub fn ask(&mut self) -> Option<Outcome> {
        let run = Run::new(self.limit);
        let probe = &self.probe;
        let asked = self.aside.ask(run.clone(), || {
            let probe = probe.clone();
            Box::new(move |run, answer| {
                let run = Run::begun(run);
                answer(probe.check(&run));
                // The verdict does not wait for the server's good-bye.
                part(&run);
            })
        });
        let why = match asked {
            Ok(()) => {
                self.run = run;
                return None;
            }
            Err(why) => why,
        };
        let verdict = if why.kind() == ErrorKind::WouldBlock {
            let phase = self.run.phase();
            Verdict::Failed(Failure::new(
                Reason::Timeout,
                format!("{MOST_HUNG} checks before it still hang ({phase})"),
            ))
        } else {
            Verdict::Unknown(format!("cannot start a thread: {}", describe(&why)))
        };
        Some(Outcome::new(verdict, Duration::ZERO))
    }

    /// The answer, if it has come.
    pub fn answer(&mut self) -> Option<Outcome> {
        self.aside.answer()
    }

    /// A check that has not kept its time limit by far is judged without its thread, and the next one has
    /// another thread.
    pub fn give_up(&mut self) -> Option<Outcome> {
        if !self.aside.open() {
            return None;
        }
        self.aside.give_up();
        self.probe = self.probe.again();
        let failure = self.run.hangs();
        Some(Outcome::new(
            Verdict::Failed(failure),
            self.run.start.elapsed(),
        ))
    }

    /// Threads that hang.
    #[must_use]
    pub fn hung(&self) -> usize {
        self.aside.hung()
    }

    /// From now on trusts what is in `trust`.
    pub fn trust(&self, trust: &Trust) {
        match &self.probe {
            Probe::Http(client) => client.trust(trust),
            Probe::Tcp(_) => {}
        }
    }
}
