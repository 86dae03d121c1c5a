//! The documents stay true: page, --help, README and source say the same, and the examples run.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    missing_docs
)]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_spawnwork");

/// A tool of ours, and where what is said of it can be found.
struct Tool {
    name: &'static str,
    /// Beside its own modules: those of `common` that end it, read variables for it or set them.
    shared: &'static [&'static str],
    /// Exit statuses of its client beside the common ones, by the constants that hold them.
    answers: &'static [&'static str],
    /// At least so many variables are named in its source.
    variables: usize,
    /// Its own variables that are no options.
    own: &'static [&'static str],
}

const TOOLS: [Tool; 5] = [
    Tool {
        name: "spawnwork",
        shared: &["common/src"],
        answers: &["SUPERSEDED: u8 = ", "REFUSED: u8 = "],
        variables: 10,
        own: &[
            "SPAWNWORK_WORKERS",
            "SPAWNWORK_GENERATION",
            "SPAWNWORK_PID",
            "SPAWNWORK_LAST_EXIT",
            "SPAWNWORK_SHIM",
            "SPAWNWORK_SHIM_PRELOAD",
            "SPAWNWORK_DRAIN_MS",
        ],
    },
    Tool {
        name: "logreopen",
        shared: &[
            "common/src/wrap.rs",
            "common/src/action.rs",
            "common/src/event.rs",
        ],
        answers: &[],
        variables: 2,
        own: &["LOGREOPEN_FILE"],
    },
    Tool {
        name: "heartbeat",
        shared: &[
            "common/src/wrap.rs",
            "common/src/action.rs",
            "common/src/event.rs",
        ],
        answers: &[],
        variables: 6,
        own: &[
            "HEARTBEAT_STATE",
            "HEARTBEAT_PREVIOUS",
            "HEARTBEAT_TARGET",
            "HEARTBEAT_REASON",
            "HEARTBEAT_DETAIL",
            "HEARTBEAT_STATUS",
            "HEARTBEAT_LATENCY_MS",
            "HEARTBEAT_FAILS",
            "HEARTBEAT_ATTEMPT",
            "HEARTBEAT_SINCE",
            "HEARTBEAT_STEAL",
        ],
    },
    Tool {
        name: "watchtouch",
        shared: &[
            "common/src/wrap.rs",
            "common/src/action.rs",
            "common/src/event.rs",
        ],
        answers: &[],
        variables: 10,
        own: &[
            "WATCHTOUCH_PATH",
            "WATCHTOUCH_PATHS",
            "WATCHTOUCH_EVENT",
            "WATCHTOUCH_VIA",
            "WATCHTOUCH_COUNT",
            "WATCHTOUCH_MTIME",
            "WATCHTOUCH_PREVIOUS_MTIME",
            "WATCHTOUCH_DELAY_MS",
        ],
    },
    Tool {
        name: "replsock",
        shared: &[],
        answers: &[],
        variables: 3,
        own: &["REPLSOCK_DIR", "REPLSOCK_AGENT"],
    },
];

impl Tool {
    fn program(&self) -> PathBuf {
        if self.name == "spawnwork" {
            return PROGRAM.into();
        }
        kit::sibling(PROGRAM, self.name)
    }

    fn page(&self) -> String {
        text_of(&format!("man/man1/{}.1", self.name))
    }

    fn help(&self) -> String {
        let output = command(self.program()).arg("--help").output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    }

    /// The help of its commands, where it has some: each has options of its own.
    fn help_of_commands(&self) -> String {
        let mut all = String::new();
        let help = self.help();
        let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
        for line in commands.take_while(|line| !line.is_empty()) {
            let name = line.split_whitespace().next().unwrap();
            let output = command(self.program())
                .args([name, "--help"])
                .output()
                .unwrap();
            assert!(output.status.success(), "{name}");
            all += &String::from_utf8(output.stdout).unwrap();
        }
        all
    }

    /// What was typed, in all files that say so.
    fn typed(&self) -> String {
        let root = root().join("bins").join(self.name).join("src");
        let mut all = String::new();
        let below = std::fs::read_dir(&root).unwrap().flatten();
        for place in below.map(|entry| entry.path()).chain([root]) {
            all += &std::fs::read_to_string(place.join("cli.rs")).unwrap_or_default();
        }
        all
    }

    fn file(&self, name: &str) -> String {
        text_of(&format!("bins/{}/src/{name}", self.name))
    }

    fn source(&self) -> String {
        source(&format!("bins/{}/src", self.name))
    }

