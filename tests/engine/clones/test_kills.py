"""fastclaw is killed, its cloner is, or both are, with clones up and in the middle of 20: nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest

from fastclaw.engine.clones.cloning import CloningEngine
from fastclaw.errors import StartFailed
from fastclaw.linux import proc
from tests.engine.clones.clone_fleet import directories, groups
from tests.engine.test_container import run
from tests.waiting import until, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.engine.clones.clone_fleet import CloneFleet

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="clones are root's")

MANY = 20


class Owner(NamedTuple):
    """A fastclaw with clones. `inits` are those that it has said are up."""

    process: subprocess.Popen[str]
    cloner: int
    inits: list[int]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


@contextmanager
def owner(clones: CloneFleet, directory: Path, wait_for: int) -> Iterator[Owner]:
    """One that makes many, once so many of them are up."""
    argv = [sys.executable, "-m", "tests.engine.clones.clone_owner", clones.engine.url, clones.image, str(directory)]
    with subprocess.Popen([*argv, str(MANY)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            word, cloner = process.stdout.readline().split()
            assert word == "begin"
            inits = []
            for _ in range(wait_for):
                pid, maker = process.stdout.readline().split()
                assert maker == "clone"
                inits.append(int(pid))
            yield Owner(process, int(cloner), inits)
        finally:
            process.kill()


@pytest.fixture
async def empty(clones: CloneFleet) -> CloneFleet:
    """A fleet without a cloning engine of its own, so that all that there is of clones is an owner's."""
    await clones.cloning.aclose()
    assert clones.remains() == []
    return clones


def has_ended(pid: int) -> bool:
    stat = proc.read_stat(pid)
    return stat is None or stat.gone


@pytest.mark.parametrize("count", [MANY, 3, 0], ids=["up", "in the middle", "at the beginning"])
async def test_when_fastclaw_is_killed_its_cloner_removes_everything(
    empty: CloneFleet, tmp_path: Path, count: int
) -> None:
    with owner(empty, tmp_path, count) as one:
        one.kill()
        await until(lambda: empty.remains(one.process.pid) == [])
        assert all(has_ended(pid) for pid in one.inits)
        await until(lambda: has_ended(one.cloner))


@pytest.mark.parametrize("count", [MANY, 3], ids=["up", "in the middle"])
@pytest.mark.parametrize("is_cloner_first", [False, True])
async def test_when_both_are_killed_the_next_fastclaw_removes_everything(
    empty: CloneFleet, tmp_path: Path, count: int, is_cloner_first: bool
) -> None:
    with owner(empty, tmp_path, count) as one:
        both = [one.process.pid, one.cloner]
        for pid in reversed(both) if is_cloner_first else both:
            os.kill(pid, signal.SIGKILL)
        one.process.wait(10)
        wait_until(lambda: has_ended(one.cloner))
        assert len(directories(empty.storage)) == 1
        version = await empty.engine.version()
        empty.cloning = await CloningEngine.open(empty.engine, version, empty.engine.image_id)
        assert empty.remains(one.process.pid) == []
        assert all(has_ended(pid) for pid in one.inits)
        async with empty.clone():
            pass


async def test_the_directory_of_a_living_fastclaw_is_left_alone(empty: CloneFleet, tmp_path: Path) -> None:
    with owner(empty, tmp_path, MANY) as one:
        version = await empty.engine.version()
        empty.cloning = await CloningEngine.open(empty.engine, version, empty.engine.image_id)
        assert len(directories(empty.storage)) == 2
        assert not any(has_ended(pid) for pid in one.inits)
        one.kill()
        await until(lambda: empty.remains(one.process.pid) == [])


async def test_when_the_cloner_is_killed_clones_go_on_and_can_be_removed(clones: CloneFleet) -> None:
    async with clones.clone() as one, clones.up() as other:
        cloner = clones.cloning._cloner
        assert cloner is not None
        first = cloner.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: cloner.pid != first)  # an order that comes before that fails, and may be tried again
        assert await run(one, "echo", "still here") == (0, "still here\n")
        async with clones.up() as another:
            assert clones.cloning.made_by(another.id)[0] == "clone"
            assert cloner.pid != first
        await other.remove()
        assert one.alive
        assert await run(one, "echo", "still here") == (0, "still here\n")
        os.kill(cloner.pid or 0, signal.SIGKILL)
    assert groups() == []
    (own,) = directories(clones.storage)
    assert os.listdir(f"{own}/clones") == os.listdir(f"{own}/state") == []


async def test_when_the_cloner_is_killed_in_the_middle_those_starts_fail_and_nothing_stays(clones: CloneFleet) -> None:
    async with clones.clone():
        cloner = clones.cloning._cloner
        assert cloner is not None
        many = [clones.make() for _ in range(MANY)]
        starts = [asyncio.create_task(one.start()) for one in many]
        await until(lambda: len({group.rpartition("/")[2] for group in groups()}) > 3)
        os.kill(cloner.pid or 0, signal.SIGKILL)
        outcomes = await asyncio.gather(*starts, return_exceptions=True)
        failed = [outcome for outcome in outcomes if outcome is not None]
        assert 0 < len(failed) < MANY
        assert all(isinstance(one, StartFailed) and "the cloner failed" in str(one) for one in failed)
        up = [one for one, outcome in zip(many, outcomes, strict=True) if outcome is None]
        assert await run(up[-1], "echo", "here") == (0, "here\n")
        await asyncio.gather(*(one.remove() for one in many))
    assert groups() == []
    (own,) = directories(clones.storage)
    assert os.listdir(f"{own}/clones") == os.listdir(f"{own}/state") == []
