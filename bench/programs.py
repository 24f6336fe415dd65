"""The C programs of the benches, compiled by the system's compiler when they are first asked for.

Clients and rivals are in C where a Python one would hide the difference that is measured. Owns their binaries.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import orjson
import pytest

from bench.results import ROOT

DEADLINE_S = 60
"""Of one program that measures something; a round takes a second or two."""

_FLAGS = ["-O2", "-pthread", "-Wall", "-Wextra", "-Werror"]
_STATIC = {"work"}
"""What is started again and again, with the dynamic linker out of the way."""


class Programs:
    """A directory of compiled programs. Fails the test, in one line, where there is no compiler.

    Parameters:
        directory: where they go.
    """

    def __init__(self, directory: Path) -> None:
        if shutil.which("cc") is None:
            pytest.fail("no C compiler: both ends of this row are in C (apt-get install gcc libc6-dev)", pytrace=False)
        self._directory = directory

    def path(self, name: str) -> str:
        """The program that `name`.c makes."""
        program = self._directory / name
        if not program.exists():
            self._compile(Path(__file__).with_name(f"{name}.c"), program)
        return str(program)

    def _compile(self, source: Path, program: Path) -> None:
        static = ["-static"] if source.stem in _STATIC else []
        subprocess.run(["cc", *_FLAGS, *static, "-o", program, source], check=True)

    def measure(self, name: str, *arguments: object, fds: tuple[int, ...] = ()) -> list[dict[str, Any]]:
        """Run a program to its end; the lines of JSON that it prints. It gets `fds` of our descriptors.

        Raises:
            AssertionError: it failed; the text is what it said.
        """
        return told([self.path(name), *map(str, arguments)], fds)


def told(command: list[str], fds: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """The lines of JSON that a program prints which measures something. It gets no stdin, and works in this checkout.

    Raises:
        AssertionError: it failed; the text is what it said.
    """
    done = subprocess.run(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, pass_fds=fds, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stderr.decode() or done.returncode}"
    return [orjson.loads(line) for line in done.stdout.splitlines()]


def why_not(command: list[str]) -> str:
    """Why a program that is there does not work, as bubblewrap where user namespaces are not allowed; else empty."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