    fn prefix(&self) -> String {
        self.name.to_uppercase() + "_"
    }
}
/// For anything that an example waits for; a slow machine is no failure.
const PATIENCE: Duration = Duration::from_secs(60);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn text_of(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|why| panic!("{path}: {why}"))
}

// ---- the page ----

/// The lines between `.Sh NAME` and the next section.
fn section(page: &str, name: &str) -> Vec<String> {
    let head = format!(".Sh {name}");
    let lines: Vec<String> = page
        .lines()
        .skip_while(|line| *line != head)
        .skip(1)
        .take_while(|line| !line.starts_with(".Sh "))
        .map(str::to_owned)
        .collect();
    assert!(!lines.is_empty(), "the page has no section {name}");
    lines
}

/// The items of a section whose head begins with `.It MACRO`: what follows it, and the text below.
fn items(section: &[String], macro_name: &str) -> Vec<(String, String)> {
    let start = format!(".It {macro_name}");
    let start = start.trim_end();
    let mut list: Vec<(String, String)> = Vec::new();
    for line in section {
        if let Some(head) = line.strip_prefix(start) {
            list.push((head.trim().to_owned(), String::new()));
        } else if let Some((_, body)) = list.last_mut() {
            body.push_str(line);
            body.push('\n');
        }
    }
    list
}

/// `SIGTERM , SIGINT` and the like.
fn words(head: &str) -> impl Iterator<Item = &str> {
    head.split_whitespace().filter(|word| *word != ",")
}

fn page() -> String {
    TOOLS[0].page()
}

// ---- --help ----

fn help() -> String {
    TOOLS[0].help()
}

/// Each option by its long name, with its short one, and its default if it names one.
fn options_of_help(help: &str) -> BTreeMap<String, (Option<String>, Option<String>)> {
    let mut list = BTreeMap::new();
    for line in help.lines().filter(|line| line.trim().starts_with('-')) {
        let names: Vec<&str> = line
            .split_whitespace()
            .take_while(|word| word.starts_with('-'))
            .map(|word| word.trim_end_matches(','))
            // A value that may be left out: --stamp[=<STYLE>]
            .map(|word| word.split('[').next().unwrap_or(word))
            .collect();
        let long = names.iter().find(|name| name.starts_with("--"));
        let short = names.iter().find(|name| !name.starts_with("--"));
        let default = line
            .split_once("[default: ")
            .map(|(_, rest)| rest.trim_end_matches(']').to_owned());
        let long = long.unwrap_or_else(|| panic!("no long name: {line}"));
        list.insert(
            (*long).to_owned(),
            (short.map(|name| (*name).to_owned()), default),
        );
    }
    list
}

/// The same of the page, with the text of each.
fn options_of_page(page: &str) -> BTreeMap<String, (Option<String>, String)> {
    items(&section(page, "OPTIONS"), "Fl")
        .into_iter()
        .map(|(head, body)| {
            let names: Vec<String> = words(&head)
                .take_while(|word| !matches!(*word, "Ar" | "Cm" | "Oo" | "Op" | "Ns"))
                .map(|word| format!("-{word}"))
                .collect();
            let long = names.iter().find(|name| name.starts_with("--")).cloned();
            let short = names.iter().find(|name| !name.starts_with("--")).cloned();
            (
                long.unwrap_or_else(|| panic!("no long name: {head}")),
                (short, body),
            )
        })
        .collect()
}

/// The value of a `default is` sentence.
fn stated_default(body: &str) -> Option<String> {
    let (_, rest) = body.split_once("The default is\n.Cm ")?;
    let line = rest.lines().next()?;
    Some(line.trim_end_matches('.').trim().to_owned())
}

#[test]
fn options_of_page_and_help_agree() {
    TOOLS.iter().for_each(options_agree);
}

fn options_agree(tool: &Tool) {
    let help = options_of_help(&(tool.help() + &tool.help_of_commands()));
    let page = options_of_page(&tool.page());
    let names = |list: Vec<&String>| list.into_iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(help.keys().collect()), names(page.keys().collect()));

    let cli = tool.typed();
    for (name, (short, default)) in &help {
        let (page_short, body) = &page[name];
        assert_eq!(short, page_short, "{name}");
        // Some defaults are a value, others are said in words ("CPUs"), here and there differently.
        let literal = default
            .as_ref()
            .filter(|value| cli.contains(&format!("default_value = \"{value}\"")));
        assert_eq!(literal, stated_default(body).as_ref(), "default of {name}");
        assert!(
            default.is_none() || body.to_lowercase().contains("default"),
            "{name}: the page names no default, --help does"
        );
        if !matches!(name.as_str(), "--help" | "--version") {
            let variable = tool.prefix() + &name[2..].replace('-', "_").to_uppercase();
            assert!(
                cli.contains(&format!("env = \"{variable}\"")),
                "{variable} does not exist"
            );
        }
    }
}

