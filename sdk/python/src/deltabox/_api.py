"""Requests over the daemon's unix socket, and starting the daemon when it is not there."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import httpx

from . import _errors
from ._errors import Unreachable

#: Header of an answer to `exec` when the command could not be started.
_EXIT_CODE_HEADER = "x-deltabox-exit-code"
#: Connecting is local; an answer may take as long as a command runs.
_TIMEOUT = httpx.Timeout(None, connect=10.0)


def home_directory(home: str | os.PathLike[str] | None = None) -> str:
    """The state directory: as given, `DELTABOX_HOME`, or `/var/lib/deltabox`."""
    return os.path.abspath(os.fspath(home or os.environ.get("DELTABOX_HOME") or "/var/lib/deltabox"))


class Api:
    """One persistent HTTP client. Safe to use from several threads."""

    def __init__(self, home: str | os.PathLike[str] | None = None) -> None:
        self.home = home_directory(home)
        # As many connections as there are commands running at a time; no idle ones are dropped.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=8, keepalive_expiry=None)
        transport = httpx.HTTPTransport(uds=os.path.join(self.home, "daemon.sock"), limits=limits)
        self._client = httpx.Client(transport=transport, base_url="http://deltabox/v1", timeout=_TIMEOUT)

        self._lock = threading.Lock()
        #: Streams that are being read, perhaps by other threads.
        self._streams = 0
        self._closing = False

    def close(self) -> None:
        """Closes the connections, the ones that are being read from at their end.

        A descriptor closed under a thread that reads it could be another file's by the next read.
        """
        with self._lock:
            self._closing = True
            idle = self._streams == 0
        if idle:
            self._client.close()

    def _count_stream(self, change: int) -> None:
        with self._lock:
            self._streams += change
            last = self._closing and self._streams == 0
        if last:
            self._client.close()

    def json(self, method: str, path: str, body: Any = None, params: dict[str, Any] | None = None) -> Any:
        """A request with a JSON answer."""
        content = None if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"content-type": "application/json"}
        request = self._client.build_request(method, path, content=content, headers=headers, params=_present(params))
        response = self._send(request, stream=False)
        return response.json() if response.content else None

    def upload(
        self, method: str, path: str, body: bytes | Iterator[bytes], params: dict[str, Any] | None = None
    ) -> None:
        """A request whose body is not JSON."""
        self._send(self._client.build_request(method, path, content=body, params=_present(params)), stream=False)

    @contextlib.contextmanager
    def stream(
        self, method: str, path: str, body: Any = None, params: dict[str, Any] | None = None
    ) -> Iterator[Iterator[bytes]]:
        """A request whose answer is read piece by piece. Leaving the block hangs up."""
        request = self._client.build_request(method, path, json=body, params=_present(params))
        self._count_stream(1)
        try:
            response = self._send(request, stream=True)
            try:
                yield self._pieces(response)
            finally:
                response.close()
        finally:
            self._count_stream(-1)

    def _pieces(self, response: httpx.Response) -> Iterator[bytes]:
        try:
            yield from response.iter_raw()
        except httpx.TransportError as error:
            raise self._broke(error) from error

    def _send(self, request: httpx.Request, stream: bool) -> httpx.Response:
        try:
            response = self._connect_and_send(request, stream)
        except httpx.TransportError as error:
            raise self._broke(error) from error
        if response.is_success:
            return response
        response.read()
        response.close()
        raise _error_of(response)

    def _connect_and_send(self, request: httpx.Request, stream: bool) -> httpx.Response:
        with contextlib.suppress(httpx.ConnectError):
            return self._client.send(request, stream=stream)
        # Nobody listens. Nothing of the request has been used up: a body is only read once there is a connection.
        start_daemon(self.home)
        return self._client.send(request, stream=stream)

    def _broke(self, error: Exception) -> Unreachable:
        return Unreachable(
            f"the connection to the daemon broke: {error}", f"see {os.path.join(self.home, 'daemon.log')}"
        )


def lines(pieces: Iterator[bytes]) -> Iterator[Any]:
    """The JSON objects of a stream that has one per line."""
    # Not `splitlines`: a JSON string may hold characters that it takes for ends of lines.
    pending = b""
    for piece in pieces:
        *complete, pending = (pending + piece).split(b"\n")
        for line in complete:
            yield json.loads(line)


def start_daemon(home: str) -> None:
    """Has the `deltabox` program (`DELTABOX_BIN`, or from PATH) start the daemon; returns when it answers."""
    program = os.environ.get("DELTABOX_BIN") or shutil.which("deltabox")
    if program is None:
        raise Unreachable(
            f"no daemon serves {home}, and the program deltabox is not in PATH to start one",
            "install it, or set DELTABOX_BIN to its path",
        )
    # Any command starts the daemon; this one changes nothing.
    try:
        done = subprocess.run(
            [program, "ls", "--json"],
            env={**os.environ, "DELTABOX_HOME": home},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
    except OSError as error:
        raise Unreachable(f"cannot run {program}: {error.strerror}", "set DELTABOX_BIN to its path") from error
    if done.returncode != 0:
        words = dict(
            line.split(": ", 1) for line in done.stderr.decode("utf-8", "replace").splitlines() if ": " in line
        )
        message = words.get("error", f"{program} ended with exit code {done.returncode}")
        raise Unreachable(message, words.get("hint"))


def _present(params: dict[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (params or {}).items() if value is not None}


def _error_of(response: httpx.Response) -> _errors.DeltaBoxError:
    code = response.headers.get(_EXIT_CODE_HEADER)
    exit_code = int(code) if code and code.isdigit() else None
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        body = {"message": f"the daemon answered {response.status_code}: {response.text[:200]}"}
    return _errors.from_json(body, exit_code)
