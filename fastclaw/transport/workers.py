"""Concurrent request handling that costs a task only where a handler really waits.

A worker runs one handler after the other. Before each it makes sure that another worker is awake to go on should
the handler suspend; one that does not suspend is followed by the next at once. So a burst of quick requests runs
in one task with one wake-up, and slow ones each hold a worker, as if every request had a task of its own.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from fastclaw import limits

Work = TypeVar("Work")


class Workers(Generic[Work]):
    """Runs `handle` for everything submitted; a bounded number of idle workers is kept.

    Parameters:
        handle: must not raise; cancelling the task in which it runs is its own affair.
    """

    def __init__(self, handle: Callable[[Work], Awaitable[None]], max_idle: int = limits.IDLE_WORKERS) -> None:
        self._handle = handle
        self._max_idle = max_idle
        self._queue: deque[Work] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._awake = False
        self._held = False
        self._loop = asyncio.get_running_loop()

    def submit(self, work: Work) -> None:
        """Have `work` handled; never blocks. The caller bounds how much is submitted."""
        self._queue.append(work)
        if not self._awake:
            self._wake_one()

    def hold(self, is_held: bool) -> None:
        """Begin nothing more, or go on. What has begun goes on either way."""
        self._held = is_held
        if not is_held and self._queue and not self._awake:
            self._wake_one()

    def _wake_one(self) -> None:
        """To be called while nobody is awake."""
        self._awake = True
        if self._idle:
            self._idle.pop().set_result(None)
        else:
            task = self._loop.create_task(self._run())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        while True:
            self._awake = False
            await self._drain()
            if len(self._idle) >= self._max_idle:
                return
            parked = self._loop.create_future()
            self._idle.append(parked)
            await parked

    async def _drain(self) -> None:
        queue = self._queue
        streak = 0
        while queue and not self._held:
            work = queue.popleft()
            if queue and not self._awake:
                self._wake_one()
            await self._handle(work)
            streak += 1
            if streak == limits.WORKER_STREAK:
                streak = 0
                await asyncio.sleep(0)

    async def aclose(self) -> None:
        """Cancel every worker and wait until all are gone."""
        self._queue.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
