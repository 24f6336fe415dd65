"""Whoever holds the lock of a pipe holds up nobody but himself: each way to hold one, by all who can, on every lane.

The issue's critical finding: who touches a pipe that is locked sleeps until it is let go, and no signal wakes him. The
programs are in pipe_locks.c.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack, nullcontext, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import pytest_asyncio

from fastclaw import limits
from fastclaw.errors import ExecFailed, IoError
from tests.acceptance.leftovers import TOKEN, end_programs, programs
from tests.acceptance.pipe_locks import (
    ACT_S,
    LINGER_MS,
    Lane,
    Report,
    Site,
    Unlucky,
    a_place,
    a_site_that_leaves_nothing,
    engine_lane,
    local_lane,
)
from tests.acceptance.python_image import import_python_image
from tests.pids import marked

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from fastclaw.client import RemoteProcess
    from tests.engine_fixtures import EngineService

pytestmark = [pytest.mark.timeout(120)]
shared = pytest.mark.asyncio(loop_scope="module")

IN, OUT, ERR = STREAMS = (0, 1, 2)
NAMES = ("stdin", "stdout", "stderr")
WAYS = ("splice", "sendfile", "terminal", "tee", "write", "vmsplice", "io_uring")
CLIENTS = ("late", "before", "none")
"""When one connects: once the pipe is held, with what it held waiting there; before that; not at all."""
AT_ONCE = 24
ENOUGH = 20
"""Times that two race for a pipe, of which the one whom this is about wins nearly each."""


class Row(NamedTuple):
    """One hold."""

    how: str
    stream: int
    who: str
    client: str

    def __str__(self) -> str:
        return f"{self.how}-{NAMES[self.stream]}-{self.who}-{self.client}"


BY_LEADERS = [
    Row(how, stream, "leader", CLIENTS[(at + stream) % 3]) for at, how in enumerate(WAYS) for stream in STREAMS
]
BY_OTHERS = {
    who: [Row("splice", stream, who, client) for stream in STREAMS for client in ("late", "none")]
    for who in ("orphan", "reopened", "at_exit", "worker")
}
ENDED = ("orphan", "at_exit")
"""Whose command has ended by then."""
LANES = LOCAL, SPAWN, REST = ("local", "spawn", "rest")
MAPPED = "mapped"
"""The spawn lane in a user namespace."""


def on(*lanes: str) -> pytest.MarkDecorator:
    """Each with a runtime that its tests share."""
    params = [pytest.param(name, marks=[] if name == LOCAL else [pytest.mark.podman]) for name in lanes]
    return pytest.mark.parametrize("lane", params, indirect=True)


def of(*streams: int) -> pytest.MarkDecorator:
    """By their names."""
    return pytest.mark.parametrize("stream", streams, ids=[NAMES[stream] for stream in streams])


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with a_place() as directory:
        yield directory


@pytest.fixture(scope="module")
def lane(place: Path, request: pytest.FixtureRequest) -> Iterator[Lane]:
    """With templates of a Python where there is a spawner, and a user without rights where there are users."""
    with ExitStack() as stack:
        yield stack.enter_context(lane_named(request.param, place, request))


def lane_named(name: str, place: Path, request: pytest.FixtureRequest) -> AbstractContextManager[Lane]:
    if name == LOCAL:
        return local_lane(place)
    service: EngineService = request.getfixturevalue("engine_service")
    if name == REST:
        return engine_lane(name, place, service, None)
    options = {
        "templates": {"py": {"cmd": ["python3", "-m", "fastclaw.template"], "user": "1000"}},
        "image": import_python_image(service.url),
        "user_namespace": "private" if name == MAPPED else "host",
    }
    return engine_lane(SPAWN, place, service, "1000", **options)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def long_lived(lane: Lane) -> AsyncIterator[Site]:
    """The runtime that a lane's tests share. At its end it holds what it held at first, and then leaves nothing."""
    async with a_site_that_leaves_nothing(lane) as site:
        await site.warms_up(AT_ONCE)
        await site.settle()
        before = await site.descriptors()
        yield site
        assert await site.descriptors() <= before


