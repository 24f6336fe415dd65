"""A container whose init is the spawner: who may connect, who its processes are, and its death."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.errors import ExecFailed, StartFailed
from fastclaw.podman.api import EngineLifecycle
from fastclaw.podman.container import SpawnShard, SpawnShards
from fastclaw.podman.container_spec import InitPlan, container_spec
from fastclaw.podman.containers import Shards
from fastclaw.processes.lane import StartSpec
from fastclaw.spawner.binary import find_spawner
from fastclaw.spawner.spawn_lane import SpawnLane
from tests.spawner.rig import finish
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from typing import Any

    from tests.engine_fixtures import EngineService

pytestmark = pytest.mark.podman
_numbers = count()


class Yard:
    """Makes such containers on the tests' engine."""

    def __init__(self, service: EngineService, directory: Path) -> None:
        self.engine = EngineLifecycle(service.url)
        self._image, self._directory = service.image, directory
        self.deaths = 0
        self.override: dict[str, Any] = {}

    def make(self, user: str = "0") -> SpawnShard:
        number = next(_numbers)
        path = str(self._directory / f"{number}.init")
        spec = container_spec(
            image=self._image,
            name=f"spawn-shard-{os.getpid()}-{number}",
            namespace="spawn-shard",
            owner="o",
            shard=0,
            init=InitPlan(spawner=str(find_spawner()), socket=path),
        )
        return SpawnShard(self.engine, spec | self.override, self._died, path=path, user=user)

    def _died(self) -> None:
        self.deaths += 1

    @asynccontextmanager
    async def up(self, user: str = "0") -> AsyncIterator[SpawnShard]:
        shard = self.make(user)
        try:
            await shard.start()
            yield shard
        finally:
            await shard.remove()

    async def fails(self, user: str = "0") -> None:
        """Bring one up that is expected not to come up, and take it down again."""
        shard = self.make(user)
        try:
            await shard.start()
        finally:
            await shard.remove()


@pytest.fixture
async def yard(engine_service: EngineService, short_dir: Path) -> AsyncIterator[Yard]:
    yard = Yard(engine_service, short_dir)
    yield yard
    await yard.engine.close()
    assert os.listdir(short_dir) == []


async def run(shard: SpawnShard, *cmd: str, user: str | None = None) -> tuple[int | None, str]:
    """Exit code and output."""
    spec = StartSpec(process_id="p", cmd=list(cmd), user=user)
    process = await SpawnLane(_Only(shard), can_set_user=True).start(spec, 0)
    assert process.started is not None
    await process.started
    status, out, err = await finish(process)
    return status.exit_code, (out + err).decode()


class _Only(SpawnShards):
    """One shard, as the lane's only home."""

    def __init__(self, shard: SpawnShard) -> None:
        self._shard = shard

    def take(self, shard: int) -> SpawnShard:
        return self._shard


async def test_up_run_and_down(yard: Yard) -> None:
    async with yard.up() as shard:
        assert shard.alive
        assert shard.is_local
        assert shard.env["PATH"]
        assert await run(shard, "sh", "-c", "echo out; exit 3") == (3, "out\n")
    assert await yard.engine.inspect_container(shard.container) is None
    assert yard.deaths == 0


@pytest.mark.parametrize(
    ("default", "asked", "expected"),
    [
        ("0", None, "0 0 0 /"),
        ("1000:1000", None, "1000 1000 1000 /"),
        ("0", "1234", "1234 0 0 /"),
        ("1000", "0:7", "0 7 7 /"),
    ],
)
async def test_who_processes_are(yard: Yard, default: str, asked: str | None, expected: str) -> None:
    async with yard.up(default) as shard:
        code, said = await run(shard, "sh", "-c", 'echo "$(id -u) $(id -g) $(id -G) $HOME"', user=asked)
        assert code == 0
        assert said.split()[:3] == expected.split()[:3]


async def test_an_unknown_user(yard: Yard) -> None:
    async with yard.up() as shard:
        with pytest.raises(ExecFailed) as raised:
            await run(shard, "true", user="nobody-knows")
        assert raised.value.reason == "unknown_user"
        with pytest.raises(ExecFailed) as raised:
            await run(shard, "true", user=str(limits.REAPER_UID))
        assert raised.value.reason == "permission_denied"
        assert await shard.identify("0") is await shard.identify("0")
        await run(shard, "sh", "-c", "mkdir -p /etc; echo nobody-knows:x:77:78::/: >>/etc/passwd")
        assert (await run(shard, "id", "-u", user="nobody-knows"))[1] == "77\n"
        await run(shard, "sh", "-c", "sed -i s/:77:/:79:/ /etc/passwd")
        assert (await run(shard, "id", "-u", user="nobody-knows"))[1] == "79\n"
    with pytest.raises(StartFailed) as failed:
        await yard.fails("nobody-knows")
    assert failed.value.reason == "unknown_user"


async def test_its_death_is_noticed_and_its_processes_are_gone(yard: Yard) -> None:
    async with yard.up() as shard:
        spec = StartSpec(process_id="p", cmd=["sleep", "1000"])
        process = await SpawnLane(_Only(shard), can_set_user=True).start(spec, 0)
        assert process.started is not None
        await process.started
        await shard.kill()
        status, _, _ = await finish(process)
        assert status.reason == "container_gone"
        await until(lambda: not shard.alive)
        assert yard.deaths == 1


async def test_an_init_that_does_not_connect(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SPAWN_HELLO_MS", 50)
    yard.override = {"entrypoint": ["sleep", "1000"]}
    with pytest.raises(StartFailed, match="did not connect"):
        await yard.fails()


async def test_an_init_that_ends_at_once(yard: Yard) -> None:
    yard.override = {"entrypoint": ["true"]}
    with pytest.raises(StartFailed):
        await yard.fails()


async def test_somebody_else_who_connects_is_turned_away(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as the socket is there; the real init connects later, and nobody serves it."""
    start = EngineLifecycle.start_container
    strangers: list[socket.socket] = []

    async def intrude(engine: EngineLifecycle, container: str) -> None:
        strangers.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        strangers[-1].connect(str(next(iter(yard._directory.iterdir()))))
        await start(engine, container)

    monkeypatch.setattr(EngineLifecycle, "start_container", intrude)
    with pytest.raises(StartFailed, match="not the container's init"):
        await yard.fails()
    for stranger in strangers:
        stranger.close()


async def test_shards_are_homes(engine_service: EngineService, yard: Yard) -> None:
    shards = Shards(1, lambda place, on_death: yard.make())
    await shards.start()
    homes = SpawnShards(shards)
    (home,) = homes.all()
    assert homes.take(0) is home
    assert homes.take(17) is home
    assert homes.health()["reapers"] == limits.SPAWN_SPARE_REAPERS
    assert isinstance(home, SpawnShard)
    state = await yard.engine.inspect_container(home.container)
    assert state is not None
    os.kill(state.pid, signal.SIGKILL)
    await until(lambda: not home.alive)
    assert homes.all() == []
    await shards.aclose()
