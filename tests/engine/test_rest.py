"""The REST lane on a real Podman, with every OCI runtime that is here; and on engines that misbehave."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import time
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from podman import PodmanClient

from fastclaw.engine import rest
from fastclaw.engine.process import wait_readable
from fastclaw.engine.rest import RestLane
from fastclaw.errors import ExecFailed
from fastclaw.lane import PROCESS_ID_VARIABLE, ExitStatus, Grace, StartSpec
from fastclaw.transport import pidfd, procfs
from fastclaw.transport.proctree import end_tree
from tests.engine.fixed_containers import FixedContainers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from fastclaw.engine.rest_process import RestProcess
    from tests.engine.conftest import EngineService

_numbers = count()


def spec(*cmd: str, stdin: bool = False, **more: Any) -> StartSpec:
    """A spec with a marker of its own."""
    marker = f"rest-{os.getpid()}-{next(_numbers)}"
    env = more.pop("env", {}) | {PROCESS_ID_VARIABLE: marker}
    return StartSpec(process_id=marker, cmd=list(cmd), env=env, stdin=stdin, **more)


def marked(process_id: str) -> list[int]:
    """Live processes of one exec."""
    return [row.pid for row in procfs.scan(PROCESS_ID_VARIABLE) if row.marker == process_id]


def grace(seconds: float = 0.0) -> Grace:
    """So many seconds from now."""
    return Grace(ends_at=asyncio.get_running_loop().time() + seconds)


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


def resolve(ready: asyncio.Future[None]) -> None:
    """Once; level-triggered watchers call again."""
    if not ready.done():
        ready.set_result(None)


async def write_all(fd: int, data: bytes) -> None:
    """To the end or until nobody reads; closes it."""
    loop = asyncio.get_running_loop()
    rest_of_it = memoryview(data)
    try:
        while rest_of_it:
            try:
                rest_of_it = rest_of_it[os.write(fd, rest_of_it) :]
            except BlockingIOError:
                ready = loop.create_future()
                loop.add_writer(fd, partial(resolve, ready))
                await ready
                loop.remove_writer(fd)
    except BrokenPipeError:
        pass
    finally:
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


def drop(process: RestProcess) -> None:
    """Close the caller's descriptors without reading."""
    for fd in (process.stdin_fd, process.stdout_fd, process.stderr_fd):
        if fd is not None:
            os.close(fd)


class Engine:
    """The service and one container for each OCI runtime."""

    def __init__(self, service: EngineService, containers: dict[str, str]) -> None:
        self.url, self.containers = service.url, containers

    def lane(self, runtime: str, *, local: bool = True) -> RestLane:
        """A lane over one container."""
        return RestLane(
            self.url, FixedContainers([self.containers[runtime]]), local=local, end_tree=end_tree, timeout_ms=30_000
        )


RUNTIMES = [name for name in ("crun", "runc") if shutil.which(name)]

FILES = r"""
printf 'echo hi\n' >/bin/noshebang; printf '#!/nope/interp\n' >/bin/badinterp; printf '\177ELFgarbage' >/bin/badelf
chmod 755 /bin/noshebang /bin/badinterp /bin/badelf; echo data >/plain; chmod 644 /plain; exec sleep 100000
"""


@pytest.fixture(scope="module")
def engine(engine_service: EngineService) -> Iterator[Engine]:
    """Containers for this module."""
    with PodmanClient(base_url=engine_service.url) as client:
        containers = {name: _container(client, engine_service.image, name) for name in RUNTIMES}
        yield Engine(engine_service, containers)
        for container in containers.values():
            client.api.delete(f"/containers/{container}", params={"force": True, "timeout": 0}).raise_for_status()


def _container(client: PodmanClient, image: str, runtime: str) -> str:
    body = {"image": image, "command": ["sh", "-c", FILES], "netns": {"nsmode": "none"}, "oci_runtime": runtime}
    answer = client.api.post("/containers/create", data=json.dumps(body))
    answer.raise_for_status()
    container = str(answer.json()["Id"])
    client.api.post(f"/containers/{container}/start").raise_for_status()
    init = client.api.get(f"/containers/{container}/json").json()["State"]["Pid"]
    deadline = time.monotonic() + 10
    while not Path(f"/proc/{init}/cmdline").read_bytes().startswith(b"sleep"):
        assert time.monotonic() < deadline
        time.sleep(0.01)  # execve sends no event
    return container


