"""Many environments in one process, over a real engine: apart from each other, clean after a reset, gone in the end."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
import tarfile
import time
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

import pytest

from fastclaw.client import RuntimeClient
from fastclaw.engine.api import EngineLifecycle
from fastclaw.engine.base_image import default_archive, make_image
from fastclaw.engine.container_spec import LABEL_NAMESPACE
from fastclaw.engine.service.facts import host_facts
from fastclaw.engine.service.plan import DEFAULT_IMAGE, plan_service
from fastclaw.engine.service.service import ManagedService, answers_ping
from fastclaw.engine.service.storage import default_run_dir
from fastclaw.errors import InvalidState, StartFailed
from fastclaw.linux import proc
from fastclaw.runtime import EnvironmentInfo, EnvironmentRequest, ExecRequest, InitializeParams, RunRequest
from fastclaw.runtimes.host import EnvironmentHost
from fastclaw.runtimes.podman import PodmanSandboxes
from tests.acceptance.homes import LAYERS, NAME
from tests.acceptance.hostile import need_root_for
from tests.acceptance.leftovers import TOKEN, end_programs, programs
from tests.balance import balanced, children
from tests.network.egress.rig import Origin, listening
from tests.pids import command_line, descendants_of
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from podman.api.client import APIClient

    from fastclaw.engine.engines import Engine
    from tests.engine_fixtures import EngineService

NAMESPACE = "envstest"
MANY = 20


@pytest.fixture
async def engine(engine_service: EngineService) -> AsyncIterator[EngineLifecycle]:
    """The tests' engine: of these tests it has neither a container nor a volume afterwards."""
    one = EngineLifecycle(engine_service.url)
    try:
        yield one
        assert await one.list_containers({LABEL_NAMESPACE: NAMESPACE}) == []
        assert await one.list_volumes({LABEL_NAMESPACE: NAMESPACE}) == []
        assert programs() == []
    finally:
        end_programs()
        await one.aclose()


@pytest.fixture(params=["spawn", "rest"])
def lane(request: pytest.FixtureRequest) -> str:
    """Of the environments of a test."""
    return str(request.param)


@asynccontextmanager
async def running(engine: EngineLifecycle, **options: Any) -> AsyncIterator[EnvironmentHost]:
    """A host without `main`, which leaves nothing in this process."""
    async with balanced():
        host = EnvironmentHost("podman")
        given = {"url": engine.url, "environment": False, **options}
        await host.start(InitializeParams(namespace=NAMESPACE, options=given))
        try:
            yield host
        finally:
            await host.stop()


async def start(host: EnvironmentHost, **options: Any) -> EnvironmentInfo:
    return await host.environment_start(EnvironmentRequest(options=options))


async def sh(host: EnvironmentHost, environment: EnvironmentInfo, script: str, **request: Any) -> str:
    """What a shell script writes, both streams together."""
    asked = RunRequest(
        cmd=["sh", "-c", script], environment=environment.environment, merge_stderr=True, orphans="keep", **request
    )
    return (await host.run(asked)).stdout or ""


async def test_many_at_once(engine: EngineLifecycle) -> None:
    async with running(engine, lane="spawn") as host:
        made = await asyncio.gather(*(start(host) for _ in range(MANY)))
        said = await asyncio.gather(*(sh(host, one, "echo $$ > /tmp/mine; cat /tmp/mine") for one in made))
        assert len({one.container for one in made}) == len({one.environment for one in made}) == MANY
        assert all(text.strip().isdecimal() for text in said)
        assert {row.live for row in host.environment_list()} == {0}
        health = await host.health()
        assert health.details["environments"] == {"running": MANY}


async def test_an_image_that_is_not_there_among_many_that_are(engine: EngineLifecycle) -> None:
    async with running(engine) as host:
        wanted = [{} if number else {"image": "localhost/not-there:1", "pull": "never"} for number in range(MANY)]
        missing, *others = await asyncio.gather(*(start(host, **one) for one in wanted), return_exceptions=True)
        assert isinstance(missing, StartFailed)
        assert missing.reason == "image_not_found"
        assert [one for one in others if isinstance(one, BaseException)] == []
        assert len(host.environment_list()) == MANY - 1


