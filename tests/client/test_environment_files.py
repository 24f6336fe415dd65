"""Files as a supervisor's client has them, over this host's runtime."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw import environment_limits, limits
from fastclaw.client import RuntimeClient
from fastclaw.errors import InvalidParams, InvalidState, IoError, MethodNotFound, ProtocolError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SERVE = [sys.executable, "-m", "fastclaw", "serve", "--log-level", "error", "--runtime"]
BIG = os.urandom(environment_limits.FILE_INLINE_BYTES + 1)


@pytest.fixture
async def rt(tmp_path: Path) -> AsyncIterator[RuntimeClient]:
    options = {"workspace": {"target": str(tmp_path), "source": str(tmp_path)}}
    async with RuntimeClient.spawn([*SERVE, "local"], namespace="files", options=options) as client:
        yield client


async def test_contents_of_any_size_go_in_and_out(rt: RuntimeClient) -> None:
    for data in (b"", b"text", "é", b"\xff\0", BIG[:-1], BIG, BIG * 12):
        wanted = data.encode() if isinstance(data, str) else data
        for atomic in (False, True):
            assert await rt.write_file("d/f", data, parents=True, atomic=atomic) == len(wanted)
            assert await rt.read_file("d/f") == wanted
    assert [entry.name for entry in await rt.list_dir("d")] == ["f"]


async def test_a_part_and_a_limit(rt: RuntimeClient) -> None:
    await rt.write_file("f", BIG)
    assert await rt.read_file("f", offset=5, limit=7) == BIG[5:12]
    assert await rt.read_file("f", offset=5) == BIG[5:]
    assert await rt.read_file("f", offset=1, limit=len(BIG)) == BIG[1:]
    assert await rt.read_file("f", limit=len(BIG)) == BIG
    for limit in (5, len(BIG) - 1):
        with pytest.raises(IoError) as raised:
            await rt.read_file("f", limit=limit)
        assert (raised.value.reason, raised.value.data["size"]) == ("too_large", len(BIG))


async def test_names_modes_and_pages(rt: RuntimeClient, tmp_path: Path) -> None:
    await rt.make_dir("d/e", parents=True, mode=0o711)
    await rt.make_dir("d/e", exist_ok=True)
    await rt.write_file("d/f", b"x", mode=0o640)
    assert (await rt.stat("d/f")).mode == 0o640
    await rt.move("d/f", "d/g")
    with pytest.raises(IoError) as raised:
        await rt.move("d/g", "d/e")
    assert raised.value.reason == "exists"
    (tmp_path / "d" / "l").symlink_to("g")
    assert (await rt.stat("d/l", follow=False)).target == "g"
    assert (await rt.stat("d/l")).type == "file"
    await rt.move("d/g", "d/l", overwrite=True)
    await rt.remove("d/l")
    await rt.remove("d", recursive=True)
    for number in range(environment_limits.DIR_ENTRIES + 5):
        (tmp_path / f"{number:05}").touch()
    assert [entry.name for entry in await rt.list_dir()] == [
        f"{n:05}" for n in range(environment_limits.DIR_ENTRIES + 5)
    ]


async def test_archives_both_ways(rt: RuntimeClient, tmp_path: Path) -> None:
    await rt.write_file("d/a.txt", b"a", parents=True)
    await rt.write_file("d/b.o", b"b")
    archive = await rt.read_tar("d", exclude=["*.o"])
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        assert opened.getnames() == ["a.txt"]
    await rt.make_dir("copy")
    assert await rt.write_tar("copy", archive) == 1
    assert (tmp_path / "copy" / "a.txt").read_bytes() == b"a"
    with pytest.raises(IoError) as raised:
        await rt.write_tar("copy", archive[:700])
    assert raised.value.reason == "bad_archive"


@pytest.mark.parametrize("size", [None, 8 * limits.MIB])
async def test_an_error_of_a_stream_is_that_of_the_contract(rt: RuntimeClient, size: int | None) -> None:
    for call in (
        lambda: rt.write_file("missing/f", BIG * 8),
        lambda: rt.read_tar("missing"),
        lambda: written(rt, "missing/f", size),
    ):
        with pytest.raises(IoError) as raised:
            await call()
        assert (raised.value.reason, raised.value.data["errno"]) == ("not_found", 2)
    with pytest.raises(IoError) as raised:
        await rt.read_file("missing")
    assert raised.value.data["path"] == "missing"


async def written(rt: RuntimeClient, path: str, size: int | None) -> None:
    async with await rt.file_writer(path, size=size) as stream:
        for _ in range(8):
            await stream.write(b"x" * limits.MIB)


async def test_a_writer_that_is_left_by_an_exception_leaves_the_old_content(rt: RuntimeClient, tmp_path: Path) -> None:
    await rt.write_file("f", b"old")
    with pytest.raises(ZeroDivisionError):
        await half_written(rt)
    assert os.listdir(tmp_path) == ["f"]
    assert (tmp_path / "f").read_bytes() == b"old"


async def half_written(rt: RuntimeClient) -> None:
    async with await rt.file_writer("f", atomic=True) as stream:
        await stream.write(b"half")
        raise ZeroDivisionError


async def test_a_reader_may_be_left_early(rt: RuntimeClient) -> None:
    await rt.write_file("f", BIG * 8)
    async with await rt.file_reader("f") as stream:
        async for chunk in stream:
            assert BIG.startswith(chunk[: len(BIG)])
            break


async def test_each_environment_has_its_own(tmp_path: Path) -> None:
    async with RuntimeClient.spawn([*SERVE, "local"], namespace="files", options={"environment": False}) as rt:
        places = [tmp_path / "one", tmp_path / "two"]
        for place in places:
            place.mkdir()
        spaces = [{"target": str(place), "source": str(place)} for place in places]
        async with (
            await rt.environment_start(workspace=spaces[0]) as one,
            await rt.environment_start(workspace=spaces[1]) as two,
        ):
            await one.write_file("f", b"1")
            await two.write_file("f", BIG)
            assert (await one.read_file("f"), await two.read_file("f")) == (b"1", BIG)
            with pytest.raises(InvalidState) as raised:
                await rt.read_file("f")
            assert raised.value.reason == "unknown_environment"


async def test_a_runtime_without_files_says_so() -> None:
    async with RuntimeClient.spawn([*SERVE, "memory"], namespace="files") as rt:
        assert "files" not in rt.capabilities
        with pytest.raises(MethodNotFound):
            await rt.read_file("f")


class Answers:
    """A client whose runtime answers what the test says."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers

    async def call(self, method: str, params: dict[str, Any], timeout_s: float | None) -> Any:
        answer = self.answers[method]
        if params.get("stream"):
            raise InvalidParams("no streams", "unsupported", path="$.stream")
        return answer(params) if callable(answer) else answer


