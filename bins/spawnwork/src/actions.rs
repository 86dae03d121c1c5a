//! What a signal to the master makes it do: a table, pure, of what the user said over what we do unasked.

use common::signal::{Received, Sender};
use std::collections::BTreeMap;

/// What the master does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Stops gracefully; asked again: at once.
    Stop,
    /// Stops at once.
    Quit,
    /// Starts a new generation.
    Reload,
    /// Writes the status to the log.
    Status,
    /// One worker more.
    Add,
    /// One worker fewer.
    Remove,
    /// Passes a signal on to every worker: this one, or the one that came.
    Forward(Option<i32>),
    /// Nothing.
    Ignore,
}

/// `--on-signal`: the signal and what it is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnSignal {
    /// The signal to the master.
    pub signal: i32,
    /// What follows.
    pub action: Action,
}

impl Action {
    /// In a batch of signals, which has no order of its own: a stop comes before all else.
    #[must_use]
    pub fn rank(self) -> u8 {
        match self {
            Action::Stop | Action::Quit => 0,
            Action::Reload
            | Action::Status
            | Action::Add
            | Action::Remove
            | Action::Forward(_)
            | Action::Ignore => 1,
        }
    }
}

/// `SIG=ACTION`
///
/// # Errors
/// What is wrong, and what would do.
pub fn on_signal(text: &str) -> Result<OnSignal, String> {
    let (signal, action) = text
        .split_once('=')
        .ok_or("SIG=ACTION like HUP=forward would do")?;
    let signal = common::cli::signal(signal)?;
    if let Some(why) = common::signal::out_of_reach(signal) {
        let name = common::signal::name(signal);
        return Err(format!("{name} can have no action: {why}"));
    }
    let (kind, target) = match action.split_once(':') {
        Some((kind, target)) => (kind, Some(target)),
        None => (action, None),
    };
    let action = match (kind, target) {
        ("stop", None) => Action::Stop,
        ("quit", None) => Action::Quit,
        ("reload", None) => Action::Reload,
        ("status", None) => Action::Status,
        ("add", None) => Action::Add,
        ("remove", None) => Action::Remove,
        ("ignore", None) => Action::Ignore,
        ("forward", None) => Action::Forward(None),
        ("forward", Some(target)) => Action::Forward(Some(common::cli::signal(target)?)),
        _ => {
            return Err(format!(
                "'{action}' is no action; reload, stop, quit, add, remove, status, forward, forward:SIG or ignore would do"
            ));
        }
    };
    Ok(OnSignal { signal, action })
}

/// HUP was ignored when we were started, as nohup(1) does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hangup {
    /// It was not.
    Heard,
    /// It was, and stays so unless `--on-signal` says otherwise.
    Ignored,
}

/// The table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actions(BTreeMap<i32, Action>);

impl Actions {
    /// What `--on-signal` says.
    ///
    /// # Errors
    /// A signal has two actions.
    pub fn new(list: &[OnSignal]) -> Result<Actions, String> {
        let mut table = BTreeMap::new();
        for one in list {
            if table.insert(one.signal, one.action).is_some() {
                let name = common::signal::name(one.signal);
                return Err(format!("--on-signal gives {name} two actions"));
            }
        }
        Ok(Actions(table))
    }

    /// What follows from a signal.
    #[must_use]
    pub fn of(&self, received: Received, hangup: Hangup) -> Action {
        let name = common::signal::name(received.signal);
        // A background job that reads from the terminal, or writes to it, gets these two from the kernel.
        if matches!(name.as_str(), "TTIN" | "TTOU") && received.sender == Sender::Kernel {
            return Action::Ignore;
        }
        match self.0.get(&received.signal) {
            Some(action) => *action,
            None => by_default(&name, hangup),
        }
    }
}

