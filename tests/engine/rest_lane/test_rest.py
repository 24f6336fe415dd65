"""The REST lane on a real Podman, with every OCI runtime that is here; and on engines that misbehave.

What one of its parts promises is tested with that part.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw import limits, stages
from fastclaw.engine.rest_lane.stdin import StdinHelpers
from fastclaw.errors import ExecFailed
from fastclaw.linux.sockets import wait_readable
from fastclaw.processes.lane import Collected, Collection, ExitStatus
from fastclaw.processes.relayed_streams import Collector
from tests.engine.rest_lane.rest_rig import (
    NO_CONTAINER,
    SESSION,
    UPGRADED,
    Request,
    answer,
    answering,
    complete,
    fake_engine,
    frame,
    grace,
    spec,
    state,
)
from tests.pids import marked

if TYPE_CHECKING:
    from pathlib import Path

    from fastclaw.engine.rest_lane.rest import RestLane, RestProcess
    from fastclaw.processes.lane import StartSpec

REFUSED: list[tuple[str, StartSpec, str]] = [
    ("empty", spec(""), "not_found"),
    ("NUL", spec("ec\0ho"), "invalid_params"),
    ("NUL in a variable", spec("true", env={"A": "b\0c"}), "invalid_params"),
    ("NUL in the directory", spec("true", working_dir="/t\0mp"), "invalid_params"),
    ("NUL in the user", spec("true", user="ro\0ot"), "invalid_params"),
    ("a lone surrogate", spec("echo", "\udcff"), "invalid_params"),
    ("many lone surrogates", spec("echo", "\udcff" * 40_000), "invalid_params"),
    ("one huge argument", spec("true", "a" * 200_000), "too_long"),
    ("one huge argument in few characters", spec("true", "\N{GRINNING FACE}" * 33_000), "too_long"),
    ("impossible argv", spec("true", *["a" * 100_000] * 80), "too_long"),
    ("env of 1 MiB", spec("true", env={"A": "b" * (1 << 20)}), "too_long"),
]


@pytest.mark.parametrize(("what", "given_spec", "reason"), REFUSED, ids=[what for what, _, _ in REFUSED])
async def test_what_is_impossible_never_reaches_the_engine(
    short_dir: Path, what: str, given_spec: StartSpec, reason: str
) -> None:
    async with fake_engine(short_dir, answering()) as engine:
        with pytest.raises(ExecFailed) as caught:
            await engine.lane.start(given_spec, 0)
    assert (caught.value.reason, engine.asked) == (reason, [])


@pytest.mark.podman
async def test_the_stages_of_a_start_are_timed(lane: RestLane) -> None:
    asked = spec("true")
    await complete(await lane.start(asked, 0))
    times = [asked.flight.at[stage] for stage in (stages.RECEIVED, stages.SENT, stages.TAKEN, stages.STARTED)]
    assert times == sorted(times)
    assert all(times)
    assert repr(lane).startswith("<RestLane local <HttpClient ")


async def no_way(helpers: StdinHelpers, pid: int) -> None:
    """As where /proc shows no pipe."""


@pytest.fixture(params=["direct", "relayed"])
def stdin_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to a process's stdin."""
    if request.param == "relayed":
        monkeypatch.setattr(StdinHelpers, "open", no_way)
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
        got = await complete(process, b"x" * 300_000)
        assert got == (b"out\n", b"err\n", ExitStatus(reason="exited", exit_code=3))


@pytest.mark.podman
async def test_a_reader_that_never_reads_leaves_others_alone(lane: RestLane) -> None:
    stuck = await lane.start(spec("cat", "/dev/zero"), 0)
    process = await lane.start(spec("echo", "fine"), 0)
    assert (await complete(process))[0] == b"fine\n"
    await stuck.end_tree(grace())
    assert (await asyncio.wait_for(stuck.exited, 10)).exit_code == 128 + signal.SIGKILL
    stuck.close_streams()
    await stuck.aclose()


@pytest.mark.podman
async def test_a_tree_with_a_new_session_is_ended(lane: RestLane) -> None:
    given_spec = spec("sh", "-c", "setsid sleep 100 & (setsid sh -c 'sleep 100 & sleep 100' &); echo up; sleep 100")
    process = await lane.start(given_spec, 0)
    await wait_readable(process.stdout_fd, 5000)
    await lane.end_all([process], grace(0.2))
    assert process.exited.done()
    assert not marked(given_spec.process_id)
    process.close_streams()
    await process.aclose()


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
        process.close_streams()
        await process.aclose()
    assert not marked(given_spec.process_id)


@pytest.mark.podman
async def test_a_hundred_at_once_give_their_own_bytes_and_codes(lane: RestLane) -> None:
    slots = asyncio.Semaphore(4)

    async def one(number: int) -> None:
        async with slots:
            process = await lane.start(spec("sh", "-c", f"echo {number}; echo {-number} >&2; exit {number % 256}"), 0)
        got = await complete(process)
        assert got == (b"%d\n" % number, b"%d\n" % -number, ExitStatus(reason="exited", exit_code=number % 256))

    await asyncio.gather(*(one(number) for number in range(100)))


# --- Runs ------------------------------------------------------------------------------------------


