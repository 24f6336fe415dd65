"""What a screen is shown of a real runtime, and what is measured for it: on this host, in clones and in containers."""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw.control.client import ControlClient
from fastclaw.control.protocol import AskKill, AskProcesses, AskSnapshot
from fastclaw.errors import ExecFailed, IoError, ProtocolError
from fastclaw.runtime import EnvironmentRequest, ExecRequest, InitializeParams, RunRequest
from fastclaw.runtimes.host import EnvironmentHost
from fastclaw.runtimes.watched import shown
from fastclaw.spawner.spawn_lane import SpawnLane
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from fastclaw.control.protocol import EnvironmentRow, ProcessRow, ProcessRows, Snapshot
    from fastclaw.processes.lane import LaneProcess, Usage
    from tests.engine_fixtures import EngineService

BUSY = ["sh", "-c", "while :; do :; done"]


class Rig:
    """A runtime and one who looks at it."""

    def __init__(self, runtime: EnvironmentHost) -> None:
        assert runtime.control is not None
        self.runtime = runtime
        self.client = ControlClient(runtime.control)

    async def exec(self, *cmd: str, **more: Any) -> str:
        return (await self.runtime.exec(ExecRequest(cmd=[*cmd], **more))).process_id

    async def processes(self, **asked: Any) -> ProcessRows:
        return await asyncio.to_thread(self.client.processes, AskProcesses(**asked))

    async def rows(self, **asked: Any) -> list[ProcessRow]:
        return (await self.processes(**asked)).rows

    async def snapshot(self, **asked: Any) -> Snapshot:
        return await asyncio.to_thread(self.client.snapshot, AskSnapshot(**asked))

    async def environment(self, name: str = "main") -> EnvironmentRow:
        return next(row for row in (await self.snapshot()).environments if row.environment == name)

    async def kill(self, process_id: str, grace_ms: int | None = None) -> None:
        await asyncio.to_thread(self.client.kill, AskKill(process_id=process_id, grace_ms=grace_ms))


@asynccontextmanager
async def a_rig(runtime: str = "local", **options: Any) -> AsyncIterator[Rig]:
    host = EnvironmentHost(runtime, control=True)
    try:
        await host.start(InitializeParams(namespace="watched", options=options))
        rig = Rig(host)
        try:
            yield rig
        finally:
            rig.client.close()
    finally:
        await host.stop()


# --- up and down ---


async def test_there_is_none_unless_it_is_asked_for(tmp_path: Path) -> None:
    path = str(tmp_path / "mine.sock")
    for host, options, expected in (
        (EnvironmentHost("memory"), {}, None),
        (EnvironmentHost("memory"), {"control": path}, path),
        (EnvironmentHost("memory", control=path), {}, path),
    ):
        await host.start(InitializeParams(namespace="n", options=options))
        assert host.control == expected
        assert (await host.health()).details.get("control") == expected
        await host.stop()
        assert host.control is None
        assert not os.path.exists(path)  # noqa: ASYNC240 - one stat


async def test_it_is_among_the_sockets_of_processes_and_goes_with_them() -> None:
    async with a_rig() as rig:
        path = rig.runtime.control
        assert path is not None
        process = await rig.runtime.exec(ExecRequest(cmd=["true"]))
        assert os.path.dirname(path) == os.path.dirname(process.stdio_addr)
    assert not os.path.exists(path)  # noqa: ASYNC240 - one stat


async def test_a_place_that_is_taken_is_an_error_and_nothing_is_left() -> None:
    async with a_rig() as rig:
        other = EnvironmentHost("memory")
        with pytest.raises(IoError, match="Address already in use"):
            await other.start(InitializeParams(namespace="n", options={"control": rig.runtime.control}))
        assert (await rig.snapshot()).namespace == "watched"


# --- processes ---


async def test_a_page_is_what_was_asked_for() -> None:
    async with a_rig() as rig:
        ids = [await rig.exec("sleep", str(1000 + number)) for number in range(6)]
        await rig.runtime.environment_start(EnvironmentRequest(environment="a"))
        other = await rig.exec("sleep", "7", environment="a")
        all_of_them = await rig.processes()
        assert [row.process_id for row in all_of_them.rows] == [other, *reversed(ids)]
        page = await rig.processes(offset=2, limit=3)
        assert ([row.process_id for row in page.rows], page.total, page.offset) == ([ids[4], ids[3], ids[2]], 7, 2)
        last = await rig.processes(offset=100, limit=3)
        assert ([row.process_id for row in last.rows], last.offset) == ([ids[2], ids[1], ids[0]], 4)
        assert [row.process_id for row in await rig.rows(reverse=True)] == [*ids, other]
        assert [row.process_id for row in await rig.rows(group=True)] == [other, *reversed(ids)]
        assert next(row.process_id for row in await rig.rows(sort="environment")) == other
        assert [row.process_id for row in await rig.rows(sort="command")] == [*ids, other]
        assert [row.process_id for row in await rig.rows(environment="a")] == [other]
        for text, found in (("SLEEP 1003", [ids[3]]), (ids[0], [ids[0]]), ("no such", [])):
            assert [row.process_id for row in await rig.rows(filter=text)] == found
        row = (await rig.rows(filter="sleep 7"))[0]
        assert (row.environment, row.command, row.state, row.processes) == ("a", "sleep 7", "running", 1)


