"""From lines to answers through the dispatcher, against what no server can leave out: reading and writing JSON."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import orjson

from bench.messages import chunks, exec_lines
from bench.ratios import Ratios, compare
from fastclaw import limits
from fastclaw.runtime import ExecRequest, ExecResult, HealthStatus, InitializeParams, InitializeResult, Runtime
from fastclaw.server.dispatch import Dispatcher

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

REQUESTS = 10_000
INITIALIZE = b'{"jsonrpc":"2.0","id":"i","method":"initialize","params":{"namespace":"bench"}}\n'


class Trivial(Runtime):
    """Starts nothing."""

    async def start(self, params: InitializeParams) -> InitializeResult:
        return InitializeResult()

    async def exec(self, request: ExecRequest) -> ExecResult:
        name = request.cmd[2]
        return ExecResult(process_id=name, stdio_addr=f"/run/fc/{name}.io", stderr_addr=f"/run/fc/{name}.err")

    async def health(self) -> HealthStatus:
        return HealthStatus(status="healthy")

    async def stop(self) -> None:
        """Nothing to stop."""

    async def kill(self, process_id: str, grace_ms: int | None = None) -> None:
        """Nothing to kill."""


def bare(lines: list[bytes]) -> list[bytes]:
    """What cannot be left out: each line read, each answer written."""
    answers = []
    for line in lines:
        request = orjson.loads(line)
        name = request["params"]["cmd"][2]
        result = {"process_id": name, "stdio_addr": f"/run/fc/{name}.io", "stderr_addr": f"/run/fc/{name}.err"}
        answer = {"jsonrpc": "2.0", "id": request["id"], "result": result}
        answers.append(orjson.dumps(answer, None, orjson.OPT_APPEND_NEWLINE))
    return answers


class Server:
    """A dispatcher after its `initialize`, with the answers collected."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.dispatcher = Dispatcher(lambda _: Trivial(), self._take, self._never)
        self._complete: asyncio.Future[None] | None = None
        self._wanted = 0

    def _take(self, answer: bytes) -> None:
        self.answers.append(answer)
        if self._complete is not None and len(self.answers) == self._wanted:
            self._complete.set_result(None)

    async def _never(self) -> None:
        raise AssertionError("nobody asked for a shutdown")

    async def serve(self, reads: list[bytes], answers: int) -> list[bytes]:
        """Take the reads one per turn of the loop, as they come from a pipe; the answers once all are there."""
        self.answers = []
        self._wanted = answers
        self._complete = asyncio.get_running_loop().create_future()
        for read in reads:
            self.dispatcher.receive(read)
            await asyncio.sleep(0)
        await self._complete
        self._complete = None
        return self.answers


def test_dispatch(benchmark: BenchmarkFixture, ratios: Ratios, runner: asyncio.Runner) -> None:
    lines = exec_lines(REQUESTS)
    reads = chunks(lines, limits.READ_CHUNK_BYTES)
    server = runner.run(_make())
    assert sorted(runner.run(server.serve(reads, REQUESTS))) == sorted(bare(lines))

    def dispatched() -> None:
        assert len(runner.run(server.serve(reads, REQUESTS))) == REQUESTS

    def looped() -> None:
        assert len(bare(lines)) == REQUESTS

    found = compare(benchmark, dispatched, {"bare": looped}, rounds=15)
    runner.run(server.dispatcher.aclose())
    ratios.compared("dispatch", "bare orjson loop", found.rates("bare", REQUESTS))


async def _make() -> Server:
    server = Server()
    await server.serve([INITIALIZE], 1)
    assert b'"result"' in server.answers[0]
    return server
