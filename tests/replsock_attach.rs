//! replsock at a terminal: script(1) gives it one, keys are typed when what they wait for is there.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::live::Live;
use kit::{Running, eventually, node};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

const PROGRAM: &str = env!("CARGO_BIN_EXE_replsock");

const APP: &str = "globalThis.shop = { counter: 5, get danger() { globalThis.touched = true; return 1 } };\n\
    setInterval(() => {}, 1000);\n";

/// A session, and what it showed so far was looked at up to `seen`.
struct Session {
    running: Running,
    keys: File,
    seen: usize,
}

impl Session {
    fn open(live: &Live, words: &str) -> Session {
        Session::open_by(live, &format!("'{PROGRAM}' {words}"))
    }

    fn open_by(live: &Live, command: &str) -> Session {
        let (reader, keys) = nix::unistd::pipe().unwrap();
        // What is behind it shows that the shell got its terminal back as it was.
        let line = format!("{command}; echo \"status $?\"; stty -a | grep -o '[-]*icanon'");
        let running = live
            .command_of("script", &["-qec", &line, "/dev/null"])
            .env("TERM", "xterm")
            .env("SHELL", "/bin/bash")
            .stdin(File::from(reader))
            .start();
        let mut session = Session {
            running,
            keys: keys.into(),
            seen: 0,
        };
        session.shows("] shop");
        session
    }

    fn shows(&mut self, text: &str) {
        let what = format!("'{text}' on the terminal");
        let from = self.seen;
        let mut all = String::new();
        let running = &self.running;
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(&what, || {
                all = running.out();
                all.get(from..)?.find(text)
            })
        }));
        let at = found.unwrap_or_else(|_| panic!("{what}: {all:?}"));
        self.seen += at + text.len();
    }

    fn types(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// A line, what it shows, and the next prompt.
    fn line(&mut self, line: &str, shows: &str) {
        self.types(&format!("{line}\r"));
        self.shows("\r\n");
        self.shows(shows);
        self.shows("] shop");
    }

    fn ends(mut self, status: &str) {
        self.shows(&format!("status {status}"));
        self.shows("icanon");
        let at = self.seen - "icanon".len();
        assert!(
            !self.running.out()[..at].ends_with('-'),
            "the terminal is raw"
        );
        drop(self.keys);
        let _ = self.running.end();
    }
}

#[test]
fn a_session_in_each_release() {
    for version in ["16", "18", "20", "22", "24", "26"] {
        let node = node(version);
        let live = Live::start(
            PROGRAM,
            &[("app.js", APP)],
            &[node.to_str().unwrap(), "app.js"],
        );
        let _ = live.socket();
        let mut session = Session::open(&live, "shop");
        session.line("let a = 1", "undefined");
        session.line("let a = 41; a", "41");
        session.line("_ + 1", "42");
        session.line(
            "await new Promise(done => setTimeout(done, 50, 'waited'))",
            "waited",
        );
        session.line("require('os').EOL.length", "1");
        session.types("function f(x) {\r");
        session.shows("... ");
        session.line("return x * 3 }", "undefined");
        session.line("f(3)", "9");
        session.types("`one\r");
        session.shows("... ");
        session.line("two`.length", "7");
        session.line("/* a */ 'no comment'", "no comment");
        session.line("throw new TypeError('boo')", "Uncaught TypeError: boo");
        session.line("new Map([['k', 1n]])", "Map");
        // From the live objects, and no getter is called for it.
        session.types("shop.cou\t");
        session.shows("shop.counter");
        session.line("", "5");
        session.line("globalThis.touched", "undefined");
        // An end of the app is asked about, and does not come by itself.
        session.line("process.exit()", "This ends the APP");
        session.line("1 + 1", "2");
        session.types("\u{4}");
        session.ends("0");
        assert_eq!(live.value("shop.counter"), "5", "{version}");
    }
}

#[test]
fn control_c_and_the_ways_out() {
    let node = node("20");
    let mut live = Live::start(
        PROGRAM,
        &[("app.js", APP)],
        &[node.to_str().unwrap(), "app.js"],
    );
    let _ = live.socket();
    let mut session = Session::open(&live, "shop");
    // At the prompt: the line is gone.
    session.types("half a line\u{3}");
    session.shows("] shop");
    // A promise: no longer waited for.
    session.types("await new Promise(() => {})\r");
    session.shows("\r\n");
    eventually("the evaluation", || (live.value("1") == "1").then_some(()));
    session.types("\u{3}");
    session.shows("not waited for any more");
    session.shows("] shop");
    // A loop: the time limit ends it, which is said.
    session.types("for (;;) {}\r");
    session.shows("\r\n");
    session.types("\u{3}");
    session.shows("the time limit ends it in");
    session.shows("ended by the time limit");
    session.shows("] shop");
    // A regular expression without end, and a second Control-C leaves.
    session.types("/^(a+)+$/.test('a'.repeat(50) + 'b')\r");
    session.shows("\r\n");
    session.types("\u{3}");
    session.shows("the time limit ends it in");
    session.types("\u{3}");
    session.shows("detached");
    session.ends("0");
    eventually("the end of the regular expression", || {
        (live.ask(&["eval", "shop", "1"]).status == 0).then_some(())
    });
    let mut session = Session::open(&live, "shop");
    session.types("\u{1d}q");
    session.shows("detached");
    session.ends("0");
    // Edge case 22: a signal.
    let mut session = Session::open(&live, "shop");
    let pid = eventually("the client", || client_below(session.running.pid()));
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    session.shows("status 143");
    session.shows("icanon");
    assert_eq!(live.value("shop.counter"), "5");
    // What is typed a second time is meant.
    let mut session = Session::open(&live, "shop");
    session.line("process.exit(3)", "This ends the APP");
    session.types("process.exit(3)\r");
    session.ends("125");
    assert_eq!(live.running.end(), 3);
}

