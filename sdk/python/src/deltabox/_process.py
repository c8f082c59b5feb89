"""Commands: the stream of their events, and processes in the background."""

from __future__ import annotations

import base64
import collections
import contextlib
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from ._api import Api, lines
from ._errors import CommandLost, DeltaBoxError, Internal, UsageError
from ._types import EXIT_DISCARDED, EXIT_TIMED_OUT, Result

if TYPE_CHECKING:
    from types import TracebackType

#: Input up to this size travels with the request, without a call of its own.
_INLINE_BYTES = 256 << 10
#: Pieces of output that wait to be read; then the command waits, as with a pipe.
_QUEUE_PIECES = 256


class Output(NamedTuple):
    """A piece of a command's output."""

    #: `stdout` or `stderr`; with a terminal everything is `stdout`.
    stream: str
    data: bytes


class Collector:
    """Gathers the events of one command into its :class:`Result`."""

    def __init__(self) -> None:
        self._stdout: list[bytes] = []
        self._stderr: list[bytes] = []
        self._rolled_back: list[str] = []
        self.result: Result | None = None

    def add(self, event: dict[str, Any]) -> Output | None:
        """Takes an event in; returns the output in it, if any."""
        kind = event["event"]
        if kind in ("stdout", "stderr"):
            output = Output(kind, base64.b64decode(event["data"]))
            (self._stdout if kind == "stdout" else self._stderr).append(output.data)
            return output
        if kind == "rolled_back":
            self._rolled_back.append(event["checkpoint"])
        elif kind == "discarded":
            self._end(EXIT_DISCARDED, discarded=True)
        elif kind == "lost":
            raise CommandLost(f"the command was lost: {event['message']}")
        elif kind == "exited":
            self._exited(event["code"], event["signal"], event["timed_out"])
        return None

    def _exited(self, code: int | None, number: int | None, timed_out: bool) -> None:
        if timed_out:
            code = EXIT_TIMED_OUT
        elif code is None:
            code = 128 + (number or 0)
        self._end(code, signal=number, timed_out=timed_out)

    def _end(
        self, exit_code: int, signal: int | None = None, timed_out: bool = False, discarded: bool = False
    ) -> None:
        self.result = Result(
            exit_code=exit_code,
            stdout_bytes=b"".join(self._stdout),
            stderr_bytes=b"".join(self._stderr),
            signal=signal,
            timed_out=timed_out,
            rolled_back=tuple(self._rolled_back),
            discarded=discarded,
        )

    def finish(self) -> Result:
        """The result, after the last event."""
        if self.result is None:
            raise CommandLost("the command was lost: the daemon ended before it")
        return self.result


