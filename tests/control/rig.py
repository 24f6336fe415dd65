"""Something to look at, behind a real control socket."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fastclaw.control.client import ControlClient
from fastclaw.control.protocol import ProcessRow, ProcessRows, Snapshot
from fastclaw.control.socket import ControlSocket, Watched
from fastclaw.processes.table import unknown_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from fastclaw.control.protocol import AskProcesses, AskSnapshot
    from fastclaw.control.rates import Looks

T = TypeVar("T")


class Box(Watched):
    """A runtime with one process, `a-1`.

    Attributes:
        command_bytes: how long its command line is; below 0: there is a bug.
        killed: what was asked to end.
        release: where there is one, a kill waits for it.
    """

    def __init__(self) -> None:
        self.command_bytes = 1
        self.killed: list[tuple[str, int | None]] = []
        self.release: asyncio.Event | None = None

    async def snapshot(self, asked: AskSnapshot, looks: Looks) -> Snapshot:
        return Snapshot(
            at=2.0,
            pid=1,
            version="0",
            namespace="box",
            started_at=1.0,
            states={},
            environments=[],
            total=0,
        )

    async def processes(self, asked: AskProcesses, looks: Looks) -> ProcessRows:
        if self.command_bytes < 0:
            raise KeyError("a bug")
        command = "x" * self.command_bytes
        row = ProcessRow(process_id="a-1", environment="main", command=command, state="running", started_at=1.0)
        return ProcessRows(at=2.0, total=1, offset=0, rows=[row])

    async def kill(self, process_id: str, grace_ms: int | None) -> None:
        if process_id != "a-1":
            raise unknown_process(process_id)
        self.killed.append((process_id, grace_ms))
        if self.release is not None:
            await self.release.wait()


@asynccontextmanager
async def a_socket(box: Box | None = None) -> AsyncIterator[ControlSocket]:
    """One that listens, in a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="fcc", dir="/tmp") as directory:
        control = ControlSocket(str(Path(directory, "c.sock")), box or Box())
        await control.start()
        try:
            yield control
        finally:
            await control.aclose()


async def asking(control: ControlSocket, call: Callable[[ControlClient], T]) -> T:
    """What a client is told, which blocks a thread of its own."""

    def ask() -> T:
        with ControlClient(control.path) as client:
            return call(client)

    return await asyncio.to_thread(ask)
