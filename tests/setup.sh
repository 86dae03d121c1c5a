#!/bin/sh
# Installs what the tests need and a bare Debian machine lacks. Does nothing, quickly, when all is there.
#
#   tests/setup.sh          what `make check`, `make test` and `make demo` need
#   tests/setup.sh bench    besides, the peers that `make bench` measures (also: --bench)
#   tests/setup.sh systemd  besides, what `make systemd` boots: Debian 13, in the cache (also: --systemd)
#
# Node's releases and the frameworks are npm packages, kept in
# ${NIRVANA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nirvana-tests}:
#   node-V/bin/node                          Node V, for each V below
#   frameworks/node_modules/                 express, fastify, tsx, pnpm, yarn (with `bench`: pm2, recluster)
# and so are, with `bench`, gunicorn from PyPI, and watchexec, built by cargo, for some minutes:
#   python/bin/gunicorn
#   watchexec/bin/watchexec
set -eu

node_versions='16 18 20 22 24 26'
watchexec_version=2.8.0
cache=${NIRVANA_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/nirvana-tests}

mode=${1:-}
mode=${mode#--}
case $mode in
'' | bench | systemd) ;;
*)
	printf 'setup: %s is not known: bench or systemd\n' "$1" >&2
	exit 2
	;;
esac

say() {
	printf 'setup: %s\n' "$*" >&2
}

# ---- programs of the system: what is looked for, and the Debian package that has it ----

missing=
need() { # need PROGRAM PACKAGE...
	program=$1
	shift
	# sbin is not on everybody's PATH; what lies there can be used all the same.
	if PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null 2>&1; then
		return 0
	fi
	for package in "$@"; do
		case " $missing " in
		*" $package "*) ;;
		*) missing="$missing $package" ;;
		esac
	done
}

need cc gcc libc6-dev
need mandoc mandoc
need shellcheck shellcheck
need python3 python3-minimal
need gunicorn gunicorn
need ip iproute2
need ps procps
need setpriv util-linux
need fsfreeze util-linux
need mount mount
need mkfs.ext4 e2fsprogs
need makewhatis mandoc
need openssl openssl
need systemd-socket-activate systemd
need curl curl
need faketime faketime
need start_server libserver-starter-perl
need socat socat
need script bsdutils
need pgrep procps
need promtool prometheus
need nginx nginx-light
need redis-server redis-server
need unshare util-linux
need nsenter util-linux
need ss iproute2
need logrotate logrotate
need gzip gzip
need mkfs.ext4 e2fsprogs
need fsfreeze util-linux
need prlimit util-linux
need bindfs bindfs
need automount autofs
need sshfs sshfs
[ -e /usr/lib/openssh/sftp-server ] || need sftp-server openssh-sftp-server
need sshd openssh-server
need ssh openssh-client
need git git
need busybox busybox
need runsv runit
need s6-supervise s6
need openrc-run openrc
need zsh zsh
need fish fish
need linux.uml user-mode-linux
need rpc.nfsd nfs-kernel-server
need mount.nfs nfs-common
need rpcbind rpcbind
need insmod kmod
need etcd etcd-server
need etcdctl etcd-client
need strace strace
need file file
need strip binutils
need dpkg-deb dpkg
need dpkg-shlibdeps dpkg-dev
need lintian lintian
# A C compiler for static programs. Where Rust has no target for musl, or this one is missing, they are linked to glibc.
need musl-gcc musl-tools
need ruby ruby
need sqlite3 sqlite3
if [ "$mode" = bench ]; then
	need uwsgi-core uwsgi-core
	need rotatelogs apache2-utils
	need cronolog cronolog
	need multilog daemontools
	need svlogd runit
	need s6-log s6
	need inotifywait inotify-tools
	need entr entr
	need dtach dtach
	need supervisord supervisor
	need monit monit
	need svscan daemontools
	need wget wget
	[ -x /usr/lib/nagios/plugins/check_http ] || need check_http monitoring-plugins-basic
	/usr/bin/python3 -c 'import ensurepip' 2>/dev/null || need python3-venv python3-venv
	[ -e /usr/lib/uwsgi/plugins/python3_plugin.so ] || need uwsgi-python3-plugin uwsgi-plugin-python3
fi
if [ "$mode" = systemd ]; then
	need debootstrap debootstrap
fi
need node nodejs
# NodeSource's package brings npm along, Debian's does not.
if command -v node >/dev/null 2>&1 || ! command -v npm >/dev/null 2>&1; then
	need npm npm
fi

install_packages() {
	# Word splitting is meant: a list of package names.
	# shellcheck disable=SC2086
	DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $missing
}

