//! `make install` and `make uninstall`, with the programs that are built for the tests; completions in their shells.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::{Dir, Finished, Run, root, sibling};
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const PROGRAM: &str = env!("CARGO_BIN_EXE_spawnwork");
const TOOLS: [&str; 5] = [
    "heartbeat",
    "logreopen",
    "replsock",
    "spawnwork",
    "watchtouch",
];

struct Installed {
    dir: Dir,
}

impl Installed {
    fn new() -> Installed {
        let dir = Dir::new();
        // A release is small and slow to build; these do the same.
        let release = dir.path().join("target/release");
        std::fs::create_dir_all(&release).unwrap();
        for tool in TOOLS {
            std::os::unix::fs::symlink(sibling(PROGRAM, tool), release.join(tool)).unwrap();
        }
        let installed = Installed { dir };
        installed.make("install");
        installed
    }

    fn make(&self, target: &str) {
        let run = Run::new("make")
            .args(["-s", "-C"])
            .arg(root())
            .arg(target)
            .env("CARGO_TARGET_DIR", self.dir.path().join("target"))
            .env("DESTDIR", self.dir.path().join("to"))
            .env("PREFIX", "/usr")
            .env("MAKEFLAGS", "")
            .finish();
        assert_eq!((run.status, &*run.err), (0, ""), "{target}: {}", run.out);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("to/usr").join(name)
    }

    fn shell(&self, words: &[&str], script: &str) -> Finished {
        Run::new(words[0])
            .args(&words[1..])
            .arg(script)
            .dir(self.dir.path())
            .env("HOME", self.dir.path())
            .finish()
    }
}

/// All files below, by their names from there.
fn files(directory: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut left = vec![directory.to_owned()];
    while let Some(next) = left.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else {
                found.insert(path.strip_prefix(directory).unwrap().to_owned());
            }
        }
    }
    found
}

#[test]
fn what_is_installed_is_removed() {
    let installed = Installed::new();
    let found = files(&installed.path(""));
    for tool in TOOLS {
        for name in [
            format!("bin/{tool}"),
            format!("share/man/man1/{tool}.1"),
            format!("share/bash-completion/completions/{tool}"),
            format!("share/zsh/site-functions/_{tool}"),
            format!("share/fish/vendor_completions.d/{tool}.fish"),
        ] {
            assert!(found.contains(Path::new(&name)), "{name}: {found:?}");
        }
    }
    let examples = installed.path("share/nirvana/examples");
    for (name, mode) in [
        ("deploy/deploy", 0o755),
        ("runit/run", 0o755),
        ("app/app.js", 0o644),
    ] {
        let file = std::fs::metadata(examples.join(name)).unwrap();
        assert_eq!(file.permissions().mode() & 0o777, mode, "{name}");
    }
    // What is not ours stays.
    let other = installed.path("share/nirvana/examples/mine");
    std::fs::write(&other, "").unwrap();
    installed.make("uninstall");
    let left = files(&installed.path(""));
    assert_eq!(left.len(), 1, "{left:?}");
    std::fs::remove_file(other).unwrap();
    installed.make("install");
    installed.make("uninstall");
    assert!(!installed.path("share/nirvana").exists());
}

#[test]
fn completions_complete() {
    let installed = Installed::new();
    let help = Run::new(PROGRAM).arg("--help").finish().out;
    let options: BTreeSet<&str> = help
        .split([' ', '\n', ','])
        .filter(|word| word.starts_with("--r") && word.len() > 3)
        .collect();
    assert!(options.len() >= 3, "{options:?}");

    let bash = |tool: &str, words: &str, at: usize| -> Vec<String> {
        let file = installed
            .path("share/bash-completion/completions")
            .join(tool);
        let script = format!(
            ". {}; COMP_WORDS=({words}); COMP_CWORD={at}; _{tool}; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            file.display()
        );
        let run = installed.shell(&["bash", "-c"], &script);
        assert_eq!((run.status, &*run.err), (0, ""));
        run.out.split_whitespace().map(str::to_owned).collect()
    };
    let found = bash("spawnwork", "spawnwork --r", 1);
    assert_eq!(
        found.iter().map(|word| &**word).collect::<BTreeSet<_>>(),
        options
    );
    assert_eq!(bash("replsock", "replsock at", 1), ["attach"]);
    assert!(bash("spawnwork", "spawnwork -- env", 2).contains(&"env".to_owned()));

    let fish = |line: &str| -> String {
        let files = installed.path("share/fish/vendor_completions.d");
        let script = format!(
            "for file in {}/*.fish; source $file; end; complete -C '{line}'",
            files.display()
        );
        let run = installed.shell(&["fish", "--no-config", "-c"], &script);
        assert_eq!(run.status, 0, "{}", run.err);
        run.out
    };
    let said = fish("spawnwork --r");
    for option in &options {
        assert!(said.contains(&format!("{option}\t")), "{option}: {said}");
    }
    assert!(fish("replsock at").starts_with("attach\t"));

    // A shell that nobody types in completes nothing, but it can say what it would do.
    let script = format!(
        "fpath=({} $fpath); autoload -U compinit; compinit -D -u\n\
         _arguments() {{ print -rl -- \"$@\"; }}\n\
         for tool in {}; do [[ -n ${{_comps[$tool]}} ]] || exit 1; done\n_spawnwork",
        installed.path("share/zsh/site-functions").display(),
        TOOLS.join(" ")
    );
    let run = installed.shell(&["zsh", "-f", "-c"], &script);
    assert_eq!(run.status, 0, "{}", run.err);
    for option in &options {
        assert!(
            run.out.contains(&format!("{option}[")),
            "{option}: {}",
            run.out
        );
    }
}
