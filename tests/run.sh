#!/usr/bin/env bash
# Runs all tests of the workspace, each once, in two rows beside each other: they wait for most of their time (for a
# trial to be over, for a server that is away, for a worker that drains). What the second row says is shown in one
# piece, when it has come to its end.
#
#   tests/run.sh [OPTION...]    options of `cargo test`: --release, for one
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
cargo=${CARGO:-cargo}

# By tool, so that both take about as long; what is new is in one of them by its name.
first=()
second=()
for file in tests/*.rs; do
	name=${file#tests/}
	name=${name%.rs}
	case $name in
	faults_calls | heartbeat* | logreopen* | replsock* | watchtouch* | spawnwork_orphans | spawnwork_node) second+=(--test "$name") ;;
	*) first+=(--test "$name") ;;
	esac
done
options=(--workspace --no-fail-fast "$@")

said=$(mktemp) || exit 2
# A group of its own, with its signals as they are by default: what a shell without job control puts into the background
# ignores INT, and so would all that the tests start.
set -m
"$cargo" test "${options[@]}" "${second[@]}" </dev/null >"$said" 2>&1 &
pid=$!
set +m
trap 'kill -- "-$pid" 2>/dev/null; rm -f "$said"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

status=0
"$cargo" test "${options[@]}" --lib --bins "${first[@]}" </dev/null || status=1
"$cargo" test "${options[@]}" --doc </dev/null || status=1
wait "$pid" || status=1
cat "$said"
[ "$status" = 0 ] || grep -h '^test .* FAILED$' "$said" >&2
exit "$status"
