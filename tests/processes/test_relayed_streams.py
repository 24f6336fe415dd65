"""The streams of a process whose pipes are ours: both endpoints together, and what their owner is told."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw import limits
from fastclaw.linux.poller import Poller
from fastclaw.processes.lane import Collected, Collection, ExitStatus, Grace, StreamsOwner
from fastclaw.processes.listeners import ProcessSockets, SocketDirectory
from fastclaw.processes.relayed_streams import Collector, LocalStreams, OutputBudget, PipedProcess
from tests.balance import open_descriptors
from tests.processes.endpoint_rig import Client, PipeEnd
from tests.waiting import turns, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from fastclaw.processes.lane import Grace
    from fastclaw.runtime import OnDisconnect


class Program(PipedProcess):
    """A process that the test plays, at the other ends of three pipes.

    Attributes:
        stdin, stdout, stderr: its ends.
        ended: its tree was ended.
    """

    def __init__(self, *, has_stdin: bool = True) -> None:
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        self.stdin, self.stdin_fd = PipeEnd(-1), None
        if has_stdin:
            theirs, self.stdin_fd = os.pipe2(flags)
            self.stdin = PipeEnd(theirs)
        self.stdout_fd, out = os.pipe2(flags)
        self.stderr_fd, err = os.pipe2(flags)
        self.stdout, self.stderr = PipeEnd(out), PipeEnd(err)
        self.exited: asyncio.Future[ExitStatus] = asyncio.get_running_loop().create_future()
        self.ended = asyncio.Event()

    def signal(self, signum: int, *, group: bool = False) -> None: ...

    async def end_tree(self, grace: Grace) -> None:
        self.ended.set()

    def close(self) -> None:
        """Its own ends. Idempotent."""
        for end in (self.stdin, self.stdout, self.stderr):
            end.close()

    def exit(self, exit_code: int = 0, *, closes: bool = False) -> None:
        """End with this; `closes`: nothing else holds its outputs."""
        if closes:
            self.stdout.close()
            self.stderr.close()
        self.exited.set_result(ExitStatus(reason="exited", exit_code=exit_code))


class Scene(StreamsOwner):
    """Attributes:
    told: what the owner was told, in order, but for `on_clients`.
    changes: how often it was told of clients.
    """

    def __init__(self, on_disconnect: OnDisconnect) -> None:
        self.told: list[str] = []
        self.changes = 0
        self.directory = SocketDirectory()
        self.poller = Poller()
        self.sockets: ProcessSockets = self.directory.open("p")
        self.program = Program()
        streams = self.program.serve(self, self.sockets, self.poller, on_disconnect)
        assert isinstance(streams, LocalStreams)
        self.streams = streams
        self._clients: list[Client] = []

    def on_abandoned(self) -> None:
        self.told.append("abandoned")

    def on_gap(self) -> None:
        self.told.append("gap")

    def on_drained(self) -> None:
        self.told.append("drained")

    def on_clients(self) -> None:
        self.changes += 1

    async def connect(self, path: str) -> Client:
        """A client that is served."""
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        sock.setblocking(False)
        self._clients.append(Client(sock))
        before = self.changes
        await until(lambda: self.changes > before)
        return self._clients[-1]

    async def stdio(self) -> Client:
        return await self.connect(self.sockets.stdio.path)

    async def errors(self) -> Client:
        return await self.connect(self.sockets.stderr.path)

    def is_listening(self) -> bool:
        return os.path.exists(self.sockets.stdio.path) or os.path.exists(self.sockets.stderr.path)

    async def looks(self, count: int = limits.STALLED_LOOKS + 1) -> None:
        """So many, each after the time that has to be between them."""
        for _ in range(count):
            await asyncio.sleep(limits.PUMP_LOOK_MS / 1000)
            assert self.streams.look() is False, "what is found is known at once"

    def close(self) -> None:
        self.streams.close()
        self.poller.close()
        self.program.close()
        for client in self._clients:
            client.close()
        self.directory.close()


@pytest.fixture
async def scene(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    """Parametrized by what a client that leaves means."""
    made = Scene(getattr(request, "param", "eof"))
    yield made
    made.close()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks are two milliseconds apart."""
    monkeypatch.setattr(limits, "PUMP_LOOK_MS", 4)


