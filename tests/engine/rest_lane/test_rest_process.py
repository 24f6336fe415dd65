"""How the end of a process is learnt, and how it is signalled: on a real Podman, and with engines made of a script."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from podman import PodmanClient

from fastclaw import limits
from fastclaw.engine.rest_lane import rest
from fastclaw.engine.rest_lane.demux import Demux
from fastclaw.engine.rest_lane.exec_calls import Started
from fastclaw.engine.rest_lane.rest import RestLane, RestProcess
from fastclaw.errors import ExecFailed
from fastclaw.linux import proc
from fastclaw.linux.poller import Poller
from fastclaw.linux.sockets import wait_readable
from fastclaw.processes.lane import ExitStatus, Grace, StreamsOwner, ooms_from_now
from fastclaw.processes.listeners import SocketDirectory
from tests.engine.rest_lane.rest_rig import (
    NO_CONTAINER,
    NO_SESSION,
    RUNTIME,
    SESSION,
    UPGRADED,
    FakeEngine,
    FixedContainers,
    answer,
    answering,
    complete,
    container_state,
    fake_engine,
    frame,
    grace,
    make_container,
    read_all,
    remove_container,
    spec,
    state,
)
from tests.pids import marked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.engine.conftest import EngineService
    from tests.engine.rest_lane.rest_rig import Engine, Serve


LOOK_MS = 200


@pytest.mark.podman
@pytest.mark.parametrize(
    ("script", "code", "out", "err"),
    [
        ("true", 0, b"", b""),
        ("exit 7", 7, b"", b""),
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


@pytest.mark.podman
async def test_exit_codes_without_the_kernels_help(lane: RestLane, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on kernels before 6.15, once conmon has reaped the process: inspect has to tell."""
    for module in (proc, rest):
        monkeypatch.setattr(module, "wait_status", lambda fd, pid: None)
    for code in (0, 5):
        process = await lane.start(spec("sh", "-c", f"sleep 0.2; exit {code}"), 0)
        assert await complete(process) == (b"", b"", ExitStatus(reason="exited", exit_code=code))


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
async def test_signals_reach_the_command(lane: RestLane) -> None:
    process = await lane.start(
        spec("sh", "-c", "trap 'echo got it; exit 9' USR1; echo up; while :; do sleep 0.01; done"), 0
    )
    await wait_readable(process.stdout_fd, 5000)
    process.signal(signal.SIGUSR1)
    out, _, status = await complete(process)
    assert (out, status.exit_code) == (b"up\ngot it\n", 9)


@pytest.mark.podman
async def test_a_signal_to_the_group_reaches_what_the_command_runs(any_lane: RestLane) -> None:
    """openai/codex PR 26734: interrupted, and the tests go on at full speed."""
    process = await any_lane.start(spec("sh", "-c", "trap : INT; sh -c 'echo up; exec sleep 1000'; echo ended $?"), 0)
    await wait_readable(process.stdout_fd, 5000)
    process.signal(signal.SIGINT, group=True)
    out, _, status = await complete(process)
    assert (out, status.exit_code) == (b"up\nended 130\n", 0)
    process.signal(signal.SIGINT, group=True)  # it has ended: nobody is hit


@pytest.mark.podman
async def test_an_engine_elsewhere_lets_no_signal_through(rest_engine: Engine) -> None:
    lane = rest_engine.lane(local=False)
    process = await lane.start(spec("cat", stdin=True), 0)
    with pytest.raises(ExecFailed) as caught:
        process.signal(signal.SIGTERM)
    assert caught.value.reason == "unsupported"
    assert await complete(process, b"x") == (b"x", b"", ExitStatus(reason="exited", exit_code=0))
    process.signal(signal.SIGTERM)  # it has ended: nothing to do
    await lane.aclose()


@pytest.mark.podman
async def test_a_container_that_dies_takes_its_processes_along(engine_service: EngineService) -> None:
    with PodmanClient(base_url=engine_service.url) as client:
        container = await asyncio.to_thread(make_container, client, engine_service.image, RUNTIME)
        lane = RestLane(engine_service.url, FixedContainers([container]), local=True)
        process = await lane.start(spec("sleep", "100"), 0)
        await asyncio.to_thread(remove_container, client, container)
        assert (await complete(process))[2] == ExitStatus(reason="container_gone")
        with pytest.raises(ExecFailed) as caught:
            await lane.start(spec("true"), 0)
        assert caught.value.reason == "container_gone"
        await lane.aclose()