fn client_below(pid: i32) -> Option<i32> {
    for child in kit::run::children_of(pid) {
        let name = std::fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
        if name.trim() == "replsock" {
            return Some(child);
        }
        if let Some(found) = client_below(child) {
            return Some(found);
        }
    }
    None
}

#[test]
fn history_is_the_owners_alone() {
    let node = node("24");
    let live = Live::start(
        PROGRAM,
        &[("app.js", APP)],
        &[node.to_str().unwrap(), "app.js"],
    );
    let _ = live.socket();
    let mut session = Session::open(&live, "shop");
    session.line("'kept'", "kept");
    // Edge case 43: a leading blank keeps it out.
    session.line(" 'secret'", "secret");
    session.types("\u{4}");
    session.ends("0");
    let path = live.dir.path().join("state/replsock/shop.history");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(
        text.contains("'kept'") && !text.contains("secret"),
        "{text}"
    );
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let node = node("20");
    let live = Live::start(
        PROGRAM,
        &[("app.js", APP)],
        &[node.to_str().unwrap(), "app.js"],
    );
    let _ = live.socket();
    let yellow = "\u{1b}[33m";
    for (variable, coloured) in [("NO_COLOR=", true), ("NO_COLOR=1", false)] {
        let line = format!("env {variable} '{PROGRAM}' eval shop 1+41");
        let shown = live
            .command_of("script", &["-qec", &line, "/dev/null"])
            .env("SHELL", "/bin/bash")
            .finish();
        assert!(shown.out.contains("42"), "{variable}: {:?}", shown.out);
        assert_eq!(shown.out.contains(yellow), coloured, "{:?}", shown.out);
        let mut session = Session::open_by(&live, &format!("env {variable} '{PROGRAM}' shop"));
        session.line("1+41", "42");
        let out = session.running.out();
        session.types("\u{4}");
        session.ends("0");
        assert_eq!(
            out.contains("\u{1b}[33m42"),
            coloured,
            "{variable}: {out:?}"
        );
    }
    // And never into a pipe.
    assert_eq!(live.ask(&["eval", "shop", "1+41"]).out, "42\n");
}

// Edge case 23: the shell gets its terminal back as it was, and the session goes on where it was.
#[test]
fn control_z_and_back() {
    let node = node("22");
    let live = Live::start(
        PROGRAM,
        &[("app.js", APP)],
        &[node.to_str().unwrap(), "app.js"],
    );
    let _ = live.socket();
    let (reader, keys) = nix::unistd::pipe().unwrap();
    let running = live
        .command_of(
            "script",
            &["-qec", "bash --norc --noediting -i", "/dev/null"],
        )
        .env("TERM", "xterm")
        .env("SHELL", "/bin/bash")
        .stdin(File::from(reader))
        .start();
    let mut session = Session {
        running,
        keys: keys.into(),
        seen: 0,
    };
    // In two parts: what is typed is shown, too.
    session.types("PS1=shell'> '\r");
    session.shows("shell> ");
    session.types(&format!("'{PROGRAM}' shop\r"));
    session.shows("] shop");
    for round in ["one", "two"] {
        session.line(&format!("globalThis.{round} = 1"), "1");
        session.types("half\u{1a}");
        session.shows("Stopped");
        session.shows("shell> ");
        session.types("stty -a | grep -o '[-]*icanon'; echo here\r");
        session.shows("icanon");
        let at = session.seen - "icanon".len();
        assert!(
            !session.running.out()[..at].ends_with('-'),
            "the terminal is raw while the session is stopped"
        );
        session.shows("here");
        session.types("fg\r");
        session.shows("half");
        session.types("\u{3}");
        session.shows("] shop");
        session.line("6 * 7", "42");
    }
    // While it waits for a promise it can be stopped, too.
    session.types("await new Promise(done => setTimeout(done, 1500, 'waited'))\r");
    session.shows("\r\n");
    session.types("\u{1a}");
    session.shows("Stopped");
    session.types("fg\r");
    session.shows("waited");
    session.shows("] shop");
    session.types("\u{4}");
    session.shows("shell> ");
    session.types("exit\r");
    assert_eq!(session.running.end(), 0);
    assert_eq!(live.value("one + two"), "2");
}
