"""`fastclaw` as a real process, for the tests of its commands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

Call = Callable[..., subprocess.CompletedProcess[bytes]]
"""As `fastclaw` here, but in this process: for what starts nothing of its own."""

DEADLINE_S = 40

FASTCLAW = [sys.executable, "-m", "fastclaw"]

WITHOUT_PODMAN = """
import sys
from fastclaw.engine.service import facts
facts.SYSTEM_PATH, facts.HELPER_DIRS = "", ()
from fastclaw.cli.main import main
sys.argv[0] = "fastclaw"
main()
"""
"""PATH alone does not hide an engine: the system's own directories are looked at as well."""

FASTCLAW_WITHOUT_PODMAN = [sys.executable, "-c", WITHOUT_PODMAN]


def fastclaw(*arguments: str, command: list[str] = FASTCLAW, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run it to its end; stdin is empty unless `options` say otherwise."""
    given: dict[str, Any] = {"capture_output": True, "timeout": DEADLINE_S, "check": False} | options
    if "input" not in given and "stdin" not in given:
        given["stdin"] = subprocess.DEVNULL
    return subprocess.run([*command, *arguments], **given)


def without_podman(directory: Path) -> dict[str, str]:
    """An environment in which no program is found; goes with `FASTCLAW_WITHOUT_PODMAN`."""
    return {**os.environ, "PATH": str(directory), "CONTAINER_HOST": ""}


def homes(directory: Path) -> dict[str, str]:
    """An environment whose engine, state and sockets stay below `directory`; a path that is not ASCII in a locale that
    is makes conmon refuse its command line."""
    run_dir, state = directory / "r", directory / "ä"
    run_dir.mkdir(mode=0o700, exist_ok=True)
    where = {"XDG_RUNTIME_DIR": str(run_dir), "XDG_STATE_HOME": str(state), "CONTAINER_HOST": ""}
    return {**os.environ, **where, "LC_ALL": "C"}


def assert_one_line(text: bytes) -> str:
    """An error is one line; returned without its end."""
    assert text.endswith(b"\n"), text
    assert text.count(b"\n") == 1, text
    assert b"Traceback" not in text
    return text.decode().rstrip()
