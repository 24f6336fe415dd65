"""The main job on a real Podman, from the supervisor's side: nothing lost, nothing mixed up, nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw.client import RemoteProcess, RuntimeClient
from fastclaw.engine.api import EngineLifecycle
from fastclaw.engine.container_spec import LABEL_NAMESPACE
from fastclaw.errors import ExecFailed, StartFailed
from fastclaw.linux import proc
from tests.pids import marked
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.engine.conftest import EngineService

pytestmark = [pytest.mark.podman, pytest.mark.timeout(300)]

SERVE = [sys.executable, "-m", "fastclaw", "serve", "--runtime", "podman"]
NAMESPACE = "acceptance"
CONTAINERS = 4
"""On the REST lane, where one starts some 40 execs in a second."""
EXECS = 1_000
SLOW_EXECS = 300
IN_FLIGHT = 64
BULK = 64 * 1024 * 1024


@asynccontextmanager
async def served(service: EngineService, lane: str = "spawn", **more: Any) -> AsyncIterator[RuntimeClient]:
    """A runtime on the shared engine; afterwards its containers must be gone."""
    places = {"rest": CONTAINERS, "spawn": 1}[lane]
    options = {"url": service.url, "image": service.image, "lane": lane, "containers": places, **more}
    async with RuntimeClient.spawn(SERVE, namespace=NAMESPACE, options=options) as client:
        yield client
    assert await containers(service.url) == []


@pytest.fixture(params=["spawn", "rest"])
async def runtime(engine_service: EngineService, request: pytest.FixtureRequest) -> AsyncIterator[RuntimeClient]:
    async with served(engine_service, request.param) as client:
        yield client


on_spawn = pytest.mark.parametrize("runtime", ["spawn"], indirect=True)
on_rest = pytest.mark.parametrize("runtime", ["rest"], indirect=True)


async def containers(url: str) -> list[str]:
    engine = EngineLifecycle(url)
    try:
        return [found.id for found in await engine.list_containers({LABEL_NAMESPACE: NAMESPACE})]
    finally:
        await engine.aclose()


async def shell(runtime: RuntimeClient, script: str, **request: Any) -> RemoteProcess:
    return await runtime.exec(["sh", "-c", script], **request)


@pytest.mark.promise("P-LOSSLESS", "R-CODE")
@pytest.mark.parametrize(("lane", "count"), [("spawn", EXECS), ("rest", SLOW_EXECS)])
async def test_of_hundreds_of_execs_none_has_a_wrong_byte_code_or_stream(
    engine_service: EngineService, lane: str, count: int
) -> None:
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def one(runtime: RuntimeClient, number: int) -> None:
        payload = f"{number}:{number * 7919 % 10007}"
        script = f'printf %s "{payload}"; printf %s "e{payload}" >&2; exit {number % 120}'
        async with gate, await shell(runtime, script, stdin=number % 2 == 0) as process:
            out, err = await process.communicate()
            record = await process.wait()
        assert (out, err) == (payload.encode(), b"e" + payload.encode())
        assert (record.exit_code, record.reason) == (number % 120, "exited")

    async with served(engine_service, lane) as client:
        await asyncio.gather(*(one(client, number) for number in range(count)))


@pytest.mark.promise("P-LOSSLESS")
async def test_bulk_goes_both_ways_unchanged(runtime: RuntimeClient) -> None:
    data = os.urandom(BULK)
    async with await runtime.exec(["cat"]) as process:
        out, err = await process.communicate(data)
        record = await process.wait()
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()
    assert (err, record.exit_code) == (b"", 0)


@on_rest
async def test_the_rest_lane_does_not_claim_to_end_streams_one_by_one(runtime: RuntimeClient) -> None:
    """Both outputs share one connection of the engine, which says nothing when one of them ends."""
    assert "separate_eof" not in runtime.capabilities


@pytest.mark.promise("K-ORPHANS", "P-EOF-OWN")
@on_spawn
async def test_on_the_spawn_lane_a_stream_ends_when_the_last_who_holds_it_is_gone(runtime: RuntimeClient) -> None:
    async with await shell(runtime, "sleep 1000 2>/dev/null & echo parent; echo error >&2") as process:
        record = await asyncio.wait_for(process.wait(), 20)
        assert record.exit_code == 0
        assert await process.stdout_read() == b"parent\n"
        ending = asyncio.ensure_future(process.communicate())
        await process.kill(0)
        assert await asyncio.wait_for(ending, 20) == (b"", b"error\n")
    assert not marked(process.id)


@on_rest
async def test_on_the_rest_lane_a_grandchild_that_keeps_stdout_does_not_hold_up_its_end(runtime: RuntimeClient) -> None:
    async with await shell(runtime, "sleep 1000 & echo parent") as process:
        record = await asyncio.wait_for(process.wait(), 20)
        out, _ = await asyncio.wait_for(process.communicate(), 20)
        assert (record.exit_code, out) == (0, b"parent\n")
        await process.kill(0)
    assert not marked(process.id)


async def test_a_reader_that_never_reads_holds_up_nobody_else(runtime: RuntimeClient) -> None:
    async with await shell(runtime, "cat /dev/zero", stdin=False) as stuck:
        await stuck.connect()
        for _ in range(4):
            async with await runtime.exec(["echo", "fine"], stdin=False) as process:
                assert (await asyncio.wait_for(process.communicate(), 20))[0] == b"fine\n"
        await asyncio.wait_for(stuck.kill(0), 20)
        assert (await stuck.wait()).reason == "killed"


@pytest.mark.promise("K-TREE")
async def test_kill_takes_a_tree_with_a_new_session_in_it(runtime: RuntimeClient) -> None:
    script = "trap '' TERM; setsid sh -c \"trap '' TERM; echo deep; sleep 1000\" & sleep 1000"
    async with await shell(runtime, script, stdin=False) as process:
        assert await process.stdout_read() == b"deep\n"
        await until(lambda: len(marked(process.id)) >= 2)
        await asyncio.wait_for(process.kill(100), 20)
        assert marked(process.id) == []
        assert (await process.wait()).reason == "killed"


@pytest.mark.parametrize(
    ("command", "request_", "reason"),
    [
        (["/etc"], {}, "permission_denied"),
        (["true"], {"env": {"BIG": "x" * 1024 * 1024}}, "too_long"),
    ],
)
async def test_what_cannot_start_says_why(
    runtime: RuntimeClient, command: list[str], request_: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ExecFailed) as caught:
        await runtime.exec(command, **request_)
    assert caught.value.reason == reason


async def test_an_image_that_is_not_there(engine_service: EngineService) -> None:
    with pytest.raises(StartFailed) as caught:
        async with served(engine_service, image="localhost/no-such-image:1", pull="never"):
            pass
    assert caught.value.reason == "image_not_found"


async def test_an_engine_that_is_not_there() -> None:
    with pytest.raises(StartFailed) as caught:
        async with RuntimeClient.spawn(SERVE, namespace=NAMESPACE, options={"url": "unix:///tmp/no-such.sock"}):
            pass
    assert caught.value.reason == "engine_unavailable"
    assert caught.value.retryable


@pytest.mark.promise("L-EOF")
async def test_eof_in_the_middle_of_many_execs_tears_everything_down(engine_service: EngineService) -> None:
    async with served(engine_service) as client:
        calls = [asyncio.ensure_future(client.exec(["sleep", "1000"], stdin=False)) for _ in range(EXECS)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        client.close_stdin()
        await asyncio.gather(*calls, return_exceptions=True)
        assert await client.exited(30) == 0


async def test_a_killed_owner_is_cleaned_up_after(engine_service: EngineService) -> None:
    options = {"url": engine_service.url, "image": engine_service.image}
    async with RuntimeClient.spawn(SERVE, namespace=NAMESPACE, options=options) as client:
        await client.exec(["sleep", "1000"], stdin=False)
        os.kill(client.pid, 9)
        assert await client.exited(10) == -9
    left = await containers(engine_service.url)
    assert left
    async with RuntimeClient.spawn(SERVE, namespace=NAMESPACE, options=options):
        assert not set(left) & set(await containers(engine_service.url))


async def test_all_containers_share_the_workspace(engine_service: EngineService) -> None:
    """Files elsewhere are each container's own; the workspace is where processes meet."""
    async with served(engine_service, "rest", workspace={"target": "/work"}) as client:
        assert client.welcome is not None
        assert client.welcome.workspace_root == "/work"
        async with await shell(client, "pwd > here", stdin=False) as writer:
            assert (await writer.wait()).exit_code == 0
        for _ in range(4):
            async with await shell(client, "cat here", stdin=False) as reader:
                assert (await reader.communicate())[0] == b"/work\n"
    engine = EngineLifecycle(engine_service.url)
    assert await engine.list_volumes({LABEL_NAMESPACE: NAMESPACE}) == []
    await engine.aclose()


