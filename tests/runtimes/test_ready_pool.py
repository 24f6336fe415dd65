"""How many ready sandboxes a host bears, and what becomes of a kind that cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastclaw import environment_limits, limits
from fastclaw.errors import InvalidParams, StartFailed
from fastclaw.options import Options, PoolKind
from fastclaw.processes.admission import HostRoom
from fastclaw.processes.listeners import SocketDirectory
from fastclaw.runtime import InitializeParams
from fastclaw.runtimes.host import EnvironmentHost
from fastclaw.runtimes.memory import MemorySandbox, MemorySandboxes
from fastclaw.runtimes.ready_pool import HostLoad, ReadyPool, host_load, why_no_more
from tests.waiting import until

ROOMY = HostLoad(limits.MIB * 1000, limits.MIB * 900, 100, 32_768)


@pytest.mark.parametrize(
    ("load", "making", "why"),
    [
        (ROOMY, 0, None),
        (ROOMY, 100, None),
        (ROOMY, 400, "900 MiB of memory are left"),
        (ROOMY._replace(available_bytes=100 * limits.MIB), 0, "100 MiB of memory are left"),
        (ROOMY._replace(tasks=24_577), 0, "there are 24577 of 32768 processes"),
        (ROOMY._replace(tasks=24_000), 30, "there are 24000 of 32768 processes"),
    ],
)
def test_what_a_host_bears(load: HostLoad, making: int, why: str | None) -> None:
    assert why_no_more(load, making) == why


def test_the_load_of_this_host() -> None:
    load = host_load()
    assert 0 < load.available_bytes < load.memory_bytes
    assert 0 < load.tasks < load.max_tasks
    assert load.memory_bytes == pytest.approx(int(Path("/proc/meminfo").read_text().split()[1]) * limits.KIB)


class Failing(MemorySandboxes):
    """Sandboxes that cannot be had as long as `error` is one."""

    error: str | None = None

    def make(self, options: Options) -> MemorySandbox:
        if self.error is not None:
            raise StartFailed(self.error, "engine_unavailable")
        return super().make(options)


async def test_a_kind_that_cannot_be_had_is_tried_again_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REVIVE_FIRST_MS", 1)
    sockets = SocketDirectory()
    factory = Failing("n", sockets)
    room = HostRoom(10, 100)
    pool = ReadyPool(lambda runtime: factory, room)
    factory.error = "no engine"
    pool.keep([("memory", PoolKind(size=3))])
    await until(lambda: "trouble" in pool.health()["kinds"][0])
    (kind,) = pool.health()["kinds"]
    assert (kind["ready"], kind["trouble"]) == (0, "start failed: no engine")
    factory.error = None
    await until(lambda: pool.health()["kinds"] == [{"size": 3, "ready": 3, "starting": 0}])
    taken = await pool.take("memory", Options(max_processes=3))
    assert taken is not None
    await taken.aclose()
    assert await pool.take("local", Options()) is None
    assert await pool.take("memory", Options(user="1")) is None
    await pool.aclose()
    await pool.aclose()
    sockets.close()
    assert repr(room) == repr(HostRoom(10, 100))


async def test_a_host_that_bears_no_more_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment_limits, "POOL_LOOK_MS", 1)
    sockets = SocketDirectory()
    loads = [ROOMY._replace(available_bytes=0)]
    pool = ReadyPool(lambda runtime: MemorySandboxes("n", sockets), HostRoom(10, 100), lambda: loads[-1])
    pool.keep([("memory", PoolKind(size=1))])
    assert pool.health() == {
        "kinds": [{"size": 1, "ready": 0, "starting": 0}],
        "waits": "0 MiB of memory are left",
    }
    loads.append(ROOMY)
    await until(lambda: pool.health()["kinds"][0]["ready"] == 1)
    assert "waits" not in pool.health()
    assert repr(pool) == "<ReadyPool 1 ready of 1 kinds>"
    await pool.aclose()
    sockets.close()


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ({}, "$.options.pool[1].size"),
        ({"size": -1}, "$.options.pool[1].size"),
        ({"size": 1, "imag": "x"}, "$.options.pool[1].imag"),
        ({"size": 1, "environment": False}, "$.options.pool[1].environment"),
        ({"size": environment_limits.MAX_ENVIRONMENTS}, "$.options.pool"),
    ],
)
async def test_a_kind_of_the_wrong_shape(kind: dict[str, object], path: str) -> None:
    runtime = EnvironmentHost("memory")
    options = {"environment": False, "pool": [{"size": 1}, kind]}
    with pytest.raises(InvalidParams) as raised:
        await runtime.start(InitializeParams(namespace="n", options=options))
    assert raised.value.data["path"] == path
    await runtime.stop()
