"""Threads for podman-py, which blocks: as many as calls are made at the same time, each with a client of its own."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from fastclaw import engine_limits
from fastclaw.engine.podman_client import close_client

if TYPE_CHECKING:
    from collections.abc import Callable

    from podman.api.client import APIClient

T = TypeVar("T")


class EngineThreads:
    """Threads that ask the engine. The one that was busy last is taken first; one that nobody needs for long ends.

    How many calls are made at the same time is bounded by who calls.

    Parameters:
        make: makes a thread's client, in the thread.
    """

    def __init__(self, make: Callable[[], APIClient]) -> None:
        self._make = make
        self._lock = threading.Condition()
        self._idle: deque[_Worker] = deque()
        self._count = 0
        self._closed = False

    def __len__(self) -> int:
        return self._count

    def submit(self, call: Callable[[APIClient], T]) -> Future[T]:
        """Have a call made in a thread.

        Raises:
            RuntimeError: they are closed, or there can be no more threads.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the engine's threads are closed")
            if self._idle:
                self._idle.pop().orders.put((future, call))
                return future
            worker = _Worker(self)
            worker.orders.put((future, call))
            worker.thread.start()
            self._count += 1
        return future

    def close(self) -> None:
        """End them. Idempotent. One that waits for the engine ends with its own deadline."""
        with self._lock:
            self._closed = True
            idle = list(self._idle)
            self._idle.clear()
        for worker in idle:
            worker.orders.put(None)
        for worker in idle:
            worker.thread.join()  # has but a connection to close

    def join(self, timeout_s: float) -> bool:
        """Whether all of them end in time. After `close`."""
        with self._lock:
            return self._lock.wait_for(lambda: self._count == 0, timeout_s)

    def _rest(self, worker: _Worker) -> bool:
        """It has nothing to do; False: it is to end."""
        with self._lock:
            if not self._closed:
                self._idle.append(worker)
            return not self._closed

    def _dismiss(self, worker: _Worker) -> bool:
        """It has waited for long; False: an order is on its way after all."""
        with self._lock:
            if worker not in self._idle:
                return False
            self._idle.remove(worker)
            return True

    def _gone(self) -> None:
        with self._lock:
            self._count -= 1
            self._lock.notify_all()


class _Worker:
    """A thread and what it is to do."""

    def __init__(self, pool: EngineThreads) -> None:
        self._pool = pool
        self._client: APIClient | None = None
        self.orders: SimpleQueue[tuple[Future[Any], Callable[[APIClient], Any]] | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._work, name="fastclaw-engine")

    def _work(self) -> None:
        try:
            stays = True
            while stays and (order := self._next()) is not None:
                stays = self._done(*order)
                del order  # it holds what the caller has
        finally:
            if self._client is not None:
                close_client(self._client)
            self._pool._gone()

    def _done(self, future: Future[Any], call: Callable[[APIClient], Any]) -> bool:
        """Make one call; whether this thread stays. It is idle before it tells: the next call shall find it so."""
        if not future.set_running_or_notify_cancel():
            return self._pool._rest(self)
        try:
            if self._client is None:
                self._client = self._pool._make()
            result = call(self._client)
        except BaseException as error:
            stays = self._pool._rest(self)
            future.set_exception(error)
        else:
            stays = self._pool._rest(self)
            future.set_result(result)
        return stays

    def _next(self) -> tuple[Future[Any], Callable[[APIClient], Any]] | None:
        while True:
            try:
                return self.orders.get(timeout=engine_limits.ENGINE_THREAD_IDLE_MS / 1000)
            except Empty:
                if self._pool._dismiss(self):
                    return None
