"""The server's side of the control socket: who may connect, what each may hold, and how long anything may take.

Nothing runs while nobody is connected. A client has one request in work and one answer on its way, at most; one that
does not take its answer in time is cut off, and nothing waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from fastclaw import limits, telemetry_limits
from fastclaw.control.protocol import AskProcesses, AskSnapshot, Killed, Refusal, line_of, read_ask
from fastclaw.control.rates import Looks
from fastclaw.errors import FastclawError, InternalError, InvalidRequest, InvalidState, IoError
from fastclaw.linux.sockets import listen_anew
from fastclaw.processes.listeners import is_trusted_peer

if TYPE_CHECKING:
    from fastclaw.control.protocol import Answer, Ask, AskKill, ProcessRows, Snapshot


logger = logging.getLogger(__name__)

CONTROL_NAME = "control.sock"
"""Of the socket, in the directory of a runtime's sockets."""


class Watched(ABC):
    """What can be looked at by a control socket."""

    @abstractmethod
    async def snapshot(self, asked: AskSnapshot, looks: Looks) -> Snapshot:
        """How it is. `looks`: the last ones of this client."""

    @abstractmethod
    async def processes(self, asked: AskProcesses, looks: Looks) -> ProcessRows:
        """A page of its processes. `looks`: the last ones of this client."""

    @abstractmethod
    async def kill(self, process_id: str, grace_ms: int | None) -> None:
        """As `Runtime.kill`."""


class ControlSocket:
    """A listening control socket.

    Parameters:
        path: where it is; `start` makes it, `aclose` removes it.
        watched: what is looked at.
    """

    def __init__(self, path: str, watched: Watched) -> None:
        self.path = path
        self._watched = watched
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<ControlSocket {self.path} {len(self._clients)} clients>"

    async def start(self) -> None:
        """Listen.

        Raises:
            IoError: nothing can be bound there, or somebody listens there already.
        """
        try:
            listening = listen_anew(self.path, limits.LISTEN_BACKLOG)
        except OSError as error:
            raise IoError(f"no control socket at {self.path}: {error.strerror or error}; take another path") from error
        self._server = await asyncio.start_unix_server(
            self._on_client, sock=listening, limit=telemetry_limits.CONTROL_LINE_BYTES
        )

    async def aclose(self) -> None:
        """Cut everybody off and remove the path. Idempotent."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        for client in self._clients:
            client.cancel()
        if self._clients:
            await asyncio.wait(self._clients, timeout=telemetry_limits.CONTROL_CLOSE_MS / 1000)

    async def _on_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        writer.transport.set_write_buffer_limits(0)  # so that `drain` waits until all of it is sent
        try:
            await self._serve(reader, writer)
        except (TimeoutError, ConnectionError, asyncio.CancelledError):
            pass  # it reads nothing, asks nothing, has left; or the runtime ends
        finally:
            self._clients.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not is_trusted_peer(writer.get_extra_info("socket")):
            return
        if len(self._clients) > telemetry_limits.CONTROL_CLIENTS:
            text = f"{telemetry_limits.CONTROL_CLIENTS} clients look already; try again later"
            await _send(writer, _refusal(InvalidState(text, "overloaded")))
            return
        looks = Looks()
        while True:
            try:
                async with asyncio.timeout(telemetry_limits.CONTROL_IDLE_MS / 1000):
                    line = await reader.readuntil()
            except asyncio.LimitOverrunError:
                text = f"a request has {telemetry_limits.CONTROL_LINE_BYTES} bytes at most"
                await _send(writer, _refusal(InvalidRequest(text, "line_too_long")))
                return
            except asyncio.IncompleteReadError:
                return
            await _send(writer, await self._answer(line, looks))

    async def _answer(self, line: bytes, looks: Looks) -> Answer:
        try:
            return await self._answered(read_ask(line), looks)
        except FastclawError as error:
            return _refusal(error)
        except Exception:
            logger.exception("what a control socket was asked failed: a bug")
            return _refusal(InternalError("internal error"))

    async def _answered(self, asked: Ask, looks: Looks) -> Answer:
        if isinstance(asked, AskSnapshot):
            return await self._watched.snapshot(asked, looks)
        if isinstance(asked, AskProcesses):
            return await self._watched.processes(asked, looks)
        await self._kill(asked)
        return Killed(process_id=asked.process_id)

    async def _kill(self, asked: AskKill) -> None:
        try:
            async with asyncio.timeout(telemetry_limits.CONTROL_KILL_MS / 1000):
                await self._watched.kill(asked.process_id, asked.grace_ms)
        except TimeoutError as error:
            text = f"{asked.process_id} has not ended within {telemetry_limits.CONTROL_KILL_MS} ms"
            raise InvalidState(text, "overloaded") from error


async def _send(writer: asyncio.StreamWriter, answer: Answer) -> None:
    writer.write(line_of(answer))
    async with asyncio.timeout(telemetry_limits.CONTROL_WRITE_MS / 1000):
        await writer.drain()


def _refusal(error: FastclawError) -> Refusal:
    return Refusal(message=str(error), reason=error.reason)
