"""One client's connection, from its first byte to its end or to a tunnel: what is alike however it came to the proxy.

A session decides nothing: it has the requests read, decided and carried out, and says to the client, in words that the
client understands, what became of them.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from fastclaw import network_limits
from fastclaw.errors import ProtocolError
from fastclaw.network.egress import tls
from fastclaw.network.egress.dial import Dialled
from fastclaw.network.egress.forward import Forwarder, Joined, Site
from fastclaw.network.egress.heads import is_request
from fastclaw.network.egress.http_peer import SPENT, Client
from fastclaw.network.egress.policy import Refused
from fastclaw.network.egress.socket_io import IdleTimeout, close_gently, reset_on_close
from fastclaw.network.egress.targets import Rejected, check

if TYPE_CHECKING:
    import socket

    import h11

    from fastclaw.network.egress.enforcement import Asked

TLS_DENIED = bytes.fromhex("15 0303 0002 02 31")
"""A fatal alert, access_denied (RFC 8446, 6.2), in a record of its own."""


class Session(ABC):
    """Parameters:
    near: accepted, non-blocking; closed by `run` unless the client is to be joined with a server.
    """

    _idle: IdleTimeout

    def __init__(self, near: socket.socket, site: Site) -> None:
        self._near = near
        self._gate = site.gate
        self._reader = site.reader
        self._site = site
        self._loop = asyncio.get_running_loop()
        self.asked: Asked | None = None
        """What the client wants, as far as it is known."""
        self._client: Client | None = None
        self._is_tls = self._has_greeted = False

    async def run(self) -> Joined | None:
        """Serve the client.

        Returns:
            Whom to join it with; None: it is closed.
        """
        joined = None
        try:
            joined = await self._guarded()
            if joined is None:
                await close_gently(self._near, self._reader)
        except (OSError, TimeoutError):
            pass  # the client is gone, or does not read what it is told
        finally:
            if joined is None:
                self._near.close()
        return joined

    async def _guarded(self) -> Joined | None:
        try:
            async with asyncio.timeout(network_limits.EGRESS_HEAD_MS / 1000) as alarm:
                self._idle = IdleTimeout(alarm, self._site.idle_s)
                return await self._serve()
        except Refused as refused:
            await self._tell(refused)
        except Rejected as rejected:
            await self._tell(await self._gate.refuse(self.asked, rejected.reason, rejected.text))
        except TimeoutError:
            await self._give_up()
        return None

    @abstractmethod
    async def _serve(self) -> Joined | None:
        """The whole of it; whom to join it with in the end, if anybody."""

    async def _converse(self, early: bytes = b"", far: socket.socket | None = None) -> Joined | None:
        """Requests and their answers, one after the other.

        Parameters:
            early: what was read before.
            far: to the server that was asked for last, where there is a connection already; taken over.
        """
        self._client = client = Client(self._near, self._idle, self._reader, early)
        forwarder = Forwarder(client, self._site, self._idle)
        if far is not None and self.asked is not None:
            forwarder.adopt(Dialled(far, self.asked.address), self.asked)
        try:
            while (request := await client.request()) is not None:
                check(request)
                joined = await self._carry_out(request, forwarder)
                if joined is not None or not client.goes_on():
                    return joined
                self.asked = None
        finally:
            forwarder.close()
        return None

    @abstractmethod
    async def _carry_out(self, request: h11.Request, forwarder: Forwarder) -> Joined | None:
        """One request whose head has been read; whom to join it with, where no HTTP follows."""

    async def _hello(self, words: bytes, *, is_listed: bool) -> tuple[tls.Hello | None, bytes]:
        """A client's TLS greeting, or None where it speaks something else.

        Parameters:
            words: its beginning.
            is_listed: the address is one that a rule lists: what looks like TLS and is none is for its server to judge.

        Returns:
            With all bytes that were read.

        Raises:
            Rejected: it looks like TLS and cannot be read as a greeting, or ends in its middle.
        """
        if tls.may_be_tls(words):
            self._idle.within(network_limits.EGRESS_HEAD_MS / 1000)
        try:
            while tls.may_be_tls(words):
                self._is_tls = True
                if (hello := tls.sniff(words)) is not None:
                    return hello, words
                if not (more := await self._reader.receive(self._near)):
                    raise ProtocolError("the connection was closed in the middle of a TLS ClientHello")
                words += more
        except ProtocolError as error:
            if not is_listed:
                raise Rejected("bad_request", str(error).removeprefix(error.prefix)) from error
        self._is_tls = False
        return None, words

    async def _is_request(self, words: bytes) -> tuple[bool, bytes]:
        """Whether a client speaks plain HTTP.

        Parameters:
            words: its first ones.

        Returns:
            With all bytes that were read.

        Raises:
            Rejected: it cannot be told.
        """
        self._idle.within(network_limits.EGRESS_HEAD_MS / 1000)
        while (found := is_request(words)) is None:
            if len(words) > network_limits.EGRESS_HEAD_BYTES:
                raise Rejected("bad_request", "the first line has no end")
            if not (more := await self._reader.receive(self._near)):
                return False, words
            words += more
        return found, words

    async def _join_tls(self, far: socket.socket, hello: tls.Hello, words: bytes) -> Joined:
        """Join a client whose greeting was checked with its server.

        A server may ask for another greeting (HelloRetryRequest); that has to name the same server. So what comes
        behind the first one waits until the server has answered.

        Parameters:
            words: the greeting and what came behind it.
        """
        self._has_greeted = True
        self._idle.moved()
        await self._pass_on(far, words[: hello.size])
        words, said = await self._hear_server(far, words[hello.size :])
        if not tls.asks_again(said):
            return Joined(far, words, said)
        self._gate.meter.received(len(said))
        await self._loop.sock_sendall(self._near, said)
        self._idle.within(network_limits.EGRESS_HEAD_MS / 1000)
        try:
            while (again := tls.sniff_again(words)) is None:
                if not (more := await self._reader.receive(self._near)):
                    raise ProtocolError("the connection was closed before the second TLS ClientHello")
                words += more
        except ProtocolError as error:
            raise Rejected("bad_request", str(error).removeprefix(error.prefix)) from error
        if again.name != hello.name:
            raise Rejected("name_mismatch", f"the second TLS ClientHello names {again.name}, the first {hello.name}")
        return Joined(far, words)

    async def _hear_server(self, far: socket.socket, words: bytes) -> tuple[bytes, bytes]:
        """What the client and the server said until it is clear what the server answers, or until it ends.

        Parameters:
            words: what the client has said already.
        """
        said, heard = b"", [far, self._near]
        while tls.asks_again(said) is None:
            if await self._reader.first(*heard) is far:
                if not (more := await self._reader.receive(far)):
                    break
                said += more
                continue
            more = await self._reader.receive(self._near)
            words += more
            if not more or len(words) > network_limits.TLS_EARLY_BYTES:
                heard = [far]
            if not more:  # it has left, most likely
                self._idle.within(network_limits.EGRESS_HEAD_MS / 1000)
        return words, said

    async def _pass_on(self, far: socket.socket, data: bytes) -> None:
        if not self._gate.meter.sent(len(data)):
            raise Rejected("too_many_bytes", SPENT)
        await self._loop.sock_sendall(far, data)

    async def _tell(self, refused: Refused) -> None:
        """Answer with a refusal, if the client still waits for an answer; else see that what it has looks cut off."""
        async with asyncio.timeout(network_limits.EGRESS_PART_MS / 1000):
            if self._is_tls:
                await self._loop.sock_sendall(self._near, TLS_DENIED)
            elif self._client is not None and self._client.is_unanswered:
                await self._client.refuse(refused)
            else:
                reset_on_close(self._near)
                self._near.close()

    async def _give_up(self) -> None:
        """Nothing moved for too long. Who has not begun to ask gets no answer."""
        is_greeting = self._is_tls and not self._has_greeted
        if is_greeting or (self._client is not None and self._client.has_begun):
            text = f"the first words took longer than {network_limits.EGRESS_HEAD_MS} ms"
            await self._tell(await self._gate.refuse(self.asked, "bad_request", text))
        elif self.asked is not None:
            await self._tell(await self._gate.refuse(self.asked, "idle_timeout", self._site.idle_text))
