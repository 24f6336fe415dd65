"""From an allowed name to a connection: its addresses, which of them are this host's own, and the one that answers.

Names are resolved by the host's own resolver and on the host only, one lookup for each name of an environment at a
time; an answer is kept for a few seconds, and told to no other environment. What comes out is not trusted here:
enforcement.py checks each address, and has the connection made to what it checked, as in RFC 8305 (happy eyeballs): the
next address is tried when the one before has failed, or has been silent for a while; the first that answers wins.

Where a proxy outside (a company's) is given, connections leave through it, after the policy. It is asked for names,
since its own rules know names, and since often only it can resolve them. Its credentials are said to it only.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from fastclaw import network_limits
from fastclaw.errors import ProtocolError
from fastclaw.linux import netlink
from fastclaw.network.egress.addresses import Address, embedded_v4
from fastclaw.network.egress.policy import Refused
from fastclaw.network.egress.shares import Pool, Share

if TYPE_CHECKING:
    from fastclaw.network.egress.proxy_frames import Upstream


Lookup = Callable[[str], Awaitable[Sequence[Address]]]
"""A name's addresses, best first; raises OSError where it has none."""


class Missing(Refused):
    """There is no such name, as far as the host's resolver knows (EAI_NONAME, getaddrinfo(3))."""


class _Answer(NamedTuple):
    """What a name was resolved to.

    Parameters:
        refused: why there are no addresses.
        expires: loop time.
    """

    addresses: list[Address]
    refused: Refused | None
    expires: float


class HostResolver:
    """The host's resolver, and the threads in which it is waited for: those of all environments.

    Parameters:
        most: threads; each is started when it is needed.
    """

    def __init__(self, most: int = network_limits.EGRESS_LOOKUPS) -> None:
        self.threads = ThreadPoolExecutor(most, "lookup")
        self.units = Pool(most)
        self.waiting: dict[LookupShare, None] = {}

    def share(self) -> LookupShare:
        """For one environment."""
        return LookupShare(self)

    def go_on(self) -> None:
        """A thread is free: it goes to the environment that has the fewest."""
        while self.waiting and min(self.waiting, key=lambda share: share.held).start_next():
            pass

    def close(self) -> None:
        """Start no more threads. Idempotent. One that waits for the host's resolver goes on."""
        self.threads.shutdown(wait=False, cancel_futures=True)


class LookupShare:
    """Asks the host's resolver for one environment: a `Lookup`.

    Its names wait for a thread, first come first served, where it has its share of them.
    """

    def __init__(self, host: HostResolver) -> None:
        self._host = host
        self._share = Share(host.units)
        self._loop = asyncio.get_running_loop()
        self._turns: dict[asyncio.Future[None], None] = {}

    @property
    def held(self) -> int:
        """Its threads: also those that wait for an answer that nobody wants any more."""
        return self._share.held

    async def __call__(self, name: str) -> Sequence[Address]:
        """As `Lookup`."""
        if self._turns or not self._share.take():
            await self._wait_for_turn()
        try:
            running = self._host.threads.submit(_getaddrinfo, name)
        except RuntimeError as error:  # no process is left for a thread
            self._free()
            raise OSError(errno.EAGAIN, "no thread can be started for it") from error
        running.add_done_callback(self._on_done)
        return await asyncio.wrap_future(running)

    async def _wait_for_turn(self) -> None:
        turn: asyncio.Future[None] = self._loop.create_future()
        self._turns[turn] = None
        self._host.waiting[self] = None
        try:
            await turn
        except asyncio.CancelledError:
            self._turns.pop(turn, None)
            if not self._turns:
                self._host.waiting.pop(self, None)
            if not turn.cancelled():  # it had just been given a thread
                self._free()
            raise

    def start_next(self) -> bool:
        """Let the name that has waited longest have a thread. False: this environment has its share."""
        if not self._share.take():
            return False
        turn = next(iter(self._turns))
        del self._turns[turn]
        if not self._turns:
            del self._host.waiting[self]
        if turn.cancelled():  # just now
            self._share.give_back()
        else:
            turn.set_result(None)
        return True

    def _on_done(self, _: object) -> None:
        """In the thread."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._free)

    def _free(self) -> None:
        self._share.give_back()
        self._host.go_on()


class Resolver:
    """Resolves the names of one environment, one lookup for each at a time.

    Parameters:
        timeout_s: for one name.
        lookup: how.
    """

    def __init__(self, timeout_s: float, lookup: Lookup) -> None:
        self._timeout_s = timeout_s
        self._lookup = lookup
        self._answers: OrderedDict[str, _Answer] = OrderedDict()  # oldest first
        self._running: dict[str, asyncio.Task[_Answer]] = {}
        self._loop = asyncio.get_running_loop()

    async def resolve(self, name: str) -> list[Address]:
        """The addresses of a name, best first; never empty.

        Raises:
            Missing: `unresolved`: there is no such name.
            Refused: `unresolved`, or `connect_timeout` where the answer takes longer than `timeout_s`.
        """
        answer = self._answers.get(name)
        if answer is None or answer.expires <= self._loop.time():
            answer = await self._wait_for(name)
        if answer.refused is not None:
            raise type(answer.refused)(answer.refused.reason, answer.refused.text)  # an exception has one traceback
        return list(answer.addresses)

    async def aclose(self) -> None:
        """End every lookup. Idempotent. A thread that waits for the host's resolver goes on; its answer is dropped."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait_for(self, name: str) -> _Answer:
        """Wait for the lookup of a name. It goes on to its deadline also when its waiters are cancelled."""
        task = self._running.get(name)
        if task is None:
            if len(self._running) >= network_limits.EGRESS_LOOKUPS_WAITING:
                raise Refused("unresolved", f"{name} was not looked up: too many other names are")
            task = self._running[name] = self._loop.create_task(self._look_up(name), name=f"lookup of {name}")
        await asyncio.wait((task,), timeout=self._timeout_s)
        if not task.done():
            raise self._too_late(name)
        return task.result()

    async def _look_up(self, name: str) -> _Answer:
        """Raises nothing but CancelledError, since its waiters may have left."""
        refused, addresses = None, []
        try:
            async with asyncio.timeout(self._timeout_s):
                addresses = list(dict.fromkeys(await self._lookup(name)))[: network_limits.EGRESS_ADDRESSES]
        except TimeoutError:
            refused = self._too_late(name)
        except (OSError, UnicodeError) as error:
            kind = Missing if isinstance(error, socket.gaierror) and error.errno == socket.EAI_NONAME else Refused
            refused = kind("unresolved", f"{name} has no address: {getattr(error, 'strerror', None) or error}")
        finally:
            del self._running[name]
        if not addresses and refused is None:
            refused = Refused("unresolved", f"{name} has no address")
        answer = _Answer(addresses, refused, self._loop.time() + network_limits.EGRESS_ANSWER_MS / 1000)
        if refused is None:
            self._keep(name, answer)
        return answer

    def _keep(self, name: str, answer: _Answer) -> None:
        self._answers[name] = answer
        self._answers.move_to_end(name)
        if len(self._answers) > network_limits.EGRESS_ANSWERS:
            self._answers.popitem(last=False)

    def _too_late(self, name: str) -> Refused:
        return Refused("connect_timeout", f"{name} was not resolved within {self._timeout_s:g} s")


