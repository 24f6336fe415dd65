"""A lane whose processes end when the test says so. Their pipes are real."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastclaw.options import Options
from fastclaw.processes.lane import Collected, Collection, ExitStatus, Grace, Lane, LaneProcess, Output, StartSpec
from fastclaw.processes.listeners import SocketDirectory
from fastclaw.processes.pool import ProcessPool
from fastclaw.processes.relayed_streams import PipedProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastclaw.errors import FastclawError


class ScriptedProcess(PipedProcess):
    """Attributes:
    graces: of every `end_tree`.
    may_end: `end_tree` waits here while it is cleared.
    failure: what `end_tree` raises.
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
        self.exited: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.failure: FastclawError | None = None
        self.signals: list[int] = []
        self.sizes: list[tuple[int, int]] = []
        self.graces: list[Grace] = []
        self.closed = 0
        self.collection: Collection | None = None

    def collect(self, collection: Collection) -> None:
        """It is a run."""
        self.collection = collection
        self.collected = asyncio.get_running_loop().create_future()
        for fd in (self.stdin_fd, self.stdout_fd, self.stderr_fd):
            if fd is not None:
                os.close(fd)

    def give(self, stdout: bytes = b"", exit_code: int = 0, **more: Any) -> None:
        """End a run that wrote this."""
        self.end(exit_code)
        assert self.collected is not None
        if not self.collected.done():
            output = Output(stdout, b"", len(stdout))
            self.collected.set_result(Collected(status=self.exited.result(), stdout=output, stderr=Output(), **more))

    def end(self, exit_code: int = 0, output: bytes = b"") -> None:
        """Write `output`, close the streams and exit."""
        if output:
            os.write(self.their_stdout, output)
        self.close_theirs()
        if not self.exited.done():
            self.exited.set_result(ExitStatus(reason="exited", exit_code=exit_code))

    def close_theirs(self) -> None:
        """As an exit does. Idempotent."""
        for fd in (self.their_stdin, self.their_stdout, self.their_stderr):
            if fd is not None and fd >= 0:
                os.close(fd)
        self.their_stdin = None
        self.their_stdout = self.their_stderr = -1

    def signal(self, signum: int, *, group: bool = False) -> None:
        self.signals.append(signum)

    def resize(self, rows: int, columns: int) -> None:
        self.sizes.append((rows, columns))

    async def end_tree(self, grace: Grace) -> None:
        self.graces.append(grace)
        await self.may_end.wait()
        if self.failure is not None:
            raise self.failure
        if self.collected is None:
            self.end(exit_code=9)
        else:
            self.give(exit_code=9)

    async def aclose(self) -> None:
        self.closed += 1


class ScriptedLane(Lane):
    """Attributes:
    gate: starts wait here while it is cleared.
    failure: what the next starts raise.
    says_later: starts return before their command runs.
    make: what it starts.
    """

    name = "scripted"
    make: type[ScriptedProcess] = ScriptedProcess

    def __init__(self) -> None:
        self.capabilities: list[str] = []
        self.processes: list[ScriptedProcess] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.starting = 0
        self.most_starting = 0
        self.failure: BaseException | None = None
        self.says_later = False

    async def start(self, spec: StartSpec, container_index: int) -> LaneProcess:
        self.starting += 1
        self.most_starting = max(self.most_starting, self.starting)
        try:
            await self.gate.wait()
        finally:
            self.starting -= 1
        if self.failure is not None:
            raise self.failure
        process = self.make(spec)
        if self.says_later:
            process.started = asyncio.get_running_loop().create_future()
        self.processes.append(process)
        return process

    async def run(self, spec: StartSpec, collection: Collection, container_index: int) -> LaneProcess:
        process = await self.start(spec, container_index)
        assert isinstance(process, ScriptedProcess)
        process.collect(collection)
        return process

    async def end_all(self, processes: list[LaneProcess], grace: Grace) -> None:
        for process in processes:
            await process.end_tree(grace)


@asynccontextmanager
async def a_pool(
    lane: ScriptedLane,
    *,
    containers: int = 1,
    max_starting: int = 64,
    max_live: int = 100,
    **options: Any,
) -> AsyncIterator[ProcessPool]:
    """A pool over `lane`, closed at the end."""
    sockets = SocketDirectory()
    pool = ProcessPool(
        lane,
        Options(**options),
        sockets,
        prefix="0123abcd",
        environment={"BASE": "1", "BOTH": "base"},
        working_dir="/base",
        base_dir="/base",
        containers=containers,
        max_starting=max_starting,
        max_live=max_live,
    )
    try:
        yield pool
    finally:
        await pool.end_all()
        await pool.aclose()
        for process in lane.processes:
            process.close_theirs()
        sockets.close()