# --- Engines made of a script ------------------------------------------------------------------------

UNKNOWN = ExitStatus(reason="unknown")
GONE = ExitStatus(reason="container_gone")
RUNS = container_state(running=True)
KILLED = ExitStatus(reason="exited", exit_code=137)
NONSENSE = answer(200, b"{}")


@pytest.mark.parametrize(
    ("inspect", "container", "expected"),
    [
        (state(running=False, code=3), RUNS, ExitStatus(reason="exited", exit_code=3)),
        (state(running=False, code=-1), RUNS, UNKNOWN),
        (state(running=False, code=-1), container_state(running=False), GONE),
        (state(running=False, code=137), RUNS, KILLED),
        (state(running=False, code=137), NO_CONTAINER, GONE),
        (state(running=False, code=143), NO_CONTAINER, ExitStatus(reason="exited", exit_code=143)),
        (state(running=True, pid=1), RUNS, UNKNOWN),
        (NO_SESSION, RUNS, UNKNOWN),
        (NO_SESSION, NO_CONTAINER, GONE),
        (NONSENSE, NONSENSE, UNKNOWN),
        (b"", b"", UNKNOWN),
    ],
    ids=["code", "no code", "stopped", "137", "137 gone", "143", "runs", "forgotten", "gone", "nonsense", "silence"],
)
async def test_what_the_engine_says_after_the_end_of_the_stream(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch, inspect: bytes, container: bytes, expected: ExitStatus
) -> None:
    """Never a made-up code, and never without an end."""
    monkeypatch.setattr(limits, "EXIT_POLL_MS", (1, 1, 1))
    async with stand_in(short_dir, answering(inspect=inspect, container=container)) as (process, engine):
        engine.close()
        assert await asyncio.wait_for(process.exited, 5) == expected


async def test_an_exit_that_cannot_be_known_is_unknown(short_dir: Path) -> None:
    steps = {"create": SESSION, "start": UPGRADED + frame(b"first"), "inspect": state(running=False, code=-1)}
    async with fake_engine(short_dir, answering(**steps, container=RUNS)) as engine:
        process = await engine.lane.start(spec("x"), 0)
        assert await complete(process) == (b"first", b"", UNKNOWN)


async def test_nobody_is_asked_for_a_code_that_is_known(short_dir: Path) -> None:
    async with stand_in(short_dir, answering(), Started(0, None, b"", 127, ended=True)) as (process, engine):
        assert process.exited.result() == ExitStatus(reason="exited", exit_code=127)
        engine.close()


async def test_giving_back_ends_the_question_and_says_unknown(short_dir: Path) -> None:
    closed: list[ExitStatus] = []
    async with stand_in(short_dir, answering()) as (process, engine):
        process.at_end.callback(lambda: closed.append(process.exited.result()))
        engine.close()
        await wait_readable(process.stdout_fd, 5000)  # the end of the stream: the engine is being asked now
        assert repr(process) == "<RestProcess m pid=0 running>"
    await process.aclose()  # once more, for nothing
    assert closed == [UNKNOWN]


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -TERM $$", 128 + signal.SIGTERM)], ids=["0", "3", "TERM"]
)
async def test_the_kernel_tells_before_the_stream_ends(short_dir: Path, script: str, code: int) -> None:
    """The engine is never asked: here it would not answer."""
    with subprocess.Popen(["sh", "-c", script]) as child:  # noqa: ASYNC220 - a fork takes no time worth waiting for
        async with stand_in(short_dir, answering(), held(child.pid)) as (process, _):
            assert await asyncio.wait_for(process.exited, 5) == ExitStatus(reason="exited", exit_code=code)
            process.signal(signal.SIGTERM)  # too late, and no error


