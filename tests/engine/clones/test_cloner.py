"""Orders are answered, refused or failed, once each; a cloner that dies is followed by another."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from fastclaw import engine_limits
from fastclaw.engine.clones.cloner import Cloner
from fastclaw.errors import StartFailed
from fastclaw.linux.directories import HeldDirectory
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="clones are root's")


@asynccontextmanager
async def a_cloner(parent: Path) -> AsyncIterator[Cloner]:
    cloner = Cloner(HeldDirectory(parent, "x-"), "/usr/bin/crun", None)
    try:
        yield cloner
    finally:
        await cloner.aclose()
        await cloner.aclose()
    assert os.listdir(parent) == []


async def hold(cloner: Cloner, name: str, source: Path) -> None:
    await cloner.order("hold", 5_000, name=name, source=str(source), witness=str(source))


async def test_it_is_started_with_the_first_order_and_removes_its_directory(short_dir: Path) -> None:
    async with a_cloner(short_dir) as cloner:
        assert repr(cloner) == "<Cloner None, 0 orders>"
        (name,) = os.listdir(short_dir)
        source = short_dir / name / "state"
        await hold(cloner, "0", source)
        assert cloner.pid is not None
        assert repr(cloner).startswith("<Cloner <Helper")
        assert os.listdir(source.parent / "layers") == ["0"]
        await cloner.order("drop", 5_000, name="0")
        assert os.listdir(source.parent / "layers") == []
        with pytest.raises(StartFailed, match="No such file"):
            await hold(cloner, "0", source / "none")
        assert os.listdir(source.parent / "layers") == []


async def test_one_that_is_not_needed_is_not_started(short_dir: Path) -> None:
    async with a_cloner(short_dir) as cloner:
        assert repr(cloner) == "<Cloner None, 0 orders>"
    with pytest.raises(StartFailed, match="is closed"):
        await cloner.order("drop", 5_000, name="0")


async def test_after_its_death_orders_fail_and_the_next_ones_are_for_another(short_dir: Path) -> None:
    async with a_cloner(short_dir) as cloner:
        await cloner.order("drop", 5_000, name="0")
        first = cloner.pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        waiting = asyncio.create_task(cloner.order("drop", 5_000, name="0"))
        await until(lambda: "1 orders" in repr(cloner))
        os.kill(first, signal.SIGKILL)
        with pytest.raises(StartFailed, match="it has ended; try again") as caught:
            await waiting
        assert caught.value.reason == "engine_unavailable"
        await cloner.order("drop", 5_000, name="0")
        assert cloner.pid not in (None, first)


async def test_killed_and_closed_before_another_is_there_its_directory_goes_too(short_dir: Path) -> None:
    async with a_cloner(short_dir) as cloner:
        await cloner.order("drop", 5_000, name="0")
        assert cloner.pid is not None
        os.kill(cloner.pid, signal.SIGKILL)
        await until(lambda: cloner.pid is None)


async def test_one_that_does_not_come_up_or_not_answer_in_time(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_limits, "CLONER_READY_MS", 100)
    monkeypatch.setattr(engine_limits, "CLONER_EXIT_MS", 100)
    monkeypatch.setattr(sys, "executable", "/bin/cat")
    async with a_cloner(short_dir) as cloner:
        with pytest.raises(StartFailed, match="did not drop within 200 ms") as caught:
            await cloner.order("drop", 200, name="0")
        assert caught.value.reason == "engine_timeout"


async def test_one_that_cannot_be_started(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/program")
    async with a_cloner(short_dir) as cloner:
        with pytest.raises(StartFailed, match="cannot be started: No such file"):
            await cloner.order("drop", 200, name="0")


async def test_an_order_that_is_too_long_is_refused(short_dir: Path) -> None:
    async with a_cloner(short_dir) as cloner:
        with pytest.raises(StartFailed, match="too many for a clone"):
            await cloner.order("drop", 5_000, name="0" * engine_limits.CLONER_FRAME_BYTES)
