"""One spawner as fastclaw sees it, against a fake that does what no spawner should."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import signal
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from fastclaw import limits, stages
from fastclaw.errors import ExecFailed, StartFailed
from fastclaw.processes.lane import Collection, Grace, StartSpec
from fastclaw.spawner import frames
from fastclaw.spawner.link import greet
from fastclaw.spawner.spawn_process import SpawnProcess
from tests.balance import balanced, open_descriptors
from tests.spawner.fake_spawner import FakeSpawner, Welcome, greeted, nothing, outputs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from fastclaw.spawner.link import Spawner

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
    return await greet(fake.host, confine=False, reaper_uid=frames.NO_USER, collect_bytes=1, on_end=nothing)


async def test_who_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SPAWN_HELLO_MS", 20)
    async with a_fake() as fake:
        with pytest.raises(StartFailed, match="said nothing for 20 ms") as refused:
            await shake(fake)
        assert refused.value.reason == "engine_timeout"


def say_hello_and_close(fake: FakeSpawner) -> None:
    fake.say_hello()
    fake.close()


ANOTHER = frames.VERSION + 1
NO_GREETING: dict[str, tuple[Callable[[FakeSpawner], object], str, str]] = {
    "ends at once": (FakeSpawner.close, "ended at once", "engine_error"),
    "ends after its greeting": (say_hello_and_close, "cannot be reached", "io_error"),
    "another version": (
        lambda fake: fake.say_hello(version=ANOTHER),
        "install fastclaw anew",
        "protocol_error",
    ),
    "a kernel that lists no children": (lambda fake: fake.say_hello(facts=2), "CONFIG_PROC_CHILDREN", "unsupported"),
    "a letter": (lambda fake: fake.control.send(b"x"), "cut short", "protocol_error"),
    "another protocol": (lambda fake: fake.control.send(b"GET / HTTP/1.1\r\n\r\n"), "no spawner", "protocol_error"),
    "the longest": (lambda fake: fake.control.send(b"x" * limits.SPAWN_HELLO_BYTES), "no spawner", "protocol_error"),
    "zeros": (lambda fake: fake.control.send(bytes(16)), "no spawner", "protocol_error"),
}


@pytest.mark.parametrize(("say", "words", "reason"), NO_GREETING.values(), ids=NO_GREETING)
async def test_who_does_not_greet_as_a_spawner_does_is_refused(
    say: Callable[[FakeSpawner], object], words: str, reason: str
) -> None:
    async with a_fake() as fake:
        say(fake)
        with pytest.raises(StartFailed, match=words) as refused:
            await shake(fake)
        assert refused.value.reason == reason


async def greet_with_a_secret(fake: FakeSpawner) -> Spawner:
    return await greet(
        fake.host, confine=False, reaper_uid=frames.NO_USER, collect_bytes=1, secret="known", on_end=nothing
    )


@pytest.mark.parametrize("tail", [b"", b"A=b\0", b"FASTCLAW_INIT_SECRET=\0", b"FASTCLAW_INIT_SECRET=other\0"])
async def test_who_does_not_know_the_secret_is_refused(tail: bytes) -> None:
    async with a_fake() as fake:
        fake.say_hello(tail)
        with pytest.raises(StartFailed, match="secret") as refused:
            await greet_with_a_secret(fake)
        assert refused.value.reason == "protocol_error"


async def test_who_knows_the_secret_is_told_that_it_is_in_gvisor_and_no_command_is_told_the_secret() -> None:
    async with a_fake() as fake:
        fake.say_hello(b"A=b\0FASTCLAW_INIT_SECRET=known\0")
        task = asyncio.ensure_future(greet_with_a_secret(fake))
        assert (await fake.hear_welcome()).flags == frames.GVISOR
        await fake.grant_growth()
        spawner = await task
        assert spawner.hello.env == {"A": "b"}
        spawner.close()


@pytest.mark.parametrize(("facts", "uid"), [(1, frames.NO_USER), (3, limits.REAPER_UID)])
async def test_the_welcome_names_the_reapers_user_only_where_they_may_become_it(facts: int, uid: int) -> None:
    async with a_fake() as fake:
        fake.say_hello(b"A=b\0", facts=facts)
        task = asyncio.ensure_future(
            greet(
                fake.host,
                confine=True,
                reaper_uid=limits.REAPER_UID,
                collect_bytes=2**40,
                on_end=lambda: pytest.fail("told to end"),
            )
        )
        assert await fake.hear_welcome() == Welcome(frames.WELCOME, frames.VERSION, frames.CONFINE, uid, 2**40)
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


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("dies", "container_gone"),
        ("refuses", "overloaded"),
        ("has no user of its own", "unsupported"),
        ("is silent", "engine_timeout"),
    ],
)
async def test_who_cannot_make_its_first_reapers_did_not_start(
    how: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SPAWN_ANSWER_MS", 20)
    async with a_fake() as fake:
        fake.say_hello()
        task = asyncio.ensure_future(shake(fake))
        await fake.hear_welcome()
        if how == "dies":
            fake.close()
        elif how == "refuses":
            await fake.grant_growth(0, errno.EAGAIN)
        elif how == "has no user of its own":
            await fake.grant_growth(0, errno.EUSERS)
        with pytest.raises(StartFailed) as refused:
            await task
        assert refused.value.reason == reason
        assert ("podman system migrate" in str(refused.value)) == (reason == "unsupported")


# --- what it says later, with a fake ---


class Watched:
    """A fake, its spawner object, and how often its end was told."""

    def __init__(self) -> None:
        self.fake = FakeSpawner()
        self.ends = 0
        self.spawner: Spawner

    def count(self) -> None:
        self.ends += 1

    async def begin(self, collection: Collection | None = None) -> tuple[SpawnProcess, int]:
        """Send one request, and let the fake take it."""
        process = request(self.spawner, collection)
        id = await self.fake.hear_request()
        assert id == process.id
        return process, id

    async def heard(self) -> None:
        """Return when everything said so far has been read: on each of its two ways an answer comes after it."""
        for answer in (self.fake.answer, functools.partial(self.fake.tell, frames.ANSWER)):
            asked = asyncio.ensure_future(self.spawner.ask(frames.PING))
            while (order := await self.fake.hear_order())[0] != frames.PING:
                pass  # it was not what this is about
            answer(order[1])
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


def request(spawner: Spawner, collection: Collection | None = None) -> SpawnProcess:
    """Hand over a request."""
    id = spawner.next_id()
    process = SpawnProcess(spawner, id, structs.replace(SPEC, flight=stages.unseen()), collection)
    spawner.start(process, frames.start(id, frames.strings(SPEC.cmd), frames.strings([]), collection=collection))
    return process


async def ended(process: SpawnProcess) -> str:
    return (await asyncio.wait_for(asyncio.shield(process.exited), 10)).reason


def occupy(spawner: Spawner) -> list[SpawnProcess]:
    """Take every reaper there is."""
    return [request(spawner) for _ in range(spawner.counts()["reapers"])]


async def settle(processes: list[SpawnProcess]) -> None:
    """Nobody waits for their starts."""
    await asyncio.gather(*(process.started for process in processes), return_exceptions=True)


async def test_one_process_from_its_request_to_its_end() -> None:
    async with watched() as seen:
        process, id = await seen.begin()
        assert seen.spawner.counts()["kept"] == 1
        seen.fake.tell(frames.STARTED, id, 0, 4, reached=(10, 20, 0, 0, 0))
        await process.started
        assert process.place == 4
        seen.fake.tell(frames.EXITED, id, 7 << 8, 0, reached=(10, 21, 30, 40, 0))
        status = await asyncio.shield(process.exited)
        assert (status.exit_code, status.usage) == (7, {"user_us": 1, "system_us": 2, "max_rss_kb": 3})
        assert seen.spawner.counts()["kept"] == 1
        seen.fake.tell(frames.EMPTY, id, reached=(10, 20, 30, 40, 50))
        await process.end_tree(Grace(0.0))
        assert process.is_gone
        assert process.flight.at[stages.TAKEN : stages.ANSWERED] == [10, 20, 30, 40, 50], "the first word counts"
        assert seen.spawner.counts()["kept"] == 0
        assert seen.spawner._kept == {id: process}, "its pump still has streams"
        seen.fake.tell(frames.FREE, id)
        await seen.heard()
        assert process.is_free
        assert seen.spawner._kept == {}


ENDS = {
    "one after the other": [(frames.EXITED, 0), (frames.EMPTY, 0), (frames.FREE, 0)],
    "its streams first": [(frames.FREE, 0), (frames.EXITED, frames.WITH_EMPTY)],
    "all but its tree": [(frames.EXITED, frames.WITH_FREE), (frames.EMPTY, 0)],
    "all but its streams": [(frames.EXITED, frames.WITH_EMPTY), (frames.FREE, 0)],
    "all at once": [(frames.EXITED, frames.WITH_EMPTY | frames.WITH_FREE)],
}


@pytest.mark.parametrize("words", ENDS.values(), ids=ENDS)
async def test_a_reaper_is_idle_again_when_neither_its_tree_nor_its_streams_are_left(
    words: list[tuple[int, int]],
) -> None:
    async with watched() as seen:
        process, id = await seen.begin()
        seen.fake.tell(frames.STARTED, id)
        *before, (last, flags) = words
        for op, besides in before:
            seen.fake.tell(op, id, 0, besides)
            await seen.heard()
            assert seen.spawner._idle_reapers == limits.SPAWN_SPARE_REAPERS - 1
        seen.fake.tell(last, id, 0, flags)
        await seen.heard()
        assert seen.spawner._idle_reapers == limits.SPAWN_SPARE_REAPERS
        assert (process.is_gone, process.is_free, seen.spawner._kept) == (True, True, {})


async def test_a_run_s_file_comes_before_its_end_and_is_given_back() -> None:
    async with watched() as seen:
        before = open_descriptors()
        process, id = await seen.begin(Collection(output_limit=10_000))
        assert process.collected is not None
        file = os.memfd_create("store")
        os.pwrite(file, b"x" * 9_000, 0)
        seen.fake.tell(frames.STORE, id, fds=[file])
        os.close(file)
        given = b"x" * limits.SPAWN_INLINE_BYTES
        seen.fake.tell(frames.DONE, id, 0, frames.WITH_EMPTY, outputs(given, totals=(9_000, 0)))
        assert (await process.collected).stdout.head == b"x" * 9_000
        assert open_descriptors() == before
        assert seen.spawner._kept == {id: process}
        seen.fake.tell(frames.FREE, id)
        await seen.heard()
        assert seen.spawner._kept == {}


async def test_what_no_file_can_be_sent_for_comes_in_frames_and_no_more_than_its_limit() -> None:
    async with watched() as seen:
        process, id = await seen.begin(Collection(output_limit=10_000, keep="head"))
        assert process.collected is not None
        for which, data in ((0, b"a" * 6_000), (1, b"e" * 9_999), (0, b"b" * 3_000), (1, b"e" * 2), (2, b"z")):
            seen.fake.tell(frames.STORE, id, which, tail=data)
        given = b"a" * 6_000 + b"b" * 2_192, b"e" * limits.SPAWN_INLINE_BYTES
        seen.fake.tell(
            frames.DONE, id, 0, frames.WITH_EMPTY | frames.WITH_FREE, outputs(*given, totals=(9_000, 10_500))
        )
        found = await process.collected
        assert found.stdout.head == b"a" * 6_000 + b"b" * 3_000
        assert (found.stderr.head, found.stderr.total) == (b"e" * 10_000, 10_500)


async def test_an_end_that_comes_before_all_frames_gives_what_there_is() -> None:
    async with watched() as seen:
        process, id = await seen.begin(Collection(output_limit=10_000, keep="head"))
        assert process.collected is not None
        seen.fake.tell(frames.STORE, id, 0, tail=b"a" * 9_000)
        flags = frames.WITH_EMPTY | frames.WITH_FREE | frames.INCOMPLETE
        seen.fake.tell(frames.DONE, id, 0, flags, outputs(b"a" * limits.SPAWN_INLINE_BYTES, totals=(9_500, 0)))
        found = await process.collected
        assert (found.stdout.head, found.stdout.total, found.incomplete) == (b"a" * 9_000, 9_500, True)


async def test_what_was_refused_has_the_steps_reason() -> None:
    async with watched() as seen:
        process, id = await seen.begin()
        seen.fake.tell(frames.REFUSED, id, errno.ENOENT, frames.STEP_EXEC)
        with pytest.raises(ExecFailed) as refused:
            await process.started
        assert refused.value.reason == "not_found"
        assert process.is_gone
        assert seen.spawner.counts() == {"reapers": limits.SPAWN_SPARE_REAPERS, "kept": 0}
        assert seen.spawner._idle_reapers == limits.SPAWN_SPARE_REAPERS


async def test_a_lost_reaper_takes_its_process_along_and_is_one_less() -> None:
    async with watched() as seen:
        running, id = await seen.begin()
        seen.fake.tell(frames.STARTED, id)
        await running.started
        pending, other = await seen.begin()
        collecting, third = await seen.begin(Collection())
        for lost in (id, other, third):
            seen.fake.tell(frames.LOST, lost)
        assert {await ended(process) for process in (running, pending, collecting)} == {"container_gone"}
        for future in (pending.started, collecting.started, collecting.collected):
            assert future is not None
            with pytest.raises(ExecFailed) as refused:
                await future
            assert refused.value.reason == "container_gone"
        assert seen.spawner.counts() == {"reapers": limits.SPAWN_SPARE_REAPERS - 3, "kept": 0}
        assert seen.spawner.alive
        assert seen.ends == 0


async def test_an_idle_reaper_that_dies_is_replaced() -> None:
    async with watched() as seen:
        for lost in range(3):
            seen.fake.tell(frames.LOST, 0)
            await (granted := asyncio.ensure_future(seen.fake.grant_growth(1)))
            assert granted.exception() is None
            await seen.heard()
            assert seen.spawner.counts()["reapers"] == limits.SPAWN_SPARE_REAPERS, lost


async def test_a_reaper_that_dies_when_all_was_told_of_its_process_is_missed_too() -> None:
    """It may not have forgotten the number yet, which is nobody's any more."""
    async with watched() as seen:
        process, id = await seen.begin()
        seen.fake.tell(frames.STARTED, id)
        seen.fake.tell(frames.EXITED, id, 0, frames.WITH_EMPTY | frames.WITH_FREE)
        await process.exited
        seen.fake.tell(frames.LOST, id)
        await seen.fake.grant_growth(1)
        await seen.heard()
        assert seen.spawner.counts() == {"reapers": limits.SPAWN_SPARE_REAPERS, "kept": 0}