@pytest.mark.parametrize(("container", "expected"), [(NO_CONTAINER, GONE), (RUNS, KILLED)], ids=["gone", "runs"])
async def test_a_kill_that_was_not_ours_may_be_the_containers_end(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch, container: bytes, expected: ExitStatus
) -> None:
    monkeypatch.setattr(limits, "EXIT_SETTLE_MS", 10)
    serve = answering(inspect=state(running=True, pid=1), container=container)
    with subprocess.Popen(["sleep", "60"]) as child:  # noqa: ASYNC220 - a fork takes no time worth waiting for
        async with stand_in(short_dir, serve, held(child.pid)) as (process, engine):
            process.signal(signal.SIGKILL)
            await asyncio.to_thread(os.waitid, os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            engine.close()
            assert await asyncio.wait_for(process.exited, 5) == expected


async def test_a_kill_of_ours_needs_no_question(short_dir: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:  # noqa: ASYNC220 - a fork takes no time worth waiting for
        async with stand_in(short_dir, answering(), held(child.pid)) as (process, _):
            await process.end_tree(grace())
            assert await asyncio.wait_for(process.exited, 5) == KILLED


async def test_an_engine_that_died_did_not_end_the_command(short_dir: Path) -> None:
    with subprocess.Popen(["sh", "-c", "read x; exit 6"], stdin=subprocess.PIPE) as child:  # noqa: ASYNC220 - a fork takes no time worth waiting for
        async with stand_in(short_dir, answering(), held(child.pid)) as (process, engine):
            engine.close()
            await wait_readable(process.stdout_fd, 5000)
            assert not process.exited.done()
            assert child.stdin is not None
            child.stdin.close()
            assert (await asyncio.wait_for(process.exited, 5)).exit_code == 6


class Told(StreamsOwner):
    """An owner, and what it was told."""

    def __init__(self) -> None:
        self.gap = self.drained = False

    def on_gap(self) -> None:
        self.gap = True

    def on_drained(self) -> None:
        self.drained = True


async def test_an_engine_that_sleeps_when_the_tree_is_gone_is_not_waited_for(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PUMP_LOOK_MS", LOOK_MS)
    owner, directory, poller = Told(), SocketDirectory(), Poller()
    with subprocess.Popen(["sleep", "100"]) as child:  # noqa: ASYNC220 - a fork takes no time worth waiting for
        async with stand_in(short_dir, answering(), held(child.pid)) as (process, engine):
            sockets = directory.open("p")
            streams = process.serve(owner, sockets, poller, "hold")
            with socket.socket(socket.AF_UNIX) as out, socket.socket(socket.AF_UNIX) as err:
                out.connect(sockets.stdio.path)
                err.connect(sockets.stderr.path)
                await process.end_tree(grace(0))
                for _ in range(5):  # it lags, and does not sleep
                    await asyncio.sleep(LOOK_MS / 2000)
                    engine.sendall(frame(b"late"))
                assert await read_all(out.detach()) == 5 * b"late"
                assert await read_all(err.detach()) == b""
            assert owner.gap
            assert owner.drained
            streams.close()
            process.stdout_fd, process.stderr_fd = os.dup(0), os.dup(0)  # for `drop`: the streams have closed theirs
    poller.close()
    directory.close()


def held(pid: int) -> Started:
    """A command of this host that runs."""
    return Started(pid, os.pidfd_open(pid), b"", None, ended=False)


@asynccontextmanager
async def stand_in(
    directory: Path, serve: Serve, started: Started | None = None
) -> AsyncIterator[tuple[RestProcess, socket.socket]]:
    """A process with its relay, and the engine's end of its stream. Elsewhere, where nothing else is said."""
    async with fake_engine(directory, serve) as engine:
        ours, engines = socket.socketpair()
        with engines:
            ours.setblocking(False)
            process = _assemble(engine, ours, started or Started(0, None, b"", None, ended=False))
            try:
                yield process, engines
            finally:
                process.close_streams()
                await process.aclose()


def _assemble(engine: FakeEngine, ours: socket.socket, started: Started) -> RestProcess:
    async def kill(marker: str, root_pid: int | None, grace: Grace, deadline_s: float) -> None:
        assert root_pid is not None
        os.kill(root_pid, signal.SIGKILL)

    process = RestProcess(engine.calls, "c", "5e55", "m", started, kill, ooms_from_now(None))
    process.stdout_fd, stdout = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    process.stderr_fd, stderr = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    process.attach(Demux(ours, b"", None, stdout, stderr, process.on_stream_end), ended=started.ended)
    return process
