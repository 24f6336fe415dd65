"""The process that makes clones (`cloner_main.py`), from fastclaw's side: orders to it, and what it answers.

It is started with the first order, and replaced where it dies. Clones that it made go on then; orders that it had not
answered fail, and those that come meanwhile wait for the next one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from fastclaw import engine_limits
from fastclaw.engine.clones import remains
from fastclaw.errors import ExecFailed, StartFailed
from fastclaw.linux.helper import Backoff, Helper

if TYPE_CHECKING:
    from fastclaw.linux.directories import HeldDirectory

logger = logging.getLogger(__name__)

_READY = 0
"""The number of its first answer, which is to the settings."""


class Cloner:
    """Has a process carry out orders.

    Parameters:
        directory: of our clones; taken over, and removed in the end.
        crun: the OCI runtime's path.
        hides: a mount that the process shall not see; None: nothing.

    Raises:
        OSError: there is no room for its directories.
    """

    def __init__(self, directory: HeldDirectory, crun: str, hides: str | None) -> None:
        self._directory = directory
        for name in (remains.LAYERS, remains.TRASH):
            (directory.path / name).mkdir(mode=0o700)  # images have set-user-ID files of root's
        for name in (remains.CLONES, remains.STATE, remains.VOLUMES):
            (directory.path / name).mkdir(mode=0o711)
        self._settings = {"crun": crun, "directory": str(directory.path), "hides": hides}
        self._loop = asyncio.get_running_loop()
        self._backoff = Backoff(self._loop.time, forgiven=1)
        self._helper: Helper | None = None
        self._is_ready = asyncio.Event()
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._last_id = 0
        self._late: asyncio.TimerHandle | None = None
        self._recovery: asyncio.Task[None] | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<Cloner {self._helper!r}, {len(self._answers)} orders>"

    @property
    def pid(self) -> int | None:
        """Of the process, where there is one."""
        return None if self._helper is None else self._helper.pid

    async def order(self, does: str, timeout_ms: float, **details: Any) -> dict[str, Any]:
        """Have something done.

        Parameters:
            does: `start`, `remove`, `hold` or `unvolume`.
            details: as `cloner_main` takes them.

        Raises:
            StartFailed: it could not be done; the text says why. `engine_timeout`; `engine_unavailable`: the process
                ended.
        """
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._up()
                answer = await self._answered(does, details)
        except TimeoutError as error:
            raise StartFailed(f"the cloner did not {does} within {timeout_ms} ms", "engine_timeout") from error
        if "error" in answer:
            raise StartFailed(answer["error"])
        return answer

    async def _up(self) -> None:
        if self._closed:
            raise StartFailed("the cloner is closed", "engine_unavailable")
        if self._helper is None and self._recovery is None:
            self._launch()
        await self._is_ready.wait()

    async def _answered(self, does: str, details: dict[str, Any]) -> dict[str, Any]:
        self._last_id += 1
        id = self._last_id
        frame = json.dumps({"do": does, "id": id, **details}).encode()
        if len(frame) > engine_limits.CLONER_FRAME_BYTES:
            raise StartFailed(f"its configuration has {len(frame)} bytes, too many for a clone")
        future: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._answers[id] = future
        try:
            self._send(frame)
            answer: dict[str, Any] = await future
            return answer
        finally:
            self._answers.pop(id, None)

    def _send(self, frame: bytes, *fds: int) -> None:
        if self._helper is None:
            raise StartFailed("the cloner has ended; try again", "engine_unavailable")
        try:
            self._helper.send(frame, list(fds))
        except ExecFailed as error:
            raise StartFailed(f"the cloner does not keep up: {error}", "overloaded") from error

    def _launch(self) -> None:
        self._is_ready.clear()
        argv = [sys.executable, "-m", "fastclaw.engine.clones.cloner_main"]
        try:
            lock = self._directory.share()
            try:
                self._helper = Helper(argv, on_packet=self._on_packet, packet_bytes=engine_limits.CLONER_FRAME_BYTES)
            except BaseException:
                os.close(lock)
                raise
        except OSError as error:
            self._ended(f"it cannot be started: {error.strerror}")
            raise StartFailed(f"the cloner cannot be started: {error.strerror}", "engine_unavailable") from error
        self._backoff.came_up()
        self._late = self._loop.call_later(engine_limits.CLONER_READY_MS / 1000, self._ended, "it does not come up")
        self._send(json.dumps(self._settings).encode(), lock)

    def _on_packet(self, packet: bytes) -> None:
        if not packet:
            self._ended("it has ended")
            return
        answer = json.loads(packet)
        if answer["id"] == _READY:
            self._on_time()
            self._is_ready.set()
            return
        future = self._answers.get(answer["id"])
        if future is not None and not future.done():
            future.set_result(answer)

    def _on_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _ended(self, why: str) -> None:
        self._on_time()
        self._is_ready.clear()
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.close()
        self._backoff.ended()
        for future in self._answers.values():
            if not future.done():
                future.set_exception(StartFailed(f"the cloner failed: {why}; try again", "engine_unavailable"))
        pause_s = self._backoff.pause_s
        if not self._closed and self._recovery is None:
            logger.warning("the cloner failed: %s; another one is started in %.1f s", why, pause_s)
            self._recovery = self._loop.create_task(self._recover(pause_s))

    async def _recover(self, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        self._recovery = None
        try:
            self._launch()
        except StartFailed:
            return

    async def aclose(self) -> None:
        """End the process, which removes all clones, and their directory. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._on_time()
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.wait([self._recovery])
        if self._helper is not None:
            await self._helper.aclose(engine_limits.CLONER_EXIT_MS)
        if self._directory.is_there():  # there was no process, or it did not come to that
            try:
                await asyncio.to_thread(remains.remove_directory, str(self._directory.path), adopted=True)
            except OSError as error:
                logger.warning("clones stay in %s: %s", self._directory.path, error.strerror)
        self._directory.remove()
