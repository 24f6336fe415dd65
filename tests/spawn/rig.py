"""This host as the lane's home, and one process of it from its start to its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from fastclaw import limits
from fastclaw.lane import ExitStatus, Grace, LaneProcess, StartSpec
from fastclaw.spawn.host import HostHome
from fastclaw.spawn.lane import SpawnLane
from fastclaw.spawn.process import SpawnProcess
from fastclaw.transport.outbox import close_all
from tests.balance import balanced

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start processes as somebody else")


@asynccontextmanager
async def a_home() -> AsyncIterator[tuple[HostHome, SpawnLane]]:
    """A spawner of this host and its lane, which leave nothing behind."""
    async with balanced():
        home = HostHome()
        await home.start()
        try:
            yield home, SpawnLane(home, can_set_user=True)
        finally:
            await home.aclose()


@asynccontextmanager
async def a_lane() -> AsyncIterator[SpawnLane]:
    """The same for who needs the lane alone."""
    async with a_home() as (_, lane):
        yield lane


def spec(*cmd: str, **more: object) -> StartSpec:
    return StartSpec(process_id=uuid4().hex, cmd=list(cmd), **{"env": {}, **more})  # type: ignore[arg-type]  # shorthand


async def start(lane: SpawnLane, *cmd: str, **more: object) -> SpawnProcess:
    return await start_spec(lane, spec(*cmd, **more))


async def start_spec(lane: SpawnLane, spec: StartSpec) -> SpawnProcess:
    """Start a command and wait until it runs; closes its streams where it does not."""
    process = await lane.start(spec, 0)
    assert isinstance(process, SpawnProcess)
    try:
        await process.started
    except BaseException:
        close_streams(process)
        raise
    return process


def close_streams(process: LaneProcess) -> None:
    close_all(fd for fd in (process.stdin_fd, process.stdout_fd, process.stderr_fd) if fd is not None)


async def read_all(fd: int) -> bytes:
    """Everything up to EOF, then close."""
    loop, data = asyncio.get_running_loop(), b""
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        while True:
            await ready.wait()
            ready.clear()
            with contextlib.suppress(BlockingIOError):
                part = os.read(fd, limits.PIPE_BYTES)
                if not part:
                    return data
                data += part
    finally:
        loop.remove_reader(fd)
        os.close(fd)


async def finish(process: LaneProcess, stdin: bytes = b"") -> tuple[ExitStatus, bytes, bytes]:
    if process.stdin_fd is not None:
        if stdin:
            os.write(process.stdin_fd, stdin)
        os.close(process.stdin_fd)
    out, err = await asyncio.gather(read_all(process.stdout_fd), read_all(process.stderr_fd))
    status = await asyncio.wait_for(asyncio.shield(process.exited), 10)
    closing = process.aclose()
    if closing is not None:
        await closing
    return status, out, err


async def run(lane: SpawnLane, *cmd: str, stdin: bytes = b"", **more: object) -> tuple[ExitStatus, bytes, bytes]:
    return await finish(await start(lane, *cmd, **more), stdin)


async def end(process: LaneProcess, grace_s: float = 0) -> None:
    await process.end_tree(Grace(asyncio.get_running_loop().time() + grace_s))


async def line(process: LaneProcess) -> bytes:
    """What it writes next."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(process.stdout_fd, ready.set)
    try:
        await asyncio.wait_for(ready.wait(), 10)
        return os.read(process.stdout_fd, limits.PIPE_BYTES)
    finally:
        loop.remove_reader(process.stdout_fd)