#[test]
fn help_fits_two_screens() {
    TOOLS.iter().for_each(help_fits);
}

fn help_fits(tool: &Tool) {
    let help = tool.help();
    for line in help.lines() {
        assert!(line.chars().count() <= 80, "wider than 80 columns: {line}");
    }
    assert!(help.lines().count() <= 100);
    let end: Vec<&str> = help
        .lines()
        .filter(|line| !line.is_empty())
        .rev()
        .take(4)
        .collect();
    assert!(end[0].contains(&format!("man {}", tool.name)), "{}", end[0]);
    assert!(
        end[1..3]
            .iter()
            .all(|line| line.starts_with("  ") && line.contains(&format!("{} ", tool.name))),
        "two examples at the end"
    );
    assert_eq!(end[3], "Examples:");
}

#[test]
fn one_line_says_what_it_is_everywhere() {
    for tool in &TOOLS {
        let (page, name) = (tool.page(), tool.name);
        let said = page
            .lines()
            .find_map(|line| line.strip_prefix(".Nd "))
            .unwrap();
        assert_eq!(tool.help().lines().next(), Some(said), "--help");
        assert!(
            text_of(&format!("bins/{name}/Cargo.toml"))
                .contains(&format!("description = \"{said}\""))
        );
        assert!(
            text_of("README.md").contains(&format!("| [`{name}`](man/man1/{name}.1) | {said} |")),
            "README"
        );
        assert!(
            text_of("man/man7/nirvana.7").contains(&format!(".It Xr {name} 1\n{said}\n")),
            "nirvana(7)"
        );
    }
}

#[test]
fn the_pages_are_without_lint() {
    let output = Command::new(root().join("tests/lint-man.sh"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

// ---- page and source ----

/// The tool's modules without their unit tests, in one.
fn source(directory: &str) -> String {
    fn collect(directory: &Path, text: &mut String) {
        let mut entries: Vec<PathBuf> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                collect(&path, text);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let module = std::fs::read_to_string(&path).unwrap();
                text.push_str(module.split("#[cfg(test)]").next().unwrap());
            }
        }
    }
    let mut text = String::new();
    let path = root().join(directory);
    if path.is_file() {
        let module = std::fs::read_to_string(&path).unwrap();
        text.push_str(module.split("#[cfg(test)]").next().unwrap());
    } else {
        collect(&path, &mut text);
    }
    text
}

/// Without white space between an opening bracket and what follows: rustfmt breaks lines there.
fn joined(source: &str) -> String {
    let mut text = String::new();
    for letter in source.chars() {
        if letter.is_whitespace() && text.ends_with(['(', '[', '\n']) {
            continue;
        }
        text.push(letter);
    }
    text
}

/// The string literals that directly follow `before`.
fn literals_after<'a>(source: &'a str, before: &str) -> Vec<&'a str> {
    source
        .match_indices(before)
        .filter_map(|(at, _)| source[at + before.len()..].split('"').next())
        .collect()
}

#[test]
fn exit_statuses_are_those_of_the_source() {
    let table = text_of("common/src/exit.rs");
    let table = table
        .split("TABLE")
        .nth(1)
        .unwrap()
        .split("];")
        .next()
        .unwrap();
    let table: BTreeMap<String, String> = joined(table)
        .split('(')
        .filter_map(|entry| {
            let (status, rest) = entry.split_once(", \"")?;
            Some((status.trim().to_owned(), rest.split('"').next()?.to_owned()))
        })
        .collect();
    assert!(table.len() >= 7, "{table:?}");

    let shared: BTreeMap<String, String> =
        items(&section(&text_of("man/man7/nirvana.7"), "EXIT STATUS"), "")
            .into_iter()
            .filter(|(status, _)| status != "128+N")
            .map(|(status, body)| (status, body.lines().next().unwrap_or_default().to_owned()))
            .collect();
    assert_eq!(table, shared, "nirvana(7)");

    TOOLS.iter().for_each(statuses_agree);
}