async def ran(lane: RestLane, *cmd: str, data: bytes | None = None, **more: Any) -> tuple[RestProcess, Collected]:
    """A run to its end, given back."""
    fields = {name: more.pop(name) for name in ("merge_stderr", "orphans") if name in more}
    process = await lane.run(spec(*cmd, stdin=data is not None, **fields), Collection(input=data or b"", **more), 0)
    assert process.collected is not None
    async with asyncio.timeout(20):
        result = await process.collected
    return process, result


async def give_back(process: RestProcess) -> None:
    assert process.streams_ended is not None
    async with asyncio.timeout(20):
        await process.streams_ended
    await process.aclose()


@pytest.mark.podman
async def test_output_errors_and_code(lane: RestLane) -> None:
    process, result = await ran(lane, "sh", "-c", "cat; echo bad >&2; exit 3", data=b"in")
    assert (result.stdout.head, result.stderr.head, result.status.exit_code) == (b"in", b"bad\n", 3)
    await give_back(process)


@pytest.mark.podman
async def test_much_of_both_ways(lane: RestLane) -> None:
    data = os.urandom(4 << 20)
    process, result = await ran(lane, "cat", data=data, output_limit=len(data))
    assert result.stdout.head + result.stdout.tail == data
    await give_back(process)


@pytest.mark.podman
async def test_what_a_command_leaves_running_lives_or_ends_with_it(lane: RestLane) -> None:
    script = "setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo up"
    for orphans, left in (("keep", 1), ("kill", 0)):
        begun = spec("sh", "-c", script, orphans=orphans)
        process = await lane.start(begun, 0)
        assert (await complete(process))[0] == b"up\n"  # which waits for the orphans' end
        assert len(marked(begun.process_id)) == left
        if left:
            await process.end_tree(grace())


@pytest.mark.podman
async def test_both_streams_in_one(lane: RestLane) -> None:
    begun = spec("sh", "-c", "echo out; echo err >&2", merge_stderr=True)
    out, err, _ = await complete(await lane.start(begun, 0))
    assert (sorted(out.splitlines()), err) == ([b"err", b"out"], b"")


@pytest.mark.podman
async def test_a_run_over_its_limit_is_ended(lane: RestLane) -> None:
    process, result = await ran(lane, "yes", output_limit=1000, on_limit="kill")
    assert (result.limited, len(result.stdout.head + result.stdout.tail)) == (True, 1000)
    await give_back(process)


@pytest.mark.podman
async def test_a_run_whose_streams_cannot_be_watched_leaves_nothing(
    lane: RestLane, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Collector) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Collector, "_start", refuse)
    begun = spec("sleep", "1000")
    with pytest.raises(OSError, match="No space"):
        await lane.run(begun, Collection(), 0)
    assert not marked(begun.process_id)


# --- Engines that misbehave ------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["create", "start", "inspect"])
@pytest.mark.parametrize(
    ("wire", "close", "reason"),
    [
        (b"", False, "engine_timeout"),
        (b"SSH-2.0-x\r\n\r\n", False, "engine_error"),
        (b"HTTP/1.1 200 O", True, "engine_error"),
        (answer(201, b"[]"), False, "engine_error"),
        (b"", True, "engine_unavailable"),
        (NO_CONTAINER, False, "container_gone"),
    ],
    ids=["silence", "garbage", "cut", "nonsense", "close", "refuse"],
)
async def test_a_broken_engine_is_an_error_in_time(
    short_dir: Path, step: str, wire: bytes, close: bool, reason: str
) -> None:
    """And what it may have started meanwhile is ended, by a second exec."""

    async def serve(request: Request, writer: asyncio.StreamWriter) -> None:
        if b"find_all" in request.body:
            writer.write(answer(201, b'{"Id":"killer"}'))
        elif "killer" in request.line:
            writer.write(UPGRADED + frame(b"gone\n"))
            raise EOFError
        elif request.step != step:
            writer.write({"create": SESSION, "start": UPGRADED}.get(request.step) or state(running=True, pid=1))
        else:
            writer.write(wire)
            await writer.drain()
            if close:
                raise EOFError

    async with fake_engine(short_dir, serve) as engine:
        with pytest.raises(ExecFailed) as caught:
            await asyncio.wait_for(engine.lane.start(spec("true"), 0), 2)
    assert caught.value.reason == reason
    assert caught.value.retryable == (reason != "engine_error")
    asked_to_end = any("killer" in request.line for request in engine.asked)
    assert asked_to_end == (step == "inspect" or (step == "start" and not wire))


async def test_an_engine_that_does_not_end_leftovers_either_is_an_error_in_time(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason is that of the start, not of the ending."""
    monkeypatch.setattr(limits, "ABANDONED_KILL_MS", 200)
    async with fake_engine(short_dir, answering(create=SESSION, start=UPGRADED, inspect=answer(200, b"[]"))) as engine:
        with pytest.raises(ExecFailed, match="makes no sense") as caught:
            await asyncio.wait_for(engine.lane.start(spec("true"), 0), 2)
    assert caught.value.reason == "engine_error"
    assert engine.steps() == ["create", "start", "inspect", "create", "start"]


async def test_first_output_in_the_same_read_as_the_header(short_dir: Path) -> None:
    steps = {"create": SESSION, "start": UPGRADED + frame(b"first"), "inspect": state(running=False, code=3)}
    async with fake_engine(short_dir, answering(**steps)) as engine:
        process = await engine.lane.start(spec("x"), 0)
        assert await complete(process) == (b"first", b"", ExitStatus(reason="exited", exit_code=3))
