"""`fastclaw demo`: the main job for real, with a progress bar and a table. What it does is `demo_round`'s."""

import os
import sys
import tempfile
from typing import IO

import click
import orjson
from msgspec import to_builtins
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fastclaw.cli.demo_round import Result, run_round
from fastclaw.errors import FastclawError
from fastclaw.linux import loop
from fastclaw.options import RUNTIMES, Options
from fastclaw.podman.service.facts import why_no_engine

LOG_LINES = 10
"""Of the runtime's log, shown after a failure."""


@click.command()
@click.option("--runtime", type=click.Choice(["auto", "podman", "local"]), default="auto", show_default=True)
@click.option("--workers", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Processes at once.")
@click.option("--lines", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Lines to each worker.")
@click.option("--rounds", type=click.IntRange(1), default=1, show_default=True, help="Stops at the first bad one.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per round on stdout, and nothing else there.")
def demo(runtime: str, workers: int, lines: int, rounds: int, as_json: bool) -> None:
    """Start a runtime and many workers at once, stream through their sockets, and show what it took."""
    console = Console(stderr=True) if as_json else Console()
    chosen, why = choose(runtime)
    console.print(f"Runtime: {chosen}, {why}.", highlight=False)
    for _ in range(rounds):
        result = _run(chosen, workers, lines, console)
        if as_json:
            sys.stdout.write(orjson.dumps(to_builtins(result), option=orjson.OPT_APPEND_NEWLINE).decode())
        else:
            console.print(table(result))
        if not result.is_good:
            explain(result, console)
            sys.exit(1)


def choose(wanted: str) -> tuple[str, str]:
    """A name in `RUNTIMES`, and why that one."""
    if wanted != "auto":
        assert wanted in RUNTIMES
        return wanted, "as you asked"
    reason = why_no_engine(Options())
    if reason is None:
        return "podman", "because it is usable here"
    return "local", f"which isolates nothing, because Podman is not usable here: {reason}"


def _run(runtime: str, workers: int, lines: int, console: Console) -> Result:
    with tempfile.TemporaryFile() as log:
        try:
            return _run_with_bars(runtime, workers, lines, log, console)
        except FastclawError:
            console.print(_tail(log), style="dim", markup=False, highlight=False, soft_wrap=True)
            raise


def _run_with_bars(runtime: str, workers: int, lines: int, log: IO[bytes], console: Console) -> Result:
    with _bars(console) as bars:
        tasks = {
            "start": bars.add_task("workers started", total=workers),
            "line": bars.add_task("lines echoed", total=workers * lines),
        }
        return loop.run(run_round(runtime, workers, lines, log, lambda kind: bars.advance(tasks[kind])))


def _bars(console: Console) -> Progress:
    columns = (TextColumn("{task.description:>16}"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


def _tail(log: IO[bytes]) -> str:
    """The last lines of the runtime's log. Read with pread: its position is the runtime's too."""
    text = os.pread(log.fileno(), os.fstat(log.fileno()).st_size, 0).decode(errors="replace")
    return "\n".join(text.splitlines()[-LOG_LINES:])


def table(result: Result) -> Table:
    """The result, to look at."""
    left = result.leftovers
    shown = Table("what", "result", title=f"{result.workers} workers at once on {result.runtime}", title_justify="left")
    shown.add_row("starts", f"{result.starts_per_s:.0f}/s")
    shown.add_row(
        "start p50 / p99", f"{result.start.p50_ms:.1f} / {result.start.p99_ms:.1f} ms (all asked for at once)"
    )
    shown.add_row("round trip p50 / p99", f"{result.round_trip.p50_ms:.2f} / {result.round_trip.p99_ms:.2f} ms")
    shown.add_row("lines echoed", f"{result.lines:,}")
    shown.add_row("exit codes", f"{result.right_exit_codes} of {result.workers} right")
    shown.add_row("wrong answers", f"{len(result.wrong)}")
    shown.add_row("left over", f"{left.processes} processes, {left.sockets} sockets, {left.directories} directories")
    return shown


def explain(result: Result, console: Console) -> None:
    """Say what was wrong, the first of it."""
    for sentence in result.wrong[:LOG_LINES]:
        console.print(sentence, style="red", markup=False, highlight=False)