fn statuses_agree(tool: &Tool) {
    let mut code = tool.source();
    if tool.shared.contains(&"common/src/wrap.rs") {
        code += &source("common/src/wrap.rs");
    }
    let used = [
        ("0", "Exit::Ok"),
        ("1", "Exit::No"),
        ("2", "Error::usage"),
        ("124", "Exit::TimedOut"),
        ("125", "Exit::Fault"),
        ("126", "Exit::NotExecutable"),
        ("127", "Exit::NotFound"),
    ];
    let ends = |(at, name): (usize, &str)| {
        !code[at + name.len()..].starts_with(|next: char| next.is_alphanumeric())
    };
    let mut used: BTreeSet<String> = used
        .into_iter()
        .filter(|(_, name)| code.match_indices(name).any(ends))
        .map(|(status, _)| status.to_owned())
        .collect();
    used.insert("128+N".to_owned());
    let page = section(&tool.page(), "EXIT STATUS").join("\n");
    let (master, client) = match page.split_once(".Ss Of \\-\\-ctl\n") {
        Some((master, client)) => (master, Some(client)),
        // It is never asked anything.
        None => (page.as_str(), None),
    };
    assert_eq!(client.is_some(), tool.help().contains("--ctl"));
    let statuses = |part: &str| -> BTreeSet<String> {
        let lines: Vec<String> = part.lines().map(str::to_owned).collect();
        let items = items(&lines, "").into_iter();
        items.map(|(status, _)| status).collect()
    };
    assert_eq!(used, statuses(master));
    let Some(client) = client else { return };
    // What the client ends with: the master's answers, and its own two.
    let mut answers: BTreeSet<String> = ["0", "1", "2", "124", "125"].map(str::to_owned).into();
    for before in tool.answers {
        let (_, rest) = code.split_once(*before).unwrap();
        answers.insert(rest.split(';').next().unwrap().to_owned());
    }
    assert_eq!(answers, statuses(client));
}

#[test]
fn signals_are_those_of_the_source() {
    let actions = text_of("bins/spawnwork/src/actions.rs");
    let table = actions
        .split("fn by_default")
        .nth(1)
        .unwrap()
        .split("\n}\n")
        .next()
        .unwrap();
    let mut handled = BTreeSet::new();
    for line in table
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with('"') && line.contains("=>"))
    {
        let pattern = line
            .split("=>")
            .next()
            .unwrap()
            .split(" if ")
            .next()
            .unwrap();
        handled.extend(
            pattern
                .split('"')
                .skip(1)
                .step_by(2)
                .map(|name| format!("SIG{name}")),
        );
    }
    handled.remove("SIGCHLD");
    assert_eq!(handled, signals_of_page(&TOOLS[0]));
}

fn signals_of_page(tool: &Tool) -> BTreeSet<String> {
    let items = items(&section(&tool.page(), "SIGNALS"), "Dv");
    items
        .iter()
        .filter(|(_, body)| !body.starts_with("Ignored."))
        .flat_map(|(head, _)| words(head).map(str::to_owned))
        .collect()
}

/// Wrappers use these themselves, and pass all others on.
#[test]
fn signals_of_wrappers_are_those_of_the_source() {
    // replsock wraps nothing, or becomes the command.
    for tool in TOOLS[1..].iter().filter(|tool| tool.name != "replsock") {
        let run = tool.file("run.rs");
        let table = run.split("mod own_signals {").nth(1).unwrap();
        let handled: BTreeSet<String> = table
            .lines()
            .take_while(|line| *line != "}")
            .filter_map(|line| line.trim().strip_prefix("pub const ")?.split_once(':'))
            .map(|(name, _)| format!("SIG{name}"))
            .collect();
        assert!(handled.len() >= 5);
        assert_eq!(handled, signals_of_page(tool), "{}", tool.name);
    }
}

#[test]
fn events_are_those_of_the_source() {
    TOOLS.iter().for_each(events_agree);
}

