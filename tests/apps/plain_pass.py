"""Hands sockets to a program as an activator does.

plain_pass.py FIRST NAMES PID PORT,... COMMAND...: sockets on the ports, from descriptor FIRST on;
NAMES for LISTEN_FDNAMES and PID for LISTEN_PID (self: our own), or - for no LISTEN_ variables.
"""

import os
import socket
import sys

first, names, pid, ports = sys.argv[1:5]
sockets = [socket.create_server(("127.0.0.1", int(port))) for port in ports.split(",")]
# Out of the way first.
moved = [os.dup2(one.fileno(), 100 + index) for index, one in enumerate(sockets)]
for one in sockets:
    one.close()
for index, number in enumerate(moved):
    os.dup2(number, int(first) + index, inheritable=True)
    os.close(number)
if names != "-":
    os.environ["LISTEN_FDS"] = str(len(moved))
    os.environ["LISTEN_FDNAMES"] = names
    os.environ["LISTEN_PID"] = str(os.getpid()) if pid == "self" else pid
os.execvp(sys.argv[5], sys.argv[5:])
