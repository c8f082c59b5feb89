"""The tests talk to a fake daemon; with DELTABOX_BIN set, to a real one that the program starts."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator

import pytest
from deltabox import Sandbox
from fake_daemon import FakeDaemon

PROGRAM = os.environ.get("DELTABOX_BIN")


def pytest_report_header() -> str:
    return f"deltabox: {'real daemon, ' + PROGRAM if PROGRAM else 'fake daemon'}"


@pytest.fixture(scope="session")
def home() -> Iterator[str]:
    """A state directory with a daemon, or where the first use starts one."""
    with tempfile.TemporaryDirectory(prefix="deltabox-test-") as directory:
        os.environ["DELTABOX_HOME"] = directory
        if PROGRAM is None:
            with FakeDaemon(directory):
                yield directory
        else:
            yield directory
            subprocess.run([PROGRAM, "stop"], check=True)


@pytest.fixture
def sb(home: str) -> Iterator[Sandbox]:
    with Sandbox.create() as sandbox:
        yield sandbox