async def test_a_worker_that_is_lost_had_no_reaper_of_its_own() -> None:
    async with watched() as seen:
        process, id = await seen.begin()
        seen.fake.tell(frames.LOST, id, 0, 1)
        assert await ended(process) == "container_gone"
        assert seen.spawner.counts() == {"reapers": limits.SPAWN_SPARE_REAPERS, "kept": 0}


async def test_news_of_nobody_are_passed_over() -> None:
    async with watched() as seen:
        process, id = await seen.begin()
        before = open_descriptors()
        news = set(range(frames.STARTED, frames.GAP + 1)) | {0, 99, 2**32 - 1}
        for op in news - {frames.ANSWER, frames.LOST}:
            seen.fake.tell(op, id + 1_000, fds=[seen.fake.control.fileno()])
        for op in (0, 99, frames.START, frames.ANSWER, frames.STORE, frames.LEFT, frames.SAID):
            seen.fake.tell(op, id, fds=[] if op == frames.STORE else [seen.fake.control.fileno()])
        await seen.heard()
        assert open_descriptors() == before
        seen.fake.tell(frames.STARTED, id)
        await process.started
        assert seen.spawner.counts() == {"reapers": limits.SPAWN_SPARE_REAPERS, "kept": 1}
        assert seen.ends == 0


