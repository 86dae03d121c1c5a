"""A server that was written for einhorn: it knows its sockets by EINHORN_FD_n alone.

Like einhorn's own clients it believes the variables only if EINHORN_MASTER_PID is its parent.
"""

import os
import socket
import threading

assert int(os.environ["EINHORN_MASTER_PID"]) == os.getppid()
count = int(os.environ["EINHORN_FD_COUNT"])
numbers = [int(os.environ["EINHORN_FD_%d" % index]) for index in range(count)]
assert [int(word) for word in os.environ["EINHORN_FDS"].split()] == numbers


def serve(index):
    family = getattr(socket, os.environ["EINHORN_FD_FAMILY_%d" % index])
    listener = socket.socket(family, socket.SOCK_STREAM, fileno=numbers[index])
    while True:
        connection, _ = listener.accept()
        with connection:
            body = "child=%s socket=%d" % (os.environ["EINHORN_CHILD_INDEX"], index)
            connection.recv(4096)
            head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
            connection.sendall((head + body).encode())


for index in range(count):
    threading.Thread(target=serve, args=(index,)).start()
