"""Accepts on all sockets of LISTEN_FDS, numbers what it logs, and leaves in peace on TERM.

/log/N writes N lines, /slow takes a moment, /long a while, after which it writes one line.
"""

import os
import re
import select
import signal
import socket
import sys
import threading
import time

lock = threading.Lock()
count = 0


def log(lines):
    global count
    with lock:
        text = ""
        for _ in range(lines):
            count += 1
            text += "line %d %d\n" % (os.getpid(), count)
        sys.stdout.write(text)
        sys.stdout.flush()


def answer(connection):
    with connection:
        request = b""
        while b"\r\n\r\n" not in request:
            data = connection.recv(4096)
            if not data:
                return
            request += data
        path = request.split(b" ")[1].decode()
        found = re.match("/log/([0-9]+)", path)
        if found:
            log(int(found.group(1)))
        if path.startswith("/slow"):
            time.sleep(0.3)
        if path.startswith("/long"):
            time.sleep(1.5)
            log(1)
        body = b"hello %d\n" % os.getpid()
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
            % (len(body), body)
        )


def main():
    listeners = [socket.socket(fileno=3 + i) for i in range(int(os.environ["LISTEN_FDS"]))]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGTERM, lambda *_: None)
    for listener in listeners:
        listener.setblocking(False)
    threads = []
    while True:
        ready, _, _ = select.select(listeners + [reader], [], [])
        if reader in ready:
            break
        for listener in ready:
            try:
                connection, _ = listener.accept()
            except BlockingIOError:
                continue
            connection.setblocking(True)
            thread = threading.Thread(target=answer, args=(connection,))
            thread.start()
            threads = [one for one in threads if one.is_alive()] + [thread]
    for thread in threads:
        thread.join()


main()