# --- what flows ---


async def test_drained_once_both_have_been_read_to_the_end(scene: Scene) -> None:
    scene.program.close()
    assert await (await scene.errors()).read_to_end() == b""
    assert scene.told == []
    assert await (await scene.stdio()).read_to_end() == b""
    await until(lambda: scene.told == ["drained"])
    assert scene.streams.drained
    assert not scene.streams.is_unread()


@pytest.mark.parametrize(("scene", "told"), [("eof", []), ("hold", []), ("kill", ["abandoned"])], indirect=["scene"])
async def test_what_a_client_that_leaves_stdio_means(scene: Scene, told: list[str]) -> None:
    errors, stdio = await scene.errors(), await scene.stdio()
    errors.close()
    await until(lambda: scene.streams.is_unread())
    assert scene.told == [], "stderr is nobody's who could abandon it"
    before = scene.changes
    stdio.close()
    await until(lambda: scene.changes > before)
    assert scene.told == told


async def test_output_that_a_client_left_in_its_socket_is_a_gap_without_stdin_too(scene: Scene) -> None:
    errors = await scene.errors()
    await scene.program.stderr.write(b"unread")
    await until(lambda: not scene.streams.has_pending_output())
    assert await errors.read(1) == b"u"
    errors.close()
    await until(lambda: scene.told == ["gap"])


# --- who reads ---


async def test_unread_is_what_has_no_client_and_is_not_at_its_end(scene: Scene) -> None:
    assert scene.streams.is_unread()
    assert not scene.streams.is_served()
    stdio = await scene.stdio()
    assert scene.streams.is_unread()
    assert scene.streams.is_served()
    errors = await scene.errors()
    assert not scene.streams.is_unread()
    scene.program.stderr.close()
    assert await errors.read() == b""
    errors.close()
    await turns(5)
    assert not scene.streams.is_unread(), "its end has been read"
    before = scene.changes
    stdio.close()
    await until(lambda: scene.changes > before)
    assert scene.streams.is_unread()
    assert not scene.streams.is_served()


@pytest.mark.parametrize("name", ["stdout", "stderr"])
async def test_output_that_waits(scene: Scene, name: str) -> None:
    assert not scene.streams.has_pending_output()
    await getattr(scene.program, name).write(b"x")
    assert scene.streams.has_pending_output()


@pytest.mark.usefixtures("often")
async def test_a_client_that_takes_nothing_of_what_waits_reads_nothing_until_it_takes_some(scene: Scene) -> None:
    stdio, _errors = await scene.stdio(), await scene.errors()
    await scene.program.stdout.flood()
    before = scene.changes
    await scene.looks()
    assert scene.streams.is_unread()
    assert scene.streams.is_served()
    assert scene.changes == before + 1
    await stdio.read(1 << 20)
    await scene.program.stdout.flood()
    await scene.looks(1)
    assert not scene.streams.is_unread()
    assert scene.changes == before + 2


@pytest.mark.usefixtures("often")
async def test_a_client_for_whom_nothing_waits_is_none_that_reads_nothing(scene: Scene) -> None:
    await scene.stdio()
    await scene.errors()
    await scene.program.stdout.write(b"in its socket")
    await until(lambda: not scene.streams.has_pending_output())
    await scene.looks()
    assert not scene.streams.is_unread()


@pytest.mark.usefixtures("often")
async def test_the_next_client_is_not_blamed_for_the_last_one(scene: Scene) -> None:
    stdio, _errors = await scene.stdio(), await scene.errors()
    await scene.program.stdout.flood()
    await scene.looks()
    assert scene.streams.is_unread()
    before = scene.changes
    stdio.close()
    await until(lambda: scene.changes > before)
    await scene.stdio()
    await scene.program.stdout.flood()
    await scene.looks(limits.STALLED_LOOKS)
    assert not scene.streams.is_unread()


async def test_looks_that_come_too_soon_are_none(scene: Scene) -> None:
    await scene.stdio()
    await scene.errors()
    await scene.program.stdout.flood()
    for _ in range(5 * limits.STALLED_LOOKS):
        scene.streams.look()
    assert not scene.streams.is_unread()


# --- the end ---