@pytest.fixture(params=RUNTIMES)
def any_lane(request: pytest.FixtureRequest, engine: Engine) -> Iterator[RestLane]:
    """A lane over a container of each OCI runtime."""
    made = engine.lane(request.param)
    yield made
    made.close()


@pytest.fixture
def lane(engine: Engine) -> Iterator[RestLane]:
    """A lane over one container."""
    made = engine.lane(RUNTIMES[0])
    yield made
    made.close()


REFUSED: list[tuple[str, StartSpec, str]] = [
    ("missing", spec("nosuch"), "not_found"),
    ("missing path", spec("/bin/nosuch"), "not_found"),
    ("a newline in it", spec("no\nsuch"), "not_found"),
    ("empty", spec(""), "not_found"),
    ("a directory", spec("/tmp"), "permission_denied"),
    ("no x bit", spec("/plain"), "permission_denied"),
    ("no shebang", spec("noshebang"), "not_executable"),
    ("bad ELF", spec("badelf"), "not_executable"),
    ("missing interpreter", spec("/bin/badinterp"), "not_found"),
    ("missing working_dir", spec("true", working_dir="/nope"), "bad_working_dir"),
    ("working_dir is a file", spec("true", working_dir="/plain"), "bad_working_dir"),
    ("unknown user", spec("true", user="nobodyx"), "unknown_user"),
    ("NUL", spec("ec\0ho"), "invalid_params"),
    ("one huge argument", spec("true", "a" * 200_000), "too_long"),
    ("huge argv", spec("true", *["a" * 100_000] * 40), "too_long"),
    ("impossible argv", spec("true", *["a" * 100_000] * 80), "too_long"),
    ("env of 1 MiB", spec("true", env={"A": "b" * (1 << 20)}), "too_long"),
]


@pytest.mark.podman
@pytest.mark.parametrize(("what", "given_spec", "reason"), REFUSED, ids=[what for what, _, _ in REFUSED])
async def test_what_cannot_start_is_an_error(any_lane: RestLane, what: str, given_spec: StartSpec, reason: str) -> None:
    with pytest.raises(ExecFailed) as caught:
        await any_lane.start(given_spec, 0)
    assert caught.value.reason == reason


@pytest.mark.podman
@pytest.mark.parametrize(
    ("script", "code", "out", "err"),
    [
        ("true", 0, b"", b""),
        ("exit 7", 7, b"", b""),
        ("exit 125", 125, b"", b""),
        ("exit 126", 126, b"", b""),
        ("exit 127", 127, b"", b""),
        ("echo 'Error: fake' >&2; exit 127", 127, b"", b"Error: fake\n"),
        ("echo 'exec: my own trouble' >&2; exit 1", 1, b"", b"exec: my own trouble\n"),
        ("nosuch", 127, b"", b"sh: nosuch: not found\n"),
        ("kill -9 $$", 137, b"", b""),
        ("kill -TERM $$", 143, b"", b""),
        ("echo out; echo err >&2; exit 3", 3, b"out\n", b"err\n"),
        ("sleep 0.3; echo late; exit 4", 4, b"late\n", b""),
    ],
)
async def test_exit_codes_and_streams_are_exact(
    any_lane: RestLane, script: str, code: int, out: bytes, err: bytes
) -> None:
    process = await any_lane.start(spec("sh", "-c", script), 0)
    assert await complete(process) == (out, err, ExitStatus(reason="exited", exit_code=code))
    assert set(process.timings) == {"create_us", "start_us", "proof_us"}


