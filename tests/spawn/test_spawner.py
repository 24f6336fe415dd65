"""One spawner as fastclaw sees it: against a fake that does what no spawner should, and against the real one."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import struct
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from fastclaw import limits
from fastclaw.errors import ExecFailed, StartFailed
from fastclaw.lane import Grace, StartSpec
from fastclaw.protocol import spawner as frames
from fastclaw.spawn.binary import find_spawner
from fastclaw.spawn.host import HostHome
from fastclaw.spawn.lane import SpawnLane
from fastclaw.spawn.process import SpawnProcess
from fastclaw.spawn.spawner import greet
from fastclaw.spawn.stdio import Stdio
from fastclaw.transport.outbox import close_all
from tests.balance import balanced, open_descriptors
from tests.spawn.fake_spawner import (
    BareHost,
    FakeSpawner,
    a_bare_host,
    children_of,
    descendants_of,
    greeted,
    has_not_ended,
    is_there,
    keeper_of,
    nothing,
    state_of,
    until,
)
from tests.spawn.test_host import finish

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from fastclaw.spawn.spawner import Spawner

SPEC = StartSpec(process_id="p", cmd=["prog"], env={})


# --- the handshake, with a fake ---


@asynccontextmanager
async def a_fake() -> AsyncIterator[FakeSpawner]:
    async with balanced():
        fake = FakeSpawner()
        try:
            yield fake
        finally:
            fake.close()


async def shake(fake: FakeSpawner) -> Spawner:
    return await greet(fake.host, confine=False, keeper_uid=frames.NO_USER, on_end=nothing)


async def test_who_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SPAWN_HELLO_MS", 20)
    async with a_fake() as fake:
        with pytest.raises(StartFailed, match="said nothing for 20 ms") as refused:
            await shake(fake)
        assert refused.value.reason == "engine_timeout"


async def test_who_ends_at_once_is_no_spawner() -> None:
    async with a_fake() as fake:
        fake.close()
        with pytest.raises(StartFailed, match="ended at once"):
            await shake(fake)


async def test_who_ends_after_its_greeting_cannot_be_reached() -> None:
    async with a_fake() as fake:
        fake.say_hello()
        fake.close()
        with pytest.raises(StartFailed) as refused:
            await shake(fake)
        assert refused.value.reason == "io_error"


@pytest.mark.parametrize("tail", [b"", b"PATH=/bin\0"])
async def test_another_version_is_refused(tail: bytes) -> None:
    async with a_fake() as fake:
        fake.say_hello(tail, version=frames.VERSION + 1)
        with pytest.raises(StartFailed, match="install fastclaw anew"):
            await shake(fake)


@pytest.mark.parametrize("garbage", [b"x", b"GET / HTTP/1.1\r\n\r\n", bytes(16), os.urandom(limits.SPAWN_HELLO_BYTES)])
async def test_a_garbled_greeting_is_refused(garbage: bytes) -> None:
    async with a_fake() as fake:
        fake.control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * limits.SPAWN_HELLO_BYTES)
        fake.control.send(garbage)
        with pytest.raises(StartFailed):
            await shake(fake)


async def test_a_kernel_that_lists_no_children_is_not_supported() -> None:
    async with a_fake() as fake:
        fake.say_hello(facts=2)
        with pytest.raises(StartFailed, match="CONFIG_PROC_CHILDREN") as refused:
            await shake(fake)
        assert refused.value.reason == "unsupported"


@pytest.mark.parametrize(("facts", "uid"), [(1, frames.NO_USER), (3, limits.KEEPER_UID)])
async def test_the_welcome_names_the_keepers_user_only_where_they_may_become_it(facts: int, uid: int) -> None:
    async with a_fake() as fake:
        fake.say_hello(b"A=b\0", facts=facts)
        task = asyncio.ensure_future(
            greet(fake.host, confine=True, keeper_uid=limits.KEEPER_UID, on_end=lambda: pytest.fail("told to end"))
        )
        assert await fake.hear_welcome() == (frames.WELCOME, frames.VERSION, frames.CONFINE, uid)
        await fake.grant_growth()
        spawner = await task
        assert spawner.hello.env == {"A": "b"}
        spawner.close()
        spawner.close()


async def test_a_greeting_that_is_cancelled_leaves_nothing() -> None:
    async with a_fake() as fake:
        for is_welcomed in (False, True):
            again = FakeSpawner() if is_welcomed else fake
            task = asyncio.ensure_future(shake(again))
            if is_welcomed:
                again.say_hello()
                await again.hear_welcome()
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            again.close()
            await asyncio.sleep(0)


@pytest.mark.parametrize("how", ["dies", "refuses", "is silent"])
async def test_who_cannot_make_its_first_keepers_did_not_start(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SPAWN_ANSWER_MS", 20)
    async with a_fake() as fake:
        fake.say_hello()
        task = asyncio.ensure_future(shake(fake))
        await fake.hear_welcome()
        if how == "dies":
            fake.close()
        elif how == "refuses":
            await fake.grant_growth(0, errno.EAGAIN)
        with pytest.raises(StartFailed):
            await task


# --- what it says later, with a fake ---


class Watched:
    """A fake, its spawner object, and how often its end was told."""

    def __init__(self) -> None:
        self.fake = FakeSpawner()
        self.ends = 0
        self.spawner: Spawner

    def count(self) -> None:
        self.ends += 1

    async def begin(self) -> tuple[SpawnProcess, int]:
        """Send one request, and let the fake take it; `closed` takes its streams again."""
        spawner = self.spawner
        process = request(spawner)
        id = await self.fake.hear_request()
        assert id == process.id
        return process, id

    async def heard(self) -> None:
        """Return when everything said so far has been read: an answer comes after it."""
        asked = asyncio.ensure_future(self.spawner.ask(frames.PING))
        _, id, _, _ = await self.fake.hear_order()
        self.fake.answer(id)
        await asked


@asynccontextmanager
async def watched() -> AsyncIterator[Watched]:
    async with balanced():
        seen = Watched()
        seen.spawner = await greeted(seen.fake, seen.count)
        try:
            yield seen
        finally:
            seen.spawner.close()
            seen.fake.close()
            await asyncio.sleep(0)


def request(spawner: Spawner) -> SpawnProcess:
    """Hand over a request; the streams of its process are closed when it is let go."""
    id, stdio = spawner.next_id(), Stdio(False)
    process = SpawnProcess(spawner, id, SPEC, stdio, asyncio.get_running_loop())
    frame = frames.start(id, frames.strings(SPEC.cmd), frames.strings([]), null_stdin=True)
    try:
        spawner.start(process, frame, stdio.theirs)
    finally:
        stdio.close_ours()
    return process


async def ended(process: SpawnProcess) -> str:
    return (await asyncio.wait_for(asyncio.shield(process.exited), 10)).reason


async def test_one_process_from_its_request_to_its_end() -> None:
    async with watched() as seen:
        process, id = await seen.begin()
        assert seen.spawner.counts()["kept"] == 1
        seen.fake.tell(frames.STARTED, id, 4711)
        await process.started
        assert process.timings["spawn"] >= 0
        seen.fake.tell(frames.EXITED, id, 7 << 8, 0)
        status = await asyncio.shield(process.exited)
        assert (status.exit_code, status.usage) == (7, {"user_us": 1, "system_us": 2, "max_rss_kb": 3})
        assert seen.spawner.counts()["kept"] == 1
        seen.fake.tell(frames.EMPTY, id)
        await process.end_tree(Grace(0.0))
        assert process.is_gone
        assert seen.spawner.counts()["kept"] == 0


async def test_what_was_refused_has_the_steps_reason() -> None:
    async with watched() as seen:
        process, id = await seen.begin()
        seen.fake.tell(frames.REFUSED, id, errno.ENOENT, frames.STEP_EXEC)
        with pytest.raises(ExecFailed) as refused:
            await process.started
        assert refused.value.reason == "not_found"
        assert process.is_gone
        assert seen.spawner.counts() == {"keepers": limits.SPAWN_SPARE_KEEPERS, "kept": 0}


async def test_a_lost_keeper_takes_its_process_along_and_is_one_less() -> None:
    async with watched() as seen:
        running, id = await seen.begin()
        seen.fake.tell(frames.STARTED, id)
        await running.started
        pending, other = await seen.begin()
        seen.fake.tell(frames.LOST, id)
        seen.fake.tell(frames.LOST, other)
        assert await ended(running) == await ended(pending) == "container_gone"
        with pytest.raises(ExecFailed) as refused:
            await pending.started
        assert refused.value.reason == "container_gone"
        assert seen.spawner.counts() == {"keepers": limits.SPAWN_SPARE_KEEPERS - 2, "kept": 0}
        assert seen.spawner.alive
        assert seen.ends == 0


async def test_news_of_nobody_are_passed_over() -> None:
    async with watched() as seen:
        process, id = await seen.begin()
        for op in (frames.STARTED, frames.REFUSED, frames.EXITED, frames.EMPTY, frames.LOST, 99):
            seen.fake.tell(op, id + 1_000)
        seen.fake.tell(99, id)
        seen.fake.tell(frames.STARTED, id)
        await process.started
        assert seen.spawner.counts() == {"keepers": limits.SPAWN_SPARE_KEEPERS, "kept": 1}
        assert seen.ends == 0


OVERLONG = bytes(frames.EVENT.size + 1)


@pytest.mark.parametrize(
    ("where", "garbage"),
    [
        ("control", b"x"),
        ("control", OVERLONG),
        ("channel", b"x"),
        ("channel", b"garbage " * 4),
        ("channel", OVERLONG),
    ],
    ids=["short answer", "long answer", "short event", "garbage", "long event"],
)
async def test_a_frame_of_another_size_is_the_end(where: str, garbage: bytes) -> None:
    async with watched() as seen:
        process, _ = await seen.begin()
        packets = seen.fake.control if where == "control" else seen.fake.channel
        assert packets is not None
        packets.send(garbage)
        await asyncio.wait([process.started], timeout=0.5)
        is_over = (seen.spawner.alive, seen.ends)
        seen.spawner.close()
        with pytest.raises(ExecFailed):
            await process.started
        assert await ended(process) == "container_gone"
        assert is_over == (False, 1)


async def test_answers_that_nobody_asked_for_are_dropped_with_their_descriptors() -> None:
    async with watched() as seen:
        before = open_descriptors()
        for id in (0, 77, 2**32 - 1):
            seen.fake.answer(id, fd=seen.fake.control.fileno())
        seen.fake.control.send(frames.EVENT.pack(99, 1, 0, 0, 0, 0, 0))
        await seen.heard()
        assert open_descriptors() == before
        assert seen.spawner.alive


async def test_what_was_said_before_the_end_counts() -> None:
    async with watched() as seen:
        process, id = await seen.begin()
        seen.fake.tell(frames.STARTED, id)
        seen.fake.tell(frames.EXITED, id, 3 << 8, 1)
        seen.fake.close()
        assert await ended(process) == "exited"
        assert process.is_gone


async def test_an_end_with_starts_pending_tells_each_of_them() -> None:
    async with watched() as seen:
        processes = [(await seen.begin())[0] for _ in range(3)]
        processes.append(request(seen.spawner))  # nobody has taken it
        asked = asyncio.ensure_future(seen.spawner.ask(frames.PING))
        await seen.fake.hear_order()
        seen.fake.close()
        for process in processes:
            with pytest.raises(ExecFailed) as refused:
                await process.started
            assert refused.value.reason == "container_gone"
            assert await ended(process) == "container_gone"
            await process.end_tree(Grace(0.0))
        with pytest.raises(ExecFailed):
            await asked
        assert (seen.spawner.alive, seen.ends, seen.spawner.counts()["kept"]) == (False, 1, 0)


async def test_ending_everything_takes_a_start_along_that_nobody_has_taken_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TREE_DEADLINE_MS", 200)
    async with watched() as seen:
        process = request(seen.spawner)
        ending = asyncio.ensure_future(seen.spawner.end_everything(Grace(0.0)))
        assert await seen.fake.hear_order() == (frames.END, 0, frames.LEVEL_KILL, 0)
        id = await seen.fake.hear_request()
        seen.fake.tell(frames.STARTED, id)
        try:
            async with asyncio.timeout(0.1):
                assert await seen.fake.hear_order() == (frames.END, id, frames.LEVEL_KILL, 0)
        finally:
            seen.fake.tell(frames.EXITED, id, signal.SIGKILL, 1)
            await ending
        assert process.is_gone


async def test_whoever_asks_the_dead_is_told_and_leaks_nothing() -> None:
    async with watched() as seen:
        seen.spawner.close()
        assert seen.ends == 0, "it was told to"
        seen.spawner.signal(1, 9)
        seen.spawner.end(1, frames.LEVEL_KILL)
        for attempt in (
            seen.spawner.ask(frames.PING, fds=[os.dup(0)]),
            seen.spawner.read_file("/etc/passwd"),
            seen.spawner.listen_inside(),
        ):
            with pytest.raises(ExecFailed) as refused:
                await attempt
            assert refused.value.reason == "container_gone"
        with pytest.raises(ExecFailed) as refused:
            request(seen.spawner)
        assert refused.value.reason == "container_gone"


async def test_a_start_without_news_is_given_up_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SPAWN_START_MS", 30)
    async with watched() as seen:
        first, id = await seen.begin()
        with pytest.raises(ExecFailed, match="not started within 30 ms") as refused:
            await first.started
        assert refused.value.reason == "engine_timeout"
        assert await seen.fake.hear_order() == (frames.END, id, frames.LEVEL_KILL, 0)
        second, other = await seen.begin()
        with pytest.raises(ExecFailed):
            await second.started
        assert await seen.fake.hear_order() == (frames.END, other, frames.LEVEL_KILL, 0)
        seen.fake.tell(frames.STARTED, id)  # so late, it is ended once more: the first order may have come too early
        assert await seen.fake.hear_order() == (frames.END, id, frames.LEVEL_KILL, 0)
        seen.fake.tell(frames.EXITED, id, 9, 1)
        assert await ended(first) == "signaled"


async def test_the_deadline_of_a_start_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SPAWN_START_MS", 60)
    async with watched() as seen:
        first, id = await seen.begin()
        seen.fake.tell(frames.STARTED, id)
        await first.started
        second, _ = await seen.begin()
        begun = asyncio.get_running_loop().time()
        with pytest.raises(ExecFailed):
            await second.started
        assert asyncio.get_running_loop().time() - begun >= 0.05
        assert not first.exited.done()


async def test_an_order_without_an_answer_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    async with watched() as seen:
        monkeypatch.setattr(limits, "SPAWN_ANSWER_MS", 20)
        with pytest.raises(ExecFailed, match="did not answer within 20 ms") as refused:
            await seen.spawner.ask(frames.PING)
        assert refused.value.reason == "engine_timeout"
        _, id, _, _ = await seen.fake.hear_order()
        seen.fake.answer(id, fd=seen.fake.control.fileno())
        monkeypatch.undo()
        await seen.heard()


# --- keepers, with a fake ---


def occupy(spawner: Spawner) -> list[SpawnProcess]:
    """Take every keeper there is."""
    return [request(spawner) for _ in range(spawner.counts()["keepers"])]


async def settle(processes: list[SpawnProcess]) -> None:
    """Nobody waits for their starts."""
    await asyncio.gather(*(process.started for process in processes), return_exceptions=True)


async def test_growth_that_is_refused_is_overloaded_and_may_be_tried_again() -> None:
    async with watched() as seen:
        processes = occupy(seen.spawner)
        asked = asyncio.ensure_future(seen.spawner.make_room())
        await seen.fake.grant_growth(0, errno.EAGAIN)
        with pytest.raises(ExecFailed) as refused:
            await asked
        assert (refused.value.reason, refused.value.retryable) == ("overloaded", True)
        again = asyncio.ensure_future(seen.spawner.make_room())
        await seen.fake.grant_growth(1, errno.EAGAIN)
        await again
        seen.spawner.close()
        await settle(processes)


async def test_growth_without_an_answer_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    async with watched() as seen:
        monkeypatch.setattr(limits, "SPAWN_ANSWER_MS", 20)
        processes = occupy(seen.spawner)
        with pytest.raises(ExecFailed) as refused:
            await seen.spawner.make_room()
        assert refused.value.reason == "engine_timeout"
        seen.spawner.close()
        await settle(processes)


async def test_growth_is_asked_for_once_and_ahead_of_need() -> None:
    async with watched() as seen:
        first = request(seen.spawner)
        assert seen.spawner.has_room
        assert seen.spawner.has_room
        op, id, wanted, _ = await seen.fake.hear_order()
        assert (op, wanted) == (frames.GROW, limits.SPAWN_SPARE_KEEPERS)
        with pytest.raises(BlockingIOError):
            seen.fake.control.recv(1)
        seen.fake.answer(id, value=wanted)
        await seen.heard()
        assert seen.spawner.counts() == {"keepers": 2 * wanted, "kept": 1}
        seen.spawner.close()
        await settle([first])


async def test_who_waits_for_room_does_not_take_more_than_there_is() -> None:
    async with watched() as seen:
        processes = occupy(seen.spawner)

        async def take() -> SpawnProcess:
            await seen.spawner.make_room()
            return request(seen.spawner)

        tasks = [asyncio.ensure_future(take()) for _ in range(5)]
        granted = 0
        while granted < 5:
            await seen.fake.grant_growth(2)
            granted += 2
            counts = seen.spawner.counts()
            assert counts["kept"] <= counts["keepers"]
        processes += await asyncio.gather(*tasks)
        seen.spawner.close()
        await settle(processes)


async def test_keepers_that_nobody_needs_are_sent_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SPAWN_IDLE_KEEPERS", limits.SPAWN_SPARE_KEEPERS - 1)
    async with watched() as seen:
        process, id = await seen.begin()
        seen.fake.tell(frames.STARTED, id)
        seen.fake.tell(frames.EXITED, id, 0, 1)
        await process.exited
        assert seen.fake.channel is not None
        assert await asyncio.get_running_loop().sock_recv(seen.fake.channel, 100) == frames.control(frames.RETIRE)
        assert seen.spawner.counts()["keepers"] == limits.SPAWN_SPARE_KEEPERS - 1


async def test_numbers_start_over_and_are_never_0() -> None:
    async with watched() as seen:
        seen.spawner._last_id = frames.NO_USER - 1
        assert [seen.spawner.next_id() for _ in range(3)] == [frames.NO_USER, 1, 2]


# --- the real one, frame by frame ---


def test_it_wants_one_argument_and_a_socket() -> None:
    binary = find_spawner()
    assert binary is not None
    for arguments, code in (([], 1), (["1", "2"], 1), (["/no/such/socket"], 2), (["/" + "x" * 200], 2), (["99"], 3)):
        assert subprocess.run([binary, *arguments], check=False, timeout=10).returncode == code


def test_its_greeting_tells_the_environment_and_what_it_may() -> None:
    with a_bare_host() as host:
        assert host.hello.env == {"A": "b"}
        assert host.hello.lists_children
        assert host.hello.can_set_user == (os.geteuid() == 0)


def test_an_environment_too_large_for_its_greeting_ends_it() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    binary = find_spawner()
    assert binary is not None
    with ours, theirs:
        env = {"BIG": "x" * limits.SPAWN_HELLO_BYTES}
        done = subprocess.run([binary, str(theirs.fileno())], pass_fds=[theirs.fileno()], env=env, check=False)
    assert done.returncode == 3


@pytest.mark.parametrize(
    "frame",
    [
        frames.start(1, frames.strings(["true"]), frames.strings([])).frame,
        frames.control(frames.GROW, 1, 1),
        frames.control(frames.WELCOME, frames.VERSION + 1),
        frames.welcome(confine=False),
        b"x",
    ],
    ids=["START", "GROW", "another version", "without a channel", "garbage"],
)
def test_anything_but_the_welcome_ends_the_handshake(frame: bytes) -> None:
    host = BareHost()
    host.control.send(frame)
    assert host.control.recv(100) == b""
    assert host.exit_code() == 3
    host.close()


def test_a_closed_socket_before_the_welcome_ends_it() -> None:
    host = BareHost()
    host.close()
    assert host.exit_code() == 3


MALFORMED_ORDERS = {
    "short": b"x" * 15,
    "unknown": frames.control(99, 2),
    "a second welcome": frames.welcome(confine=False),
    "a greeting": frames.control(frames.HELLO, frames.MAGIC, frames.VERSION),
    "an answer": frames.EVENT.pack(frames.ANSWER, 1, 0, 0, 0, 0, 0),
    "START": frames.start(2, frames.strings(["true"]), frames.strings([])).frame,
    "RETIRE": frames.control(frames.RETIRE),
    "signal 0": frames.control(frames.SIGNAL, 1, 0),
    "signal 65": frames.control(frames.SIGNAL, 1, 65),
    "level 0": frames.control(frames.END, 1, 0),
    "level 3": frames.control(frames.END, 1, 3),
    "port 65536": frames.control(frames.LISTEN, 2, 65_536),
    "READ into nothing": frames.control(frames.READ, 2, tail=b"/etc/passwd\0"),
    "too long": frames.control(frames.READ, 2, tail=b"/" * limits.SPAWN_FRAME_BYTES + b"\0"),
    "SHUTDOWN": frames.control(frames.SHUTDOWN),
}
"""Orders to main, and one that is none of these but the wish to end."""


@pytest.mark.parametrize("frame", MALFORMED_ORDERS.values(), ids=MALFORMED_ORDERS)
def test_a_malformed_order_ends_it_with_everything_it_keeps(frame: bytes) -> None:
    with a_bare_host() as host:
        stream = host.start(1, "sleep", "1000")
        keepers = children_of(host.process.pid)
        host.control.send(frame)
        assert host.exit_code() == 0
        assert os.read(stream, 1) == b""
        os.close(stream)
        assert not any(map(is_there, keepers))


@pytest.mark.parametrize("tail", [b"", b"/etc/passwd"])
def test_a_path_without_its_end_ends_it(tail: bytes) -> None:
    with a_bare_host() as host:
        socket.send_fds(host.control, [frames.control(frames.READ, 2, tail=tail)], [0])
        assert host.exit_code() == 0


def test_more_descriptors_than_a_frame_may_have_end_it() -> None:
    with a_bare_host() as host:
        socket.send_fds(host.control, [frames.control(frames.PING, 2)], [0] * 6)
        assert host.exit_code() == 0


def packed(
    op: int = frames.START,
    id: int = 2,
    flags: int = 0,
    argc: int = 1,
    envc: int = 0,
    groups: int = 0,
    limits: int = 0,
    size: int = 5,
    data: bytes = b"true\0",
) -> bytes:
    """A START frame with anything in it."""
    return struct.pack("=10I", op, id, flags, argc, envc, 0, 0, groups, limits, size) + data


MALFORMED_REQUESTS = {
    "short": (packed()[:39], 3),
    "another op": (packed(op=frames.GROW), 3),
    "without an id": (packed(id=0), 3),
    "an unknown flag": (packed(flags=32), 3),
    "without a command": (packed(argc=0), 3),
    "more strings than there are": (packed(argc=2), 3),
    "more variables than there are": (packed(envc=1), 3),
    "fewer strings than there are": (packed(size=7, data=b"true\0x\0"), 3),
    "arguments without bound": (packed(argc=2**32 - 1), 3),
    "variables without bound": (packed(envc=2**32 - 1), 3),
    "strings for more pointers than there is room": (packed(argc=3_000, size=3_000, data=bytes(3_000)), 3),
    "groups without bound": (packed(groups=257, data=bytes(1_028) + b"true\0"), 3),
    "limits without bound": (packed(limits=17, data=bytes(17 * 24) + b"true\0"), 3),
    "groups that are not there": (packed(groups=1), 3),
    "bytes without bound": (packed(size=2**32 - 1), 3),
    "more bytes than there are": (packed(size=6), 3),
    "fewer bytes than there are": (packed(size=4), 3),
    "without its last NUL": (packed(size=4, data=b"true"), 3),
    "without the directory that its flag promises": (packed(flags=frames.FLAG_DIRECTORY), 3),
    "two streams": (packed(), 2),
    "four streams": (packed(), 4),
    "no streams": (packed(), 0),
    "a stdin that is not wanted": (packed(flags=frames.FLAG_NULL_STDIN), 3),
    "streams and a terminal": (packed(flags=frames.FLAG_TTY), 3),
    "a file that is not there": (packed(flags=frames.FLAG_SPILLED, data=b""), 3),
    "a file and strings": (packed(flags=frames.FLAG_SPILLED), 4),
    "too many descriptors": (packed(), 5),
    "too long": (packed(size=16_384, data=b"x" * 16_383 + b"\0"), 3),
}
"""Frames to the keepers, and how many descriptors go along."""


@pytest.mark.parametrize(("frame", "count"), MALFORMED_REQUESTS.values(), ids=MALFORMED_REQUESTS)
def test_a_malformed_request_ends_it_with_everything_it_keeps(frame: bytes, count: int) -> None:
    with a_bare_host() as host:
        stream = host.start(1, "sleep", "1000")
        null = os.open("/dev/null", os.O_RDWR)
        socket.send_fds(host.channel, [frame], [null] * count)
        os.close(null)
        assert host.exit_code() == 0
        assert os.read(stream, 1) == b""
        os.close(stream)


def test_a_file_with_less_than_was_promised_ends_it() -> None:
    with a_bare_host() as host:
        null, file = os.open("/dev/null", os.O_RDWR), os.memfd_create("short")
        socket.send_fds(
            host.channel, [packed(flags=frames.FLAG_SPILLED, size=10_000, data=b"")], [null, null, null, file]
        )
        close_all([null, file])
        assert host.exit_code() == 0


def test_a_keeper_that_is_sent_home_goes() -> None:
    with a_bare_host(keepers=3) as host:
        host.channel.send(frames.control(frames.RETIRE))
        while host.ask(frames.control(frames.PING, 5))[3] != 2:
            pass
        assert len(children_of(host.process.pid)) == 2
        stream = host.start(1, "true")
        assert host.event()[:2] == (frames.EXITED, 1)
        os.close(stream)


@pytest.mark.parametrize("level", [frames.LEVEL_TERM, frames.LEVEL_KILL])
def test_an_end_of_number_0_is_for_everything_that_is_kept(level: int) -> None:
    with a_bare_host(keepers=3) as host:
        streams = [host.start(id, "sleep", "1000") for id in (1, 2, 3)]
        host.control.send(frames.control(frames.END, 0, level))
        signum = signal.SIGTERM if level == frames.LEVEL_TERM else signal.SIGKILL
        assert {host.event()[:4] for _ in streams} == {(frames.EXITED, id, signum, 1) for id in (1, 2, 3)}
        streams.append(host.start(4, "true"))
        assert host.event()[:4] == (frames.EXITED, 4, 0, 1)
        close_all(streams)


def test_orders_for_one_that_has_ended_do_not_hit_the_next() -> None:
    with a_bare_host(keepers=1) as host:
        first = host.start(1, "true")
        assert host.event()[:4] == (frames.EXITED, 1, 0, 1)
        second = host.start(2, "sleep", "1000")
        host.control.send(frames.control(frames.SIGNAL, 1, signal.SIGKILL))
        host.control.send(frames.control(frames.END, 1, frames.LEVEL_KILL))
        host.control.send(frames.control(frames.SIGNAL, 2, signal.SIGUSR1))
        assert host.event()[:3] == (frames.EXITED, 2, signal.SIGUSR1)
        close_all([first, second])


# --- the real one, from our side ---


@asynccontextmanager
async def a_home() -> AsyncIterator[tuple[HostHome, SpawnLane]]:
    async with balanced():
        home = HostHome()
        await home.start()
        try:
            yield home, SpawnLane(home, can_set_user=True)
        finally:
            await home.aclose()


async def start(lane: SpawnLane, *cmd: str, **more: object) -> SpawnProcess:
    """Start a command and wait until it runs."""
    spec = StartSpec(process_id=uuid4().hex, cmd=list(cmd), **{"env": {}, **more})  # type: ignore[arg-type]  # shorthand
    process = await lane.start(spec, 0)
    assert isinstance(process, SpawnProcess)
    try:
        await process.started
    except BaseException:
        close_all(fd for fd in (process.stdin_fd, process.stdout_fd, process.stderr_fd) if fd is not None)
        raise
    return process


async def line(process: SpawnProcess) -> bytes:
    """The next that it writes."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(process.stdout_fd, ready.set)
    try:
        async with asyncio.timeout(10):
            await ready.wait()
        return os.read(process.stdout_fd, 4096)
    finally:
        loop.remove_reader(process.stdout_fd)


