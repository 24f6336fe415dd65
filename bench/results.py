"""The results of a run of benches as a file: JSON lines, first what was measured on, then each measured value.

    {"date": "2026-11-30", "commit": "6e7fe66", "machine": "2 CPUs, 24 GiB", …}
    {"what": "run over the wire, 1 at once", "rival": "posix_spawn with pipes", "side": "ours", "unit": "/s", …}

Tables and comparisons are made of such files and of nothing else.
"""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROOT = Path(__file__).parent.parent
DIRECTORY = ROOT / ".bench"

RATIO = "ratio"
"""The unit of a row without a rival that has a goal: what is allowed over what was taken."""

P50, P99 = "s p50", "s p99"
"""Units of one command in seconds. What has them is a table of its own: ways to do the same thing."""

OUR_LIBRARIES = ("uvloop", "orjson", "msgspec", "podman")

Kind = TypeVar("Kind")
Side = Literal["ours", "rival"]


class Header(Struct, frozen=True, kw_only=True):
    """What was measured, and on what.

    Parameters:
        commit: with a `+` where files differed from it.
        load: the load average of five minutes before the run (proc_loadavg(5)): what others did.
        versions: of what took part, by name.
        ways: versions of the rivals that have a table of their own.
        missing: rivals that were not measured, with what to do about it.
    """

    date: str
    commit: str
    machine: str
    kernel: str
    load: float
    python: str
    versions: dict[str, str]
    ways: dict[str, str] = {}
    missing: dict[str, str] = {}


class Row(Struct, frozen=True, kw_only=True):
    """One measured value.

    Parameters:
        rival: who did the same in turn with us, or empty.
        unit: one that ends with `/s` is a rate, of which more is better; of all others less is.
        round: counted from 0; both sides of one round were measured one after the other.
        at: Unix time in seconds.
    """

    what: str
    rival: str = ""
    side: Side = "ours"
    unit: str
    value: float
    round: int
    at: float


class Series(NamedTuple):
    """The values of one thing in one unit, round by round; `theirs` is empty where there is no rival."""

    what: str
    rival: str
    unit: str
    ours: list[float]
    theirs: list[float]

    @property
    def name(self) -> str:
        """As the goals name it."""
        of = f", {self.unit.split()[1]}" if self.unit in (P50, P99) else ""
        return f"{self.what}{of} / {self.rival}" if self.rival else self.what

    @property
    def values(self) -> list[float]:
        """One for each round, of which more is better where there is a rival: the ratio of the pair."""
        if not self.rival:
            return self.ours
        return ratios(self.unit, self.ours, self.theirs)


class Results(NamedTuple):
    """A file, read."""

    header: Header
    rows: list[Row]

    def series(self) -> list[Series]:
        """In the order in which they were measured."""
        found: dict[tuple[str, str, str], Series] = {}
        for row in self.rows:
            key = (row.what, row.rival, row.unit)
            one = found.setdefault(key, Series(*key, [], []))
            (one.ours if row.side == "ours" else one.theirs).append(row.value)
        return list(found.values())


def ratios(unit: str, ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """How many times as good as the rival each round was: what disturbs the machine for a while disturbs both."""
    pairs = zip(ours, theirs, strict=True)
    return [our / their if unit.endswith("/s") else their / our for our, their in pairs]


def read(path: Path) -> Results:
    """A file of results.

    Raises:
        ValueError: it is none, or was cut; the text says where.
    """
    head, *lines = path.read_bytes().splitlines() or [b""]
    rows = [_decoded(line, Row, path, number) for number, line in enumerate(lines, 2)]
    found = Results(_decoded(head, Header, path, 1), rows)
    for one in found.series():
        if one.rival and len(one.ours) != len(one.theirs):
            raise ValueError(f"{path}: {one.name}: {len(one.ours)} rounds of ours and {len(one.theirs)} of the rival")
        if one.rival and min(*one.ours, *one.theirs) <= 0:
            raise ValueError(f"{path}: {one.name}: a value that is not above 0, of which there is no ratio")
    if not rows:
        raise ValueError(f"{path}: nothing was measured")
    return found


def _decoded(line: bytes, kind: type[Kind], path: Path, number: int) -> Kind:
    try:
        return msgspec.json.decode(line, type=kind)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}, line {number}: {error}") from error


def write(path: Path, header: Header, rows: Iterable[Row]) -> None:
    """A new file, in a directory that is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join(map(msgspec.json.encode, [header, *rows])) + b"\n")


def make_header() -> Header:
    """Of this moment on this machine; who takes part adds his version."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Header(
        date=str(datetime.now(UTC).date()),
        commit=_commit(),
        machine=f"{os.cpu_count()} CPUs, {memory:.0f} GiB, {platform.machine()}",
        kernel="Linux " + ".".join(platform.release().split(".")[:2]),  # the rest names a distribution's build
        load=os.getloadavg()[1],
        python=platform.python_version(),
        versions={name: version(name) for name in OUR_LIBRARIES},
    )


def default_path(header: Header) -> Path:
    """Where the results of a run go that was told nothing else."""
    return DIRECTORY / f"{header.date}-{header.commit}.jsonl"


def _commit() -> str:
    """Of this checkout; `unknown` where there is no git."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--match="]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
