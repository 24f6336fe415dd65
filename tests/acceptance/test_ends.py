"""Who closes what (docs/ends.md): each process that owns something is killed in turn, and the books balance."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from fastclaw.linux import proc
from tests.acceptance.homes import DAEMONS, PATIENCE_S, Home, nothing_is_left
from tests.acceptance.hostile import need_root_for
from tests.pids import children_of, command_line, descendants_of, marked
from tests.spawner.fake_spawner import busy_reapers_of, pump_of
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fastclaw.engine.service.plan import ServicePlan

pytestmark = pytest.mark.timeout(60)

LANES = {
    "local": ("local", {}, f"echo up; {DAEMONS}"),
    "spawn": ("podman", {"workspace": {"target": "/w"}}, f"nc 127.0.0.1 3128 </dev/null; echo up; {DAEMONS}"),
    "clone": ("podman", {"workspace": {"target": "/w"}, "clone": "always"}, f"echo up; {DAEMONS}"),
    "rest": ("podman", {"lane": "rest", "workspace": {"target": "/w"}}, f"echo up; {DAEMONS}"),
}
"""Runtime, options and command: one that has asked the egress proxy for something, where there is one."""


class World:
    """A supervisor with its fastclaw, a process, and all that these have made."""

    def __init__(self, home: Home, lane: str) -> None:
        runtime, options, script = LANES[lane]
        argv = [sys.executable, "-m", "tests.acceptance.supervisor", runtime, json.dumps(options), script]
        self.home, self.lane = home, lane
        self.supervisor = subprocess.Popen(argv, env=home.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.fastclaw, self.process = 0, ""

    def hear(self) -> str:
        """Its next word; empty where it has ended."""
        assert self.supervisor.stdout is not None
        return self.supervisor.stdout.readline().strip()

    async def start(self) -> None:
        """Return once the process runs."""
        pid, self.process = (await asyncio.to_thread(self.hear)).split()
        self.fastclaw = int(pid)

    async def end(self, word: str) -> tuple[str, ...]:
        """What it says to a word, until it ends."""
        out, _ = await asyncio.to_thread(self.supervisor.communicate, f"{word}\n", PATIENCE_S)
        return (*str(out).splitlines(),)

    def helpers(self, name: str) -> list[int]:
        """Children of fastclaw with this word, program or module in their command line."""
        named = re.compile(rf"[/.\0]{name}[-.\0]".encode())
        return [pid for pid, _ in proc.children(self.fastclaw) if named.search(command_line(pid))]

    def spawners(self) -> list[int]:
        """PID 1 of each container; on this host a child of fastclaw's."""
        return self.helpers("spawner") if self.lane == "local" else self.home.inits()

    def reapers(self) -> list[int]:
        """The one that keeps the process."""
        return [reaper for spawner in self.spawners() for reaper in busy_reapers_of(spawner)]

    def file_helpers(self) -> list[int]:
        """The one that writes a file."""
        below = chain(*map(descendants_of, self.spawners()))
        return [pid for pid in below if b"--file" in command_line(pid).split(b"\0")]

    def monitors(self) -> list[int]:
        """conmon: of each container, and of each exec on the REST lane."""
        needle = str(self.home.base).encode()
        found = []
        for pid in proc.pids():
            with contextlib.suppress(OSError):
                words = command_line(pid)
                found += [pid] if words.split(b"\0")[0].endswith(b"conmon") and needle in words else []
        return found


class Owner(NamedTuple):
    """A process that owns something.

    Parameters:
        lanes: where there is one.
        find: its pid, or those of all of its kind.
        ends_process: the `process` ends with it, though fastclaw lives.
        says: the supervisor, afterwards: `on` for a further start, and what fastclaw ended with.
    """

    lanes: tuple[str, ...]
    find: Callable[[World], list[int]]
    ends_process: bool = False
    says: tuple[str, ...] = ("on", "0")


SPAWN, PODMAN, ALL = ("local", "spawn"), ("spawn", "rest"), ("local", "spawn", "rest")

OWNERS = {
    "supervisor": Owner(ALL, lambda world: [world.supervisor.pid], says=()),
    "fastclaw": Owner(ALL, lambda world: [world.fastclaw], says=("-9",)),
    "spawner": Owner(SPAWN, World.spawners, ends_process=True),
    "reaper": Owner(SPAWN, World.reapers, ends_process=True),
    "pump": Owner(SPAWN, lambda world: [pump_of(reaper) for reaper in world.reapers()], ends_process=True),
    "file helper": Owner(("spawn",), World.file_helpers),
    "egress proxy": Owner(("spawn",), lambda world: world.helpers("proxy_main")),
    "engine": Owner(PODMAN, lambda world: world.helpers("service")),
    "janitor": Owner(PODMAN, lambda world: world.helpers("janitor_main")),
    "conmon": Owner(PODMAN, World.monitors),
    "cloner": Owner(("clone",), lambda world: world.helpers("cloner_main")),
    "stdin server": Owner(("rest",), lambda world: world.helpers("stdin_main")),
    "stdin helper": Owner(("rest",), lambda world: [*chain(*map(children_of, world.helpers("stdin_main")))]),
}


@pytest.fixture
def world(home: Home, lane: str) -> Iterator[World]:
    need_root_for("clone" if lane == "clone" else "host")
    world = World(home, lane)
    yield world
    world.supervisor.kill()
    world.supervisor.communicate()


def cases() -> list[tuple[str, str]]:
    return [(owner, lane) for owner, row in OWNERS.items() for lane in row.lanes]


@pytest.mark.podman
@pytest.mark.parametrize(("owner", "lane"), cases())
async def test_the_books_balance_after_an_owner_was_killed(
    owner: str, lane: str, world: World, home: Home, engine_plan: ServicePlan
) -> None:
    row = OWNERS[owner]
    await world.start()
    await until(lambda: row.find(world))
    for pid in row.find(world):
        os.kill(pid, signal.SIGKILL)
    if row.ends_process:
        await until(lambda: not marked(world.process))
    assert await world.end("again" if "on" in row.says else "end") == row.says
    await nothing_is_left(home)
    if lane != "local":
        assert home.records(engine_plan) == ""
    if owner != "fastclaw":  # the next start removes a dead one's (tests/acceptance/test_crash.py)
        assert home.directories() == []


def test_the_page_and_this_file_have_the_same_owners() -> None:
    page = (Path(__file__).parents[2] / "docs" / "ends.md").read_text()
    rows = re.findall(r"^\| \*\*(.+?)\*\* \|", page, re.MULTILINE)
    assert sorted(rows) == sorted(OWNERS)
