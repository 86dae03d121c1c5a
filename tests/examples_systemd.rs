//! The units of examples/systemd under a real systemd, which is booted in user-mode Linux: on a copy of this machine's
//! root directory, or of the one that NIRVANA_SYSTEMD_ROOT names (`make systemd`: Debian 13's).
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    missing_docs
)]

use kit::{Dir, Run, app, root, sibling};
use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_spawnwork");

/// 257, of `systemd 257 (257.13-1~deb13u1)`.
fn version(root: &str) -> u32 {
    let program = format!("{root}/lib/systemd/systemd");
    let run = if root.is_empty() {
        Run::new(program).arg("--version").finish()
    } else {
        Run::new("chroot")
            .args([root, "/lib/systemd/systemd", "--version"])
            .finish()
    };
    let number = run.out.split_whitespace().nth(1).unwrap();
    number.parse().unwrap()
}

#[test]
fn the_units_do_what_their_page_says() {
    kit::mount::need_root();
    let other = std::env::var("NIRVANA_SYSTEMD_ROOT").unwrap_or_default();
    let dir = Dir::new();
    let files = dir.path().join("files");
    let (units, programs, shop) = (
        files.join("etc/systemd/system"),
        files.join("usr/local/bin"),
        files.join("srv/shop/current"),
    );
    for directory in [&units, &programs, &shop] {
        std::fs::create_dir_all(directory).unwrap();
    }
    for tool in ["spawnwork", "heartbeat"] {
        // They are copied into the guest's memory.
        let run = Run::new("strip")
            .arg("-o")
            .arg(programs.join(tool))
            .arg(sibling(PROGRAM, tool))
            .finish();
        assert_eq!(run.status, 0, "{}", run.err);
    }
    std::fs::copy(app("hello.js"), shop.join("app.js")).unwrap();
    let uml = root().join("tests/uml").canonicalize().unwrap();
    std::fs::copy(uml.join("systemd.sh"), files.join("check.sh")).unwrap();
    std::fs::copy(uml.join("systemd_load.js"), files.join("load.js")).unwrap();

    let example = |name: &str| {
        let path = root().join("examples/systemd").join(name);
        std::fs::read_to_string(path).unwrap()
    };
    let mut service = example("shop.service").replace(" -n 4 ", " -n 2 ");
    if version(&other) < 253 {
        // As the page says.
        let page = example("README.md");
        let (_, reload) = page.split_once("`ExecReload=").unwrap();
        let (reload, _) = reload.split_once('`').unwrap();
        service = service
            .replace("Type=notify-reload", "Type=notify")
            .replace("ReloadSignal=SIGUSR2", &format!("ExecReload={reload}"));
        assert!(service.contains("\nExecReload="), "{service}");
    }
    // The same without a socket unit: what is kept for it is in systemd's store.
    let plain = service
        .replace("/run/shop", "/run/plain")
        .replace("RuntimeDirectory=shop", "RuntimeDirectory=plain")
        .replace("PORT=3000", "PORT=3001")
        .replace("Also=shop.socket\n", "");
    for (name, text) in [
        ("shop.service", service.as_str()),
        ("plain.service", &plain),
        ("shop.socket", &example("shop.socket")),
        (
            "check.target",
            "[Unit]\nRequires=sockets.target shop.socket check.service\n",
        ),
        (
            "check.service",
            "[Service]\nType=oneshot\nExecStart=/bin/sh /check.sh\nTimeoutStartSec=infinity\n",
        ),
    ] {
        std::fs::write(units.join(name), text).unwrap();
    }

    let output = Command::new(uml.join("run.sh"))
        .arg("check.sh")
        .arg(dir.path())
        .env("INIT", "systemd_init.sh")
        .env("ROOT", &other)
        .env("MEM", "1500M")
        .env("LIMIT", "400")
        .output()
        .unwrap();
    let boot = std::fs::read_to_string(dir.path().join("boot.log")).unwrap_or_default();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    println!("{said}");
    assert!(output.status.success(), "{said}{boot}");
    assert!(said.contains("systemctl reload: 3000 answered="), "{said}");
}
