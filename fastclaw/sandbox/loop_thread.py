"""One event loop in a thread of its own, for callers that have none, or whose own is busy with something else."""

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Coroutine
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
        self._thread = threading.Thread(target=self.loop.run_forever, name="fastclaw-sandbox", daemon=True)
        self._thread.start()
        atexit.register(self._close)

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """From any other thread: wait for what a coroutine brings, or raises; Ctrl-C cancels it.

        Raises:
            RuntimeError: the caller is on this loop, which would wait for itself.
        """
        if threading.get_ident() == self._thread.ident:
            coroutine.close()
            raise RuntimeError("this is fastclaw's own event loop: use fastclaw.sandbox here, without sync")
        future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        try:
            return future.result()
        except BaseException:  # its own, or Ctrl-C here
            future.cancel()
            raise

    async def bring(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """From a coroutine of another loop: what a coroutine brings; cancelled with whoever awaits it."""
        if asyncio.get_running_loop() is self.loop:
            return await coroutine
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self.loop))

    def close_at_end(self, close: Close) -> None:
        """Have this done on the loop at the end of the program, unless `forget` comes first."""
        self._at_end.append(close)

    def forget(self, close: Close) -> None:
        """It has been done."""
        with suppress(ValueError):
            self._at_end.remove(close)

    def _close(self) -> None:
        if os.getpid() != _pid:
            return  # a child of fork(2), which has no such thread
        for close in self._at_end:
            with suppress(Exception):  # the program ends; what it leaves behind, the runtime's own janitor removes
                asyncio.run_coroutine_threadsafe(close(), self.loop).result(_CLOSE_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_CLOSE_S)


_lock = threading.Lock()
_running: LoopThread | None = None
_pid = 0


def loop_thread() -> LoopThread:
    """The one of this process; made by the first call."""
    global _running, _pid
    with _lock:
        if _running is None or _pid != os.getpid():
            _running, _pid = LoopThread(), os.getpid()
        return _running
