#!/bin/sh
# The first process of a guest that boots systemd, on a copy of a root directory that is thrown away: ROOT, or the host's
# own. OUT is the one directory of the host that can be written: as /out; what is in OUT/files is copied to /.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t tmpfs tmpfs /mnt
mkdir -p /mnt/out /mnt/lower /mnt/root
mount -t hostfs none /mnt/out -o "$OUT"
exec >/mnt/out/log 2>&1
lower=/
if [ -n "${ROOT:-}" ]; then
	lower=/mnt/lower
	mount -t hostfs none "$lower" -o "$ROOT"
fi
insmod /usr/lib/uml/modules/*/kernel/fs/overlayfs/overlay.ko
mkdir /mnt/upper /mnt/work
mount -t overlay overlay -o "lowerdir=$lower,upperdir=/mnt/upper,workdir=/mnt/work" /mnt/root || exit

cd /mnt/root || exit
# What this machine's own system would start, and what it would mount.
rm -rf etc/systemd/system/*.wants etc/systemd/system/*.requires etc/fstab
mkdir -p out etc/systemd/system
cp -R /mnt/out/files/. .
mount --bind /mnt/out out
umount /proc
mount --move . /
exec chroot . /lib/systemd/systemd --unit=check.target --log-target=console --log-level=warning \
	--show-status=false
