"""Hands sockets to a program as a supervisor does that had kept them.

plain_store.py PATH PID COMMAND...: connects to the unix socket PATH, where it gets the names and the
descriptors, and becomes COMMAND with them; LISTEN_PID is PID (self: our own).
"""

import os
import socket
import sys

path, pid = sys.argv[1:3]
with socket.socket(socket.AF_UNIX) as source:
    source.connect(path)
    names, fds, _, _ = socket.recv_fds(source, 65536, 64)
# Out of the way first.
moved = [os.dup2(fd, 100 + index) for index, fd in enumerate(fds)]
for fd in fds:
    os.close(fd)
for index, fd in enumerate(moved):
    os.dup2(fd, 3 + index, inheritable=True)
    os.close(fd)
os.environ["LISTEN_FDS"] = str(len(moved))
os.environ["LISTEN_FDNAMES"] = names.decode()
os.environ["LISTEN_PID"] = str(os.getpid()) if pid == "self" else pid
os.execvp(sys.argv[3], sys.argv[3:])