async def test_two_share_nothing_that_either_can_see(engine: EngineLifecycle, lane: str) -> None:
    async with running(engine, lane=lane) as host:
        one, two = await asyncio.gather(*(start(host, workspace={"target": "/w"}) for _ in range(2)))
        for place in ("/tmp", "/dev/shm", "/w", "/run"):
            assert await sh(host, one, f"echo secret > {place}/x && cat {place}/x") == "secret\n"
            assert "No such file" in await sh(host, two, f"cat {place}/x")
        await sh(host, one, "echo 192.0.2.1 other >> /etc/hosts")
        assert "other" not in await sh(host, two, "cat /etc/hosts")
        for kind in ("pid", "net", "ipc", "uts", "mnt"):
            assert await sh(host, one, f"readlink /proc/self/ns/{kind}") != await sh(
                host, two, f"readlink /proc/self/ns/{kind}"
            )
        sleeper = await host.exec(ExecRequest(cmd=["sh", "-c", f"sleep 300; : {TOKEN}"], environment=one.environment))
        assert TOKEN in await sh(host, one, "cat /proc/[0-9]*/cmdline")
        assert TOKEN not in (await sh(host, two, "cat /proc/[0-9]*/cmdline")).replace(f"cat {TOKEN}", "")
        await host.environment_stop(one.environment)
        with pytest.raises(InvalidState):
            await host.wait(sleeper.process_id)
        assert programs() == []
        assert await sh(host, two, "echo on") == "on\n"


async def test_root_inside_is_another_id_in_each(engine: EngineLifecycle) -> None:
    need_root_for("private")
    async with running(engine, lane="spawn") as host:
        one, two = await asyncio.gather(*(start(host) for _ in range(2)))
        maps = [await sh(host, each, "cat /proc/self/uid_map") for each in (one, two)]
        assert maps[0] != maps[1]


PLACES = ("", "/tmp", "/dev/shm", "/run", "/usr")


@pytest.mark.parametrize("is_hosts", [False, True])
async def test_a_reset_brings_back_the_state_of_the_image(
    engine: EngineLifecycle, lane: str, tmp_path: Path, is_hosts: bool
) -> None:
    """Where the workspace is a directory of the host, that is untouched."""
    workspace = {"target": "/w", **({"source": str(tmp_path)} if is_hosts else {})}
    async with running(engine, lane=lane) as host:
        box = await start(host, workspace=workspace, user="0")
        marks = [f"{place}/mark" for place in (*PLACES, "/w")]
        assert await sh(host, box, f"for m in {' '.join(marks)}; do echo x > $m; done") == ""
        await sh(host, box, f"(setsid sh -c 'sleep 300; : {TOKEN}' > /dev/null 2>&1 &); echo 192.0.2.1 x >> /etc/hosts")
        held = await host.exec(ExecRequest(cmd=["sleep", "300"], environment=box.environment))
        written = await host.exec(ExecRequest(cmd=["echo", "unread"], environment=box.environment))
        assert (await host.wait(written.process_id)).reason == "exited"
        answer = asyncio.ensure_future(host.run(RunRequest(cmd=["sleep", "300"], environment=box.environment)))
        await until(lambda: host.environment_list()[0].live == 2)
        again = await host.environment_reset(box.environment)
        assert programs() == []
        assert (await host.wait(held.process_id)).reason == (await answer).reason == "killed"
        assert (await host.wait(written.process_id)).gap is True
        assert again.container != box.container
        left = await sh(host, box, f"ls {' '.join(marks)} 2>/dev/null; grep 192 /etc/hosts")
        assert left == ("/w/mark\n" if is_hosts else "")
        assert not os.path.exists(held.stdio_addr)  # noqa: ASYNC240 - one stat


