"""Environments as a supervisor's client has them, over the in-process runtime and this host's."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest

from fastclaw.client import RuntimeClient
from fastclaw.errors import InvalidState
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SERVE = [sys.executable, "-m", "fastclaw", "serve", "--log-level", "error", "--runtime"]


@pytest.fixture(params=["memory", "local"])
async def rt(request: pytest.FixtureRequest) -> AsyncIterator[RuntimeClient]:
    options = {"environment": False}
    async with RuntimeClient.spawn([*SERVE, request.param], namespace="envs", options=options) as client:
        yield client


async def names(rt: RuntimeClient) -> list[str]:
    return [row.environment for row in await rt.environment_list()]


async def test_environments_side_by_side(rt: RuntimeClient) -> None:
    assert "environments" in rt.capabilities
    async with await rt.environment_start() as first, await rt.environment_start("second", env={"A": "2"}) as second:
        assert await names(rt) == [first.environment, "second"]
        assert repr(second).startswith("<Environment second ")
        async with await first.exec(["cat"]) as process:
            assert [info.process_id for info in await first.list()] == [process.id]
            assert await second.list() == []
            out, _ = await process.communicate(b"mine")
        assert out == b"mine"
        assert (await second.run(["printenv", "A"])).stdout == b"2\n"
        with pytest.raises(InvalidState) as raised:
            await rt.run(["true"])
        assert raised.value.reason == "unknown_environment"
        assert (await first.health()).status == "healthy"
        held = await second.exec(["sleep", "1000"])
        await second.reset()
        assert (await held.wait()).reason == "killed"
        assert (await second.run(["true"])).exit_code == 0
    assert await names(rt) == []
    await second.aclose()


async def test_a_cancelled_start_leaves_no_environment(rt: RuntimeClient) -> None:
    for turns in range(20):
        starting = asyncio.ensure_future(rt.environment_start())
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait((starting,))
        if not starting.cancelled():
            await starting.result().aclose()
    await until(lambda: none_left(rt))


async def none_left(rt: RuntimeClient) -> bool:
    return await names(rt) == []


async def test_a_token_gives_the_same_environment_again(rt: RuntimeClient) -> None:
    both = await asyncio.gather(*(rt.environment_start(token="sample-17") for _ in range(2)))
    assert both[0].info == both[1].info
    assert both[0].info.token == "sample-17"


async def test_ready_ones(rt: RuntimeClient) -> None:
    await rt.pool_set([{"size": 2}])

    async def ready() -> bool:
        (kind,) = (await rt.health()).details["pool"]["kinds"]
        return bool(kind == {"size": 2, "ready": 2, "starting": 0})

    await until(ready)
    async with await rt.environment_start() as box:
        assert (await box.run(["true"])).exit_code == 0


async def test_one_of_a_runtime_that_has_ended(rt: RuntimeClient) -> None:
    box = await rt.environment_start()
    await rt.shutdown()
    await box.aclose()
