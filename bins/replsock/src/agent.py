# The part of replsock that lives in a Python process (3.6 on). Python imports `sitecustomize` by itself; the
# user's own is imported from here. A thread of its own serves the socket: it needs the GIL, and no more.
import os
import sys


def _replsock():
    here = os.path.dirname(os.path.abspath(__file__))
    told = os.environ.pop("REPLSOCK_AGENT", None)
    # The app's children are not meant.
    sys.path[:] = [place for place in sys.path if os.path.abspath(place or ".") != here]
    rest = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place and os.path.abspath(place) != here]
    if rest:
        os.environ["PYTHONPATH"] = os.pathsep.join(rest)
    else:
        os.environ.pop("PYTHONPATH", None)
    # The one that would have been found without us.
    ours = sys.modules.pop("sitecustomize", None)
    try:
        import sitecustomize  # noqa: F401
    except ImportError as why:
        if why.name != "sitecustomize":
            raise
        if ours is not None:
            sys.modules["sitecustomize"] = ours
    if told:
        try:
            _serve(told)
        except Exception:  # whatever it is: the app goes on without us
            pass


def _serve(told):
    import errno
    import json
    import socket
    import stat
    import struct
    import threading
    import time

    settings = json.loads(told)
    app = str(settings["app"])
    begun = time.time()
    state = {"path": None, "inode": None, "pid": None, "count": 0, "server": None}
    clients = set()
    # Who cleans up /tmp may have removed the socket: it is looked for so often, in seconds.
    look = 30

    def own(directory):
        os.makedirs(directory, mode=0o700, exist_ok=True)
        found = os.lstat(directory)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.geteuid(), 0):
            raise OSError("not ours")
        if found.st_mode & 0o022 and not found.st_mode & 0o1000:
            raise OSError("others can write there")
        if not os.access(directory, os.W_OK):
            raise OSError("not ours")
        return directory

    def home():
        try:
            own(settings["dir"])
            return own(os.path.join(settings["dir"], app))
        except OSError:
            mine = "/tmp/replsock-%d" % os.geteuid()
            own(mine)
            return own(os.path.join(mine, app))

    def reach(directory, path, call):
        # An address holds 107 bytes (unix(7)).
        if len(os.fsencode(path)) <= 107:
            return call(path)
        handle = os.open(directory, os.O_RDONLY)
        try:
            return call("/proc/self/fd/%d/%s" % (handle, os.path.basename(path)))
        finally:
            os.close(handle)

    def free(directory):
        # What a process of our number left behind is removed; one in another pid namespace may have it, and live.
        for attempt in range(9):
            path = os.path.join(directory, "%d%s.sock" % (os.getpid(), "-%d" % attempt if attempt else ""))
            if not os.path.lexists(path):
                return path
            probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                reach(directory, path, probe.connect)
            except ConnectionRefusedError:
                os.unlink(path)
                return path
            except OSError:
                pass
            finally:
                probe.close()
        raise OSError("no name is free")

    def listen():
        directory = home()
        path = free(directory)
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Before bind: the socket's file has these rights from birth.
        os.fchmod(server.fileno(), 0o600)
        reach(directory, path, server.bind)
        server.listen(64)
        server.settimeout(look)
        state.update(path=path, inode=os.lstat(path).st_ino, pid=os.getpid(), server=server)
        thread = threading.Thread(target=accept, args=(server,), name="replsock", daemon=True)
        thread.start()

    def is_there():
        try:
            return os.lstat(state["path"]).st_ino == state["inode"]
        except FileNotFoundError:
            return False
        except OSError:
            return True

    def accept(server):
        while True:
            try:
                client, _ = server.accept()
            except socket.timeout:
                if not is_there():
                    server.close()
                    return again()
                continue
            except OSError as why:
                if why.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                    time.sleep(0.1)
                    continue
                return
            client.settimeout(None)
            credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            if struct.unpack("3i", credentials)[1] not in (os.geteuid(), 0):
                client.close()
                continue
            clients.add(client)
            try:
                threading.Thread(target=talk, args=(client,), name="replsock", daemon=True).start()
            except RuntimeError:  # no further thread
                clients.discard(client)
                client.close()

    def frame(kind, body):
        return struct.pack("<I", kind | len(body) << 8) + body

    def talk(client):
        try:
            first = client.recv(1)
            if first == b"\0":
                frames(client)
            elif first:
                text(client, first)
        except Exception:
            pass
        finally:
            clients.discard(client)
            client.close()

    def exactly(client, length):
        parts = b""
        while len(parts) < length:
            part = client.recv(length - len(parts))
            if not part:
                return None
            parts += part
        return parts

    def frames(client):
        hello = {"version": 1, "mode": "agent", "app": app, "pid": os.getpid()}
        client.sendall(frame(1, json.dumps(hello).encode()))
        held = b""
        while True:
            head = exactly(client, 4)
            if head is None:
                return
            word = struct.unpack("<I", head)[0]
            kind, length = word & 0xFF, word >> 8
            if length > 4 << 20:
                return
            body = exactly(client, length)
            if body is None or kind == 3:
                return
            if kind != 2:
                continue
            held += body
            *lines, held = held.split(b"\n")
            for line in lines:
                if line.strip():
                    answer = (json.dumps(ask(json.loads(line.decode()))) + "\n").encode()
                    for at in range(0, len(answer), 0xFFFFFF):
                        client.sendall(frame(2, answer[at : at + 0xFFFFFF]))

    def text(client, first):
        # A whole program at the end of the input, or line by line.
        import codeop

        pending = ""
        stream = client.makefile("r", encoding="utf-8", errors="replace", newline="\n")
        lines = first.decode("utf-8", "replace") + stream.readline()
        while True:
            pending += lines
            ended = not lines
            try:
                whole = ended or codeop.compile_command(pending, "<replsock>", "exec") is not None
            except (SyntaxError, ValueError, OverflowError):
                whole = True
            if whole and pending.strip():
                answer = evaluate({"code": pending, "limit": 1 << 20})
                if answer["text"] and answer["type"] != "undefined":
                    client.sendall((answer["text"] + "\n").encode())
            if whole:
                pending = ""
            if ended:
                return
            lines = stream.readline()

    def ask(request):
        op = request.get("op")
        answer = {"id": request.get("id"), "ok": True}
        if op == "eval":
            answer.update(evaluate(request))
        elif op == "info":
            answer.update(info())
        elif op == "check":
            answer["whole"] = True
        elif op != "ping":
            answer.update(ok=False, text="not in Python: %.40s" % op)
        return answer

    def info():
        return {
            "app": app,
            "pid": os.getpid(),
            "runtime": "python",
            "version": sys.version.split()[0],
            "uptime_s": round(time.time() - begun),
            "draining": False,
        }

    def evaluate(request):
        import ast
        import traceback

        started = time.time()
        state["count"] += 1
        name = "<replsock-%d>" % state["count"]
        space = sys.modules["__main__"].__dict__
        out = {"ok": True, "type": "object", "text": ""}
        if request.get("read_only"):
            return {"ok": False, "type": "error", "text": "Python cannot look for side effects: not without --read-only"}
        try:
            tree = ast.parse(request["code"].lstrip(), name, "exec")
            value = None
            last = None
            if tree.body and isinstance(tree.body[-1], ast.Expr):
                last = ast.Expression(tree.body.pop().value)
            exec(compile(tree, name, "exec"), space)
            if last is not None:
                value = eval(compile(last, name, "eval"), space)
            if value is None:
                out["type"] = "undefined"
            mode = request.get("mode")
            if mode == "json":
                out["json"] = json.dumps(value)
                out["undefined"] = value is None
            out["text"] = value if mode == "raw" and isinstance(value, str) else repr(value)
        except SystemExit:
            out.update(ok=False, would_end=True, message="sys.exit() would end the thread, not the app", text="SystemExit")
        except BaseException as why:
            lines = traceback.format_exc().rstrip().split("\n")
            at = [number for number, line in enumerate(lines) if "<replsock-" in line]
            shown = lines[:1] + lines[at[0] :] if at else lines[-1:]
            out.update(ok=False, text="\n".join(shown), message=str(why))
        limit = request.get("limit") or 0
        if limit and len(out["text"]) > limit:
            out.update(text=out["text"][:limit], truncated=True)
        out["ms"] = round((time.time() - started) * 1000, 3)
        return out

    def forget():
        try:
            if state["pid"] == os.getpid() and os.lstat(state["path"]).st_ino == state["inode"]:
                os.unlink(state["path"])
        except (OSError, TypeError):
            pass

    def forked():
        # A worker (gunicorn): its parent's thread is not here, and its parent's socket and clients are not its own.
        for one in [state["server"], *clients]:
            try:
                one.close()
            except (OSError, AttributeError):
                pass
        clients.clear()
        again()

    def again():
        try:
            listen()
        except Exception:
            pass

    listen()
    __import__("atexit").register(forget)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=forked)


_replsock()
del _replsock, _serve
