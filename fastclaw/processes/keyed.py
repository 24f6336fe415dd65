"""Calls with a key that are in flight: who comes with the same key meanwhile joins, and who leaves last takes it back.

Knows no process; what has been answered is the table's.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from fastclaw.errors import InvalidParams, InvalidState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def require_same(first: bytes, again: bytes) -> None:
    """Raises InvalidParams: the key was used for another request. Both are `params.fingerprint`s."""
    if first != again:
        raise InvalidParams("$.key was used for another request; take a new key", path="$.key")


class _Joined:
    """One call, how many wait for it, and whether it is being taken back."""

    __slots__ = ("is_leaving", "mark", "task", "waiting")

    def __init__(self, mark: bytes, task: asyncio.Future[Any]) -> None:
        self.mark = mark
        self.task = task
        self.waiting = 0
        self.is_leaving = False


class KeyedCalls:
    """The calls by key, while they are in flight.

    Parameters:
        own: makes a task of a call that outlives whoever made it.
        take_back: ends what a key stands for that nobody was told of.
    """

    def __init__(
        self,
        own: Callable[[Awaitable[Any]], asyncio.Future[Any]],
        take_back: Callable[[str], Awaitable[None]],
    ) -> None:
        self._own = own
        self._take_back = take_back
        self._calls: dict[str, _Joined] = {}

    async def has(self, key: str) -> bool:
        """Whether a call with this key is in flight. One that is being taken back is waited for; that frees the key."""
        while (joined := self._calls.get(key)) is not None and joined.is_leaving:
            await asyncio.wait((joined.task,))
        return joined is not None

    async def join(self, key: str, mark: bytes, begin: Callable[[], Awaitable[Any]]) -> Any:
        """The result of the call with this key; `begin` makes one where there is none.

        Whoever is cancelled only leaves, as long as somebody else waits. With the last one the call is cancelled, and
        this returns once that is through.

        Raises:
            InvalidParams: the call in flight is another request.
            InvalidState: `shutting_down`.
        """
        joined = self._calls.get(key)
        if joined is None:
            joined = self._begin(key, mark, begin)
        require_same(joined.mark, mark)
        joined.waiting += 1
        try:
            return await asyncio.shield(joined.task)
        except asyncio.CancelledError:
            if joined.task.cancelled():
                raise InvalidState("the runtime is shutting down", "shutting_down") from None
            if joined.waiting == 1:
                await self._leave_last(key, joined)
            raise
        finally:
            joined.waiting -= 1

    def _begin(self, key: str, mark: bytes, begin: Callable[[], Awaitable[Any]]) -> _Joined:
        joined = self._calls[key] = _Joined(mark, self._own(begin()))
        joined.task.add_done_callback(lambda _: self._calls.pop(key))
        return joined

    async def _leave_last(self, key: str, joined: _Joined) -> None:
        joined.is_leaving = True
        joined.task.cancel()
        await asyncio.wait((joined.task,))
        if joined.task.cancelled():
            return
        joined.task.result()  # an error says that it could not be taken back
        await self._take_back(key)
