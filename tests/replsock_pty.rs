//! replsock serve on a terminal: a person at one, with real programs, through all ways out.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::eventually;
use kit::served::{Served, Terminal};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::net::Shutdown;

const PROGRAM: &str = env!("CARGO_BIN_EXE_replsock");

fn serve(options: &[&str], command: &[&str]) -> Served {
    Served::start(PROGRAM, options, command)
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// A shell, at its prompt.
fn shell() -> (Served, Terminal) {
    let served = serve(&[], &["env", "PS1=ready> ", "bash", "--norc"]);
    let mut terminal = served.attach();
    terminal.shows("ready> ");
    (served, terminal)
}

#[test]
fn programs_with_a_console() {
    let python = serve(&[], &["python3", "-q"]);
    let mut terminal = python.attach();
    terminal.shows(">>> ");
    terminal.types("40 + 2\r");
    terminal.shows("\n42");
    terminal.types("import sys; sys.exit(7)\r");
    terminal.ends(7);
    let sqlite = serve(&[], &["sqlite3"]);
    let mut terminal = sqlite.attach();
    terminal.shows("sqlite> ");
    terminal.types("select 40 + 2;\r");
    terminal.shows("\r42");
    terminal.types(".exit 3\r");
    terminal.ends(3);
    // In the C locale it asks once only.
    let irb = serve(&[], &["env", "LC_ALL=C.UTF-8", "irb", "-f"]);
    let mut terminal = irb.attach();
    // What reline asks the terminal: the person's own answers, and nobody else.
    for _ in 0..2 {
        terminal.shows("\u{1b}[6n");
        terminal.types("\u{1b}[1;1R");
    }
    terminal.shows("irb(main)");
    terminal.types("40 + 2\r");
    terminal.shows("42\u{1b}[0m\r\n");
    terminal.shows("\u{1b}[6n");
    terminal.types("\u{1b}[1;1R");
    terminal.shows("irb(main)");
    terminal.types("exit!(5)\r");
    terminal.ends(5);
}

#[test]
fn a_shell_with_all_that_a_terminal_has() {
    let (served, mut terminal) = shell();
    terminal.types("tty; stty size; echo \"$TERM $LINES $COLUMNS\"\r");
    terminal.shows("/dev/pts/");
    terminal.shows("24 80");
    terminal.shows("xterm 24 80");
    // Edge case 14.
    terminal.resize(100, 40);
    terminal.types("trap 'echo pulled' WINCH; stty size\r");
    terminal.shows("40 100");
    // Back at its prompt: before that it is stty that hears.
    terminal.shows("ready> ");
    terminal.resize(90, 30);
    terminal.shows("pulled");
    terminal.types("stty size\r");
    terminal.shows("30 90");
    terminal.shows("ready> ");
    // Control-C is a key, for what runs there.
    terminal.types("sleep 1000\r");
    let child = served.children()[0];
    eventually("sleep", || {
        (kit::run::children_of(child).len() == 1).then_some(())
    });
    terminal.types("\u{3}");
    terminal.shows("^C");
    terminal.shows("ready> ");
    // So is Control-Z, and jobs are jobs.
    terminal.types("sleep 1000\r");
    eventually("sleep", || {
        (kit::run::children_of(child).len() == 1).then_some(())
    });
    terminal.types("\u{1a}");
    terminal.shows("Stopped");
    terminal.types("disown -a; exit 9\r");
    terminal.ends(9);
}

#[test]
fn the_ways_out() {
    let (served, mut terminal) = shell();
    let child = served.children()[0];
    // One ^] is typed by two.
    terminal.types("stty -echoctl; read -rn1 key; printf '%d\\n' \"'$key\"\r");
    terminal.shows("\r\n");
    terminal.types("\u{1d}\u{1d}");
    terminal.shows("29\r\n");
    terminal.types("\u{1d}q");
    terminal.shows("detached");
    terminal.ends(0);
    eventually("the hang-up", || {
        served.children().is_empty().then_some(child)
    });
    // Edge case 22.
    for (end, status) in [
        (Signal::SIGTERM, 143),
        (Signal::SIGHUP, 129),
        (Signal::SIGQUIT, 131),
    ] {
        let (served, mut terminal) = shell();
        terminal.types("printf '\\033[?1049h\\033[?25l'; echo full\r");
        terminal.shows("25lfull");
        signal(terminal.client(), end);
        // What the program had switched on is off again.
        terminal.shows("\u{1b}[?25h\u{1b}[?1049l");
        terminal.ends(status);
        eventually("the hang-up", || served.children().is_empty().then_some(()));
    }
    let (mut served, terminal) = shell();
    served.server.signal(Signal::SIGKILL);
    terminal.ends(125);
    let (mut served, terminal) = shell();
    assert_eq!(served.server.stop(), 0);
    terminal.ends(129);
}

#[test]
fn a_client_that_was_stopped_goes_on() {
    // Edge case 23.
    let served = serve(&[], &["env", "PS1=ready> ", "bash", "--norc"]);
    let line = format!("set -m; '{PROGRAM}' ./s.sock; stty -a | grep -o '[-]*icanon'; fg");
    let mut terminal = Terminal::open(served.dir.path(), &line);
    terminal.shows("ready> ");
    let client = terminal.client();
    signal(client, Signal::SIGTSTP);
    terminal.shows("icanon");
    assert!(!terminal.all().ends_with("-icanon"), "{}", terminal.all());
    terminal.types("stty size\r");
    terminal.shows("24 80");
    terminal.types("exit 6\r");
    terminal.ends(6);
}

#[test]
fn a_command_that_ignores_the_hang_up_is_killed() {
    let served = serve(
        &[],
        &[
            "sh",
            "-c",
            "trap '' HUP TERM; echo here; while :; do sleep 0.1; done",
        ],
    );
    let mut terminal = served.attach();
    terminal.shows("here");
    let child = served.children()[0];
    terminal.types("\u{1d}q");
    terminal.ends(0);
    eventually("the end of it", || {
        served.children().is_empty().then_some(child)
    });
}

#[test]
fn a_terminal_for_who_has_none() {
    let served = serve(&["--pty"], &["python3", "-q"]);
    // Edge cases 10 and 11: the end of the input is typed, also before python looks at its terminal.
    let said = served.told(b"print(40 + 2)");
    assert!(said.contains("\n42"), "{said:?}");
    assert!(served.told(b"").len() < 2000);
    // Edge case 13: irb asks for the cursor, and would wait for ever.
    let served = serve(&["--pty"], &["irb", "-f"]);
    let said = served.told(b"puts 40 + 2\n");
    assert!(said.contains("42"), "{said:?}");
    // It evaluates for longer than the end is typed often.
    let said = served.told(b"sleep 2; puts 40 + 3\n");
    assert!(said.contains("43"), "{said:?}");
    // What is not complete is broken off.
    let said = served.told(b"def never\n");
    assert!(said.contains("def never"), "{said:?}");
    // Our own client, too: as a script it has the status.
    let answer = served.eval(&[], "exit!(3)\n");
    assert_eq!(answer.status, 3, "{}", answer.out);
    // A size that is none.
    let served = serve(&["--pty"], &["stty", "size"]);
    assert_eq!(served.told(b""), "24 80\r\n");
    // Edge case 9: it closes its terminal and lives on; its status counts.
    let served = serve(
        &["--pty"],
        &["sh", "-c", "exec >&- 2>&- <&-; sleep 1; exit 4"],
    );
    assert_eq!(served.eval(&[], "").status, 4);
}

#[test]
fn pipes_for_who_has_a_terminal() {
    let served = serve(&["--pipe"], &["sh", "-c", "tty; cat; exit 8"]);
    let mut terminal = served.attach();
    terminal.shows("not a tty");
    // The terminal is not raw: lines, and Control-D.
    terminal.types("one\r");
    terminal.shows("one\r\none\r\n");
    terminal.types("\u{4}");
    terminal.ends(8);
}

#[test]
fn much_through_a_terminal() {
    let served = serve(
        &["--pty"],
        &[
            "sh",
            "-c",
            "stty raw -echo; head -c 3000000 /dev/zero | tr '\\0' x; exit 2",
        ],
    );
    let mut stream = served.plain();
    stream.write_all(b"\n").unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert_eq!(all.iter().filter(|byte| **byte == b'x').count(), 3_000_000);
    // And into one that does not read: nobody else waits for that.
    let served = serve(&["--pty"], &["sh", "-c", "sleep 1000"]);
    let mut flood = served.plain();
    flood.set_nonblocking(true).unwrap();
    let chunk = vec![b'x'; 1 << 20];
    let mut sent = 0;
    for _ in 0..1000 {
        sent += flood.write(&chunk).unwrap_or(0);
    }
    assert!(sent > 0 && sent < 4 << 20, "{sent}");
    let _ = flood.shutdown(Shutdown::Both);
    drop(flood);
    eventually("its end", || served.children().is_empty().then_some(()));
}
