"""Images and containers through podman-py: on the real engine, on none, and on one that never answers."""

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastclaw import engine_limits, limits
from fastclaw.engine.api import EngineLifecycle
from fastclaw.engine.base_image import GROUP, PASSWD
from fastclaw.engine.container_spec import InitPlan, container_spec
from fastclaw.errors import StartFailed
from fastclaw.linux.proc import start_time
from tests.engine.conftest import EngineService


@pytest.fixture
async def lifecycle(engine_service: EngineService) -> AsyncIterator[EngineLifecycle]:
    """On the shared service; containers of the namespace `lifecycle` are removed at the end."""
    one = EngineLifecycle(engine_service.url)
    yield one
    for container in await one.list_containers({"io.fastclaw.namespace": "lifecycle"}):
        await one.remove_container(container.id)
    await one.aclose()


@asynccontextmanager
async def asking(url: str, timeout_s: float = 0.2) -> AsyncIterator[EngineLifecycle]:
    """An engine that need not be one."""
    one = EngineLifecycle(url, timeout_s)
    try:
        yield one
    finally:
        await one.aclose()


@pytest.fixture
def silent(short_dir: Path) -> Iterator[str]:
    """The URL of an engine that accepts and never answers."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_dir / "e.sock"))
        listener.listen()
        yield f"unix://{short_dir}/e.sock"


def spec(engine: EngineService, number: int = 0, **changes: Any) -> dict[str, Any]:
    """A container of these tests."""
    given = {
        "image": engine.image,
        "name": f"lifecycle-{number}",
        "namespace": "lifecycle",
        "owner": "o",
        "number": number,
        "init": InitPlan(),
    }
    return container_spec(**{**given, **changes})


async def test_version(lifecycle: EngineLifecycle, engine_service: EngineService) -> None:
    version = await lifecycle.version()
    assert version.podman[0].isdigit()
    assert "conmon" in version.conmon
    assert version.oci_runtime == engine_service.plan.oci_runtime
    assert "version" in version.oci_runtime_version
    assert version.rootless is (os.geteuid() != 0)
    assert version.cgroup_version in ("v1", "v2")
    assert version.storage_driver == (engine_service.plan.storage_driver or version.storage_driver)
    assert version.storage.startswith(str(engine_service.state_dir))


async def test_files_of_an_image_are_read_without_running_it(
    lifecycle: EngineLifecycle, engine_service: EngineService
) -> None:
    paths = ["/etc/passwd", "/etc/group", "/etc", "/no/such"]
    image = await lifecycle.ensure_image(engine_service.image)
    assert await lifecycle.image_files(image, spec(engine_service), paths) == [PASSWD, GROUP, "", ""]
    with pytest.raises(StartFailed):
        await lifecycle.image_files(msgspec.structs.replace(image, id="0" * 64), spec(engine_service), paths)
    assert await lifecycle.list_containers({"io.fastclaw.namespace": "lifecycle"}) == []


async def test_a_container_from_create_to_remove(lifecycle: EngineLifecycle, engine_service: EngineService) -> None:
    created = await lifecycle.create_container(spec(engine_service, 3))
    state = await lifecycle.inspect_container(created)
    assert state is not None
    assert (state.running, state.pid) == (False, 0)
    await lifecycle.start_container(created)
    await lifecycle.start_container(created)
    state = await lifecycle.inspect_container(created)
    assert state is not None
    assert state.running
    assert state.pid > 0
    [listed] = await lifecycle.list_containers({"io.fastclaw.namespace": "lifecycle", "io.fastclaw.owner": "o"})
    assert (listed.id, listed.state) == (created, "running")
    assert listed.labels["io.fastclaw.shard"] == "3"
    assert await lifecycle.list_containers({"io.fastclaw.namespace": "other"}) == []
    await lifecycle.remove_container("lifecycle-3")
    assert await lifecycle.inspect_container(created) is None
    assert start_time(state.pid) is None
    await lifecycle.remove_container(created)


async def test_several_at_once(lifecycle: EngineLifecycle, engine_service: EngineService) -> None:
    async def one(number: int) -> str:
        created = await lifecycle.create_container(spec(engine_service, number))
        await lifecycle.start_container(created)
        return created

    created = await asyncio.gather(*(one(number) for number in range(4)))
    listed = await lifecycle.list_containers({"io.fastclaw.namespace": "lifecycle"})
    assert {container.id for container in listed} == set(created)
    await asyncio.gather(*(lifecycle.remove_container(container) for container in created))
    assert await lifecycle.list_containers({"io.fastclaw.namespace": "lifecycle"}) == []


@pytest.mark.parametrize(
    ("changes", "reason", "says"),
    [
        ({"image": "localhost/none:latest"}, "image_not_found", "options.pull"),
        ({"workspace": ("/nonexistent/x", "/w")}, "bad_mount", "options.workspace"),
        ({"oci_runtime": "no-such-runtime"}, "engine_error", "no-such-runtime"),
    ],
)
async def test_a_container_that_cannot_be_had(
    lifecycle: EngineLifecycle, engine_service: EngineService, changes: dict[str, Any], reason: str, says: str
) -> None:
    with pytest.raises(StartFailed) as caught:
        await lifecycle.start_container(await lifecycle.create_container(spec(engine_service, **changes)))
    assert caught.value.reason == reason
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


class Gate:
    """Stands before the real engine and holds its answers back until `open` is set."""

    def __init__(self, url: str) -> None:
        self._upstream = url.removeprefix("unix://")
        self.answered, self.open = asyncio.Event(), asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        up_reader, up_writer = await asyncio.open_unix_connection(self._upstream)
        requests = asyncio.create_task(self._copy(reader, up_writer))
        try:
            first = await up_reader.read(limits.READ_CHUNK_BYTES)
            self.answered.set()
            await self.open.wait()
            writer.write(first)
            await self._copy(up_reader, writer)
        finally:
            requests.cancel()
            up_writer.close()
            writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(limits.READ_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


async def test_a_container_nobody_waits_for_is_removed(
    lifecycle: EngineLifecycle, engine_service: EngineService, short_dir: Path
) -> None:
    gate = Gate(engine_service.url)
    server = await asyncio.start_unix_server(gate, short_dir / "g.sock")
    gated = EngineLifecycle(f"unix://{short_dir}/g.sock")
    task = asyncio.create_task(gated.create_container(spec(engine_service)))
    async with asyncio.timeout(20):
        await gate.answered.wait()
        [created] = await lifecycle.list_containers({"io.fastclaw.namespace": "lifecycle"})
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open.set()
        while await lifecycle.inspect_container(created.id) is not None:
            assert task.done()
    await gated.aclose()
    server.close()


async def test_a_container_that_is_gone(lifecycle: EngineLifecycle) -> None:
    assert await lifecycle.inspect_container("no-such-container") is None
    await lifecycle.remove_container("no-such-container")
    with pytest.raises(StartFailed) as caught:
        await lifecycle.start_container("no-such-container")
    assert caught.value.reason == "container_gone"


async def test_pull_policies(lifecycle: EngineLifecycle, engine_service: EngineService) -> None:
    for policy in ("missing", "never", "always"):
        await lifecycle.ensure_image(engine_service.image, policy)
    with pytest.raises(StartFailed, match=r"options\.pull is never") as caught:
        await lifecycle.ensure_image("localhost/none:latest", "never")
    assert caught.value.reason == "image_not_found"


@pytest.mark.usefixtures("programs")
async def test_an_image_that_cannot_be_made_is_pulled(
    lifecycle: EngineLifecycle, engine_service: EngineService
) -> None:
    made = "localhost/fastclaw-test-made:1"
    await lifecycle.make_image(made, fallback=engine_service.image)
    assert await lifecycle.image(made) is not None
    # Nothing listens at port 1 of this host; the engine answers 200 and tells of it in the body.
    with pytest.raises(
        StartFailed, match=r"set options\.image; cannot pull localhost:1/none.*options\.storage"
    ) as caught:
        await lifecycle.make_image(made, fallback="localhost:1/none:latest")
    assert caught.value.reason == "image_not_found"
    assert "\n" not in str(caught.value)


async def test_what_takes_long_is_told(
    silent: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine_limits, "TELL_FIRST_S", 0.05)
    monkeypatch.setattr(engine_limits, "TELL_AGAIN_S", 0.05)
    async with asking(silent) as engine:
        with pytest.raises(StartFailed):
            await engine.make_image("localhost/x:1")
    told = [record.getMessage() for record in caplog.records]
    assert len(told) >= 2
    assert all(text.startswith("making the image localhost/x:1: ") for text in told)


async def test_no_engine_at_all(short_dir: Path) -> None:
    async with asking(f"unix://{short_dir}/none.sock") as engine:
        assert repr(engine) == f"<EngineLifecycle unix://{short_dir}/none.sock, 0 threads>"
        with pytest.raises(StartFailed, match=r"no engine answers at unix:.*No such file") as caught:
            await engine.version()
    assert (caught.value.reason, caught.value.retryable) == ("engine_unavailable", True)


async def test_an_engine_that_never_answers(silent: str) -> None:
    async with asking(silent) as engine:
        with pytest.raises(StartFailed, match=r"did not answer within 0\.2 s") as caught:
            await engine.create_container({})
    assert caught.value.reason == "engine_timeout"
    for thread in threading.enumerate():
        if thread.name.startswith("fastclaw-engine"):
            thread.join(5)
            assert not thread.is_alive()


async def test_more_hanging_calls_than_threads(silent: str) -> None:
    """Those that get no thread in time answer as well."""
    async with asking(silent) as engine:
        calls = [engine.inspect_container(str(number)) for number in range(3 * engine_limits.ENGINE_READS)]
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert {result.reason for result in results if isinstance(result, StartFailed)} == {"engine_timeout"}
    assert all(isinstance(result, StartFailed) for result in results)


async def test_an_engine_that_talks_nonsense(short_dir: Path) -> None:
    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]")
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(nonsense, short_dir / "e.sock")
    async with asking(f"unix://{short_dir}/e.sock", 5) as engine:
        with pytest.raises(StartFailed, match="no sense") as caught:
            await engine.version()
    server.close()
    assert caught.value.reason == "engine_error"


async def test_nothing_reaches_stdout(
    lifecycle: EngineLifecycle, short_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    await lifecycle.version()
    await lifecycle.remove_container("no-such-container")
    async with asking(f"unix://{short_dir}/none.sock") as nowhere:
        with pytest.raises(StartFailed):
            await nowhere.version()
    assert capfd.readouterr().out == ""
