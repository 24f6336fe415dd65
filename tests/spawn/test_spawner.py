"""One spawner as fastclaw sees it, against a fake that does what no spawner should."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.errors import ExecFailed, StartFailed
from fastclaw.lane import Grace, StartSpec
from fastclaw.protocol import spawner as frames
from fastclaw.spawn.process import SpawnProcess
from fastclaw.spawn.spawner import greet
from fastclaw.spawn.stdio import Stdio
from tests.balance import balanced, open_descriptors
from tests.spawn.fake_spawner import FakeSpawner, greeted, nothing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

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
