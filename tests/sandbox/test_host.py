"""Hosts: many sandboxes in one, what is told of them, and how everything ends, by the API with `await`."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw.errors import InvalidParams, StartFailed
from fastclaw.processes.listeners import SocketDirectory
from fastclaw.sandbox import Host, Network, Sandbox, SandboxGone, Workspace
from tests.pids import has_not_ended
from tests.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engine_fixtures import EngineService


async def test_many_at_once_share_nothing(engine_service: EngineService) -> None:
    async with Host(url=engine_service.url) as host:

        async def one(number: int) -> str:
            async with await host.start(token=f"t{number}", env={"N": str(number)}, memory="64m") as box:
                await box.write("f", str(number))
                done = await box.run('echo "$N"; cat f; ls -a / | grep -c "^f$"', cwd="/")
                return done.text

        assert await asyncio.gather(*map(one, range(8))) == [f"{n}\n{n}1\n" for n in range(8)]
        assert await host.list() == []
        assert (await host.health()).status == "healthy"


async def test_the_same_token_is_the_same_sandbox(engine_service: EngineService) -> None:
    async with Host(url=engine_service.url) as host, await host.start(token="t", name="one") as box:
        again = await host.start(token="t", name="one")
        assert (again.id, again.container) == (box.id, box.container) == ("one", box.container)
        assert [listed.token for listed in await host.list()] == ["t"]


async def test_a_pool_is_taken_from(engine_service: EngineService) -> None:
    async with Host(url=engine_service.url) as host:
        kind: dict[str, Any] = {"memory": "64m", "network": Network(mode="none")}
        await host.pool(None, 1, **kind)
        await host.pool(size=0, memory="96m")

        async def ready() -> bool:
            pool = (await host.health()).details["pool"]
            return [known["ready"] for known in pool["kinds"]] == [1]

        await until(ready, 30)
        async with await host.start(**kind) as box:
            assert (await box.run(["true"])).ok
        await host.pool(None, 0, **kind)
        assert (await host.health()).details["pool"]["kinds"] == []


async def test_a_network_that_is_allowed_nothing_has_no_way_out(engine_service: EngineService) -> None:
    async with Host(url=engine_service.url) as host, await host.start(network=Network(allow=["example.org"])) as box:
        done = await box.run('echo "$HTTPS_PROXY"; cat /proc/net/route | tail -n +2 | wc -l')
        proxy, routes = done.text.split()
        assert proxy.startswith("http://127.0.0.1:")
        assert routes == "0"


async def test_its_lifetime_ends_it(engine_service: EngineService) -> None:
    async with Host(url=engine_service.url) as host:
        box = await host.start(lifetime=0.3)
        with pytest.raises(SandboxGone):
            await forever(box)


async def forever(box: Sandbox) -> None:
    while True:
        await box.run(["sleep", "0.02"])


async def test_who_is_cancelled_ends_the_command_with_its_tree(tmp_path: Path) -> None:
    async with Host(runtime="local") as host, await host.start(workspace=Workspace(target=str(tmp_path))) as box:
        for limit in (1000, 20 << 20):
            pids = tmp_path / f"pids{limit}"
            command = f"sleep 100 & echo $$ $! > {pids}.new; mv {pids}.new {pids}; wait"
            running = asyncio.create_task(box.run(command, output_limit=limit))
            await until(pids.exists, 10)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            shell, child = map(int, pids.read_text().split())
            await until(lambda shell=shell, child=child: not has_not_ended(shell) and not has_not_ended(child), 10)  # type: ignore[misc] # bound


async def test_a_time_limit_of_the_callers_own(tmp_path: Path) -> None:
    async with Host(runtime="local") as host, await host.start(workspace=Workspace(target=str(tmp_path))) as box:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await box.run(["sleep", "100"])
        assert (await box.run(["true"])).ok


async def test_a_transfer_that_is_cancelled_leaves_no_thread(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "tree").mkdir()
    with (tmp_path / "tree" / "large").open("wb") as large:
        for _ in range(256):  # no holes, which would be there at once
            large.write(bytes(1 << 20))
    async with Host(runtime="local") as host, await host.start(workspace=Workspace(target=str(tmp_path / "in"))) as box:
        putting = asyncio.create_task(box.put(tmp_path / "tree", "copy"))
        await until(lambda: (tmp_path / "in" / "copy").exists(), 10)
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting
        getting = asyncio.create_task(box.get(str(tmp_path / "tree"), tmp_path / "out"))
        await until(lambda: (tmp_path / "out").exists(), 10)
        getting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await getting

        async def nothing_runs() -> bool:
            return (await host.list())[0].live == 0

        await until(nothing_runs, 10)


async def test_a_transfer_that_is_cancelled_as_it_begins_leaves_none_running(tmp_path: Path) -> None:
    """Whether its cancellation comes before the answer to its start, or on the way to its socket."""
    (tmp_path / "tree").mkdir()
    with (tmp_path / "tree" / "large").open("wb") as large:
        large.truncate(1 << 30)
    async with Host(runtime="local") as host, await host.start() as box:
        for turns in range(100):
            putting = asyncio.create_task(box.put(tmp_path / "tree", str(tmp_path / f"copy{turns}")))
            await until((tmp_path / f"copy{turns}").exists, 10)
            for _ in range(turns):
                await asyncio.sleep(0)
            putting.cancel()
            await asyncio.gather(putting, return_exceptions=True)

        async def nothing_runs() -> bool:
            return (await host.list())[0].live == 0

        await until(nothing_runs, 10)


async def test_wrong_options_are_told_in_a_line(engine_service: EngineService) -> None:
    async with Host(url=engine_service.url) as host:
        with pytest.raises(InvalidParams, match="memory_byte"):
            await host.start(memory_byte=3)
        with pytest.raises(ValueError, match="is no size"):
            await host.start(memory="much")
        with pytest.raises(StartFailed, match="none-such") as failed:
            await host.start("localhost/none-such:1", pull="never")
        assert failed.value.reason == "image_not_found"
    with pytest.raises(InvalidParams, match="runtime"):
        async with Host(runtime="none"):
            raise AssertionError("it came up")


async def test_what_is_otherwise_than_one_thinks_is_told() -> None:
    async with Host(runtime="local") as host:
        assert host.warnings == []
        async with await host.start() as box:
            assert box.info.lane == "spawn"


async def test_a_host_that_dies_is_gone() -> None:
    async with Host(runtime="local") as host:
        box = await host.start()
        running = asyncio.create_task(box.run(["sleep", "100"]))
        await asyncio.sleep(0)
        os.kill(host.client.pid, signal.SIGKILL)
        with pytest.raises(SandboxGone, match="runtime exited"):
            await running
        with pytest.raises(SandboxGone):
            await host.start()
        assert host.has_ended
        assert "ended" in repr(host)
        await box.close()
    SocketDirectory().close()  # removes that of the killed one


def test_before_it_is_entered_it_says_so() -> None:
    assert repr(Host()) == "<Host, not entered>"
    with pytest.raises(RuntimeError, match="async with Host"):
        Host().client  # noqa: B018 - it is the looking that raises