async def test_without_streams_large_files_go_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(params: dict[str, Any]) -> Any:
        if params["limit"] < 2 * limits.MIB:
            raise IoError("too large", "too_large", size=2 * limits.MIB)
        return {"text": "all", "size": 3}

    answers = {
        "read_file": read,
        "write_file": {"size": 5},
        "read_tar": {"base64": "YQ==", "members": 1},
        "write_tar": {"size": 1, "members": 4},
    }
    rt = RuntimeClient(["x"], None, None, None, None)
    monkeypatch.setattr(rt, "call", Answers(answers).call)
    assert await rt.read_file("f") == b"all"
    assert await rt.write_file("f", BIG) == 5
    assert await rt.read_tar("d") == b"a"
    assert await rt.write_tar("d", b"x") == 4


async def test_answers_that_are_none_are_the_runtimes_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    page = {"entries": [], "next": "x"}
    answers = {"read_file": {"text": None, "base64": "!", "size": 1}, "list_dir": page, "stat": {}}
    rt = RuntimeClient(["x"], None, None, None, None)
    monkeypatch.setattr(rt, "call", Answers(answers).call)
    for call in (lambda: rt.read_file("f"), lambda: rt.list_dir("d"), lambda: rt.stat("f")):
        with pytest.raises(ProtocolError):
            await call()
