# shellcheck shell=sh
# What dist.sh and deb.sh share; read by them with `.`, from the top directory of the source.
# They use what is set here, and run with `set -e`:
# shellcheck disable=SC2034,SC2164

name=nirvana
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
tools='heartbeat logreopen replsock spawnwork watchtouch'
make=${MAKE:-make}

# The one time that stands in what is packed: the same source gives the same bytes. That of the last commit, or where
# there is no git, of the last entry of the change log.
if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
	SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || date -r CHANGELOG.md +%s)
fi
export SOURCE_DATE_EPOCH
export LC_ALL=C
umask 022

die() {
	printf '%s: %s\n' "${0##*/}" "$*" >&2
	exit 1
}

staged=$(mktemp -d)
trap 'rm -rf "$staged"' EXIT
trap 'exit 1' HUP INT TERM

# Installs the programs of directory $1 below $staged, with the prefix $2; their tables of names are left out.
stage() {
	for tool in $tools; do
		[ -x "$1/$tool" ] || die "$1/$tool is missing: build it first, or let make do so"
	done
	# The flags of the make that called this one are not for that one.
	MAKEFLAGS='' "$make" -s install BUILT="$1" DESTDIR="$staged" PREFIX="$2"
	for tool in $tools; do
		strip --strip-unneeded "$staged$2/bin/$tool"
	done
}

# The sums of everything that lies in directory $1 to be given away.
sums() {
	(
		cd "$1"
		set --
		for file in *.tar.gz *.deb; do
			[ ! -f "$file" ] || set -- "$@" "$file"
		done
		sha256sum "$@" >SHA256SUMS
	)
}
