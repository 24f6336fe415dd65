"""`fastclaw trace`: where the time of a journal's calls went, as tables, and as a trace that Perfetto opens."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections import deque
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click
import msgspec

from fastclaw import telemetry_limits
from fastclaw.printable import printable
from fastclaw.telemetry.perfetto import document
from fastclaw.telemetry.reading import Reading
from fastclaw.telemetry.summary import StageRow, Summary, own_times, took_us

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastclaw.telemetry.lines import Line

_COLUMNS = ("count", "share", "p50", "p90", "p99", "p99.9")
_STAGE_WIDTH, _WIDTH = 12, 9
_LONGEST = 3
"""Stages that are listed of a slow call."""
_LOOK = 4_096
"""Lines between two looks at how far it is."""


@click.command()
@click.option("--perfetto", type=click.File("wb", lazy=True), metavar="OUT", help="Write a trace for ui.perfetto.dev.")
@click.option(
    "--last",
    type=click.IntRange(1),
    default=telemetry_limits.TRACE_CALLS,
    show_default=True,
    help="Calls in that trace: the last ones.",
)
@click.option("--slowest", type=click.IntRange(0), default=10, show_default=True, help="How many to list.")
@click.option("--json", "as_json", is_flag=True, help="The tables as JSON.")
@click.argument("journal", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def trace(perfetto: IO[bytes] | None, last: int, slowest: int, as_json: bool, journal: Path) -> None:
    """Show where the time went of what is in a JOURNAL (options.journal), with the files it was rotated into."""
    reading, summary = Reading(journal), Summary(slowest)
    calls: deque[Line] = deque(maxlen=last if perfetto is not None else 0)
    for line in _progress(reading):
        summary.add(line)
        if line.kind not in {"gone", "lost"}:
            calls.append(line)
    rows = list(summary.rows())
    if not rows:
        raise click.ClickException(f"there is no call in {journal}; fastclaw serve writes one with options.journal")
    if perfetto is not None:
        perfetto.writelines(document(calls))
    if as_json:
        told = {"stages": rows, "slowest": summary.slowest(), "lost": summary.lost, "bad": reading.bad}
        click.echo(msgspec.json.format(msgspec.json.encode(told)).decode())
        return
    for text in _text(rows, summary.slowest()):
        click.echo(printable(text))  # a journal may be anybody's
    for warning in _missing(summary.lost, reading.bad):
        click.echo(warning, err=True)


def _progress(reading: Reading) -> Iterator[Line]:
    """The lines, with a bar where that takes a while and somebody looks."""
    lines = iter(reading)
    with click.progressbar(length=reading.total_bytes, file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        while some := list(itertools.islice(lines, _LOOK)):
            yield from some
            bar.update(reading.read_bytes - bar.pos)


def _missing(lost: int, bad: int) -> Iterator[str]:
    if lost:
        yield f"{lost} lines are missing: the disk did not keep up"
    if bad:
        yield f"{bad} lines were no lines of a journal, or cut"


def _text(rows: list[StageRow], slowest: list[Line]) -> Iterator[str]:
    for (kind, lane, outcome), of in itertools.groupby(rows, lambda row: (row.kind, row.lane, row.outcome)):
        yield f"{kind}, {lane or 'no lane'}, {outcome}"
        yield f"  {'':{_STAGE_WIDTH}}" + "".join(f"{column:>{_WIDTH}}" for column in _COLUMNS)
        for row in of:
            times = [row.p50_us, row.p90_us, row.p99_us, row.p999_us]
            cells = [str(row.count), f"{row.share:.1%}", *map(duration, times)]
            yield f"  {row.stage:{_STAGE_WIDTH}}" + "".join(f"{cell:>{_WIDTH}}" for cell in cells)
        yield ""
    if slowest:
        yield "the slowest:"
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        yield from (_slow(line)[:width] for line in slowest)


def _slow(line: Line) -> str:
    longest = sorted(own_times(line).items(), key=lambda item: -item[1])[:_LONGEST]
    stages = ", ".join(f"{stage} {duration(own)}" for stage, own in longest)
    where = f" in {line.environment}" if line.environment else ""
    return f"  {duration(took_us(line)):>8}  {line.kind} {line.id}{where} {line.outcome}: {stages}"


def duration(microseconds: int) -> str:
    """With three digits that count, as `1.05 ms`."""
    if microseconds < 1_000:
        return f"{microseconds} us"
    value, unit = (microseconds / 1e3, "ms") if microseconds < 1_000_000 else (microseconds / 1e6, "s")
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
