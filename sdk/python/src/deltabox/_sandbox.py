"""The sandbox, as a Python program sees it."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Union
from urllib.parse import quote

from . import _files, _process
from ._api import Api
from ._errors import CommandFailed, DeltaBoxError, ForkFailed, NotFound, UsageError
from ._errors import from_json as error_from_json
from ._process import Output, Process
from ._types import (
    Checkpoint,
    CheckpointInfo,
    CommitResult,
    Diff,
    GcResult,
    Log,
    Mount,
    Result,
    Retention,
    Rollback,
    SandboxInfo,
    Stats,
    parse,
)

if TYPE_CHECKING:
    from types import TracebackType

#: What names a checkpoint: what `checkpoint` returned, an entry of the log, or text: an id, a unique prefix of one, a
#: label, `@` (current) or `~2` (its second ancestor).
CheckpointLike = Union[str, Checkpoint, CheckpointInfo, Rollback]
StrPath = Union[str, "os.PathLike[str]"]
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Sandbox:
    """A sandbox. Make one with :meth:`create`, or take one that exists with :meth:`attach`.

    In a `with` statement a created sandbox is removed at the end of the block; an attached one stays.
    """

    def __init__(self, api: Api, name: str, owned: bool) -> None:
        self._api = api
        self._path = f"/sandboxes/{quote(name, safe='')}"
        self._owned = owned
        self._closed = False
        self.name = name

    @classmethod
    def create(
        cls,
        name: str | None = None,
        *,
        rootfs: StrPath | None = None,
        image: str | None = None,
        memory: int | str | None = None,
        cpus: float | None = None,
        pids: int | None = None,
        mounts: Iterable[Mount] = (),
        here: bool = False,
        env: Mapping[str, str] | None = None,
        retention: Retention | None = None,
        home: StrPath | None = None,
    ) -> Sandbox:
        """Makes a sandbox, starting the daemon if none runs.

        name: made up when absent. rootfs: a directory as root; image: a registry reference, an OCI layout or a
        `docker save` tar; without either, the machine's own filesystem, read-only and copy-on-write. memory: bytes or
        text such as "512M". here: the current directory is available inside at the same path, writable. env: of every
        command. retention: how much history is kept, by default all. home: the daemon's state directory, by default DELTABOX_HOME.
        """
        if rootfs is not None and image is not None:
            raise UsageError("a root is either a directory or an image", "give rootfs or image, not both")
        all_mounts = [*mounts, *([Mount(os.getcwd(), os.getcwd())] if here else [])]
        request = {
            "name": name,
            "root": _root(rootfs, image),
            "limits": {"memory_bytes": _size(memory), "cpus": cpus, "pids": pids},
            "mounts": [
                {"source": os.path.abspath(m.source), "target": m.target, "read_only": m.read_only}
                for m in all_mounts
            ],
            "env": dict(env or {}),
            "retention": _retention(retention or Retention()),
        }
        api = Api(home)
        try:
            created = api.json("POST", "/sandboxes", request)
        except BaseException:
            api.close()
            raise
        return cls(api, created["name"], owned=True)

    @classmethod
    def attach(cls, name: str, *, home: StrPath | None = None) -> Sandbox:
        """A sandbox that exists. Closing it leaves it running."""
        api = Api(home)
        try:
            api.json("GET", f"/sandboxes/{quote(name, safe='')}")
        except BaseException:
            api.close()
            raise
        return cls(api, name, owned=False)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Sandbox({self.name!r})"

    def close(self) -> None:
        """Ends the use of the sandbox: a created one is removed with all its checkpoints, an attached one stays."""
        if self._closed:
            return
        try:
            if self._owned:
                self._remove()
        finally:
            self._closed = True
            self._api.close()

    def keep(self) -> str:
        """Makes :meth:`close` leave the sandbox running, as if attached; returns its name."""
        self._owned = False
        return self.name

    def remove(self) -> None:
        """Removes the sandbox with all its checkpoints, also an attached one."""
        self._owned = True
        self.close()

    def _remove(self) -> None:
        try:
            self._api.json("DELETE", self._path, params={"force": "true"})
        except NotFound:
            pass  # removed by somebody else, which is what was wanted

    # Commands

    def run(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
        input: bytes | str | None = None,
        check: bool = False,
        on_stdout: Callable[[bytes], object] | None = None,
        on_stderr: Callable[[bytes], object] | None = None,
    ) -> Result:
        """Runs a command to its end.

        command: a script for `/bin/sh -c`, or a program with its arguments. timeout: seconds, after which the command
        is killed (`timed_out`). input: its whole standard input. check: raise :class:`CommandFailed` unless the exit
        code is 0. on_stdout, on_stderr: called with each piece of output as it comes.
        """
        request = _exec_request(command, env, workdir, user, timeout)

        def on_output(output: Output) -> None:
            callback = on_stdout if output.stream == "stdout" else on_stderr
            if callback is not None:
                callback(output.data)

        data = input.encode() if isinstance(input, str) else input
        result = _process.run(self._api, f"{self._path}/exec", request, on_output, data)
        if check and not result.ok:
            raise CommandFailed(result)
        return result

    def start(
        self,
        command: str | Sequence[str],
        *,
        stdin: bool = True,
        tty: tuple[int, int] | None = None,
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        workdir: str | None = None,
        user: str | None = None,
    ) -> Process:
        """Starts a command in the background. stdin: keep its input open for `Process.write`. tty: rows and columns
        of a terminal for it; otherwise it has pipes. The rest is as in :meth:`run`."""
        request = _exec_request(command, env, workdir, user, timeout)
        request["stdin"] = stdin
        if tty is not None:
            request["tty"] = {"rows": tty[0], "cols": tty[1]}
        return Process(self._api, f"{self._path}/exec", request)

    # States

    def checkpoint(
        self, label: str | None = None, *, token: str | None = None, pin: bool = False, durable: bool = False
    ) -> Checkpoint:
        """Keeps the present state. label: a name usable in place of the id. token: any text, given back by a rollback.
        pin: as :meth:`pin`. durable: return only when the checkpoint survives a loss of power."""
        body = {"label": label, "token": token, "pin": pin, "wait": "durable" if durable else "ready"}
        return parse(Checkpoint, self._api.json("POST", f"{self._path}/checkpoints", body))

    def rollback(self, to: CheckpointLike) -> Rollback:
        """Puts the sandbox back into the state of a checkpoint. All checkpoints stay valid."""
        return parse(Rollback, self._api.json("POST", f"{self._path}/rollback", {"to": _checkpoint_id(to)}))

    def remove_checkpoint(self, checkpoint: CheckpointLike) -> None:
        """Removes a checkpoint, but not the current one and no pinned one. Its children become its parent's; all others
        stay what they were."""
        self._api.json("DELETE", self._checkpoint_path(checkpoint))

    def pin(self, checkpoint: CheckpointLike) -> None:
        """Keeps a checkpoint from being removed until it is unpinned."""
        self._api.json("PUT", f"{self._checkpoint_path(checkpoint)}/pin")

    def unpin(self, checkpoint: CheckpointLike) -> None:
        """Allows a pinned checkpoint to be removed again."""
        self._api.json("DELETE", f"{self._checkpoint_path(checkpoint)}/pin")

    def _checkpoint_path(self, checkpoint: CheckpointLike) -> str:
        return f"{self._path}/checkpoints/{quote(_checkpoint_id(checkpoint), safe='')}"

    def fork(
        self, count: int = 1, *, from_checkpoint: CheckpointLike | None = None, name: str | None = None
    ) -> list[Sandbox]:
        """Makes `count` sandboxes that go on from this one's live state, or from a checkpoint, each by itself, with
        files and processes. This one runs on. name: of the child; of several, each is `NAME-1`, `NAME-2`, ... The
        children are the caller's, as if created. Raises :class:`ForkFailed` if not all could be made."""
        body = {
            "from": None if from_checkpoint is None else _checkpoint_id(from_checkpoint),
            "count": count,
            "name": name,
        }
        result = self._api.json("POST", f"{self._path}/fork", body)
        children: list[Sandbox] = []
        errors: dict[str, DeltaBoxError] = {}
        for child in result["children"]:
            if "error" in child:
                errors[child["name"]] = error_from_json(child["error"])
            else:
                children.append(Sandbox(Api(self._api.home), child["name"], owned=True))
        if errors:
            raise ForkFailed(children, errors)
        return children

    def pause(self) -> Checkpoint:
        """Writes the present state to disk, ends the processes and frees their memory."""
        return parse(Checkpoint, self._api.json("POST", f"{self._path}/pause", {}))

    def resume(self, checkpoint: CheckpointLike | None = None) -> Rollback:
        """Brings a sandbox that is not running back with its processes: one that was paused, or whose daemon or machine
        went down. From the current checkpoint, or another durable one."""
        body = {"to": None if checkpoint is None else _checkpoint_id(checkpoint)}
        return parse(Rollback, self._api.json("POST", f"{self._path}/resume", body))

    def set_retention(self, retention: Retention) -> None:
        """Sets how much history is kept, from the next checkpoint on."""
        self._api.json("PUT", f"{self._path}/retention", _retention(retention))

    def gc(self) -> GcResult:
        """Removes the checkpoints that the limits do not keep now, and gives free space back."""
        return GcResult.from_json(self._api.json("POST", "/gc", {"sandbox": self.name}))

    def log(self, *, disk: bool = False) -> Log:
        """The tree of checkpoints and the current position in it. disk: with what they take on disk."""
        params = {"disk": "true" if disk else None}
        return Log.from_json(self._api.json("GET", f"{self._path}/checkpoints", params=params))

    def diff(
        self,
        before: CheckpointLike | None = None,
        after: CheckpointLike | None = None,
        *,
        text: bool = False,
        path: str | None = None,
    ) -> Diff:
        """What differs between two states of the files: by default, from the current checkpoint to the live state.
        text: with unified diffs of text files. path: only this path and what is below it."""
        params = {
            "from": None if before is None else _checkpoint_id(before),
            "to": None if after is None else _checkpoint_id(after),
            "text": "true" if text else "false",
            "path": path,
        }
        return Diff.from_json(self._api.json("GET", f"{self._path}/diff", params=params))

    def restore(self, path: str, checkpoint: CheckpointLike) -> None:
        """Brings a single file or directory back from a checkpoint and leaves everything else as it is."""
        self._api.json("POST", f"{self._path}/restore", {"path": path, "from": _checkpoint_id(checkpoint)})

    def export(self, checkpoint: CheckpointLike, target: StrPath, *, format: str = "oci") -> None:
        """Writes a checkpoint's files to a tar: `oci`, an image layout with the changes as one layer, or `rootfs`,
        the whole tree."""
        params = {"checkpoint": _checkpoint_id(checkpoint), "format": format}
        with self._api.stream("GET", f"{self._path}/export", params=params) as pieces:
            _files.copy_to_file(pieces, os.fspath(target))

    def commit(
        self, checkpoint: CheckpointLike, from_path: str, target: StrPath, *, preview: bool = True
    ) -> CommitResult:
        """Applies a checkpoint's changes below `from_path` to a directory of the host; by default only says what
        would be done."""
        body = {
            "checkpoint": _checkpoint_id(checkpoint),
            "from_path": from_path,
            "target": os.path.abspath(os.fspath(target)),
            "preview": preview,
        }
        return CommitResult.from_json(self._api.json("POST", f"{self._path}/commit", body))

    # Files

    def read(self, path: str) -> bytes:
        """The content of a file inside."""
        with self._api.stream("GET", f"{self._path}/files", params={"path": path}) as pieces:
            return _files.single_file(pieces, path)

    def read_text(self, path: str) -> str:
        """The content of a text file (UTF-8) inside."""
        return self.read(path).decode()

    def write(self, path: str, data: bytes | str, *, mode: int = 0o644) -> None:
        """Makes or replaces a file inside, owned by root. Its directory must exist."""
        directory, name = _split(path)
        content = data.encode() if isinstance(data, str) else data
        body = _files.tar_of_bytes(name, content, mode)
        self._api.upload("PUT", f"{self._path}/files", body, {"path": directory})

    def put(self, source: StrPath, path: str) -> None:
        """Copies a file or directory of the host to `path` inside; under its own name if `path` ends with a slash."""
        local = os.path.abspath(os.fspath(source))
        if path.endswith("/"):
            path += os.path.basename(local)
        directory, name = _split(path)
        body = _files.tar_of_path(local, name)
        self._api.upload("PUT", f"{self._path}/files", body, {"path": directory})

    def get(self, path: str, target: StrPath) -> str:
        """Copies a file or directory from inside to `target`; under its own name if that is a directory. Returns
        where it is."""
        with self._api.stream("GET", f"{self._path}/files", params={"path": path}) as pieces:
            return _files.extract(pieces, os.fspath(target))

    # Facts

    def info(self) -> SandboxInfo:
        """Everything about the sandbox."""
        return SandboxInfo.from_json(self._api.json("GET", self._path))

    def stats(self) -> Stats:
        """What the sandbox uses."""
        return parse(Stats, self._api.json("GET", f"{self._path}/stats"))

    @staticmethod
    def list(*, home: StrPath | None = None) -> list[SandboxInfo]:
        """All sandboxes of the daemon."""
        api = Api(home)
        try:
            return [SandboxInfo.from_json(info) for info in api.json("GET", "/sandboxes")]
        finally:
            api.close()


