"""Hostile commands for a served runtime: compiled, brought in by its workspace, asked what they could.

Knows the words of hostile.c, no test.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw import limits
from fastclaw.client import RemoteProcess, RuntimeClient
from fastclaw.engine.container_spec import mask
from fastclaw.linux import proc
from fastclaw.linux.cgroups import group_of, limit_in
from fastclaw.processes.lane import PROCESS_ID_VARIABLE
from tests.engine_fixtures import unusable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from fastclaw.runtime import ExitRecord
    from tests.engine.conftest import EngineService

SERVE = [sys.executable, "-m", "fastclaw", "serve", "--runtime", "podman"]
PROGRAM = "/w/hostile"
OWNER = (12_345, 12_345)
"""Of a workspace, as another user's of this host: a user namespace maps none of root's."""
SECRET = "FASTCLAW_TEST_SECRET"
WAIT_S = 20
"""For anything that takes milliseconds: the rest is room for a loaded machine."""
PUMP_UIDS = range(limits.REAPER_UID - 64, limits.REAPER_UID)
"""Who the pumps are (spawner/c/confine.c): each user moves the bytes of 256 processes."""


def serve_with(**bounds: int) -> list[str]:
    """A served runtime with other bounds, for tests that cannot wait that long."""
    changes = "; ".join(f"limits.{name} = {value}" for name, value in bounds.items())
    program = f"from fastclaw import limits; {changes}; from fastclaw.cli.main import main; main()"
    return [sys.executable, "-c", program, *SERVE[3:]]


def need_root_for(kind: str) -> None:
    """Skip containers in a user namespace of their own, and clones, where the engine is an ordinary user's."""
    if kind != "host" and os.geteuid() != 0:
        unusable(f"{kind}: only root's engine has containers of this kind")


async def need_limits(client: RuntimeClient, *names: str) -> None:
    """Skip where options are not in force, as on cgroup v2 without controllers."""
    details = (await client.health()).details
    assert details is not None
    if missing := set(names) & set(details.get("limits_not_in_force", ())):
        unusable(f"not in force, for no controller of cgroups is there: {', '.join(sorted(missing))}")


@contextmanager
def a_workspace(*programs: str) -> Iterator[Path]:
    """A directory that every user can write to, with programs of this folder, static: an image may have no library."""
    if shutil.which("cc") is None:
        unusable("the hostile programs need a C compiler")
    directory = Path(tempfile.mkdtemp(prefix="fcw", dir="/tmp"))
    try:
        for name in programs:
            source = Path(__file__).with_name(f"{name}.c")
            flags = ["-static", "-O1", "-Wall", "-Wextra", "-Werror"]
            subprocess.run(["cc", *flags, "-o", directory / name, source], check=True)
        directory.chmod(0o777)
        if os.geteuid() == 0:  # an ordinary user's is his own, and his engine has a namespace that maps him
            os.chown(directory, *OWNER)
        yield directory
    finally:
        shutil.rmtree(directory)


