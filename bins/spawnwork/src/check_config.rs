//! `--check-config`: what would be done, as `key: value` lines. Nothing is bound, nothing is started.

use crate::cli::{Balance, Cli, Ready};
use crate::launch::{self, Generation, Given, Who};
use crate::plan::{Listen, Node, Plan, Readiness};
use clap::CommandFactory;
use clap::parser::ValueSource;
use common::error::{Doing, Error, Result};
use common::exit::Exit;
use common::socket::{self, Address};
use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::net::ToSocketAddrs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Prints it.
///
/// # Errors
/// What a start would end with, as far as it can be told without starting.
pub fn run(plan: &Plan) -> Result<Exit> {
    let generation = Generation::new(1, plan)?;
    let program = executable(plan, &generation)?;
    for path in plan.pid_file.iter().chain(&plan.control) {
        directory_of(path)?;
    }
    let mut lines = vec![
        ("program", words(&plan.command)),
        ("executable", program.display().to_string()),
        ("workers", plan.workers.to_string()),
        ("node", node(plan).to_owned()),
    ];
    if let Some(path) = generation.directory() {
        lines.push(("directory", path.display().to_string()));
    }
    if let Some(user) = &plan.user {
        lines.push((
            "user",
            format!("{} (uid {}, gid {})", user.name, user.uid, user.gid),
        ));
    }
    for one in &plan.listen {
        lines.push(("listen", listen(plan, one)?));
    }
    lines.push(("balance", balance(plan).to_owned()));
    lines.push(("ready", ready(&plan.ready)));
    for (key, piped) in [("stdout", plan.pipe_stdout), ("stderr", plan.pipe_stderr)] {
        let how = if piped {
            "whole lines, through us"
        } else {
            "inherited"
        };
        lines.push((key, how.to_owned()));
    }
    lines.push(("sweep", crate::cgroups::describe()));
    let (soft, hard) = plan.nofile;
    lines.push(("nofile", format!("{soft} (hard limit {hard})")));
    let options = options();
    let lines = lines
        .iter()
        .map(|(key, value)| ((*key).to_owned(), value))
        .chain(options.iter().map(|(key, value)| (key.clone(), value)));
    let mut text = String::new();
    for (key, value) in lines {
        // A value that holds a line break must not look like a line of ours.
        let _ = writeln!(text, "{key}: {}", visible(value));
    }
    // Nobody reads on: no fault of ours.
    common::cli::print(text.trim_end()).map(|_| Exit::Ok)
}

/// The file that execve(2) would get, by the worker's own PATH and directory.
fn executable(plan: &Plan, generation: &Generation) -> Result<PathBuf> {
    let who = Who {
        id: 1,
        slot: 0,
        workers: plan.workers,
        generation,
        last_exit: None,
    };
    let image = launch::image(plan, who, &Given::default())?;
    let mut refused = None;
    for candidate in image.candidates {
        let path = Path::new(OsStr::from_bytes(candidate.as_bytes()));
        let from = generation
            .directory()
            .map_or(Path::new(""), PathBuf::as_path);
        match std::fs::metadata(from.join(path)) {
            Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => {
                return Ok(path.to_owned());
            }
            Ok(_) => refused = Some(Exit::NotExecutable),
            Err(_) => {}
        }
    }
    let program = plan.command.first().cloned().unwrap_or_default();
    let doing = format!("execute '{}'", program.to_string_lossy());
    Err(match refused {
        Some(exit) => Error::new(&doing, "permission denied").with_exit(exit),
        None => Error::new(&doing, "no such file or directory").with_exit(Exit::NotFound),
    })
}

fn directory_of(path: &Path) -> Result<()> {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let doing = format!("make {}", path.display());
    let found = std::fs::metadata(directory).doing(&doing)?;
    if found.is_dir() {
        Ok(())
    } else {
        Err(Error::new(
            &doing,
            format!("{} is no directory", directory.display()),
        ))
    }
}

fn node(plan: &Plan) -> &'static str {
    match plan.node {
        Node::No => "no",
        Node::Direct => "yes, its cluster protocol",
        Node::Shim => "yes, through the package manager's script shell",
    }
}

fn balance(plan: &Plan) -> &'static str {
    match plan.balance {
        Balance::Shared => "shared, one socket for all workers",
        Balance::RoundRobin => "round-robin, the master accepts",
        Balance::Slots => "slots, a TCP socket for each",
    }
}

