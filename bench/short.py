"""The short form of the benches, for every change: python -m bench.short [FILE].

Four rows that others on the machine hardly move: of many commands the quickest, which had to wait for nobody, and the
processor time of the runtime, each against the same of a bare posix_spawn in the same second. With both cores taken by
others their medians stayed within a fifth, where the ratios of rates fell to a half (Linux 6.18). FILE gets the values.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.lean_client import LeanClient
from bench.processes import cpu_seconds, descendants
from bench.programs import Programs
from bench.ratios import BUDGETS, Pairs, Ratios
from bench.results import write
from bench.verdict import Verdict, judge
from bench.wire import LOOP, Command, Times, Wire, floor
from fastclaw.engine.base_image import static_busybox

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SERIAL, CROWD, AT_ONCE = 200, 480, 16
"""Commands of a round one at a time, of which one finds nobody in its way, and of a round at so many at once."""


class Sides(NamedTuple):
    """Seconds of a command in one round."""

    ours: float
    theirs: float


class Rounds:
    """Rounds of commands on a local runtime and without one.

    Parameters:
        true: a program that does nothing.
    """

    def __init__(self, programs: Programs, client: LeanClient, true: str) -> None:
        self._programs, self._wire = programs, Wire(programs, client)
        self._command = Command([true], [true, "true"])
        self._own = [client.process.pid, *descendants(client.process.pid)]  # nothing runs yet: what lives on

    def least(self, method: str) -> Sides:
        """The quickest of many, one after the other."""
        theirs = self._floor(method, SERIAL, 1)
        return Sides(self._ours(method, SERIAL, 1).min_us / 1e6, theirs.min_us / 1e6)

    def processor(self, method: str) -> Sides:
        """Processor time: of the runtime without what is started for one command, and all that the rival takes."""
        before = _of_children()
        self._floor(method, CROWD, AT_ONCE)
        theirs = _of_children() - before
        before = self._used()
        self._ours(method, CROWD, AT_ONCE)
        return Sides((self._used() - before) / CROWD, theirs / CROWD)

    def _floor(self, method: str, count: int, at_once: int) -> Times:
        return floor(self._programs, LOOP, self._command, count, at_once, pipes=method == "run")

    def _ours(self, method: str, count: int, at_once: int) -> Times:
        does = self._wire.run if method == "run" else self._wire.exec
        return does(self._command, count, at_once)

    def _used(self) -> float:
        return sum(map(cpu_seconds, self._own))


def _of_children() -> float:
    """Processor seconds of all children that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def rows(rounds: Rounds) -> dict[tuple[str, str], Callable[[], Sides]]:
    """What is measured, by its name and the rival's."""
    return {
        ("quickest run", "posix_spawn with pipes"): lambda: rounds.least("run"),
        ("quickest exec + wait", "bare posix_spawn"): lambda: rounds.least("exec"),
        ("processor time of a run, 16 at once", "posix_spawn with pipes"): lambda: rounds.processor("run"),
        ("processor time of exec + wait, 16 at once", "bare posix_spawn"): lambda: rounds.processor("exec"),
    }


class Row:
    """One of them, and all that was measured of it."""

    def __init__(self, measure: Callable[[], Sides]) -> None:
        self._measure = measure
        self._sides: list[Sides] = []
        self._at: list[float] = []
        measure()  # once to warm up

    def more(self, count: int) -> list[float]:
        """So many new rounds; the ratio of each."""
        for _ in range(count):
            self._sides.append(self._measure())
            self._at.append(time.time())
        return [side.theirs / side.ours for side in self._sides[-count:]]

    @property
    def pairs(self) -> Pairs:
        """All rounds."""
        ours, theirs = zip(*self._sides, strict=True)
        return Pairs("s", ours, theirs, self._at)


def judge_all(rounds: Rounds, ratios: Ratios, budgets: Mapping[str, float]) -> list[Verdict]:
    """Measure and judge each row, and say so."""
    verdicts = []
    for (what, rival), measure in rows(rounds).items():
        row, name = Row(measure), f"{what} / {rival}"
        verdicts.append(judge(name, budgets[name], row.more))
        ratios.compared(what, rival, row.pairs)
        sys.stdout.write(f"{verdicts[-1]}\n")
        sys.stdout.flush()
    return verdicts


def main(paths: list[str]) -> int:
    """1 where a budget was missed."""
    budgets = tomllib.loads(BUDGETS.read_text())["short"]
    ratios = Ratios()
    with tempfile.TemporaryDirectory(prefix="fcp") as directory, contextlib.closing(LeanClient("local", {})) as client:
        true = Path(directory) / "true"
        true.symlink_to(static_busybox() or "/bin/true")
        verdicts = judge_all(Rounds(Programs(Path(directory)), client, str(true)), ratios, budgets)
    for path in paths:
        write(Path(path), *ratios.results())
    return int(any(verdict.missed for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
