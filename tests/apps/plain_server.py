"""A server that knows nothing of Node: it accepts, blocking, on the sockets of LISTEN_FDS.

Argument: notify (READY=1 to NOTIFY_SOCKET), helper (a child process says it), or fd:N (a newline to
descriptor N).
"""

import os
import socket
import subprocess
import sys
import threading

SAY = """
import os, socket, sys
name = os.environ["NOTIFY_SOCKET"]
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
    out.sendto(sys.argv[1].encode(), "\\0" + name[1:] if name.startswith("@") else name)
"""


def say(text):
    name = os.environ["NOTIFY_SOCKET"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.sendto(text.encode(), "\0" + name[1:] if name.startswith("@") else name)


def answer(connection):
    with connection:
        request = b""
        while b"\r\n\r\n" not in request:
            data = connection.recv(4096)
            if not data:
                return
            request += data
        path = request.split(b" ")[1].decode()
        if path.startswith("/exit/"):
            os._exit(int(path[6:]))
        body = "worker=%s pid=%d generation=%s\n" % (
            os.environ["WORKER_ID"],
            os.getpid(),
            os.environ["SPAWNWORK_GENERATION"],
        )
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
            % (len(body), body.encode())
        )
        if path == "/shutdown":
            # After the answer: the accept(2) that fails of it ends this process.
            socket.socket(fileno=os.dup(3)).shutdown(socket.SHUT_RDWR)


def serve(number):
    listener = socket.socket(fileno=number)
    while True:
        # Without a timeout and without a poll: the kernel is to wait.
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection,), daemon=True).start()


def main():
    assert int(os.environ["LISTEN_PID"]) == os.getpid(), os.environ["LISTEN_PID"]
    threads = [
        threading.Thread(target=serve, args=(3 + index,))
        for index in range(int(os.environ["LISTEN_FDS"]))
    ]
    for thread in threads:
        thread.start()
    for word in sys.argv[1:]:
        how, _, rest = word.partition(":")
        if how == "notify":
            say("READY=1")
        elif how == "helper":
            subprocess.run([sys.executable, "-c", SAY, "READY=1"], check=True)
        elif how == "fd":
            os.write(int(rest), b"\n")
    for thread in threads:
        thread.join()
    # An accept(2) that failed ended its thread.
    os._exit(9)


main()