async def test_a_killed_keeper_takes_its_process_along_and_nobody_else() -> None:
    async with a_home() as (home, lane):
        other = await start(lane, "cat")
        script = "sleep 1000 & setsid sleep 1000 & env -i setsid sleep 1000 & echo $$; wait"
        process = await start(lane, "sh", "-c", script)
        command = int(await line(process))
        await until(lambda: len(descendants_of(command)) == 3)
        tree = [command, *descendants_of(command)]
        keeper = keeper_of(home.pid, command)
        os.kill(keeper, signal.SIGKILL)
        assert (await finish(process))[0].reason == "container_gone"
        await process.end_tree(Grace(0.0))
        await until(lambda: not any(map(is_there, [keeper, *tree])))
        assert home.spawner.counts()["kept"] == 1
        assert (await finish(await start(lane, "echo", "on")))[1] == b"on\n"
        assert (await finish(other, b"still here"))[1] == b"still here"
        assert home.spawner.counts()["keepers"] == len(children_of(home.pid))


async def test_a_killed_spawner_takes_everything_along() -> None:
    async with a_home() as (home, lane):
        keepers = children_of(home.pid)
        processes = [await start(lane, "sh", "-c", "setsid sleep 1000 & sleep 1000") for _ in range(3)]
        await until(lambda: len(descendants_of(home.pid)) >= len(keepers) + 9)
        everybody = descendants_of(home.pid)
        os.kill(home.pid, signal.SIGKILL)
        for process in processes:
            # Its keeper ends it, and may still get to say so.
            assert (await finish(process))[0].reason in {"container_gone", "signaled"}
        await until(lambda: not any(map(has_not_ended, everybody)))
        with pytest.raises(ExecFailed) as refused:
            await start(lane, "true")
        assert refused.value.reason == "container_gone"


