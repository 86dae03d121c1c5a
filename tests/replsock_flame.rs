//! Flame graphs of real profiles: what Node itself writes, and what is taken from a live worker.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::live::Live;
use kit::{Dir, Run, eventually, node};
use nix::sys::stat::Mode;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};

const PROGRAM: &str = env!("CARGO_BIN_EXE_replsock");

/// Its names are hard on XML and on a script.
const HOT: &str = "const o = { 'a<b>&\"\\'</script>'() { const end = Date.now() + 900; let n = 0;\n\
    while (Date.now() < end) n += 1; return n; } };\n\
    function main() { return Object.values(o)[0](); }\nmain();\n";
const NAME: &str = "a<b>&\"'</script>";

/// Reads a graph as XML, and prints width and title of each of its boxes.
const BOXES: &str = "import sys, xml.etree.ElementTree as tree\n\
    for one in tree.parse(sys.argv[1]).getroot().iter('{http://www.w3.org/2000/svg}g'):\n\
    \x20 box, title = (one.find('{http://www.w3.org/2000/svg}' + name) for name in ('rect', 'title'))\n\
    \x20 if box is not None and title is not None: print(box.get('width'), title.text.replace('\\n', ' '))\n";

fn flame(dir: &Dir, words: &[&str]) -> kit::Finished {
    Run::new(PROGRAM)
        .arg("flame")
        .args(words)
        .dir(dir.path())
        .finish()
}

fn profiled(version: &str) -> Dir {
    let dir = Dir::new();
    dir.write("hot.js", HOT);
    let run = Run::new(node(version))
        .args(["--cpu-prof", "--cpu-prof-name=hot.cpuprofile", "hot.js"])
        .dir(dir.path())
        .finish();
    assert_eq!(run.status, 0, "{}", run.err);
    dir
}

#[test]
fn the_hot_function_of_a_real_profile_has_most_of_the_width() {
    for version in ["16", "20", "26"] {
        let dir = profiled(version);
        let folded = flame(&dir, &["--folded", "hot.cpuprofile"]);
        assert_eq!(folded.status, 0, "{}", folded.err);
        let (mut all, mut hot) = (0, 0);
        for line in folded.out.lines() {
            let (stack, time) = line.rsplit_once(' ').unwrap();
            let time: u64 = time.parse().unwrap();
            all += time;
            if stack.contains(NAME) {
                hot += time;
            }
        }
        assert!(hot * 10 > all * 8, "{version}: {hot} of {all}");
        let top = flame(&dir, &["--top", "hot.cpuprofile"]).out;
        let first = top.lines().nth(1).unwrap();
        assert!(first.contains(NAME), "{version}: {top}");

        let drawn = flame(&dir, &["-o", "hot.svg", "hot.cpuprofile"]);
        assert_eq!((drawn.status, &*drawn.out), (0, ""), "{}", drawn.err);
        let file = dir.path().join("hot.svg");
        let mode = file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "a profile is nobody else's");
        let boxes = Run::new("python3")
            .args(["-c", BOXES, "hot.svg"])
            .dir(dir.path())
            .finish();
        assert_eq!(boxes.status, 0, "{version}: {}", boxes.err);
        let widths = |wanted: &str| {
            let lines = boxes.out.lines().filter(|line| line.contains(wanted));
            lines
                .map(|line| line.split(' ').next().unwrap().parse::<f64>().unwrap())
                .fold(0.0, f64::max)
        };
        let (hot, all) = (widths(NAME), widths(""));
        assert!(hot > all * 0.8, "{version}: {hot} of {all}\n{}", boxes.out);
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(!text.contains("href=\"http") && !text.contains("src="));
        // The same through a pipe, and to standard output.
        let piped = Run::new("sh")
            .args(["-c", "\"$0\" flame < hot.cpuprofile", PROGRAM])
            .dir(dir.path())
            .finish();
        assert!(piped.out.contains("<svg"), "{}", piped.err);
    }
}

#[test]
fn what_is_no_profile_is_said_in_a_line() {
    let dir = Dir::new();
    dir.write("text", "hello\n");
    dir.write("empty", "");
    dir.write("list", "[]");
    dir.write("half", "{\"nodes\":[{\"id\":1,\"callFrame\":{\"func");
    for file in ["text", "empty", "list", "half", "absent", "."] {
        let run = flame(&dir, &["--folded", file]);
        assert_eq!((run.status, &*run.out), (125, ""), "{file}: {}", run.err);
        assert_eq!(run.err.lines().count(), 1, "{file}: {}", run.err);
        assert!(run.err.contains(file), "{file}: {}", run.err);
    }
    let both = flame(&dir, &["--folded", "--top", "text"]);
    assert_eq!(both.status, 2, "{}", both.err);
}

#[test]
fn what_is_no_regular_file_is_written_to_and_not_replaced() {
    let dir = profiled("20");
    let live = Live::start(
        PROGRAM,
        &[("app.js", "setInterval(() => {}, 10);\n")],
        &["node", "app.js"],
    );
    let _ = live.socket();
    let pipe = dir.path().join("pipe");
    nix::unistd::mkfifo(&pipe, Mode::S_IRWXU).unwrap();
    let to = pipe.to_str().unwrap();
    let profile = dir.path().join("hot.cpuprofile");
    let profile = profile.to_str().unwrap();
    for words in [["flame", profile, "-o", to], ["heap", "shop", "-o", to]] {
        let reader = pipe.clone();
        let reader = std::thread::spawn(move || std::fs::read(reader).unwrap());
        let run = live.ask(&words);
        assert_eq!(run.status, 0, "{words:?}: {}", run.err);
        assert!(
            pipe.symlink_metadata().unwrap().file_type().is_fifo(),
            "{words:?} replaced it"
        );
        eventually("it came through", || reader.is_finished().then_some(()));
        assert!(!reader.join().unwrap().is_empty(), "{words:?}");
    }
}