async def test_closed_without_clients_nothing_is_left(scene: Scene) -> None:
    await scene.program.stdout.write(b"unread")
    before = open_descriptors()
    scene.streams.release()
    scene.streams.release()
    assert len(before) - len(open_descriptors()) == 5
    assert not scene.is_listening()
    assert not scene.streams.has_pending_output()
    assert not scene.streams.is_served()
    assert scene.told == []
    with pytest.raises(BrokenPipeError):
        await scene.program.stdout.write(b"x")


async def test_closed_both_that_are_there_may_drain_it(scene: Scene) -> None:
    clients = await scene.stdio(), await scene.errors()
    scene.streams.release()
    await scene.program.stderr.write(b"last")
    scene.program.close()
    assert [await client.read_to_end() for client in clients] == [b"", b"last"]
    await until(lambda: scene.told == ["drained"])
    assert not scene.streams.is_served()


@pytest.mark.usefixtures("often")
async def test_a_cut_ends_who_reads_nothing_with_a_gap_and_nobody_else(scene: Scene) -> None:
    stdio, errors = await scene.stdio(), await scene.errors()
    await scene.program.stdout.flood()
    await scene.looks()
    scene.streams.release()
    assert scene.told == []
    assert scene.streams.is_unread()
    scene.streams.release(cut=True)
    assert scene.told == ["gap"]
    assert scene.streams.is_served()
    assert not scene.streams.is_unread()
    with pytest.raises(BrokenPipeError):
        await scene.program.stdout.write(b"x")
    await scene.program.stderr.write(b"is read")
    assert await errors.read() == b"is read"
    assert len(await stdio.read_to_end()) > 0
    scene.streams.release(cut=True)
    assert scene.told == ["gap"], "once"


async def test_given_up_everything_is_closed_whoever_is_there(scene: Scene) -> None:
    stdio = await scene.stdio()
    await scene.program.stdout.flood()
    scene.streams.close()
    scene.streams.close()
    assert not scene.is_listening()
    assert not scene.streams.is_served()
    with pytest.raises(BrokenPipeError):
        await scene.program.stdout.write(b"x")
    assert len(await stdio.read_to_end()) > 0


# --- without anybody to serve it ---


@pytest.mark.parametrize("has_stdin", [False, True])
async def test_streams_that_nobody_will_serve_are_closed(has_stdin: bool) -> None:
    before = open_descriptors()
    program = Program(has_stdin=has_stdin)
    program.close_streams()
    program.close()
    assert open_descriptors() == before


PATIENCE_MS = 20_000


@contextmanager
def collecting(
    data: bytes = b"", budget: OutputBudget | None = None, **more: Any
) -> Iterator[tuple[Program, Collector]]:
    command = Program()
    collector = Collector(command, Collection(input=data, **more), budget or OutputBudget(limits.MIB))
    try:
        yield command, collector
    finally:
        command.close()
        collector.close()
        for future in (collector.collected, collector.streams_ended):
            future.cancel()


async def told(collector: Collector) -> Collected:
    async with asyncio.timeout(5):
        return await asyncio.shield(collector.collected)


async def test_what_was_in_the_pipes_at_the_exit_is_told_at_once() -> None:
    with collecting(drain_ms=PATIENCE_MS) as (command, collector):
        os.write(command.stdout.fd, b"out")
        os.write(command.stderr.fd, b"err")
        command.exit(3, closes=True)
        await turns(2)
        result = collector.collected.result()
        assert (result.status.exit_code, result.stdout.head, result.stderr.head) == (3, b"out", b"err")
        assert (result.limited, result.overloaded, result.incomplete) == (False, False, False)
        assert collector.streams_ended.done()


async def test_input_goes_in_whole_and_ends() -> None:
    data, got = os.urandom(1 << 20), b""
    with collecting(data) as (command, _):
        while part := await command.stdin.read():
            got += part
    assert got == data


@pytest.mark.parametrize("is_closed", [False, True])
async def test_input_that_is_not_read_is_given_up(is_closed: bool) -> None:
    with collecting(bytes(1 << 20)) as (command, collector):
        if is_closed:
            command.stdin.close()
            await turns()
        command.exit(closes=True)
        assert (await told(collector)).status.exit_code == 0


