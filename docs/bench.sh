#!/bin/sh
# Keeps the results of a run of `make bench`: all of them in docs/bench, the short ones in README and the man pages.
# Usage: docs/bench.sh DIRECTORY (that run's below target/bench)
set -eu
from=$(cd "${1:?the directory of a run, below target/bench}" && pwd)
cd "$(dirname "$0")/.."
if [ ! -s "$from/summary.md" ]; then
	echo "docs/bench.sh: no summary in $from: run all of 'make bench', to its end" >&2
	exit 2
fi

# What stands between the two marks of a file is replaced by that of another one.
between() {
	awk -v begin="$2" -v end="$3" -v text="$4" '
		$0 == end { inside = 0 }
		!inside { print }
		$0 == begin { inside = 1; found = 1; while ((getline line < text) > 0) print line }
		END { exit !found }' "$1" >"$1.new"
	mv "$1.new" "$1"
}

mkdir -p docs/bench
rm -f docs/bench/*
cp "$from/results.tsv" "$from/summary.md" "$from"/*.man "$from"/*.svg docs/bench
# Each table has its picture above it.
awk '
	{ print }
	/^### .*\(`[a-z]*`\)$/ {
		name = $NF
		gsub(/[(`)]/, "", name)
		file = "docs/bench/" name ".svg"
		if ((getline line < file) >= 0) printf "\n![%s](%s.svg)\n", name, name
		close(file)
	}' "$from/results.md" >docs/bench/results.md
between README.md '<!-- bench: begin -->' '<!-- bench: end -->' "$from/summary.md"
for page in "$from"/*.man; do
	tool=$(basename "$page" .man)
	between "man/man1/$tool.1" '.\\" bench: begin' '.\\" bench: end' "$page"
done