fn events_agree(tool: &Tool) {
    let events = tool.file("events.rs");
    let names: BTreeMap<&str, &str> = events
        .lines()
        .filter_map(|line| line.strip_prefix("pub const ")?.split_once(": &str = \""))
        .map(|(name, rest)| (name, rest.trim_end_matches("\";")))
        .collect();
    let page: BTreeMap<String, BTreeSet<String>> = items(&section(&tool.page(), "EVENTS"), "Ic")
        .into_iter()
        .map(|(head, _)| {
            let (name, keys) = head.split_once(" Ar ").unwrap_or((&head, ""));
            (name.to_owned(), words(keys).map(str::to_owned).collect())
        })
        .collect();
    let listed: BTreeSet<&str> = page.keys().map(String::as_str).collect();
    assert_eq!(names.values().copied().collect::<BTreeSet<_>>(), listed);

    // The keys of an event: in the statement that says it, or in the `fields` made before that.
    let code = joined(&tool.source());
    let mut wrong = String::new();
    for (constant, name) in names {
        let mut keys = BTreeSet::new();
        let mention = format!("events::{constant},");
        for (at, _) in code.match_indices(&mention) {
            let end = at + code[at..].find(';').unwrap_or(0);
            let function = code[..at].rfind("fn ").unwrap_or(0);
            let start = if code[at..end].contains("fields") {
                code[..at]
                    .rfind("let fields")
                    .max(code[..at].rfind("let mut fields"))
                    // Those of another function are not meant.
                    .filter(|start| *start > function)
                    .unwrap_or(function)
            } else if code[at..end].contains("&line") {
                function
            } else {
                at
            };
            let is_key = |key: &&str| {
                key.starts_with(|first: char| first.is_ascii_lowercase())
                    && key
                        .bytes()
                        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
            };
            let statement = &code[start..end];
            if statement.contains("member.fields()") {
                keys.extend(["slot", "pid"].map(str::to_owned));
            }
            for (at, _) in statement.match_indices("(\"") {
                let (key, rest) = statement[at + 2..].split_once('"').unwrap_or_default();
                if rest.starts_with(',') && is_key(&key) {
                    keys.insert(key.to_owned());
                }
            }
        }
        if !code.contains(&mention) {
            let _ = writeln!(wrong, "{name}: nothing says it");
        } else if keys != page[name] {
            let _ = writeln!(wrong, "{name}: source {keys:?}, page {:?}", page[name]);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// `status Op Cm json` is `status [json]`, as help has it.
fn request_of_page(head: &str) -> String {
    let (mut text, mut open) = (String::new(), false);
    for word in head.split_whitespace() {
        match word {
            "Ar" | "Cm" => {}
            "Op" => {
                text.push_str(" [");
                open = true;
            }
            "|" => text.push('|'),
            word => {
                if !text.is_empty() && !text.ends_with(['[', '|']) {
                    text.push(' ');
                }
                text.push_str(word);
            }
        }
    }
    if open {
        text.push(']');
    }
    text
}

#[test]
fn requests_of_page_and_help_agree() {
    let dir = kit::Dir::new();
    let mut master = kit::Run::new(PROGRAM)
        .args(["-n", "1", "--control", "c.sock", "--ready", "alive:10ms"])
        .args(["--", "sleep", "1000"])
        .dir(dir.path())
        .start();
    master.event("generation-serving");
    let help = kit::Run::new(PROGRAM)
        .args(["--ctl", "c.sock", "help"])
        .dir(dir.path())
        .finish();
    assert_eq!(help.status, 0, "{}", help.err);
    let of_help: BTreeSet<String> = help
        .out
        .lines()
        .map(|line| line.split("  ").next().unwrap().to_owned())
        .collect();
    let of_page: BTreeSet<String> = items(&section(&page(), "CONTROL PROTOCOL"), "Cm")
        .iter()
        .map(|(head, _)| request_of_page(head))
        .collect();
    assert_eq!(of_help, of_page);
    assert!(of_page.len() >= 15, "{of_page:?}");
    // And each is known by its name: what is not, is called unknown.
    for request in &of_page {
        let name = request.split(' ').next().unwrap();
        let asked = kit::Run::new(PROGRAM)
            .args(["--ctl", "c.sock", name, "a", "b", "c"])
            .dir(dir.path())
            .finish();
        assert_eq!(asked.status, 2, "{name}: {}", asked.err);
        assert!(!asked.err.contains("unknown"), "{name}: {}", asked.err);
    }
    assert_eq!(master.stop(), 0);
}

#[test]
fn the_environment_is_that_of_the_source() {
    TOOLS.iter().for_each(environment_agrees);
}

fn environment_agrees(tool: &Tool) {
    let page = tool.page();
    let environment = section(&page, "ENVIRONMENT").join("\n");
    let listed: BTreeSet<&str> = environment
        .lines()
        .filter_map(|line| {
            line.strip_prefix(".It Ev ")
                .or_else(|| line.strip_prefix(".Ev "))
        })
        .flat_map(words)
        .filter(|word| word.len() > 1 && !word.ends_with('*'))
        .collect();

    let mut code = tool.source();
    for module in tool.shared {
        code += &source(module);
    }
    let code = joined(&code);
    let mut used: BTreeSet<&str> = BTreeSet::new();
    for before in [
        "var(\"",
        "var_os(\"",
        " set(\"",
        "\nset(\"",
        ".env(\"",
        "env_remove(\"",
        "OsStr::new(\"",
        "insert(\"",
        "VARIABLE: &str = \"",
        "PRELOAD: &str = \"",
    ] {
        used.extend(literals_after(&code, before));
    }
    used.retain(|name| {
        let is_name = name.len() > 2
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        is_name
            && (name.contains('_') || name.bytes().all(|byte| byte.is_ascii_uppercase()))
            && (!name.starts_with(&tool.prefix()) || tool.own.contains(name))
    });
    assert!(used.len() >= tool.variables, "{used:?}");
    for name in &used {
        assert!(listed.contains(name), "{name} is used, and not in the page");
    }
    for name in listed {
        assert!(
            name == tool.prefix() + "OPTION" || code.contains(name),
            "{name} is in the page, and not used"
        );
    }
}

#[test]
fn an_option_from_the_environment_loses_to_the_command_line() {
    let refused = command(PROGRAM)
        .env("SPAWNWORK_WORKERS", "none")
        .arg("true")
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let line = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        line.starts_with("spawnwork: ") && line.contains("none"),
        "{line}"
    );
    let missing = command(PROGRAM)
        .env("SPAWNWORK_WORKERS", "none")
        .args(["-n", "1", "--", "/nonexistent/program"])
        .output()
        .unwrap();
    assert_eq!(
        missing.status.code(),
        Some(127),
        "{}",
        String::from_utf8_lossy(&missing.stderr)
    );
}

#[test]
fn targets_of_make_have_a_line_of_help() {
    let makefile = text_of("Makefile");
    for target in [
        "all",
        "test",
        "check",
        "man",
        "install",
        "uninstall",
        "demo",
        "soak",
        "audit",
        "bench",
        "clean",
        "help",
    ] {
        let line = makefile
            .lines()
            .find(|line| line.starts_with(&format!("{target}:")));
        assert!(line.is_some_and(|line| line.contains(" ## ")), "{target}");
    }
}

// ---- the examples ----

/// Without what a terminal, a supervisor or the user has set.
fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("SPAWNWORK_") || text.starts_with("LISTEN_") {
            command.env_remove(&name);
        }
    }
    for name in [
        "JOURNAL_STREAM",
        "NOTIFY_SOCKET",
        "WEB_CONCURRENCY",
        "NODE_OPTIONS",
        "PORT",
        "MAKEFLAGS",
        "MAKELEVEL",
    ] {
        command.env_remove(name);
    }
    command
}

