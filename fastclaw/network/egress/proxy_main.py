"""The egress proxy: a process of its own, for what it does is the work of a server under load, and it reads what
sandboxes send.

Started by `proxy.py` with its end of a SOCK_SEQPACKET pair as the only argument. When the other end closes, however
fastclaw ended, it closes everything and ends. What it has to say goes to fastclaw, never to stderr, and never with the
text of an exception: that may hold a secret.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import sys
from contextlib import contextmanager, suppress
from functools import partial
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from fastclaw import limits, network_limits
from fastclaw.errors import ExecFailed
from fastclaw.linux import own_process
from fastclaw.linux.packets import Outbox, close_all, receive
from fastclaw.linux.poller import Poller
from fastclaw.network.egress import proxy_frames as frames
from fastclaw.network.egress.accounting import Counters
from fastclaw.network.egress.dns_server import DnsServer
from fastclaw.network.egress.enforcement import PolicyEnforcer
from fastclaw.network.egress.forward import SandboxContext
from fastclaw.network.egress.http_messages import Injections, refusal
from fastclaw.network.egress.policy import Refused
from fastclaw.network.egress.sessions import ProxyDialect, Session, TransparentDialect
from fastclaw.network.egress.socket_io import Listener, SocketReader, close_gently
from fastclaw.network.egress.tunnel import PipePool, Tunnel

if TYPE_CHECKING:
    from asyncio import Task
    from collections.abc import Callable, Iterator

    from fastclaw.network.egress.dialing import Lookup
    from fastclaw.network.egress.enforcement import AccessRequest
    from fastclaw.network.egress.forward import Handoff
    from fastclaw.network.egress.proxy_frames import EgressConfig, Role
    from fastclaw.network.egress.sessions import Dialect


_MOST_FDS = 2


class ProxyProcess:
    """What the proxy's process does: obeys fastclaw's orders until the other end closes.

    Parameters:
        orders: connected to fastclaw; non-blocking.
    """

    def __init__(self, orders: socket.socket) -> None:
        self._orders = orders
        self._loop = asyncio.get_running_loop()
        self._reports = Outbox(orders, self._loop)
        self._frame = memoryview(bytearray(network_limits.EGRESS_FRAME_BYTES))
        self._counters: Counters | None = None
        self._server: Server | None = None
        self._ended: asyncio.Future[None] = self._loop.create_future()

    async def run(self) -> None:
        """Until the other end closes.

        Raises:
            Exception: what kept it from obeying an order.
        """
        self._loop.add_reader(self._orders.fileno(), self._on_order)
        try:
            await self._ended
        finally:
            self._loop.remove_reader(self._orders.fileno())
            await self._close()

    async def _close(self) -> None:
        if self._server is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(network_limits.EGRESS_CLOSE_MS / 1000):
                    await self._server.aclose()
        if self._counters is not None:
            self._counters.close()
        self._reports.close()

    def _on_order(self) -> None:
        try:
            with all_descriptors():
                size, fds = receive(self._orders, self._frame, _MOST_FDS)
            self._obey(bytes(self._frame[:size]), list(fds))
        except BlockingIOError:
            return
        except Exception as error:  # half of an order is none: fastclaw starts another proxy
            self._end(error)

    def _end(self, error: Exception | None = None) -> None:
        self._loop.remove_reader(self._orders.fileno())
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)

    def _obey(self, frame: bytes, fds: list[int]) -> None:
        if not frame:
            self._end()
            return
        try:
            order = frames.parse_order(frame, len(fds))
            if isinstance(order, frames.Config):
                self._configure(fds)
            elif self._server is not None:
                self._serve(self._server, order, fds)
        finally:
            close_all(fds)  # those that were not taken over

    def _configure(self, fds: list[int]) -> None:
        config = frames.parse_config(read_whole(fds[0]))
        self._counters = Counters.attach(fds.pop())
        self._server = Server(config, self._counters, self.say)
        self._tell(frames.Ready())

    def _serve(self, server: Server, order: frames.Listen | frames.Unlisten, fds: list[int]) -> None:
        if isinstance(order, frames.Unlisten):
            server.remove(order.id)
            return
        sock = socket.socket(fileno=fds.pop())
        try:
            server.add(order.id, order.role, sock)
        except Exception as error:  # of any kind: the other listeners are served
            sock.close()
            self.say(f"a listener for {order.role} cannot be served: {describe(error)}")

    def say(self, text: str) -> None:
        """Something lasting that a person should know."""
        self._tell(frames.Trouble(_fitting(text)))

    def log(self, text: str) -> None:
        """A line for the log."""
        self._tell(frames.Logged(_fitting(text)))

    def _tell(self, report: frames.Report) -> None:
        with suppress(ExecFailed):  # fastclaw has not read thousands of them
            self._reports.send(frames.encode(report), [])


@contextmanager
def all_descriptors() -> Iterator[None]:
    """The reserved ones too. Where no descriptor is left, one that is sent is lost without a word (unix(7))."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def reserve_descriptors() -> None:
    """Keep some of what the hard limit allows from connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(1, hard - network_limits.EGRESS_RESERVED_FILES), hard))


def read_whole(fd: int) -> bytes:
    """All of a file, independent of its offset."""
    return os.pread(fd, os.fstat(fd).st_size, 0)


def _fitting(text: str) -> str:
    """One line that a frame takes."""
    line = text.encode("utf-8", "backslashreplace").decode().replace("\n", " | ")
    return line[: network_limits.EGRESS_LINE_CHARS]


def describe(error: BaseException) -> str:
    """What went wrong and where, and nothing of the exception's text."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    place = "" if at is None else f" at {os.path.basename(at.tb_frame.f_code.co_filename)}:{at.tb_lineno}"
    return f"{type(error).__name__}{place}"


