"""Containers that the engine may or may not have made, as their create call broke off: removed once they are there.

The engine that was stopped, or busy, may still create what it was asked for; and where fastclaw lives on, no next
`initialize` takes it for a dead owner's.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

from fastclaw import engine_limits
from fastclaw.errors import StartFailed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

logger = logging.getLogger(__name__)


class LostContainers:
    """Looks for them until they are gone once removed, or an engine that answers has had time enough to make them.

    Belongs to the loop that makes it; owns the task that looks.

    Parameters:
        remove: removes a container by name or id, and says whether there was one.
    """

    def __init__(self, remove: Callable[[str], Awaitable[bool]]) -> None:
        self._remove = remove
        self._loop = asyncio.get_running_loop()
        self._looks: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._looks)

    def add_from_thread(self, container: str) -> None:
        """One more, by name or id. Does nothing when the loop has ended: the next `initialize` removes it."""
        try:
            self._loop.call_soon_threadsafe(self.add, container)
        except RuntimeError:
            logger.info("container %s is left to the next initialize", container)

    def add(self, container: str) -> None:
        """One more, by name or id."""
        if len(self._looks) < engine_limits.LOST_CONTAINERS:
            self._looks[container] = 0
        if self._task is None or self._task.done():
            self._task = self._loop.create_task(self._look())

    async def aclose(self) -> None:
        """Look once more, and then no more. Idempotent. What is left is for the next `initialize`, or the janitor."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        lost, self._looks = list(self._looks), {}
        with suppress(TimeoutError):
            async with asyncio.timeout(engine_limits.LOST_LAST_LOOK_MS / 1000):
                await asyncio.gather(*map(self._remove, lost), return_exceptions=True)

    async def _look(self) -> None:
        pause, answers = engine_limits.LOST_LOOK_S, True
        while self._looks:
            answered, answers = answers, True
            for container in list(self._looks):
                try:
                    was_there = await self._remove(container)
                except StartFailed as error:
                    logger.info("container %s cannot be looked for yet: %s", container, error)
                    answers = False
                    break
                # One that was there is looked for once more: of a container that it is still making, Podman removes the
                # storage, says that it is removed, and goes on making it (seen with 4.3.1; podman-rm(1), --force).
                looks = engine_limits.LOST_LOOKS - 1 if was_there else self._looks[container] + 1
                self._looks[container] = looks
                if looks >= engine_limits.LOST_LOOKS:
                    del self._looks[container]
            if self._looks:
                if answers and not answered:
                    pause = engine_limits.LOST_LOOK_S  # it is back, and at work on what it was asked for
                await asyncio.sleep(pause)
                pause = min(2 * pause, engine_limits.LOST_LOOK_MOST_S)