/// A directory with a small app in each form that the examples name.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let path =
            std::env::temp_dir().join(format!("spawnwork-docs-{}-{name}", std::process::id()));
        std::fs::create_dir_all(path.join("releases/1")).unwrap();
        // Workers of another user come here too.
        for directory in [&path, &path.join("releases"), &path.join("releases/1")] {
            std::fs::set_permissions(directory, PermissionsExt::from_mode(0o755)).unwrap();
        }
        let app = "require('http').createServer((request, response) => response.end('hello\\n'))\n\
                   .listen(process.argv[2] || process.env.PORT || 3000);\n";
        let files = [
            ("app.js", app),
            ("releases/1/app.js", app),
            ("job.js", "setInterval(() => {}, 1000);\n"),
            (
                "package.json",
                "{\"private\": true, \"scripts\": {\"start\": \"node app.js\"}}\n",
            ),
            ("app.env", "# settings\nGREETING=\"good morning\"\n"),
            (
                "app.py",
                "def app(environ, start):\n    start('200 OK', [('Content-Length', '6')])\n    return [b'hello\\n']\n",
            ),
        ];
        for (name, text) in files {
            std::fs::write(path.join(name), text).unwrap();
            std::fs::set_permissions(path.join(name), PermissionsExt::from_mode(0o644)).unwrap();
        }
        std::os::unix::fs::symlink("1", path.join("releases/current")).unwrap();
        Place(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A spawnwork of an example.
struct Running {
    line: String,
    child: Child,
    said: Receiver<String>,
    log: Vec<String>,
}

impl Running {
    /// Its events up to the first that begins with `event`.
    fn wait_for(&mut self, event: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self
                .said
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => {
                    let found = line
                        .split("]: ")
                        .nth(1)
                        .is_some_and(|said| said.starts_with(event));
                    self.log.push(line);
                    if found {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!("no {event} of: {}\n{}", self.line, self.log.join("\n"))
                }
                Err(RecvTimeoutError::Disconnected) => panic!(
                    "ended without {event}: {}\n{}",
                    self.line,
                    self.log.join("\n")
                ),
            }
        }
    }

    /// Its end, which must be a good one.
    fn ends(mut self) {
        let deadline = Instant::now() + PATIENCE;
        // stderr is at its end when the program is.
        loop {
            match self
                .said
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => self.log.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("does not end: {}\n{}", self.line, self.log.join("\n"))
                }
            }
        }
        let status = self.child.wait().unwrap();
        assert!(
            status.success(),
            "{status} of: {}\n{}",
            self.line,
            self.log.join("\n")
        );
    }

    fn signal(&self, signal: Signal) {
        kill(
            Pid::from_raw(i32::try_from(self.child.id()).unwrap()),
            signal,
        )
        .unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.signal(Signal::SIGQUIT);
            let _ = self.child.wait();
        }
    }
}

