"""Monitors of execs: whose are ended, and whose are not."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from fastclaw.engine.monitors import end_monitors
from tests.odd_programs import BY_ANOTHER_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTAINER, OTHER, SESSION = "a" * 64, "b" * 64, "c" * 64
SLEEPS = "print('up', flush=True); import time; time.sleep(1000)"


@contextlib.contextmanager
def a_process(script: Path, name: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """One with this name and these words in its command line."""
    script.write_text(SLEEPS)
    argv = [name, str(script), *words]
    with subprocess.Popen(
        argv, executable=sys.executable, env=BY_ANOTHER_NAME, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
        process.kill()


@pytest.mark.parametrize(
    ("name", "words", "ends"),
    [
        ("/usr/bin/conmon", ["-c", CONTAINER, "-u", SESSION], True),
        ("conmon", ["--api-version", "1", "-c", CONTAINER, "-u", SESSION, "--exec-attach"], True),
        ("conmon", ["-c", CONTAINER, "-u", CONTAINER], False),
        ("conmon", ["-c", OTHER, "-u", SESSION], False),
        ("conmon", ["-u", SESSION, "-c"], False),
        ("sleep", ["-c", CONTAINER, "-u", SESSION], False),
    ],
)
def test_whose_monitors_are_ended(name: str, words: list[str], ends: bool, tmp_path: Path) -> None:
    with a_process(tmp_path / "script", name, *words) as process:
        assert end_monitors([CONTAINER]) == int(ends)
        if ends:
            process.wait(10)
        else:
            assert process.poll() is None
