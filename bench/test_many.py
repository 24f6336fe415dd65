"""Thousands of live processes, each with its streams held by a client: what each costs in memory, and what a start
costs among them.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.lean_client import LeanClient, connected
from bench.processes import descendants, have_one_memory, kernel_kb, memory_info_kb, name, proportional_kb, resident_kb
from bench.ratios import Pairs
from bench.wire import Command, Wire
from fastclaw.engine.container_spec import INIT_TARGET
from fastclaw.linux import proc
from fastclaw.linux.own_process import raise_file_limit

if TYPE_CHECKING:
    from bench.engine import Engine
    from bench.programs import Programs
    from bench.ratios import Ratios

FEW, MANY = 10, 5_000
SLEEPER = ["sleep", "100000"]
TRUE = Command(["true"], [])
STARTS = 200
ROUNDS = 21
ALLOWED_KB = 16
ALLOWED_KERNEL_KB = 140 + 32
"""What a sleeping command, its reaper and the sockets at both ends took before each had a pump (139, 141 and 144 KB in
three runs, Linux 6.18, x86_64), and a task more."""


def test_five_thousand(engine: Engine, ratios: Ratios, programs: Programs) -> None:
    raise_file_limit()
    options = {"url": engine.url, "lane": "spawn", "max_processes": MANY + 100, "pids_limit": 4 * MANY}
    with contextlib.ExitStack() as served:
        few = served.enter_context(contextlib.closing(LeanClient("podman", options)))
        others = _spawners()
        many = served.enter_context(contextlib.closing(LeanClient("podman", options)))
        (spawner,) = _spawners() - others
        few.start(SLEEPER, FEW)
        many.start(SLEEPER, FEW)
        before = Memory(many, spawner)
        began = time.perf_counter()
        with contextlib.ExitStack() as held:
            for result in many.start(SLEEPER, MANY - FEW):
                for address in (result["stdio_addr"], result["stderr_addr"]):
                    held.enter_context(connected(address))
            seconds = time.perf_counter() - began
            many.call("health")  # the connections have been accepted before it
            each = Memory(many, spawner).less(before)
            rates = [_in_turn(Wire(programs, few), Wire(programs, many)) for _ in range(ROUNDS)]
            assert many.call("health")["details"]["processes"]["live"] == MANY
    ratios.allowed(f"allowed memory per live process ({ALLOWED_KB} KB) / used", [ALLOWED_KB / each.ours])
    ratios.allowed(
        f"allowed kernel memory per live process ({ALLOWED_KERNEL_KB} KB) / used", [ALLOWED_KERNEL_KB / each.kernel]
    )
    what = f"{MANY} live processes with both streams connected"
    ratios.figure(f"{what}, ours of each", [each.ours], "KB")
    ratios.figure(f"{what}, the kernel's of each", [each.kernel], "KB")
    ratios.figure(f"{what}, all of each with the command", [each.all], "KB")
    ratios.figure(f"{what}, until they are up", [seconds], "s")
    ratios.compared(f"a start among {MANY} live", f"among {FEW}", Pairs("/s", *zip(*rates[1:], strict=True)))


def _in_turn(few: Wire, many: Wire) -> tuple[float, float, float]:
    """Starts a second among many and among few, start to exit code, one at a time; and when that was."""
    among_few, among_many = (STARTS / wire.exec(TRUE, STARTS, 1).seconds for wire in (few, many))
    return among_many, among_few, time.time()


class Each(NamedTuple):
    """KB for each process."""

    ours: float
    kernel: float
    all: float


class Memory:
    """What there is at a moment, in KB.

    Ours is the resident memory of the served runtime, its own processes, the spawner and whatever is below that and
    no command. The spawner's own tasks share its memory, which counts once (kcmp(2) says whether they do); of one that
    does not, its proportional part.
    The kernel's part is the machine's (`kernel_kb`): the command's own task and page tables are in it.
    """

    def __init__(self, client: LeanClient, spawner: int) -> None:
        # First, because reading the processes in /proc makes slabs grow.
        self._kernel, self._available = kernel_kb(), memory_info_kb()["MemAvailable"]
        below = [pid for pid in descendants(spawner) if name(pid) != SLEEPER[0]]
        apart = [pid for pid in below if not have_one_memory(pid, spawner)]
        own = [client.process.pid, *descendants(client.process.pid)]
        self._ours = sum(map(resident_kb, [*own, spawner])) + sum(map(proportional_kb, apart))

    def less(self, before: Memory) -> Each:
        """What has come on top, for each that was started in between."""
        count = MANY - FEW
        kernel, everything = self._kernel - before._kernel, before._available - self._available
        return Each((self._ours - before._ours) / count, kernel / count, everything / count)


def _spawners() -> set[int]:
    """Every container's init that is a spawner: reapers look the same, but are no init of their PID namespace."""
    found = set()
    for pid in proc.pids():
        with contextlib.suppress(OSError):
            process = Path(f"/proc/{pid}")
            if INIT_TARGET.encode() in (process / "cmdline").read_bytes().split(b"\0")[:1]:
                status = (process / "status").read_text().splitlines()
                found |= {pid for line in status if line.startswith("NSpid:") and line.split()[-1] == "1"}
    return found
