"""A daemon for the tests: the real protocol in front of plain directories and plain processes of the host.

It isolates nothing and its checkpoints are copies of a directory; but commands, streams, tars and errors are real, so
that a test passes here for the same reason as with the real daemon.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import shutil
import signal
import socketserver
import subprocess
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

STATUS = {"usage": 400, "not_found": 404, "conflict": 409, "refused": 422, "internal": 500}


class Failed(Exception):
    def __init__(self, kind: str, message: str, exit_code: int | None = None, **more: Any) -> None:
        super().__init__(message)
        self.status = STATUS[kind]
        self.exit_code = exit_code
        self.body = {"kind": kind, "message": message, **more}


class FakeSandbox:
    def __init__(self, base: str, name: str, request: dict[str, Any]) -> None:
        self.name, self.request = name, request
        self.directory = os.path.join(base, name)
        self.root = os.path.join(self.directory, "root")
        os.makedirs(self.root)
        self.created = time.time()
        self.status = "running"
        self.checkpoints: list[dict[str, Any]] = []
        self.numbers = itertools.count()
        self.current: str | None = None
        self.execs: dict[str, subprocess.Popen[bytes]] = {}
        self.discarded: dict[str, str] = {}

    def info(self) -> dict[str, Any]:
        return {
            "id": f"id-{self.name}",
            "name": self.name,
            "status": self.status,
            "root": self.request["root"],
            "limits": self.request["limits"],
            "mounts": self.request["mounts"],
            "env": self.request["env"],
            "created_unix": int(self.created),
            "current": self.current,
            "checkpoints": len(self.checkpoints),
            "init_pid": 1,
            "execs": [
                {"id": key, "pid": process.pid, "argv": process.args, "tty": False}
                for key, process in list(self.execs.items())
            ],
            "phases_ms": {},
            "unknown_to_clients": True,
        }

    def find(self, name: str) -> dict[str, Any]:
        for checkpoint in self.checkpoints:
            if name in (checkpoint["id"], checkpoint["label"]) or (name == "@" and checkpoint["id"] == self.current):
                return checkpoint
        raise Failed("not_found", f"no checkpoint '{name}'", hint="log lists them")

    def copy_of(self, checkpoint: dict[str, Any]) -> str:
        return os.path.join(self.directory, checkpoint["id"])

    def checkpoint(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["label"] == "refuse me":
            refusal = {"pid": 7, "process": "x", "what": "io_uring", "why": "unreadable", "remedy": "close it"}
            raise Failed("refused", "the state cannot be carried", refusals=[refusal])
        made = {
            "id": f"c{next(self.numbers)}",
            "parent": self.current,
            "label": request["label"],
            "token": request["token"],
            "created_unix_ms": int(time.time() * 1000),
            "file_bytes": None,
            "memory_bytes": 0,
            "processes": 0,
            "pinned": request.get("pin", False),
            "durable": request["wait"] == "durable",
        }
        shutil.copytree(self.root, self.copy_of(made), symlinks=True)
        self.checkpoints.append(made)
        self.current = made["id"]
        extra = {"stopped_ms": 0.1, "total_ms": 0.2, "phases_ms": {"freeze": 0.1}, "freeze": "switch"}
        return {key: value for key, value in {**made, **extra}.items() if key not in ("token", "created_unix_ms", "pinned")}

    def rollback(self, to: str) -> dict[str, Any]:
        target = self.find(to)
        ended = list(self.execs.items())
        for key, process in ended:
            self.discarded[key] = target["id"]
            kill(process, signal.SIGKILL)
        for name in os.listdir(self.root):
            path = os.path.join(self.root, name)
            shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.unlink(path)
        shutil.copytree(self.copy_of(target), self.root, symlinks=True, dirs_exist_ok=True)
        self.current = target["id"]
        extra = {"stopped_ms": 0.1, "total_ms": 0.2, "phases_ms": {}, "kept": 0, "recreated": 0, "ended": len(ended)}
        keys = ("id", "parent", "label", "token")
        return {**{key: target[key] for key in keys}, **extra}

    def remove_checkpoint(self, name: str) -> None:
        gone = self.find(name)
        if gone["id"] == self.current:
            raise Failed("conflict", f"checkpoint {gone['id']} is the current one", hint="roll back first")
        if gone["pinned"]:
            raise Failed("conflict", f"checkpoint {gone['id']} is pinned", hint="unpin it")
        self.checkpoints.remove(gone)
        for child in self.checkpoints:
            if child["parent"] == gone["id"]:
                child["parent"] = gone["parent"]

    def gc(self) -> dict[str, Any]:
        keep = self.request["retention"]["keep_last"]
        assert self.request["retention"]["ancestors"]
        gone = [c for c in self.checkpoints[:-keep] if not c["label"] and not c["pinned"] and c["id"] != self.current]
        for checkpoint in gone:
            self.remove_checkpoint(checkpoint["id"])
        removed = [{"sandbox": self.name, "checkpoint": checkpoint["id"]} for checkpoint in gone]
        return {"removed": removed, "freed_bytes": 0}

    def diff(self, before: str | None, after: str | None) -> dict[str, Any]:
        old = contents(self.copy_of(self.find(before or self.current or "@")))
        new = contents(self.copy_of(self.find(after)) if after else self.root)
        changes = []
        for path in sorted(old.keys() | new.keys()):
            if old.get(path) == new.get(path):
                continue
            kind = "added" if path not in old else "deleted" if path not in new else "changed"
            changes.append({"path": path, "kind": kind, "file_type": "file"})
        return {"from": before or "@", "to": after or "live", "changes": changes}

    def remove(self) -> None:
        for process in list(self.execs.values()):
            kill(process, signal.SIGKILL)
        shutil.rmtree(self.directory)


def kill(process: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


def contents(root: str) -> dict[str, bytes]:
    found = {}
    for directory, _, names in os.walk(root):
        for name in names:
            path = os.path.join(directory, name)
            with open(path, "rb") as file:
                found["/" + os.path.relpath(path, root)] = file.read()
    return found


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeDaemon

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    do_POST = do_PUT = do_DELETE = do_GET

    def answer(self) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        self.body = self.read_body()
        try:
            result = self.route(self.command, parts[1:])
        except Failed as error:
            self.send_json(error.status, error.body, error.exit_code)
        except Exception as error:
            self.send_json(500, {"kind": "internal", "message": repr(error)})
        else:
            if result is not NotImplemented:
                self.send_json(200, result)

    def read_body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send_json(self, status: int, body: Any, exit_code: int | None = None) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        if exit_code is not None:
            self.send_header("x-deltabox-exit-code", str(exit_code))
        self.end_headers()
        self.wfile.write(data)

    def start_stream(self, content_type: str) -> None:
        self.send_response(200)
        self.send_header("content-type", content_type)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def send_piece(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def route(self, method: str, parts: list[str]) -> Any:
        daemon = self.server
        if parts == ["health"]:
            return {"version": "0", "pid": os.getpid(), "home": daemon.home, "sandboxes": len(daemon.sandboxes)}
        if parts == ["sandboxes"]:
            if method == "GET":
                return [sandbox.info() for sandbox in daemon.sandboxes.values()]
            request = json.loads(self.body)
            name = request["name"] or f"made-up-{next(daemon.numbers)}"
            if name in daemon.sandboxes:
                raise Failed("conflict", f"the name '{name}' is taken", hint="choose another")
            daemon.sandboxes[name] = FakeSandbox(daemon.home, name, request)
            return daemon.sandboxes[name].info()
        if parts == ["gc"]:
            return daemon.sandboxes[json.loads(self.body)["sandbox"]].gc()
        sandbox = daemon.sandboxes.get(parts[1])
        if sandbox is None:
            raise Failed("not_found", f"no sandbox '{parts[1]}'", hint="deltabox ls lists them")
        return self.route_sandbox(method, sandbox, parts[2:])

    def route_sandbox(self, method: str, sandbox: FakeSandbox, parts: list[str]) -> Any:
        if not parts and method == "DELETE":
            del self.server.sandboxes[sandbox.name]
            return sandbox.remove()
        if not parts:
            return sandbox.info()
        if parts == ["stats"]:
            return {
                "processes": 1, "memory_bytes": 1, "memory_peak_bytes": 1, "cpu_usec": 1, "page_store_bytes": 0,
                "checkpoints": len(sandbox.checkpoints), "depth": 1,
            }  # fmt: skip
        if parts == ["checkpoints"] and method == "POST":
            return sandbox.checkpoint(json.loads(self.body))
        if parts == ["checkpoints"]:
            disk = {"disk": {"private_bytes": 0, "shared_bytes": 0}} if self.query.get("disk") == "true" else {}
            checkpoints = [{**checkpoint, **disk} for checkpoint in sandbox.checkpoints]
            return {"checkpoints": checkpoints, "current": sandbox.current, **disk}
        if parts == ["retention"]:
            sandbox.request["retention"] = json.loads(self.body)
            return None
        if parts[0] == "checkpoints" and parts[2:] == ["pin"]:
            sandbox.find(parts[1])["pinned"] = method == "PUT"
            return None
        if parts[0] == "checkpoints" and method == "DELETE":
            return sandbox.remove_checkpoint(parts[1])
        if parts == ["rollback"]:
            return sandbox.rollback(json.loads(self.body)["to"])
        if parts == ["pause"]:
            made = sandbox.checkpoint({"label": None, "token": None, "wait": "durable"})
            sandbox.status = "stopped"
            return made
        if parts == ["resume"]:
            if sandbox.status == "running":
                raise Failed("conflict", f"sandbox {sandbox.name} is running")
            sandbox.status = "running"
            return sandbox.rollback(json.loads(self.body)["to"] or "@")
        if parts == ["exec"] and sandbox.status != "running":
            raise Failed("conflict", f"sandbox {sandbox.name} is not running: it is paused")
        if parts == ["fork"]:
            return self.fork(sandbox, json.loads(self.body))
        if parts == ["diff"]:
            return sandbox.diff(self.query.get("from"), self.query.get("to"))
        if parts == ["files"]:
            return self.files(method, sandbox)
        if parts == ["exec"]:
            return self.run_command(sandbox, json.loads(self.body))
        if parts[0] == "execs":
            return self.route_exec(sandbox, parts[1], parts[2])
        raise Failed("not_found", f"no endpoint {self.path}")

    def fork(self, source: FakeSandbox, request: dict[str, Any]) -> Any:
        if request["from"] is None:
            source.checkpoint({"label": None, "token": None, "wait": "ready"})
        point = source.find(request["from"] or "@")
        daemon, children = self.server, []
        for number in range(1, request["count"] + 1):
            name = request["name"] or f"made-up-{next(daemon.numbers)}"
            if request["name"] and request["count"] > 1:
                name += f"-{number}"
            if name in daemon.sandboxes:
                error = {"kind": "conflict", "message": f"the name '{name}' is taken", "hint": "choose another"}
                children.append({"name": name, "error": error})
                continue
            child = daemon.sandboxes[name] = FakeSandbox(daemon.home, name, source.request)
            child.checkpoints.append({**point, "parent": None})
            shutil.copytree(source.copy_of(point), child.copy_of(point), symlinks=True)
            child.rollback(point["id"])
            children.append({**child.info(), "total_ms": 1.0})
        return {"checkpoint": point["id"], "stopped_ms": 0.1, "total_ms": 1.0, "children": children}

    def files(self, method: str, sandbox: FakeSandbox) -> Any:
        path = sandbox.root + self.query["path"]
        if not os.path.lexists(path):
            raise Failed("not_found", f"no '{self.query['path']}' in the sandbox")
        if method == "PUT":
            with tarfile.open(fileobj=io.BytesIO(self.body)) as archive:
                archive.extractall(path)
            return None
        self.start_stream("application/x-tar")
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            archive.add(path, arcname=os.path.basename(path))
        data = buffer.getvalue()
        for start in range(0, len(data), 10000):
            self.send_piece(data[start : start + 10000])
        self.wfile.write(b"0\r\n\r\n")
        return NotImplemented

    def route_exec(self, sandbox: FakeSandbox, key: str, action: str) -> Any:
        process = sandbox.execs.get(key)
        if process is None:
            raise Failed("not_found", "no such running command: it may have ended")
        if action == "signal":
            kill(process, json.loads(self.body)["signal"])
        elif action == "stdin":
            assert process.stdin is not None
            if process.stdin.closed:
                raise Failed("conflict", "the command's standard input is closed")
            process.stdin.write(self.body)
            process.stdin.flush()
            if self.query.get("keep") != "true":
                process.stdin.close()
        else:
            raise Failed("usage", "the command has no terminal")
        return None

    def run_command(self, sandbox: FakeSandbox, request: dict[str, Any]) -> Any:
        given = request.get("stdin_data")
        wants_input = request.get("stdin") or given is not None
        try:
            process = subprocess.Popen(
                request["argv"],
                cwd=request.get("workdir") or sandbox.root,
                env={"PATH": os.environ["PATH"], **sandbox.request["env"], **request["env"]},
                stdin=subprocess.PIPE if wants_input else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except FileNotFoundError:
            raise Failed("not_found", f"no command '{request['argv'][0]}'", exit_code=127) from None
        key = f"e{next(self.server.numbers)}"
        sandbox.execs[key] = process
        self.start_stream("application/x-ndjson")
        lock = threading.Lock()
        timed_out = threading.Event()

        def event(name: str, **more: Any) -> None:
            with lock:
                line = json.dumps({"event": name, **more}).encode() + b"\n"
                # Cut in two, because nothing says that a piece is a line.
                self.send_piece(line[:5])
                self.send_piece(line[5:])

        def forward(name: str, file: Any) -> None:
            while data := file.read1(4096):
                event(name, data=base64.b64encode(data).decode())

        def feed() -> None:
            assert process.stdin is not None
            try:
                process.stdin.write(base64.b64decode(given or ""))
                process.stdin.close()
            except BrokenPipeError:
                pass

        def expire() -> None:
            timed_out.set()
            kill(process, signal.SIGKILL)

        event("started", id=key, pid=process.pid)
        threads = [
            threading.Thread(target=forward, args=("stdout", process.stdout)),
            threading.Thread(target=forward, args=("stderr", process.stderr)),
        ]
        if given is not None:
            threads.append(threading.Thread(target=feed))
        timer = threading.Timer((request.get("timeout_ms") or 1e9) / 1000, expire)
        timer.daemon = True
        timer.start()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        code = process.wait()
        timer.cancel()
        del sandbox.execs[key]
        if key in sandbox.discarded:
            event("discarded", checkpoint=sandbox.discarded[key])
        elif sandbox.name not in self.server.sandboxes:
            event("lost", message="the sandbox was removed")
        else:
            ended = {"code": code, "signal": None} if code >= 0 else {"code": None, "signal": -code}
            event("exited", **ended, timed_out=timed_out.is_set())
        self.wfile.write(b"0\r\n\r\n")
        return NotImplemented


class FakeDaemon(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, home: str) -> None:
        self.home = home
        self.sandboxes: dict[str, FakeSandbox] = {}
        self.numbers = itertools.count()
        super().__init__(os.path.join(home, "daemon.sock"), Handler)

    def __enter__(self) -> FakeDaemon:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
        for sandbox in self.sandboxes.values():
            sandbox.remove()


if __name__ == "__main__":
    import sys

    FakeDaemon(sys.argv[1]).serve_forever()
