"""A lane whose processes end when the test says so. Their pipes are real."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastclaw.decisions.options import Options
from fastclaw.decisions.placement import Placement
from fastclaw.lane import ExitStatus, Grace, Lane, LaneProcess, StartSpec
from fastclaw.runtimes.pool import ProcessPool
from fastclaw.transport.listener import SocketDirectory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastclaw.errors import FastclawError


class ScriptedProcess(LaneProcess):
    """Attributes:
    graces: of every `end_tree`.
    """

    def __init__(self, spec: StartSpec) -> None:
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        self.spec = spec
        self.their_stdin: int | None = None
        self.stdin_fd = None
        if spec.stdin:
            self.their_stdin, self.stdin_fd = os.pipe2(flags)
        self.stdout_fd, self.their_stdout = os.pipe2(flags)
        self.stderr_fd, self.their_stderr = os.pipe2(flags)
        self.timings = {"lane_us": 1}
        self.exited: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self.signals: list[int] = []
        self.sizes: list[tuple[int, int]] = []
        self.graces: list[Grace] = []
        self.closed = 0

    def end(self, exit_code: int = 0, output: bytes = b"") -> None:
        """Write `output`, close the streams and exit."""
        if output:
            os.write(self.their_stdout, output)
        self.close_streams()
        if not self.exited.done():
            self.exited.set_result(ExitStatus(reason="exited", exit_code=exit_code))

    def close_streams(self) -> None:
        """As an exit does. Idempotent."""
        for fd in (self.their_stdin, self.their_stdout, self.their_stderr):
            if fd is not None and fd >= 0:
                os.close(fd)
        self.their_stdin = None
        self.their_stdout = self.their_stderr = -1

    def signal(self, signum: int) -> None:
        self.signals.append(signum)

    def resize(self, rows: int, columns: int) -> None:
        self.sizes.append((rows, columns))

    async def end_tree(self, grace: Grace) -> None:
        self.graces.append(grace)
        self.end(exit_code=9)

    async def aclose(self) -> None:
        self.closed += 1


class ScriptedLane(Lane):
    """Attributes:
    gate: starts wait here while it is cleared.
    failure: what the next starts raise.
    """

    name = "scripted"

    def __init__(self) -> None:
        self.capabilities: list[str] = []
        self.processes: list[ScriptedProcess] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.starting = 0
        self.most_starting = 0
        self.failure: FastclawError | None = None

    async def start(self, spec: StartSpec, shard: int) -> LaneProcess:
        self.starting += 1
        self.most_starting = max(self.most_starting, self.starting)
        try:
            await self.gate.wait()
        finally:
            self.starting -= 1
        if self.failure is not None:
            raise self.failure
        self.processes.append(ScriptedProcess(spec))
        return self.processes[-1]

    async def end_all(self, processes: list[LaneProcess], grace: Grace) -> None:
        for process in processes:
            await process.end_tree(grace)


@asynccontextmanager
async def a_pool(
    lane: ScriptedLane,
    *,
    shards: int = 1,
    max_starting: int = 64,
    max_live: int = 100,
    placement: Placement | None = None,
    **options: Any,
) -> AsyncIterator[ProcessPool]:
    """A pool over `lane`, closed at the end."""
    sockets = SocketDirectory()
    pool = ProcessPool(
        lane,
        Options(**options),
        sockets,
        environment={"BASE": "1", "BOTH": "base"},
        working_dir="/base",
        shards=shards,
        max_starting=max_starting,
        max_live=max_live,
        placement=placement or Placement(1000, 1000, 0),
    )
    try:
        yield pool
    finally:
        await pool.end_all()
        await pool.aclose()
        for process in lane.processes:
            process.close_streams()
        sockets.remove()


async def turns(count: int = 10) -> None:
    """Let everything that is due happen."""
    for _ in range(count):
        await asyncio.sleep(0)
