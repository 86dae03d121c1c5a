//! Work that may hang, done by a thread of its own: one question at a time, one answer, and an eventfd that
//! wakes the loop. A thread that does not come back is given up, and another one takes its place; what it
//! finds after that is nobody's, and it ends.

use nix::sys::eventfd::EventFd;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// So many threads of one [`Aside`] may hang at most: each holds its stack, and whatever it hangs at.
pub const MOST_HUNG: usize = 4;

/// What the thread does with a question. It gives the answer to the second argument, and may tidy up after
/// that.
pub type Work<Q, A> = Box<dyn FnMut(Q, &mut dyn FnMut(A)) + Send>;

/// What the loop and one thread share.
#[derive(Debug)]
struct Slot<Q, A> {
    state: Mutex<State<Q, A>>,
    asked: Condvar,
}

#[derive(Debug)]
struct State<Q, A> {
    question: Option<Q>,
    answer: Option<A>,
    /// The loop has no more questions for it.
    over: bool,
    /// The loop has given it up while it worked.
    hung: bool,
}

impl<Q, A> Slot<Q, A> {
    fn state(&self) -> MutexGuard<'_, State<Q, A>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next question; `None`: there will be none.
    fn question(&self) -> Option<Q> {
        let mut state = self.state();
        loop {
            if state.over {
                return None;
            }
            if let Some(question) = state.question.take() {
                return Some(question);
            }
            state = self
                .asked
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The loop's end of such a thread, which is started when it is first asked something.
pub struct Aside<Q, A> {
    name: &'static str,
    stack: usize,
    wake: Arc<EventFd>,
    slot: Option<Arc<Slot<Q, A>>>,
    open: bool,
    hung: Arc<AtomicUsize>,
}

impl<Q, A> fmt::Debug for Aside<Q, A> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Aside({}, {} hung)", self.name, self.hung())
    }
}

impl<Q: Send + 'static, A: Send + 'static> Aside<Q, A> {
    /// No thread yet. `stack` is that of the thread, in bytes; after each answer it writes to `wake`.
    #[must_use]
    pub fn new(name: &'static str, stack: usize, wake: Arc<EventFd>) -> Aside<Q, A> {
        Aside {
            name,
            stack,
            wake,
            slot: None,
            open: false,
            hung: Arc::default(),
        }
    }

    /// Asks. `work` makes the work of a thread, where one has to be started. One question is open at a
    /// time: the answer before has been taken, or given up.
    ///
    /// # Errors
    /// No thread can be started (EAGAIN), or [`MOST_HUNG`] hang (`WouldBlock`).
    pub fn ask(&mut self, question: Q, work: impl FnOnce() -> Work<Q, A>) -> io::Result<()> {
        let slot = match &self.slot {
            Some(slot) => slot,
            None if self.hung() >= MOST_HUNG => return Err(io::ErrorKind::WouldBlock.into()),
            None => {
                let slot = self.start(work())?;
                self.slot.insert(slot)
            }
        };
        slot.state().question = Some(question);
        slot.asked.notify_one();
        self.open = true;
        Ok(())
    }

    fn start(&self, mut work: Work<Q, A>) -> io::Result<Arc<Slot<Q, A>>> {
        let slot = Arc::new(Slot {
            state: Mutex::new(State {
                question: None,
                answer: None,
                over: false,
                hung: false,
            }),
            asked: Condvar::new(),
        });
        let (own, wake, hung) = (slot.clone(), self.wake.clone(), self.hung.clone());
        std::thread::Builder::new()
            .name(self.name.to_owned())
            .stack_size(self.stack)
            .spawn(move || {
                while let Some(question) = own.question() {
                    work(question, &mut |answer| {
                        let mut state = own.state();
                        if !state.over {
                            state.answer = Some(answer);
                            drop(state);
                            let _ = wake.write(1);
                        }
                    });
                }
                if own.state().hung {
                    hung.fetch_sub(1, Ordering::Relaxed);
                }
            })?;
        Ok(slot)
    }

