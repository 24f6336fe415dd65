"""Images over the wire and an engine of our own: fetched, built and loaded, then started, cloned and kept ready."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from podman import PodmanClient

from fastclaw.client import Progress, RuntimeClient
from fastclaw.conformance.rig import bearers
from fastclaw.errors import IoError, RequestCancelled, StartFailed
from fastclaw.linux.cgroups import CGROUPS
from tests.engine_fixtures import remove_tree
from tests.registry import Registry, serving
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from fastclaw.client import Environment
    from tests.engine_fixtures import EngineService

pytestmark = [pytest.mark.podman, pytest.mark.timeout(180)]

SERVE = [sys.executable, "-m", "fastclaw", "serve", "--runtime", "podman", "--log-level", "error"]


@pytest.fixture(scope="module")
def archive(engine_service: EngineService) -> bytes:
    """The default image as an oci-archive."""
    with PodmanClient(base_url=engine_service.url) as client:
        response = client.api.get(f"/images/{engine_service.image}/get", params={"format": "oci-archive"})
        response.raise_for_status()
        return bytes(response.content)


@pytest.fixture
def registry(archive: bytes) -> Iterator[Registry]:
    """With that image in it."""
    with serving(archive) as one:
        yield one


PODMANS_OWN = "intermediate-mountpoint-"
"""An empty directory for each user that Podman 5 keeps in TMPDIR (libpod/container_internal_common.go, 5.4)."""


@asynccontextmanager
async def running(directory: Path, registry: Registry | None = None, **options: Any) -> AsyncIterator[RuntimeClient]:
    """With an engine of its own in a directory, which keeps what it unpacks or receives in another."""
    conf, temporary = directory / "registries.conf", directory / "t"
    conf.write_text("" if registry is None else registry.conf())
    temporary.mkdir(exist_ok=True)
    os.chmod(directory, 0o711)  # Podman 5 has places in TMPDIR that root of a user namespace must get to
    env = {**os.environ, "CONTAINERS_REGISTRIES_CONF": str(conf), "TMPDIR": str(temporary)}
    given = {"state_dir": str(directory / "s"), "environment": False, **options}
    async with RuntimeClient.spawn(SERVE, namespace="imagecalls", options=given, env=env) as client:
        yield client
        if client.exit_code is None:
            await until(lambda: not [name for name in os.listdir(temporary) if not name.startswith(PODMANS_OWN)])


async def base(client: RuntimeClient) -> str:
    """The default image, which the first environment has made."""
    async with await client.environment_start() as box:
        assert box.info.image is not None
        return box.info.image


def context(directory: Path, *lines: str) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "Containerfile").write_text("".join(f"{line}\n" for line in lines))
    return directory


async def said(box: Environment) -> str:
    """What the image has said into itself."""
    return (await box.read_file("/said")).decode()


async def test_what_is_built_is_started_cloned_and_kept_ready_and_its_name_follows_the_next_build(
    short_dir: Path,
) -> None:
    async with running(short_dir) as client:
        first = await base(client)
        directory = context(short_dir / "c", f"FROM {first}", "RUN echo one > /said")
        unnamed = await client.image_build(directory)
        assert unnamed.image == unnamed.id
        named = await client.image_build(directory, tag="said:1")
        assert (named.image, named.id) == ("said:1", (await client.image_pull("said:1")).id)
        for image in (unnamed.image, "said:1"):
            boxes = [await client.environment_start(image=image) for _ in range(2)]
            assert [await said(box) for box in boxes] == ["one\n", "one\n"]
            made_by = "clone" if os.geteuid() == 0 else "engine"
            assert boxes[1].info.made_by == made_by, boxes[1].info.why_no_clone
            await boxes[0].run(["rm", "/said"])
            await boxes[0].reset()
            assert await said(boxes[0]) == "one\n"
            for box in boxes:
                await box.aclose()
        await client.pool_set([{"size": 1, "image": "said:1"}, {"size": 1, "image": unnamed.image}])
        await until(lambda: ready(client))
        context(directory, f"FROM {first}", "RUN echo two > /said")
        await client.image_build(directory, tag="said:1")
        for image, text in (("said:1", "two\n"), (unnamed.image, "one\n")):
            async with await client.environment_start(image=image) as box:
                assert await said(box) == text
    async with running(short_dir) as client, await client.environment_start(image="said:1", pull="never") as box:
        assert await said(box) == "two\n"


async def ready(client: RuntimeClient) -> bool:
    kinds = (await client.health()).details["pool"]["kinds"]
    return len(kinds) == 2 and all(kind["ready"] == kind["size"] for kind in kinds)


class Heard:
    """What was told."""

    def __init__(self) -> None:
        self.all: list[Progress] = []

    def __call__(self, told: Progress) -> None:
        self.all.append(told)

    @property
    def lines(self) -> list[str]:
        return "".join(told.text for told in self.all).splitlines()


async def test_a_pull_is_told_to_all_who_wait_for_it(short_dir: Path, registry: Registry) -> None:
    async with running(short_dir, registry) as client:
        registry.gate.clear()
        heard = [Heard() for _ in range(3)]
        pulling = asyncio.create_task(client.image_pull(registry.image, on_progress=heard[0]))
        starting = [
            asyncio.create_task(client.environment_start(image=registry.image, on_progress=one)) for one in heard[1:]
        ]
        await until(lambda: registry.pulls)
        registry.gate.set()
        pulled, boxes = await pulling, [await one for one in starting]
        assert registry.pulls == 1
        for one in heard:
            assert [line for line in one.lines if line.startswith("Copying")]
        assert pulled.image == registry.image
        for box in boxes:
            assert (await box.run(["true"])).exit_code == 0
        assert (await client.image_pull(registry.image)).id == pulled.id
        assert registry.pulls == 1
        assert (await client.image_pull(registry.image, pull="always")).id == pulled.id
        assert registry.pulls == 2
        directory = context(short_dir / "c", f"FROM {registry.address}/made/other:1", "USER 3")
        built = Heard()
        await client.image_build(directory, on_progress=built)
        assert [line for line in built.lines if line.startswith("Trying to pull")]


async def test_a_pull_that_is_taken_back_leaves_nothing(short_dir: Path, registry: Registry) -> None:
    async with running(short_dir, registry) as client:
        registry.gate.clear()
        pulling = asyncio.create_task(client.call("image_pull", {"image": registry.image}))
        await until(lambda: registry.pulls)
        async with asyncio.timeout(10):
            await client.call("cancel", {"id": 2})
        with pytest.raises(RequestCancelled):
            await pulling
        registry.gate.set()
        with pytest.raises(StartFailed, match="never"):
            await client.environment_start(image=registry.image, pull="never")


async def test_an_image_that_is_not_there_is_told_of_and_then_refused(short_dir: Path, registry: Registry) -> None:
    heard = Heard()
    async with running(short_dir, registry) as client:
        with pytest.raises(StartFailed) as raised:
            await client.image_pull("127.0.0.1:1/none:1", on_progress=heard)
        assert raised.value.reason == "image_not_found"
        assert heard.lines[0].startswith("Trying to pull 127.0.0.1:1/none:1")
        with pytest.raises(IoError) as refused:
            await client.image_build(short_dir / "none")
        assert (refused.value.reason, refused.value.data["path"]) == ("not_found", str(short_dir / "none"))


async def test_who_listens_badly_breaks_nothing(short_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    def listen(told: Progress) -> None:
        raise ZeroDivisionError

    async with running(short_dir) as client:
        directory = context(short_dir / "c", f"FROM {await base(client)}", "RUN echo x > /said")
        async with await client.environment_start(
            image=(await client.image_build(directory, on_progress=listen)).image
        ) as box:
            assert await said(box) == "x\n"
    assert any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("method", ["image_build", "image_load"])
async def test_nothing_stays_of_what_is_taken_back_while_it_is_sent(short_dir: Path, method: str) -> None:
    """Of a build's body that breaks off Podman 4.3.1 would keep what it has got."""
    with (context(short_dir / "c", "FROM scratch", "COPY . /") / "large").open("wb") as file:
        file.truncate(2**30)
    is_sent = asyncio.Event()
    async with running(short_dir) as client:
        where = {"image_build": short_dir / "c", "image_load": short_dir / "c/large"}[method]
        calling = asyncio.create_task(getattr(client, method)(where, on_progress=lambda told: is_sent.set()))
        await is_sent.wait()
        calling.cancel()
        await asyncio.wait((calling,))
        assert calling.cancelled()


