"""One container of a kind is the engine's, every further one a clone; whatever happens, nothing is left of either."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.podman.clones.clone_fleet import directories, groups
from tests.podman.test_container import run

if TYPE_CHECKING:
    from tests.podman.clones.clone_fleet import CloneFleet


async def test_the_first_is_the_engines_and_the_next_are_clones(clones: CloneFleet) -> None:
    async with clones.up() as first, clones.up() as second, clones.up() as third:
        assert clones.cloning.made_by(first.id) == ("engine", "it is the first of its kind")
        for one in (second, third):
            assert clones.cloning.made_by(one.id) == ("clone", None)
            assert (one.alive, one.is_local) == (True, True)
            assert await clones.engine.inspect_container(one.id) is None
        await run(second, "sh", "-c", "echo x >/new")
        for one in (first, second, third):
            code, said = await run(one, "sh", "-c", "ls /new 2>&1; id -u; cat /proc/1/comm")
            assert (code, said.splitlines()[1:]) == (0, ["0", "fastclaw-init"])
            assert (said.splitlines()[0] == "/new") == (one is second)
        assert len(groups()) > 0
    assert groups() == []
    assert len(directories(clones.storage)) == 1
    assert clones.deaths.count == 0


async def test_many_at_once_are_one_of_the_engines_and_clones(clones: CloneFleet) -> None:
    many = [clones.make() for _ in range(12)]
    await asyncio.gather(*(container.start() for container in many))
    makers = [clones.cloning.made_by(container.id)[0] for container in many]
    assert sorted(makers) == ["clone"] * 11 + ["engine"]
    assert [await run(container, "true") for container in many] == [(0, "")] * 12
    await asyncio.gather(*(container.remove() for container in many))
    assert groups() == []