class Box:
    """A served runtime with the program in it.

    Parameters:
        client: entered.

    Attributes:
        capabilities: what its root has.
    """

    def __init__(self, client: RuntimeClient) -> None:
        self.client = client
        self.capabilities = 0

    async def start(self, *cmd: str, **request: Any) -> RemoteProcess:
        """A command, without stdin unless it is asked for."""
        return await asyncio.wait_for(self.client.exec(list(cmd), **{"stdin": False, **request}), WAIT_S)

    async def output(self, *cmd: str, **request: Any) -> str:
        """What a command prints, to the end of both streams."""
        async with await self.start(*cmd, **request) as process:
            out, err = await asyncio.wait_for(process.communicate(), WAIT_S)
            await ended(process)
        return (out + err).decode("utf-8", "replace")

    async def results(self, word: str, *arguments: object, **request: Any) -> list[tuple[str, str]]:
        """Each attempt of a word, and what came of it."""
        text = await self.output(PROGRAM, word, *map(str, arguments), **request)
        return [(name, result) for name, _, result in (line.partition(" ") for line in text.splitlines())]

    async def until_ready(self, word: str, *arguments: object, said: str = "ready", **request: Any) -> RemoteProcess:
        """A word that goes on, once it has said so."""
        process = await self.start(PROGRAM, word, *map(str, arguments), **request)
        await until(process, said)
        return process

    async def bomb(self, apart: int, most: int, user: str) -> RemoteProcess:
        """Processes without end, once there is no room for more; where nothing holds them the test fails before.

        Parameters:
            most: processes that the pids limit in force may allow.
        """
        async with await self.start("sleep", "1000") as one:
            [pid] = [row.pid for row in proc.scan(PROCESS_ID_VARIABLE) if row.marker == one.id]
            require_pids_limit(pid, most)
            await one.kill(0)
        return await self.until_ready("bomb", apart, said="full", user=user)

    async def works(self) -> bool:
        """Whether a command starts, runs and ends as any user that the tests use."""
        texts = [await self.output("echo", "fine", user=user) for user in ("0", "1000")]
        return texts == ["fine\n"] * 2

    async def reapers(self) -> list[int]:
        """Their pids inside."""
        return [pid for pid, (_, uid) in (await self._processes()).items() if pid != 1 and uid == limits.REAPER_UID]

    async def pumps(self) -> list[int]:
        """The same of the pumps."""
        return [pid for pid, (_, uid) in (await self._processes()).items() if uid in PUMP_UIDS]

    async def spawner_users(self) -> set[int]:
        """Who main, reapers and pumps are."""
        return {uid for _, uid in (await self._processes()).values() if uid in (limits.REAPER_UID, *PUMP_UIDS)}

    async def spawner_of(self, pid: int) -> list[int]:
        """Everything of ours that has to do with a command, pids inside: main, its reaper, its pump."""
        found = await self._processes()
        reaper = found[pid][0]
        return [1, reaper, *(one for one, (parent, uid) in found.items() if parent == reaper and uid in PUMP_UIDS)]

    async def _processes(self) -> dict[int, tuple[int, int]]:
        """Parent and user of each, by pid inside."""
        text = await self.output("sh", "-c", "cd /proc && grep -hE '^(Pid|PPid|Uid):' [0-9]*/status 2>/dev/null")
        words = [int(line.split()[1]) for line in text.splitlines()]
        return {pid: (parent, uid) for pid, parent, uid in zip(*[iter(words)] * 3, strict=True)}

    async def commands(self) -> list[str]:
        """The names of what runs inside besides the spawner and whoever asks."""
        lines = (await self.output("ps", "-o", "user,comm")).splitlines()[1:]
        names = [line.split(maxsplit=1) for line in lines]
        ours = {str(uid) for uid in (limits.REAPER_UID, *PUMP_UIDS)}
        return [name for user, name in names if name not in ("fastclaw-init", "ps") and user not in ours]

    async def lane(self) -> dict[str, Any]:
        """What `health` says of the lane."""
        health = await asyncio.wait_for(self.client.health(), WAIT_S)
        assert health.details is not None
        lane: dict[str, Any] = health.details["lane"]
        return lane


def require_pids_limit(pid: int, most: int) -> None:
    """Fail where no cgroup of a process, as this host sees it, holds it to so many processes."""
    group = group_of(pid, "pids")
    file = group.nearest("pids.max") if group is not None else None
    limit = limit_in(file) if file is not None else None
    if limit is None or limit > most:
        pytest.fail(f"no pids limit of {most} is in force, but {limit} ({file}): a fork bomb would take the host's")


async def until(process: RemoteProcess, said: str) -> None:
    """Read its stdout until it has said a word."""
    text = b""
    async with asyncio.timeout(WAIT_S):
        while said.encode() not in text:
            chunk = await process.stdout_read()
            assert chunk, f"it ended without {said!r}: {text!r}"
            text += chunk


async def ended(process: RemoteProcess) -> ExitRecord:
    """Its record, once it has ended."""
    record = await process.wait(WAIT_S * 1000)
    assert record.state == "exited"
    return record


@asynccontextmanager
async def served(
    engine: EngineService, workspace: Path, command: Sequence[str] = SERVE, **options: Any
) -> AsyncIterator[Box]:
    """A runtime on the spawn lane; with secrets in its own environment."""
    env = {**os.environ, SECRET: "s3cret", "HTTP_PROXY": "http://user:s3cret@127.0.0.1:1"}
    chosen = {
        "url": engine.url,
        "image": engine.image,
        "lane": "spawn",
        "workspace": {"source": str(workspace), "target": "/w"},
        **options,
    }
    async with RuntimeClient.spawn(command, namespace="hostile", options=chosen, env=env) as client:
        box = Box(client)
        details = (await client.health()).details
        assert details is not None
        box.capabilities = mask(details["rights"]["capabilities"])
        yield box