@pytest.mark.podman
async def test_exit_codes_without_the_kernels_help(lane: RestLane, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on kernels before 6.15, once conmon has reaped the process: inspect has to tell."""
    for module in (pidfd, rest_process_module()):
        monkeypatch.setattr(module, "wait_status", lambda fd, pid: None)
    for code in (0, 5):
        process = await lane.start(spec("sh", "-c", f"sleep 0.2; exit {code}"), 0)
        assert await complete(process) == (b"", b"", ExitStatus(reason="exited", exit_code=code))


def rest_process_module() -> Any:
    """The module whose name is also an attribute elsewhere."""
    from fastclaw.engine import rest_process

    return rest_process


@pytest.fixture(params=["direct", "relayed"])
def stdin_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to a process's stdin."""
    if request.param == "relayed":
        monkeypatch.setattr(rest, "open_stdin", lambda pid: None)
    return str(request.param)


@pytest.mark.podman
async def test_64_mib_both_ways(lane: RestLane, stdin_way: str) -> None:
    data = os.urandom(1 << 20) * 64
    process = await lane.start(spec("cat", stdin=True), 0)
    out, err, status = await complete(process, data)
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()
    assert (err, status.exit_code) == (b"", 0)


@pytest.mark.podman
async def test_stdin_ends_while_output_flows(lane: RestLane, stdin_way: str) -> None:
    process = await lane.start(spec("sh", "-c", "wc -c; seq 3", stdin=True), 0)
    assert (await complete(process, b"12345"))[0].split() == [b"5", b"1", b"2", b"3"]


@pytest.mark.podman
async def test_no_stdin_is_an_empty_one(lane: RestLane) -> None:
    process = await lane.start(spec("wc", "-c"), 0)
    assert process.stdin_fd is None
    assert (await complete(process))[0].strip() == b"0"


@pytest.mark.podman
async def test_unread_stdin_costs_no_output(lane: RestLane) -> None:
    """With the engine in between, some of these lose output or gain a line of Podman's."""
    for _ in range(6):
        process = await lane.start(spec("sh", "-c", "sleep 0.05; echo out; echo err >&2; exit 3", stdin=True), 0)
        answer = await complete(process, b"x" * 300_000)
        assert answer == (b"out\n", b"err\n", ExitStatus(reason="exited", exit_code=3))


@pytest.mark.podman
async def test_a_grandchild_that_holds_stdout_holds_nothing_up(lane: RestLane) -> None:
    given_spec = spec("sh", "-c", "sleep 100 & echo parent; exit 2")
    process = await lane.start(given_spec, 0)
    assert await read_all(process.stdout_fd) == b"parent\n"
    assert (await asyncio.wait_for(process.exited, 10)).exit_code == 2
    assert marked(given_spec.process_id)
    await process.end_tree(grace())
    assert not marked(given_spec.process_id)
    os.close(process.stderr_fd)
    await process.aclose()


@pytest.mark.podman
@pytest.mark.parametrize("size", [1_000, 200_000, 3_000_000])
async def test_output_that_nobody_reads_yet(lane: RestLane, size: int) -> None:
    """The exit is known as soon as it happens, and every byte is still there afterwards."""
    process = await lane.start(spec("sh", "-c", f"read go; head -c {size} /dev/zero; exit 7", stdin=True), 0)
    assert process.stdin_fd is not None
    os.write(process.stdin_fd, b"\n")
    if size < 500_000:  # else it still writes
        assert (await asyncio.wait_for(asyncio.shield(process.exited), 10)).exit_code == 7
    out, _, status = await complete(process)
    assert (len(out), status.exit_code) == (size, 7)


@pytest.mark.podman
async def test_a_reader_that_never_reads_leaves_others_alone(lane: RestLane) -> None:
    stuck = await lane.start(spec("cat", "/dev/zero"), 0)
    process = await lane.start(spec("echo", "fine"), 0)
    assert (await complete(process))[0] == b"fine\n"
    await stuck.end_tree(grace())
    assert (await asyncio.wait_for(stuck.exited, 10)).exit_code == 128 + signal.SIGKILL
    drop(stuck)
    await stuck.aclose()


@pytest.mark.podman
async def test_signals_reach_the_command(lane: RestLane) -> None:
    process = await lane.start(
        spec("sh", "-c", "trap 'echo got it; exit 9' USR1; echo up; while :; do sleep 0.01; done"), 0
    )
    await wait_readable(process.stdout_fd, 5000)
    process.signal(signal.SIGUSR1)
    out, _, status = await complete(process)
    assert (out, status.exit_code) == (b"up\ngot it\n", 9)


@pytest.mark.podman
async def test_a_tree_with_a_new_session_is_ended(lane: RestLane) -> None:
    given_spec = spec("sh", "-c", "setsid sleep 100 & (setsid sh -c 'sleep 100 & sleep 100' &); echo up; sleep 100")
    process = await lane.start(given_spec, 0)
    await wait_readable(process.stdout_fd, 5000)
    await lane.end_all([process], grace(0.2))
    assert process.exited.done()
    assert not marked(given_spec.process_id)
    drop(process)
    await process.aclose()


@pytest.mark.podman
async def test_an_engine_elsewhere_is_asked_to_end_trees(engine: Engine) -> None:
    lane = engine.lane(RUNTIMES[0], local=False)
    given_spec = spec("sh", "-c", "trap '' TERM; setsid sleep 100 & echo up; while :; do sleep 0.1; done")
    process = await lane.start(given_spec, 0)
    await wait_readable(process.stdout_fd, 5000)
    with pytest.raises(ExecFailed) as caught:
        process.signal(signal.SIGTERM)
    assert caught.value.reason == "unsupported"
    await process.end_tree(grace(0.2))
    assert not marked(given_spec.process_id)
    assert (await complete(process))[2] == ExitStatus(reason="exited", exit_code=137)
    lane.close()


@pytest.mark.podman
@pytest.mark.parametrize("delay_ms", [0, 2, 5, 10, 20, 40, 80])
async def test_a_cancelled_start_leaves_nothing(lane: RestLane, delay_ms: int) -> None:
    given_spec = spec("sleep", "100", stdin=True)
    task = asyncio.ensure_future(lane.start(given_spec, 0))
    await asyncio.sleep(delay_ms / 1000)
    task.cancel()
    process = None
    with suppress(asyncio.CancelledError):
        process = await task
    if process is not None:  # it was faster than the cancellation
        await process.end_tree(grace())
        await process.exited
        drop(process)
        await process.aclose()
    assert not marked(given_spec.process_id)


@pytest.mark.podman
async def test_a_container_that_dies_takes_its_processes_along(engine_service: EngineService) -> None:
    with PodmanClient(base_url=engine_service.url) as client:
        container = await asyncio.to_thread(_container, client, engine_service.image, RUNTIMES[0])
        lane = RestLane(engine_service.url, FixedContainers([container]), local=True, end_tree=end_tree)
        process = await lane.start(spec("sleep", "100"), 0)
        path = f"/containers/{container}"
        await asyncio.to_thread(client.api.delete, path, params={"force": True, "timeout": 0})
        assert (await complete(process))[2] == ExitStatus(reason="container_gone")
        with pytest.raises(ExecFailed) as caught:
            await lane.start(spec("true"), 0)
        assert caught.value.reason == "container_gone"
        lane.close()


@pytest.mark.podman
async def test_a_hundred_at_once_give_their_own_bytes_and_codes(lane: RestLane) -> None:
    slots = asyncio.Semaphore(4)

    async def one(number: int) -> None:
        async with slots:
            process = await lane.start(spec("sh", "-c", f"echo {number}; echo {-number} >&2; exit {number % 256}"), 0)
        answer = await complete(process)
        assert answer == (b"%d\n" % number, b"%d\n" % -number, ExitStatus(reason="exited", exit_code=number % 256))

    await asyncio.gather(*(one(number) for number in range(100)))


# --- Engines that misbehave ------------------------------------------------------------------------

SESSION = b'{"Id":"5e55"}'


def answer(status: int, body: bytes) -> bytes:
    """An HTTP answer."""
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


UPGRADED = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
RUNNING = b'{"Running":true,"ExitCode":0,"Pid":1}'
ENDED = b'{"Running":false,"ExitCode":3,"Pid":0}'


@asynccontextmanager
async def fake_engine(
    directory: Path, serve: Callable[[bytes, asyncio.StreamWriter], Coroutine[Any, Any, None]]
) -> AsyncIterator[RestLane]:
    """A lane towards an engine that answers as `serve` says; a connection is closed when it raises EOFError."""
    tasks: set[asyncio.Task[None]] = set()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if b"Content-Length: " in head:
                    await reader.readexactly(int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0]))
                await serve(head, writer)
        except (asyncio.IncompleteReadError, EOFError, ConnectionError):
            pass  # the connection is over
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.ensure_future(converse(reader, writer)))

    path = directory / "engine.sock"
    server = await asyncio.start_unix_server(accept, path)
    lane = RestLane(f"unix://{path}", FixedContainers(["c"]), local=False, end_tree=end_tree, timeout_ms=150)
    try:
        yield lane
    finally:
        lane.close()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