@pytest_asyncio.fixture(loop_scope="module")
async def site(long_lived: Site) -> AsyncIterator[Site]:
    yield long_lived
    await long_lived.settle()


# --- one holder -------------------------------------------------------------------------------------


@shared
@on(*LANES)
@pytest.mark.parametrize("row", [*BY_LEADERS, *BY_OTHERS["orphan"]], ids=str)
async def test_who_holds_a_pipe_of_his_own_holds_up_nobody(site: Site, row: Row) -> None:
    await holds_up_nobody(site, row)


@shared
@on(LOCAL, MAPPED)
@pytest.mark.parametrize("row", [*BY_OTHERS["reopened"], *BY_OTHERS["at_exit"], *BY_OTHERS["worker"]], ids=str)
async def test_who_holds_it_from_his_start_or_end_or_from_a_template_holds_up_nobody(site: Site, row: Row) -> None:
    await holds_up_nobody(site, row)


async def holds_up_nobody(site: Site, row: Row) -> None:
    other = await site.start("sleep", "1000")
    holder = await a_holder(site, row)
    if holder is None:
        return
    await goes_on(site, holder, other, row.who)
    await site.is_killed(holder)
    if row.client != "none":
        await site.sees_ends(holder)
    assert programs() == []


async def a_holder(site: Site, row: Row) -> RemoteProcess | None:
    """One that holds its pipe, with its client; None where the engine's own filter does not let it."""
    for _ in range(ENOUGH):
        holder, report = await site.hold(row.how, row.stream, row.who)
        if row.client == "before":
            await holder.connect()
        try:
            if not await holds(site, row.how, report):
                return None
        except Unlucky:
            await holder.kill(0)
            continue
        if row.client != "none":
            # The engine takes no input for a command that has ended, and when it knows of that is its affair.
            ended = row.who in ENDED and site.lane.name == REST
            with suppress(IoError) if ended else nullcontext():
                await connects(holder, row.stream)
        return holder
    pytest.fail(f"no pipe of {ENOUGH} could be held by {row.how}")


async def holds(site: Site, how: str, report: Report) -> bool:
    """Whether it does; False where the engine's own filter is known not to let it in, which is as good."""
    said = await report.said("held")
    if how in site.lane.closed:
        assert said.startswith("not available"), f"{how} is open now: test it"
        return False
    if said.startswith("not available"):
        pytest.skip(f"{how} cannot hold a pipe here: {said}")
    return True


async def goes_on(site: Site, holder: RemoteProcess, other: RemoteProcess, who: str) -> None:
    """Everything that has nothing to do with it, and a look at it."""
    await site.is_well()
    await site.is_killed(other)
    async with site.within(ACT_S, "wait"):
        record = await holder.wait(0)
    has_ended = who in ENDED
    if has_ended and site.lane.name != REST:  # there the engine's monitor holds the pipe's other end, and sleeps
        record = await site.ended(holder)
        assert (record.exit_code, record.reason) == (0, "exited")
        await site.stays_healthy((LINGER_MS + 100) / 1000)
    elif not has_ended:
        assert record.state == "running"


@shared
@on(*LANES)
@of(*STREAMS)
async def test_a_pipe_that_is_locked_between_term_and_kill(site: Site, stream: int) -> None:
    holder, report = await site.hold("splice", stream, "at_term")
    await holder.connect()
    await report.said("up")
    killing = asyncio.ensure_future(site.is_killed(holder, grace_ms=700))
    try:
        await report.said("held")
        await connects(holder, stream)
        await site.is_well()
        record = await killing
    finally:
        killing.cancel()
    assert record.reason == "killed"
    await site.sees_ends(holder)


@shared
@on(LOCAL, MAPPED)
@of(*STREAMS)
async def test_many_that_reopen_close_and_lock_their_pipe_before_anything_else_runs(site: Site, stream: int) -> None:
    """Whoever still has to close his end of it after the start is too late."""
    starts = (site.program("hold", None, "splice", stream, "reopened", TOKEN) for _ in range(AT_ONCE))
    holders = await asyncio.gather(*starts)
    await site.is_well()
    for holder in holders[:4]:
        await holder.connect()
    await site.is_well()
    assert len(programs()) == AT_ONCE
    await answers_at_once(site)
    records = await asyncio.gather(*map(site.is_killed, holders))
    assert {record.reason for record in records} == {"killed"}
    assert programs() == []