async def test_usage_is_read_of_the_rows_that_are_shown_and_of_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    usage = SpawnLane.usage

    async def counted(lane: SpawnLane, processes: Sequence[LaneProcess]) -> list[Usage | None]:
        measured.append(len(processes))
        return await usage(lane, processes)

    monkeypatch.setattr(SpawnLane, "usage", counted)
    async with a_rig() as rig:
        for number in range(20):
            await rig.exec("sleep", str(1000 + number))
        for sort in ("age", "command", "environment"):
            await rig.rows(sort=sort, limit=5)
        await rig.snapshot(limit=0)
        assert measured == [5, 5, 5]
        measured.clear()
        for _ in range(5):
            await rig.rows(sort="cpu", limit=5)
        assert measured[:2] == [20, 5], "an order by usage needs that of all"
        assert measured.count(20) < 5, "but not each time"


async def test_an_order_by_usage_has_the_largest_first() -> None:
    async with a_rig() as rig:
        idle = [await rig.exec("sleep", "1000") for _ in range(3)]
        busy = await rig.exec(*BUSY)

        async def is_first() -> bool:
            first = (await rig.rows(sort="cpu"))[0]
            return first.process_id == busy and (first.cpu_percent or 0) > 5

        await until(is_first)
        assert next(row.process_id for row in await rig.rows(sort="time")) == busy
        memory = [row.memory_bytes for row in await rig.rows(sort="memory")]
        assert memory == sorted(memory, key=lambda size: -(size or 0))
        assert [row.process_id for row in await rig.rows(sort="cpu", reverse=True)][-1] == busy
        assert {row.process_id for row in await rig.rows(sort="cpu")} == {*idle, busy}


async def test_what_is_blocked_on_its_output_is_shown_with_what_went_through() -> None:
    async with a_rig() as rig:
        blocked = await rig.exec("yes")

        async def is_seen() -> bool:
            return (await rig.rows())[0].blocked == ["stdout"]

        await until(is_seen)
        run = asyncio.ensure_future(rig.runtime.run(RunRequest(cmd=["sh", "-c", "echo 12345; sleep 1000"])))

        async def has_written() -> bool:
            return [row.out_bytes for row in await rig.rows(filter="12345")] == [6]

        await until(has_written)
        row = (await rig.rows(filter="12345"))[0]
        assert (row.is_run, row.blocked) == (True, [])
        await rig.kill(row.process_id, 0)
        assert (await run).reason == "killed"
        assert [row.process_id for row in await rig.rows()] == [blocked]


async def test_ended_ones_are_shown_where_they_are_wanted() -> None:
    async with a_rig() as rig:
        done = await rig.runtime.run(RunRequest(cmd=["sh", "-c", "exit 3"]))
        assert await rig.rows() == []
        row = (await rig.rows(ended=True))[0]
        assert (row.process_id, row.state, row.exit_code, row.reason) == (done.process_id, "exited", 3, "exited")
        assert (row.cpu_us, row.memory_bytes) == (None, None)


async def test_a_kill_is_that_of_the_contract() -> None:
    async with a_rig() as rig:
        process_id = await rig.exec("sh", "-c", "sleep 1000 & sleep 1000")
        await rig.kill(process_id)
        record = await rig.runtime.wait(process_id)
        assert (record.state, record.reason) == ("exited", "killed")
        with pytest.raises(ProtocolError, match="no process") as raised:
            await rig.kill("no-1")
        assert raised.value.reason == "unknown_process"


def test_a_command_is_no_order_to_the_terminal() -> None:
    assert shown(["a", "b c"]) == "a b c"
    assert shown(["printf", "\x1b[2J\n\x07é"]) == "printf �[2J��é"
    assert len(shown(["x" * 10_000])) == 256


# --- environments ---