OVERLONG = bytes(frames.EVENT.size + 1)
LONGER_THAN_ANY = bytes(frames.EVENT_BYTES + 1)


@pytest.mark.parametrize(
    ("where", "garbage"),
    [
        ("control", b"x"),
        ("control", OVERLONG),
        ("channel", b"x"),
        ("channel", b"garbage " * 4),
        ("channel", LONGER_THAN_ANY),
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
        seen.fake.control.send(frames.EVENT.pack(99, 1, *bytes(10)))
        await seen.heard()
        assert open_descriptors() == before
        assert seen.spawner.alive


async def test_what_was_said_before_the_end_counts() -> None:
    async with watched() as seen:
        process, id = await seen.begin()
        seen.fake.tell(frames.STARTED, id)
        seen.fake.tell(frames.EXITED, id, 3 << 8, frames.WITH_EMPTY)
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
        assert await seen.fake.hear_order() == (frames.END, 0, frames.LEVEL_KILL, 0, frames.NOWHERE)
        id = await seen.fake.hear_request()
        seen.fake.tell(frames.STARTED, id, 0, 6)
        try:
            async with asyncio.timeout(0.1):
                assert await seen.fake.hear_order() == (frames.END, id, frames.LEVEL_KILL, 0, 6)
        finally:
            seen.fake.tell(frames.EXITED, id, signal.SIGKILL, frames.WITH_EMPTY)
            await ending
        assert process.is_gone


async def test_whoever_asks_the_dead_is_told_and_leaks_nothing() -> None:
    async with watched() as seen:
        seen.spawner.close()
        assert seen.ends == 0, "it was told to"
        seen.spawner.signal(1, 9, frames.NOWHERE)
        seen.spawner.end(1, frames.LEVEL_KILL)
        seen.spawner.order(frames.RELEASE, 1)
        for attempt in (
            seen.spawner.ask(frames.PING),
            seen.spawner.read_file("/etc/passwd"),
            seen.spawner.listen_inside(),
        ):
            with pytest.raises(ExecFailed) as refused:
                await attempt
            assert refused.value.reason == "container_gone"
        with pytest.raises(ExecFailed) as refused:
            request(seen.spawner)
        assert refused.value.reason == "container_gone"
        with pytest.raises(ExecFailed) as refused:
            seen.spawner.attach(1, 0, 0, os.dup(0))
        assert refused.value.reason == "container_gone"
        process = SpawnProcess(seen.spawner, 1, SPEC)
        with pytest.raises(ExecFailed):
            seen.spawner.start(process, frames.start(1, frames.strings(["x"]), frames.strings([])), [os.dup(0)])


async def test_clients_go_along_with_their_process_s_place() -> None:
    async with watched() as seen:
        process, id = await seen.begin()
        seen.fake.tell(frames.STARTED, id, 0, 3)
        await process.started
        ours, theirs = socket.socketpair()
        process.attach(1, theirs.detach())
        numbers, client = await seen.fake.hear_client()
        assert numbers == (frames.ATTACH, id, 1, 0, 3)
        client.send(b"from the pump")
        client.close()
        assert ours.recv(100) == b"from the pump"
        ours.close()


async def test_a_file_is_read_by_an_idle_pump_which_is_waited_for() -> None:
    async with watched() as seen:
        processes = occupy(seen.spawner)
        reading = asyncio.ensure_future(seen.spawner.read_file("/etc/x"))
        await seen.fake.grant_growth(1)
        for _ in processes:
            await seen.fake.hear_request()
        id, path, file = await seen.fake.hear_read()
        assert path == b"/etc/x\0"
        os.write(file, b"content")
        os.close(file)
        seen.fake.tell(frames.ANSWER, id, 0, 7)
        assert await reading == b"content"
        reading = asyncio.ensure_future(seen.spawner.read_file("/missing"))
        id, _, file = await seen.fake.hear_read()
        os.close(file)
        seen.fake.tell(frames.ANSWER, id, errno.ENOENT, 0)
        assert await reading == b""
        seen.spawner.close()
        await settle(processes)


async def test_a_listener_that_comes_in_the_turn_in_which_its_caller_leaves_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`watched` counts the descriptors."""
    async with watched() as seen:
        told = seen.spawner._on_answer
        asked = asyncio.ensure_future(seen.spawner.listen_inside())

        def tell_and_cancel(id: int, errno: int, value: int, fd: int | None) -> None:
            told(id, errno, value, fd)
            asked.cancel()

        monkeypatch.setattr(seen.spawner, "_on_answer", tell_and_cancel)
        id = (await seen.fake.hear_order())[1]
        with socket.socket() as listener:
            seen.fake.answer(id, fd=listener.fileno())
        with pytest.raises(asyncio.CancelledError):
            await asked


async def test_a_request_that_can_never_be_sent_is_refused_alone() -> None:
    async with watched() as seen:
        before = open_descriptors()
        process = SpawnProcess(seen.spawner, 1, SPEC)
        with pytest.raises(ExecFailed) as refused:
            seen.spawner.start(process, frames.Start(bytes(limits.MIB), (b"file",)))
        assert refused.value.reason == "io_error"
        assert (seen.spawner.counts()["kept"], open_descriptors()) == (0, before)
        other, id = await seen.begin()
        seen.fake.tell(frames.STARTED, id)
        await other.started


async def test_a_request_that_waited_and_cannot_be_sent_is_refused_alone() -> None:
    """A spawner that does not read: the frames wait, and what is wrong with one is found when there is room."""
    async with watched() as seen:
        waiting: list[SpawnProcess] = []
        while not seen.spawner._requests._waiting:
            waiting.append(request(seen.spawner))
        before = open_descriptors()
        wrong = SpawnProcess(seen.spawner, seen.spawner.next_id(), SPEC)
        seen.spawner.start(wrong, frames.Start(bytes(limits.MIB), (b"file",)))
        waiting.append(request(seen.spawner))
        for process in waiting:
            assert await seen.fake.hear_request() == process.id
        with pytest.raises(ExecFailed) as refused:
            await wrong.started
        assert refused.value.reason == "io_error"
        assert (wrong.is_gone, wrong.is_free) == (True, True)
        assert (seen.spawner.counts()["kept"], open_descriptors()) == (len(waiting), before)
        seen.spawner.close()
        await settle(waiting)


async def test_a_start_without_news_is_given_up_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SPAWN_START_MS", 30)
    async with watched() as seen:
        first, id = await seen.begin()
        with pytest.raises(ExecFailed, match="not started within 30 ms") as refused:
            await first.started
        assert refused.value.reason == "engine_timeout"
        assert await seen.fake.hear_order() == (frames.END, id, frames.LEVEL_KILL, 0, frames.NOWHERE)
        second, other = await seen.begin()
        with pytest.raises(ExecFailed):
            await second.started
        assert await seen.fake.hear_order() == (frames.END, other, frames.LEVEL_KILL, 0, frames.NOWHERE)
        seen.fake.tell(
            frames.STARTED, id, 0, 2
        )  # so late, it is ended once more: the first order may have come too early
        assert await seen.fake.hear_order() == (frames.END, id, frames.LEVEL_KILL, 0, 2)
        seen.fake.tell(frames.EXITED, id, 9, frames.WITH_EMPTY)
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
        _, id, *_ = await seen.fake.hear_order()
        seen.fake.answer(id, fd=seen.fake.control.fileno())
        monkeypatch.undo()
        await seen.heard()