def _root(rootfs: StrPath | None, image: str | None) -> dict[str, str]:
    if rootfs is not None:
        return {"type": "directory", "path": os.path.abspath(os.fspath(rootfs))}
    if image is not None:
        path = image.startswith((".", "/")) or image.endswith((".tar", ".tar.gz", ".tgz", ".tar.zst"))
        return {"type": "image", "reference": os.path.abspath(image) if path else image}
    return {"type": "host"}


def _retention(retention: Retention) -> dict[str, Any]:
    age = retention.keep_age
    return {
        "keep_last": retention.keep_last,
        "keep_age_ms": None if age is None else round(age * 1000),
        "keep_bytes": _size(retention.keep_bytes),
        "ancestors": retention.ancestors,
    }


def _size(size: int | str | None) -> int | None:
    """`512M` as bytes, in powers of 1024."""
    if size is None or isinstance(size, int):
        return size
    text = size.strip().upper().rstrip("B").rstrip("I")
    factor = _UNITS.get(text[-1:], 1)
    try:
        return int(float(text[:-1] if factor > 1 else text) * factor)
    except ValueError:
        raise UsageError(f"{size!r} is not a size", 'write a number of bytes, or text such as "512M"') from None


def _checkpoint_id(checkpoint: CheckpointLike) -> str:
    return checkpoint if isinstance(checkpoint, str) else checkpoint.id


def _split(path: str) -> tuple[str, str]:
    directory, name = posixpath.split(path)
    if not path.startswith("/") or name in ("", ".", ".."):
        raise UsageError(f"{path!r} is not the absolute path of a file inside", "write it like /data/file")
    return directory, name


def _exec_request(
    command: str | Sequence[str],
    env: Mapping[str, str] | None,
    workdir: str | None,
    user: str | None,
    timeout: float | None,
) -> dict[str, Any]:
    return {
        "argv": _process.argv_of(command),
        "env": dict(env or {}),
        "workdir": workdir,
        "user": user,
        "timeout_ms": None if timeout is None else max(1, round(timeout * 1000)),
    }
