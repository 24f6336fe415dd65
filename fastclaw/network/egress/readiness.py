"""Tells many sockets that they can be read or written again: one edge-triggered epoll, nested in the loop's.

A handle of the loop costs a kilobyte and several system calls, and one more each time a tunnel turns from reading to
writing. An entry here costs one call for its whole life: the kernel says once that a socket became ready, and its owner
remembers that until a read or a write says otherwise (epoll(7)).
"""

from __future__ import annotations

import asyncio
import select
from typing import TYPE_CHECKING

from fastclaw import limits

if TYPE_CHECKING:
    from collections.abc import Callable

BROKEN = select.EPOLLHUP | select.EPOLLERR
"""Events after which nothing can be written any more."""

ENDED = select.EPOLLRDHUP | BROKEN
"""Events after which no other may follow: such a socket is read until its end or its error."""

READABLE = select.EPOLLIN | ENDED
"""Events after which a read tells something new."""

WRITABLE = select.EPOLLOUT | BROKEN
"""Events after which a write tells something new."""

_READ = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_BOTH = _READ | select.EPOLLOUT


class Readiness:
    """Calls owners back. A callback may come once too often, also with what was true of a socket closed just now."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._again: list[Callable[[], None]] = []
        self.loop = asyncio.get_running_loop()
        self.loop.add_reader(self._epoll.fileno(), self._on_events)

    def watch(self, fd: int, callback: Callable[[int], None]) -> None:
        """Call `callback(events)` when `fd` can be read, or ended: also if that is so already.

        Raises:
            OSError: the kernel has no memory for one more, or the user none left (fs.epoll.max_user_watches).
        """
        self._callbacks[fd] = callback
        self._epoll.register(fd, _READ)

    def watch_writing(self, fd: int) -> None:
        """From now on also when `fd`, which is watched, can be written."""
        self._epoll.modify(fd, _BOTH)

    def forget(self, fd: int) -> None:
        """Call nobody for `fd` any more. Idempotent. Close it then: the kernel forgets what is closed."""
        self._callbacks.pop(fd, None)

    def again(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the next turn of the loop: whoever has had its share of this one goes on then."""
        if not self._again:
            self.loop.call_soon(self._on_again)
        self._again.append(callback)

    def _on_events(self) -> None:
        """Whose number it was when the news came is settled before the first call: one of the same batch may close a
        socket, and the next may be given its number."""
        callbacks = self._callbacks
        batch = [(callbacks.get(fd), fd, events) for fd, events in self._epoll.poll(0, limits.TUNNEL_EVENTS)]
        for callback, fd, events in batch:
            if callback is not None and callbacks.get(fd) is callback:  # else one of this batch has closed it
                self._call(callback, events)

    def _on_again(self) -> None:
        due, self._again = self._again, []
        for callback in due:
            self._call(callback)

    def _call(self, callback: Callable[..., None], *arguments: int) -> None:
        try:
            callback(*arguments)
        except Exception as error:  # the edges of the others in this batch do not come a second time
            self.loop.call_exception_handler({"message": "a tunnel failed", "exception": error})

    def close(self) -> None:
        """Stop calling."""
        self.loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._callbacks.clear()
        self._again.clear()
