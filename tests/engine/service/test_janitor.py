"""The janitor's process from its owner's side."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from fastclaw.engine.service import janitor_main
from fastclaw.engine.service.janitor import Janitor
from fastclaw.engine.service.plan import JanitorOrder, janitor_argv
from fastclaw.errors import StartFailed
from fastclaw.linux.proc import start_time

if TYPE_CHECKING:
    from pathlib import Path

ENV = dict(os.environ)


def argv(tmp_path: Path) -> list[str]:
    """A janitor of ours; what it would ask for leaves a trace."""
    podman = ["/bin/sh", "-c", f"touch {tmp_path}/asked"]
    order = JanitorOrder(
        owner=os.getpid(), service=1, own_dir=str(tmp_path / "own"), podman=podman, runtime=[], label="a=b"
    )
    return janitor_argv(sys.executable, janitor_main.__file__, order)


def wait_for_end(pid: int) -> None:
    """Of a process that is not ours; one that has ended already is fine."""
    with suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            assert select.select([pidfd], [], [], 10)[0]
        finally:
            os.close(pidfd)


@pytest.mark.parametrize("state", ["not ready", "ready", "killed"])
async def test_it_comes_and_goes_and_does_nothing(tmp_path: Path, state: str) -> None:
    janitor = Janitor(argv(tmp_path), ENV)
    assert repr(janitor) == f"<Janitor <Child {janitor.pid}, running>>"
    if state != "not ready":
        await janitor.ready()
        assert start_time(janitor.pid) is not None
    if state == "killed":
        os.kill(janitor.pid, signal.SIGKILL)
    await janitor.aclose()
    await janitor.aclose()
    assert start_time(janitor.pid) is None
    assert not (tmp_path / "asked").exists()


async def test_it_keeps_no_terminal_and_no_output_of_ours(tmp_path: Path) -> None:
    janitor = Janitor(argv(tmp_path), ENV)
    try:
        await janitor.ready()
        assert os.getsid(janitor.pid) == janitor.pid
        targets = {os.readlink(f"/proc/{janitor.pid}/fd/{fd}") for fd in (1, 2)}
        assert targets == {"/dev/null"}
    finally:
        await janitor.aclose()


async def test_one_that_ends_at_once() -> None:
    janitor = Janitor(["/bin/sh", "-c", "exit 0"], ENV)
    with pytest.raises(StartFailed, match="janitor ended at once") as caught:
        await janitor.ready()
    assert caught.value.reason == "engine_unavailable"
    await janitor.aclose()


async def test_one_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastclaw.engine_limits.ENGINE_READY_MS", 50)
    janitor = Janitor(["/bin/sh", "-c", "exec sleep 1000"], ENV)
    with pytest.raises(StartFailed, match="not ready") as caught:
        await janitor.ready()
    assert caught.value.reason == "engine_timeout"
    await janitor.aclose()


async def test_one_that_is_not_there() -> None:
    with pytest.raises(StartFailed, match="cannot start /nonexistent/python") as caught:
        Janitor(["/nonexistent/python"], ENV)
    assert caught.value.reason == "engine_unavailable"


DYING = """
import asyncio, os, sys
from fastclaw.engine.service.plan import JanitorOrder, janitor_argv
from fastclaw.engine.service import janitor_main
from fastclaw.engine.service.janitor import Janitor

async def main():
    podman = ["/bin/sh", "-c", f"touch {sys.argv[1]}/asked"]
    own = f"{sys.argv[1]}/own"
    order = JanitorOrder(
        owner=os.getpid(), service=os.getpid(), own_dir=own, podman=podman, runtime=[], label="a=b"
    )
    janitor = Janitor(janitor_argv(sys.executable, janitor_main.__file__, order), dict(os.environ))
    await janitor.ready()
    if sys.argv[2] == "forks" and os.fork() == 0:
        os.close(1)
        os.read(0, 1)
        os._exit(0)
    print(janitor.pid, flush=True)
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""
"""An owner that is killed the moment that it may rely on its janitor."""


@pytest.mark.parametrize("kind", ["forks", "does not fork"])
def test_it_hears_of_the_death_of_its_owner(tmp_path: Path, kind: str) -> None:
    """Also where a forked child keeps the owner's descriptors open: until its stdin ends, here."""
    (tmp_path / "own").mkdir()
    argv = [sys.executable, "-c", DYING, str(tmp_path), kind]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert owner.wait(20) == -9
        wait_for_end(pid)
        assert (tmp_path / "asked").exists()
        assert not (tmp_path / "own").exists()
