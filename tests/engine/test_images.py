"""What is known of images: asked once, and never believed when somebody has changed it meanwhile. On a real engine."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fastclaw import engine_limits
from fastclaw.engine.api import EngineLifecycle
from fastclaw.engine.container_spec import InitPlan, container_spec
from fastclaw.engine.images import ImageFacts
from fastclaw.engine.service.plan import service_env, tool_argv
from fastclaw.engine.service.storage import engine_variables, service_paths
from fastclaw.errors import StartFailed
from tests.engine.conftest import EngineService
from tests.engine.recorder import Recorder, recording
from tests.waiting import until

NAME = "localhost/fastclaw-test-images:1"
INSPECT = "/json"
PULL = "POST /images/pull"

Podman = Callable[..., Awaitable[str]]


@pytest.fixture
def podman(engine_service: EngineService, short_dir: Path) -> Podman:
    """Podman's command line on the storage of the service: as good as anybody else's."""
    plan = engine_service.plan
    paths = service_paths(engine_service.state_dir, engine_service.run_dir, short_dir, plan)

    async def run(*words: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *tool_argv(plan, paths), *words, env=service_env(paths, engine_variables()), stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, words
        return output.decode().strip()

    return run


@pytest.fixture
async def recorder(engine_service: EngineService, short_dir: Path) -> AsyncIterator[Recorder]:
    """Between the lifecycle and the service."""
    async with recording(engine_service.url, short_dir / "rec.sock") as one:
        yield one


@pytest.fixture
async def lifecycle(recorder: Recorder) -> AsyncIterator[EngineLifecycle]:
    """Behind the recorder."""
    one = EngineLifecycle(recorder.url)
    yield one
    await one.aclose()


async def tagged(podman: Podman, image: str, name: str = NAME) -> None:
    """Let the name mean this image."""
    await podman("tag", image, name)


async def another_image(podman: Podman, engine_service: EngineService, **changes: str) -> str:
    """Id of an image that differs from the default one."""
    words = [word for name, value in changes.items() for word in ("--change", f"{name}={value}")]
    container = await podman("create", engine_service.image)
    try:
        return (await podman("commit", "--quiet", *words, container)).splitlines()[-1]
    finally:
        await podman("rm", "--force", container)


@pytest.mark.parametrize("is_seen", [True, False], ids=["list seen", "list not seen"])
async def test_whatever_happens_to_an_image_is_seen(
    lifecycle: EngineLifecycle, podman: Podman, engine_service: EngineService, is_seen: bool
) -> None:
    """Tagged, tagged anew, untagged, removed, by Podman's own command line; with and without the proof by its list."""
    if is_seen:
        await lifecycle.version()
        assert lifecycle._images.list_file is not None
    other = await another_image(podman, engine_service, USER="7", WORKDIR="/tmp", ENV="A=b")
    default = await lifecycle.image(engine_service.image)
    assert default is not None
    assert default.env == ("PATH=/usr/local/bin:/usr/bin:/bin",)
    for _ in range(3):
        assert await lifecycle.image(NAME) is None
        await tagged(podman, engine_service.image)
        assert await lifecycle.image(NAME) == default
        assert await lifecycle.ensure_image(NAME) == default
        await tagged(podman, other)
        found = await lifecycle.ensure_image(NAME)
        assert (found.id, found.user, found.working_dir) == (other, "7", "/tmp")
        assert "A=b" in found.env
        await podman("untag", other, NAME)
    await tagged(podman, other)
    assert await lifecycle.image(NAME) == found
    await podman("rmi", "--force", other)
    assert await lifecycle.image(NAME) is None
    with pytest.raises(StartFailed, match="never"):
        await lifecycle.ensure_image(NAME, "never")


async def test_an_image_that_has_not_changed_is_asked_for_once(
    lifecycle: EngineLifecycle, recorder: Recorder, engine_service: EngineService
) -> None:
    await asyncio.gather(*(lifecycle.version() for _ in range(20)))
    assert recorder.asked == ["GET /info"]
    found = await asyncio.gather(*(lifecycle.ensure_image(engine_service.image) for _ in range(50)))
    assert len(set(found)) == 1
    assert recorder.count(INSPECT) == 1
    spec = container_spec(image=engine_service.image, name="x", namespace="images", owner="o", init=InitPlan())
    container = await lifecycle.create_container(spec)
    await lifecycle.remove_container(container)  # containers are not images
    assert await lifecycle.ensure_image(engine_service.image) == found[0]
    assert recorder.count("/images/") == 1
    assert await lifecycle.version() == await lifecycle.version()
    assert recorder.count("/info") == 1