async def test_nothing_is_told_before_the_exit() -> None:
    with collecting() as (command, collector):
        command.stdout.close()
        command.stderr.close()
        async with asyncio.timeout(5):
            await collector.streams_ended
        assert not collector.collected.done()
        command.exit()
        await told(collector)


@pytest.mark.parametrize("drain_ms", [0, 50])
async def test_a_stream_that_somebody_holds_is_waited_for_no_longer_than_that(drain_ms: int) -> None:
    loop = asyncio.get_running_loop()
    with collecting(drain_ms=drain_ms) as (command, collector):
        os.write(command.stdout.fd, b"x" * limits.PIPE_BYTES)  # all of it is there at the exit
        began = loop.time()
        command.exit()
        assert (await told(collector)).stdout.total == limits.PIPE_BYTES
        assert loop.time() - began >= drain_ms / 1000 - 0.01
        assert not collector.streams_ended.done()


async def test_what_comes_within_the_drain_counts_and_what_comes_later_is_thrown_away() -> None:
    with collecting(drain_ms=PATIENCE_MS) as (command, collector):
        command.exit()
        await asyncio.sleep(0)
        os.write(command.stdout.fd, b"late")
        command.close()
        assert (await told(collector)).stdout.head == b"late"
    with collecting(drain_ms=0) as (command, collector):
        command.exit()
        assert (await told(collector)).stdout.total == 0
        await command.stdout.write(bytes(8 << 20))  # neither EPIPE nor a full pipe
        command.close()
        async with asyncio.timeout(5):
            await collector.streams_ended


async def test_a_flood_is_read_and_kept_within_its_limit() -> None:
    with collecting(output_limit=1000, keep="head", drain_ms=0) as (command, collector):
        await command.stdout.write(b"ab" * (1 << 20))
        command.exit(closes=True)
        output = (await told(collector)).stdout
        assert (output.head, output.total) == (b"ab" * 500, 2 << 20)
        assert not command.ended.is_set()


async def test_over_its_limit_it_is_ended_where_that_is_wanted() -> None:
    with collecting(output_limit=10, on_limit="kill") as (command, collector):
        os.write(command.stderr.fd, b"x" * 10)
        await turns()
        assert not command.ended.is_set()
        os.write(command.stderr.fd, b"x")
        async with asyncio.timeout(5):
            await command.ended.wait()
        command.exit(closes=True)
        result = await told(collector)
        assert (result.limited, result.stderr.total) == (True, 11)


async def test_a_budget_is_for_all_of_them_and_is_given_back() -> None:
    budget = OutputBudget(100)
    with collecting(budget=budget) as (first, one), collecting(budget=budget) as (second, other):
        os.write(first.stdout.fd, b"x" * 60)
        await turns()
        os.write(second.stdout.fd, b"x" * 60)
        async with asyncio.timeout(5):
            await second.ended.wait()
        assert not first.ended.is_set()
        for command in (first, second):
            command.exit(closes=True)
        assert [(await told(each)).overloaded for each in (one, other)] == [False, True]
    assert budget.change(100)
    assert not budget.change(1)


async def test_nobody_who_wants_the_result_any_more() -> None:
    budget = OutputBudget(100)
    with collecting(budget=budget) as (command, collector):
        os.write(command.stdout.fd, b"x" * 60)
        await turns()
        collector.collected.cancel()
        command.exit()
        await turns()
        assert budget.change(100)
        await command.stdout.write(bytes(1 << 20))


async def test_closing_tells_what_there_is_and_that_it_may_not_be_all() -> None:
    with collecting() as (command, collector):
        os.write(command.stdout.fd, b"begun")
        await turns()
        collector.close()
        result = await told(collector)
        assert (result.incomplete, result.status.reason, result.stdout.head) == (True, "unknown", b"begun")
        assert collector.streams_ended.done()
        with pytest.raises(BrokenPipeError):
            os.write(command.stdout.fd, b"x")


async def test_a_loop_that_cannot_watch_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Collector) -> None:
        raise OSError(28, "No space left on device")

    command = Program()
    monkeypatch.setattr(Collector, "_start", refuse)
    with pytest.raises(OSError, match="No space"):
        Collector(command, Collection(), OutputBudget(1))
    command.close()
