"""One client's connection, from its first byte to its end or to a tunnel.

A client of a `proxy` listener asks for a tunnel with CONNECT, or for plain requests with absolute URLs. In a tunnel
nothing is decrypted, but its first words are looked at: a client that speaks TLS or plain HTTP says which server it
wants, and that must be the one that it was allowed to reach. A server that speaks first is heard at once.

A client of a `transparent` listener knows of no proxy: the firewall has turned its connection to us (DNAT). The kernel
says where it was going; the client says whom it wants, in its TLS greeting or in the Host field of its request. That
has to agree with the address, and the connection goes to that address.

Nothing is decided here: requests are read, decided elsewhere and carried out, and the client is told what became of
them in words that it understands.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from abc import ABC, abstractmethod
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

import h11

from fastclaw import network_limits
from fastclaw.errors import ProtocolError
from fastclaw.linux.sockets import reset_on_close
from fastclaw.network.egress import tls
from fastclaw.network.egress.addresses import Address, BadHost, parse_host
from fastclaw.network.egress.dialing import Dialled
from fastclaw.network.egress.enforcement import Asked
from fastclaw.network.egress.forward import SPENT, Client, Forwarder, Joined, Site
from fastclaw.network.egress.http_messages import (
    HTTP_PORT,
    Rejected,
    absolute_target,
    check,
    connect_target,
    has_body,
    is_request,
    origin_target,
)
from fastclaw.network.egress.policy import RULES_NAME, Refused
from fastclaw.network.egress.socket_io import IdleTimeout, close_gently
from fastclaw.network.egress.tls import may_be_tls

if TYPE_CHECKING:
    from fastclaw.network.egress.addresses import Address


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


_SSL_REQUESTS = (bytes.fromhex("00000008 04d2162f"), bytes.fromhex("00000008 04d21630"))
"""SSLRequest and GSSENCRequest of PostgreSQL, whose clients ask in the clear whether they may begin with TLS ("Message
Formats" of its documentation)."""

_MAY_USE_TLS = b"S"

_RULES = (RULES_NAME, HTTP_PORT)

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


class Connection(Session):
    """Of a `proxy` listener."""

    async def _serve(self) -> Joined | None:
        return await self._converse()

    _tunnel: Asked | None = None
    """What was asked for, where requests are spoken in a tunnel; with the address that it leads to."""

    async def _carry_out(self, request: h11.Request, forwarder: Forwarder) -> Joined | None:
        method = request.method.decode("ascii")
        if self._tunnel is not None:
            target = origin_target(request, self._tunnel.host, self._tunnel.port)
            self.asked = self._tunnel._replace(host=target.host, method=method)
        elif request.method == b"CONNECT":
            return await self._connect(request)
        else:
            target = absolute_target(request)
            self.asked = Asked("http", target.host, target.port, method)
        if (target.host, target.port) == _RULES:
            await self._show_rules(request)
            return None
        return await forwarder.forward(request, self.asked, target)

    async def _connect(self, request: h11.Request) -> Joined | None:
        assert self._client is not None
        target = connect_target(request)
        self.asked = asked = Asked("connect", target.host, target.port, "CONNECT")
        if (target.host, target.port) == _RULES:
            self._tunnel = asked
            await self._loop.sock_sendall(self._near, ESTABLISHED)
            return await self._converse(self._client.unread)
        self._idle.off()
        far, address, _ = await self._gate.connect(asked)
        if address is None and not isinstance(asked.host, str):
            address = asked.host
        try:
            self._idle.moved()
            words = self._client.unread
            self._client = None  # no HTTP from here on
            await self._loop.sock_sendall(self._near, ESTABLISHED)
            return await self._first_words(far, address, words)
        except BaseException:
            far.close()
            raise

    async def _show_rules(self, request: h11.Request) -> None:
        assert self._client is not None
        if request.method not in (b"GET", b"HEAD") or has_body(request):
            raise Rejected("bad_target", f"http://{RULES_NAME}/ answers GET, and shows the rules")
        await self._client.next()  # its end
        fields = [("Content-Type", "application/json"), ("Content-Length", str(len(self._site.rules)))]
        await self._client.send(h11.Response(status_code=200, headers=fields, reason=b"OK"))
        if request.method == b"GET":
            await self._client.send(h11.Data(data=self._site.rules))
        await self._client.send(h11.EndOfMessage())

    async def _first_words(self, far: socket.socket, address: Address | None, words: bytes) -> Joined | None:
        """See what the client says first, if the server was not quicker, and join them if it may be.

        Parameters:
            address: where `far` leads; None: only a proxy outside knows.
            words: those that came with the request already.
        """
        assert self.asked is not None
        is_listed = address is not None and self._gate.policy.lists(address, self.asked.port)
        words = await self._negotiate(far, words or await self._unless_first(far))
        hello, words = await self._hello(words, is_listed=is_listed)
        if hello is not None:
            if hello.name is not None:
                self._check_name(hello.name)
            return await self._join_tls(far, hello, words)
        is_read = self._gate.policy.denies_names or self._site.injections.of(self.asked.host)
        if words and (is_read or not is_listed):
            is_request, words = await self._is_request(words)
            if is_request:
                self.asked = self._tunnel = self.asked._replace(address=address)
                return await self._converse(words, far)
        self._idle.moved()
        return Joined(far, words)

    async def _unless_first(self, far: socket.socket) -> bytes:
        """What the client says, or nothing where the server is quicker."""
        if await self._reader.first(self._near, far) is not self._near:
            return b""
        return await self._reader.receive(self._near)

    async def _negotiate(self, far: socket.socket, words: bytes) -> bytes:
        """Pass on a question whether TLS may begin, and return what the client says after the answer to it."""
        while words and any(ask.startswith(words[: len(ask)]) for ask in _SSL_REQUESTS):
            if words in _SSL_REQUESTS:
                await self._pass_on(far, words)
                answer = await self._reader.receive(far)
                self._gate.meter.received(len(answer))
                await self._loop.sock_sendall(self._near, answer)
                words = await self._reader.receive(self._near)
                if answer[:1] == _MAY_USE_TLS and words and not may_be_tls(words):
                    raise Rejected("bad_request", "what follows PostgreSQL's SSLRequest is no TLS")
            elif len(words) > len(_SSL_REQUESTS[0]):
                raise Rejected("bad_request", "PostgreSQL's SSLRequest is followed by more before its answer")
            elif more := await self._reader.receive(self._near):
                words += more
            else:
                break
        return words

    def _check_name(self, text: str) -> None:
        """That a TLS client wants the server that it asked for; of one asked for by its address, that the name is not
        denied.

        Raises:
            Rejected: it does not, or it is.
        """
        assert self.asked is not None
        asked = self.asked.host
        try:
            name = parse_host(text)
        except BadHost as error:
            raise Rejected("name_mismatch", f"the TLS server name is none: {error}") from error
        if name == asked:
            return
        if isinstance(asked, str) or not isinstance(name, str):
            raise Rejected("name_mismatch", f"the TLS server name is {name}, and CONNECT was for {asked}")
        verdict = self._gate.policy.judge_host(name, self.asked.port)
        if verdict.reason == "denied":
            raise Rejected("denied", verdict.text)


_SO_ORIGINAL_DST = 80  # include/uapi/linux/netfilter_ipv4.h, and for IPv6 netfilter_ipv6/ip6_tables.h
_SOCKADDR_IN = struct.Struct("!2xH4s8x")
_SOCKADDR_IN6 = struct.Struct("!2xH4x16s4x")


def original_destination(connection: socket.socket) -> tuple[Address, int] | None:
    """Where a redirected connection was going to; None: to us."""
    try:
        if connection.family == socket.AF_INET6:
            raw = connection.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, _SOCKADDR_IN6.size)
            port, packed = _SOCKADDR_IN6.unpack(raw)
            address: Address = IPv6Address(packed)
        else:
            raw = connection.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, _SOCKADDR_IN.size)
            port, packed = _SOCKADDR_IN.unpack(raw)
            address = IPv4Address(packed)
    except OSError:  # the kernel has tracked no such connection
        return None
    ours = connection.getsockname()
    return None if (str(address), port) == (ours[0], ours[1]) else (address, port)