async def test_a_listener_inside_is_on_loopback_and_takes_connections() -> None:
    async with a_home() as (home, _):
        listener, port = await home.spawner.listen_inside()
        with listener:
            assert listener.getsockname() == ("127.0.0.1", port)
            assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
            assert not os.get_blocking(listener.fileno())
            assert not listener.get_inheritable()
            with socket.create_connection(("127.0.0.1", port)):
                accepted, _ = listener.accept()
                accepted.close()
            with pytest.raises(ExecFailed, match=f"port {port} inside: Address already in use") as refused:
                await home.spawner.listen_inside(port)
            assert refused.value.reason == "io_error"
        again, same = await home.spawner.listen_inside(port)
        again.close()
        assert same == port


async def test_files_are_read_as_they_are_inside(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"t\xc3\xa4xt\n\xff")
    (tmp_path / "empty").touch()
    (tmp_path / "big").write_bytes(b"x" * (limits.SPAWN_FILE_BYTES + 1))
    os.mkfifo(tmp_path / "fifo")
    async with a_home() as (home, _):
        read = home.spawner.read_file
        assert (await read("/etc/passwd")).encode() == slurp("/etc/passwd")
        assert await read(str(tmp_path / "text")) == "t\u00e4xt\n\ufffd"
        assert await read(str(tmp_path / "big")) == "x" * limits.SPAWN_FILE_BYTES
        for nothing_in_it in ("empty", "missing", "fifo", "", "x" * 300):
            assert await read(str(tmp_path / nothing_in_it)) == ""


