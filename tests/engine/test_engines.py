"""The engines of one connection, each connected once, and what is removed when one is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw.engine.api import EngineLifecycle
from fastclaw.engine.container_spec import LABEL_NAMESPACE, InitPlan, container_spec
from fastclaw.engine.engines import Engines, remove_abandoned
from fastclaw.engine.service.plan import DEFAULT_IMAGE
from fastclaw.errors import StartFailed
from fastclaw.linux.proc import this_process
from fastclaw.options import Options
from tests.waiting import turns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.engine_fixtures import EngineService

NAMESPACE = "enginestest"


@pytest.fixture
async def engine(engine_service: EngineService) -> AsyncIterator[EngineLifecycle]:
    """The tests' engine, which has no container of these tests afterwards."""
    one = EngineLifecycle(engine_service.url)
    try:
        await one.ensure_image(DEFAULT_IMAGE)
        yield one
        assert await containers(one) == set()
    finally:
        await one.aclose()


async def containers(engine: EngineLifecycle) -> set[str]:
    return {found.id for found in await engine.list_containers({LABEL_NAMESPACE: NAMESPACE})}


async def test_only_what_a_dead_owner_left_is_removed(engine: EngineLifecycle) -> None:
    me = this_process()
    later = me._replace(start_time=me.start_time + 1)
    alive, dead, last_boot = me.label, later.label, me._replace(boot_id="0").label
    elsewhere = later._replace(pid_namespace=me.pid_namespace + 1).label
    made = {}
    owners = {"alive": alive, "elsewhere": elsewhere, "dead": dead, "boot": last_boot, "strange": "x"}
    for name, owner in owners.items():
        made[name] = await engine.create_container(left_behind(DEFAULT_IMAGE, name, owner, NAMESPACE))
    made["other"] = await engine.create_container(left_behind(DEFAULT_IMAGE, "o", dead, "another"))
    await remove_abandoned(engine, NAMESPACE)
    assert await containers(engine) == {made["alive"], made["elsewhere"], made["strange"]}
    assert await engine.inspect_container(made["other"]) is not None
    for container in made.values():
        await engine.remove_container(container)


def left_behind(image: str, name: str, owner: str, namespace: str) -> dict[str, Any]:
    return container_spec(image=image, name=f"left-{name}", namespace=namespace, owner=owner, init=InitPlan())


async def test_many_that_ask_at_once_get_one_engine_and_one_that_failed_is_tried_again(
    engine_service: EngineService,
) -> None:
    engines = Engines(NAMESPACE)
    try:
        there = Options(url=engine_service.url)
        found = await asyncio.gather(*(engines.get(there) for _ in range(20)))
        assert len(set(map(id, found))) == 1
        assert found[0].health()["managed"] is False
        gone = Options(url="unix:///nonexistent/socket")
        for _ in range(2):
            with pytest.raises(StartFailed):
                await engines.get(gone)
        assert repr(engines) == "<Engines 1>"
        slower = await engines.get(Options(url=engine_service.url, engine_timeout_ms=1_234))
        assert slower is not found[0]
    finally:
        await engines.aclose()
        await engines.aclose()


async def test_who_is_cancelled_takes_the_engine_from_no_other(engine_service: EngineService) -> None:
    engines = Engines(NAMESPACE)
    try:
        options = Options(url=engine_service.url)
        first, second = (asyncio.ensure_future(engines.get(options)) for _ in range(2))
        await turns()
        first.cancel()
        assert (await second).lifecycle.url == engine_service.url
    finally:
        await engines.aclose()