/// Runs the lines of a document one after another, as a person would in two terminals: a spawnwork
/// stays until the next one is started, and other commands run beside it.
struct Session {
    place: Place,
    port: u16,
    running: Option<Running>,
    count: usize,
}

impl Session {
    fn new(name: &str) -> Session {
        Session {
            place: Place::new(name),
            port: 0,
            running: None,
            count: 0,
        }
    }

    /// All that differs from what is written there:
    /// ports are free ones (8000 and 80 as words or behind a colon; the app's 3000 by PORT),
    /// without root there is no `-u`, and a `make` says what it would do (`-n`).
    fn adapted(&self, line: &str) -> String {
        let line = line.split(" #").next().unwrap().trim();
        let root = nix::unistd::geteuid().is_root();
        let port = self.port.to_string();
        let mut words: Vec<String> = Vec::new();
        let mut source = line.split(' ').peekable();
        while let Some(word) = source.next() {
            match word {
                "-u" if !root => {
                    source.next();
                }
                "80" | "8000" => words.push(port.clone()),
                "make" => words.push(format!("make -C '{}' -n", root_text())),
                word => words.push(match word.strip_suffix(":8000") {
                    Some(host) => format!("{host}:{port}"),
                    None => word.to_owned(),
                }),
            }
        }
        words.join(" ")
    }

    fn shell(&self, line: &str) -> Command {
        let directory = Path::new(PROGRAM).parent().unwrap();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let paths = std::iter::once(directory.to_owned()).chain(std::env::split_paths(&path));
        let mut shell = command("/bin/sh");
        shell
            .args(["-c", line])
            .current_dir(&self.place.0)
            .env("PATH", std::env::join_paths(paths).unwrap())
            .env("PORT", self.port.to_string())
            .env("npm_config_update_notifier", "false")
            .stdin(Stdio::null());
        shell
    }

