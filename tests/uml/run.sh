#!/bin/sh
# run.sh SCRIPT OUT: runs SCRIPT as root in a guest (user-mode Linux), and ends with its status. What it says is in
# OUT/log. Nothing of the host can be written but OUT. LIMIT (seconds), MEM, INIT (the first process, beside this file)
# and ROOT (what systemd_init.sh boots) may be set.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
rm -f "$2/status"
timeout -k 5 "${LIMIT:-120}" linux.uml rootfstype=hostfs rootflags=/ ro mem="${MEM:-256M}" init="$here/${INIT:-init.sh}" \
	SCRIPT="$1" OUT="$2" ROOT="${ROOT:-}" con0=fd:0,fd:1 con=null quiet </dev/null >"$2/boot.log" 2>&1 || true
cat "$2/log"
[ -e "$2/status" ] || { echo "the guest did not come to its end"; exit 1; }
exit "$(cat "$2/status")"
