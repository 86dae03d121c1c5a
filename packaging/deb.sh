#!/bin/sh
# packaging/deb.sh PROGRAMS OUT: what `make deb` packs, once the programs are in the directory PROGRAMS:
# OUT/nirvana_VERSION-REVISION_ARCH.deb, and the sums of what lies in OUT. DEB_REVISION (1) and DEB_MAINTAINER may be set.
#
# Linked to the host's C library, as Debian asks for; the libraries it depends on are found in the programs. There is no
# script in it, no user, no service: dpkg's own removal leaves nothing.
set -eu

programs=$1
out=$2
# shellcheck source=packaging/common.sh
. "${0%/*}/common.sh"
revision=${DEB_REVISION:-1}
maintainer=${DEB_MAINTAINER:-The Nirvana authors <nirvana@example.invalid>}
arch=$(dpkg --print-architecture)
docs=$staged/usr/share/doc/$name

stage "$programs" /usr

# Debian's places, where they are others.
install -d "$docs"
mv "$staged/usr/share/nirvana/examples" "$docs/examples"
rmdir "$staged/usr/share/nirvana"
mv "$staged/usr/share/zsh/site-functions" "$staged/usr/share/zsh/vendor-completions"
grep -rl /usr/local/bin/ "$docs/examples" | while read -r file; do
	sed -i 's,/usr/local/bin/,/usr/bin/,g' "$file"
done

# dpkg's own programs read these two files, in a directory debian/.
work=$staged.debian
mkdir -p "$work/debian"
trap 'rm -rf "$staged" "$work"' EXIT
cat >"$work/debian/control" <<END
Source: $name
Section: admin
Priority: optional
Maintainer: $maintainer
Standards-Version: 4.6.2

Package: $name
Architecture: $arch
Depends: \${shlibs:Depends}
Suggests: nodejs, logrotate
Description: small programs that keep a service up
 Five programs that work alone and together, with any supervisor:
 .
 spawnwork runs several workers of a program on shared sockets, Node programs
 without a change, and replaces them without dropping a request. logreopen
 writes log files that survive rotation and a full disk. heartbeat finds out
 whether a service is alive, and acts if it is not. watchtouch acts when a file
 is touched, on any file system. replsock gives a REPL and a profiler inside the
 running program to its owner alone.
END
cat >"$work/debian/changelog" <<END
$name ($version-$revision) unstable; urgency=medium

  * What is new in this version is in changelog.gz.

 -- $maintainer  $(date -u -R -d "@$SOURCE_DATE_EPOCH")
END

cat >"$docs/copyright" <<END
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: $name
Comment: The programs contain libraries written in Rust. Their names, versions
 and licences are in the file THIRD-PARTY beside this one.

Files: *
Copyright: $(sed -n 's/^Copyright (c) //p' LICENSE)
License: Expat

License: Expat
$(sed '1,/^Copyright/d; s/^$/./; s/^/ /' LICENSE | sed '1{/^ \.$/d}')
END
packaging/licences.sh | gzip -9n >"$docs/THIRD-PARTY.gz"
gzip -9nc README.md >"$docs/README.md.gz"
gzip -9nc CHANGELOG.md >"$docs/changelog.gz"
gzip -9nc "$work/debian/changelog" >"$docs/changelog.Debian.gz"
find "$staged/usr/share/man" -type f -exec gzip -9n {} +
find "$staged" -type d -exec chmod 755 {} +

install -d "$staged/DEBIAN"
(
	cd "$work"
	for tool in $tools; do
		set -- "$@" -e "$staged/usr/bin/$tool"
	done
	shift 2
	dpkg-shlibdeps "$@"
	dpkg-gencontrol -p"$name" -P"$staged" -ndebian-files >&2
)
(cd "$staged" && find usr -type f -print | sort | while read -r file; do md5sum "$file"; done >DEBIAN/md5sums)

mkdir -p "$out"
file=$out/${name}_$version-${revision}_$arch.deb
dpkg-deb --root-owner-group -Zxz --build "$staged" "$file.new" >&2
mv "$file.new" "$file"
sums "$out"
printf '%s\n' "$file"
