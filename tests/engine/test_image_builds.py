"""Images that are built and loaded by a real engine, and what is left of a build that is given up: nothing."""

from __future__ import annotations

import asyncio
import gzip
import lzma
import os
import socket
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
from podman import PodmanClient

from fastclaw import engine_limits, limits
from fastclaw.engine import builds
from fastclaw.engine.api import EngineLifecycle
from fastclaw.engine.base_image import default_archive
from fastclaw.engine.dialects import PODMAN
from fastclaw.engine.news import Output
from fastclaw.engine.podman_client import Line, make_client
from fastclaw.engine.service.janitor_main import STEPS
from fastclaw.errors import IoError, StartFailed
from fastclaw.images import BuildImage
from fastclaw.limits import KIB, MIB
from fastclaw.linux.cgroups import CGROUPS
from fastclaw.linux.proc import this_process
from tests.engine.recorder import recording
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from fastclaw.progress import Progress
    from tests.engine.conftest import EngineService

pytestmark = pytest.mark.timeout(120)

TAG = "localhost/fastclaw-test-built:1"


@pytest.fixture
async def lifecycle(engine_service: EngineService) -> AsyncIterator[EngineLifecycle]:
    """On the shared service. Afterwards no build works in any container, and no step of one runs."""
    one = EngineLifecycle(engine_service.url)
    yield one
    await until(lambda: not one._ending)
    working = await one.read(PODMAN.building)
    await one.aclose()
    assert working == set()
    assert steps() == []


@pytest.fixture(autouse=True)
def _images_go(engine_service: EngineService) -> Iterator[None]:
    """Images of a test are not the next one's."""
    yield
    with PodmanClient(base_url=engine_service.url) as client:
        for image in client.images.list(all=True):
            if engine_service.image not in image.tags:
                client.api.delete(f"/images/{image.id}", params={"force": True})


def steps() -> list[Path]:
    """The control groups of our steps."""
    name = f"{this_process().table_prefix}{STEPS}*"
    return [*CGROUPS.glob(f"*/{name}"), *CGROUPS.glob(name)]


class Heard:
    """What was told."""

    def __init__(self) -> None:
        self.all: list[Progress] = []

    def __call__(self, told: Progress) -> None:
        self.all.append(told)

    @property
    def text(self) -> str:
        return "".join(told.text for told in self.all)


def context(directory: Path, text: str, **files: str) -> str:
    """A directory to build from."""
    (directory / "Containerfile").write_text(text)
    for name, content in files.items():
        (directory / name).write_text(content)
    return str(directory)


async def said(lifecycle: EngineLifecycle, image: str, path: str) -> str:
    """A file in an image."""
    facts = await lifecycle.ensure_image(image, "never")
    spec = {"name": f"said-{facts.id[:8]}", "command": ["none"]}
    return (await lifecycle.image_files(facts, spec, [path]))[0]


async def test_a_build_copies_runs_and_names(
    lifecycle: EngineLifecycle, engine_service: EngineService, tmp_path: Path
) -> None:
    text = f"""FROM {engine_service.image}
ARG WORD=none
COPY a /a
RUN echo "$WORD $(cat /a)" > /b && echo told
USER 7:8
WORKDIR /tmp
ENV X=y
"""
    heard = Heard()
    assert await lifecycle.image(TAG) is None
    request = BuildImage(directory=context(tmp_path, text, a="text"), tag=TAG, args={"WORD": 'a b=c,"'})
    built = await lifecycle.build_image(request, heard)
    facts = await lifecycle.image(TAG)
    assert facts is not None
    assert (facts.id, facts.user, facts.working_dir) == (built, "7:8", "/tmp")
    assert "X=y" in facts.env
    assert await said(lifecycle, TAG, "/b") == 'a b=c," text\n'
    lines = heard.text.splitlines()
    assert f"STEP 1/7: FROM {engine_service.image}" in lines
    assert "told" in lines
    assert lines[-1] == built
    sent = [told.done for told in heard.all if told.done is not None]
    assert sent == sorted(sent)
    assert sent[-1] % tarfile.BLOCKSIZE == 0


async def test_an_image_without_a_name_is_its_id(
    lifecycle: EngineLifecycle, engine_service: EngineService, tmp_path: Path
) -> None:
    built = await lifecycle.build_image(BuildImage(directory=context(tmp_path, f"FROM {engine_service.image}\nUSER 5")))
    assert (await lifecycle.ensure_image(built, "never")).user == "5"