async def test_an_open_network_works_or_says_what_it_needs(engine_service: EngineService) -> None:
    told = None
    try:
        async with (
            served(engine_service, network={"mode": "open"}) as client,
            await shell(client, "cat /proc/net/dev", stdin=False) as process,
        ):
            assert b"eth0" in (await process.communicate())[0]
    except StartFailed as refused:
        told = refused
    if told is not None:  # where there is no iptables it is up to netavark
        assert (told.reason, shutil.which("iptables")) == ("network_failed", None)
        assert "fastclaw doctor says what mode open needs" in str(told)
    assert await containers(engine_service.url) == []


async def test_a_private_engine_leaves_nothing_behind(short_dir: Path) -> None:
    """Processes, mounts, sockets and directories: all that a run may keep is the storage and its lock."""
    home = {"XDG_STATE_HOME": str(short_dir / "s"), "XDG_RUNTIME_DIR": str(short_dir / "r")}
    (short_dir / "r").mkdir(mode=0o700)
    networks = set(os.listdir("/sys/class/net"))
    async with RuntimeClient.spawn(SERVE, namespace=NAMESPACE, env={**os.environ, **home}) as client:
        for number in range(20):
            async with await shell(client, f"exit {number}", stdin=False) as process:
                assert (await process.wait()).exit_code == number
        await shell(client, "sleep 1000 & setsid sleep 1000", stdin=False)
        assert processes_of(short_dir)
    assert client.exit_code == 0
    assert processes_of(short_dir) == []
    assert mounts_below(short_dir) == []
    assert [path.name.partition("-")[0] for path in (short_dir / "r" / "fastclaw").iterdir()] == ["store"]
    assert list((short_dir / "r").glob("fastclaw-*")) == []
    assert set(os.listdir("/sys/class/net")) == networks


def mounts_below(directory: Path) -> list[str]:
    """Mount points of this mount namespace."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if str(directory) in line]


def processes_of(directory: Path) -> list[str]:
    """Command lines that name a directory: the engine's, its monitors'."""
    lines = []
    for pid in proc.pids():
        with contextlib.suppress(OSError):
            lines.append(Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace"))
    return [line for line in lines if str(directory) in line]
