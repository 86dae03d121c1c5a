#!/bin/sh
# In the guest, under systemd: examples/systemd, and `plain`, the same service without a socket unit. Each deed is done
# while load.js asks both of them. Nobody may be refused; the requests in a killed worker's hands may be cut off.
set -u
exec >/out/log 2>&1
control=/run/shop/app.sock
said=0

fail() {
	echo "FAILED: $*"
	said=1
}
until_true() { # until_true WHAT COMMAND...: within 60 s
	what=$1
	shift
	tries=0
	until "$@" >/dev/null 2>&1; do
		tries=$((tries + 1))
		[ "$tries" -lt 300 ] || { fail "not within 60 s: $what" && return 1; }
		sleep 0.2
	done
	echo "$what, at $(cut -d' ' -f1 /proc/uptime) s"
}
of() { systemctl show -p "$2" --value "$1"; }
serves() { heartbeat --once --quiet --timeout 5s --port "$1"; }
generation() { spawnwork --ctl "$control" status json | grep -q "\"generation\":$1,"; }
other_pid() { [ "$(of "$1" MainPID)" != 0 ] && [ "$(of "$1" MainPID)" != "$2" ] && [ "$(of "$1" ActiveState)" = active ]; }
# What load.js has counted since the last time: of port $2, none may be refused, nor cut off unless $3 says so.
counted() { # counted DEED PORT [may-cut]
	if [ ! -e "/run/counted.$2" ]; then
		kill -USR1 "$load"
		until [ -e /run/counted ]; do sleep 0.1; done
		cp /run/counted /run/counted.3000
		mv /run/counted /run/counted.3001
	fi
	line=$(grep "^$2 " "/run/counted.$2")
	rm "/run/counted.$2"
	echo "$1: $line"
	case $line in
	*' answered=0 '*) fail "$1: nobody was answered" ;;
	*' refused=0 cut=0') ;;
	*' refused=0 '*) [ "${3:-}" = may-cut ] || fail "$1: requests were cut off" ;;
	*) [ "${3:-}" = may-refuse ] || fail "$1: connections were refused" ;;
	esac
}

version=$(systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
# From here on systemd tells a service that it has a store.
store=
[ "$version" -lt 254 ] || store=yes
systemctl --version | head -n 1
systemctl start shop plain || fail "start: $?"
until_true "shop serves" serves 3000
until_true "plain serves" serves 3001
systemctl status shop --no-pager | grep -e 'Status:' || fail "no status line"
node /out/files/load.js &
load=$!
until_true "load" test -e /run/loading

first=$(of shop MainPID)
systemctl reload shop || fail "reload: $?"
generation 2 || fail "the reload has returned, and the new generation does not serve"
[ "$(of shop MainPID)" = "$first" ] || fail "another master after a reload"
counted "systemctl reload" 3000
counted "systemctl reload" 3001

systemctl restart shop || fail "restart: $?"
[ "$(of shop MainPID)" != "$first" ] || fail "the same master after a restart"
[ -z "$store" ] || systemctl restart plain || fail "restart: $?"
counted "systemctl restart" 3000
counted "systemctl restart" 3001

[ -z "$store" ] || [ "$(of plain NFileDescriptorStore)" -gt 0 ] || fail "plain: no socket is kept"
for unit in shop plain; do
	before=$(of "$unit" MainPID)
	kill -KILL "$before"
	until_true "$unit: another master after kill -9" other_pid "$unit" "$before"
done
until_true "shop serves" serves 3000
until_true "plain serves" serves 3001
counted "kill -9" 3000 may-cut
if [ -n "$store" ]; then counted "kill -9" 3001 may-cut; else counted "kill -9, and no store" 3001 may-refuse; fi

# A master that hangs gives no sign of life: WatchdogSec.
before=$(of shop MainPID)
kill -STOP "$before"
until_true "another master after the watchdog" other_pid shop "$before"
until_true "shop serves" serves 3000
[ "$(of shop NRestarts)" -ge 2 ] || fail "NRestarts=$(of shop NRestarts)"
counted "a master that hangs" 3000 may-cut
counted "a master that hangs" 3001

kill "$load"
systemctl stop shop.socket shop plain || fail "stop: $?"
[ "$(of shop ActiveState)" = inactive ] || fail "stopped, and $(of shop ActiveState)"
[ "$(of shop Result)" = success ] || fail "stopped: $(of shop Result)"
for unit in shop plain; do
	left=$(cat "/sys/fs/cgroup/system.slice/$unit.service/cgroup.procs" 2>/dev/null)
	[ -z "$left" ] || fail "$unit: left behind: $left"
done
echo "done at $(cut -d' ' -f1 /proc/uptime) s"
[ "$said" = 0 ] || journalctl --no-pager -b -o short-monotonic -u shop -u plain | tail -n 60
echo "$said" >/out/status
sync
systemctl poweroff --force --force
