//! `make dist` and `make deb`: what they pack is unpacked, installed and run. A release takes minutes to build, and packs
//! as a debug build does: so these are of the latter, the tarball's linked statically like a release.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::{Dir, Run, app, eventually, free_port, root, sibling};
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_spawnwork");
const TOOLS: [&str; 5] = [
    "heartbeat",
    "logreopen",
    "replsock",
    "spawnwork",
    "watchtouch",
];

/// For as long as it takes on a busy machine: a build, a package. Standard output.
fn long(run: &mut Command) -> String {
    let output = run.output().unwrap();
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{run:?}: {out}{err}");
    out
}

fn make(words: &[&str], out: &Path) {
    let mut run = Command::new("make");
    run.args(["-s", "-C"]).arg(root()).args(words);
    run.arg(format!("DISTDIR={}", out.display()));
    long(run.env("MAKEFLAGS", ""));
}

/// A line of shell, which must succeed; what it said.
fn sh(dir: &Path, line: &str) -> String {
    let run = Run::new("/bin/sh").args(["-ec", line]).dir(dir).finish();
    assert_eq!(run.status, 0, "{line}: {}{}", run.out, run.err);
    run.out
}

/// The one file of that kind.
fn only(directory: &Path, end: &str) -> PathBuf {
    let mut found: Vec<PathBuf> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with(end))
        .collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

