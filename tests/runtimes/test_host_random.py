"""Starts, stops, resets and cancels in an order that a seed draws: every call is answered, and nothing stays."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw.errors import FastclawError
from fastclaw.runtime import EnvironmentRequest, ExecRequest, RunRequest
from tests.runtimes.scripted import running
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fastclaw.runtimes.host import EnvironmentHost

WORKERS, CALLS = 4, 50
GRACE = {"kill_grace_ms": 20}
LEGAL = {
    *("ok", "cancelled", "unknown_environment", "environment_exists", "environment_busy", "environment_stopped"),
    *("invalid_params", "unknown_process"),
}
"""What may come of a call: nothing of it is a bug's."""


class Chance:
    """Calls of a host that a seed draws.

    Attributes:
        said: how often each call came to what.
    """

    def __init__(self, runtime: EnvironmentHost, seed: int) -> None:
        self._runtime, self._random = runtime, random.Random(seed)
        self._ids = ["0-1"]
        self.said: Counter[tuple[str, str]] = Counter()

    async def work(self) -> None:
        for _ in range(CALLS):
            name, call = self._random.choice(self._calls())
            task = asyncio.ensure_future(call())
            if self._random.random() < 0.3:
                for _ in range(self._random.randrange(40)):
                    await asyncio.sleep(0)
                task.cancel()
            await asyncio.wait((task,))
            self.said[name, _outcome(task)] += 1

    def _calls(self) -> list[tuple[str, Callable[[], Awaitable[Any]]]]:
        runtime, draw = self._runtime, self._random
        there = [row.environment for row in runtime.environment_list()]
        name = draw.choice(["a", "b", "c", *there])
        options = {**GRACE, **draw.choice([{}, {"pids_limit": 50}, {"lifetime_ms": 5}])}
        free = EnvironmentRequest(environment=draw.choice([None, name]), options=options)
        same = EnvironmentRequest(token=draw.choice("xy"), options={**GRACE, "max_processes": draw.choice([7, 7, 8])})
        command = draw.choice([["sleep", "1000"], ["echo", "x"], ["cat"]])
        pool = [{"size": draw.randrange(3), "pids_limit": 50}][: draw.randrange(2)]
        run = RunRequest(cmd=draw.choice([["true"], ["sleep", "1000"]]), environment=name, key=draw.choice([None, "k"]))
        return [
            *[("start", lambda: runtime.environment_start(free))] * 3,
            *[("token", lambda: runtime.environment_start(same))] * 2,
            *[("stop", lambda: runtime.environment_stop(name))] * 2,
            *[("reset", lambda: runtime.environment_reset(name))] * 3,
            *[("exec", lambda: self._exec(ExecRequest(cmd=command, environment=name)))] * 3,
            ("run", lambda: asyncio.wait_for(_later(lambda: runtime.run(run)), 0.05)),
            ("kill", lambda: _later(lambda: runtime.kill(draw.choice(self._ids), 0))),
            ("pool", lambda: runtime.pool_set(pool)),
        ]

    async def _exec(self, request: ExecRequest) -> None:
        self._ids.append((await self._runtime.exec(request)).process_id)


async def _later(call: Callable[[], Awaitable[Any]]) -> None:
    """For calls that refuse before they are awaited."""
    await call()


def _outcome(task: asyncio.Future[Any]) -> str:
    if task.cancelled():
        return "cancelled"
    error = task.exception()
    if isinstance(error, TimeoutError):
        return "cancelled"
    return error.reason if isinstance(error, FastclawError) else "ok" if error is None else repr(error)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["memory", "local"])
async def test_calls_by_chance_are_each_answered_and_leave_nothing(kind: str, seed: int) -> None:
    async with running(kind) as runtime:
        room = repr(runtime._room)
        await runtime.pool_set([{"size": 2, "pids_limit": 50}])
        chance = Chance(runtime, seed)
        await asyncio.gather(*(chance.work() for _ in range(WORKERS)))
        assert {outcome for _, outcome in chance.said} <= LEGAL, chance.said
        await asyncio.gather(*(runtime.environment_stop(row.environment) for row in runtime.environment_list()))
        await runtime.pool_set([])
        ready = runtime._ready
        assert ready is not None
        await until(lambda: not ready._closers and not ready._makers)
        assert runtime.environment_list() == []
        assert not any((runtime._by_token, runtime._by_prefix, runtime._tokens._calls))
        assert repr(runtime._room) == room
