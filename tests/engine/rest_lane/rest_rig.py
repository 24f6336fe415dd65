"""What the tests of the REST lane share: specs, pipes, containers on a real Podman, and engines made of a script."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from podman import PodmanClient

from fastclaw.engine.container import Container
from fastclaw.engine.containers import Containers
from fastclaw.engine.rest_lane.demux import STDERR, STDOUT
from fastclaw.engine.rest_lane.exec_calls import ExecCalls
from fastclaw.engine.rest_lane.rest import RestLane
from fastclaw.linux.sockets import wait_readable
from fastclaw.processes.lane import PROCESS_ID_VARIABLE, ExitStatus, Grace, StartSpec
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from fastclaw.engine.rest_lane.rest import RestProcess
    from tests.engine_fixtures import EngineService

    Serve = Callable[["Request", asyncio.StreamWriter], Awaitable[None]]

_numbers = count()


def spec(*cmd: str, stdin: bool = False, **more: Any) -> StartSpec:
    """A spec with a marker of its own."""
    marker = f"rest-{os.getpid()}-{next(_numbers)}"
    env = more.pop("env", {}) | {PROCESS_ID_VARIABLE: marker}
    return StartSpec(process_id=marker, cmd=list(cmd), env=env, stdin=stdin, **more)


def grace(seconds: float = 0.0) -> Grace:
    """So many seconds from now."""
    return Grace(ends_at=asyncio.get_running_loop().time() + seconds)


# --- The caller's ends of a process's pipes ----------------------------------------------------------


async def read_all(fd: int) -> bytes:
    """Until the end; closes it."""
    parts: list[bytes] = []
    try:
        while True:
            assert await wait_readable(fd, 20_000)
            part = os.read(fd, 1 << 20)
            if not part:
                return b"".join(parts)
            parts.append(part)
    finally:
        os.close(fd)


async def write_all(fd: int, data: bytes) -> None:
    """To the end or until nobody reads; closes it."""
    left = memoryview(data)
    with suppress(BrokenPipeError):
        while left:
            try:
                left = left[os.write(fd, left) :]
            except BlockingIOError:
                await asyncio.sleep(0.001)
    os.close(fd)


async def complete(process: RestProcess, data: bytes = b"") -> tuple[bytes, bytes, ExitStatus]:
    """Feed it, read it, wait for it, give it back."""
    streams = [read_all(process.stdout_fd), read_all(process.stderr_fd)]
    if process.stdin_fd is not None:
        streams.append(write_all(process.stdin_fd, data))  # type: ignore[arg-type] # nothing is read from this one
    output = await asyncio.gather(*streams)
    status = await asyncio.wait_for(process.exited, 20)
    await process.aclose()
    return output[0], output[1], status


# --- Containers that are there already and stay ------------------------------------------------------


class FixedContainer(Container):
    """One that is neither watched nor counted."""

    def __init__(self, id: str) -> None:
        self.id, self.memory, self.live = id, None, 0

    def mark_dead(self) -> None:
        """Nothing to do."""


class FixedContainers(Containers):
    """One container per slot."""

    def __init__(self, containers: Sequence[str]) -> None:
        self._containers = [FixedContainer(id) for id in containers]

    def __len__(self) -> int:
        return len(self._containers)

    def take(self, index: int) -> FixedContainer:
        """The container of this slot."""
        return self._containers[index % len(self._containers)]

    async def kill(self) -> None:
        """They stay: whoever made them ends them."""


# --- A real Podman -----------------------------------------------------------------------------------

RUNTIMES = [name for name in ("crun", "runc") if shutil.which(name)]
RUNTIME = RUNTIMES[0] if RUNTIMES else "crun"
"""Where one is enough."""

FILES = r"""
printf 'echo hi\n' >/bin/noshebang; printf '#!/nope/interp\n' >/bin/badinterp; printf '\177ELFgarbage' >/bin/badelf
chmod 755 /bin/noshebang /bin/badinterp /bin/badelf; echo data >/plain; chmod 644 /plain; exec sleep 100000
"""


class Engine:
    """The service and one container for each OCI runtime."""

    def __init__(self, service: EngineService, containers: dict[str, str]) -> None:
        self.url, self.containers = service.url, containers

    def lane(self, runtime: str = RUNTIME, *, local: bool = True) -> RestLane:
        """A lane over one container."""
        return RestLane(self.url, FixedContainers([self.containers[runtime]]), local=local, timeout_ms=30_000)


@pytest.fixture(scope="session")
def rest_engine(engine_service: EngineService) -> Iterator[Engine]:
    """Containers that every test of the lane shares."""
    with PodmanClient(base_url=engine_service.url) as client:
        containers = {name: make_container(client, engine_service.image, name) for name in RUNTIMES}
    yield Engine(engine_service, containers)
    with PodmanClient(base_url=engine_service.url) as client:
        for container in containers.values():
            remove_container(client, container)


@pytest.fixture(params=RUNTIMES)
async def any_lane(request: pytest.FixtureRequest, rest_engine: Engine) -> AsyncIterator[RestLane]:
    """A lane over a container of each OCI runtime."""
    made = rest_engine.lane(request.param)
    yield made
    await made.aclose()


@pytest.fixture
async def lane(rest_engine: Engine) -> AsyncIterator[RestLane]:
    """A lane over one container."""
    made = rest_engine.lane()
    yield made
    await made.aclose()


def make_container(client: PodmanClient, image: str, runtime: str = RUNTIME, **changes: Any) -> str:
    """A running container with odd files in it; its id."""
    body = {"image": image, "command": ["/bin/sh", "-c", FILES], "netns": {"nsmode": "none"}, "oci_runtime": runtime}
    answer = client.api.post("/containers/create", data=json.dumps(body | changes))
    answer.raise_for_status()
    container = str(answer.json()["Id"])
    client.api.post(f"/containers/{container}/start").raise_for_status()
    init = client.api.get(f"/containers/{container}/json").json()["State"]["Pid"]
    wait_until(lambda: b"sleep\0" in Path(f"/proc/{init}/cmdline").read_bytes())
    return container


def remove_container(client: PodmanClient, container: str) -> None:
    """With everything in it, at once."""
    client.api.delete(f"/containers/{container}", params={"force": True, "timeout": 0}).raise_for_status()


# --- Engines made of a script ------------------------------------------------------------------------


def answer(status: int, body: bytes) -> bytes:
    """An HTTP answer."""
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


def frame(payload: bytes, stream: int = STDOUT) -> bytes:
    """One frame of the attach stream."""
    return bytes((stream, 0, 0, 0)) + len(payload).to_bytes(4, "big") + payload


def stderr_frame(payload: bytes) -> bytes:
    """One frame of stderr."""
    return frame(payload, STDERR)


SESSION = answer(201, b'{"Id":"5e55"}')
UPGRADED = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
NO_CONTAINER = answer(404, b'{"message":"no container with name or ID \\"c\\" found: no such container"}')
NO_SESSION = answer(404, b'{"message":"no exec session with ID 5e55 found: no such exec session"}')
FAKE_TIMEOUT_MS = 150
"""Deadline of calls to engines made of a script, where it is not given: some of them never answer."""


def state(*, running: bool, code: int = 0, pid: int = 0) -> bytes:
    """Answer to the inspect of a session."""
    return answer(200, b'{"Running":%b,"ExitCode":%d,"Pid":%d}' % (b"true" if running else b"false", code, pid))


def container_state(*, running: bool) -> bytes:
    """Answer to the inspect of a container."""
    return answer(200, b'{"State":{"Running":%b}}' % (b"true" if running else b"false"))


class Request(NamedTuple):
    """What an engine was asked. `step` is create, start, inspect, container or archive, where it is one of them."""

    step: str
    line: str
    body: bytes


async def _read_request(reader: asyncio.StreamReader) -> Request:
    head = await reader.readuntil(b"\r\n\r\n")
    body = b""
    if b"Content-Length: " in head:
        body = await reader.readexactly(int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0]))
    line = head.partition(b" HTTP/1.1\r\n")[0].decode()
    last, in_exec = line.rpartition("/")[2], "/exec/" in line
    steps = {"exec": "create", "start": "start", "json": "inspect" if in_exec else "container"}
    step = "archive" if "/archive?" in line else steps.get(last, "")
    return Request(step, line, body)


class FakeEngine:
    """Serves one client.

    Attributes:
        asked: every request, in order.
        connections: how many there have been.
    """

    def __init__(self, path: Path, serve: Serve, timeout_ms: int) -> None:
        self.url = f"unix://{path}"
        self.asked: list[Request] = []
        self.connections = 0
        self._serve = serve
        self._tasks: set[asyncio.Task[None]] = set()
        self.calls = ExecCalls(self.url, timeout_ms)
        self.lane = RestLane(self.url, FixedContainers(["c"]), local=False, timeout_ms=timeout_ms)

    def steps(self) -> list[str]:
        """What was asked, in words."""
        return [request.step for request in self.asked]

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        self._tasks.add(asyncio.ensure_future(self._converse(reader, writer)))

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                self.asked.append(request := await _read_request(reader))
                await self._serve(request, writer)
        except (asyncio.IncompleteReadError, EOFError, ConnectionError):
            pass  # the connection is over
        finally:
            writer.close()

    async def end(self) -> None:
        """Close everything."""
        await self.lane.aclose()
        self.calls.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def fake_engine(directory: Path, serve: Serve, timeout_ms: int = FAKE_TIMEOUT_MS) -> AsyncIterator[FakeEngine]:
    """An engine that answers as `serve` says; a connection is closed when that raises EOFError."""
    path = directory / "engine.sock"
    engine = FakeEngine(path, serve, timeout_ms)
    server = await asyncio.start_unix_server(engine.accept, path)
    try:
        yield engine
    finally:
        server.close()
        await engine.end()
        await server.wait_closed()


def answering(**steps: bytes) -> Serve:
    """An engine with one answer for each step; after `start` it closes the connection. A step without one is met with
    silence."""

    async def serve(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(steps.get(request.step, b""))
        if request.step == "start":
            await writer.drain()
            raise EOFError

    return serve