def _getaddrinfo(name: str) -> list[Address]:
    # Bytes: text would go through the IDNA codec, which takes a name for another one.
    found = socket.getaddrinfo(name.encode("ascii"), None, type=socket.SOCK_STREAM)
    return [ip_address(address[0]) for _, _, _, _, address in found]


class LocalAddresses:
    """This host's own addresses, as its kernel routes. Owns one netlink socket.

    Raises:
        OSError: the kernel gives no such socket.
    """

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._sequence = 0

    def has(self, address: Address) -> bool:
        """Whether packets to `address`, or to the IPv4 address in it, would go to this host or to a broadcast.

        Where the kernel does not say, the answer is yes: what cannot be told apart from us is treated as us.
        """
        inner = embedded_v4(address)
        return self._ask_is_local(address) or (inner is not None and self._ask_is_local(inner))

    def close(self) -> None:
        """Close the socket. Idempotent; every address is local then."""
        self._socket.close()

    def _ask_is_local(self, address: Address) -> bool:
        self._sequence = (self._sequence + 1) & 0xFFFF_FFFF
        try:
            self._socket.send(netlink.get_route(address, self._sequence))
            return not netlink.is_routed_away(self._answer())
        except (OSError, ProtocolError):
            return True

    def _answer(self) -> bytes:
        """The answer to the last request, which is there when `send` returns; earlier ones are passed over."""
        while True:
            answer = self._socket.recv(network_limits.EGRESS_ROUTE_BYTES)
            if netlink.sequence_of(answer) == self._sequence:
                return answer


_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_TYPE = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_UNDER_WAY = (errno.EINPROGRESS, errno.EALREADY)


class Dialled(NamedTuple):
    """A connection.

    Parameters:
        address: where it leads: a peer that has reset it already has no name any more (getpeername(2)). None: where a
            proxy outside takes it.
        is_proxy: that proxy has not been asked for anything yet.
    """

    socket: socket.socket
    address: Address | None
    is_proxy: bool = False


async def dial(addresses: Sequence[Address], port: int, timeout_s: float, files: Share) -> Dialled:
    """The first connection that comes about: non-blocking, with TCP_NODELAY. The caller closes it.

    Parameters:
        addresses: best first.
        timeout_s: for all of it.
        files: descriptors for more than one attempt at a time; where none is left, the next address has to wait.

    Raises:
        Refused: `unreachable` or `connect_timeout`.
    """
    race = _Race(addresses, port, timeout_s, files)
    try:
        race.start()
        await race.ended
        return race.take()
    finally:
        race.close()


