"""Many descriptors, one epoll of our own, nested in the loop's.

A handle of the loop costs a kilobyte and several system calls, and one more each time a socket turns from reading to
writing. An entry here costs one call for its whole life (epoll(7)), and tells what loops do not offer: that a peer
closed for good and not only its sending half (EPOLLHUP; unix(7), epoll_ctl(2)).
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

EDGES = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
"""What to watch for: each time that something more can be read, or the peer has ended."""

EDGES_BOTH_WAYS = EDGES | select.EPOLLOUT
"""The same, and each time that there is room again after there was none."""

ONCE_READABLE = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLONESHOT
"""What to watch for: once that something can be read, or the peer has ended."""


class Poller:
    """Calls back for events of the descriptors that it watches.

    An exception of a callback goes to the loop's exception handler, since the edges of the others in the same batch do
    not come a second time. A callback may come once too often.

    Parameters:
        most: events in one turn of the loop, and as many calls of `again`; the others come in the next turn, after what
            else the loop has to do.

    Raises:
        OSError: no descriptor is left.
    """

    def __init__(self, most: int = limits.POLLER_EVENTS) -> None:
        self._most = most
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], object]] = {}
        self._again: list[Callable[[], object]] = []
        self.loop = asyncio.get_running_loop()
        self.loop.add_reader(self._epoll.fileno(), self._on_events)

    def __repr__(self) -> str:
        return f"<Poller watching={len(self._callbacks)}>"

    def watch(self, fd: int, events: int, callback: Callable[[int], object]) -> None:
        """Call `callback(events)` for these events of `fd`, also if they are there already; replaces what was watched.

        Parameters:
            events: as for epoll_ctl(2); `EDGES` and `ONCE_READABLE` are what sockets usually need.

        Raises:
            OSError: the kernel has no memory for one more, or the user none left (fs.epoll.max_user_watches).
        """
        try:
            self._epoll.register(fd, events)
        except FileExistsError:
            self._epoll.modify(fd, events)
        self._callbacks[fd] = callback

    def watch_hangup(self, fd: int, callback: Callable[[], object]) -> None:
        """Call `callback` once when the peer of `fd` is gone, also if it is already."""

        def on_event(events: int) -> None:
            if events & select.EPOLLHUP:
                self.unwatch(fd)
                callback()

        self.watch(fd, select.EPOLLET, on_event)

    def watch_listener(self, fd: int, callback: Callable[[], object]) -> None:
        """Call `callback` as long as a connection waits to be accepted."""
        self.watch(fd, select.EPOLLIN, lambda _: callback())

    def change(self, fd: int, events: int) -> None:
        """Watch `fd`, which is watched, for other events."""
        self._epoll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        """Stop watching `fd`, which stays open. Idempotent."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def forget(self, fd: int) -> None:
        """Call nothing for `fd` any more, without a system call: for one that is closed next, which takes the kernel's
        entry away, or watched again. Idempotent."""
        self._callbacks.pop(fd, None)

    def again(self, callback: Callable[[], object]) -> None:
        """Call `callback` in the next turn of the loop."""
        if not self._again:
            self.loop.call_soon(self._on_again)
        self._again.append(callback)

    def _on_events(self) -> None:
        """Callbacks are looked up before the first is called: one of the batch may close a descriptor, and the next
        may be given its number; news of the old one are not for the new one."""
        callbacks = self._callbacks
        batch = [(callbacks.get(fd), fd, events) for fd, events in self._epoll.poll(0, self._most)]
        for callback, fd, events in batch:
            if callback is not None and callbacks.get(fd) is callback:  # else an earlier one has unwatched it
                try:
                    callback(events)
                except Exception as error:
                    self._report(error)

    def _on_again(self) -> None:
        due, self._again = self._again[: self._most], self._again[self._most :]
        if self._again:
            self.loop.call_soon(self._on_again)
        for callback in due:
            try:
                callback()
            except Exception as error:
                self._report(error)

    def _report(self, error: Exception) -> None:
        self.loop.call_exception_handler({"message": "a watched descriptor's callback failed", "exception": error})

    def close(self) -> None:
        """Call nothing any more. Idempotent."""
        if not self._epoll.closed:
            self.loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
        self._callbacks.clear()
        self._again.clear()
