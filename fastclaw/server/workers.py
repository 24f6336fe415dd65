"""Concurrent request handling that costs a task only where a handler really waits.

A worker runs one handler after the other. Before each it makes sure that another worker is awake to go on should
the handler suspend; one that does not suspend is followed by the next at once, within bounds. So a burst of quick
requests runs in one task with one wake-up, and slow ones each hold a worker, as if every request had a task of its own.

What is urgent has a queue of its own, which is served before the other one, but never for long while others wait.
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
        self._urgent: deque[Work] = deque()
        self._overtaken = 0
        self._idle: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._awake = False
        self._turn = 0
        self._held = False
        self._loop = asyncio.get_running_loop()

    def submit(self, work: Work, *, urgent: bool = False) -> None:
        """Have `work` handled, before all that is not urgent if it is; never blocks. The caller bounds how much is
        submitted."""
        (self._urgent if urgent else self._queue).append(work)
        if not self._awake:
            self._wake_one()

    def hold(self, is_held: bool) -> None:
        """Begin nothing more, or go on. What has begun goes on either way."""
        self._held = is_held
        if not is_held and (self._queue or self._urgent) and not self._awake:
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
        """What there is, until it has had its share of this turn of the loop, or somebody else goes on with it: while
        something waits, another is always awake, so at most one of them is at work in a turn."""
        queue, urgent = self._queue, self._urgent
        self._turn = turn = self._turn + 1
        for _ in range(max(limits.WORKER_STREAK, len(queue) // limits.WORKER_SHARE)):
            if self._held or not (queue or urgent):
                return
            work = self._next() if urgent else queue.popleft()
            if (queue or urgent) and not self._awake:
                self._wake_one()
            await self._handle(work)
            if self._turn != turn:
                return

    def _next(self) -> Work:
        """To be called while something is urgent."""
        if not self._queue:
            return self._urgent.popleft()
        if self._overtaken == limits.URGENT_STREAK:
            self._overtaken = 0
            return self._queue.popleft()
        self._overtaken += 1
        return self._urgent.popleft()

    async def aclose(self) -> None:
        """Cancel every worker and wait until all are gone."""
        self._queue.clear()
        self._urgent.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
