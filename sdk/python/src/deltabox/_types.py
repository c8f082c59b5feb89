"""What the API answers, as dataclasses. Times are milliseconds (`*_ms`), sizes bytes (`*_bytes`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


def parse(cls: type[T], data: Mapping[str, Any]) -> T:
    """An instance of dataclass `cls`. Fields it does not know are ignored: a newer daemon may send more."""
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return cls(**{key: value for key, value in data.items() if key in known})


@dataclass(frozen=True)
class Mount:
    """A directory of the host made available inside. Changes there are not rolled back."""

    source: str
    target: str
    read_only: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was made."""

    id: str
    parent: str | None
    label: str | None
    #: How long the sandbox stood still.
    stopped_ms: float
    total_ms: float
    phases_ms: dict[str, float]
    #: New bytes kept for files; None where the store shares extents and the figure is not known at once.
    file_bytes: int | None
    #: New bytes kept for memory.
    memory_bytes: int
    #: How the files were frozen: `switch`, `snapshot` or `unchanged`.
    freeze: str
    processes: int
    durable: bool


@dataclass(frozen=True)
class Rollback:
    """A rollback that was done; `id` is the checkpoint rolled back to."""

    id: str
    parent: str | None
    label: str | None
    #: What the checkpoint was made with.
    token: str | None
    stopped_ms: float
    total_ms: float
    phases_ms: dict[str, float]
    #: Processes that existed at the checkpoint and live on.
    kept: int
    #: Processes that were made anew from the checkpoint.
    recreated: int
    #: Processes that did not exist at the checkpoint and were ended.
    ended: int


@dataclass(frozen=True)
class DiskBytes:
    """What checkpoints take on disk, files and processes."""

    #: What only one checkpoint of the sandbox needs: it goes with the checkpoint.
    private_bytes: int
    #: What several need.
    shared_bytes: int


def _disk(data: Mapping[str, Any]) -> DiskBytes | None:
    disk = data.get("disk")
    return None if disk is None else parse(DiskBytes, disk)


@dataclass(frozen=True)
class Retention:
    """How much history a sandbox keeps: all limits hold, the oldest checkpoints go first. The current checkpoint, its
    ancestors, and those that have a label or are pinned stay whatever the limits."""

    #: Only so many, the last ones made.
    keep_last: int | None = None
    #: Only those that are not older: seconds.
    keep_age: float | None = None
    #: Only as many as take so much on disk together: bytes, or text such as "10G".
    keep_bytes: int | str | None = None
    #: Ancestors of the current checkpoint may go too.
    ancestors: bool = False


@dataclass(frozen=True)
class RemovedCheckpoint:
    """A checkpoint that is no more."""

    sandbox: str
    checkpoint: str


@dataclass(frozen=True)
class GcResult:
    """What keeping a history within its limits removed, and what that freed."""

    removed: list[RemovedCheckpoint]
    freed_bytes: int

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GcResult:
        return cls([parse(RemovedCheckpoint, r) for r in data["removed"]], data["freed_bytes"])


@dataclass(frozen=True)
class CheckpointInfo:
    """One node of the tree of checkpoints."""

    id: str
    parent: str | None
    label: str | None
    token: str | None
    created_unix_ms: int
    file_bytes: int | None
    memory_bytes: int
    processes: int
    #: Whether it is kept from being removed.
    pinned: bool
    durable: bool
    #: What it takes on disk; None unless asked for.
    disk: DiskBytes | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CheckpointInfo:
        return parse(cls, {**data, "disk": _disk(data)})


@dataclass(frozen=True)
class Log:
    """The tree of checkpoints, and the one the live state descends from."""

    checkpoints: list[CheckpointInfo]
    current: str | None
    #: What all take together: the private bytes of each, and the shared ones counted once. None unless asked for.
    disk: DiskBytes | None = None

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Log:
        checkpoints = [CheckpointInfo.from_json(c) for c in data["checkpoints"]]
        return cls(checkpoints, data.get("current"), _disk(data))


@dataclass(frozen=True)
class Change:
    """What happened to one path between two states."""

    path: str
    #: `added`, `changed` or `deleted`.
    kind: str
    #: `file`, `directory`, `symlink`, `fifo`, `socket` or `device`.
    file_type: str
    size_before_bytes: int | None = None
    size_after_bytes: int | None = None
    #: Unified diff, when asked for and both sides are text.
    text: str | None = None


@dataclass(frozen=True)
class Diff:
    """The differences between two states of the files, which are named as they were asked for: `@` is the current
    checkpoint, `base` the root of a sandbox without any, `live` the live state."""

    before: str
    after: str
    changes: list[Change]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Diff:
        return cls(data["from"], data["to"], [parse(Change, c) for c in data["changes"]])

    def paths(self, kind: str | None = None) -> list[str]:
        """The changed paths, all or of one kind."""
        return [change.path for change in self.changes if kind in (None, change.kind)]


@dataclass(frozen=True)
class CommitResult:
    """What a commit did, or would do, in order."""

    applied: bool
    changes: list[Change]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CommitResult:
        return cls(bool(data["applied"]), [parse(Change, c) for c in data["changes"]])


@dataclass(frozen=True)
class ExecInfo:
    """A command that was started and has not ended."""

    id: str
    pid: int
    argv: list[str]
    tty: bool


@dataclass(frozen=True)
class SandboxInfo:
    """One sandbox, as a list shows it."""

    id: str
    name: str
    #: `running`, `stopped` (known from its durable checkpoints; a rollback brings it back) or `failed`.
    status: str
    root: dict[str, Any]
    limits: dict[str, Any]
    mounts: list[Mount]
    env: dict[str, str]
    created_unix: int
    current: str | None
    checkpoints: int
    init_pid: int | None
    execs: list[ExecInfo]
    phases_ms: dict[str, float]

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SandboxInfo:
        mounts = [parse(Mount, m) for m in data["mounts"]]
        execs = [parse(ExecInfo, e) for e in data["execs"]]
        return parse(cls, {"phases_ms": {}, **data, "mounts": mounts, "execs": execs})


@dataclass(frozen=True)
class Stats:
    """What a sandbox uses."""

    processes: int
    memory_bytes: int | None
    memory_peak_bytes: int | None
    cpu_usec: int | None
    #: Bytes of process pages kept for this sandbox's checkpoints.
    page_store_bytes: int
    checkpoints: int
    #: Layers below the upper.
    depth: int


#: The exit codes of commands that did not end by themselves, as the command line has them.
EXIT_DISCARDED = 123
EXIT_TIMED_OUT = 124


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    #: The command's own; 128 + signal; 124 if it exceeded its time; 123 if a rollback discarded it.
    exit_code: int
    stdout_bytes: bytes = field(repr=False)
    stderr_bytes: bytes = field(repr=False)
    signal: int | None = None
    timed_out: bool = False
    #: Checkpoints the sandbox was rolled back to while the command, which existed there, ran on.
    rolled_back: tuple[str, ...] = ()
    #: Whether a rollback to a state in which the command did not exist ended it.
    discarded: bool = False

    @property
    def stdout(self) -> str:
        """Standard output as text; bytes that are not UTF-8 are replaced."""
        return self.stdout_bytes.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """Standard error as text; bytes that are not UTF-8 are replaced."""
        return self.stderr_bytes.decode("utf-8", "replace")

    @property
    def ok(self) -> bool:
        """Whether the command ended with exit code 0."""
        return self.exit_code == 0
