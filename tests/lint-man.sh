#!/bin/sh
# mandoc's lint of every page, down to its style advice; anything it says is a failure.
set -eu
cd "$(dirname "$0")/.."

# References between the pages are looked up in an index, so one is made of a copy.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
trap 'exit 1' HUP INT TERM
cp -R man/man1 man/man7 "$copy"
PATH=$PATH:/usr/sbin makewhatis "$copy"
said=$(MANPATH=$copy mandoc -Tlint -Wstyle man/man[0-9]/*.[0-9] 2>&1) || true
if [ -n "$said" ]; then
	printf '%s\n' "$said"
	exit 1
fi
