"""Files in and out, as a supervisor has them: against a `run` of true, `cp` on the host, and tar on the host."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench.execs import served
from bench.ratios import Comparison, Ratios, compare
from fastclaw.limits import KIB
from tests.engine_fixtures import unusable

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from pytest_benchmark.fixture import BenchmarkFixture

    from fastclaw.client import RuntimeClient

COUNT = 100
ROUNDS = 9
SMALL, LARGE = os.urandom(KIB), os.urandom(10 * 1000 * 1000)
FILES, FILE_BYTES = 1000, KIB
ALLOWED_S = 0.060
"""What the design allows for an archive of a thousand small files, one way."""


@pytest.fixture(scope="module", params=["local", "podman"])
def place(request: pytest.FixtureRequest) -> str:
    """Which runtime."""
    if request.param == "podman" and shutil.which("podman") is None:
        unusable("podman is not installed")
    return str(request.param)


@pytest.fixture(scope="module")
def client(runner: asyncio.Runner, place: str) -> Iterator[RuntimeClient]:
    with served(runner, place) as client:
        yield client


DISK, MEMORY = "/var/tmp", "/dev/shm"
"""Where the files are. A thousand new ones on a disk measure its journal."""


@contextlib.contextmanager
def directories(runner: asyncio.Runner, client: RuntimeClient, where: str) -> Iterator[tuple[str, Path]]:
    """One inside, and one of the host for the rivals: on the same file system where there is no container."""
    with tempfile.TemporaryDirectory(prefix="fcb-", dir=where) as beside:
        inside = f"{beside}-inside"
        runner.run(client.make_dir(inside, parents=True))
        yield inside, Path(beside)
        runner.run(client.remove(inside, recursive=True))


@pytest.fixture
def disk(runner: asyncio.Runner, client: RuntimeClient) -> Iterator[tuple[str, Path]]:
    with directories(runner, client, DISK) as both:
        yield both


@pytest.fixture
def memory(runner: asyncio.Runner, client: RuntimeClient) -> Iterator[tuple[str, Path]]:
    with directories(runner, client, MEMORY) as both:
        yield both


def test_small(
    benchmark: BenchmarkFixture,
    ratios: Ratios,
    runner: asyncio.Runner,
    client: RuntimeClient,
    disk: tuple[str, Path],
    place: str,
) -> None:
    """One after the other, each written and read: two calls, against two runs."""
    folder, _ = disk

    async def write() -> None:
        for number in range(COUNT):
            await client.write_file(f"{folder}/{number % 10}", SMALL)

    async def read() -> None:
        for number in range(COUNT):
            assert len(await client.read_file(f"{folder}/{number % 10}")) == len(SMALL)

    async def runs() -> None:
        for _ in range(COUNT):
            assert (await client.run(["true"])).exit_code == 0

    runner.run(write())
    rivals = {"run": lambda: runner.run(runs()), "write": lambda: runner.run(write())}
    found = compare(benchmark, lambda: runner.run(read()), rivals, ROUNDS)
    written = Comparison(found.rivals["write"], found.rivals, found.at)
    ratios.compared(f"1 KiB read, {place}", "a run of true", found.rates("run", COUNT))
    ratios.compared(f"1 KiB written, {place}", "a run of true", written.rates("run", COUNT))


@pytest.mark.parametrize("way", ["read", "written"])
def test_large(
    benchmark: BenchmarkFixture,
    ratios: Ratios,
    runner: asyncio.Runner,
    client: RuntimeClient,
    disk: tuple[str, Path],
    place: str,
    way: str,
) -> None:
    """10 MB, against `cp` between two files of the host."""
    folder, beside = disk
    (beside / "from").write_bytes(LARGE)
    runner.run(client.write_file(f"{folder}/from", LARGE))

    async def read() -> None:
        assert len(await client.read_file(f"{folder}/from")) == len(LARGE)

    async def write() -> None:
        assert await client.write_file(f"{folder}/to", LARGE) == len(LARGE)

    def copied() -> None:
        subprocess.run(["cp", beside / "from", beside / "to"], check=True)

    ours = read if way == "read" else write
    found = compare(benchmark, lambda: runner.run(ours()), {"cp": copied}, ROUNDS)
    ratios.compared(f"10 MB {way}, {place}", "cp on the host", found.times("cp"))


def archive() -> bytes:
    """A thousand small files in ten directories."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as made:
        for number in range(FILES):
            info = tarfile.TarInfo(f"{number % 10}/{number}")
            info.size = FILE_BYTES
            made.addfile(info, io.BytesIO(SMALL))
    return buffer.getvalue()


@pytest.mark.parametrize("way", ["out", "in"])
def test_archive(
    benchmark: BenchmarkFixture,
    ratios: Ratios,
    runner: asyncio.Runner,
    client: RuntimeClient,
    memory: tuple[str, Path],
    place: str,
    way: str,
) -> None:
    """1 000 small files as a tar, against tar on the host and against the time that is allowed."""
    folder, beside = memory
    packed = archive()
    places = ["out", *(str(number) for number in range(ROUNDS + 1))]
    for place_in in places:
        runner.run(client.make_dir(f"{folder}/{place_in}"))
        (beside / place_in).mkdir()
    runner.run(client.write_tar(f"{folder}/out", packed))
    subprocess.run(["tar", "-xf", "-", "-C", beside / "out"], input=packed, check=True)
    ours_next, theirs_next = iter(places[1:]), iter(places[1:])

    async def read() -> None:
        assert len(await client.read_tar(f"{folder}/out")) > FILES * FILE_BYTES

    async def write() -> None:
        assert await client.write_tar(f"{folder}/{next(ours_next)}", packed) == FILES

    def pack() -> None:
        subprocess.run(["tar", "-cf", "-", "-C", beside / "out", "."], check=True, capture_output=True)

    def unpack() -> None:
        subprocess.run(["tar", "-xf", "-", "-C", beside / next(theirs_next)], input=packed, check=True)

    ours, rival = (read, pack) if way == "out" else (write, unpack)
    found = compare(benchmark, lambda: runner.run(ours()), {"tar": rival}, ROUNDS)
    what = f"1000 small files {way}, {place}"
    ratios.allowed(f"allowed time (60 ms) / taken, {what}", [ALLOWED_S / seconds for seconds in found.ours])
    ratios.compared(what, "tar on the host", found.times("tar"))