def slurp(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


async def test_three_hundred_live_and_back() -> None:
    async with a_home() as (home, lane):
        many = 300
        processes = await asyncio.gather(*(start(lane, "sleep", "1000", stdin=False) for _ in range(many)))
        counts = home.spawner.counts()
        assert counts["kept"] == many
        assert many <= counts["keepers"] <= many + many // 2
        await asyncio.gather(*(process.end_tree(Grace(0.0)) for process in processes))
        assert {process.exited.result().signal for process in processes} == {signal.SIGKILL}
        assert home.spawner.counts() == {"keepers": limits.SPAWN_IDLE_KEEPERS, "kept": 0}
        await until(lambda: len(children_of(home.pid)) == limits.SPAWN_IDLE_KEEPERS)
        for process in processes:
            close_all([process.stdout_fd, process.stderr_fd])


HEARS = """
import os, signal
heard = set(range(1, 65)) - {9, 19, 32, 33}
signal.pthread_sigmask(signal.SIG_BLOCK, heard)
os.write(1, b"0")
while True:
    os.write(1, b"%d" % signal.sigwait(heard))
"""
LIBC_SIGNALS = (32, 33)
"""The C library keeps them for itself (nptl(7)), so that Python cannot wait for them."""


async def test_every_signal_arrives() -> None:
    async with a_home() as (_, lane):
        process = await start(lane, sys.executable, "-S", "-c", HEARS)
        assert await line(process) == b"0"
        for signum in sorted(set(range(1, 65)) - {signal.SIGKILL, signal.SIGSTOP, *LIBC_SIGNALS}):
            process.signal(signum)
            assert await line(process) == b"%d" % signum
        await process.end_tree(Grace(0.0))
        await finish(process)


@pytest.mark.parametrize("signum", [signal.SIGKILL, *LIBC_SIGNALS, signal.SIGRTMAX])
async def test_a_signal_ends_who_does_not_care(signum: int) -> None:
    async with a_home() as (_, lane):
        process = await start(lane, "sleep", "1000")
        process.signal(signum)
        assert (await finish(process))[0].signal == signum


async def test_a_stopped_process_goes_on_and_can_be_ended() -> None:
    async with a_home() as (_, lane):
        process = await start(lane, "sh", "-c", "echo $$; read line; echo $line; sleep 1000")
        pid = int(await line(process))
        process.signal(signal.SIGSTOP)
        await until(lambda: state_of(pid) == "T")
        process.signal(signal.SIGCONT)
        assert process.stdin_fd is not None
        os.write(process.stdin_fd, b"on\n")
        assert await line(process) == b"on\n"
        process.signal(signal.SIGSTOP)
        await until(lambda: state_of(pid) == "T")
        await process.end_tree(Grace(0.0))
        assert (await finish(process))[0].signal == signal.SIGKILL


@pytest.mark.parametrize("signum", [0, -1, 65, 4711])
async def test_a_number_that_is_no_signal_hurts_nobody(signum: int) -> None:
    async with a_home() as (home, lane):
        process = await start(lane, "cat")
        try:
            with pytest.raises(ExecFailed) as refused:
                process.signal(signum)
            assert refused.value.reason == "unsupported"
            assert (await finish(process, b"alive"))[0].exit_code == 0
        finally:
            await home.aclose()
            for fd in (process.stdin_fd, process.stdout_fd, process.stderr_fd):
                if fd is not None and process.exited.result().reason != "exited":
                    os.close(fd)


# --- requests that are too large for a frame ---


async def test_one_long_argument() -> None:
    async with a_home() as (_, lane):
        text = "x" * (120 * limits.KIB)
        _, out, _ = await finish(await start(lane, "sh", "-c", 'printf %s "$1"', "sh", text))
        assert out == text.encode()


async def test_ten_thousand_variables(tmp_path: Path) -> None:
    async with a_home() as (_, lane):
        env = {f"V_{number}": str(number) for number in range(10_000)}
        _, out, _ = await finish(await start(lane, "env", env=env, working_dir=str(tmp_path)))
        assert {f"{name}={value}" for name, value in env.items()} <= set(out.decode().splitlines())


async def test_two_megabytes_of_variables_need_a_larger_stack() -> None:
    env = {f"V_{number}": "x" * (102 * limits.KIB) for number in range(20)}
    async with a_home() as (_, lane):
        with pytest.raises(ExecFailed) as refused:
            await start(lane, "env", env=env, limits={"stack": 4 * limits.MIB})
        assert refused.value.reason == "too_long"
        process = await start(lane, "env", env=env, limits={"stack": 64 * limits.MIB})
        _, out, _ = await finish(process)
        assert set(out.decode().splitlines()) >= {f"{name}={value}" for name, value in env.items()}


async def test_more_than_the_spawner_takes_is_too_long_and_leaks_nothing() -> None:
    async with a_home() as (_, lane):
        with pytest.raises(ExecFailed) as refused:
            await start(lane, "true", *["x" * limits.MIB] * 8)
        assert refused.value.reason == "too_long"


async def test_many_large_requests_at_once() -> None:
    async with a_home() as (_, lane):
        texts = [f"{number} " + "x" * (40 * limits.KIB) for number in range(20)]
        processes = await asyncio.gather(*(start(lane, "echo", "-n", text) for text in texts))
        results = await asyncio.gather(*map(finish, processes))
        assert [out.decode() for _, out, _ in results] == texts