async def test_an_archive_comes_as_it_went(short_dir: Path, archive: bytes) -> None:
    (short_dir / "archive").write_bytes(archive)
    heard = Heard()
    async with running(short_dir) as client:
        loaded = await client.image_load(short_dir / "archive", on_progress=heard)
        assert heard.all[-1].done == heard.all[-1].total == len(archive)
        async with await client.environment_start(image=loaded[0], pull="never") as box:
            assert (await box.run(["id", "-u"])).stdout == b"0\n"


STEP = "echo begun; sleep 1000; : {token}"


@pytest.mark.parametrize("how", ["task", "shutdown", "end of stdin", "TERM", "KILL"])
async def test_a_step_ends_with_who_wanted_it(short_dir: Path, how: str) -> None:
    """Where fastclaw itself is killed, by its janitor."""
    token = f"imagecalls{os.getpid()}{how.replace(' ', '')}"
    async with running(short_dir) as client:
        pid = client.pid
        directory = context(short_dir / "c", f"FROM {await base(client)}", f"RUN {STEP.format(token=token)}")
        building = asyncio.create_task(client.image_build(directory, tag="never:1"))
        await until(lambda: bearers(token))
        ENDS[how](client, building)
        if how != "task":
            assert await client.exited(20) == (-signal.SIGKILL if how == "KILL" else 0)
        await asyncio.wait((building,))
        await until(lambda: not bearers(token))
        assert building.cancelled() or building.exception() is not None
        if how == "task":
            with pytest.raises(StartFailed, match="never"):
                await client.environment_start(image="never:1", pull="never")
    await until(lambda: not [*CGROUPS.glob(f"*/fastclaw_{pid}_*_build_*")])
    await until(lambda: working(short_dir) == "[]")
    if how == "KILL":
        remove_tree(short_dir / "t")  # what the engine has unpacked is a few files below TMPDIR, which stay
        async with running(short_dir):  # whose start removes the directory of the sockets
            pass


def working(directory: Path) -> str:
    """The engine's containers, those in which builds work too."""
    (containers,) = (directory / "s").glob("*/storage/*-containers/containers.json")
    return containers.read_text()


ENDS: dict[str, Callable[[RuntimeClient, asyncio.Task[Any]], object]] = {
    "task": lambda client, building: building.cancel(),
    "shutdown": lambda client, building: asyncio.ensure_future(client.shutdown()),
    "end of stdin": lambda client, building: client.close_stdin(),
    "TERM": lambda client, building: os.kill(client.pid, signal.SIGTERM),
    "KILL": lambda client, building: os.kill(client.pid, signal.SIGKILL),
}
