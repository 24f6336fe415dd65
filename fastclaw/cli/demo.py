"""`fastclaw demo`: the main job for real, with a progress bar and a table, and what is left afterwards.

A round is many workers at once, each talked to through its sockets: progress goes to a callback, results are values.
"""

import asyncio
import math
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import click
import orjson
from msgspec import Struct, field, to_builtins
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fastclaw.client import RemoteProcess, RuntimeClient
from fastclaw.conformance.rig import bearers, existing
from fastclaw.engine.service.facts import why_no_docker, why_no_engine
from fastclaw.errors import FastclawError, IoError
from fastclaw.linux import own_process, proc
from fastclaw.options import ENGINES, RUNTIMES, Options

LOG_LINES = 10
"""Of the runtime's log, shown after a failure."""

WORKER = 'while read -r line; do echo "$line"; done; echo "bye from $1" >&2; exit "$1"'
"""Any POSIX shell: echoes lines, says goodbye on stderr, ends with the exit code that it was told."""

EXIT_CODES = 100
"""Workers are told 0 to 99: from 126 on a code could be the shell's own."""

MARKER = "FASTCLAW_DEMO"
"""A variable that every process of the round inherits: what is left is found by it."""

OnProgress = Callable[[str], None]
"""Told `start` for each worker that runs, and `line` for each line that came back."""


class Percentiles(Struct, frozen=True, kw_only=True):
    """Milliseconds."""

    p50_ms: float
    p99_ms: float


class Leftovers(Struct, frozen=True, kw_only=True):
    """What the runtime should have taken with it."""

    processes: int
    sockets: int
    directories: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.processes + self.sockets + self.directories


class Result(Struct, frozen=True, kw_only=True):
    """What a round found.

    Parameters:
        runtime: its name as `health` gives it.
        start: from the exec call to its answer, all workers asked for at once, so waiting in line is part of it.
        round_trip: one line to a worker and back, all workers talking at once.
        wrong: what differed from what must be, one sentence each.
    """

    runtime: str
    workers: int
    lines: int
    starts_per_s: float
    start: Percentiles
    round_trip: Percentiles
    right_exit_codes: int
    leftovers: Leftovers
    wrong: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Nothing wrong and nothing left."""
        return not self.wrong and self.right_exit_codes == self.workers and self.leftovers.total == 0


async def run_round(runtime: str, workers: int, lines: int, log: IO[bytes], progress: OnProgress) -> Result:
    """Serve `runtime` as a child, run the workers, shut down, and look at what is left.

    Parameters:
        lines: sent to each worker, one after the other.
        log: gets the runtime's stderr.

    Raises:
        StartFailed, ExecFailed, IoError: as the client.
    """
    session = _Round(workers, lines, progress)
    try:
        await session.run(runtime, log)
    except BaseExceptionGroup as group:
        raise _first(group) from group
    return session.result()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """One failed worker takes the others down; its error is the one to show."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


