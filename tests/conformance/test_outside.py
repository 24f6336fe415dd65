"""What can be seen of a runtime from outside."""

import os
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from fastclaw import limits
from fastclaw.conformance.outside import bearers, existing, soon
from fastclaw.conformance.wire import Broken


async def test_what_holds_is_not_waited_for() -> None:
    await soon("now", lambda: True, 0)


async def test_what_comes_to_hold_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHECK_POLL_MS", 1)
    looks = iter([False, False, True])
    await soon("at the third look", lambda: next(looks))
    assert list(looks) == []


async def test_what_never_holds_is_broken_and_named() -> None:
    begun = time.monotonic()
    with pytest.raises(Broken, match="the moon falls: not within 30 ms"):
        await soon("the moon falls", lambda: False, 30)
    assert time.monotonic() - begun >= 0.030


def test_bearers_are_the_processes_with_the_token_in_their_command_line() -> None:
    token = uuid.uuid4().hex
    assert bearers(token) == []
    argv = [sys.executable, "-S", "-c", "print('up', flush=True); input()", token]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as bearer:
        assert bearer.stdout is not None
        assert bearer.stdout.readline() == b"up\n"  # before that, the kernel may not have its command line yet
        assert bearers(token) == [bearer.pid]
        bearer.kill()
        os.waitid(os.P_PID, bearer.pid, os.WEXITED | os.WNOWAIT)
        assert bearers(token) == []


def test_existing_paths_in_their_order(tmp_path: Path) -> None:
    path, listening = tmp_path / "file", tmp_path / "socket"
    path.touch()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(listening))
    assert existing([str(listening), str(tmp_path / "missing"), str(path)]) == [str(listening), str(path)]