class _Race:
    """Owns every socket until one is taken, and its timers."""

    __slots__ = (
        "_deadline", "_extra", "_failure", "_files", "_loop", "_next", "_port", "_running", "_timeout_s", "_waiting",
        "ended",
    )  # fmt: skip

    def __init__(self, addresses: Sequence[Address], port: int, timeout_s: float, files: Share) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[socket.socket] = self._loop.create_future()
        self._waiting = list(reversed(addresses))
        self._port, self._timeout_s = port, timeout_s
        self._files, self._extra = files, 0
        self._running: dict[socket.socket, Address] = {}
        self._failure = "there is no address to connect to"
        self._next: asyncio.TimerHandle | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._try_next()
        if not self.ended.done():
            self._deadline = self._loop.call_later(self._timeout_s, self._on_deadline)

    def take(self) -> Dialled:
        """The winner, which is the caller's from now on."""
        winner = self.ended.result()
        return Dialled(winner, self._running.pop(winner))

    def close(self) -> None:
        for timer in (self._next, self._deadline):
            if timer is not None:
                timer.cancel()
        for loser in self._running:
            self._loop.remove_writer(loser.fileno())
            loser.close()
        self._running.clear()
        self._files.give_back(self._extra)
        self._extra = 0

    def _try_next(self) -> None:
        """Begin with one address; with the one after it too where it fails at once."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        while self._waiting and self._has_room() and not self._begin(self._waiting.pop()):
            pass
        if self.ended.done():
            return
        if self._waiting:
            self._next = self._loop.call_later(network_limits.EGRESS_NEXT_ADDRESS_MS / 1000, self._try_next)
        elif not self._running:
            self.ended.set_exception(Refused("unreachable", self._failure))

    def _has_room(self) -> bool:
        """Whether one more attempt may have a descriptor: the first always, that is the connection's."""
        if len(self._running) <= self._extra:
            return True
        has_one = self._files.take()
        self._extra += has_one
        return has_one

    def _begin(self, address: Address) -> bool:
        """Connect to an address. False: it failed at once."""
        try:
            sock = socket.socket(_FAMILY[address.version], _TYPE)
        except OSError as error:
            return self._fail(address, error.errno)
        self._running[sock] = address
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        target = (str(address), self._port)
        result = sock.connect_ex(target)
        if result == errno.EINPROGRESS:
            result = sock.connect_ex(target)  # to a near peer it has come about by now: that spares a turn of the loop
        if result in _UNDER_WAY:
            self._loop.add_writer(sock.fileno(), self._on_answer, sock)
            return True
        return self._settle(sock, result)

    def _on_answer(self, sock: socket.socket) -> None:
        self._loop.remove_writer(sock.fileno())
        if not self._settle(sock, sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
            self._try_next()

    def _settle(self, sock: socket.socket, error: int) -> bool:
        """How an attempt ended. False: badly."""
        if error:
            address = self._running.pop(sock)
            sock.close()
            return self._fail(address, error)
        if not self.ended.done():
            self.ended.set_result(sock)
        return True

    def _fail(self, address: Address, error: int | None) -> bool:
        self._failure = f"{address} port {self._port}: {os.strerror(error or errno.EIO)}"
        return False

    def _on_deadline(self) -> None:
        if not self.ended.done():
            names = ", ".join(map(str, self._running.values()))
            text = f"{names} port {self._port}: no answer within {self._timeout_s:g} s"
            self.ended.set_exception(Refused("connect_timeout", text))


_STATUS = re.compile(rb"HTTP/1\.[0-9] ([0-9]{3})[ \r]")
_END = b"\r\n\r\n"

NAMED = "the proxy outside (options.network.upstream)"
WANTS_CREDENTIALS = 407


def authorization(upstream: Upstream) -> list[tuple[bytes, bytes]]:
    """What is added to what is asked of it."""
    value = upstream.authorization
    return [] if value is None else [(b"Proxy-Authorization", value.encode())]


async def open_tunnel(sock: socket.socket, upstream: Upstream, target: str) -> None:
    """Ask for a tunnel (RFC 9110, 9.3.6). What comes behind the answer is left in the socket.

    Parameters:
        sock: connected to the proxy, non-blocking.
        target: `host:port`.

    Raises:
        Refused: `unreachable`: it opens none.
    """
    loop = asyncio.get_running_loop()
    fields = b"".join(b"%s: %s\r\n" % field for field in authorization(upstream))
    head = b""
    try:
        await loop.sock_sendall(sock, b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (*[target.encode()] * 2, fields))
        while not head.endswith(_END):
            byte = await loop.sock_recv(sock, 1)
            if not byte or len(head) > network_limits.EGRESS_HEAD_BYTES:
                raise Refused("unreachable", f"no answer to CONNECT {target}")
            head += byte
    except OSError as error:
        raise Refused("unreachable", f"the connection broke: {error.strerror}") from error
    status = _STATUS.match(head)
    if status is None or not status[1].startswith(b"2"):
        raise Refused("unreachable", answered(0 if status is None else int(status[1]), target))


def answered(status: int, target: str) -> str:
    """In words what it says instead: nothing of its own text.

    Parameters:
        status: 0: it spoke no HTTP.
    """
    why = ", and wants credentials or other ones" if status == WANTS_CREDENTIALS else ""
    return f"it answered {status or 'no HTTP'} for {target}{why}"
