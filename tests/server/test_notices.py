"""How a request comes on: who asked hears it, not too often, and not while it does not read."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from fastclaw import limits
from fastclaw.errors import StartFailed
from fastclaw.images import BuildImage, ImageResult, ImageRuntime, LoadedImages, LoadImages, PullImage
from fastclaw.progress import Progress
from tests.server.wire import ExtendedRuntime, Wire, a_wire
from tests.waiting import InstantLoop, turns, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastclaw.progress import Tell

BUILD = {"directory": "/d"}


class Builder(ExtendedRuntime, ImageRuntime):
    """Builds for as long as the gate is closed, and tells what it is told to tell."""

    tell: Tell | None = None
    is_building = False

    async def image_pull(self, request: PullImage, tell: Tell | None = None) -> ImageResult:
        self.tell = tell
        raise StartFailed("no registry", "image_not_found")

    async def image_build(self, request: BuildImage, tell: Tell | None = None) -> ImageResult:
        self.tell, self.is_building = tell, True
        await self.do_wait()
        return ImageResult(image=request.tag or "1", id="1")

    async def image_load(self, request: LoadImages, tell: Tell | None = None) -> LoadedImages:
        self.tell = tell
        if tell is not None:
            tell(Progress(done=1, total=2))
            tell(Progress(done=2, total=2))
        return LoadedImages(images=["a"])

    def say(self, **told: Any) -> None:
        assert self.tell is not None
        self.tell(Progress(**told))


@pytest.fixture
def builder() -> Builder:
    return Builder()


@pytest.fixture
async def wire(builder: Builder) -> AsyncIterator[Wire]:
    async with a_wire(builder) as made:
        yield made


async def building(wire: Wire, builder: Builder, request_id: Any = 1, **params: Any) -> None:
    wire.post("image_build", request_id, **BUILD, **params)
    await until(lambda: builder.is_building)


def notices(wire: Wire) -> list[dict[str, Any]]:
    """The params of those that have come."""
    found = [orjson.loads(line) for line in wire.lines]
    assert all(one["jsonrpc"] == "2.0" and "id" not in one for one in found if "method" in one)
    return [one["params"] for one in found if one.get("method") == "progress"]


@pytest.mark.parametrize("request_id", [7, "seven"])
async def test_who_asks_hears_of_its_own_request_by_its_id(wire: Wire, builder: Builder, request_id: Any) -> None:
    await building(wire, builder, request_id, progress=True)
    builder.say(text="STEP 1\n", done=3, total=4)
    await until(lambda: wire.lines)
    assert notices(wire) == [{"id": request_id, "text": "STEP 1\n", "done": 3, "total": 4}]
    builder.say(text="STEP 2\n")
    builder.gate.set()
    lines = await wire.answers(3)
    assert notices(wire)[1] == {"id": request_id, "text": "STEP 2\n"}
    assert lines[2] == {"jsonrpc": "2.0", "id": request_id, "result": {"image": "1", "id": "1"}}


async def test_all_that_was_told_comes_before_the_answer(wire: Wire, builder: Builder) -> None:
    wire.post("image_load", 1, archive="/a", progress=True)
    lines = await wire.answers(2)
    assert lines[0]["params"] == {"id": 1, "done": 2, "total": 2}
    assert lines[1]["result"] == {"images": ["a"]}


@pytest.mark.parametrize("params", [{}, {"progress": False}])
async def test_who_does_not_ask_hears_nothing(wire: Wire, builder: Builder, params: dict[str, Any]) -> None:
    await building(wire, builder, **params)
    assert builder.tell is None


async def test_a_notification_has_no_id_to_hear_by(wire: Wire, builder: Builder) -> None:
    await building(wire, builder, None, progress=True)
    assert builder.tell is None


async def test_a_request_of_a_batch_is_told_of_by_itself(wire: Wire, builder: Builder) -> None:
    items = [
        {"jsonrpc": "2.0", "id": "b", "method": "image_build", "params": {**BUILD, "progress": True}},
        {"jsonrpc": "2.0", "id": "h", "method": "health"},
    ]
    wire.feed(orjson.dumps(items) + b"\n")
    await until(lambda: builder.is_building)
    builder.say(text="x\n")
    builder.gate.set()
    lines = await wire.answers(2)
    assert lines[0]["params"] == {"id": "b", "text": "x\n"}
    assert sorted(answer["id"] for answer in lines[1]) == ["b", "h"]


async def test_one_that_is_taken_back_is_told_of_no_more(wire: Wire, builder: Builder) -> None:
    await building(wire, builder, progress=True)
    builder.say(text="x\n")
    wire.post("cancel", 2, id=1)
    lines = await wire.answers(3)
    assert [line.get("id", line.get("method")) for line in lines] == ["progress", 1, 2]
    assert lines[1]["error"]["code"] == -32800
    assert builder.cancelled == 1
    assert not wire.dispatcher._notices


async def test_a_shutdown_takes_it_back(wire: Wire, builder: Builder) -> None:
    await building(wire, builder, progress=True)
    wire.post("shutdown", 2)
    lines = await wire.answers(2)
    assert lines[0]["error"]["data"]["reason"] == "shutting_down"


async def test_a_failure_is_an_answer_like_any_other(wire: Wire) -> None:
    answer = await wire.call("image_pull", image="a", progress=True)
    assert answer["error"]["data"]["reason"] == "image_not_found"


@pytest.mark.parametrize(
    ("method", "params", "path"),
    [
        ("image_pull", {}, "$.image"),
        ("image_pull", {"image": "a b"}, "$.image"),
        ("image_pull", {"image": "a", "pull": "never"}, "$.pull"),
        ("image_build", {}, "$.directory"),
        ("image_build", {"directory": "relative"}, "$.directory"),
        ("image_build", {"directory": "/d\0"}, "$.directory"),
        ("image_build", {**BUILD, "network": "all"}, "$.network"),
        ("image_build", {**BUILD, "args": {"a": 1}}, "$.args[...]"),
        ("image_build", {**BUILD, "file": ""}, "$.file"),
        ("image_load", {"archive": "relative"}, "$.archive"),
    ],
)
async def test_what_is_wrong_is_named(wire: Wire, method: str, params: dict[str, Any], path: str) -> None:
    error = (await wire.call(method, **params))["error"]
    assert (error["code"], error["data"]["path"]) == (-32602, path)


NO_TAGS = ["", "A", "a:", "a:b:c", "a b", "-a", "a/", "a@sha256:00", "a//b", "a:" + "x" * 129, "x" * 600]
TAGS = ["a", "a:1", "localhost/a", "Host.example:5000/a/b-c__d.e:Tag_1.2-3", "127.0.0.1:1/a", "a--b"]


@pytest.mark.parametrize("tag", NO_TAGS)
async def test_a_tag_that_is_none(wire: Wire, tag: str) -> None:
    error = (await wire.call("image_build", **BUILD, tag=tag))["error"]
    assert (error["code"], error["data"]["path"]) == (-32602, "$.tag")


@pytest.mark.parametrize("tag", TAGS)
async def test_a_tag_that_is_one(wire: Wire, builder: Builder, tag: str) -> None:
    builder.gate.set()
    assert (await wire.call("image_build", **BUILD, tag=tag))["result"]["image"] == tag


async def test_a_runtime_without_images() -> None:
    async with a_wire() as wire:
        for method in ("image_pull", "image_build", "image_load"):
            answer = await wire.call(method, image="a", directory="/d", archive="/a")
            assert answer["error"]["code"] == -32601


async def test_while_nobody_reads_nothing_is_sent_and_little_is_kept(wire: Wire, builder: Builder) -> None:
    await building(wire, builder, progress=True)
    wire.dispatcher.hold(True)
    for number in range(10_000):
        builder.say(text=f"{number}\n", done=number)
    await turns()
    assert wire.lines == []
    wire.dispatcher.hold(False)
    await until(lambda: wire.lines)
    (told,) = notices(wire)
    assert told["done"] == 9_999
    assert len(told["text"]) <= limits.PROGRESS_TEXT_CHARS
    assert told["text"].endswith("\n9999\n")
    assert told["dropped"] + len(told["text"].splitlines()) == 10_000


async def test_one_that_begins_while_nobody_reads(wire: Wire, builder: Builder) -> None:
    wire.post("image_build", 1, **BUILD, progress=True)
    await until(lambda: builder.is_building)
    wire.dispatcher.hold(True)
    builder.say(text="x\n")
    builder.gate.set()
    lines = await wire.answers(2)
    assert [line.get("id") for line in lines] == [None, 1]


def test_there_are_only_so_many_in_a_second() -> None:
    """By a clock that jumps: what comes in between is in the next one."""

    async def ten_seconds() -> list[dict[str, Any]]:
        builder = Builder()
        async with a_wire(builder) as wire:
            wire.post("image_build", 1, **BUILD, progress=True)
            await turns()
            for number in range(10_000):
                builder.say(text=f"{number}\n")
                await asyncio.sleep(0.001)
            builder.gate.set()
            await turns()
            return notices(wire)

    with asyncio.Runner(loop_factory=InstantLoop) as runner:
        told = runner.run(ten_seconds())
    assert len(told) <= 10_000 / limits.PROGRESS_MS + 2
    lines = "".join(one["text"] for one in told).splitlines()
    assert lines == [str(number) for number in range(10_000)]
