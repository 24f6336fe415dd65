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
from fastclaw.network.egress.enforcement import Asked, Gate
from fastclaw.network.egress.forward import Forwarder, Joined, Site
from fastclaw.network.egress.http_messages import Injections, Rejected
from fastclaw.network.egress.sessions import TLS_DENIED, Session
from fastclaw.network.egress.socket_io import SocketReader
from tests.network.egress.rig import client_hello, config, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GET = request("GET / HTTP/1.1\nHost: a")


class Script(Session):
    """A session that does as its requests say."""

    async def _serve(self) -> Joined | None:
        if self._near.recv(1, socket.MSG_PEEK) == b"\x16":
            hello, words = await self._hello(await self._reader.receive(self._near), is_listed=False)
            assert hello is not None
            raise Rejected("no_name", f"{hello.name} {len(words)}")
        return await self._converse()

    async def _carry_out(self, request: h11.Request, forwarder: Forwarder) -> Joined | None:
        assert self._client is not None
        match request.target:
            case b"/joined":
                return Joined(self._near, b"", b"")
            case b"/refused":
                raise await self._gate.refuse(None, "denied", "so it is")
            case b"/rejected":
                raise Rejected("name_mismatch", "as it was not counted")
            case b"/broken":
                await self._loop.sock_sendall(self._near, b"HTTP/1.1 200 OK\r\n")
                self._client.http.send(h11.Response(status_code=200, headers=[("Content-Length", "5")]))
                raise Rejected("unreachable", "in the middle")
            case b"/gone":
                raise ConnectionResetError
            case b"/silent":
                self.asked = Asked("http", "a.test", 80)
                self._idle.moved()
                await asyncio.Event().wait()
        return None


class Stage:
    """A gate, and sessions of one client each."""

    def __init__(self, counters: Counters, site: Site) -> None:
        self.counters = counters
        self._site = site

    async def play(self, said: bytes, *, ends: bool = True) -> tuple[Joined | None, bytes]:
        """What a session comes to that hears this, and what its client hears."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            theirs.sendall(said)
            if ends:
                theirs.shutdown(socket.SHUT_WR)
            joined = await Script(ours, self._site).run()
            assert (ours.fileno() == -1) is (joined is None)
            theirs.setblocking(False)
            try:
                return joined, theirs.recv(1000)
            except BlockingIOError:
                return joined, b""


@asynccontextmanager
async def a_stage(idle_s: float = 20) -> AsyncIterator[Stage]:
    counters = Counters.create()
    gate, poller = Gate(config(), counters, print), Poller()
    try:
        yield Stage(counters, Site(gate, Injections([]), b"", SocketReader(poller), idle_s))
    finally:
        await gate.aclose()
        poller.close()
        counters.close()


def ask(path: str) -> bytes:
    return GET.replace(b" / ", f" {path} ".encode())


async def test_a_client_to_be_joined_stays_open() -> None:
    async with a_stage() as stage:
        joined, heard = await stage.play(ask("/joined"))
        assert joined is not None
        assert heard == b""


@pytest.mark.parametrize(
    ("path", "status", "denied"), [("/refused", b"403", {"denied": 1}), ("/rejected", b"403", {"name_mismatch": 1})]
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
        if not said:
            monkeypatch.setattr(Script, "_serve", Script._converse)
        assert (await stage.play(said, ends=False))[1][:12] == heard
        assert stage.counters.snapshot()["denied"] == denied


@pytest.mark.parametrize(
    ("hello", "denied"),
    [
        (client_hello("a.test"), {"no_name": 1}),
        (client_hello("a.test")[:50], {"bad_request": 1}),
        (b"\x16\x03\x01\x00\x00", {"bad_request": 1}),
    ],
)
async def test_a_tls_client_is_told_in_its_own_words(hello: bytes, denied: dict[str, int]) -> None:
    async with a_stage() as stage:
        _, heard = await stage.play(hello)
        assert heard == TLS_DENIED
        assert stage.counters.snapshot()["denied"] == denied