async def test_from_nothing_with_a_root_that_is_added(lifecycle: EngineLifecycle, tmp_path: Path) -> None:
    (tmp_path / "rootfs.tar").write_bytes(default_archive())
    text = "FROM scratch\nADD rootfs.tar /\nENV PATH=/bin\nRUN id -u > /who\n"
    built = await lifecycle.build_image(BuildImage(directory=context(tmp_path, text)))
    assert await said(lifecycle, built, "/who") == "0\n"


async def test_the_same_again_is_the_same_image_unless_nothing_is_to_be_kept(
    lifecycle: EngineLifecycle, engine_service: EngineService, tmp_path: Path
) -> None:
    (tmp_path / "rootfs.tar").write_bytes(default_archive())
    directory = context(tmp_path, "FROM scratch\nADD rootfs.tar /\nRUN echo > /x\n")
    first = await lifecycle.build_image(BuildImage(directory=directory))
    assert await lifecycle.build_image(BuildImage(directory=directory)) == first
    assert await lifecycle.build_image(BuildImage(directory=directory, no_cache=True)) != first


async def test_other_arguments_make_another_image(lifecycle: EngineLifecycle, tmp_path: Path) -> None:
    """Podman 4.3.1 by itself finds the first one again."""
    directory = context(tmp_path, "FROM scratch\nCOPY Containerfile /\nARG B\nENV A=$B\n")
    for value in ("first", "second"):
        built = await lifecycle.build_image(BuildImage(directory=directory, args={"B": value}))
        assert f"A={value}" in (await lifecycle.ensure_image(built, "never")).env


