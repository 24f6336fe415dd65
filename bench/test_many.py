"""Thousands of live processes, each with its streams held by a client: what each costs in memory, and what a start
costs among them.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench.engine import Engine, engine_or_skip
from bench.lean_client import LeanClient
from bench.spawn_lane import TRUE
from fastclaw.decisions.container import INIT_TARGET
from fastclaw.transport import procfs
from fastclaw.transport.host import raise_file_limit

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from bench.ratios import Ratios

FEW, MANY = 10, 5_000
SLEEPER = ["sleep", "100000"]
STARTS = 200
ROUNDS = 21
ALLOWED_KB = 20


@pytest.fixture(scope="module")
def engine(runner: asyncio.Runner) -> Iterator[Engine]:
    yield from engine_or_skip(runner)


def test_five_thousand(engine: Engine, ratios: Ratios) -> None:
    raise_file_limit()
    options = {"url": engine.url, "lane": "spawn", "max_processes": MANY + 100, "pids_limit": 4 * MANY}
    with contextlib.ExitStack() as served:
        few = served.enter_context(contextlib.closing(LeanClient("podman", options)))
        others = _spawners()
        many = served.enter_context(contextlib.closing(LeanClient("podman", options)))
        (spawner,) = _spawners() - others
        few.start(SLEEPER, FEW)
        many.start(SLEEPER, FEW)
        before = _memory_kb(many, spawner)
        began = time.perf_counter()
        with contextlib.ExitStack() as held:
            for result in many.start(SLEEPER, MANY - FEW):
                for address in (result["stdio_addr"], result["stderr_addr"]):
                    held.enter_context(_connected(address))
            seconds = time.perf_counter() - began
            each = (_memory_kb(many, spawner) - before) / (MANY - FEW)
            costs = [_in_turn(few, many) for _ in range(ROUNDS)]
            assert many.call("health")["details"]["processes"]["live"] == MANY
    ratios.ratio(f"allowed memory per live process ({ALLOWED_KB} KB) / used", ALLOWED_KB / each)
    ratios.fact(f"{MANY} live processes with both streams connected", f"{each:.1f} KB each, up in {seconds:.1f} s")
    ratios.ratio(f"a start among {FEW} live / among {MANY}", statistics.median(costs[1:]))


def _in_turn(few: LeanClient, many: LeanClient) -> float:
    """How many times as long it takes with few around: start to exit code, one at a time."""
    times = []
    for client in (few, many):
        began = time.perf_counter()
        client.run(TRUE, STARTS, 1, 0)
        times.append(time.perf_counter() - began)
    return times[0] / times[1]


def _connected(address: str) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.connect(address)
    return client


def _spawners() -> set[int]:
    """Every container's init that is a spawner: keepers look the same, but are no init of their PID namespace."""
    found = set()
    for pid in procfs.pids():
        with contextlib.suppress(OSError):
            process = Path(f"/proc/{pid}")
            if INIT_TARGET.encode() in (process / "cmdline").read_bytes().split(b"\0")[:1]:
                status = (process / "status").read_text().splitlines()
                found |= {pid for line in status if line.startswith("NSpid:") and line.split()[-1] == "1"}
    return found


def _memory_kb(client: LeanClient, spawner: int) -> int:
    """Resident memory of the served runtime, its relay workers and the spawner, whose keepers share its memory."""
    workers = [pid for pid, _ in procfs.children(client.process.pid)]
    return sum(_resident_kb(pid) for pid in (client.process.pid, *workers, spawner))


def _resident_kb(pid: int) -> int:
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
