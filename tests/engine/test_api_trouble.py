"""An engine that is stopped, killed, or talks nonsense, in the middle of many calls. Each engine is the test's own."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socketserver
import threading
import time
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw import engine_limits, limits
from fastclaw.engine.api import EngineLifecycle
from fastclaw.engine.container_spec import LABEL_NAMESPACE, InitPlan, container_spec
from fastclaw.engine.service.plan import DEFAULT_IMAGE, ServicePlan
from fastclaw.engine.service.service import ManagedService, answers_ping
from fastclaw.errors import StartFailed
from fastclaw.linux.proc import this_process
from tests.balance import balanced
from tests.waiting import turns, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

MANY = 100
LABELS = {LABEL_NAMESPACE: "trouble"}


def spec(number: int) -> dict[str, Any]:
    """One of many containers."""
    label = this_process().label
    return container_spec(
        image=DEFAULT_IMAGE, name=f"trouble-{number}", namespace="trouble", owner=label, init=InitPlan(), number=number
    )


def engine_threads() -> int:
    """In this process."""
    return sum(thread.name == "fastclaw-engine" for thread in threading.enumerate())


@asynccontextmanager
async def own_service(plan: ServicePlan, base: Path) -> AsyncIterator[ManagedService]:
    """A private service of this test."""
    service = ManagedService(plan, base / "s", base / "r")
    await service.start()
    try:
        yield service
    finally:
        await service.aclose()


async def all_fail(calls: list[asyncio.Task[str]], seconds: float) -> set[str]:
    """The reasons of those that failed; every call has an outcome within so many seconds, in one line."""
    began = time.monotonic()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert time.monotonic() - began < seconds
    failed = [one for one in results if isinstance(one, BaseException)]
    assert failed
    assert all(isinstance(one, StartFailed) and "\n" not in str(one) for one in failed), failed
    return {one.reason for one in failed if isinstance(one, StartFailed)}


async def test_an_engine_that_is_stopped_and_goes_on(
    engine_plan: ServicePlan, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it makes after all, for callers who have given up, is removed though fastclaw lives on."""
    monkeypatch.setattr(engine_limits, "LOST_LOOK_MOST_S", 1)
    async with (
        own_service(engine_plan, short_dir) as service,
        balanced(),
        aclosing(EngineLifecycle(service.url, timeout_s=2)) as engine,
    ):
        await engine.ensure_image(DEFAULT_IMAGE)
        assert service.pid is not None
        calls = [asyncio.create_task(engine.create_container(spec(number))) for number in range(MANY)]
        await until(lambda: any(call.done() for call in calls))
        os.kill(service.pid, signal.SIGSTOP)
        assert await all_fail(calls, 10) == {"engine_timeout"}
        os.kill(service.pid, signal.SIGCONT)
        made = [call.result() for call in calls if call.exception() is None]

        async def only_those_that_were_told() -> bool:
            return {one.id for one in await engine.list_containers(LABELS)} == {*made} and not engine.health()["lost"]

        await until(only_those_that_were_told)
        again = await engine.create_container(spec(MANY))
        await asyncio.gather(*(engine.remove_container(one) for one in (again, *made)))
        assert await engine.list_containers(LABELS) == []
        await engine.aclose()
        assert engine_threads() == 0


async def test_an_engine_that_is_killed(engine_plan: ServicePlan, short_dir: Path) -> None:
    async with (
        own_service(engine_plan, short_dir) as service,
        aclosing(EngineLifecycle(service.url, timeout_s=10)) as engine,
    ):
        await engine.ensure_image(DEFAULT_IMAGE)
        assert service.pid is not None
        calls = [asyncio.create_task(engine.create_container(spec(number))) for number in range(MANY)]
        await until(lambda: any(call.done() for call in calls))
        os.kill(service.pid, signal.SIGKILL)
        assert await all_fail(calls, 10) <= {"engine_unavailable", "engine_error"}
        assert engine.health()["waiting"] == 0
        await engine.aclose()
        assert engine_threads() == 0
    async with own_service(engine_plan, short_dir) as service, aclosing(EngineLifecycle(service.url)) as engine:
        assert await engine.list_containers(LABELS) == []
        await engine.aclose()