#[test]
fn the_tarball_runs_from_an_empty_directory() {
    kit::mount::need_root();
    let dir = Dir::new();
    let (out, again, empty) = (
        dir.path().join("out"),
        dir.path().join("again"),
        dir.path().join("empty"),
    );
    make(&["dist", "DIST_PROFILE=dev"], &out);
    let tarball = only(&out, "-linux.tar.gz");
    sh(&out, "sha256sum --strict -c SHA256SUMS");

    // The same source, the same bytes.
    make(&["dist", "DIST_PROFILE=dev"], &again);
    assert_eq!(
        std::fs::read(&tarball).unwrap(),
        std::fs::read(only(&again, ".tar.gz")).unwrap()
    );

    std::fs::create_dir(&empty).unwrap();
    sh(&empty, &format!("tar -xzf '{}'", tarball.display()));
    let top = only(&empty, "-linux");
    sh(&top, "sha256sum --strict -c SHA256SUMS");
    for name in [
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "THIRD-PARTY",
        "share/man/man1/spawnwork.1",
        "share/man/man7/nirvana.7",
        "share/bash-completion/completions/heartbeat",
        "share/zsh/site-functions/_heartbeat",
        "share/fish/vendor_completions.d/heartbeat.fish",
        "share/nirvana/examples/systemd/shop.service",
    ] {
        let text = std::fs::read_to_string(top.join(name)).unwrap();
        assert!(!text.is_empty(), "{name}");
    }
    // Whoever built it, it is nobody's.
    let listed = sh(
        &out,
        &format!("tar --numeric-owner -tvzf '{}'", tarball.display()),
    );
    for line in listed.lines() {
        assert_eq!(line.split_whitespace().nth(1), Some("0/0"), "{line}");
    }

    // A root directory with one file in it, devices, and no library.
    let bare = dir.path().join("bare");
    std::fs::create_dir_all(bare.join("etc")).unwrap();
    std::fs::write(
        bare.join("etc/hosts"),
        "127.0.0.1 localhost shop.example\n::1 localhost\n",
    )
    .unwrap();
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    std::fs::create_dir(bare.join("dev")).unwrap();
    let chroot = |words: &[&str]| {
        let line = "mount --bind /dev dev && exec chroot . \"$@\"";
        Run::new("unshare")
            .args(["-m", "/bin/sh", "-c", line, "sh"])
            .args(words)
            .dir(&bare)
            .env("PATH", &path)
            .finish()
    };
    for tool in TOOLS {
        let program = top.join("bin").join(tool);
        let kind = Run::new("file").arg("-b").arg(&program).finish().out;
        assert!(kind.contains("static"), "{tool}: {kind}");
        // Its words differ with the C library; it names no library in any case.
        let linked = Run::new("ldd").arg(&program).finish();
        assert!(!linked.out.contains("=>"), "{tool}: {}", linked.out);
        std::fs::copy(&program, bare.join(tool)).unwrap();
        let version = chroot(&[&format!("/{tool}"), "--version"]);
        let expected = format!("{tool} {}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!((version.status, version.out), (0, expected));
    }

    // A real app, and a name that has to be looked up.
    let port = free_port();
    let mut master = Run::new(top.join("bin/spawnwork"))
        .args(["-n", "2", "--", "node"])
        .arg(app("hello.js"))
        .env("PORT", port.to_string())
        .start();
    eventually("the app answers", || {
        kit::http::get(format!("127.0.0.1:{port}"), "/").ok()
    });
    for name in ["localhost", "shop.example"] {
        let url = format!("http://{name}:{port}/");
        let check = chroot(&["/heartbeat", "--once", "--url", &url]);
        assert_eq!(check.status, 0, "{name}: {}{}", check.out, check.err);
    }
    let check = chroot(&[
        "/heartbeat",
        "--once",
        "--url",
        &format!("http://nobody.example:{port}/"),
    ]);
    assert_ne!(check.status, 0, "{}", check.out);
    assert_eq!(master.stop(), 0);
}

/// In a mount namespace, on a copy of this system that is thrown away: a name for each deed, and what must be so.
const LIFE: &str = r#"
mount -t tmpfs tmpfs "$WORK"
mkdir "$WORK/changed" "$WORK/overlay" "$WORK/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$WORK/changed,workdir=$WORK/overlay" "$WORK/root"
cp "$FIRST" "$WORK/root/first.deb"
cp "$NEXT" "$WORK/root/next.deb"
mount -t proc proc "$WORK/root/proc"
mount --bind /dev "$WORK/root/dev"
within() { chroot "$WORK/root" env DEBIAN_FRONTEND=noninteractive "$@"; }
# Those of other packages (man-db's index) take seconds; the first time shows that they work.
quick() { within dpkg --no-triggers "$@"; }

within dpkg --install /first.deb
within dpkg --verify nirvana
within apt-get check
for tool in heartbeat logreopen replsock spawnwork watchtouch; do
	within "/usr/bin/$tool" --version
	test -s "$WORK/root/usr/share/man/man1/$tool.1.gz"
done
within dpkg-query -W nirvana | grep -q -e "$VERSION-1\$"

quick --install /next.deb
within dpkg --verify nirvana
within dpkg-query -W nirvana | grep -q -e "$VERSION-2\$"

quick --remove nirvana
! within dpkg-query -W -f '${db:Status-Status}' nirvana | grep -q -e '^installed'
quick --purge nirvana
! within dpkg-query -W nirvana
quick --install /next.deb
quick --purge nirvana

rm "$WORK/root/first.deb" "$WORK/root/next.deb"
echo left:
# What dpkg and man-db know of the system, and the logs: not of a package, and there before.
cd "$WORK/changed"
find . ! -type d | grep -v -E -e '^\./var/(lib/dpkg/(status|available|diversions|statoverride|lock|triggers)|log/|cache/(man|ldconfig)/)' || true
find . -name '*nirvana*' -o -name '*spawnwork*'
"#;

#[test]
fn the_debian_package_comes_and_goes() {
    kit::mount::need_root();
    let dir = Dir::new();
    for tool in TOOLS {
        let _ = sibling(PROGRAM, tool);
    }
    let built = Path::new(PROGRAM).parent().unwrap().canonicalize().unwrap();
    let built = format!("BUILT={}", built.display());
    let out = dir.path().join("out");
    make(&["deb", &built], &out);
    sh(&out, "sha256sum --strict -c SHA256SUMS");
    let first = only(&out, ".deb");
    // The next one, packed with less effort.
    let next = dir.path().join("next.deb");
    let again = "dpkg-deb -R '{first}' next && sed -i '/^Version:/s/-1$/-2/' next/DEBIAN/control && \
                 dpkg-deb --root-owner-group -Zgzip -z1 -b next '{next}' >&2";
    let again = again.replace("{first}", &first.display().to_string());
    sh(
        dir.path(),
        &again.replace("{next}", &next.display().to_string()),
    );

    let mut lintian = Command::new("lintian");
    lintian.args(["--allow-root", "--fail-on", "error"]);
    let said = long(lintian.arg(&first).env("LC_ALL", "C"));
    assert!(!said.contains("E: "), "{said}");

    let depends = sh(
        dir.path(),
        &format!("dpkg-deb -f '{}' Depends", first.display()),
    );
    assert!(depends.contains("libc6 (>= "), "{depends}");
    let listed = sh(dir.path(), &format!("dpkg-deb -c '{}'", first.display()));
    for name in [
        "share/doc/nirvana/changelog.Debian.gz",
        "share/doc/nirvana/copyright",
        "share/doc/nirvana/THIRD-PARTY.gz",
        "share/doc/nirvana/examples/deploy/deploy",
        "share/man/man7/nirvana.7.gz",
        "share/zsh/vendor-completions/_spawnwork",
    ] {
        assert!(listed.contains(&format!("./usr/{name}\n")), "{name}");
    }
    let unit = "./usr/share/doc/nirvana/examples/systemd/shop.service";
    let unit = sh(
        dir.path(),
        &format!(
            "dpkg-deb --fsys-tarfile '{}' | tar -xOf - {unit}",
            first.display()
        ),
    );
    assert!(unit.contains("\nExecStart=/usr/bin/spawnwork "), "{unit}");

    let work = dir.path().join("work");
    std::fs::create_dir(&work).unwrap();
    let path = std::env::var("PATH").unwrap();
    let mut life = Command::new("unshare");
    life.args(["-m", "/bin/sh", "-ec", LIFE])
        .env("WORK", &work)
        .env("FIRST", &first)
        .env("NEXT", &next)
        .env("VERSION", env!("CARGO_PKG_VERSION"))
        .env("PATH", format!("{path}:/usr/sbin:/sbin"));
    let said = long(&mut life);
    let (_, left) = said.split_once("left:\n").unwrap();
    assert_eq!(left, "", "{said}");
}