fn ready(ready: &Readiness) -> String {
    match ready {
        Readiness::Found => "notify if the worker speaks it, else alive for 1s".to_owned(),
        Readiness::Told(Ready::Listen) => "listen".to_owned(),
        Readiness::Told(Ready::Notify) => "notify".to_owned(),
        Readiness::Told(Ready::Fd(number)) => format!("a newline on descriptor {number}"),
        Readiness::Told(Ready::Exec(command)) => format!("when this succeeds: {command}"),
        Readiness::Told(Ready::Alive(length)) => {
            format!("alive for {}", common::time::say(*length))
        }
    }
}

/// An address, its name, and who has it now: our own running master, as a rule, so that is no error.
fn listen(plan: &Plan, one: &Listen) -> Result<String> {
    match one {
        Listen::Take(name, inherited) => Ok(format!("descriptor {} as {name}", inherited.number)),
        Listen::Bind(name, address) => {
            let mut text = format!("{address} as {name}");
            match address {
                Address::Unix(path) => {
                    directory_of(path)?;
                    let _ = write!(text, ", mode {:04o}", plan.rights.mode);
                }
                Address::Tcp { host, port } => {
                    if let Some(host) = host {
                        (host.as_str(), *port)
                            .to_socket_addrs()
                            .doing(&format!("bind {address}"))?;
                    }
                    let holder = Some(address).filter(|_| *port != 0);
                    if let Some((pid, command)) = holder.and_then(socket::holder_of) {
                        let _ = write!(text, ", in use now (held by pid {pid}, {command})");
                    }
                }
            }
            Ok(text)
        }
    }
}

/// Options that were given, here or in the environment, with all their values.
fn options() -> Vec<(String, String)> {
    let mut command = Cli::command();
    command.build();
    let mut list = Vec::new();
    // The same words were parsed already, so there is no error to tell of.
    let Ok(matches) = command.clone().try_get_matches() else {
        return list;
    };
    for option in command.get_arguments() {
        let id = option.get_id().as_str();
        let (Some(long), false) = (option.get_long(), id == "check_config") else {
            continue;
        };
        let from = match matches.value_source(id) {
            Some(ValueSource::CommandLine) => String::new(),
            Some(ValueSource::EnvVariable) => {
                let name = option.get_env().unwrap_or_default();
                format!(" (from {})", name.to_string_lossy())
            }
            _ => continue,
        };
        let takes_value = option.get_action().takes_values();
        let values = matches.get_raw(id).into_iter().flatten();
        let values: Vec<String> = values
            .filter(|_| takes_value)
            .map(|value| value.to_string_lossy().into_owned())
            .collect();
        if !takes_value && !matches.get_flag(id) {
            // Given as false.
            continue;
        }
        let defaults = option.get_default_values();
        if takes_value
            && values.len() == 1
            && defaults.first().is_some_and(|one| *one == *values[0])
        {
            continue;
        }
        if values.is_empty() {
            list.push((format!("--{long}"), format!("yes{from}")));
        }
        for value in values {
            list.push((format!("--{long}"), format!("{value}{from}")));
        }
    }
    list
}

/// A command line, as one would type it.
fn words(command: &[OsString]) -> String {
    let words: Vec<String> = command
        .iter()
        .map(|word| {
            let word = word.to_string_lossy();
            let plain = |letter: char| letter.is_alphanumeric() || "%+,-./:=@_".contains(letter);
            if !word.is_empty() && word.chars().all(plain) {
                word.into_owned()
            } else {
                format!("'{}'", word.replace('\'', "'\\''"))
            }
        })
        .collect();
    words.join(" ")
}

fn visible(text: &str) -> String {
    let mut out = String::new();
    for letter in text.chars() {
        if letter.is_control() {
            out.extend(letter.escape_default());
        } else {
            out.push(letter);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_as_typed_and_nothing_that_forges_a_line() {
        let command = ["node", "my app.js", "it's", "", "a=b"].map(OsString::from);
        assert_eq!(words(&command), "node 'my app.js' 'it'\\''s' '' a=b");
        assert_eq!(visible("a\nlisten: x\u{1b}"), "a\\nlisten: x\\u{1b}");
    }
}
