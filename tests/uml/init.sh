#!/bin/sh
# The first process of the guest, whose / is the host's, read-only. SCRIPT is what it runs, OUT the one directory of
# the host that can be written, as /mnt/out. It runs with dash: busybox would execute the guest's kernel again.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t tmpfs tmpfs /mnt
mkdir -p /mnt/out
mount -t hostfs none /mnt/out -o "$OUT"
exec >/mnt/out/log 2>&1
mount -t sysfs sys /sys
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /var/lib/nfs
ip link set lo up

modules=$(echo /usr/lib/uml/modules/*)
load() { # load NAME, and what it depends on, in order
	line=$(grep "/$1.ko[^:]*:" "$modules/modules.dep") || return 0
	needs=${line#*:}
	reversed=
	for need in $needs; do reversed="$need $reversed"; done
	for file in $reversed "${line%%:*}"; do insmod "$modules/$file" 2>/dev/null; done
}
for module in sunrpc lockd nfsd nfs nfsv3 nfsv4; do load "$module"; done

sh "$SCRIPT"
echo "$?" >/mnt/out/status
sync
# LINUX_REBOOT_CMD_POWER_OFF
python3 -c 'import ctypes; ctypes.CDLL(None).reboot(0x4321fedc)'