NONSENSE = [
    b"",
    b"\0\xff\n\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
    b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
    b"HTTP/1.1 201 Created\r\nContent-Length: 9\r\n\r\nnot JSON\n",
    b'HTTP/1.1 500 Oh\r\nContent-Length: 14\r\n\r\n{"message":[1]',
    b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\n[]",
    b'HTTP/1.1 404 No\r\nContent-Length: 9\r\n\r\n"strange"',
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n",
    b"HTTP/1.1 99999 \r\n\r\n",
]


@contextmanager
def answering(path: Path, answers: list[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """The URL of an engine that gives these answers, one a connection, and what it is asked."""
    asked: list[bytes] = []

    class Server(socketserver.UnixStreamServer):
        def finish_request(self, request: Any, client_address: object) -> None:
            asked.append(request.recv(65536).split(b"\r\n")[0])
            request.sendall(answers[len(asked) - 1])

    with Server(str(path), socketserver.BaseRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"unix://{path}", asked
        finally:
            server.shutdown()
            thread.join()


def an_answer(status: str, body: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


STUMBLED = an_answer("500 Oh", '{"message":"runtime error: invalid memory address or nil pointer dereference"}')


async def test_an_engine_that_stumbles_is_asked_again(short_dir: Path) -> None:
    """What it may have made of a container meanwhile is removed first."""
    made = an_answer("201 Created", '{"Id":"abc"}')
    with answering(short_dir / "e.sock", [STUMBLED, an_answer("200 OK", "[]"), made]) as (url, asked):
        async with aclosing(EngineLifecycle(url, timeout_s=5)) as engine:
            assert await engine.create_container(spec(1)) == "abc"
    assert [line.split()[0] for line in asked] == [b"POST", b"DELETE", b"POST"]
    assert b"/containers/trouble-1?" in asked[1]


async def test_an_engine_that_goes_on_stumbling_is_told(short_dir: Path) -> None:
    most = len(engine_limits.STUMBLE_WAITS_MS) + 1
    with answering(short_dir / "e.sock", most * [STUMBLED]) as (url, asked):
        async with aclosing(EngineLifecycle(url, timeout_s=5)) as engine:
            with pytest.raises(StartFailed, match="nil pointer"):
                await engine.list_containers(LABELS)
    assert len(asked) == most


async def test_an_engine_that_stumbles_twice_does_it_in_the_end(short_dir: Path) -> None:
    with answering(short_dir / "e.sock", [STUMBLED, STUMBLED, an_answer("200 OK", "[]")]) as (url, asked):
        async with aclosing(EngineLifecycle(url, timeout_s=5)) as engine:
            assert await engine.list_containers(LABELS) == []
    assert len(asked) == 3


class Nonsense(socketserver.ThreadingUnixStreamServer):
    """Answers each connection with the next of `NONSENSE`; its threads have ended when it is closed."""

    daemon_threads = False
    request_queue_size = MANY
    turn = itertools.cycle(NONSENSE)

    def finish_request(self, request: Any, client_address: object) -> None:
        """One connection."""
        with suppress(OSError):
            request.settimeout(5)
            request.recv(65536)
            request.sendall(next(self.turn))


@contextmanager
def talking_nonsense(path: Path) -> Iterator[str]:
    """The URL of one."""
    with Nonsense(str(path), socketserver.BaseRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"unix://{path}"
        finally:
            server.shutdown()
            thread.join()


async def test_an_engine_that_talks_nonsense_in_many_ways(short_dir: Path) -> None:
    async with balanced():
        with talking_nonsense(short_dir / "e.sock") as url:
            engine = EngineLifecycle(url, timeout_s=5)
            calls = [asyncio.create_task(engine.create_container(spec(number))) for number in range(MANY)]
            assert await all_fail(calls, 20) <= {"engine_error", "engine_unavailable"}
            assert engine.health()["waiting"] == 0
            assert engine.health()["in_flight"] <= 1  # who looks for the lost ones
            for failing in (engine.version, lambda: engine.image("x"), lambda: engine.list_containers({})):
                for _ in NONSENSE:
                    with suppress(StartFailed):  # a 404 says that there is no such image
                        await failing()
            await engine.aclose()
            assert engine_threads() == 0


async def test_version_is_asked_again_where_it_failed(short_dir: Path, engine_plan: ServicePlan) -> None:
    engine = EngineLifecycle(f"unix://{short_dir}/none.sock")
    results = await asyncio.gather(*(engine.version() for _ in range(5)), return_exceptions=True)
    assert {one.reason for one in results if isinstance(one, StartFailed)} == {"engine_unavailable"}
    async with own_service(engine_plan, short_dir) as service:
        os.symlink(service.url.removeprefix("unix://"), short_dir / "none.sock")
        assert len({await engine.version() for _ in range(3)}) == 1
        await engine.aclose()


async def test_a_short_read_does_not_wait_behind_what_hangs(engine_plan: ServicePlan, short_dir: Path) -> None:
    """Nor for the calls that change something: those are many, and a death must be noticed."""
    async with own_service(engine_plan, short_dir) as service, aclosing(EngineLifecycle(service.url)) as engine:
        await engine.ensure_image(DEFAULT_IMAGE)
        go = threading.Event()
        held = [asyncio.create_task(engine.change("held", lambda client: go.wait(30))) for _ in range(MANY)]
        await until(lambda: engine.health()["waiting"])
        async with asyncio.timeout(10):
            assert await engine.inspect_container("none") is None
        assert engine.health()["in_flight"] == engine.health()["bound"]
        assert engine.health()["threads"] <= engine.health()["bound"] + 1
        go.set()
        assert await asyncio.gather(*held) == [True] * MANY
        await engine.aclose()


async def test_an_image_that_is_not_there_among_those_that_are(engine_plan: ServicePlan, short_dir: Path) -> None:
    async with (
        own_service(engine_plan, short_dir) as service,
        balanced(),
        aclosing(EngineLifecycle(service.url)) as engine,
    ):
        await engine.ensure_image(DEFAULT_IMAGE)

        async def up(number: int) -> str:
            created = await engine.create_container(
                spec(number) | ({"image": "localhost/none:1"} if number == 7 else {})
            )
            await engine.start_container(created)
            return created

        results = await asyncio.gather(*(up(number) for number in range(20)), return_exceptions=True)
        [failed] = [one for one in results if isinstance(one, BaseException)]
        assert isinstance(failed, StartFailed)
        assert failed.reason == "image_not_found"
        await asyncio.gather(*(engine.remove_container(one) for one in results if isinstance(one, str)))
        assert await engine.list_containers(LABELS) == []
        assert engine.health()["lost"] == 0
        await engine.aclose()


@pytest.mark.parametrize("started", [0, 50], ids=["at once", "while they go on"])
async def test_closed_in_the_middle(engine_plan: ServicePlan, short_dir: Path, started: int) -> None:
    async with (
        own_service(engine_plan, short_dir) as service,
        balanced(),
        aclosing(EngineLifecycle(service.url)) as engine,
    ):
        await engine.ensure_image(DEFAULT_IMAGE)
        calls = [asyncio.create_task(engine.create_container(spec(number))) for number in range(MANY)]
        await until(lambda: sum(call.done() for call in calls) >= started)
        await engine.aclose()
        await asyncio.gather(*calls, return_exceptions=True)
        await until(lambda: engine_threads() == 0)


async def test_the_engine_of_another_that_ends_and_is_back(
    engine_plan: ServicePlan, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing waits for it; what could not be removed is, once it is back."""
    monkeypatch.setattr(engine_limits, "LOST_LOOK_S", 0.1)
    monkeypatch.setattr(engine_limits, "LOST_LOOK_MOST_S", 0.1)
    monkeypatch.setattr(limits, "REVIVE_FIRST_MS", 1_000)
    await answers_ping(str(short_dir / "none"))  # the first stream of a loop takes a descriptor for good (libuv)
    await turns()
    async with (
        balanced(),
        own_service(engine_plan, short_dir) as service,
        aclosing(EngineLifecycle(service.url)) as engine,
    ):
        await engine.ensure_image(DEFAULT_IMAGE)
        container = await engine.create_container(spec(0))
        assert service.pid is not None
        os.kill(service.pid, signal.SIGKILL)
        await until(lambda: service.trouble)
        for call in (engine.create_container(spec(1)), engine.remove_container(container)):
            with pytest.raises(StartFailed, match=r"start it or change options\.url") as caught:
                await call
            assert caught.value.reason == "engine_unavailable"
        assert engine.health()["lost"] == 1  # of the other one nobody was asked
        await until(lambda: engine.health()["lost"] == 0)
        assert await engine.list_containers(LABELS) == []
        await engine.aclose()
        await until(lambda: service.trouble is None)
        await engine.join()