class ReportHandler(logging.Handler):
    """Sends what this process logs to fastclaw.

    Parameters:
        log: takes each line.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Pass a line on, with an exception's kind and place only."""
        error = record.exc_info[1] if record.exc_info else None
        self._log(record.getMessage() + ("" if error is None else f": {describe(error)}"))


async def _main(fd: int) -> None:
    """Never returns: the end does not wait for a name server or a disk that threads of ours may wait for."""
    orders = socket.socket(fileno=fd)
    orders.setblocking(False)
    worker = ProxyProcess(orders)
    logging.basicConfig(handlers=[ReportHandler(worker.log)])

    def complain(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        worker.log(context.get("message", "") if error is None else f"a bug: {describe(error)}")

    asyncio.get_running_loop().set_exception_handler(complain)
    status = 0
    try:
        await worker.run()
    except BaseException as error:
        worker.say(f"it gave up: {describe(error)}")
        status = 1
    os._exit(status)


def _prepare() -> None:
    """What a long-lived server with secrets wants of its process."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)  # it ends with fastclaw and not before
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    reserve_descriptors()
    gc.freeze()
    gc.set_threshold(*limits.GC_THRESHOLDS)


Done = TypeVar("Done")

logger = logging.getLogger(__name__)

_DIALECTS: dict[Role, Callable[[Session], Dialect]] = {"proxy": ProxyDialect, "transparent": TransparentDialect}


class Server:
    """Serves the listeners of one sandbox, and ends what came over a listener with it.

    Parameters:
        counters: stay their owner's.
        on_trouble: told what a person should know, in one line.
        lookup: instead of the host's resolver.

    Raises:
        InvalidParams: a rule is none.
        ValueError: a field to be added, or the subnet, is none.
        OSError: a socket of the kernel's that is needed is not to be had.
    """

    def __init__(
        self,
        config: EgressConfig,
        counters: Counters,
        on_trouble: Callable[[str], None],
        lookup: Lookup | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._subnet = None if config.subnet is None else ip_network(config.subnet)
        injections = Injections(config.inject)
        self.enforcer = PolicyEnforcer(config, counters, on_trouble, lookup)
        self._poller = Poller()
        reader, idle_s = SocketReader(self._poller), config.idle_timeout_ms / 1000
        self._context = SandboxContext(self.enforcer, injections, _rules(config), reader, idle_s)
        self._tasks: set[Task[Any]] = set()
        self._dns = DnsServer(self.enforcer, self.is_inside, self._tasks)
        self._pipes = PipePool(self._poller)
        self._listeners: dict[int, Listener] = {}
        self._tunnels: dict[Tunnel, tuple[Listener, AccessRequest | None]] = {}
        self._addresses: set[str] = set()
        self._leaving = 0
        self._is_closed = False
        self._sweeper = self._loop.call_later(idle_s / network_limits.EGRESS_SWEEPS, self._sweep)

    def add(self, id: int, role: Role, sock: socket.socket) -> None:
        """Serve a socket, from now on.

        Parameters:
            sock: listening (a bound one for `dns_udp`); taken over.
        """
        address, port = sock.getsockname()[:2]
        self._addresses.add(address)
        self.enforcer.closed_ports.add(port)
        if role == "dns_udp":
            on_ready = self._dns.on_datagrams
        elif role == "dns_tcp":
            on_ready = self._dns.on_connections
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what is accepted inherits it
            on_ready = partial(self._on_connections, _DIALECTS[role])
        self._listeners[id] = Listener(sock, on_ready, self._tasks)

    def remove(self, id: int) -> None:
        """Stop serving a socket, and end what came over it. Idempotent."""
        closing = self._listeners.pop(id, None)
        if closing is None:
            return
        closing.close()
        for tunnel in [tunnel for tunnel, (listener, _) in self._tunnels.items() if listener is closing]:
            tunnel.close()

    async def aclose(self) -> None:
        """End everything. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._sweeper.cancel()
        for id in list(self._listeners):
            self.remove(id)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._dns.aclose()
        await self.enforcer.aclose()
        self._pipes.close()
        self._poller.close()

    # --- taking in ---

    def is_inside(self, peer: str) -> bool:
        """Whether a client's address is the sandbox's: of its subnet, and not this host's address in it."""
        if self._subnet is None:
            return True
        return ip_address(peer) in self._subnet and peer not in self._addresses

    def _on_connections(self, dialect: Callable[[Session], Dialect], listener: Listener) -> None:
        for near, peer in listener.accept(network_limits.EGRESS_ACCEPT_BURST):
            try:
                if not self.is_inside(peer):
                    raise Refused("not_from_sandbox", f"{peer} is not the sandbox's")
                self.enforcer.enter()
            except Refused as refused:
                self._turn_away(listener, near, refused)
            else:
                session = Session(near, self._context, dialect)
                listener.spawn(session.run(), partial(self._on_served, listener, session))

    # --- serving ---

    def _on_served(self, listener: Listener, session: Session, handoff: Handoff | None) -> None:
        """A session is over, also one that was ended before it began."""
        if handoff is None:
            session.near.close()
            self.enforcer.leave()
            return

        def on_end(tunnel: Tunnel) -> None:
            del self._tunnels[tunnel]
            self.enforcer.leave()

        tunnel = Tunnel(session.near, handoff.far, self._pipes, self.enforcer.meter, on_end)
        self._tunnels[tunnel] = listener, session.access
        tunnel.start(to_far=handoff.to_far, to_near=handoff.to_near)
        if listener.is_closed:
            tunnel.close()

    def _turn_away(self, listener: Listener, near: socket.socket, refused: Refused) -> None:
        if self._leaving < network_limits.EGRESS_LEAVING:
            self._leaving += 1
            listener.spawn(self._see_out(near, refused), partial(self._on_seen_out, near))
        else:
            near.close()

    async def _see_out(self, near: socket.socket, refused: Refused) -> None:
        """Tell a client why it is not served, without reading its request."""
        await self.enforcer.record(refused, None)
        with suppress(OSError):  # it is gone
            near.send(refusal(refused, has_body=True))
            await close_gently(near, self._context.reader)

    def _on_seen_out(self, near: socket.socket, _: None) -> None:
        near.close()
        self._leaving -= 1

    def _sweep(self) -> None:
        """Cut the tunnels in which nothing has moved for too long, and say so."""
        self._sweeper = self._loop.call_later(self._context.idle_s / network_limits.EGRESS_SWEEPS, self._sweep)
        oldest = self._loop.time() - self._context.idle_s
        for tunnel, (listener, access) in list(self._tunnels.items()):
            if tunnel.last_moved < oldest:
                tunnel.close()
                refused = Refused("idle_timeout", self._context.idle_text)
                listener.spawn(self.enforcer.record(refused, access), _nothing)


def _rules(config: EgressConfig) -> bytes:
    """What a program inside may know: no secret."""
    inject = [{"host": injection.host, "header": injection.header} for injection in config.inject]
    return msgspec.json.encode({"allow": config.allow, "deny": config.deny, "inject": inject}) + b"\n"


def _nothing(_: Refused | None) -> None:
    """What is to be done once it is written down."""


if __name__ == "__main__":
    _prepare()
    own_process.run(_main(int(sys.argv[1])))
