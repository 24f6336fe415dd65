"""Notices that a peer closed its connection for good, without reading from it.

A half-close and a full close look alike to `recv`; only EPOLLHUP tells them apart (unix(7), epoll_ctl(2)). Event loops
do not offer it, so one epoll of our own, edge-triggered, is nested in the loop's.
"""

import asyncio
import select
from collections.abc import Callable


class HangupWatcher:
    """Calls back once for each watched socket whose peer is gone."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self.loop = asyncio.get_running_loop()
        self.loop.add_reader(self._epoll.fileno(), self._on_events)

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call `callback` when the peer of `fd` is gone, also if it is already. `unwatch` before closing `fd`."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, select.EPOLLET)

    def unwatch(self, fd: int) -> None:
        """Forget `fd`. Idempotent."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _on_events(self) -> None:
        for fd, event in self._epoll.poll(0):
            # A callback may have unwatched a later one of the same batch.
            if event & select.EPOLLHUP and (callback := self._callbacks.get(fd)) is not None:
                self.unwatch(fd)
                callback()

    def close(self) -> None:
        """Stop watching."""
        self.loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._callbacks.clear()
