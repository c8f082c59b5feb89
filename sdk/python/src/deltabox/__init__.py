"""Sandboxes whose complete state is checkpointed and rolled back in about a millisecond.

    from deltabox import Sandbox

    with Sandbox.create() as sb:
        before = sb.checkpoint("before fix")
        if sb.run("make test").exit_code != 0:
            sb.rollback(before)
"""

from ._errors import (
    CommandFailed,
    CommandLost,
    Conflict,
    DeltaBoxError,
    Exhausted,
    ForkFailed,
    Internal,
    NotFound,
    Refusal,
    Refused,
    Unreachable,
    Unsupported,
    UsageError,
)
from ._process import Output, Process
from ._sandbox import Sandbox
from ._types import (
    Change,
    Checkpoint,
    CheckpointInfo,
    CommitResult,
    Diff,
    DiskBytes,
    ExecInfo,
    GcResult,
    Log,
    Mount,
    RemovedCheckpoint,
    Result,
    Retention,
    Rollback,
    SandboxInfo,
    Stats,
)

__all__ = [
    "Change",
    "Checkpoint",
    "CheckpointInfo",
    "CommandFailed",
    "CommandLost",
    "CommitResult",
    "Conflict",
    "DeltaBoxError",
    "Diff",
    "DiskBytes",
    "ExecInfo",
    "Exhausted",
    "ForkFailed",
    "GcResult",
    "Internal",
    "Log",
    "Mount",
    "NotFound",
    "Output",
    "Process",
    "Refusal",
    "Refused",
    "RemovedCheckpoint",
    "Result",
    "Retention",
    "Rollback",
    "Sandbox",
    "SandboxInfo",
    "Stats",
    "Unreachable",
    "Unsupported",
    "UsageError",
]
__version__ = "0.1.0"