if [ -n "$missing" ]; then
	if ! command -v apt-get >/dev/null 2>&1; then
		say "these are missing (Debian's names):$missing"
		exit 1
	fi
	if [ "$(id -u)" -ne 0 ]; then
		say "these packages are missing:$missing"
		say "install them as root: apt-get install$missing"
		exit 1
	fi
	say "installing:$missing"
	# The first try may meet package lists that are too old, or none.
	if ! install_packages >&2; then
		apt-get update -q >&2
		install_packages >&2 || {
			say "could not install:$missing"
			exit 1
		}
	fi
fi

# Not every system has one. The test that needs it (replsock_browser) fails then, and no other does.
if ! command -v chromium >/dev/null 2>&1; then
	say "installing: chromium"
	missing=chromium
	{ install_packages || { apt-get update -q && install_packages; }; } >&2 ||
		say "chromium cannot be installed here: the test replsock_browser will fail"
fi

# ---- npm packages, in the cache ----

npm_install() { # npm_install DIRECTORY PACKAGE...
	directory=$1
	shift
	mkdir -p "$directory"
	# A package.json of its own: npm would otherwise look for one further up.
	[ -e "$directory/package.json" ] || printf '{"private":true}\n' >"$directory/package.json"
	npm install --prefix "$directory" --no-audit --no-fund --no-update-notifier --loglevel=error "$@" >&2 && return 0
	say "once more: $*"
	npm install --prefix "$directory" --no-audit --no-fund --no-update-notifier --loglevel=error "$@" >&2
}

failed=
for version in $node_versions; do
	home=$cache/node-$version
	[ -x "$home/bin/node" ] && continue
	say "Node $version into $home"
	if npm_install "$home" "node@$version" && [ -x "$home/node_modules/node/bin/node" ]; then
		# Made last and renamed into place: who sees it sees a complete installation.
		mkdir -p "$home/bin"
		ln -sf ../node_modules/node/bin/node "$home/bin/node.new"
		mv -f "$home/bin/node.new" "$home/bin/node"
	else
		failed="$failed node@$version"
	fi
done

frameworks=$cache/frameworks
absent=
for package in express fastify tsx pnpm yarn; do
	[ -e "$frameworks/node_modules/$package/package.json" ] || absent="$absent $package"
done
if [ "$mode" = bench ]; then
	for package in pm2 recluster; do
		[ -e "$frameworks/node_modules/$package/package.json" ] || absent="$absent $package"
	done
fi
if [ -n "$absent" ]; then
	# npm takes out what its package.json does not name, so each package is saved there.
	say "into $frameworks:$absent"
	set --
	for package in $absent; do
		case $package in
		yarn) set -- "$@" yarn@1 ;;
		*) set -- "$@" "$package" ;;
		esac
	done
	npm_install "$frameworks" "$@" || failed="$failed$absent"
fi

if [ -n "$failed" ]; then
	say "could not install:$failed"
	exit 1
fi

# ---- Debian 13, in the cache ----

debian=$cache/debian-13
if [ "$mode" = systemd ] && [ ! -d "$debian" ]; then
	say "Debian 13 into $debian: some minutes"
	# From where this machine has its own packages.
	site=$(apt-get indextargets --format "\$(SITE)" | head -n 1)
	rm -rf "$debian.new"
	PATH=$PATH:/usr/sbin debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,nodejs \
		trixie "$debian.new" "$site/" >&2
	mv "$debian.new" "$debian"
fi

# ---- gunicorn, in the cache ----

if [ "$mode" = bench ] && [ ! -x "$cache/python/bin/gunicorn" ]; then
	say "gunicorn into $cache/python"
	# The bench does with the one on PATH, and says which it was.
	{ /usr/bin/python3 -m venv "$cache/python" && "$cache/python/bin/pip" install --quiet gunicorn; } >&2 ||
		say "gunicorn cannot be had from PyPI: the one on PATH is measured"
fi

# ---- watchexec, in the cache ----

watchexec=$cache/watchexec
if [ "$mode" = bench ] && [ ! -x "$watchexec/bin/watchexec" ] && ! command -v watchexec >/dev/null 2>&1; then
	say "watchexec into $watchexec: some minutes"
	# Elsewhere, so that no settings of this folder have a say. The bench does without it, and says so.
	(cd "$cache" && CARGO_TARGET_DIR=$watchexec/target "${CARGO:-cargo}" install watchexec-cli \
		--version "$watchexec_version" --locked --quiet --no-track --root "$watchexec") >&2 ||
		say "could not build watchexec $watchexec_version: it is left out"
	rm -rf "$watchexec/target"
fi
