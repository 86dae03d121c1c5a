//! `env`: a command whose Node, Python and Ruby processes can be reached. Nothing stays behind: it becomes
//! the command.

use crate::cli::Env;
use crate::door;
use crate::target::is_app;
use common::error::{Doing, Error, Result, describe};
use common::exit::Exit;
use nix::unistd::geteuid;
use std::ffi::OsString;
use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The agents, by their files' names.
pub const AGENTS: [(&str, &str); 3] = [
    ("agent.cjs", include_str!("agent.cjs")),
    ("sitecustomize.py", include_str!("agent.py")),
    ("replsock_agent.rb", include_str!("agent.rb")),
];

/// Becomes the command, or prints the lines that a shell can evaluate.
pub fn run(order: Env) -> Result<Exit> {
    if !is_app(&order.app) {
        return Err(Error::usage(format!(
            "--app '{}': letters, digits, '.', '_' and '-' would do",
            order.app
        )));
    }
    let directory = std::path::absolute(door::directory()).doing("find the directory")?;
    door::make(&directory)?;
    let agents = install(&directory)?;
    let variables = variables(&order, &directory, &agents)?;
    let Some((program, arguments)) = order.command.split_first() else {
        for (name, value) in variables {
            let value = value.to_string_lossy().replace('\'', "'\\''");
            common::cli::print(&format!("export {name}='{value}'"))?;
        }
        return Ok(Exit::Ok);
    };
    let why = Command::new(program).args(arguments).envs(variables).exec();
    let exit = if why.kind() == std::io::ErrorKind::NotFound {
        Exit::NotFound
    } else {
        Exit::NotExecutable
    };
    let doing = format!("execute {}", program.to_string_lossy());
    Err(Error::new(&doing, describe(&why)).with_exit(exit))
}

/// Lays the agents down where nobody but their owner can write: what stands there is run by the app.
fn install(directory: &Path) -> Result<PathBuf> {
    let root = geteuid().is_root();
    // Root's app may run as another user (spawnwork -u), who must be able to read its agent: the directory
    // can be passed through by name, its sockets' directories are closed all the same.
    let (outer, inner, readable) = if root {
        (0o711, 0o755, 0o644)
    } else {
        (0o700, 0o700, 0o600)
    };
    let doing = format!("lay the agents down in {}", directory.display());
    if root {
        let rights = directory.symlink_metadata().doing(&doing)?.permissions();
        if rights.mode() & 0o777 == 0o700 {
            std::fs::set_permissions(directory, PermissionsExt::from_mode(outer)).doing(&doing)?;
        }
    }
    let mut place = directory.join(".agents");
    // By their content: a process that starts later must find the file that it was told of.
    for name in ["", &digest()] {
        place = place.join(name);
        match DirBuilder::new().mode(inner).create(&place) {
            Ok(()) => {
                // Whatever the umask is.
                std::fs::set_permissions(&place, PermissionsExt::from_mode(inner)).doing(&doing)?;
            }
            Err(why) if why.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(why) => return Err(why).doing(&doing),
        }
        door::check(&place)?;
    }
    for (name, text) in AGENTS {
        let path = place.join(name);
        if std::fs::read(&path).is_ok_and(|found| found == text.as_bytes()) {
            continue;
        }
        let temporary = place.join(format!(".{:08x}", common::time::random() as u32));
        let written = (|| {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(readable)
                .open(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.set_permissions(PermissionsExt::from_mode(readable))?;
            std::fs::rename(&temporary, &path)
        })();
        if let Err(why) = written {
            let _ = std::fs::remove_file(&temporary);
            return Err(why).doing(&doing);
        }
    }
    Ok(place)
}

/// A name for this set of agents (FNV-1a: it only has to differ where they do).
fn digest() -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in AGENTS.iter().flat_map(|(_, text)| text.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{}-{hash:016x}", env!("CARGO_PKG_VERSION"))
}

/// What the agents are told, in JSON.
pub fn settings(app: &str, directory: &Path, option: &str, signal: i32, max_ms: u128) -> String {
    let name = common::signal::name(signal);
    serde_json::json!({
        "app": app,
        "dir": directory.to_string_lossy(),
        "option": option,
        "prof_signal": format!("SIG{name}"),
        "prof_max_ms": max_ms as u64,
    })
    .to_string()
}

fn variables(
    order: &Env,
    directory: &Path,
    agents: &Path,
) -> Result<Vec<(&'static str, OsString)>> {
    let text = |path: &Path| {
        path.to_str()
            .map(str::to_owned)
            .ok_or_else(|| Error::usage(format!("the directory {} is no UTF-8", path.display())))
    };
    let agent = text(&agents.join("agent.cjs"))?;
    // As node reads NODE_OPTIONS: blanks divide, double quotes hold together, backslashes escape in them.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+@:,=~%".contains(&byte);
    let option = if agent.bytes().all(plain) {
        format!("--require={agent}")
    } else {
        format!(
            "--require=\"{}\"",
            agent.replace('\\', "\\\\").replace('"', "\\\"")
        )
    };
    let joined = |name: &str, part: &str, divider: &str, first: bool| {
        let mut all = OsString::new();
        let before = std::env::var_os(name).filter(|value| !value.is_empty());
        if let (Some(before), false) = (&before, first) {
            all.push(before);
            all.push(divider);
        }
        all.push(part);
        if let (Some(before), true) = (&before, first) {
            all.push(divider);
            all.push(before);
        }
        all
    };
    let settings = settings(
        &order.app,
        Path::new(&text(directory)?),
        &option,
        order.prof_signal,
        order.prof_max.as_millis(),
    );
    let mut list: Vec<(&'static str, OsString)> = vec![
        ("REPLSOCK_AGENT", settings.into()),
        ("NODE_OPTIONS", joined("NODE_OPTIONS", &option, " ", false)),
        (
            "PYTHONPATH",
            joined("PYTHONPATH", &text(agents)?, ":", true),
        ),
    ];
    let ruby = text(&agents.join("replsock_agent"))?;
    // Ruby knows no quotes there.
    if !ruby.contains(char::is_whitespace) {
        list.push((
            "RUBYOPT",
            joined("RUBYOPT", &format!("-r{ruby}"), " ", false),
        ));
    }
    Ok(list)
}