async def test_a_stage_and_a_file_are_taken_by_name(
    lifecycle: EngineLifecycle, engine_service: EngineService, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    text = f"FROM {engine_service.image} AS one\nUSER 1\nFROM one AS two\nUSER 2\nFROM two\nUSER 3\n"
    (tmp_path / "in/Other").write_text(text)
    for target, user in (("one", "1"), ("two", "2"), (None, "3")):
        built = await lifecycle.build_image(BuildImage(directory=str(tmp_path), file="in/Other", target=target))
        assert (await lifecycle.ensure_image(built)).user == user


async def test_what_the_ignore_file_names_does_not_come_in(
    lifecycle: EngineLifecycle, engine_service: EngineService, tmp_path: Path
) -> None:
    text = f"FROM {engine_service.image}\nCOPY . /in/\nRUN ls -A /in > /list\n"
    context(tmp_path, text, a="", b="", c="")
    (tmp_path / ".containerignore").write_text("*\n!b\n")
    (tmp_path / "link").symlink_to("/etc/hostname")
    built = await lifecycle.build_image(BuildImage(directory=str(tmp_path)))
    assert await said(lifecycle, built, "/list") == "b\n"
    (tmp_path / ".containerignore").write_text("b\n")
    built = await lifecycle.build_image(BuildImage(directory=str(tmp_path)))
    assert (await said(lifecycle, built, "/list")).split() == [".containerignore", "Containerfile", "a", "c", "link"]


@pytest.mark.parametrize(("network", "has_more"), [("none", False), ("host", True)])
async def test_a_step_reaches_nothing_unless_it_is_said(
    lifecycle: EngineLifecycle, engine_service: EngineService, tmp_path: Path, network: Any, has_more: bool
) -> None:
    text = f"FROM {engine_service.image}\nRUN grep -c : /proc/net/dev > /count; wc -l < /proc/net/route > /routes\n"
    built = await lifecycle.build_image(BuildImage(directory=context(tmp_path, text), network=network, no_cache=True))
    mine = len(socket.if_nameindex())
    assert int(await said(lifecycle, built, "/count")) == (mine if has_more else 1)
    if not has_more:
        assert int(await said(lifecycle, built, "/routes")) <= 1  # its head


@pytest.mark.parametrize(
    ("step", "says", "output"),
    [
        ("RUN echo no good >&2; exit 3", "exit status 3: no good", "no good\n"),
        ("COPY nothing /", "no such file or directory", "STEP 2/2: COPY nothing /\n"),
        ("NONSENSE", "NONSENSE", ""),
    ],
)
async def test_a_build_that_fails_says_why_in_a_line_and_has_the_end_of_its_output(
    lifecycle: EngineLifecycle, engine_service: EngineService, tmp_path: Path, step: str, says: str, output: str
) -> None:
    heard = Heard()
    with pytest.raises(StartFailed, match=says) as raised:
        await lifecycle.build_image(
            BuildImage(directory=context(tmp_path, f"FROM {engine_service.image}\n{step}\n"), tag=TAG), heard
        )
    assert raised.value.reason == "build_failed"
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith("start failed: the build failed: ")
    assert raised.value.data["output"].endswith(output)
    assert heard.text.endswith(output)
    assert await lifecycle.image(TAG) is None


async def test_an_image_to_build_from_that_is_not_there(lifecycle: EngineLifecycle, tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match=r"127\.0\.0\.1:1/none") as raised:
        await lifecycle.build_image(BuildImage(directory=context(tmp_path, "FROM 127.0.0.1:1/none:1\n")))
    assert raised.value.reason == "build_failed"


async def test_much_output_is_told_in_part_and_counted(
    lifecycle: EngineLifecycle, engine_service: EngineService, tmp_path: Path
) -> None:
    """The loop is slower than the step: what it does not take in time is counted, line by line."""
    lines = 200_000
    text = f"FROM {engine_service.image}\nRUN seq {lines}; exit 1\n"
    heard = Heard()
    with pytest.raises(StartFailed) as raised:
        await lifecycle.build_image(BuildImage(directory=context(tmp_path, text)), heard)
    assert len(raised.value.data["output"]) == engine_limits.BUILD_OUTPUT_CHARS
    assert raised.value.data["output"].endswith(f"\n{lines}\n")
    assert max(len(told.text) for told in heard.all) <= limits.PROGRESS_TEXT_CHARS
    numbers = [line for line in heard.text.splitlines() if line.isdecimal()]
    assert len(numbers) + sum(told.dropped for told in heard.all) == lines


async def test_a_directory_that_cannot_be_read_is_an_error_by_its_name_and_no_image(
    lifecycle: EngineLifecycle, engine_service: EngineService, tmp_path: Path
) -> None:
    directory = context(tmp_path, f"FROM {engine_service.image}\nCOPY . /\n")
    (tmp_path / "shrinks").write_bytes(b"x" * 64 * MIB)
    building = asyncio.create_task(lifecycle.build_image(BuildImage(directory=directory, tag=TAG), shrink(tmp_path)))
    with pytest.raises(IoError, match="shrinks: it became shorter") as raised:
        await building
    assert raised.value.reason == "wrong_size"
    assert await lifecycle.image(TAG) is None


def shrink(directory: Path) -> Callable[[Progress], None]:
    """Cuts the file once some of it has been sent."""
    path = directory / "shrinks"

    def tell(told: Progress) -> None:
        if (told.done or 0) > MIB and path.stat().st_size:
            with path.open("r+b") as file:
                file.truncate(0)

    return tell


# --- given up ---


async def given_up(lifecycle: EngineLifecycle, directory: Path, when: str) -> float:
    """Cancel a build as soon as a line with these words has been told; in how many seconds that is done."""
    heard, is_there = Heard(), asyncio.Event()

    def tell(told: Progress) -> None:
        heard(told)
        if when in heard.text.splitlines():
            is_there.set()

    building = asyncio.create_task(lifecycle.build_image(BuildImage(directory=str(directory), tag=TAG), tell))
    await asyncio.wait((building, asyncio.create_task(is_there.wait())), return_when=asyncio.FIRST_COMPLETED)
    assert not building.done(), building.exception()
    began = asyncio.get_running_loop().time()
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    return asyncio.get_running_loop().time() - began


KNOWN_BY = pytest.mark.parametrize("known_by", [builds.StepGroup, builds.StepShm])
"""The second is for an engine that makes no control groups by our names, as one that is rootless."""


@KNOWN_BY
@pytest.mark.parametrize("step", ["sleep 1000", "trap '' TERM INT HUP; sleep 1000 & setsid sleep 1000 & wait"])
async def test_a_step_of_a_build_that_is_given_up_is_ended_with_all_that_it_started(
    lifecycle: EngineLifecycle,
    engine_service: EngineService,
    tmp_path: Path,
    step: str,
    known_by: type[builds.StepGroup | builds.StepShm],
) -> None:
    """Podman 4.3.1 by itself lets it run to its end. The fixture sees that nothing is left."""
    await lifecycle.version()
    lifecycle._steps = known_by
    context(tmp_path, f"FROM {engine_service.image}\nRUN echo begun; {step}\nRUN echo more\n")
    took = await given_up(lifecycle, tmp_path, "begun")
    assert took < engine_limits.BUILD_END_MS / 1000
    assert await lifecycle.read(PODMAN.building) == set()
    assert steps() == []
    assert await lifecycle.image(TAG) is None


@KNOWN_BY
async def test_others_go_on_when_a_build_is_given_up(
    lifecycle: EngineLifecycle,
    engine_service: EngineService,
    tmp_path: Path,
    known_by: type[builds.StepGroup | builds.StepShm],
) -> None:
    await lifecycle.version()
    lifecycle._steps = known_by
    (tmp_path / "mine").mkdir()
    (tmp_path / "other").mkdir()
    heard = Heard()
    text = f"FROM {engine_service.image}\nRUN echo begun; sleep 3\nRUN echo more\nUSER 9\n"
    other = BuildImage(directory=context(tmp_path / "other", text))
    building = asyncio.create_task(lifecycle.build_image(other, heard))
    await until(lambda: "begun\n" in heard.text)
    context(tmp_path / "mine", f"FROM {engine_service.image}\nRUN echo begun; sleep 1000\n")
    await given_up(lifecycle, tmp_path / "mine", "begun")
    assert not building.done()
    assert (await lifecycle.ensure_image(await building, "never")).user == "9"


async def test_a_build_that_is_given_up_while_its_context_is_sent_has_not_begun(
    lifecycle: EngineLifecycle, engine_service: EngineService, tmp_path: Path
) -> None:
    context(tmp_path, f"FROM {engine_service.image}\nCOPY . /\n")
    for number in range(64):
        with (tmp_path / str(number)).open("wb") as file:
            file.truncate(64 * MIB)
    is_under_way = asyncio.Event()
    building = asyncio.create_task(
        lifecycle.build_image(BuildImage(directory=str(tmp_path)), lambda told: is_under_way.set())
    )
    await is_under_way.wait()
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(10):
            await building
    await until(lambda: not lifecycle._ending)


async def test_a_build_that_is_given_up_while_the_engine_unpacks_its_context_is_cut_when_it_listens(
    lifecycle: EngineLifecycle, engine_service: EngineService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then it would not notice, and go on."""
    is_unpacking = asyncio.Event()
    loop, put_off = asyncio.get_running_loop(), Line.put_off

    def noted(line: Line, is_put_off: bool) -> None:
        put_off(line, is_put_off)
        if is_put_off:
            loop.call_soon_threadsafe(is_unpacking.set)

    monkeypatch.setattr(Line, "put_off", noted)
    context(tmp_path, f"FROM {engine_service.image}\nRUN sleep 1000\n")
    (tmp_path / "many").mkdir()
    for number in range(1_500):
        (tmp_path / f"many/{number}").touch()
    building = asyncio.create_task(lifecycle.build_image(BuildImage(directory=str(tmp_path))))
    await is_unpacking.wait()
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building


async def test_one_that_is_given_up_while_it_waits_for_others_does_not_begin(
    lifecycle: EngineLifecycle, engine_service: EngineService, tmp_path: Path
) -> None:
    places = [await lifecycle._builds.enter("build") for _ in range(engine_limits.ENGINE_BUILDS)]
    context(tmp_path, f"FROM {engine_service.image}\n")
    waiting = asyncio.create_task(lifecycle.build_image(BuildImage(directory=str(tmp_path), tag=TAG)))
    await until(lambda: lifecycle._builds.waiting)
    waiting.cancel()
    async with asyncio.timeout(5):
        await asyncio.wait((waiting,))
    assert waiting.cancelled()
    for place in places:
        place.leave()
    assert await lifecycle.image(TAG) is None


async def test_a_build_that_takes_too_long_is_ended(
    lifecycle: EngineLifecycle, engine_service: EngineService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "line", lambda: Line(make_client(engine_service.url, 1), 1))
    context(tmp_path, f"FROM {engine_service.image}\nRUN while :; do echo on; sleep 0.1; done\n")
    with pytest.raises(StartFailed, match="within 1 s") as raised:
        await lifecycle.build_image(BuildImage(directory=str(tmp_path)))
    assert raised.value.reason == "engine_timeout"


# --- archives ---


def saved(url: str, name: str, form: str) -> bytes:
    """An image as `podman save` writes it."""
    with PodmanClient(base_url=url) as client:
        response = client.api.get(f"/images/{name}/get", params={"format": form})
        response.raise_for_status()
        return bytes(response.content)


async def tagged(lifecycle: EngineLifecycle, image: str) -> None:
    params = {"repo": TAG.rpartition(":")[0], "tag": "1"}
    await lifecycle.change("tag", lambda client: client.post(f"/images/{image}/tag", params=params))


async def untagged(lifecycle: EngineLifecycle) -> None:
    await lifecycle.change("tag", lambda client: client.delete(f"/images/{TAG}"))


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "xz": lambda data: lzma.compress(data, preset=0),
}


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
@pytest.mark.parametrize("how", COMPRESS)
async def test_an_archive_is_loaded_in_either_form(
    lifecycle: EngineLifecycle, engine_service: EngineService, tmp_path: Path, form: str, how: str
) -> None:
    await lifecycle.version()
    await tagged(lifecycle, engine_service.image)
    archive = tmp_path / "archive"
    archive.write_bytes(COMPRESS[how](await asyncio.to_thread(saved, engine_service.url, TAG, form)))
    await untagged(lifecycle)
    assert await lifecycle.image(TAG) is None
    heard = Heard()
    assert await lifecycle.load_images(str(archive), heard) == [TAG]
    assert await lifecycle.image(TAG) == await lifecycle.image(engine_service.image)
    last = [told for told in heard.all if told.done is not None][-1]
    size = archive.stat().st_size
    assert (last.done, last.total) == (size, size)


async def test_an_image_without_a_name_is_loaded_by_its_id(
    lifecycle: EngineLifecycle, engine_service: EngineService, tmp_path: Path
) -> None:
    found = await lifecycle.image_id(engine_service.image)
    (tmp_path / "archive").write_bytes(await asyncio.to_thread(saved, engine_service.url, found, "docker-archive"))
    loaded = await lifecycle.load_images(str(tmp_path / "archive"))
    assert [(await lifecycle.ensure_image(one, "never")).id for one in loaded] == [found]


CUT = gzip.compress(b"x" * KIB, mtime=0)[:-9]
"""Without the time: each of several workers must collect the same tests."""


@pytest.mark.parametrize("data", [b"", b"no archive", b"\x1f\x8b", CUT, bytes(10 * KIB)])
async def test_what_is_no_archive_of_images(lifecycle: EngineLifecycle, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "archive"
    path.write_bytes(data)
    with pytest.raises(IoError, match="neither a docker-archive nor an oci-archive") as raised:
        await lifecycle.load_images(str(path))
    assert (raised.value.reason, raised.value.data["path"]) == ("bad_archive", str(path))


@pytest.mark.parametrize(("name", "reason"), [("none", "not_found"), ("fifo", "not_regular"), (".", "not_regular")])
async def test_an_archive_that_is_no_file(lifecycle: EngineLifecycle, tmp_path: Path, name: str, reason: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(IoError) as raised:
        await lifecycle.load_images(str(tmp_path / name))
    assert raised.value.reason == reason


async def test_an_engine_that_is_not_there(tmp_path: Path, short_dir: Path) -> None:
    (tmp_path / "archive").write_bytes(b"")
    lifecycle = EngineLifecycle(f"unix://{short_dir}/none.sock")
    with pytest.raises(StartFailed) as raised:
        await lifecycle.load_images(str(tmp_path / "archive"))
    assert raised.value.reason == "engine_unavailable"
    await lifecycle.aclose()


async def test_each_long_call_has_a_connection_of_its_own_which_is_closed_after_it(
    engine_service: EngineService, tmp_path: Path, short_dir: Path
) -> None:
    async with recording(engine_service.url, short_dir / "rec.sock") as recorder:
        lifecycle = EngineLifecycle(recorder.url)
        line = lifecycle.line()
        assert await lifecycle.build(line, lambda: line.client.get("/_ping").status_code) == 200
        assert line.is_closed
        await lifecycle.aclose()
    assert recorder.asked == ["GET /_ping"]


@pytest.mark.parametrize(("error", "hints"), [("netavark: No such file or directory", True), ("exit status 7", False)])
def test_where_the_engine_can_make_no_network_the_error_says_what_to_do(error: str, hints: bool) -> None:
    failed = builds._failed(error, Output(lambda _: None))
    assert ("see fastclaw doctor" in str(failed)) is hints