    /// The answer, if it has come.
    pub fn answer(&mut self) -> Option<A> {
        if !self.open {
            return None;
        }
        let answer = self.slot.as_ref()?.state().answer.take()?;
        self.open = false;
        Some(answer)
    }

    /// A question is open.
    #[must_use]
    pub fn open(&self) -> bool {
        self.open
    }

    /// The thread does not come back: the next question gets another one. When it comes back after all it
    /// ends.
    pub fn give_up(&mut self) {
        if let (Some(slot), true) = (self.slot.take(), self.open) {
            self.hung.fetch_add(1, Ordering::Relaxed);
            let mut state = slot.state();
            state.over = true;
            state.hung = true;
            drop(state);
            // It may have come back in this very moment, and wait for a question.
            slot.asked.notify_one();
        }
        self.open = false;
    }
}

impl<Q, A> Aside<Q, A> {
    /// Threads that hang.
    #[must_use]
    pub fn hung(&self) -> usize {
        self.hung.load(Ordering::Relaxed)
    }
}

impl<Q, A> Drop for Aside<Q, A> {
    fn drop(&mut self) {
        if let Some(slot) = &self.slot {
            slot.state().over = true;
            slot.asked.notify_one();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    use std::sync::mpsc::{Receiver, Sender, channel};

    type Gate = Arc<Mutex<Receiver<()>>>;

    /// One whose work is to wait until it is let go, and to double.
    fn doubler() -> (Aside<u32, u32>, Arc<EventFd>, Sender<()>, Gate) {
        let wake = Arc::new(EventFd::new().unwrap());
        let (go, gate) = channel();
        let aside = Aside::new("test", 64 << 10, wake.clone());
        (aside, wake, go, Arc::new(Mutex::new(gate)))
    }

    fn work(gate: &Gate) -> Work<u32, u32> {
        let gate = gate.clone();
        Box::new(move |question, answer| {
            gate.lock().unwrap().recv().unwrap();
            answer(question * 2);
        })
    }

    fn eventually(done: impl Fn() -> bool) {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !done() {
            assert!(std::time::Instant::now() < end);
            std::thread::yield_now();
        }
    }

    fn woken(wake: &EventFd) {
        let mut fds = [PollFd::new(wake.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(60_000u16)), Ok(1));
        wake.read().unwrap();
    }

    #[test]
    fn questions_are_answered_by_one_thread() {
        let (mut aside, wake, go, gate) = doubler();
        assert_eq!(aside.answer(), None);
        for question in 1..100 {
            aside.ask(question, || work(&gate)).unwrap();
            assert!(aside.open() && aside.answer().is_none());
            go.send(()).unwrap();
            woken(&wake);
            assert_eq!(aside.answer(), Some(question * 2));
            assert!(!aside.open());
        }
        // Nobody to be given up.
        aside.give_up();
        assert_eq!(aside.hung(), 0);
    }

    #[test]
    fn one_that_hangs_is_replaced_and_so_many_at_most() {
        let (mut aside, wake, go, gate) = doubler();
        for question in 0..MOST_HUNG as u32 {
            aside.ask(question, || work(&gate)).unwrap();
            let slot = aside.slot.clone().unwrap();
            eventually(|| slot.state().question.is_none());
            aside.give_up();
        }
        assert_eq!(aside.hung(), MOST_HUNG);
        let why = aside.ask(9, || work(&gate)).unwrap_err();
        assert_eq!(why.kind(), io::ErrorKind::WouldBlock);
        // They come back: what they say is nobody's, and there is room again.
        for _ in 0..MOST_HUNG {
            go.send(()).unwrap();
        }
        eventually(|| aside.hung() == 0);
        aside.ask(21, || work(&gate)).unwrap();
        assert_eq!(aside.answer(), None);
        go.send(()).unwrap();
        woken(&wake);
        assert_eq!(aside.answer(), Some(42));
    }
}
