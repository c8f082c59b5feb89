"""Files as tar streams, the form in which they travel into and out of a sandbox."""

from __future__ import annotations

import io
import os
import queue
import shutil
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import IO, cast

from ._errors import NotFound, UsageError

_CHUNK_BYTES = 1 << 16


class _Pieces(io.RawIOBase):
    """A stream of pieces as a file to read from."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        wanted = size if size is not None and size >= 0 else None
        parts, length = [self._rest], len(self._rest)
        while wanted is None or length < wanted:
            piece = next(self._pieces, None)
            if piece is None:
                break
            parts.append(piece)
            length += len(piece)
        data = b"".join(parts)
        end = len(data) if wanted is None else wanted
        self._rest = data[end:]
        return data[:end]


def single_file(tar: Iterator[bytes], path: str) -> bytes:
    """The content of the one file in a tar."""
    with tarfile.open(fileobj=cast("IO[bytes]", _Pieces(tar)), mode="r|") as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isreg() else None
            if file is None:
                raise UsageError(f"{path} is not a file", "use get() for directories and links")
            return file.read()
    raise NotFound(f"{path} holds nothing that can be read")


def extract(tar: Iterator[bytes], target: str) -> str:
    """Puts the one file or directory in a tar at `target`, or into it if it is a directory. Returns its path.

    What comes from inside is not trusted: it is unpacked in an empty directory beside the target, without owners,
    set-user-id bits and devices, and moved into place when it is complete.
    """
    into = os.path.isdir(target)
    beside = target if into else os.path.dirname(os.path.abspath(target))
    with tempfile.TemporaryDirectory(prefix=".deltabox-get-", dir=beside) as scratch:
        with tarfile.open(fileobj=cast("IO[bytes]", _Pieces(tar)), mode="r|") as archive:
            for member in archive:
                # Files below a link could lead outside, so nothing is ever unpacked through one.
                _check(member, scratch)
                if member.isreg() or member.isdir() or member.issym() or member.islnk():
                    member.mode &= 0o777
                    _extract_one(archive, member, scratch)
        (name,) = os.listdir(scratch) or [""]
        if not name:
            raise UsageError("nothing in it is a file, a directory or a link")
        final = os.path.join(target, name) if into else target
        if os.path.isdir(final) and not os.path.islink(final):
            raise FileExistsError(f"{final} is a directory that exists already")
        if os.path.lexists(final) and not (os.path.isfile(final) or os.path.islink(final)):
            raise FileExistsError(f"{final} exists and is not a file")
        os.rename(os.path.join(scratch, name), final)
    return final


def _check(member: tarfile.TarInfo, scratch: str) -> None:
    parts = member.name.split("/")
    outside = member.name.startswith("/") or ".." in parts
    if member.islnk():
        outside = outside or member.linkname.startswith("/") or ".." in member.linkname.split("/")
        outside = outside or _through_link(scratch, member.linkname.split("/"))
    if outside or _through_link(scratch, parts):
        raise UsageError(f"the archive names '{member.name}', which leads elsewhere")


def _through_link(scratch: str, parts: list[str]) -> bool:
    return any(os.path.islink(os.path.join(scratch, *parts[:n])) for n in range(1, len(parts)))


def _extract_one(archive: tarfile.TarFile, member: tarfile.TarInfo, scratch: str) -> None:
    member.uid, member.gid = os.geteuid(), os.getegid()
    member.uname = member.gname = ""
    if hasattr(tarfile, "fully_trusted_filter"):
        # Checked above; the library's own filters refuse absolute links, which roots are full of.
        archive.extract(member, scratch, filter="fully_trusted")
    else:
        archive.extract(member, scratch)


def tar_of_bytes(name: str, data: bytes, mode: int) -> Iterator[bytes]:
    """A tar with one file."""
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(data), mode, int(time.time())
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member, io.BytesIO(data))
    view = buffer.getvalue()
    return (view[start : start + _CHUNK_BYTES] for start in range(0, len(view), _CHUNK_BYTES))


def tar_of_path(source: str, name: str) -> Iterator[bytes]:
    """A tar of a file or directory of the host under another name, made while it is sent."""
    os.lstat(source)  # fails here, where the caller can see it, and not in the thread
    pieces: queue.Queue[bytes | Exception | None] = queue.Queue(8)
    abandoned = threading.Event()

    class Writer(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: object) -> int:
            piece = bytes(cast(bytes, data))
            while not abandoned.is_set():
                try:
                    pieces.put(piece, timeout=0.1)
                    return len(piece)
                except queue.Full:
                    continue
            raise BrokenPipeError

    def produce() -> None:
        try:
            with tarfile.open(
                fileobj=cast("IO[bytes]", Writer()), mode="w|", bufsize=_CHUNK_BYTES, format=tarfile.PAX_FORMAT
            ) as archive:
                archive.add(source, arcname=name, filter=_portable)
            pieces.put(None)
        except BrokenPipeError:
            pass
        except Exception as error:  # handed over to the thread that sends
            pieces.put(error)

    threading.Thread(target=produce, name="deltabox-tar", daemon=True).start()
    try:
        while True:
            piece = pieces.get()
            if piece is None:
                return
            if isinstance(piece, Exception):
                raise piece
            yield piece
    finally:
        abandoned.set()


def _portable(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Devices and FIFOs of the host stay there."""
    return member if member.isreg() or member.isdir() or member.issym() or member.islnk() else None


def copy_to_file(pieces: Iterator[bytes], target: str) -> None:
    """A stream as a file that appears complete or not at all."""
    directory = os.path.dirname(os.path.abspath(target))
    with tempfile.TemporaryDirectory(prefix=".deltabox-export-", dir=directory) as scratch:
        partial = os.path.join(scratch, "partial")
        with open(partial, "wb") as file:
            for piece in pieces:
                file.write(piece)
        shutil.move(partial, target)
