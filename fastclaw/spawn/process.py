"""A process that a spawner's keeper keeps: what becomes of it, and how it is ended.

Knows its spawner and its own id there; nothing of sockets, records or containers.
"""

from __future__ import annotations

import asyncio
import os
import termios
from time import perf_counter_ns
from typing import TYPE_CHECKING, Protocol

from fastclaw.errors import ExecFailed
from fastclaw.lane import ExitStatus, Grace, LaneProcess
from fastclaw.protocol import spawner as frames
from fastclaw.spawn import ending, refusals
from fastclaw.spawn.stdio import terminal_streams
from fastclaw.transport.outbox import close_all

if TYPE_CHECKING:
    from fastclaw.lane import StartSpec
    from fastclaw.spawn.stdio import Stdio


class Orders(Protocol):
    """What a spawner can be told about a process. `template`: whose worker it is, if it is one."""

    def signal(self, id: int, signum: int, template: int = 0) -> None:
        """To the command itself."""

    def end(self, id: int, level: int, template: int = 0) -> None:
        """TERM or KILL to its tree."""


class SpawnProcess(LaneProcess):
    """Parameters:
    id: the request's number at its spawner.
    spec: what it is, for the words of a refusal; not kept longer than that.
    stdio: its pipes; ours become this object's. None for one with a terminal, whose streams are there once it runs.
    """

    __slots__ = (
        "_began",
        "_gone",
        "_spawner",
        "_spec",
        "_terminal",
        "exited",
        "id",
        "is_gone",
        "started",
        "stderr_fd",
        "stdin_fd",
        "stdout_fd",
        "timings",
    )

    def __init__(
        self, spawner: Orders, id: int, spec: StartSpec, stdio: Stdio | None, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.id = id
        self.stdin_fd, self.stdout_fd, self.stderr_fd = None, -1, -1
        if stdio is not None:
            self.stdin_fd, self.stdout_fd, self.stderr_fd = stdio.stdin, stdio.stdout, stdio.stderr
        self.timings = {}
        self.exited = loop.create_future()
        self.started: asyncio.Future[None] = loop.create_future()
        self._terminal: int | None = None
        self.is_gone = False
        self._began = perf_counter_ns()
        self._spawner = spawner
        self._spec: StartSpec | None = spec
        self._gone: asyncio.Event | None = None

    # --- what the spawner says ---

    def on_started(self, terminal: int | None) -> None:
        """execve has succeeded."""
        self.timings["spawn"] = (perf_counter_ns() - self._began) // 1000
        spec, self._spec, self._terminal = self._spec, None, terminal
        if self.started.done():  # given up
            self._end_unseen()
        elif spec is not None and spec.tty is not None:
            self._take_terminal(spec.stdin)
        else:
            self.started.set_result(None)

    def _take_terminal(self, stdin: bool) -> None:
        """At once: the command may have ended already, and its output must not go with it."""
        try:
            streams = terminal_streams(self._terminal, stdin)
        except ExecFailed as error:
            self.started.set_exception(error)
            self._end_unseen()
            return
        self.stdin_fd, self.stdout_fd, self.stderr_fd = streams
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
        self._forget_terminal()
        if not self.exited.done():
            self.exited.set_result(status)

    def _forget_terminal(self) -> None:
        if self._terminal is not None:
            os.close(self._terminal)
            self._terminal = None

    # --- what is done to it ---

    def give_up(self, error: ExecFailed) -> None:
        """Its start took too long: it is ended, now or as soon as it runs."""
        if not self.started.done():
            self.started.set_exception(error)
        self._order_end(frames.LEVEL_KILL)

    def drop(self) -> None:
        """For one of which nobody will ever be told: ended, now or as soon as it runs, and its streams closed."""
        if self.stdout_fd >= 0:
            close_all(fd for fd in (self.stdin_fd, self.stdout_fd, self.stderr_fd) if fd is not None)
        self._end_unseen()

    def _end_unseen(self) -> None:
        self._forget_terminal()
        if not self.is_gone:
            self._order_end(frames.LEVEL_KILL)

    def _order_end(self, level: int) -> None:
        self._spawner.end(self.id, level)

    def resize(self, rows: int, columns: int) -> None:
        if self._terminal is not None:
            termios.tcsetwinsize(self._terminal, (rows, columns))

    def signal(self, signum: int) -> None:
        if not 1 <= signum <= 64:
            raise ExecFailed(f"there is no signal {signum}", "unsupported")
        if not self.exited.done():
            self._spawner.signal(self.id, signum)

    async def end_tree(self, grace: Grace) -> None:
        if self.is_gone:
            return
        if not self.started.done():
            self.started.cancel()
        if self._gone is None:
            self._gone = asyncio.Event()
        await ending.end(self._order_end, self._gone, grace)
