#!/usr/bin/env bash
# Draws docs/chain.svg: the chain of the README, run here and now under load, and what a terminal showed of it.
# Usage: docs/picture.sh [DIRECTORY OF THE PROGRAMS] (target/release). Needs node, curl and ps.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
programs=$(cd "${1:-$root/target/release}" && pwd)
PATH=$programs:$PATH
place=$(mktemp -d)
chain=
stop() {
	touch "$place/over"
	if [ -n "$chain" ]; then
		kill "$chain" 2>/dev/null || true
		wait "$chain" 2>/dev/null || true
	fi
	wait
	rm -rf "$place"
}
trap stop EXIT
cd "$place"
export REPLSOCK_DIR=$place/repl PS_FORMAT=
mkdir -m 700 shared repl
mkdir -p releases/1 shared/logs
: >shared/logs/shop.err
ln -s releases/1 current
cat >releases/1/app.js <<'APP'
require('http').createServer((request, response) => {
  console.log(`${request.method} ${request.url}`);
  response.end(`hello ${process.pid}\n`);
}).listen(Number(process.env.PORT), '127.0.0.1');
APP
PORT=$((20000 + $$ % 10000))
export PORT

# What is typed and what comes of it, as the picture has it.
: >transcript
shows() {
	printf '$ %s\n' "$1" >>transcript
	bash -c "$1" 2>&1 | cut -c 1-118 >>transcript || true
}
note() { printf '# %s\n' "$1" >>transcript; }
# Waits for the $1-th line with $2 in it.
event() {
	for _ in $(seq 600); do
		[ "$(grep -c "$2" shared/logs/shop.err || true)" -ge "$1" ] && return
		sleep 0.1
	done
	echo "no '$2' in: $(cat shared/logs/shop.err)" >&2
	exit 1
}

command="replsock env --app shop -- \\
logreopen -l shared/logs/shop.out -e shared/logs/shop.err --control shared/log.sock -- \\
watchtouch shared/restart.txt --signal USR2 -- \\
heartbeat --port \$PORT --children --stuck 10s \\
    --on-fail 'case \$HEARTBEAT_REASON in stuck) kill -KILL \$PID ;; *) kill -USR2 \$PID ;; esac' -- \\
spawnwork -n 3 -C current --control shared/app.sock -- node app.js"
printf '$ %s &\n' "$command" >>transcript
setsid bash -c "exec $command" >output 2>&1 &
chain=$!
event 1 ' generation-serving '
event 1 ' service-up '
# The master's own id; what a session's first process has is that of the session.
shows "ps --forest -s $chain -o pid,args | sed 's, -.*,, ; s,[^ ]*/,,'"

# A client that never stops asking.
(
	asked=0 failed=0
	while [ ! -e over ]; do
		asked=$((asked + 1))
		curl -sf -o answer --max-time 5 "http://127.0.0.1:$PORT/order" || failed=$((failed + 1))
	done
	echo "$asked $failed" >count
) &
client=$!
note 'a client asks without a pause; a release is touched in, and the log rotated'
shows 'touch shared/restart.txt'
event 1 ' reload-committed '
shows 'mv shared/logs/shop.out shared/logs/shop.out.1 &&\
  logreopen --ctl shared/log.sock reopen && gzip shared/logs/shop.out.1'
note 'a release that is no good'
shows "echo 'console.error(\"no licence\"); process.exit(3)' > current/app.js"
shows 'spawnwork --ctl shared/app.sock reload; echo "status $?"'
shows 'spawnwork --ctl shared/app.sock status'
shows "replsock eval --all shop 'process.uptime() > 0'"
touch over
wait "$client"
read -r asked failed <count
kill "$chain"
status=0
wait "$chain" || status=$?
chain=
lines=$(cat <(zcat shared/logs/shop.out.1.gz) shared/logs/shop.out | grep -c '^GET /order$' || true)
note "the client: $asked requests, $failed failed; the log: $lines lines of them; stopped with status $status"
[ "$failed" = 0 ] && [ "$lines" = "$asked" ]

# Times and pids stay as they were; nothing is made nicer than it was.
awk -v date="$(date -u +%F)" '
	function escaped(text) { gsub(/&/, "\\&amp;", text); gsub(/</, "\\&lt;", text); gsub(/>/, "\\&gt;", text); return text }
	{ line[NR] = $0 }
	END {
		height = NR * 17 + 62
		print "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"940\" height=\"" height "\" viewBox=\"0 0 940 " height "\" role=\"img\">"
		print "<title>The five programs as one service, in a terminal, run on " date "</title>"
		print "<style>text{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;fill:#d4d4d4;white-space:pre}.typed{fill:#fff;font-weight:600}.note{fill:#8fbf7f}.small{fill:#888;font-size:11px}</style>"
		print "<rect width=\"940\" height=\"" height "\" rx=\"8\" fill=\"#1e1e1e\"/>"
		print "<text class=\"small\" x=\"18\" y=\"24\">docs/picture.sh, " date "</text>"
		typed = 0
		for (row = 1; row <= NR; row++) {
			class = ""
			if (line[row] ~ /^\$ /) { typed = 1 } else if (line[row] ~ /^# /) { class = "note"; typed = 0 }
			if (typed) { class = "typed" }
			if (typed && line[row] !~ /\\$/) { typed = 0 }
			print "<text xml:space=\"preserve\"" (class == "" ? "" : " class=\"" class "\"") " x=\"18\" y=\"" (row * 17 + 34) "\">" escaped(line[row]) "</text>"
		}
		print "</svg>"
	}' transcript >"$root/docs/chain.svg.new"
mv "$root/docs/chain.svg.new" "$root/docs/chain.svg"
