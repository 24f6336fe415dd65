"""Notices two things about sockets that event loops do not offer, or not cheaply, for thousands of them.

- That a peer closed its connection for good, without reading from it: a half-close and a full close look alike to
  `recv`; only EPOLLHUP tells them apart (unix(7), epoll_ctl(2)).
- That somebody connects to one of many listeners that are hardly ever connected to: an entry here costs one system
  call and 100 bytes, a handle of the loop several times both.

So one epoll of our own is nested in the loop's.
"""

import asyncio
import select
from collections.abc import Callable


class Watcher:
    """Calls back for what happens to watched sockets. `unwatch` a socket before closing it."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._listeners: set[int] = set()
        self.loop = asyncio.get_running_loop()
        self.loop.add_reader(self._epoll.fileno(), self._on_events)

    def watch_hangup(self, fd: int, callback: Callable[[], None]) -> None:
        """Call `callback` once when the peer of `fd` is gone, also if it is already."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, select.EPOLLET)

    def watch_listener(self, fd: int, callback: Callable[[], None]) -> None:
        """Call `callback` whenever somebody waits to be accepted."""
        self._callbacks[fd] = callback
        self._listeners.add(fd)
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Forget `fd`. Idempotent."""
        if self._callbacks.pop(fd, None) is not None:
            self._listeners.discard(fd)
            self._epoll.unregister(fd)

    def _on_events(self) -> None:
        """Whose number it was when the news came is settled before the first call: one of the same batch may close a
        socket, and the next may be given its number."""
        callbacks = self._callbacks
        for fd, event, callback in [(fd, event, callbacks.get(fd)) for fd, event in self._epoll.poll(0)]:
            if callback is None or callbacks.get(fd) is not callback:
                continue  # an earlier one of the same batch has unwatched it
            if fd in self._listeners:
                callback()
            elif event & select.EPOLLHUP:
                self.unwatch(fd)
                callback()

    def close(self) -> None:
        """Stop watching."""
        self.loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._callbacks.clear()
