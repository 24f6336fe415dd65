"""One event loop in a thread of its own, for callers that have none, or whose own is busy with something else."""

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

from fastclaw import limits

T = TypeVar("T")
Close = Callable[[], Coroutine[Any, Any, None]]

_CLOSE_S = (limits.CLIENT_SHUTDOWN_MS + 3 * limits.CLIENT_EXIT_MS) / 1000
"""How long the end of the program waits for each host still up: as long as ending one by force takes."""


class LoopThread:
    """A loop that runs in a thread until the program ends."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._at_end: list[Close] = []
        self._has_ended = False
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self.loop.run_forever, name="fastclaw-sandbox", daemon=True)
        self._thread.start()
        atexit.register(self._close)

    @property
    def is_here(self) -> bool:
        """Whether this process is the one that it was made in: a child of fork(2) has no such thread."""
        return os.getpid() == self._pid

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """From any other thread: wait for what a coroutine brings, or raises; Ctrl-C cancels it.

        Raises:
            RuntimeError: the caller is on this loop, which would wait for itself; or the program is at its end.
        """
        if threading.get_ident() == self._thread.ident:
            coroutine.close()
            raise RuntimeError("this is fastclaw's own event loop: use fastclaw.sandbox here, without sync")
        future = self._begun(coroutine)
        try:
            return future.result()
        except BaseException:  # its own, or Ctrl-C here
            future.cancel()
            raise

    async def bring(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """From a coroutine of another loop: what a coroutine brings; cancelled with whoever awaits it."""
        if asyncio.get_running_loop() is self.loop:
            return await coroutine
        return await asyncio.wrap_future(self._begun(coroutine))

    def begin(self, coroutine: Coroutine[Any, Any, object]) -> None:
        """From any thread, also this one: have a coroutine done, and wait for nothing. For `__del__`, which is called
        wherever Python is. At the end of the program nothing is done: all of it ends."""
        with suppress(RuntimeError):
            self._begun(coroutine)

    def _begun(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        if self._has_ended:
            coroutine.close()
            raise RuntimeError("the program is at its end, and with it fastclaw's event loop")
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def close_at_end(self, close: Close) -> None:
        """Have this done on the loop at the end of the program, unless `forget` comes first."""
        self._at_end.append(close)

    def forget(self, close: Close) -> None:
        """It has been done."""
        with suppress(ValueError):
            self._at_end.remove(close)

    def _close(self) -> None:
        if not self.is_here:
            return
        for close in self._at_end:
            with suppress(Exception):  # the program ends; what it leaves behind, the runtime's own janitor removes
                asyncio.run_coroutine_threadsafe(close(), self.loop).result(_CLOSE_S)
        self._has_ended = True
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_CLOSE_S)
        if not self._thread.is_alive():
            self.loop.close()


_lock = threading.Lock()
_running: LoopThread | None = None


def loop_thread() -> LoopThread:
    """The one of this process; made by the first call."""
    global _running
    with _lock:
        if _running is None or not _running.is_here:
            _running = LoopThread()
        return _running
