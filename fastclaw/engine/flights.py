"""One flight for everybody who wants to go to the same place at the same time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable

T = TypeVar("T")


class Flights(Generic[T]):
    """Calls under way, each shared by all who ask for the same while it goes on. Remembers no results.

    Every caller has its own deadline and cancellation; when the last one has left, the call itself is cancelled.
    """

    def __init__(self) -> None:
        self._under_way: dict[Hashable, tuple[asyncio.Task[T], list[object]]] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self._under_way)} under way>"

    async def share(self, key: Hashable, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What the call under way for this key comes to; where there is none, it is made.

        Raises:
            Whatever the call raises, for all who share it.
        """
        task, callers = self._under_way.get(key) or self._begin(key, call)
        me = object()
        callers.append(me)
        try:
            await asyncio.wait((task,))
            return task.result()
        finally:
            callers.remove(me)
            if not callers and not task.done():
                self._forget(key, task)
                task.cancel()

    async def share_next(self, key: Hashable, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """As `share`, by a call that begins now or later: one under way may not see what has happened since."""
        if key in self._under_way:
            await asyncio.wait((self._under_way[key][0],))
        return await self.share(key, call)

    def _begin(self, key: Hashable, call: Callable[[], Coroutine[Any, Any, T]]) -> tuple[asyncio.Task[T], list[object]]:
        task = asyncio.get_running_loop().create_task(call())
        self._under_way[key] = task, []
        task.add_done_callback(lambda done: self._forget(key, done))
        return self._under_way[key]

    def _forget(self, key: Hashable, task: asyncio.Task[T]) -> None:
        if key in self._under_way and self._under_way[key][0] is task:
            del self._under_way[key]
