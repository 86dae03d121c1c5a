//! The terminal is left as it was found, whatever ends us. A kill -9 cannot be helped: reset(1) can.

use common::error::{Doing, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use std::sync::{Mutex, PoisonError};

/// As it was found; the first one counts.
static FOUND: Mutex<Option<Termios>> = Mutex::new(None);

/// What is written besides, to undo what a program has switched on.
static AT_REST: Mutex<String> = Mutex::new(String::new());

/// From now on [`restore`] writes this, too.
pub fn at_rest(text: String) {
    *AT_REST.lock().unwrap_or_else(PoisonError::into_inner) = text;
}

/// As it was.
pub fn restore() {
    let text = std::mem::take(&mut *AT_REST.lock().unwrap_or_else(PoisonError::into_inner));
    if !text.is_empty() {
        // Where the settings are changed, in whatever state standard output is.
        let _ = nix::unistd::write(common::sys::standard(0), text.as_bytes());
    }
    let found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(settings) = found.as_ref() {
        let _ = tcsetattr(common::sys::standard(0), SetArg::TCSANOW, settings);
    }
}

/// Every key goes to the other side as it is. [`restore`] undoes it.
pub fn raw() {
    let terminal = common::sys::standard(0);
    if let Ok(mut settings) = tcgetattr(terminal) {
        cfmakeraw(&mut settings);
        let _ = tcsetattr(terminal, SetArg::TCSADRAIN, &settings);
    }
}

/// Remembers how the terminal is, and puts it back when a signal or a panic ends us. Control-C is read
/// from what this returns, while no line is edited, and `more`. To be called before any other thread exists.
///
/// # Errors
/// EMFILE; EAGAIN: no further thread.
pub fn guard(more: &[Signal]) -> Result<SignalFd> {
    if let Ok(settings) = tcgetattr(common::sys::standard(0)) {
        *FOUND.lock().unwrap_or_else(PoisonError::into_inner) = Some(settings);
    }
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |what| {
        restore();
        before(what);
    }));
    let mut ends = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        ends.add(signal);
    }
    let mut interrupt = SigSet::empty();
    interrupt.add(Signal::SIGINT);
    for signal in more {
        interrupt.add(*signal);
    }
    let doing = "listen for signals";
    ends.thread_block().doing(doing)?;
    interrupt.thread_block().doing(doing)?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .stack_size(128 << 10)
        .spawn(move || {
            if let Ok(signal) = ends.wait() {
                restore();
                // The signal is blocked in each thread, and its disposition the default: this one lets it in.
                let mut own = SigSet::empty();
                own.add(signal);
                let _ = own.thread_unblock();
                common::sys::die_by(signal as i32);
            }
        })
        .doing(doing)?;
    SignalFd::with_flags(&interrupt, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).doing(doing)
}

/// Colours are wanted on this descriptor.
#[must_use]
pub fn colours(fd: i32) -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && nix::unistd::isatty(common::sys::standard(fd)).unwrap_or(false)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;
    use nix::sys::termios::cfmakeraw;

    const RAW: &str = "PANICS_WITH_A_RAW_TERMINAL";

    /// What ends by a panic with its terminal raw; run by the next test, below script(1).
    #[test]
    fn a_panic_ends_us() {
        if std::env::var_os(RAW).is_none() {
            return;
        }
        let _interrupts = guard(&[]).unwrap();
        let mut settings = tcgetattr(common::sys::standard(0)).unwrap();
        cfmakeraw(&mut settings);
        tcsetattr(common::sys::standard(0), SetArg::TCSANOW, &settings).unwrap();
        panic!("meant");
    }

    // Edge case 22.
    #[test]
    fn a_panic_leaves_the_terminal_as_it_was() {
        let own = std::env::current_exe().unwrap();
        let line = format!(
            "'{}' --exact terminal::tests::a_panic_ends_us; echo \"status $?\"; stty -a | grep -o '[-]*icanon'",
            own.display()
        );
        let run = kit::Run::new("script")
            .args(["-qec", &line, "/dev/null"])
            .env(RAW, "1")
            .env("SHELL", "/bin/sh")
            .finish();
        assert!(run.out.contains("status 101"), "{}", run.out);
        assert!(
            run.out.contains("icanon") && !run.out.contains("-icanon"),
            "{}",
            run.out
        );
    }
}
