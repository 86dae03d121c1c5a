"""In the guest, for `make bench`: from a touch on the NFS server to what each watcher on a client (v3, default options)
says. Each has a file of its own, which the server has left alone for long enough that the client asks once a minute."""

import os
import shutil
import subprocess
import sys
import time

PROGRAM = open("/mnt/out/program").read().strip()
IDLE, PATIENCE = 100, 75
POLL = """
import os, sys, time
last = os.stat(sys.argv[1]).st_mtime_ns
while last == os.stat(sys.argv[1]).st_mtime_ns:
    time.sleep(0.1)
print("touched", flush=True)
"""
WATCHEXEC = "/mnt/out/watchexec" if os.path.exists("/mnt/out/watchexec") else "watchexec"
NODE = "require('fs').%s(process.argv[1], () => require('fs').writeSync(1, 'touched\\n'))"
PEERS = {
    "watchtouch": [PROGRAM, "FILE", "-q", "--settle", "0"],
    "stat(2) every 0.1 s": ["python3", "-c", POLL, "FILE"],
    "node fs.watchFile": ["node", "-e", NODE % "watchFile", "FILE"],
    "node fs.watch": ["node", "-e", NODE % "watch", "FILE"],
    "watchexec": [WATCHEXEC, "-q", "-p", "-w", "FILE", "--", "echo touched"],
    "watchexec --poll 1s": [WATCHEXEC, "-q", "-p", "--poll", "1s", "-w", "FILE", "--", "echo touched"],
    "inotifywait -m": ["inotifywait", "-q", "-m", "FILE"],
}

running = {}
for number, (name, words) in enumerate(PEERS.items()):
    if not shutil.which(words[0]):
        print(f"{name:28} is not installed")
        continue
    os.mkdir(f"/mnt/srv/{number}")
    open(f"/mnt/srv/{number}/f", "w").close()
    out = f"/tmp/out{number}"
    words = [f"/mnt/cli3/{number}/f" if word == "FILE" else word for word in words]
    running[name] = (number, subprocess.Popen(words, stdout=open(out, "w"), stderr=subprocess.DEVNULL))

time.sleep(IDLE)
# What came before is no answer: opening a file may be an event.
before = {name: os.path.getsize(f"/tmp/out{number}") for name, (number, _) in running.items()}
began = time.monotonic()
for number, _ in running.values():
    os.utime(f"/mnt/srv/{number}/f")
answered = {}
while time.monotonic() < began + PATIENCE and len(answered) < len(running):
    for name, (number, _) in running.items():
        if name not in answered and os.path.getsize(f"/tmp/out{number}") > before[name]:
            answered[name] = time.monotonic() - began
    time.sleep(0.01)

print(f"on NFS, touched on the server after {IDLE} s")
for name, (_, process) in running.items():
    took = f"{answered[name]:8.2f} s" if name in answered else f"   never (in {PATIENCE} s)"
    dead = "" if process.poll() is None or name in answered else ", ended"
    print(f"{name:28} {took}{dead}", flush=True)
for _, process in running.values():
    process.kill()
sys.exit(0)