@pytest.mark.parametrize("step", ["/c/exec", "/start", "/json"])
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("silence", "engine_timeout"),
        ("garbage", "engine_error"),
        ("cut", "engine_error"),
        ("nonsense", "engine_error"),
        ("close", "engine_unavailable"),
        ("refuse", "container_gone"),
    ],
)
async def test_a_broken_engine_is_an_error_in_time(short_dir: Path, step: str, fault: str, reason: str) -> None:
    async def serve(head: bytes, writer: asyncio.StreamWriter) -> None:
        target = head.split(b" ")[1].decode()
        if target.endswith(step):
            await misbehave(fault, writer)
        elif target.endswith("/c/exec"):
            writer.write(answer(201, SESSION))
        else:
            writer.write(UPGRADED if target.endswith("/start") else answer(200, RUNNING))

    async with fake_engine(short_dir, serve) as lane:
        began = time.monotonic()
        with pytest.raises(ExecFailed) as caught:
            await lane.start(spec("true"), 0)
    assert caught.value.reason == reason
    assert caught.value.retryable == (reason != "engine_error")
    assert time.monotonic() - began < 3


async def misbehave(fault: str, writer: asyncio.StreamWriter) -> None:
    """One way to break an answer."""
    if fault == "silence":
        return
    if fault == "close":
        raise EOFError
    missing = b'{"message":"no container with name or ID \\"c\\" found: no such container"}'
    wires = {"garbage": b"SSH-2.0-x\r\n\r\n", "cut": b"HTTP/1.1 200 O", "nonsense": answer(201, b"[]")}
    writer.write(wires.get(fault) or answer(404, missing))
    if fault == "cut":
        await writer.drain()
        raise EOFError


