#!/bin/sh
# packaging/dist.sh PROGRAMS OUT ARCH: what `make dist` packs, once the static programs are in the directory PROGRAMS:
# OUT/nirvana-VERSION-ARCH-linux.tar.gz, and the sums of what lies in OUT.
set -eu

programs=$1
out=$2
arch=$3
# shellcheck source=packaging/common.sh
. "${0%/*}/common.sh"

for tool in $tools; do
	# Said by ldd as "statically linked" or "not a dynamic executable", to the one stream or the other.
	case $(ldd "$programs/$tool" 2>&1 || true) in
	*statically*linked* | *not*a*dynamic*) ;;
	*) die "$programs/$tool is not linked statically: 'make dist' builds such programs" ;;
	esac
done

top=$name-$version-$arch-linux
stage "$programs" "/$top"
install -m 644 README.md LICENSE CHANGELOG.md "$staged/$top"
# The README shows it.
install -D -m 644 docs/chain.svg "$staged/$top/docs/chain.svg"
packaging/licences.sh >"$staged/$top/THIRD-PARTY"
(
	cd "$staged/$top"
	find . -type f -print | sed 's,^\./,,' | sort | while read -r file; do sha256sum "$file"; done
) >"$staged/sums"
install -m 644 "$staged/sums" "$staged/$top/SHA256SUMS"

mkdir -p "$out"
tar --create --format=gnu --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner \
	--mode=go+u,go-w --directory="$staged" "$top" | gzip -9n >"$out/$top.tar.gz.new"
mv "$out/$top.tar.gz.new" "$out/$top.tar.gz"
sums "$out"
printf '%s\n' "$out/$top.tar.gz"
