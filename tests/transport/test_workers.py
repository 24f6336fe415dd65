"""A burst of quick requests is one task; what waits holds up nobody."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastclaw import limits
from fastclaw.transport.workers import Workers

Handle = Callable[[int], Awaitable[None]]


@asynccontextmanager
async def working(handle: Handle, max_idle: int = limits.IDLE_WORKERS) -> AsyncIterator[Workers[int]]:
    workers = Workers(handle, max_idle)
    try:
        yield workers
    finally:
        await workers.aclose()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the workers are watched from outside
            await asyncio.sleep(0)


async def test_a_burst_runs_in_one_task_and_in_order() -> None:
    done: list[int] = []
    tasks: set[asyncio.Task[object] | None] = set()

    async def handle(work: int) -> None:
        done.append(work)
        tasks.add(asyncio.current_task())

    async with working(handle) as workers:
        for number in range(limits.WORKER_STREAK):
            workers.submit(number)
        await until(lambda: len(done) == limits.WORKER_STREAK)
    assert done == list(range(limits.WORKER_STREAK))
    assert len(tasks) == 1


async def test_a_long_burst_lets_the_loop_breathe() -> None:
    done: list[int] = []
    seen: list[int] = []

    async def handle(work: int) -> None:
        if not work:
            asyncio.get_running_loop().call_soon(lambda: seen.append(len(done)))
        done.append(work)

    async with working(handle) as workers:
        for number in range(10 * limits.WORKER_STREAK):
            workers.submit(number)
        await until(lambda: len(done) == 10 * limits.WORKER_STREAK)
    assert seen[0] <= 2 * limits.WORKER_STREAK


async def test_those_that_wait_do_not_hold_up_the_others() -> None:
    gate = asyncio.Event()
    done: list[int] = []

    async def handle(work: int) -> None:
        if work % 2:
            await gate.wait()
        done.append(work)

    async with working(handle) as workers:
        for number in range(200):
            workers.submit(number)
        await until(lambda: len(done) == 100)
        assert not any(number % 2 for number in done)
        gate.set()
        await until(lambda: len(done) == 200)
    assert sorted(done) == list(range(200))


async def test_idle_workers_are_used_again_and_bounded() -> None:
    tasks: set[asyncio.Task[object] | None] = set()
    running = 0
    gate = asyncio.Event()

    async def handle(work: int) -> None:
        nonlocal running
        tasks.add(asyncio.current_task())
        running += 1
        await gate.wait()
        running -= 1

    before = len(asyncio.all_tasks())
    async with working(handle, max_idle=3) as workers:
        for number in range(20):
            workers.submit(number)
        await until(lambda: running == 20)
        assert len(tasks) == 20
        gate.set()
        await until(lambda: running == 0)
        await until(lambda: len(asyncio.all_tasks()) <= before + 3)
        gate.clear()
        first = set(tasks)
        for number in range(3):
            workers.submit(number)
        await until(lambda: running == 3)
        assert tasks == first
        gate.set()


async def test_a_cancelled_handler_may_go_on_and_its_worker_too() -> None:
    done: list[str] = []
    handling: asyncio.Future[asyncio.Task[object]] = asyncio.get_running_loop().create_future()

    async def handle(work: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        if work:
            done.append("second")
            return
        handling.set_result(task)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            task.uncancel()
            done.append("cancelled")

    async with working(handle) as workers:
        workers.submit(0)
        (await handling).cancel()
        await until(lambda: done == ["cancelled"])
        workers.submit(1)
        await until(lambda: done == ["cancelled", "second"])


async def test_closing_cancels_what_waits_and_drops_what_has_not_begun() -> None:
    begun: list[int] = []
    cancelled: list[int] = []

    async def handle(work: int) -> None:
        begun.append(work)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(work)
            raise

    workers = Workers(handle)
    workers.submit(1)
    workers.submit(2)
    await until(lambda: len(begun) == 2)
    workers.submit(3)
    await workers.aclose()
    assert sorted(cancelled) == [1, 2]
    assert begun == [1, 2]


async def test_what_is_held_begins_when_it_is_let_go() -> None:
    begun: list[int] = []

    async def handle(work: int) -> None:
        begun.append(work)
        if work == 1:
            workers.hold(True)

    async with working(handle) as workers:
        for number in range(5):
            workers.submit(number)
        await until(lambda: len(begun) == 2)
        await asyncio.sleep(0)
        workers.submit(5)
        await asyncio.sleep(0)
        assert begun == [0, 1]
        workers.hold(False)
        await until(lambda: begun == [0, 1, 2, 3, 4, 5])