async def test_where_the_list_is_not_seen_the_engine_is_asked_each_time_and_at_once_but_twice(
    lifecycle: EngineLifecycle, recorder: Recorder, engine_service: EngineService
) -> None:
    """The second is for those who came while the first was under way: what has happened since, it may not tell."""
    await asyncio.gather(*(lifecycle.image(engine_service.image) for _ in range(50)))
    assert recorder.count(INSPECT) == 2
    await lifecycle.image(engine_service.image)
    assert recorder.count(INSPECT) == 3


async def test_the_list_of_another_storage_proves_nothing(
    lifecycle: EngineLifecycle, recorder: Recorder, engine_service: EngineService, short_dir: Path
) -> None:
    await lifecycle.version()
    lifecycle._images.list_file = short_dir / "images.json"
    (short_dir / "images.json").write_text("[]")
    for _ in range(3):
        assert await lifecycle.image(engine_service.image) is not None
    assert recorder.count(INSPECT) == 3


async def test_files_are_read_once_for_each_image(
    lifecycle: EngineLifecycle, recorder: Recorder, podman: Podman, engine_service: EngineService
) -> None:
    other = await another_image(podman, engine_service, USER="7")
    await tagged(podman, other)
    image, again = await lifecycle.ensure_image(engine_service.image), await lifecycle.ensure_image(NAME)
    spec = container_spec(image=NAME, name="files", namespace="images", owner="o", init=InitPlan())
    for one, created in ((image, 1), (image, 1), (again, 2), (again, 2)):
        texts = await asyncio.gather(*(lifecycle.image_files(one, spec, ["/etc/passwd", "/none"]) for _ in range(5)))
        assert all("root:" in passwd and none == "" for passwd, none in texts)
        assert recorder.count("POST /containers/create") == created
    await podman("rmi", "--force", other)


@asynccontextmanager
async def silent_registry() -> AsyncIterator[tuple[str, list[int]]]:
    """A name of an image whose registry, on this host, accepts connections and says nothing; and when each came."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        came: list[int] = []
        held: list[asyncio.StreamWriter] = []

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            came.append(1)
            held.append(writer)

        server = await asyncio.start_server(connected, sock=listener)
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}/none:1", came
        finally:
            server.close()
            for writer in held:
                writer.transport.abort()


async def test_one_pull_for_all_who_want_an_image_and_none_of_the_others_waits(
    lifecycle: EngineLifecycle, recorder: Recorder, engine_service: EngineService
) -> None:
    await lifecycle.ensure_image(engine_service.image)
    async with silent_registry() as (slow, came):
        pulling = [asyncio.create_task(lifecycle.ensure_image(slow)) for _ in range(10)]
        await until(lambda: came)
        async with asyncio.timeout(20):
            good = await asyncio.gather(
                *(lifecycle.ensure_image(engine_service.image) for _ in range(99)),
                *(lifecycle.ensure_image("127.0.0.1:1/none:1") for _ in range(3)),
                return_exceptions=True,
            )
        assert [type(one) for one in good] == [ImageFacts] * 99 + [StartFailed] * 3
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await lifecycle.ensure_image(slow)
        pulling[0].cancel()
        done, _ = await asyncio.wait(pulling, timeout=0.2)
        assert done == {pulling[0]}
        assert recorder.count(PULL) == 2
    failed = await asyncio.gather(*pulling[1:], return_exceptions=True)
    assert {one.reason for one in failed if isinstance(one, StartFailed)} == {"image_not_found"}
    assert all(isinstance(one, StartFailed) and "\n" not in str(one) for one in failed)
    assert recorder.count(PULL) == 2


async def test_always_asks_the_registry_though_the_image_is_there(
    lifecycle: EngineLifecycle, recorder: Recorder, podman: Podman, engine_service: EngineService
) -> None:
    name = "127.0.0.1:1/fastclaw-test-always:1"
    await tagged(podman, engine_service.image, name)
    assert await lifecycle.ensure_image(name) is not None
    with pytest.raises(StartFailed, match="cannot pull"):
        await lifecycle.ensure_image(name, "always")
    together = [lifecycle.ensure_image(name, "always") for _ in range(5)]
    results = await asyncio.gather(*together, return_exceptions=True)
    assert [type(one) for one in results] == [StartFailed] * 5
    assert recorder.count(PULL) == 3  # the last four came when one was under way
    await podman("untag", engine_service.image, name)


async def test_only_so_many_are_kept(
    lifecycle: EngineLifecycle,
    recorder: Recorder,
    podman: Podman,
    engine_service: EngineService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_limits, "KNOWN_IMAGES", 2)
    names = [f"localhost/fastclaw-test-few:{number}" for number in range(3)]
    await podman("tag", engine_service.image, *names)
    await lifecycle.version()
    for name in (*names, names[2]):
        await lifecycle.ensure_image(name)
    assert recorder.count(INSPECT) == 3
    await lifecycle.ensure_image(names[0])
    assert recorder.count(INSPECT) == 4
    assert repr(lifecycle._images) == "<Images 2 known, <Flights 0 under way>>"
    await podman("untag", engine_service.image, *names)
