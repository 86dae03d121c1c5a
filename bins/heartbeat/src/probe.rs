//! A thread for each check that goes over a socket: it may wait in a name look-up or for a peer, while
//! the loop must not. One question at a time, one answer; an eventfd wakes the loop.

use crate::http::{Client, Trust};
use crate::outcome::{Failure, Outcome, Reason, Verdict};
use crate::url::Endpoint;
use crate::wire::{Dialogue, Family, Resolver, Run, Wire, part, talk};
use common::error::{Error, Result, describe};
use nix::sys::eventfd::EventFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// TLS needs the most; 8 MiB, the default, would be counted by those who look at VSZ.
const STACK: usize = 512 << 10;

/// What the thread does.
#[derive(Debug)]
pub enum Probe {
    /// HTTP.
    Http(Box<Client>),
    /// A dialogue.
    Tcp {
        /// Where.
        endpoint: Endpoint,
        /// `-4`, `-6`
        family: Family,
        /// What is said.
        dialogue: Dialogue,
        /// `--timeout`
        timeout: Duration,
        /// For names.
        resolver: Resolver,
    },
}

impl Probe {
    fn check(&self) -> Outcome {
        match self {
            Probe::Http(client) => client.check(),
            Probe::Tcp {
                endpoint,
                family,
                dialogue,
                timeout,
                resolver,
            } => {
                let run = Run::new(*timeout);
                let result = match Wire::connect(endpoint, *family, resolver, &run) {
                    Ok(mut wire) => talk(&mut wire, dialogue),
                    Err(why) => {
                        let fault = run.facts().fault.take();
                        Err(fault.unwrap_or_else(|| Failure::new(Reason::Refused, why.to_string())))
                    }
                };
                let mut outcome = Outcome::new(Verdict::Well, run.start.elapsed());
                outcome.address = run.facts().address.take();
                let ours = run.facts().ours.take();
                outcome.verdict = match (result, ours) {
                    (Ok(()), _) if outcome.latency > *timeout => Verdict::Failed(run.timed_out()),
                    (Ok(()), _) => Verdict::Well,
                    (Err(_), Some(ours)) => Verdict::Unknown(ours),
                    (Err(failure), None) => Verdict::Failed(failure),
                };
                part(&run);
                outcome
            }
        }
    }
}

enum Question {
    Check,
    Trust(Option<Trust>),
}

/// The loop's end of such a thread.
#[derive(Debug)]
pub struct Prober {
    questions: SyncSender<Question>,
    answers: Receiver<Outcome>,
}

impl Prober {
    /// Starts the thread. After each answer it writes to `wake`.
    ///
    /// # Errors
    /// EAGAIN, ENOMEM.
    pub fn start(probe: Probe, wake: Arc<EventFd>) -> Result<Prober> {
        // Two: certificates may be changed while a check waits.
        let (questions, asked) = sync_channel::<Question>(2);
        let (answer, answers) = sync_channel::<Outcome>(1);
        std::thread::Builder::new()
            .name("probe".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                while let Ok(question) = asked.recv() {
                    match question {
                        Question::Check => {
                            if answer.send(probe.check()).is_err() {
                                return;
                            }
                            let _ = wake.write(1);
                        }
                        Question::Trust(trust) => {
                            if let Probe::Http(client) = &probe {
                                client.trust(trust);
                            }
                        }
                    }
                }
            })
            .map_err(|why| Error::new("start a thread", describe(&why)))?;
        Ok(Prober { questions, answers })
    }

    /// Begins a check; the one before has been answered.
    pub fn ask(&self) {
        let _ = self.questions.try_send(Question::Check);
    }

    /// The answer, if it has come.
    #[must_use]
    pub fn answer(&self) -> Option<Outcome> {
        self.answers.try_recv().ok()
    }

    /// From the next check on.
    pub fn trust(&self, trust: Option<Trust>) {
        let _ = self.questions.try_send(Question::Trust(trust));
    }
}