/// Without `--on-signal`. USR1 is never passed on: it opens a Node worker's debugger.
fn by_default(name: &str, hangup: Hangup) -> Action {
    match name {
        "TERM" | "INT" => Action::Stop,
        "QUIT" => Action::Quit,
        "USR2" => Action::Reload,
        "HUP" if hangup == Hangup::Heard => Action::Reload,
        "USR1" => Action::Status,
        "TTIN" => Action::Add,
        "TTOU" => Action::Remove,
        // Everything else, SIGCHLD and SIGWINCH among it, ends nobody.
        _ => Action::Ignore,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    fn signal(name: &str) -> i32 {
        common::cli::signal(name).unwrap()
    }

    fn sent(name: &str) -> Received {
        Received {
            signal: signal(name),
            sender: Sender::Process(1),
        }
    }

    fn table(list: &[&str]) -> Actions {
        let list: Vec<OnSignal> = list.iter().map(|text| on_signal(text).unwrap()).collect();
        Actions::new(&list).unwrap()
    }

    #[test]
    fn unasked() {
        let actions = table(&[]);
        for (name, action) in [
            ("TERM", Action::Stop),
            ("INT", Action::Stop),
            ("QUIT", Action::Quit),
            ("USR2", Action::Reload),
            ("HUP", Action::Reload),
            ("USR1", Action::Status),
            ("TTIN", Action::Add),
            ("TTOU", Action::Remove),
            ("WINCH", Action::Ignore),
            ("PIPE", Action::Ignore),
            ("ALRM", Action::Ignore),
            ("40", Action::Ignore),
        ] {
            assert_eq!(actions.of(sent(name), Hangup::Heard), action, "{name}");
        }
    }

    #[test]
    fn what_is_said_wins() {
        let actions = table(&["HUP=forward", "USR1=forward:usr2", "TERM=quit", "40=reload"]);
        assert_eq!(
            actions.of(sent("HUP"), Hangup::Heard),
            Action::Forward(None)
        );
        assert_eq!(
            actions.of(sent("USR1"), Hangup::Heard),
            Action::Forward(Some(signal("USR2")))
        );
        assert_eq!(actions.of(sent("TERM"), Hangup::Heard), Action::Quit);
        assert_eq!(actions.of(sent("40"), Hangup::Heard), Action::Reload);
        assert_eq!(actions.of(sent("INT"), Hangup::Heard), Action::Stop);
    }

    #[test]
    fn an_ignored_hangup_stays_so_unless_it_is_given_an_action() {
        assert_eq!(table(&[]).of(sent("HUP"), Hangup::Ignored), Action::Ignore);
        assert_eq!(
            table(&["HUP=forward"]).of(sent("HUP"), Hangup::Ignored),
            Action::Forward(None)
        );
        assert_eq!(table(&[]).of(sent("USR2"), Hangup::Ignored), Action::Reload);
    }

    #[test]
    fn the_terminals_own_signals_mean_nothing_whatever_they_are_to_do() {
        for name in ["TTIN", "TTOU"] {
            let received = Received {
                sender: Sender::Kernel,
                ..sent(name)
            };
            for list in [table(&[]), table(&["TTIN=reload", "TTOU=quit"])] {
                assert_eq!(list.of(received, Hangup::Heard), Action::Ignore);
            }
        }
        let actions = table(&["TTIN=reload"]);
        assert_eq!(actions.of(sent("TTIN"), Hangup::Heard), Action::Reload);
        // control-C comes from the kernel, and counts.
        let received = Received {
            sender: Sender::Kernel,
            ..sent("INT")
        };
        assert_eq!(actions.of(received, Hangup::Heard), Action::Stop);
    }

    #[test]
    fn what_is_refused_is_named() {
        for (text, part) in [
            ("KILL=stop", "KILL"),
            ("STOP=ignore", "STOP"),
            ("CHLD=status", "CHLD"),
            ("SEGV=reload", "SEGV"),
            ("bus=reload", "BUS"),
            ("ABRT=quit", "ABRT"),
            ("32=reload", "32"),
            ("NOPE=reload", "NOPE"),
            ("HUP", "SIG=ACTION"),
            ("HUP=", "''"),
            ("HUP=restart", "'restart'"),
            ("HUP=stop:TERM", "'stop:TERM'"),
            ("HUP=forward:", "''"),
            ("HUP=forward:NOPE", "NOPE"),
        ] {
            let why = on_signal(text).unwrap_err();
            assert!(why.contains(part), "{text}: {why}");
        }
        let twice = [
            on_signal("HUP=stop").unwrap(),
            on_signal("1=forward").unwrap(),
        ];
        assert!(Actions::new(&twice).unwrap_err().contains("HUP"));
    }
}