async def answers_at_once(site: Site) -> None:
    """`health` asks each pump whether an output is blocked, and none of these says anything: it has waited for them."""
    begun = time.monotonic()
    for _ in range(5):
        await site.client.health()
    assert time.monotonic() < begun + 2 * limits.LOOK_ANSWER_MS / 1000


@shared
@on(REST)
@of(OUT, ERR)
async def test_on_the_rest_lane_who_locks_his_pipe_at_once_holds_up_his_own_start(site: Site, stream: int) -> None:
    """The engine's own processes have the pipe, too, until they have started him; they sleep, and fastclaw does not."""
    starts = [
        asyncio.ensure_future(site.program("hold", None, "splice", stream, who, TOKEN))
        for who in ("reopened", "at_exit")
    ]
    try:
        await site.stays_healthy(1)
    finally:
        end_programs()
        await asyncio.gather(*starts, return_exceptions=True)
    await site.is_well()


# --- a neighbour of the same user -------------------------------------------------------------------


async def a_victim(site: Site, stream: int) -> tuple[RemoteProcess, str]:
    """A command that waits; and its pid inside."""
    report = site.report()
    process = await site.program("victim", report, stream)
    return process, await report.said("pid")


async def connects(process: RemoteProcess, stream: int) -> None:
    """A client comes when the pipe is held: for what waits in it, or with input."""
    await process.connect()
    if stream == IN:
        await process.write(b"input")


@shared
@on(*LANES, MAPPED)
@of(*STREAMS)
async def test_a_neighbour_that_holds_a_pipe_by_its_name(site: Site, stream: int) -> None:
    """The victim cannot end while its neighbour holds what it would have to close; nobody else is held up by that."""
    victim, pid = await a_victim(site, stream)
    neighbour, report = await site.hold("splice", stream, "neighbour", pid)
    await report.said("held")
    await connects(victim, stream)
    await site.is_well()
    ending = asyncio.ensure_future(kill_or_say_why_not(victim))
    try:
        await site.stays_healthy(LINGER_MS / 1000)
        await site.is_killed(neighbour)
        assert await ending in (None, "engine_timeout")
    finally:
        ending.cancel()
    await site.is_killed(victim)
    await site.sees_ends(victim)
    assert programs() == []


async def kill_or_say_why_not(process: RemoteProcess) -> str | None:
    try:
        async with asyncio.timeout(2 * ACT_S):
            await process.kill(0)
    except ExecFailed as refused:
        return refused.reason
    return None


@shared
@on(*LANES, MAPPED)
@of(*STREAMS)
async def test_a_neighbour_that_holds_on_when_the_victims_tree_is_gone(site: Site, stream: int) -> None:
    """The kill is proven, and the client sees both ends, while whoever moves the bytes still sleeps."""
    victim, pid = await a_victim(site, stream)
    neighbour, report = await site.hold("splice", stream, "heir", pid)
    await report.said("held")
    await connects(victim, stream)
    await site.is_well()
    await site.is_killed(victim)
    await site.sees_ends(victim)
    await site.is_well()
    assert programs()
    await site.is_killed(neighbour)
    assert programs() == []


# --- run --------------------------------------------------------------------------------------------


async def run(site: Site, *cmd: str, **params: Any) -> dict[str, Any]:
    if site.lane.user is not None:
        params.setdefault("user", site.lane.user)
    assert "run" in site.client.capabilities
    answer: dict[str, Any] = await site.client.call("run", {"cmd": list(cmd), **params})
    return answer


@shared
@on(LOCAL, MAPPED, REST)
@of(OUT, ERR)
async def test_run_answers_where_what_it_left_holds_its_pipe(site: Site, stream: int) -> None:
    """On the REST lane it is the engine that sleeps, and nobody can know."""
    await until_incomplete(site, lambda: run_that_leaves_a_holder(site, stream))


