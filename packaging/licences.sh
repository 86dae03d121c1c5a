#!/bin/sh
# The libraries that are linked into the programs, with their licences, to standard output. It reads cargo's copies of
# their sources, which are there once the programs are built.
set -eu
cd "$(dirname "$0")/.."

cargo=${CARGO:-cargo}
sources=${CARGO_HOME:-${HOME:-/root}/.cargo}/registry/src
line='------------------------------------------------------------------------------'

set --
for tool in heartbeat logreopen replsock spawnwork watchtouch; do
	set -- "$@" --package "$tool"
done
cat <<END
The programs contain these libraries, and Rust's own (MIT OR Apache-2.0); static ones also the C library they were
built with: musl (MIT), or glibc (LGPL-2.1-or-later). Where one is offered under several licences, it is used under the
terms that are printed here.
END
list=$("$cargo" tree --locked --offline --edges normal,no-proc-macro --prefix none --format '{p}|{l}' "$@")
printf '%s\n' "$list" | sed 's/ (\*)$//; /^$/d; /(\//d; s/ v\([^ |]*\)[^|]*|/ \1|/' | LC_ALL=C sort -u |
	while IFS='|' read -r crate licence; do
		printf '\n%s\n%s: %s\n' "$line" "$crate" "$licence"
		# MIT's text is short: where there is one, it is the one that is taken. Otherwise all of them.
		directory=$(printf '%s\n' "$sources"/*/"${crate% *}-${crate#* }" | head -n 1)
		texts=$(find "$directory" -maxdepth 1 -type f -iname '*mit*' | sort | head -n 1)
		[ -n "$texts" ] || texts=$(find "$directory" -maxdepth 1 -type f \( -name 'LICEN[CS]E*' -o -name 'COPYING*' \) | sort)
		for text in $texts; do
			echo
			cat "$text"
		done
	done
