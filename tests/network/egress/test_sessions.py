"""What is alike for all clients: how a refusal, a failure or a silence is told to them."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import h11
import pytest

from fastclaw import network_limits
from fastclaw.linux.poller import Poller
from fastclaw.network.egress.accounting import Counters
from fastclaw.network.egress.enforcement import AccessRequest, PolicyEnforcer
from fastclaw.network.egress.forward import Forwarder, Handoff, SandboxContext
from fastclaw.network.egress.http_messages import Injections
from fastclaw.network.egress.policy import Refused
from fastclaw.network.egress.sessions import TLS_DENIED, Session
from fastclaw.network.egress.socket_io import SocketReader
from tests.network.egress.rig import client_hello, config, lookup, many, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GET = request("GET / HTTP/1.1\nHost: a")


class Script:
    """A dialect that does as its requests say."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def serve(self) -> Handoff | None:
        session = self._session
        if session.near.recv(1, socket.MSG_PEEK) == b"\x16":
            hello, words = await session.hello(await session.receive(session.near), is_listed=False)
            assert hello is not None
            raise Refused("no_name", f"{hello.name} {len(words)}")
        return await session.converse(self.carry_out)

    async def carry_out(self, request: h11.Request, _: Forwarder) -> Handoff | None:
        session = self._session
        assert session.client is not None
        match request.target:
            case b"/joined":
                return Handoff(session.near, b"", b"")
            case b"/recorded":
                raise await session.enforcer.record(Refused("denied", "so it is"), None)
            case b"/refused":
                raise Refused("name_mismatch", "as it was not counted")
            case b"/broken":
                await session.send_all(session.near, b"HTTP/1.1 200 OK\r\n")
                session.client.http.send(h11.Response(status_code=200, headers=[("Content-Length", "5")]))
                raise Refused("unreachable", "in the middle")
            case b"/gone":
                raise ConnectionResetError
            case b"/silent":
                session.access = AccessRequest("http", "a.test", 80)
                session.idle.moved()
                await asyncio.Event().wait()
        return None


class Listens(Script):
    """One whose client may be silent."""

    async def serve(self) -> Handoff | None:
        return await self._session.converse(self.carry_out)


class Stage:
    """An enforcer, and sessions of one client each."""

    def __init__(self, counters: Counters, context: SandboxContext) -> None:
        self.counters = counters
        self._context = context

    async def play(
        self, said: bytes, dialect: type[Script] = Script, *, ends: bool = True
    ) -> tuple[Handoff | None, bytes]:
        """What a session comes to that hears this, and what its client hears."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            theirs.sendall(said)
            if ends:
                theirs.shutdown(socket.SHUT_WR)
            handoff = await Session(ours, self._context, dialect).run()
            assert (ours.fileno() == -1) is (handoff is None)
            theirs.setblocking(False)
            try:
                return handoff, theirs.recv(1000)
            except BlockingIOError:
                return handoff, b""


@asynccontextmanager
async def a_stage(idle_s: float = 20) -> AsyncIterator[Stage]:
    counters = Counters.create()
    enforcer, poller = PolicyEnforcer(config(), counters, print, lookup, many()), Poller()
    try:
        yield Stage(counters, SandboxContext(enforcer, Injections([]), b"", SocketReader(poller), idle_s))
    finally:
        await enforcer.aclose()
        poller.close()
        counters.close()


def ask(path: str) -> bytes:
    return GET.replace(b" / ", f" {path} ".encode())


async def test_a_client_to_be_handed_over_stays_open() -> None:
    async with a_stage() as stage:
        handoff, heard = await stage.play(ask("/joined"))
        assert handoff is not None
        assert heard == b""


@pytest.mark.parametrize(
    ("path", "status", "denied"), [("/recorded", b"403", {"denied": 1}), ("/refused", b"403", {"name_mismatch": 1})]
)
async def test_a_refusal_is_told_and_counted_once(path: str, status: bytes, denied: dict[str, int]) -> None:
    async with a_stage() as stage:
        _, heard = await stage.play(ask(path))
        assert heard.startswith(b"HTTP/1.1 " + status)
        assert stage.counters.snapshot()["denied"] == denied


async def test_what_is_no_request_is_told_and_counted() -> None:
    async with a_stage() as stage:
        _, heard = await stage.play(b"nonsense\r\n")
        assert heard.startswith(b"HTTP/1.1 400 ")
        assert stage.counters.snapshot()["denied"] == {"bad_request": 1}


async def test_after_the_beginning_of_an_answer_there_is_no_refusal() -> None:
    async with a_stage() as stage:
        _, heard = await stage.play(ask("/broken"))
        assert heard == b"HTTP/1.1 200 OK\r\n"
        assert stage.counters.snapshot()["failed"] == {"unreachable": 1}


async def test_a_client_that_is_gone_is_nobodys_fault() -> None:
    async with a_stage() as stage:
        assert await stage.play(ask("/gone")) == (None, b"")
        assert stage.counters.snapshot()["denied"] == {}


async def test_an_answer_that_does_not_come_is_a_timeout() -> None:
    async with a_stage(idle_s=0.1) as stage:
        _, heard = await stage.play(ask("/silent"))
        assert heard.startswith(b"HTTP/1.1 504 ")
        assert stage.counters.snapshot()["failed"] == {"idle_timeout": 1}


@pytest.mark.parametrize(("said", "heard", "denied"), [(b"", b"", {}), (b"GE", b"HTTP/1.1 400", {"bad_request": 1})])
async def test_who_has_begun_to_ask_hears_that_it_took_too_long(
    said: bytes, heard: bytes, denied: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network_limits, "EGRESS_HEAD_MS", 100)
    monkeypatch.setattr(network_limits, "EGRESS_PART_MS", 100)
    async with a_stage() as stage:
        assert (await stage.play(said, Listens, ends=False))[1][:12] == heard
        assert stage.counters.snapshot()["denied"] == denied


@pytest.mark.parametrize(
    ("hello", "denied"),
    [
        (client_hello("a.test"), {"no_name": 1}),
        (client_hello("a.test")[:50], {"bad_request": 1}),
        (b"\x16\x03\x01\x00\x00", {"bad_request": 1}),
    ],
    ids=["no name", "a piece", "empty"],
)
async def test_a_tls_client_is_told_in_its_own_words(hello: bytes, denied: dict[str, int]) -> None:
    async with a_stage() as stage:
        _, heard = await stage.play(hello)
        assert heard == TLS_DENIED
        assert stage.counters.snapshot()["denied"] == denied