class _Round:
    """The numbers while they come in."""

    def __init__(self, workers: int, lines: int, progress: OnProgress) -> None:
        self._workers = workers
        self._lines = lines
        self._progress = progress
        self._token = f"demo-{secrets.token_hex(6)}"
        self._starts: list[float] = []
        self._round_trips: list[float] = []
        self._started_in_s = 0.0
        self._right_exit_codes = 0
        self._wrong: list[str] = []
        self._paths: list[str] = []
        self._runtime = ""

    async def run(self, runtime: str, log: IO[bytes]) -> None:
        command = [sys.executable, "-m", "fastclaw", "serve", "--runtime", runtime]
        marked = {MARKER: self._token}
        async with RuntimeClient.spawn(
            command, namespace=self._token, options={"env": marked}, env={**os.environ, **marked}, stderr=log
        ) as client:
            health = await client.health()
            self._runtime = str(health.details.get("runtime", runtime))
            processes = await self._start_all(client)
            async with asyncio.TaskGroup() as group:
                for number, process in enumerate(processes):
                    group.create_task(self._talk(number, process))
        if client.exit_code != 0:
            self._wrong.append(f"the runtime ended with exit code {client.exit_code}")

    async def _start_all(self, client: RuntimeClient) -> list[RemoteProcess]:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._start(client, number)) for number in range(self._workers)]
        self._started_in_s = time.perf_counter() - began
        return [task.result() for task in tasks]

    async def _start(self, client: RuntimeClient, number: int) -> RemoteProcess:
        began = time.perf_counter()
        process = await client.exec(["sh", "-c", WORKER, "worker", str(number % EXIT_CODES), self._token])
        self._starts.append(time.perf_counter() - began)
        self._paths += [process.stdio_addr, process.stderr_addr]
        self._progress("start")
        return process

    async def _talk(self, number: int, process: RemoteProcess) -> None:
        async with process:
            for turn in range(self._lines):
                await self._exchange(process, f"worker {number} line {turn}\n".encode())
            rest, errors = await process.communicate()
            self._expect(f"worker {number}: stdout after the last line", rest, b"")
            self._expect(f"worker {number}: stderr", errors, f"bye from {number % EXIT_CODES}\n".encode())
            record = await process.wait()
        if record.exit_code == number % EXIT_CODES:
            self._right_exit_codes += 1

    async def _exchange(self, process: RemoteProcess, line: bytes) -> None:
        began = time.perf_counter()
        await process.write(line)
        answer = b""
        while not answer.endswith(b"\n"):
            chunk = await process.stdout_read()
            if not chunk:
                raise IoError(f"{process!r} ended its stdout early, after {answer!r}")
            answer += chunk
        self._round_trips.append(time.perf_counter() - began)
        self._expect("an echoed line", answer, line)
        self._progress("line")

    def _expect(self, what: str, found: bytes, wanted: bytes) -> None:
        if found != wanted:
            self._wrong.append(f"{what}: {found!r} instead of {wanted!r}")

    def result(self) -> Result:
        """After `run`: the numbers, and what is left now."""
        return Result(
            runtime=self._runtime,
            workers=self._workers,
            lines=len(self._round_trips),
            starts_per_s=round(self._workers / self._started_in_s, 1),
            start=_percentiles(self._starts),
            round_trip=_percentiles(self._round_trips),
            right_exit_codes=self._right_exit_codes,
            leftovers=leftovers(self._token, self._paths),
            wrong=self._wrong,
        )


def leftovers(token: str, paths: list[str]) -> Leftovers:
    """What there still is of a round.

    Parameters:
        token: value of `MARKER` in its processes' environment, also in their command lines and containers' names.
        paths: of the sockets.
    """
    marked = {row.pid for row in proc.scan(MARKER) if row.marker == token}
    return Leftovers(
        processes=len([pid for pid in marked.union(bearers(token)) if not proc.is_podman_pause(pid)]),
        sockets=len(existing(map(Path, paths))),
        directories=len(existing({Path(path).parent for path in paths})),
    )


def _percentiles(seconds: list[float]) -> Percentiles:
    """By nearest rank."""
    ordered = sorted(seconds)
    p50, p99 = (round(ordered[math.ceil(len(ordered) * share) - 1] * 1000, 3) for share in (0.5, 0.99))
    return Percentiles(p50_ms=p50, p99_ms=p99)


@click.command()
@click.option("--runtime", type=click.Choice(["auto", *ENGINES, "local"]), default="auto", show_default=True)
@click.option("--workers", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Processes at once.")
@click.option("--lines", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Lines to each worker.")
@click.option("--rounds", type=click.IntRange(1), default=1, show_default=True, help="Stops at the first bad one.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per round on stdout, and nothing else there.")
def demo(runtime: str, workers: int, lines: int, rounds: int, as_json: bool) -> None:
    """Start a runtime and many workers at once, stream through their sockets, and show what it took."""
    console = Console(stderr=as_json)
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
    if why_no_docker(Options()) is None:
        return "docker", f"because Podman is not usable here: {reason}"
    return "local", f"which isolates nothing, because Podman is not usable here: {reason}"


def _run(runtime: str, workers: int, lines: int, console: Console) -> Result:
    columns = (TextColumn("{task.description:>16}"), BarColumn(40), MofNCompleteColumn(), TimeElapsedColumn())
    with tempfile.TemporaryFile() as log:
        try:
            with Progress(*columns, console=console) as bars:
                tasks = {
                    "start": bars.add_task("workers started", total=workers),
                    "line": bars.add_task("lines echoed", total=workers * lines),
                }
                return own_process.run(run_round(runtime, workers, lines, log, lambda kind: bars.advance(tasks[kind])))
        except FastclawError:
            console.print(_tail(log), style="dim", markup=False, highlight=False, soft_wrap=True)
            raise


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