async def test_first_output_in_the_same_read_as_the_header(short_dir: Path) -> None:
    async def serve(head: bytes, writer: asyncio.StreamWriter) -> None:
        target = head.split(b" ")[1]
        if target.endswith(b"/c/exec"):
            writer.write(answer(201, SESSION))
        elif target.endswith(b"/start"):
            writer.write(UPGRADED + b"\1\0\0\0\0\0\0\5first")
            raise EOFError
        else:
            writer.write(answer(200, ENDED))

    async with fake_engine(short_dir, serve) as lane:
        process = await lane.start(spec("x"), 0)
        assert await complete(process) == (b"first", b"", ExitStatus(reason="exited", exit_code=3))


async def test_an_exit_that_cannot_be_known_is_unknown(short_dir: Path) -> None:
    async def serve(head: bytes, writer: asyncio.StreamWriter) -> None:
        target = head.split(b" ")[1]
        if target.endswith(b"/c/exec"):
            writer.write(answer(201, SESSION))
        elif target.endswith(b"/start"):
            writer.write(UPGRADED + b"\1\0\0\0\0\0\0\5first")
            raise EOFError
        elif b"/containers/" in target:
            writer.write(answer(200, b'{"State":{"Running":true}}'))
        else:
            writer.write(answer(200, ENDED.replace(b"3", b"-1")))

    async with fake_engine(short_dir, serve) as lane:
        process = await lane.start(spec("x"), 0)
        assert await complete(process) == (b"first", b"", ExitStatus(reason="unknown"))
