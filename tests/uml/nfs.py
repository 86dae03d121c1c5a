"""In the guest: each change that is made on the NFS server must be seen through both clients, once, in time."""

import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timezone

PROGRAM = open("/mnt/out/program").read().strip()
IDLE = float(open("/mnt/out/idle").read())
INTERVAL = 1.0
# What is promised beyond the interval, and as much again for a guest that shares a busy machine.
LIMIT = INTERVAL + 0.2 + 0.2
SERVER = "/mnt/srv/"
# What a look at a file in the mounted directory itself costs on each version, in operations; each directory and link
# further on the way is one more. Where v4 has no delegation, as for some seconds after a change on the server, an OPEN and
# a CLOSE come to that.
OPERATIONS = {3: 4, 4: 3}
failed = False


def fail(text):
    global failed
    failed = True
    print("FAILED:", text, flush=True)


def eventually(ask, limit):
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if ask():
            return True
        time.sleep(0.01)
    return False


def operations(version):
    """All that this client has asked its server, but for opening and closing."""
    count, ours, others = 0, False, ("OPEN", "OPEN_NOATTR", "CLOSE", "DELEGRETURN", "SEQUENCE", "RENEW", "NULL")
    for line in open("/proc/self/mountstats"):
        words = line.split()
        if words[:1] == ["device"]:
            ours = words[4] == f"/mnt/cli{version}"
        elif ours and len(words) > 8 and words[0].endswith(":") and words[0][:-1].isupper() and words[0][:-1] not in others:
            count += int(words[1])
    return count


class Watcher:
    """watchtouch on a file of one client; its lines carry the time at which it acted."""

    def __init__(self, version, path):
        self.name = f"nfs{version}"
        self.out, self.err = f"/tmp/out{version}", f"/tmp/err{version}"
        words = [PROGRAM, f"/mnt/cli{version}/{path}", "--settle", "0", "--min-gap", "0"]
        self.process = subprocess.Popen(words, stdout=open(self.out, "w"), stderr=open(self.err, "w"))
        self.seen = 0
        if not self.said("ready", 1, 10):
            fail(f"{self.name}: no ready")

    def lines(self):
        return open(self.out).read().splitlines()

    def said(self, event, count, limit):
        return eventually(lambda: open(self.err).read().count(f"]: {event} ") >= count, limit)

    def sees(self, what, began):
        self.seen += 1
        if not eventually(lambda: len(self.lines()) >= self.seen, 30):
            return fail(f"{self.name}: {what}: not seen")
        stamp = self.lines()[-1].split(" ")[0]
        at = datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc).timestamp()
        print(f"{self.name}: {what}: {(at - began) * 1000:.0f} ms", flush=True)
        if began + LIMIT < at:
            fail(f"{self.name}: {what}: late")

    def stop(self):
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait()
        took = time.monotonic() - began
        if status != 0:
            fail(f"{self.name}: status {status}")
        if len(self.lines()) != self.seen:
            fail(f"{self.name}: {self.seen} changes, and the lines {self.lines()}")
        return took


def both(path):
    return [Watcher(version, path) for version in (3, 4)]


def check(watchers, what, change):
    began = time.time()
    change()
    for watcher in watchers:
        watcher.sees(what, began)


def write(name, text):
    with open(SERVER + name, "w") as file:
        file.write(text)


def touch(name, when=None):
    os.utime(SERVER + name, None if when is None else (when, when))


def serve(threads):
    subprocess.run(["rpc.nfsd", *(["-G", "10"] if threads else []), str(threads)], check=True)


for release in ("one", "two"):
    os.mkdir(SERVER + release)
    write(f"{release}/restart", release)
os.symlink("one", SERVER + "current")

watchers = both("current/restart")
before = {version: operations(version) for version in OPERATIONS}
time.sleep(IDLE)
for version, wanted in OPERATIONS.items():
    # The link and the directory of the release.
    wanted += 2
    looks = (operations(version) - before[version]) / (IDLE / INTERVAL)
    print(f"nfs{version}: {looks:.2f} operations a look", flush=True)
    if not wanted * 0.8 < looks < wanted * 1.05:
        fail(f"nfs{version}: {looks:.2f} operations a look, and not {wanted}")
check(watchers, f"touched after {IDLE:.0f} s", lambda: touch("one/restart"))
check(watchers, "an older time", lambda: touch("one/restart", 1_000_000))
write("one/new", "x")
check(watchers, "replaced by rename", lambda: os.rename(SERVER + "one/new", SERVER + "one/restart"))
os.symlink("two", SERVER + "link")
check(watchers, "a link switched", lambda: os.rename(SERVER + "link", SERVER + "current"))
for watcher in watchers:
    watcher.stop()

watchers = both("later/restart")
time.sleep(5)
os.mkdir(SERVER + "later")
time.sleep(5)
check(watchers, "made, in a directory made later", lambda: write("later/restart", ""))
check(watchers, "touched", lambda: touch("later/restart", 2_000_000))

# An hour on, and mounted anew: no touch. (Nobody has the mount in use: no descriptor is held.)
subprocess.run(["date", "-s", "+1 hour"], check=True, stdout=subprocess.DEVNULL)
for mount in (
    ["-o", "vers=3,nolock,proto=tcp", "127.0.0.1:/mnt/srv", "/mnt/cli3"],
    ["-o", "vers=4.2", "127.0.0.1:/", "/mnt/cli4"],
):
    # A look may be under way.
    if not eventually(lambda: subprocess.run(["umount", mount[-1]]).returncode == 0, 10):
        fail(f"umount {mount[-1]}")
    subprocess.run(["mount", "-t", "nfs", *mount], check=True)
time.sleep(3)
check(watchers, "touched after the mount", lambda: touch("later/restart", 2_500_000))

# The server goes away; what is touched meanwhile is seen once when it is back.
serve(0)
for watcher in watchers:
    if not watcher.said("watch-stale", 1, 30):
        fail(f"{watcher.name}: nothing said of the server that is away")
touch("later/restart", 3_000_000)
serve(2)
for watcher in watchers:
    watcher.seen += 1
    if not eventually(lambda: len(watcher.lines()) >= watcher.seen, 60):
        fail(f"{watcher.name}: the touch of the outage is lost")
    if not watcher.said("watch-recovered", 1, 10):
        fail(f"{watcher.name}: nothing said of the server that is back")
time.sleep(3)

# Its machine dies: no answer of any kind. TERM ends it within 0.2 s, and as much again for a busy machine.
subprocess.run(["ip", "link", "set", "lo", "down"], check=True)
for watcher in watchers:
    if not watcher.said("watch-stale", 2, 30):
        fail(f"{watcher.name}: nothing said of the server that is away again")
    took = watcher.stop()
    print(f"{watcher.name}: TERM while the server is away: {took * 1000:.0f} ms", flush=True)
    if took > 0.4:
        fail(f"{watcher.name}: TERM took {took:.1f} s")

if failed:
    print(open("/tmp/err3").read(), open("/tmp/err4").read())
sys.exit(failed)