def egress_proxies() -> list[int]:
    """Those that are our children."""
    return [pid for pid in children() if b"egress.proxy_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def test_one_egress_proxy_serves_all_of_them_each_by_its_own_rules(engine: EngineLifecycle) -> None:
    origin = Origin()
    await origin.start(listening())
    target = f"host.fastclaw.internal:{origin.port}"
    fetch = f"wget -qO- http://{target}/any"
    try:
        async with running(engine, lane="spawn") as host:
            one, two, refused = await asyncio.gather(
                *(start(host, network={"allow": allow}) for allow in ([target], [target], ["a.test"]))
            )
            for environment in (one, two):
                assert "GET /any" in await sh(host, environment, fetch)
            assert "403" in await sh(host, refused, fetch)
            assert len(egress_proxies()) == 1
            await host.environment_stop(one.environment)
            assert "GET /any" in await sh(host, two, fetch)
    finally:
        await origin.aclose()


async def test_the_end_of_one_holds_up_no_other(engine: EngineLifecycle) -> None:
    async with running(engine, lane="spawn") as host:
        stubborn = await start(host, kill_grace_ms=4_000)
        process = await host.exec(
            ExecRequest(cmd=["sh", "-c", "trap '' TERM; echo; sleep 300"], environment=stubborn.environment)
        )
        await until(lambda: is_waiting(host, process.process_id))
        stopping = asyncio.ensure_future(host.environment_stop(stubborn.environment))
        began = time.monotonic()
        other = await start(host)
        assert await sh(host, other, "echo on") == "on\n"
        await host.environment_stop(other.environment)
        assert not stopping.done(), f"the others took {time.monotonic() - began:.1f} s"
        host.hasten()
        await stopping


async def is_waiting(host: EnvironmentHost, process_id: str) -> bool:
    """Whether the process has said something that nobody has read."""
    return (await host.wait(process_id, 0)).state == "running"


@pytest.mark.parametrize("managed", [False, True])
async def test_where_fastclaw_is_killed_all_of_them_end(
    engine: EngineLifecycle, managed: bool, short_dir: Path
) -> None:
    where = {"state_dir": str(short_dir / "s")} if managed else {"url": engine.url}
    command = [sys.executable, "-m", "fastclaw", "serve", "--log-level", "error", "--runtime", "podman"]
    options = {"environment": False, **where}
    async with RuntimeClient.spawn(command, namespace=NAMESPACE, options=options) as client:
        boxes = await asyncio.gather(*(client.environment_start() for _ in range(4)))
        for box in boxes:
            await box.exec(["sh", "-c", f"sleep 300; : {TOKEN}"])
        await until(lambda: len(programs()) == len(boxes))
        os.kill(client.pid, signal.SIGKILL)
        await until(lambda: programs() == [])
    options = {**options, "environment": True}  # which removes what is left of the dead
    async with RuntimeClient.spawn(command, namespace=NAMESPACE, options=options) as client:
        assert (await client.run(["true"])).exit_code == 0


async def test_a_ready_one_of_an_image_that_has_another_content_now_is_not_taken(engine: EngineLifecycle) -> None:
    name = "localhost/envs-retagged:1"
    await retag(engine, DEFAULT_IMAGE, name)
    try:
        async with running(engine, pool=[{"size": 1, "image": name}]) as host:
            await until(lambda: ready(host) == 1)
            taken = await start(host, image=name)
            await until(lambda: ready(host) == 1)
            assert host._ready is not None
            ((stale,),) = (kind.ready for kind in host._ready._kinds.values())
            assert await stale.is_fresh()
            await retag(engine, await another_image(engine), name)
            assert not await stale.is_fresh()
            fresh = await start(host, image=name)
            assert await sh(host, fresh, "cat /another") == "yes\n"
            assert "No such file" in await sh(host, taken, "cat /another")
    finally:
        for image in (name, ANOTHER):
            await engine.fetch(partial(remove_image, image))


ANOTHER = "localhost/envs-another:1"


async def another_image(engine: EngineLifecycle) -> str:
    """One that has a file more than the default image."""
    archive = default_archive()
    data = io.BytesIO(archive)
    with tarfile.open(fileobj=data, mode="a") as tar:
        info = tarfile.TarInfo("another")
        info.size = len(b"yes\n")
        tar.addfile(info, io.BytesIO(b"yes\n"))
    await engine.fetch(lambda client: make_image(client, ANOTHER, data.getvalue()))
    return ANOTHER


async def retag(engine: EngineLifecycle, image: str, name: str) -> None:
    repo, _, tag = name.rpartition(":")
    path = f"/images/{quote_plus(image)}/tag"
    await engine.fetch(lambda client: client.post(path, params={"repo": repo, "tag": tag}).raise_for_status())


def remove_image(image: str, client: APIClient) -> None:
    client.delete(f"/images/{quote_plus(image)}")


def ready(host: EnvironmentHost) -> int:
    assert host._ready is not None
    (kind,) = host._ready.health()["kinds"]
    return int(kind["ready"])


@pytest.mark.podman
@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_an_engine_that_hangs_or_dies_in_the_middle_of_many_starts(short_dir: Path, how: str) -> None:
    """Each start is up or refused in a line and in time; the next one is up; nothing is left."""
    options = {"state_dir": str(short_dir / "s"), "engine_timeout_ms": 4_000, "environment": False}
    await answers_ping(str(short_dir / "none"))  # the first stream of a loop takes a descriptor for good (libuv)
    async with balanced():
        host = EnvironmentHost("podman")
        await host.start(InitializeParams(namespace=NAMESPACE, options=options))
        try:
            first = await start(host, clone="never")
            engine = engine_of(host)
            assert engine.service is not None
            starting = [asyncio.ensure_future(start(host, clone="never")) for _ in range(MANY)]
            await until(lambda: engine.lifecycle.health()["waiting"] > MANY // 2)
            await until(lambda: engine.lifecycle.health()["waiting"] <= MANY // 2)
            pid = engine.service.pid
            assert pid is not None
            whole = [pid, *descendants_of(pid)]  # a rootless one may serve in a child
            signal_all(whole, signal.SIGSTOP if how == "stopped" else signal.SIGKILL)
            done, late = await asyncio.wait(starting, timeout=30)
            if how == "stopped":
                signal_all(whole, signal.SIGCONT)
            assert not late
            failures = [one.exception() for one in done if one.exception() is not None]
            assert {type(error) for error in failures} == {StartFailed}
            reason = "engine_timeout" if how == "stopped" else "engine_unavailable"
            assert {error.reason for error in failures if isinstance(error, StartFailed)} == {reason}
            assert not any("\n" in str(error) for error in failures)
            assert await sh(host, first, "echo on") == "on\n"  # those that are up do not need an engine
            await until(lambda: comes_up(host))
            assert len(host.environment_list()) == MANY - len(failures) + 2
            assert {row.lane for row in host.environment_list()} == {"spawn"}
            await host.environment_stop(first.environment)
            assert (engine.service.pid == pid) == (how == "stopped")
            assert engine.trouble is None
        finally:
            await host.stop()
        async with a_service(short_dir) as lifecycle:
            assert await lifecycle.list_containers({LABEL_NAMESPACE: NAMESPACE}) == []
    assert [row for row in map(command_line, proc.pids()) if str(short_dir).encode() in row] == []
    assert len(layers(short_dir)) == 1  # the image's


def signal_all(pids: list[int], signum: signal.Signals) -> None:
    """Those that are still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signum)


@asynccontextmanager
async def a_service(base: Path) -> AsyncIterator[EngineLifecycle]:
    """One of its own on the storage that a host has used."""
    service = ManagedService(plan_service(host_facts(base / "s")), base / "s", default_run_dir())
    await service.start()
    lifecycle = EngineLifecycle(service.url)
    try:
        yield lifecycle
    finally:
        await lifecycle.aclose()
        await service.aclose()


def layers(base: Path) -> list[Path]:
    """What a private engine has in its storage."""
    return [path for folder in LAYERS for path in base.glob(f"s/*/storage/{folder}/{NAME}")]


def engine_of(host: EnvironmentHost) -> Engine:
    """The one that it is connected to."""
    factory = host._factories["podman"]
    assert isinstance(factory, PodmanSandboxes)
    (start,) = factory.engines._starts.values()
    return start.result()


async def comes_up(host: EnvironmentHost) -> bool:
    """Whether one more does."""
    try:
        await start(host, clone="never")
    except StartFailed:
        return False
    return True
