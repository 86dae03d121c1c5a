"""A worker with a watchdog: plain_watchdog.py DIRECTORY [HOW].

It says READY=1, and then WATCHDOG=1 ten times a second, until a file named after its pid appears in
DIRECTORY: the text in it is what it does then. HOW is helper where a child process speaks for it, and
silent where nobody does.
"""

import os
import signal
import socket
import sys
import time

directory, how = sys.argv[1], (sys.argv[2:] or [""])[0]
assert int(os.environ["WATCHDOG_USEC"]) > 0
assert "WATCHDOG_PID" not in os.environ
name = os.environ["NOTIFY_SOCKET"]
out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
out.connect("\0" + name[1:] if name.startswith("@") else name)
file = os.path.join(directory, str(os.getpid()))

out.send(b"READY=1\nSTOPPING=1\nSTATUS=of a worker\nWATCHDOG=1")
if how == "silent" or (how == "helper" and os.fork()):
    signal.pause()
while not os.path.exists(file):
    out.send(b"WATCHDOG=1")
    time.sleep(0.1)
with open(file) as text:
    order = text.read()
if order == "trigger":
    out.send(b"WATCHDOG=trigger")
if order == "ignore":
    signal.signal(signal.SIGABRT, signal.SIG_IGN)
while True:
    signal.pause()
