"""What every rival in Python does around its own way to run a command: warm up, clock each, tell it as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def arguments() -> tuple[int, int, list[str]]:
    """COUNT, AT_ONCE, and what comes behind them."""
    count, at_once, *rest = sys.argv[1:]
    return int(count), int(at_once), rest


async def measure(version: str, count: int, at_once: int, run_one: Callable[[int], Awaitable[None]]) -> None:
    """Run `count` commands, so many at once; each place has had one before, which does not count.

    Parameters:
        run_one: runs one in a place, 0 to `at_once` - 1, and sees to it that it ended well.
    """
    await asyncio.gather(*map(run_one, range(at_once)))
    left, took = iter(range(count)), list[float]()

    async def work(place: int) -> None:
        for _ in left:
            began = time.perf_counter()
            await run_one(place)
            took.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*map(work, range(at_once)))
    _tell(version, time.perf_counter() - began, took)


def measure_threads(version: str, count: int, at_once: int, run_one: Callable[[int], None]) -> None:
    """The same of calls that block, each place a thread."""
    with ThreadPoolExecutor(at_once) as threads:

        async def run_in_thread(place: int) -> None:
            await asyncio.get_running_loop().run_in_executor(threads, run_one, place)

        asyncio.run(measure(version, count, at_once, run_in_thread))


def _tell(version: str, seconds: float, took: list[float]) -> None:
    took.sort()
    p50, p99 = took[len(took) // 2], took[len(took) * 99 // 100]
    times = {"min_us": took[0], "p50_us": p50, "p99_us": p99, "max_us": took[-1]}
    told = {"seconds": seconds, "calls": len(took), **{name: each * 1e6 for name, each in times.items()}}
    sys.stdout.write(json.dumps({"version": version, **told}) + "\n")
