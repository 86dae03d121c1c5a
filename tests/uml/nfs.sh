#!/bin/sh
# In the guest: a real NFS server and its clients, v3 and v4.2. watchtouch, at PROGRAM, must see each change that is made
# on the server within its interval and 0.2 s, however long the client has been idle before.
set -u
here=$(cd "$(dirname "$0")" && pwd)

mkdir -p /mnt/srv /mnt/cli3 /mnt/cli4 /var/lib/nfs/v4recovery /var/lib/nfs/rpc_pipefs
touch /var/lib/nfs/etab /var/lib/nfs/rmtab
mount -t tmpfs srv /mnt/srv
mount -t nfsd nfsd /proc/fs/nfsd
mount -t rpc_pipefs rpc /var/lib/nfs/rpc_pipefs
rpcbind -w
exportfs -o rw,fsid=0,no_root_squash,insecure,no_subtree_check '*:/mnt/srv'
rpc.mountd --no-nfs-version 2
rpc.nfsd -G 10 2
sleep 1
mount -t nfs -o vers=3,nolock,proto=tcp 127.0.0.1:/mnt/srv /mnt/cli3 || exit 90
mount -t nfs -o vers=4.2 127.0.0.1:/ /mnt/cli4 || exit 91

exec python3 "$here/nfs.py"