async def test_a_snapshot_has_the_whole_and_a_page_of_environments() -> None:
    async with a_rig(max_starting=1) as rig:
        for name in ("a", "b"):
            await rig.runtime.environment_start(EnvironmentRequest(environment=name))
        await rig.exec("sleep", "1000", environment="b")
        whole = await rig.snapshot()
        assert (whole.pid, whole.namespace, whole.states, whole.total) == (os.getpid(), "watched", {"running": 3}, 3)
        assert (whole.live, whole.waiting, whole.decisions, whole.latency) == (1, 0, {}, None)
        assert [row.environment for row in whole.environments] == ["main", "a", "b"]
        page = await rig.snapshot(offset=1, limit=1)
        assert ([row.environment for row in page.environments], page.total) == (["a"], 3)
        assert (await rig.snapshot(limit=0)).environments == []
        named = await rig.snapshot(names=["b", "gone"])
        assert ([row.environment for row in named.environments], named.total, named.live) == (["b"], 1, 1)
        row = await rig.environment("b")
        assert (row.runtime, row.lane, row.live, row.pids, row.container) == ("local", "spawn", 1, 1, None)


async def test_on_this_host_an_environment_takes_what_its_processes_take(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_rig() as rig:
        await rig.exec(*BUSY)
        await rig.exec("sleep", "1000")

        async def has_rate() -> bool:
            return ((await rig.environment()).cpu_percent or 0) > 5

        await until(has_rate)
        row = await rig.environment()
        assert (row.pids, row.network_in_bytes, row.block_in_bytes) == (2, None, None)
        assert (row.memory_bytes or 0) > 100_000
        monkeypatch.setattr("fastclaw.telemetry_limits.CONTROL_ROWS", 1)
        row = await rig.environment()
        assert (row.pids, row.memory_bytes, row.live) == (None, None, 2), "too many to be measured one by one"


async def test_of_the_runtime_in_memory_nothing_is_known_but_its_processes() -> None:
    async with a_rig("memory") as rig:
        await rig.exec("cat")
        row = (await rig.rows(sort="cpu"))[0]
        assert (row.command, row.cpu_us, row.memory_bytes, row.out_bytes) == ("cat", None, None, None)
        assert (await rig.environment()).cpu_us is None


async def test_how_long_starts_took_is_told_since_the_last_look() -> None:
    async with a_rig() as rig:
        assert (await rig.snapshot()).latency is None
        for _ in range(3):
            await rig.runtime.run(RunRequest(cmd=["true"]))
        with pytest.raises(ExecFailed):
            await rig.runtime.run(RunRequest(cmd=["/nowhere"]))
        await rig.runtime.environment_start(EnvironmentRequest(environment="a"))
        latency = (await rig.snapshot()).latency
        assert latency is not None
        assert (latency.count, 50 < latency.mean_us < 2e6) == (3, True)
        assert (await rig.snapshot()).latency is None


@pytest.mark.podman
@pytest.mark.parametrize(
    "options", [{"clone": "never"}, {"clone": "always"}, {"lane": "rest"}], ids=lambda one: str(one)
)
async def test_what_a_container_takes_is_read_of_its_groups_and_its_proxy(
    options: dict[str, Any], engine_service: EngineService
) -> None:
    where = {"url": engine_service.url, "image": engine_service.image, "memory_bytes": 256 << 20}
    async with a_rig("podman", **where, **options) as rig:
        process_id = await rig.exec(*BUSY)

        async def has_rate() -> bool:
            return ((await rig.environment()).cpu_percent or 0) > 5

        await until(has_rate)
        await rig.runtime.run(RunRequest(cmd=["busybox", "wget", "-q", "-O-", "http://denied.test/"]))
        row = await rig.environment()
        has_proxy = options.get("lane") != "rest"
        assert (row.container is not None, row.image) == (True, engine_service.image)
        assert row.decisions == ({"allowed": 0, "denied": 1, "failed": 0} if has_proxy else None)
        assert (await rig.snapshot(limit=0)).decisions == ({"denied": 1} if has_proxy else {})
        assert (row.network_in_bytes is None, row.network_out_bytes is None) == (not has_proxy, not has_proxy)
        assert 0 < (row.memory_bytes or 0) < (row.memory_limit_bytes or 0) == 256 << 20
        assert (row.pids or 0) >= 2
        assert None not in (row.block_in_bytes, row.block_out_bytes)
        (process,) = await rig.rows(sort="cpu")
        assert process.process_id == process_id
        assert (process.cpu_us is not None) is has_proxy, "where an engine starts it, it is known to nobody here"
        if has_proxy:
            assert process.processes == 1
            assert (process.memory_bytes or 0) > 10_000
        await rig.kill(process_id, 0)