class Process:
    """A command that runs in the background. Its output is read by iterating, or by :meth:`wait`.

    Like a pipe, at most so much output is held for a reader: a command that writes much waits until it is read.
    Used in a `with` statement, the command is killed at the end of the block if it still runs.
    """

    def __init__(self, api: Api, path: str, request: dict[str, Any]) -> None:
        self._api = api
        self._collector = Collector()
        #: Events from the thread that reads the stream; an exception or None is the last.
        self._events: queue.Queue[dict[str, Any] | Exception | None] = queue.Queue(_QUEUE_PIECES)
        self._ended: Exception | Result | None = None
        #: Output that `poll` came across.
        self._unread: collections.deque[Output] = collections.deque()
        self._lock = threading.Lock()
        threading.Thread(target=self._read, args=(path, request), name="deltabox-exec", daemon=True).start()
        first = self._events.get()
        if isinstance(first, Exception):
            raise first
        if first is None or first["event"] != "started":
            raise Internal("the daemon did not say that the command started")
        #: Names the command in the API and in `Sandbox.info().execs`.
        self.id: str = first["id"]
        #: Process id inside the sandbox.
        self.pid: int = first["pid"]
        self._path = f"{path}s/{quote(self.id, safe='')}"

    def _read(self, path: str, request: dict[str, Any]) -> None:
        try:
            with self._api.stream("POST", path, request) as pieces:
                for event in lines(pieces):
                    self._events.put(event)
            self._events.put(None)
        except Exception as error:  # handed over to the thread that waits
            self._events.put(error)

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.poll() is None:
            self.kill()
            self.wait()

    def __iter__(self) -> Iterator[Output]:
        """Pieces of output as they come, until the command ends."""
        while self._unread or self._ended is None:
            output = self._unread.popleft() if self._unread else self._next(None)
            if output is not None:
                yield output
        if isinstance(self._ended, Exception):
            raise self._ended

    def _next(self, timeout: float | None, block: bool = True) -> Output | None:
        """Handles one event. Raises `queue.Empty` if none comes in time."""
        with self._lock:
            if self._ended is not None:
                return None
            event = self._events.get(block, timeout)
            try:
                if event is None:
                    self._ended = self._collector.finish()
                elif isinstance(event, Exception):
                    self._ended = event
                else:
                    return self._collector.add(event)
            except CommandLost as error:
                self._ended = error
            return None

    def write(self, data: bytes | str) -> None:
        """Writes to the command's standard input; returns when the command's pipe or terminal has taken it."""
        content = data.encode() if isinstance(data, str) else data
        self._api.upload("POST", f"{self._path}/stdin", content, {"keep": "true"})

    def close_stdin(self) -> None:
        """Ends the command's standard input."""
        self._api.upload("POST", f"{self._path}/stdin", b"")

    def send_signal(self, number: int) -> None:
        """Sends a signal to the command."""
        self._api.json("POST", f"{self._path}/signal", {"signal": int(number)})

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Like :meth:`send_signal`, and a command that has ended already is no error."""
        try:
            self.send_signal(number)
        except DeltaBoxError as error:
            if error.kind not in ("not_found", "conflict"):
                raise

    def resize(self, rows: int, cols: int) -> None:
        """Sets the size of the command's terminal."""
        self._api.json("POST", f"{self._path}/resize", {"rows": rows, "cols": cols})

    def poll(self) -> int | None:
        """The exit code if the command has ended."""
        try:
            while self._ended is None:
                output = self._next(None, block=False)
                if output is not None:
                    self._unread.append(output)
        except queue.Empty:
            return None
        return self._outcome().exit_code

    def wait(self, timeout: float | None = None) -> Result:
        """Waits for the command's end; returns its result with all output, also what was iterated over.

        Raises `TimeoutError` after `timeout` seconds; the command runs on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._ended is None:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            try:
                self._next(left)
            except queue.Empty:
                raise TimeoutError(f"the command still runs after {timeout} s") from None
        return self._outcome()

    def _outcome(self) -> Result:
        if isinstance(self._ended, Result):
            return self._ended
        assert self._ended is not None
        raise self._ended


def run(
    api: Api,
    path: str,
    request: dict[str, Any],
    on_output: Callable[[Output], None],
    data: bytes | None = None,
) -> Result:
    """Runs a command to its end in this thread. `data` is its whole standard input."""
    collector = Collector()
    if data is not None:
        if len(data) <= _INLINE_BYTES:
            request["stdin_data"] = base64.b64encode(data).decode()
        else:
            request["stdin"] = True
    with api.stream("POST", path, request) as pieces:
        for event in lines(pieces):
            if data is not None and request.get("stdin") and event["event"] == "started":
                url = f"{path}s/{quote(event['id'], safe='')}/stdin"
                threading.Thread(target=_feed, args=(api, url, data), name="deltabox-stdin", daemon=True).start()
            output = collector.add(event)
            if output is not None:
                on_output(output)
    return collector.finish()


def _feed(api: Api, url: str, data: bytes) -> None:
    with contextlib.suppress(DeltaBoxError):  # a command need not read its input
        api.upload("POST", url, data)


def argv_of(command: str | Sequence[str]) -> list[str]:
    """A string is a script for the shell; a sequence is a program and its arguments."""
    if isinstance(command, str):
        return ["/bin/sh", "-c", command]
    argv = [str(part) for part in command]
    if not argv:
        raise UsageError("the command is empty", "give a program and its arguments, or a script as a string")
    return argv
