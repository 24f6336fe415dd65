"""A process that a spawner's keeper keeps: what becomes of it, and how it is ended.

Knows its spawner and its own id there; nothing of sockets, records or containers.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from time import perf_counter_ns
from typing import TYPE_CHECKING

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.lane import ExitStatus, Grace, LaneProcess
from fastclaw.protocol import spawner as frames
from fastclaw.spawn import refusals

if TYPE_CHECKING:
    from fastclaw.lane import StartSpec
    from fastclaw.spawn.spawner import Spawner
    from fastclaw.spawn.stdio import Stdio


class SpawnProcess(LaneProcess):
    """Parameters:
    id: the request's number at its spawner.
    spec: what it is, for the words of a refusal; not kept longer than that.
    stdio: its pipes; ours become this object's.

    Attributes:
        terminal: the master's descriptor of one that was started with a terminal, once it runs.
    """

    __slots__ = (
        "_began",
        "_gone",
        "_spawner",
        "_spec",
        "exited",
        "id",
        "is_gone",
        "started",
        "stderr_fd",
        "stdin_fd",
        "stdout_fd",
        "terminal",
        "timings",
    )

    def __init__(
        self, spawner: Spawner, id: int, spec: StartSpec, stdio: Stdio, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.id = id
        self.stdin_fd, self.stdout_fd, self.stderr_fd = stdio.stdin, stdio.stdout, stdio.stderr
        self.timings = {}
        self.exited = loop.create_future()
        self.started: asyncio.Future[None] = loop.create_future()
        self.terminal: int | None = None
        self.is_gone = False
        self._began = perf_counter_ns()
        self._spawner = spawner
        self._spec: StartSpec | None = spec
        self._gone: asyncio.Event | None = None

    # --- what the spawner says ---

    def on_started(self, terminal: int | None) -> None:
        """execve has succeeded."""
        self.timings["spawn"] = (perf_counter_ns() - self._began) // 1000
        self._spec = None
        self.terminal = terminal
        if self.started.done():  # given up
            self._spawner.end(self.id, frames.LEVEL_KILL)
        else:
            self.started.set_result(None)

    def on_refused(self, step: int, errno: int) -> None:
        """It never ran."""
        if not self.started.done() and self._spec is not None:
            self.started.set_exception(refusals.step_refused(step, errno, self._spec))
        self.on_gone()

    def on_exited(self, wait_status: int, user_us: int, system_us: int, max_rss_kb: int) -> None:
        """The command itself has ended."""
        usage = {"user_us": user_us, "system_us": system_us, "max_rss_kb": max_rss_kb}
        signum = wait_status & 0x7F
        if signum:
            self._exit(ExitStatus(reason="signaled", signal=signum, usage=usage))
        else:
            self._exit(ExitStatus(reason="exited", exit_code=wait_status >> 8, usage=usage))

    def on_gone(self) -> None:
        """Nothing that it started is left."""
        self.is_gone = True
        if self._gone is not None:
            self._gone.set()

    def on_lost(self, why: str) -> None:
        """Its keeper or the whole environment is gone, and so is it."""
        if not self.started.done():
            self.started.set_exception(ExecFailed(why, "container_gone"))
        self._exit(ExitStatus(reason="container_gone"))
        self.on_gone()

    def _exit(self, status: ExitStatus) -> None:
        if not self.exited.done():
            self.exited.set_result(status)

    # --- what is done to it ---

    def give_up(self, error: ExecFailed) -> None:
        """Its start took too long: it is ended, now or as soon as it runs."""
        if not self.started.done():
            self.started.set_exception(error)
        self._spawner.end(self.id, frames.LEVEL_KILL)

    def signal(self, signum: int) -> None:
        if not self.exited.done():
            self._spawner.signal(self.id, signum)

    async def end_tree(self, grace: Grace) -> None:
        if self.is_gone:
            return
        if not self.started.done():
            self.started.cancel()
        if self._gone is None:
            self._gone = asyncio.Event()
        loop = asyncio.get_running_loop()
        if loop.time() < grace.ends_at:
            self._spawner.end(self.id, frames.LEVEL_TERM)
            while not self.is_gone and (left := grace.ends_at - loop.time()) > 0:
                await _set_within(self._gone, min(left, limits.GRACE_LOOK_MS / 1000))
        if not self.is_gone:
            self._spawner.end(self.id, frames.LEVEL_KILL)
            await _set_within(self._gone, limits.TREE_DEADLINE_MS / 1000)
        if not self.is_gone:
            raise ExecFailed(f"the process tree did not end within {limits.TREE_DEADLINE_MS} ms", "engine_timeout")


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
