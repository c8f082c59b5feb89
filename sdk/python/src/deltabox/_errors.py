"""Exceptions: one per kind of failure that the API tells apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._sandbox import Sandbox
    from ._types import Result


@dataclass(frozen=True)
class Refusal:
    """One thing in the sandbox that a checkpoint cannot carry."""

    pid: int | None
    process: str
    what: str
    why: str
    remedy: str


class DeltaBoxError(Exception):
    """Anything DeltaBox reports. `message` says what and why, `hint` what to do about it."""

    kind = "internal"

    def __init__(
        self,
        message: str,
        hint: str | None = None,
        refusals: tuple[Refusal, ...] = (),
        exit_code: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.refusals = refusals
        #: For a command that could not be started: 127 (not found) or 126 (not executable).
        self.exit_code = exit_code

    def __str__(self) -> str:
        lines = [self.message]
        for r in self.refusals:
            pid = "" if r.pid is None else f"process {r.pid} "
            lines.append(f"  {pid}({r.process}): {r.what}: {r.why}; {r.remedy}")
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)


class Internal(DeltaBoxError):
    """Not the caller's fault, and without a kind of its own."""

    kind = "internal"


class UsageError(DeltaBoxError):
    """The request is malformed or an argument is out of range."""

    kind = "usage"


class NotFound(DeltaBoxError):
    """A sandbox, checkpoint, path or command of that name does not exist."""

    kind = "not_found"


class Conflict(DeltaBoxError):
    """The name is taken, or the sandbox is in a state in which this cannot be done."""

    kind = "conflict"


class Refused(DeltaBoxError):
    """The state cannot be carried (see `refusals`); nothing was changed and the sandbox runs on."""

    kind = "refused"


class Unsupported(DeltaBoxError):
    """The machine lacks a feature or a privilege."""

    kind = "unsupported"


class Exhausted(DeltaBoxError):
    """Disk, memory or a limit is exhausted."""

    kind = "exhausted"


class Unreachable(DeltaBoxError):
    """The daemon cannot be reached or started."""

    kind = "unreachable"


class CommandLost(DeltaBoxError):
    """The sandbox was removed or failed while the command ran."""


class CommandFailed(DeltaBoxError):
    """A command that was run with `check=True` did not succeed; `result` is what it left."""

    def __init__(self, result: Result) -> None:
        super().__init__(_why_failed(result), exit_code=result.exit_code)
        self.result = result


class ForkFailed(DeltaBoxError):
    """Some children of a fork could not be made: `errors` says why, by name. `children` are those that were made; they
    are the caller's to use or to close."""

    def __init__(self, children: list[Sandbox], errors: dict[str, DeltaBoxError]) -> None:
        name, first = next(iter(errors.items()))
        count = len(children) + len(errors)
        super().__init__(f"{len(errors)} of {count} children could not be made; {name}: {first.message}", first.hint)
        self.children = children
        self.errors = errors


def _why_failed(result: Result) -> str:
    if result.timed_out:
        return "the command exceeded its time and was killed"
    if result.discarded:
        return "the command was ended by a rollback to a state in which it does not exist"
    if result.signal is not None:
        return f"the command was ended by signal {result.signal}"
    last = result.stderr.strip().rsplit("\n", 1)[-1]
    return f"the command ended with exit code {result.exit_code}" + (f": {last}" if last else "")


_BY_KIND: dict[str, type[DeltaBoxError]] = {
    error.kind: error
    for error in (Internal, UsageError, NotFound, Conflict, Refused, Unsupported, Exhausted, Unreachable)
}


def from_json(body: Mapping[str, Any], exit_code: int | None = None) -> DeltaBoxError:
    """The exception for an error body of the API. A kind that is not known yet is an :class:`Internal` one."""
    keys = ("pid", "process", "what", "why", "remedy")
    refusals = tuple(Refusal(*(r.get(key) for key in keys)) for r in body.get("refusals", ()))
    error = _BY_KIND.get(str(body.get("kind")), Internal)
    return error(str(body.get("message", body)), body.get("hint"), refusals, exit_code)
