"""One round of the demo: many workers at once, each talked to through its sockets, and what is left afterwards.

Owns the workers' program and the counting. Knows no terminal: progress goes to a callback, results are values.
"""

import asyncio
import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from msgspec import Struct, field

from fastclaw.cli.histogram import Histogram
from fastclaw.client import RemoteProcess, RuntimeClient
from fastclaw.conformance.rig import bearers, existing
from fastclaw.errors import IoError
from fastclaw.linux import proc

WORKER = 'while read -r line; do echo "$line"; done; echo "bye from $1" >&2; exit "$1"'
"""Any POSIX shell: echoes lines, says goodbye on stderr, ends with the exit code that it was told."""

EXIT_CODES = 100
"""Workers are told 0 to 99: from 126 on a code could be the shell's own."""

MARKER = "FASTCLAW_DEMO"
"""A variable that every process of the round inherits: what is left is found by it."""

Progress = Callable[[str], None]
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


async def run_round(runtime: str, workers: int, lines: int, log: IO[bytes], progress: Progress) -> Result:
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

    def __init__(self, workers: int, lines: int, progress: Progress) -> None:
        self._workers = workers
        self._lines = lines
        self._progress = progress
        self._token = f"demo-{secrets.token_hex(6)}"
        self._starts = Histogram()
        self._round_trips = Histogram()
        self._started_in_s = 0.0
        self._right_exit_codes = 0
        self._wrong: list[str] = []
        self._paths: list[str] = []
        self._runtime = ""

    async def run(self, runtime: str, log: IO[bytes]) -> None:
        command = [sys.executable, "-m", "fastclaw", "serve", "--runtime", runtime]
        environment = {**os.environ, MARKER: self._token}
        options = {"env": {MARKER: self._token}}
        async with RuntimeClient.spawn(
            command, namespace=self._token, options=options, env=environment, stderr=log
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
        self._starts.record(time.perf_counter() - began)
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
        self._round_trips.record(time.perf_counter() - began)
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
        sockets=len(existing(paths)),
        directories=len(existing({str(Path(path).parent) for path in paths})),
    )


def _percentiles(histogram: Histogram) -> Percentiles:
    return Percentiles(p50_ms=histogram.percentile_ms(50), p99_ms=histogram.percentile_ms(99))