class Transparent(Session):
    """Of a `transparent` listener."""

    _address: Address
    _port: int

    async def _serve(self) -> Joined | None:
        words = await self._reader.receive(self._near)
        if not words:
            return None
        destination = original_destination(self._near)
        if destination is None:
            self._client = Client(self._near, self._idle, self._reader)
            raise Rejected("bad_target", "this port is for connections that the firewall turns to it")
        self._address, self._port = destination
        is_listed = self._gate.policy.lists(*destination)
        hello, words = await self._hello(words, is_listed=is_listed)
        if hello is not None:
            return await self._join(hello, words)
        if is_listed:
            is_request, words = await self._is_request(words)
            if not is_request:  # neither: an address that a rule lists needs no name
                self.asked = Asked("transparent", self._address, self._port, None, self._address)
                self._idle.off()
                return Joined((await self._gate.connect(self.asked)).socket, words)
        return await self._converse(words)

    async def _join(self, hello: tls.Hello, words: bytes) -> Joined:
        try:
            host = self._address if hello.name is None else parse_host(hello.name)
        except BadHost as error:
            raise Rejected("name_mismatch", f"the TLS server name is none: {error}") from error
        self.asked = Asked("transparent", host, self._port, None, self._address)
        self._idle.off()
        far = (await self._gate.connect(self.asked)).socket
        try:
            return await self._join_tls(far, hello, words)
        except BaseException:
            far.close()
            raise

    async def _carry_out(self, request: h11.Request, forwarder: Forwarder) -> Joined | None:
        target = origin_target(request, self._address, self._port)
        method = request.method.decode("ascii")
        self.asked = Asked("transparent", target.host, self._port, method, self._address)
        return await forwarder.forward(request, self.asked, target)
