"""Ways to run a command and learn its exit code: so many of them, so many at once.

Each way returns only after every command has ended with the exit code that it was told.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import orjson
from podman import PodmanClient

from fastclaw.client import RuntimeClient
from fastclaw.processes.lane import StartSpec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from fastclaw.engine.rest_lane.rest import RestLane

EXIT_CODE = 7
"""What every command ends with: 0 could also mean that nobody looked."""

COMMAND = ["/bin/sh", "-c", f"exit {EXIT_CODE}"]

API = "/v4.3.1/libpod"


@contextlib.contextmanager
def served(runner: asyncio.Runner, runtime: str, **options: Any) -> Iterator[RuntimeClient]:
    """A runtime of its own, up; it ends in order."""
    command = [sys.executable, "-m", "fastclaw", "serve", "--runtime", runtime, "--log-level", "error"]
    client = RuntimeClient.spawn(command, namespace="bench-client", options=options)
    runner.run(client.__aenter__())
    yield client
    runner.run(client.aclose())
    assert client.exit_code == 0


async def spread(count: int, at_once: int, run_one: Callable[[int], Awaitable[None]]) -> None:
    """Run `run_one` for 0 to `count` - 1."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await run_one(number)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(worker())


def posix_spawn(
    count: int, at_once: int, program: str = COMMAND[0], argv: list[str] = COMMAND, exit_code: int = EXIT_CODE
) -> list[float]:
    """The floor: the kernel's own cost, with no sandbox, no streams and nobody to talk to; the seconds of each."""
    running: deque[tuple[int, float]] = deque()
    took: list[float] = []
    for number in range(count + at_once):
        if running and (len(running) == at_once or number >= count):
            pid, began = running.popleft()
            _, status = os.waitpid(pid, 0)
            assert os.waitstatus_to_exitcode(status) == exit_code
            took.append(time.perf_counter() - began)
        if number < count:
            began = time.perf_counter()
            running.append((os.posix_spawn(program, argv, os.environ), began))
    return took


async def over_client(client: RuntimeClient, count: int, at_once: int) -> None:
    """Ours as a supervisor has it: JSON-RPC over stdio, two sockets per process, exec and wait."""

    async def run_one(number: int) -> None:
        process = await client.exec(COMMAND, stdin=False)
        async with process:
            assert await process.communicate() == (b"", b"")
            record = await process.wait()
        assert record.exit_code == EXIT_CODE

    await spread(count, at_once, run_one)


async def over_lane(lane: RestLane, count: int, at_once: int) -> None:
    """The REST lane by itself."""

    async def run_one(number: int) -> None:
        process = await lane.start(StartSpec(process_id=f"bench-{number}", cmd=COMMAND, env={}, stdin=False), number)
        try:
            assert (await process.exited).exit_code == EXIT_CODE
        finally:
            os.close(process.stdout_fd)
            os.close(process.stderr_fd)
            if (closing := process.aclose()) is not None:
                await closing

    await spread(count, at_once, run_one)


class RawClient:
    """The least that can be sent to the engine for an exec with its streams and its exit code: create, start, inspect.

    No deadlines, no demultiplexing, no proof that the command started, no pipes.
    """

    def __init__(self, path: str, containers: Sequence[str]) -> None:
        self._path = path
        self._containers = containers

    async def run(self, count: int, at_once: int) -> None:
        """One connection per worker for the calls, one per exec for its stream."""
        idle = [await asyncio.open_unix_connection(self._path) for _ in range(at_once)]

        async def run_one(number: int) -> None:
            connection = idle.pop()
            await self._exec(connection, self._containers[number % len(self._containers)])
            idle.append(connection)

        await spread(count, at_once, run_one)
        for _, writer in idle:
            await _close(writer)

    async def _exec(self, connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], container: str) -> None:
        body = orjson.dumps({"AttachStdout": True, "AttachStderr": True, "Cmd": COMMAND})
        created = orjson.loads(await _call(*connection, "POST", f"{API}/containers/{container}/exec", body))
        session = created["Id"]
        reader, writer = await asyncio.open_unix_connection(self._path)
        writer.write(_request("POST", f"{API}/exec/{session}/start", b'{"Detach":false,"Tty":false}'))
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.read() == b""
        await _close(writer)
        inspected = orjson.loads(await _call(*connection, "GET", f"{API}/exec/{session}/json", b""))
        assert inspected["ExitCode"] == EXIT_CODE


def _request(method: str, path: str, body: bytes) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def _call(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, path: str, body: bytes
) -> bytes:
    writer.write(_request(method, path, body))
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    assert head.startswith((b"http/1.1 200", b"http/1.1 201")), head
    length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
    return await reader.readexactly(length)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


class PodmanPy:
    """podman-py in threads, each with a client and container objects of its own."""

    def __init__(self, url: str, containers: Sequence[str], threads: int) -> None:
        self._url = url
        self._containers = containers
        self._local = threading.local()
        self._clients: list[PodmanClient] = []
        self._threads = ThreadPoolExecutor(threads, initializer=self._connect)

    def _connect(self) -> None:
        client = PodmanClient(base_url=self._url)
        self._clients.append(client)
        self._local.containers = [client.containers.get(name) for name in self._containers]

    def _run_one(self, number: int) -> None:
        container = self._local.containers[number % len(self._containers)]
        code, output = container.exec_run(COMMAND)
        assert code == EXIT_CODE
        assert not output

    def run(self, count: int) -> None:
        assert len(list(self._threads.map(self._run_one, range(count)))) == count

    def close(self) -> None:
        self._threads.shutdown()
        for client in self._clients:
            client.close()  # type: ignore[no-untyped-call]  # podman-py leaves it untyped
