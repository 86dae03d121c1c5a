//! examples/openrc under OpenRC, in namespaces: on a copy of this system that is thrown away, with the directories that
//! OpenRC makes when it boots a machine.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs
)]

use kit::{Dir, app, root, sibling};
use std::process::Command;

const PROGRAM: &str = env!("CARGO_BIN_EXE_spawnwork");

const LIFE: &str = r#"
mount -t tmpfs tmpfs "$WORK"
mkdir "$WORK/changed" "$WORK/overlay" "$WORK/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$WORK/changed,workdir=$WORK/overlay" "$WORK/root"
cd "$WORK/root"
mount -t proc proc proc
mount --bind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
ip link set lo up
for state in starting started stopping inactive wasinactive failed hotplugged daemons options exclusive scheduled tmp; do
	mkdir -p "run/openrc/$state"
done
touch run/openrc/softlevel
mkdir -p srv/shop/current srv/shop/shared/logs
chown www-data srv/shop/shared/logs
cp "$APP" srv/shop/current/app.js
cp "$PROGRAMS/logreopen" "$PROGRAMS/spawnwork" "$PROGRAMS/heartbeat" usr/local/bin
install -m 755 "$SCRIPT" etc/init.d/shop
exec chroot . /bin/sh -ec "$WITHIN" 2>&1
"#;

/// No network of this machine is started here, so that is not asked for (`--nodeps`).
const WITHIN: &str = r#"
shop() { rc-service --nodeps shop "$@"; }
serves() {
	tries=0
	until heartbeat --once --quiet --timeout 5s --port 3000 >/dev/null 2>&1; do
		tries=$((tries + 1))
		[ "$tries" -lt 300 ] || { echo "not within 60 s: $1"; exit 1; }
		sleep 0.2
	done
	echo "$1"
}
pid() { spawnwork --ctl /run/shop/app.sock status json | sed -n 's/.*"pid":\([0-9]*\),.*/\1/p' | head -n 1; }
rc-update add shop default
shop start
serves started
shop status
shop reload
spawnwork --ctl /run/shop/app.sock status json | grep -q '"generation":2,'
mv /srv/shop/shared/logs/shop.out /srv/shop/shared/logs/shop.out.1
shop reopen
test -e /srv/shop/shared/logs/shop.out
first=$(pid)
pkill -KILL -x logreopen
until now=$(pid 2>/dev/null) && [ -n "$now" ] && [ "$now" != "$first" ]; do
	tries=$((${tries:-0} + 1))
	[ "$tries" -lt 300 ] || { echo 'not within 60 s: another one'; exit 1; }
	sleep 0.2
done
serves 'started anew'
shop stop
! heartbeat --once --quiet --port 3000 2>&1
! pgrep -f app.js
echo end
"#;

#[test]
fn openrc_starts_reloads_reopens_respawns_and_stops() {
    kit::mount::need_root();
    for tool in ["heartbeat", "logreopen"] {
        let _ = sibling(PROGRAM, tool);
    }
    let dir = Dir::new();
    let programs = std::path::Path::new(PROGRAM).parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child"])
        .args(["/bin/sh", "-ec", LIFE])
        .env("WORK", dir.path())
        .env("PROGRAMS", programs.canonicalize().unwrap())
        .env("APP", app("hello.js"))
        .env("SCRIPT", root().join("examples/openrc/shop"))
        .env("WITHIN", WITHIN)
        .env("PATH", format!("/usr/local/bin:{path}:/usr/sbin:/sbin"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.ends_with("end\n"), "{said}");
}
