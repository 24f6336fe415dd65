"""A burst of quick requests is one task; what waits holds up nobody."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

from fastclaw import limits
from fastclaw.server.workers import Workers

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

    total = 10 * limits.WORKER_STREAK
    async with working(handle) as workers:
        for number in range(total):
            workers.submit(number)
        await until(lambda: len(done) == total)
    assert seen[0] <= total - total // limits.WORKER_SHARE**2  # half, and in the turn of the callback half of the rest


async def each_turn(measure: Callable[[], int], until_is: int) -> list[int]:
    """By how much it has grown in each turn of the loop until it is that much."""
    grown = [measure()]
    async with asyncio.timeout(5):
        while grown[-1] < until_is:
            await asyncio.sleep(0)
            grown.append(measure())
    return [after - before for before, after in pairwise(grown)]


async def test_a_burst_never_takes_a_turn_of_the_loop_for_itself() -> None:
    """Also where those that waited come back all at once: what is to be read next may be urgent."""
    gate = asyncio.Event()
    waiting, quick = 50, 20 * limits.WORKER_STREAK
    done = begun = 0

    async def handle(work: int) -> None:
        nonlocal done, begun
        begun += 1
        if work < 0:
            await gate.wait()
        done += 1

    async with working(handle) as workers:
        for number in range(waiting):
            workers.submit(-1 - number)
        await until(lambda: begun == waiting)
        for number in range(quick):
            workers.submit(number)
        gate.set()
        shares = await each_turn(lambda: done, waiting + quick)
    assert max(shares) <= waiting + quick // limits.WORKER_SHARE
    assert shares[-1] <= limits.WORKER_STREAK


async def test_what_comes_without_a_pause_does_not_pile_up() -> None:
    brings, reads = 10 * limits.WORKER_STREAK, 100
    done = 0

    async def handle(work: int) -> None:
        nonlocal done
        done += 1

    async with working(handle) as workers:
        most = 0
        for turn in range(reads):
            for number in range(brings):
                workers.submit(number)
            await asyncio.sleep(0)
            most = max(most, (turn + 1) * brings - done)
        await until(lambda: done == reads * brings)
    assert most <= (limits.WORKER_SHARE + 1) * brings


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


async def test_what_is_urgent_goes_first_and_the_order_of_the_others_stays() -> None:
    done: list[int] = []

    async def handle(work: int) -> None:
        done.append(work)

    async with working(handle) as workers:
        for number in range(10):
            workers.submit(number)
        for number in range(10, 13):
            workers.submit(number, urgent=True)
        await until(lambda: len(done) == 13)
    assert done == [10, 11, 12, *range(10)]


async def test_urgent_ones_starve_nobody_and_the_others_nobody_urgent() -> None:
    done: list[int] = []

    async def handle(work: int) -> None:
        done.append(work)

    async with working(handle) as workers:
        for number in range(1_000):
            workers.submit(number, urgent=True)
        for number in range(1_000, 1_010):
            workers.submit(number)
        await until(lambda: len(done) == 1_010)
    turn = limits.URGENT_STREAK + 1
    assert [done.index(number) for number in range(1_000, 1_010)] == [at * turn - 1 for at in range(1, 11)]
    assert [number for number in done if number < 1_000] == list(range(1_000))


async def test_only_as_many_urgent_ones_count_as_have_overtaken_somebody() -> None:
    """Those that were served while nobody else waited do not make one wait later."""
    done: list[int] = []

    async def handle(work: int) -> None:
        done.append(work)

    async with working(handle) as workers:
        for number in range(limits.URGENT_STREAK):
            workers.submit(number, urgent=True)
        await until(lambda: len(done) == limits.URGENT_STREAK)
        workers.submit(-1)
        workers.submit(-2, urgent=True)
        await until(lambda: len(done) == limits.URGENT_STREAK + 2)
    assert done[-2:] == [-2, -1]


async def test_urgent_ones_wait_for_no_handler() -> None:
    gate = asyncio.Event()
    done: list[int] = []

    async def handle(work: int) -> None:
        if work < 0:
            await gate.wait()
        done.append(work)

    async with working(handle) as workers:
        for number in range(100):
            workers.submit(-1 - number)
            workers.submit(number, urgent=True)
        await until(lambda: len(done) == 100)
        assert done == list(range(100))
        gate.set()
        await until(lambda: len(done) == 200)


async def test_urgent_ones_that_are_held_begin_when_they_are_let_go() -> None:
    done: list[int] = []

    async def handle(work: int) -> None:
        done.append(work)

    async with working(handle) as workers:
        workers.hold(True)
        workers.submit(1)
        workers.submit(2, urgent=True)
        for _ in range(5):
            await asyncio.sleep(0)
        assert done == []
        workers.hold(False)
        await until(lambda: done == [2, 1])
        workers.hold(True)
        workers.submit(3, urgent=True)
        workers.hold(False)
        await until(lambda: done == [2, 1, 3])


async def test_closing_drops_urgent_ones_too() -> None:
    begun: list[int] = []

    async def handle(work: int) -> None:
        begun.append(work)

    workers = Workers(handle)
    workers.submit(1, urgent=True)
    await workers.aclose()
    for _ in range(5):
        await asyncio.sleep(0)
    assert begun == []
