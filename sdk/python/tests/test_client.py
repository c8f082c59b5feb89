"""What needs no daemon, or a daemon that misbehaves in ways a real one does not on demand."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from deltabox import Internal, Refused, Sandbox, Unreachable, UsageError, _errors, _files
from deltabox._api import lines
from deltabox._sandbox import _size
from fake_daemon import FakeDaemon


@pytest.fixture
def fake_home() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="deltabox-test-") as directory, FakeDaemon(directory):
        yield directory


def test_a_refusal_names_process_reason_and_remedy(fake_home: str) -> None:
    with Sandbox.create(home=fake_home) as sb:
        with pytest.raises(Refused) as caught:
            sb.checkpoint("refuse me")
    assert caught.value.refusals[0].process == "x"
    assert "process 7 (x): io_uring: unreadable; close it" in str(caught.value)


def test_an_unknown_kind_of_error_is_still_an_error() -> None:
    error = _errors.from_json({"kind": "from the future", "message": "m"})
    assert (type(error), error.message) == (Internal, "m")


def test_lines_are_split_at_newlines_only() -> None:
    pieces = [b'{"a": "', "\u2028\x85".encode(), b'"}\n{"a"', b": 1}\n"]
    assert list(lines(iter(pieces))) == [{"a": "\u2028\x85"}, {"a": 1}]


def test_without_the_program_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DELTABOX_BIN", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Unreachable, match="DELTABOX_BIN"):
        Sandbox.list(home=tmp_path)
    monkeypatch.setenv("DELTABOX_BIN", "/no/such/program")
    with pytest.raises(Unreachable, match="cannot run"):
        Sandbox.list(home=tmp_path)


def test_a_daemon_that_does_not_start_is_told_in_its_own_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "deltabox"
    program.write_text("#!/bin/sh\necho 'error: no disk: none at all' >&2\necho 'hint: buy one' >&2\nexit 8\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("DELTABOX_BIN", str(program))
    with pytest.raises(Unreachable) as caught:
        Sandbox.list(home=tmp_path)
    assert (caught.value.message, caught.value.hint) == ("no disk: none at all", "buy one")


def test_sizes() -> None:
    assert [_size(size) for size in (None, 5, "5", "1.5K", "512M", "2GiB")] == [None, 5, 5, 1536, 512 << 20, 2 << 30]
    with pytest.raises(UsageError):
        _size("much")


def _tar(*members: tuple[str, bytes, str]) -> Iterator[bytes]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            if kind == tarfile.REGTYPE:
                member.size = len(content)
            else:
                member.linkname = content
            archive.addfile(member, io.BytesIO(content.encode()))
    return iter([buffer.getvalue()])


def test_hostile_archives_reach_nothing_outside(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    target = tmp_path / "target"
    target.mkdir()
    file, link, hard = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
    (outside / "secret").write_text("secret")
    for archive in (
        _tar(("x", link, str(outside)), ("x/planted", file, "evil")),
        _tar(("../outside/planted", file, "evil")),
        _tar((str(outside / "planted"), file, "evil")),
        _tar(("x", link, str(outside)), ("y", hard, "x/secret")),
        _tar(("y", hard, str(outside / "secret"))),
    ):
        with pytest.raises(UsageError, match="leads elsewhere"):
            _files.extract(archive, str(target))
    assert os.listdir(outside) == ["secret"]
    assert os.listdir(target) == []


def test_devices_are_left_out(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        _files.extract(_tar(("null", tarfile.CHRTYPE, "")), str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_a_failure_while_a_tar_is_made_breaks_the_upload_off(
    monkeypatch: pytest.MonkeyPatch, fake_home: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk on fire")

    with Sandbox.create(home=fake_home) as sb:
        monkeypatch.setattr(tarfile.TarFile, "add", fail)
        with pytest.raises(OSError, match="disk on fire"):
            sb.put(tmp_path / "file", "/file")
        assert sb.run("ls").stdout == ""


def test_an_abandoned_tar_ends_its_thread(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(10_000_000))
    pieces = _files.tar_of_path(str(tmp_path / "file"), "file")
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    for thread in threading.enumerate():
        if thread.name == "deltabox-tar":
            thread.join(5)
            assert not thread.is_alive()
