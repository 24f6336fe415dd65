"""Answers the sandbox's questions for addresses, of names that it may reach and of no others.

A question for any other name goes nowhere: it is refused here, for the question itself tells the servers of that name
what is in it. What is answered are addresses that were checked, as for a connection; they are remembered, so that a
connection to one of them may call itself by the name.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from fastclaw import network_limits
from fastclaw.errors import ProtocolError
from fastclaw.network.egress import dns
from fastclaw.network.egress.addresses import BadHost, parse_host
from fastclaw.network.egress.dialing import Missing
from fastclaw.network.egress.dns import Rcode
from fastclaw.network.egress.enforcement import AccessRequest
from fastclaw.network.egress.policy import Quota, Refused

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any

    from fastclaw.network.egress.enforcement import PolicyEnforcer
    from fastclaw.network.egress.policy import Reason
    from fastclaw.network.egress.socket_io import Listener

_LENGTH_BYTES = 2  # before each message over TCP (RFC 1035, 4.2.2)
_MOST_BYTES = 2 ** (8 * _LENGTH_BYTES) - 1

_RCODES: dict[Reason, Rcode] = {"unresolved": Rcode.SERVFAIL, "connect_timeout": Rcode.SERVFAIL}
"""What is said instead of REFUSED; of a name that there is not, NXDOMAIN."""


class DnsServer:
    """Answers questions for addresses, over UDP and TCP.

    Parameters:
        is_inside: whether a client's address is the sandbox's; questions of others are not answered.
        tasks: gets those of no listener, until they have ended.
    """

    def __init__(
        self, enforcer: PolicyEnforcer, is_inside: Callable[[str], bool], tasks: set[asyncio.Task[Any]]
    ) -> None:
        self._enforcer, self._is_inside, self._tasks = enforcer, is_inside, tasks
        self._loop = asyncio.get_running_loop()
        self._quota = Quota(network_limits.DNS_QUESTIONS, network_limits.DNS_QUESTIONS_PER_S, None)
        self._clients = 0
        self._dropped = 0
        self._telling: asyncio.TimerHandle | None = None

    async def aclose(self) -> None:
        """Tell of questions that were dropped. Idempotent; the listeners are closed, and their tasks have ended."""
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
            await self._tell_of_dropped()

    # --- questions ---

    async def _answer(self, message: bytes, peer: str, max_bytes: int | None = None) -> bytes | None:
        """What to say to a message; None: nothing.

        Parameters:
            max_bytes: of the answer; None: what suits a datagram.
        """
        try:
            query = dns.parse(message)
        except ProtocolError:
            return None
        if not self._is_inside(peer):
            await self._record(query.name, "not_from_sandbox", f"a question for a name came from {peer}")
            return None
        if query.fault is not None:
            await self._record(query.name, "bad_request", f"a question for a name that is a {query.fault.name}")
            return dns.failure(query, query.fault)
        return await self._look_up(query, dns.udp_bytes(query) if max_bytes is None else max_bytes)

    async def _look_up(self, query: dns.Query, max_bytes: int) -> bytes:
        try:
            name = await self._host_name(query)
            addresses = await self._enforcer.admit(AccessRequest("dns", name, 0))
        except Missing:
            return dns.failure(query, Rcode.NXDOMAIN)
        except Refused as refused:
            return dns.failure(query, _RCODES.get(refused.reason, Rcode.REFUSED))
        self._enforcer.remember(name, addresses)
        return dns.answer(query, addresses, max_bytes)

    async def _host_name(self, query: dns.Query) -> str:
        """The name as the policy knows it. One that a resolver would take for an address is none.

        Raises:
            Refused: `bad_target`.
        """
        with suppress(BadHost):
            if query.name is not None and isinstance(host := parse_host(query.name), str):
                return host
        raise await self._record(query.name, "bad_target", "a question for a name that no host can have")

    async def _record(self, name: str | None, reason: Reason, text: str) -> Refused:
        return await self._enforcer.record(Refused(reason, text), AccessRequest("dns", name or "", 0))

    def _may_ask(self) -> bool:
        """Whether one more question is taken up: then `_quota.leave` must follow. Else it is told of later."""
        if self._quota.enter(self._loop.time()) is None:
            return True
        self._dropped += 1
        if self._telling is None:
            self._telling = self._loop.call_later(network_limits.DNS_DROPPED_MS / 1000, self._on_dropped)
        return False

    def _on_dropped(self) -> None:
        self._telling = None
        task = self._loop.create_task(self._tell_of_dropped())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell_of_dropped(self) -> None:
        dropped, self._dropped = self._dropped, 0
        await self._record(None, "too_fast", f"{dropped} questions for names were dropped")

    # --- over UDP ---

    def on_datagrams(self, listener: Listener) -> None:
        """Take up the questions that wait at a bound socket."""
        for _ in range(network_limits.DNS_BURST):
            try:
                message, peer = listener.socket.recvfrom(network_limits.DNS_QUERY_BYTES)
            except OSError:  # there is no more for now, or a report on an answer that did not arrive
                return
            if self._may_ask():
                listener.spawn(self._on_datagram(listener.socket, message, peer), self._on_answered)

    def _on_answered(self, _: None) -> None:
        self._quota.leave()

    async def _on_datagram(self, sock: socket.socket, message: bytes, peer: tuple[Any, ...]) -> None:
        answer = await self._answer(message, peer[0])
        if answer is not None:
            with suppress(OSError):  # a client that cannot be reached asks again
                sock.sendto(answer, peer)

    # --- over TCP ---

    def on_connections(self, listener: Listener) -> None:
        """Take in the clients that wait at a listening socket."""
        for client, peer in listener.accept(network_limits.DNS_BURST):
            if self._may_connect():
                listener.spawn(self._on_client(client, peer), partial(self._on_client_gone, client))
            else:
                client.close()

    def _may_connect(self) -> bool:
        """Whether one more client is served: then `_on_client_gone` must follow."""
        if self._clients >= network_limits.DNS_CLIENTS:
            return False
        try:
            self._enforcer.enter()
        except Refused:
            return False
        self._clients += 1
        return True

    async def _on_client(self, client: socket.socket, peer: str) -> None:
        with suppress(OSError, EOFError):
            while await self._converse(client, peer):
                pass

    def _on_client_gone(self, client: socket.socket, _: None) -> None:
        client.close()
        self._clients -= 1
        self._enforcer.leave()

    async def _converse(self, client: socket.socket, peer: str) -> bool:
        """One question and its answer. False: no more.

        Raises:
            OSError, EOFError, TimeoutError: the client is gone, or too slow.
        """
        async with asyncio.timeout(network_limits.DNS_IDLE_MS / 1000):
            length = int.from_bytes(await self._read(client, _LENGTH_BYTES))
            if length > network_limits.DNS_QUERY_BYTES:
                return False
            message = await self._read(client, length)
        if not self._may_ask():
            return False
        try:
            answer = await self._answer(message, peer, _MOST_BYTES)
        finally:
            self._quota.leave()
        if answer is None:
            return False
        async with asyncio.timeout(network_limits.DNS_IDLE_MS / 1000):
            await self._loop.sock_sendall(client, len(answer).to_bytes(_LENGTH_BYTES) + answer)
        return True

    async def _read(self, client: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = await self._loop.sock_recv(client, size - len(data))
            if not more:
                raise EOFError
            data += more
        return data