async def run_that_leaves_a_holder(site: Site, stream: int) -> dict[str, Any]:
    async with site.within(ACT_S, "run"):
        answer = await run(site, *site.argv("hold", site.report(), "splice", stream, "orphan"))
    assert answer["exit_code"] == 0
    await site.is_well()
    async with site.within(ACT_S, "kill"):
        await site.client.kill(answer["process_id"], 0)
    assert programs() == []
    return answer


async def until_incomplete(site: Site, once: Callable[[], Awaitable[dict[str, Any]]]) -> None:
    """Who moves the bytes may be quick and read the last one just before the pipe is locked: then all is there."""
    for _ in range(ENOUGH):
        if (await once()).get("incomplete", False) or site.lane.name == REST:
            return
    pytest.fail("no run was incomplete: nobody slept, or nobody said so")


@shared
@on(LOCAL, MAPPED, REST)
@of(OUT, ERR)
async def test_run_takes_what_holds_its_pipe_with_it_where_it_keeps_no_orphans(site: Site, stream: int) -> None:
    cmd = site.argv("hold", site.report(), "splice", stream, "orphan")
    async with site.within(ACT_S, "run"):
        answer = await run(site, *cmd, orphans="kill")
    assert answer["exit_code"] == 0
    assert programs() == []


@shared
@on(LOCAL, MAPPED)
@of(OUT, ERR)
async def test_run_answers_where_a_neighbour_holds_its_pipe(site: Site, stream: int) -> None:
    await until_incomplete(site, lambda: run_with_a_neighbour(site, stream))


async def run_with_a_neighbour(site: Site, stream: int) -> dict[str, Any]:
    told = site.report()
    running = asyncio.ensure_future(run(site, *site.argv("victim", told, stream)))
    try:
        pid = await said_by(running, told, "pid")
        neighbour, report = await site.hold("splice", stream, "heir", pid)
        await report.said("held")
        await site.start("kill", "-USR1", pid)
        async with site.within(ACT_S, "run"):
            answer = await running
    finally:
        running.cancel()
    assert answer["exit_code"] == 0
    assert marked(answer["process_id"]) == []
    await site.is_well()
    await site.is_killed(neighbour)
    return answer


async def said_by(running: asyncio.Future[Any], report: Report, word: str) -> str:
    """What a running call's command says, or the call's own failure."""
    saying = asyncio.ensure_future(report.said(word))
    await asyncio.wait([running, saying], return_when=asyncio.FIRST_COMPLETED)
    if not saying.done():
        saying.cancel()
        await running
    return await saying


@shared
@on(*LANES)
async def test_a_run_that_holds_its_pipe_ends_by_its_timeout(site: Site) -> None:
    report = site.report()
    running = asyncio.ensure_future(run(site, *site.argv("hold", report, "splice", OUT, "leader"), timeout_ms=1_000))
    try:
        await said_by(running, report, "held")
        await site.is_well()
        async with site.within(ACT_S, "run"):
            answer = await running
    finally:
        running.cancel()
    assert answer["reason"] == "timeout"
    assert programs() == []


# --- the end of the runtime -------------------------------------------------------------------------


@shared
@pytest.mark.promise("L-NOTHING-LEFT")
@on(*LANES, MAPPED)
@pytest.mark.parametrize("by", ["shutdown", "eof"])
async def test_the_end_of_a_runtime_whose_pipes_are_held_leaves_nothing(lane: Lane, by: str) -> None:
    rows = [
        Row("splice", OUT, "leader", "before"),
        Row("splice", IN, "leader", "late"),
        Row("tee", OUT, "leader", "none"),
        Row("splice", ERR, "orphan", "late"),
        Row("splice", OUT, "orphan", "none"),
        *([Row("splice", OUT, "worker", "late")] if "templates" in lane.options else []),
    ]
    async with a_site_that_leaves_nothing(lane) as site:
        _, pid = await a_victim(site, OUT)
        await site.hold("splice", OUT, "neighbour", pid)
        for row in rows:
            assert await a_holder(site, row) is not None
        await site.is_healthy()
        await site.shuts_down(by)