    fn run(&mut self, line: &str) {
        self.count += 1;
        if line.starts_with("spawnwork ") && !line.contains("--ctl ") {
            self.stop();
            self.port = free_port();
            let adapted = self.adapted(line);
            let mut child = self
                .shell(&format!("exec {adapted}"))
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let stderr = BufReader::new(child.stderr.take().unwrap());
            let (sender, said) = channel();
            std::thread::spawn(move || {
                for line in stderr.lines() {
                    let Ok(line) = line else { return };
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            });
            let mut running = Running {
                line: adapted,
                child,
                said,
                log: Vec::new(),
            };
            running.wait_for("generation-serving");
            if !line.contains("job.js") {
                assert_eq!(
                    get(self.port),
                    "hello\n",
                    "{}\n{}",
                    running.line,
                    running.log.join("\n")
                );
            }
            self.running = Some(running);
            return;
        }
        let adapted = self.adapted(line);
        let output = self.shell(&adapted).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{adapted}: {error}");
        let event = match line.split_whitespace().nth(1) {
            _ if line.contains("--ctl ") && line.ends_with(" stop") => {
                self.running.take().unwrap().ends();
                return;
            }
            _ if !line.starts_with("kill ") => return,
            Some("-USR2") => "reload-committed",
            Some("-USR1") => "status",
            Some("-TTIN") => "workers-changed",
            _ => {
                self.running.take().unwrap().ends();
                return;
            }
        };
        self.running.as_mut().unwrap().wait_for(event);
        assert_eq!(get(self.port), "hello\n", "after {line}");
    }

    fn stop(&mut self) {
        if let Some(running) = self.running.take() {
            running.signal(Signal::SIGTERM);
            running.ends();
        }
    }
}

fn root_text() -> String {
    root().to_string_lossy().into_owned()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn get(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
        .write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned())
        .unwrap_or_default()
}

#[test]
fn examples_of_the_page_run() {
    let mut session = Session::new("page");
    for line in section(&page(), "EXAMPLES") {
        if let Some(line) = line.strip_prefix(".Dl $ ") {
            session.run(&line.replace("\\-", "-"));
        }
    }
    session.stop();
    assert!(session.count >= 5, "only {} examples", session.count);
}

#[test]
fn examples_of_help_run() {
    let mut session = Session::new("help");
    for line in help().lines().skip_while(|line| *line != "Examples:") {
        if let Some(line) = line.strip_prefix("  ") {
            session.run(line);
        }
    }
    session.stop();
    assert_eq!(session.count, 2);
}

fn of_others(line: &str) -> bool {
    let mut others = TOOLS[1..].iter();
    others.any(|tool| line.contains(&format!("{} ", tool.name)))
}

#[test]
fn commands_of_the_readme_run() {
    let mut session = Session::new("readme");
    let mut within = false;
    for line in text_of("README.md").lines().map(str::trim) {
        match line {
            "```sh" => within = true,
            "```" => within = false,
            // Those of other tools are run by their own tests.
            line if within && !line.is_empty() && !of_others(line) => session.run(line),
            _ => {}
        }
    }
    session.stop();
    assert!(session.count >= 9, "only {} commands", session.count);
}

#[test]
fn what_the_readme_points_at_is_there() {
    let text = text_of("README.md");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let linked = text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter(|link| !link.contains(':'));
    let quoted = text.split('`').skip(1).step_by(2).filter(|word| {
        let first = word.split('/').next().unwrap_or_default();
        ["bins", "common", "docs", "examples", "tests"].contains(&first) && !word.contains('*')
    });
    let mut count = 0;
    for path in linked.chain(quoted) {
        count += 1;
        let there = path.contains(' ') || root.join(path).exists();
        assert!(there, "README.md points at {path}, which is not there");
    }
    assert!(count >= 30, "only {count} paths");
    let benches = text_of("tests/bench/Cargo.toml");
    for name in text.split("--bench ").skip(1) {
        let name = name.split(['`', ' ', '\n']).next().unwrap();
        let line = format!("name = \"{name}\"");
        assert!(benches.contains(&line), "README.md names a bench {name}");
    }
}

/// The lines between two that are marks.
fn between(text: &str, begin: &str, end: &str) -> String {
    let within = text.lines().skip_while(|line| *line != begin).skip(1);
    let lines: Vec<&str> = within.take_while(|line| *line != end).collect();
    lines.join("\n").trim_end().to_owned()
}

#[test]
fn figures_are_those_of_one_run_of_the_bench() {
    let results = text_of("docs/bench/results.tsv");
    let date = results.trim_start_matches("# ").split(';').next().unwrap();
    let kept = text_of("docs/bench/summary.md");
    assert!(kept.contains(&format!("Of {date} UTC")), "{date}: {kept}");
    let readme = text_of("README.md");
    let own = between(&readme, "<!-- bench: begin -->", "<!-- bench: end -->");
    assert_eq!(own, kept.trim_end(), "run docs/bench.sh");
    for tool in &TOOLS {
        let kept = text_of(&format!("docs/bench/{}.man", tool.name));
        assert!(kept.contains(date), "{}: {date}", tool.name);
        let own = between(&tool.page(), ".\\\" bench: begin", ".\\\" bench: end");
        assert_eq!(own, kept.trim_end(), "{}: run docs/bench.sh", tool.name);
    }
    // Each number of README is one of the results, rounded.
    let medians: Vec<(&str, f64)> = results
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split('\t').collect();
            Some((*fields.get(4)?, fields.get(6)?.parse().ok()?))
        })
        .collect();
    let mut count = 0;
    for row in kept.lines().filter(|line| line.starts_with("| `")) {
        let others = row.split(" | ").nth(2).unwrap_or_default();
        for one in others.trim_end_matches(" |").split("; ") {
            let Some((name, value)) = one.rsplit_once(' ') else {
                continue;
            };
            if value == "never" {
                continue;
            }
            let name = name.replace("\\|", "|");
            let value: f64 = value.parse().unwrap();
            let near = |median: f64| (median - value).abs() <= value.abs() * 0.01 + 0.0006;
            let there = medians
                .iter()
                .any(|(who, median)| *who == name && near(*median));
            assert!(there, "{row}: {name} {value}");
            count += 1;
        }
    }
    assert!(count >= 20, "only {count} figures");
}
