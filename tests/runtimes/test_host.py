"""Many environments in one process: the order in which everything comes up and goes down, names, tokens, resets."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import shutil
import tracemalloc
from pathlib import Path

import pytest

from fastclaw import limits
from fastclaw.errors import InvalidParams, InvalidState, MethodNotFound, StartFailed
from fastclaw.images import BuildImage, LoadImages, PullImage
from fastclaw.runtime import EnvironmentRequest, ExecRequest, RunRequest
from fastclaw.runtimes.host import EnvironmentHost
from fastclaw.server.dispatch import Dispatcher
from tests.runtimes.scripted import ScriptedSandboxes, names, params, ready, running, start
from tests.waiting import turns, until


async def test_a_start_that_fails_undoes_what_was_done_and_may_be_tried_again(scripted: ScriptedSandboxes) -> None:
    runtime = EnvironmentHost("memory")
    with pytest.raises(StartFailed):
        await runtime.start(params())
    assert scripted.undone == 1
    assert (await runtime.health()).status == "unhealthy"
    scripted.works = True
    result = await runtime.start(params())
    assert (result.env, result.workspace_root) == ({"E": "1"}, "/w")
    await runtime.stop()
    assert scripted.undone == 2


async def test_a_cancelled_start_undoes_what_was_done(scripted: ScriptedSandboxes) -> None:
    runtime = EnvironmentHost("memory")
    scripted.hangs = asyncio.Event()
    starting = asyncio.create_task(runtime.start(params()))
    await turns()
    starting.cancel()
    await asyncio.wait((starting,))
    assert scripted.undone == 1
    await runtime.stop()


async def test_bad_options_change_nothing() -> None:
    runtime = EnvironmentHost("memory")
    with pytest.raises(InvalidParams):
        await runtime.start(params(max_proceses=1))
    await runtime.start(params())
    await runtime.stop()


@pytest.mark.parametrize("kind", ["memory", "local"])
async def test_up_and_down(kind: str) -> None:
    runtime = EnvironmentHost(kind)
    assert (await runtime.health()).message == "not running"
    with pytest.raises(InvalidState):
        await runtime.exec(ExecRequest(cmd=["true"]))
    await runtime.start(params())
    health = await runtime.health()
    assert health.status == "healthy"
    assert health.details["relay"] == "splice"
    assert health.details["processes"]["live"] == 0
    assert repr(runtime) == "<EnvironmentHost n, 1 environments>"
    result = await runtime.exec(ExecRequest(cmd=["true"]))
    async with asyncio.timeout(10):
        record = await runtime.wait(result.process_id)
    assert (record.exit_code, record.reason) == (0, "exited")
    assert [info.process_id for info in await runtime.list_processes()] == [result.process_id]
    await runtime.stop()
    await runtime.stop()
    assert (await runtime.health()).message == "not running"
    assert repr(runtime) == "<EnvironmentHost not running, 0 environments>"
    assert not os.path.exists(os.path.dirname(result.stdio_addr))  # noqa: ASYNC240 - one stat


@pytest.mark.parametrize("kind", ["memory", "local"])
async def test_without_an_engine_there_are_no_images(kind: str) -> None:
    runtime = EnvironmentHost(kind)
    await runtime.start(params())
    assert "images" not in runtime.capabilities
    for call in (
        runtime.image_pull(PullImage(image="a")),
        runtime.image_build(BuildImage(directory="/")),
        runtime.image_load(LoadImages(archive="/")),
    ):
        with pytest.raises(MethodNotFound):
            await call
    await runtime.stop()


async def test_stop_before_start() -> None:
    for runtime in (EnvironmentHost("memory"), EnvironmentHost("local")):
        await runtime.stop()


@pytest.mark.parametrize("kind", ["memory", "local"])
async def test_400_ended_processes_do_not_keep_what_they_were_asked_for(kind: str) -> None:
    """ColeMurray/background-agents PR 1968; 400 records of long requests took 386 MiB."""
    runtime = EnvironmentHost(kind)
    await runtime.start(params())
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(400):
            env = {f"V{part}": f"{number % 10}" * 25_000 for part in range(5)}
            key = str(number)
            started = await runtime.exec(ExecRequest(cmd=["true", *env.values()], env=env, stdin=False, key=key))
            assert (await runtime.wait(started.process_id)).exit_code == 0
        assert (await runtime.health()).details["processes"]["kept"] == 400
        kept = (tracemalloc.get_traced_memory()[0] - before) / 400
    finally:
        tracemalloc.stop()
        await runtime.stop()
    assert kept < 16 * limits.KIB, f"{kept:.0f} bytes for each"


async def test_health_says_that_its_sockets_are_gone() -> None:
    runtime = EnvironmentHost("memory")
    await runtime.start(params())
    process = await runtime.exec(ExecRequest(cmd=["sleep", "1000"]))
    shutil.rmtree(Path(process.stdio_addr).parent)
    health = await runtime.health()
    assert (health.status, health.message) == (
        "unhealthy",
        f"{Path(process.stdio_addr).parent} with the sockets is gone: start fastclaw anew",
    )
    await runtime.stop()


def awaited(task: asyncio.Task[None] | None) -> list[str]:
    """The coroutines of a task that waits, from the outermost on."""
    found, coroutine = [], None if task is None else task.get_coro()
    while inspect.iscoroutine(coroutine):
        found.append(coroutine.__qualname__)
        coroutine = coroutine.cr_await
    return found


@pytest.mark.parametrize("method", ["exec", "run"])
async def test_no_coroutine_is_between_the_dispatcher_and_the_pool(method: str, scripted: ScriptedSandboxes) -> None:
    runtime = EnvironmentHost("memory")
    scripted.works = True
    answers: asyncio.Queue[bytes] = asyncio.Queue()
    dispatcher = Dispatcher(lambda _: runtime, answers.put_nowait, runtime.stop)
    dispatcher.receive(b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"namespace":"n"}}\n')
    assert b'"result"' in await answers.get()
    scripted.lane.gate.clear()
    dispatcher.receive(b'{"jsonrpc":"2.0","id":2,"method":"%b","params":{"cmd":["x"]}}\n' % method.encode())
    await until(lambda: scripted.lane.starting == 1)
    (call,) = dispatcher._in_flight
    waiting = awaited(call.task)
    assert waiting[:2] == ["Dispatcher._answer", f"ProcessPool._{method}"]
    assert all(name.startswith(("ScriptedLane.", "Event.")) for name in waiting[2:])
    await dispatcher.aclose()
    await runtime.stop()


# --- many environments ---


@pytest.mark.parametrize("kind", ["memory", "local"])
async def test_each_has_its_own_processes_and_ids_are_unique(kind: str) -> None:
    async with running(kind) as runtime:
        first, second = await start(runtime), await start(runtime, "second")
        assert (first, second) == ("e1", "second")
        made = [await runtime.exec(ExecRequest(cmd=["sleep", "1000"], environment=name)) for name in (first, second)]
        ids = [process.process_id for process in made]
        listed = [[info.process_id for info in await runtime.list_processes(None, name)] for name in (first, second)]
        assert listed == [[ids[0]], [ids[1]]]
        assert [row.live for row in runtime.environment_list()] == [1, 1]
        await runtime.kill(ids[0], 0)
        assert (await runtime.wait(ids[0])).reason == "killed"
        await runtime.environment_stop(first)
        with pytest.raises(InvalidState) as gone:
            await runtime.wait(ids[0])
        assert gone.value.reason == "unknown_process"
        assert (await runtime.wait(ids[1], 0)).state == "running"
        assert names(runtime) == {"second": "running"}
        with pytest.raises(InvalidParams):
            await runtime.list_processes(ids[0], "second")


async def test_without_a_main_a_call_that_names_none_finds_none() -> None:
    async with running() as runtime:
        for call in (
            lambda: runtime.exec(ExecRequest(cmd=["true"])),
            lambda: runtime.run(RunRequest(cmd=["true"])),
            lambda: runtime.list_processes(),
            lambda: runtime.environment_stop("main"),
            lambda: runtime.environment_reset("main"),
            lambda: runtime.health("main"),
        ):
            with pytest.raises(InvalidState) as raised:
                await call()
            assert raised.value.reason == "unknown_environment"
        health = await runtime.health()
        assert (health.status, health.details["environments"]) == ("healthy", {})
        await start(runtime, "main")
        assert (await runtime.run(RunRequest(cmd=["true"]))).exit_code == 0


async def test_main_may_end_while_others_go_on() -> None:
    runtime = EnvironmentHost("memory")
    info = await runtime.start(params())
    assert (info.environment, info.lane, info.working_dir) == ("main", "memory", "/")  # type: ignore[attr-defined]
    other = await start(runtime)
    await runtime.environment_stop("main")
    assert (await runtime.run(RunRequest(cmd=["true"], environment=other))).exit_code == 0
    await runtime.stop()


async def test_a_name_is_taken_once(scripted: ScriptedSandboxes) -> None:
    scripted.works = True
    async with running() as runtime:
        await start(runtime, "e1")
        assert await start(runtime) == "e2"
        scripted.hangs = asyncio.Event()
        starting = asyncio.ensure_future(start(runtime, "late"))
        await turns()
        for name in ("e1", "late"):
            with pytest.raises(InvalidState) as raised:
                await start(runtime, name)
            assert raised.value.reason == "environment_exists"
        with pytest.raises(InvalidState) as busy:
            await runtime.exec(ExecRequest(cmd=["x"], environment="late"))
        assert busy.value.reason == "environment_busy"
        scripted.hangs.set()
        assert await starting == "late"


@pytest.mark.parametrize("after", [False, True])
async def test_a_token_answers_for_the_first_ones_environment(scripted: ScriptedSandboxes, after: bool) -> None:
    scripted.works, scripted.hangs = True, asyncio.Event()
    async with running() as runtime:
        both = [asyncio.ensure_future(start(runtime, token="t", memory_bytes=limits.MIB)) for _ in range(2)]
        await turns()
        if after:
            scripted.hangs.set()
            await asyncio.wait(both)
        with pytest.raises(InvalidParams) as raised:
            await start(runtime, token="t")
        assert raised.value.data["path"] == "$.token"
        scripted.hangs.set()
        assert [await one for one in both] == ["e1", "e1"]
        assert names(runtime) == {"e1": "running"}
        await runtime.environment_stop("e1")
        assert await start(runtime, token="t") == "e2"


async def test_of_two_with_a_token_the_one_that_is_cancelled_takes_nothing_from_the_other(
    scripted: ScriptedSandboxes,
) -> None:
    scripted.works, scripted.hangs = True, asyncio.Event()
    async with running() as runtime:
        first, second = (asyncio.ensure_future(start(runtime, token="t")) for _ in range(2))
        await turns()
        first.cancel()
        await turns()
        assert names(runtime) == {"e1": "starting"}
        second.cancel()
        await asyncio.wait((first, second))
        assert names(runtime) == {}
        assert scripted.undone == 1


async def test_a_stop_in_the_middle_of_its_start(scripted: ScriptedSandboxes) -> None:
    scripted.hangs = asyncio.Event()
    async with running() as runtime:
        starting = asyncio.ensure_future(start(runtime, "e"))
        await turns()
        await asyncio.gather(runtime.environment_stop("e"), runtime.environment_stop("e"))
        with pytest.raises(InvalidState) as raised:
            await starting
        assert raised.value.reason == "environment_stopped"
        assert (names(runtime), scripted.undone) == ({}, 1)


async def test_one_that_cannot_be_had_leaves_its_name_and_its_room(scripted: ScriptedSandboxes) -> None:
    async with running() as runtime:
        room = repr(runtime._room)
        with pytest.raises(StartFailed):
            await start(runtime, "e")
        assert (names(runtime), repr(runtime._room)) == ({}, room)
        scripted.works = True
        await start(runtime, "e")


async def test_its_lifetime_ends_it() -> None:
    async with running() as runtime:
        await start(runtime, "short", lifetime_ms=50)
        await start(runtime, "long")
        (short, long) = runtime.environment_list()
        assert short.ends_at is not None
        assert long.ends_at is None
        assert short.ends_at - short.started_at == pytest.approx(0.05, abs=0.04)
        waiting = await runtime.exec(ExecRequest(cmd=["sleep", "1000"], environment="short"))
        assert (await runtime.wait(waiting.process_id)).reason == "killed"
        await until(lambda: names(runtime) == {"long": "running"})


@pytest.mark.parametrize("kind", ["memory", "local"])
async def test_a_reset_ends_what_runs_and_what_it_wrote_is_a_gap(kind: str) -> None:
    async with running(kind) as runtime:
        name, other = await start(runtime), await start(runtime)
        witness = await runtime.exec(ExecRequest(cmd=["sleep", "1000"], environment=other))
        sleeper = await runtime.exec(ExecRequest(cmd=["sleep", "1000"], environment=name))
        writer = await runtime.exec(ExecRequest(cmd=["echo", "unread"], environment=name))
        ended = await runtime.wait(writer.process_id)
        assert ended.reason == "exited"
        answer = asyncio.ensure_future(runtime.run(RunRequest(cmd=["sleep", "1000"], environment=name)))
        await until(lambda: len(runtime.pool(name).table.live()) == 2)
        assert (await runtime.environment_reset(name)).environment == name
        assert (await runtime.wait(sleeper.process_id)).reason == "killed"
        assert (await answer).reason == "killed"
        assert (await runtime.wait(writer.process_id)).gap is True
        assert not os.path.exists(writer.stdio_addr)  # noqa: ASYNC240 - one stat
        assert (await runtime.run(RunRequest(cmd=["echo", "again"], environment=name))).stdout == "again\n"
        assert (await runtime.wait(witness.process_id, 0)).state == "running"


async def test_a_reset_that_gets_nothing_new_leaves_everything(scripted: ScriptedSandboxes) -> None:
    scripted.works = True
    async with running() as runtime:
        name = await start(runtime)
        scripted.works = False
        with pytest.raises(StartFailed):
            await runtime.environment_reset(name)
        assert (names(runtime), scripted.undone) == ({name: "running"}, 1)
        scripted.works, scripted.hangs = True, asyncio.Event()
        resetting = asyncio.ensure_future(runtime.environment_reset(name))
        await turns()
        with pytest.raises(InvalidState) as busy:
            await runtime.environment_reset(name)
        assert busy.value.reason == "environment_busy"
        await runtime.environment_stop(name)
        scripted.hangs.set()
        with pytest.raises(InvalidState) as stopped:
            await resetting
        assert stopped.value.reason == "environment_stopped"
    assert scripted.undone == 3


async def test_an_environment_takes_the_engine_from_initialize_and_nothing_that_is_inside() -> None:
    runtime = EnvironmentHost("local")
    info = await runtime.start(params(runtime="memory", env={"A": "1"}, user="nobody", workspace={"target": "/w"}))
    assert info.workspace_root == "/w"
    try:
        other = await runtime.environment_start(EnvironmentRequest())
        assert (other.lane, other.workspace_root, other.user) == ("memory", None, f"{os.geteuid()}:{os.getegid()}")
        ran = await runtime.run(RunRequest(cmd=["printenv", "A"], environment=other.environment))
        assert ran.stdout == ""
    finally:
        await runtime.stop()


async def test_the_host_bounds_the_processes_of_all_together() -> None:
    async with running() as runtime:
        names = [await start(runtime) for _ in range(3)]
        room = runtime._room
        assert room is not None
        room._processes = 2
        held = [await runtime.exec(ExecRequest(cmd=["sleep", "1000"], environment=name)) for name in names[:2]]
        waiting = [
            asyncio.ensure_future(runtime.exec(ExecRequest(cmd=["sleep", "1000"], environment=name)))
            for name in (names[0], names[0], names[2])
        ]
        await turns()
        assert not any(one.done() for one in waiting)
        await runtime.kill(held[1].process_id, 0)
        await until(waiting[0].done)
        await runtime.kill(held[0].process_id, 0)
        await until(waiting[2].done)  # its neighbour's second start comes after its first
        assert not waiting[1].done()
        await runtime.environment_stop(names[2])
        await asyncio.wait_for(waiting[1], 10)


# --- ready ones ---


async def test_a_start_that_fits_takes_a_ready_one_and_another_is_made_behind(scripted: ScriptedSandboxes) -> None:
    scripted.works = True
    async with running(pool=[{"size": 2, "pids_limit": 7}]) as runtime:
        await until(lambda: ready(runtime) == [(2, 0)])
        scripted.hangs = asyncio.Event()
        name = await start(runtime, pids_limit=7, lifetime_ms=60_000)  # nothing is made for it
        await turns()
        assert ready(runtime) == [(1, 1)]
        await runtime.environment_reset(name)
        assert (ready(runtime), scripted.undone) == ([(0, 2)], 1)
        other = asyncio.ensure_future(start(runtime, pids_limit=8))
        await turns()
        assert not other.done()
        scripted.hangs.set()
        await other
        await until(lambda: ready(runtime) == [(2, 0)])
        await runtime.pool_set([{"size": 1, "pids_limit": 7}])
        await until(lambda: scripted.undone == 2)
        await runtime.pool_set([])
        await until(lambda: scripted.undone == 3)
        assert ready(runtime) == []
    assert scripted.undone == 5


async def test_a_ready_one_that_has_died_or_is_not_fresh_is_not_taken(scripted: ScriptedSandboxes) -> None:
    scripted.works = True
    async with running(pool=[{"size": 2}]) as runtime:
        await until(lambda: ready(runtime) == [(2, 0)])
        assert runtime._ready is not None
        (kind,) = runtime._ready._kinds.values()
        dead, stale = kind.ready
        dead.is_alive = False  # type: ignore[misc]

        async def no() -> bool:
            return False

        stale.is_fresh = no  # type: ignore[method-assign]
        await start(runtime)
        await until(lambda: ready(runtime) == [(2, 0)])
        assert scripted.undone == 2


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        ({}, ".size"),
        ({"size": 1, "max_proceses": 1}, ".max_proceses"),
        ({"size": 1, "runtime": "memry"}, ".runtime"),
        ({"size": 1, "network": {"allow": ["a b"]}}, ".network.allow[0]"),
        ({"size": 1, "network": {"mode": "none", "allow": ["a"]}}, ".network.allow"),
        ({"size": 1, "capabilities": ["NO_SUCH"]}, ".capabilities"),
    ],
)
async def test_what_is_wrong_with_a_kind_is_told_where_it_is(kind: dict[str, object], place: str) -> None:
    good = {"size": 0}
    async with running() as runtime:
        with pytest.raises(InvalidParams) as raised:
            await runtime.pool_set([good, kind])
        assert raised.value.data["path"].startswith(f"$.pool[1]{place}")
        assert "$.options" not in str(raised.value)
    with pytest.raises(InvalidParams) as raised:
        await EnvironmentHost("memory").start(params(pool=[good, kind]))
    assert raised.value.data["path"].startswith(f"$.options.pool[1]{place}")


async def test_an_environment_that_has_ended_leaves_nothing_to_the_collector() -> None:
    """Which looks so seldom (`limits.GC_THRESHOLDS`) that 2 000 of them had left 35 MB."""
    async with running("local") as runtime:
        await one_life(runtime)
        gc.collect()
        gc.disable()
        try:
            for _ in range(3):
                await one_life(runtime)
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            ours = [one for one in gc.garbage if type(one).__module__.startswith("fastclaw.")]
            assert sorted({type(one).__name__ for one in ours}) == []
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()


async def one_life(runtime: EnvironmentHost) -> None:
    name = await start(runtime)
    await runtime.run(RunRequest(cmd=["true"], environment=name))
    await runtime.environment_stop(name)
