//! The flame graph in a real browser: Chromium without a window, spoken to in its DevTools protocol over two
//! pipes, the mouse moved and pressed as its own input is. It must open, zoom, find, and run nothing of what
//! the app's names say. Without Chromium this fails: `tests/setup.sh` installs it.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::live::Live;
use kit::{Dir, Run, Running, node};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_replsock");

/// Two functions of very different width below one, and the name of one is a page of its own.
const APP: &str = "const spin = (ms) => { const end = Date.now() + ms; let n = 0; while (Date.now() < end) n += 1; return n; };\n\
    const all = { hot() { return spin(40); },\n\
    'cool<img src=x onerror=\"evil=1\">]]></script><script>evil=1</script>'() { return spin(10); } };\n\
    function turn() { for (const one of Object.values(all)) one(); }\n\
    if (process.argv[2]) for (let n = 0; n < 25; n += 1) turn();\n\
    else setInterval(turn, 60);\n";
const COOL: &str = "cool<img";

/// A browser with one page. It answers by a NUL-ended line for each command.
struct Browser {
    running: Running,
    to: File,
    from: File,
    bytes: Vec<u8>,
    next: u64,
    session: Option<String>,
    events: Vec<Value>,
}

impl Browser {
    fn open(dir: &Dir, page: &Path) -> Browser {
        let there = Run::new("sh").args(["-c", "command -v chromium"]).finish();
        assert_eq!(
            there.status, 0,
            "chromium is missing, without which nobody knows whether the flame graph works: run tests/setup.sh"
        );
        let pipe = |name: &str| {
            let path = dir.path().join(name);
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
            // Both ends, so that nobody waits for the other to open it.
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(nix::libc::O_NONBLOCK)
                .open(&path)
                .unwrap();
            (path, file)
        };
        let (commands, to) = pipe("commands");
        let (answers, from) = pipe("answers");
        let running = Run::new("sh")
            .args([
                "-c",
                "exec 3<\"$1\" 4>\"$2\"; shift 2; exec chromium \"$@\"",
                "sh",
            ])
            .args([&commands, &answers])
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--window-size=1300,900",
                "--remote-debugging-pipe",
            ])
            .arg(format!(
                "--user-data-dir={}",
                dir.path().join("profile").display()
            ))
            .env("HOME", dir.path())
            .env("XDG_CONFIG_HOME", dir.path().join("config"))
            .env("XDG_CACHE_HOME", dir.path().join("cache"))
            .start();
        let mut browser = Browser {
            running,
            to,
            from,
            bytes: Vec::new(),
            next: 0,
            session: None,
            events: Vec::new(),
        };
        let url = format!("file://{}", page.canonicalize().unwrap().display());
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}));
        let attached = browser.call(
            "Target.attachToTarget",
            json!({"targetId": target["targetId"], "flatten": true}),
        );
        browser.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Runtime", "Page", "Network", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser.call("Page.navigate", json!({"url": url}));
        browser.until(
            "document.readyState === 'complete' && document.querySelectorAll('g.c').length > 3",
        );
        browser
    }

    fn receive(&mut self) -> Value {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(at) = self.bytes.iter().position(|byte| *byte == 0) {
                let line: Vec<u8> = self.bytes.drain(..=at).collect();
                return serde_json::from_slice(&line[..at]).unwrap();
            }
            let mut buffer = [0u8; 65536];
            match self.from.read(&mut buffer) {
                Ok(count) => self.bytes.extend_from_slice(&buffer[..count]),
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
            assert!(
                Instant::now() < end,
                "chromium does not answer:\n{}",
                self.running.err().join("\n")
            );
        }
    }

    fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.next += 1;
        let mut message = json!({"id": self.next, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut line = message.to_string().into_bytes();
        line.push(0);
        self.to.write_all(&line).unwrap();
        loop {
            let message = self.receive();
            if message["id"] != json!(self.next) {
                self.events.push(message);
                continue;
            }
            assert!(message["error"].is_null(), "{method}: {message}");
            return message["result"].clone();
        }
    }

    /// The value of an expression in the page.
    fn ask(&mut self, expression: &str) -> Value {
        let answer = self.call(
            "Runtime.evaluate",
            json!({"expression": expression, "returnByValue": true}),
        );
        assert!(
            answer["exceptionDetails"].is_null(),
            "{expression}: {answer}"
        );
        answer["result"]["value"].clone()
    }

    fn until(&mut self, condition: &str) {
        let end = Instant::now() + Duration::from_secs(60);
        while self.ask(condition) != json!(true) {
            assert!(Instant::now() < end, "not within 60 s: {condition}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Presses the mouse in the middle of what is seen there.
    fn click(&mut self, element: &str) {
        let place = self.ask(&format!(
            "(() => {{ const r = {element}.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }})()"
        ));
        let (x, y) = (&place[0], &place[1]);
        self.call(
            "Input.dispatchMouseEvent",
            json!({"type": "mouseMoved", "x": x, "y": y}),
        );
        for kind in ["mousePressed", "mouseReleased"] {
            self.call(
                "Input.dispatchMouseEvent",
                json!({"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1}),
            );
        }
    }

    fn key(&mut self, key: &str, code: u32, modifiers: u32) {
        for kind in ["rawKeyDown", "keyUp"] {
            self.call(
                "Input.dispatchKeyEvent",
                json!({"type": kind, "key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}),
            );
        }
    }

    /// The width in pixels of the widest box of a name, as it is on the screen; 0: not seen.
    fn width(&mut self, name: &str) -> f64 {
        let all = self.ask(&format!(
            "Math.max(...{}.map((call) => call.querySelector('rect').getBoundingClientRect().width))",
            called(name)
        ));
        all.as_f64().unwrap()
    }

    /// What its status line says, and the colours of the boxes of a name.
    fn found(&mut self, name: &str) -> (String, Vec<String>) {
        let status = self.ask("document.getElementById('status').textContent");
        let fills = self.ask(&format!(
            "{}.map((call) => getComputedStyle(call.querySelector('rect')).fill)",
            called(name)
        ));
        let fills = fills.as_array().unwrap().iter();
        (
            status.as_str().unwrap().to_owned(),
            fills
                .map(|fill| fill.as_str().unwrap().to_owned())
                .collect(),
        )
    }

    fn close(mut self) {
        let wrong: Vec<&Value> = self
            .events
            .iter()
            .filter(|event| {
                let fetched = &event["params"]["request"]["url"];
                let elsewhere = fetched
                    .as_str()
                    .is_some_and(|url| !url.starts_with("file:"));
                event["method"] == "Runtime.exceptionThrown"
                    || event["method"] == "Log.entryAdded"
                    || elsewhere
            })
            .collect();
        assert!(wrong.is_empty(), "{wrong:?}");
        self.session = None;
        self.call("Browser.close", json!({}));
        assert_eq!(self.running.end(), 0);
    }
}

/// All boxes whose function's name begins so.
fn called(name: &str) -> String {
    format!(
        "[...document.querySelectorAll('g.c')].filter((call) => call.dataset.n.startsWith({}))",
        json!(name)
    )
}

/// The magenta of what was searched for, in `flame.js`'s style.
const MARKED: &str = "rgb(214, 58, 214)";

fn try_all(dir: &Dir, page: &Path) {
    let mut browser = Browser::open(dir, page);
    let whole = browser.width("all");
    assert!(whole > 1000.0, "{whole}");
    let (hot, cool) = (browser.width("hot"), browser.width(COOL));
    assert!(
        hot > whole * 0.5 && cool > whole * 0.05 && cool < whole * 0.4,
        "hot {hot}, cool {cool} of {whole}"
    );

    // A click: what was narrow has all the width, its neighbour is gone, its callers are as wide.
    browser.click(&format!("{}[0].querySelector('rect')", called(COOL)));
    let zoomed = browser.width(COOL);
    assert!((zoomed - whole).abs() < 1.0, "{zoomed} of {whole}");
    assert_eq!(browser.width("hot"), 0.0);
    assert!((browser.width("turn") - whole).abs() < 1.0);
    let label = browser.ask(&format!(
        "{}[0].querySelector('text').textContent",
        called(COOL)
    ));
    assert!(label.as_str().unwrap().starts_with(COOL), "{label}");
    // And out again, by the word, by a key, by a click at the root.
    for way in 0..3 {
        match way {
            0 => browser.click("document.getElementById('reset')"),
            1 => browser.key("Escape", 27, 0),
            _ => browser.click(&format!("{}[0].querySelector('rect')", called("all"))),
        }
        assert!((browser.width(COOL) - cool).abs() < 0.1, "way {way}");
        assert!((browser.width("hot") - hot).abs() < 0.1, "way {way}");
        browser.click(&format!("{}[0].querySelector('rect')", called(COOL)));
        assert!((browser.width(COOL) - whole).abs() < 1.0, "way {way}");
    }
    browser.key("Escape", 27, 0);

    // Control-F, and letters.
    browser.key("f", 70, 2);
    browser.call("Input.insertText", json!({"text": "HOT"}));
    let (status, fills) = browser.found("hot");
    assert!(
        status.contains(" found, ") && status.ends_with(" % of the time"),
        "{status}"
    );
    assert!(fills.iter().all(|fill| fill == MARKED), "{fills:?}");
    let share: f64 = status.split(' ').nth(2).unwrap().parse().unwrap();
    assert!(
        (share / 100.0 - hot / whole).abs() < 0.02,
        "{status}, {hot} of {whole}"
    );
    let (_, fills) = browser.found(COOL);
    assert!(fills.iter().all(|fill| fill != MARKED), "{fills:?}");
    browser.key("Escape", 27, 0);
    let (status, fills) = browser.found("hot");
    assert_eq!(status, "");
    assert!(fills.iter().all(|fill| fill != MARKED), "{fills:?}");

    assert_eq!(
        browser.ask("typeof evil"),
        json!("undefined"),
        "a name was run"
    );
    assert_eq!(
        browser.ask("document.querySelectorAll('img').length"),
        json!(0)
    );
    browser.close();
}

#[test]
fn the_graph_of_a_live_worker_zooms_and_finds() {
    let node = node("22");
    let live = Live::start(
        PROGRAM,
        &[("app.js", APP)],
        &[node.to_str().unwrap(), "app.js"],
    );
    let _ = live.socket();
    let taken = live.ask(&["prof", "shop", "--for", "2s", "--svg", "a.svg"]);
    assert_eq!(taken.status, 0, "{}", taken.err);
    try_all(&live.dir, &live.dir.path().join("a.svg"));
}

#[test]
fn the_graph_of_a_file_zooms_and_finds() {
    let dir = Dir::new();
    dir.write("app.js", APP);
    let run = Run::new(node("18"))
        .args([
            "--cpu-prof",
            "--cpu-prof-name=a.cpuprofile",
            "app.js",
            "once",
        ])
        .dir(dir.path())
        .finish();
    assert_eq!(run.status, 0, "{}", run.err);
    let drawn = Run::new(PROGRAM)
        .args(["flame", "-o", "a.svg", "a.cpuprofile"])
        .dir(dir.path())
        .finish();
    assert_eq!(drawn.status, 0, "{}", drawn.err);
    try_all(&dir, &dir.path().join("a.svg"));
}
