"""The egress proxy: a process of its own for all environments of a fastclaw, for what it does is the work of a server
under load, and it reads what sandboxes send.

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
from typing import TYPE_CHECKING, Any, NamedTuple

from fastclaw import limits, network_limits
from fastclaw.errors import ExecFailed, ProtocolError
from fastclaw.linux import own_process
from fastclaw.linux.packets import Outbox, close_all, receive
from fastclaw.network.egress import proxy_frames as frames
from fastclaw.network.egress.accounting import Counters
from fastclaw.network.egress.sandbox_server import Commons, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MOST_FDS = 2


class _Environment(NamedTuple):
    server: Server
    counters: Counters

    async def aclose(self) -> None:
        """End all that is its."""
        await self.server.aclose()
        self.counters.close()


class ProxyProcess:
    """What the proxy's process does: obeys fastclaw's orders until the other end closes.

    What goes wrong with an order concerns the environment that it is for, and no other.

    Parameters:
        orders: connected to fastclaw; non-blocking.
    """

    def __init__(self, orders: socket.socket) -> None:
        self._orders = orders
        self._loop = asyncio.get_running_loop()
        self._reports = Outbox(orders, self._loop)
        self._frame = memoryview(bytearray(network_limits.EGRESS_FRAME_BYTES))
        self._commons = Commons(files_for_connections())
        self._environments: dict[int, _Environment] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Future[None] = self._loop.create_future()

    async def run(self) -> None:
        """Until the other end closes.

        Raises:
            Exception: what kept it from hearing orders.
        """
        self._loop.add_reader(self._orders.fileno(), self._on_order)
        try:
            await self._ended
        finally:
            self._loop.remove_reader(self._orders.fileno())
            for number in list(self._environments):
                self._close(number)
            if self._closing:
                await asyncio.wait(self._closing)
            self._commons.close()
            self._reports.close()

    def _on_order(self) -> None:
        try:
            with all_descriptors():
                size, fds = receive(self._orders, self._frame, _MOST_FDS)
        except BlockingIOError:
            return
        except Exception as error:  # of any kind: what follows cannot be heard
            self._loop.remove_reader(self._orders.fileno())
            self._ended.set_exception(error)
            return
        owned = list(fds)
        try:
            self._obey(bytes(self._frame[:size]), owned)
        finally:
            close_all(owned)  # those that were not taken over

    def _obey(self, frame: bytes, fds: list[int]) -> None:
        if not frame:
            self._loop.remove_reader(self._orders.fileno())
            self._ended.set_result(None)
            return
        try:
            order = frames.parse_order(frame)
        except ProtocolError as error:
            self.log(str(error))
            return
        if len(fds) != frames.FDS[type(order)]:
            self._fail(order.environment, f"{type(order).__name__} came with {len(fds)} descriptors")
        elif isinstance(order, frames.Open):
            self._open(order.environment, fds)
        elif isinstance(order, frames.Close):
            self._close(order.environment)
        elif (environment := self._environments.get(order.environment)) is not None:  # else it failed meanwhile
            self._serve(environment.server, order, fds)

    def _open(self, number: int, fds: list[int]) -> None:
        if number in self._environments:
            self._fail(number, "it is there already")
            return
        try:
            config = frames.parse_config(read_whole(fds[0]))
            counters = Counters.attach(fds.pop())
            try:
                server = Server(config, counters, partial(self.say, number), self._commons)
            except BaseException:
                counters.close()
                raise
        except Exception as error:  # of any kind: the other environments are served
            self._tell(frames.Failed(number, describe(error)))
            return
        self._environments[number] = _Environment(server, counters)
        self._tell(frames.Ready(number))

    def _close(self, number: int, report: frames.Failed | None = None) -> None:
        """End all that is an environment's, and say so."""
        task = self._loop.create_task(self._end(self._environments.pop(number, None), report or frames.Closed(number)))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _end(self, environment: _Environment | None, report: frames.Failed | frames.Closed) -> None:
        if environment is not None:
            await environment.aclose()
        self._tell(report)

    def _fail(self, number: int, why: str) -> None:
        """An order that cannot be obeyed: what is left of the environment is not what fastclaw takes it for."""
        self._close(number, frames.Failed(number, why))

    def _serve(self, server: Server, order: frames.Listen | frames.Unlisten, fds: list[int]) -> None:
        if isinstance(order, frames.Unlisten):
            server.remove(order.id)
            return
        sock = socket.socket(fileno=fds.pop())
        try:
            server.add(order.id, order.role, sock)
        except Exception as error:  # of any kind: the other listeners are served
            sock.close()
            self.say(order.environment, f"a listener for {order.role} cannot be served: {describe(error)}")

    def say(self, number: int, text: str) -> None:
        """Something lasting of an environment that a person should know."""
        self._tell(frames.Trouble(number, _fitting(text)))

    def log(self, text: str) -> None:
        """A line for the log."""
        self._tell(frames.Logged(_fitting(text)))

    def _tell(self, report: frames.Report) -> None:
        is_chatter = isinstance(report, (frames.Trouble, frames.Logged))
        with suppress(ExecFailed):  # fastclaw has not read thousands of them
            self._reports.send(frames.encode(report), [], bounded=is_chatter)


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


def files_for_connections() -> int:
    """How many descriptors are left for connections, beside pipes and clients that are turned away; half at least."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    pipes = 2 * (network_limits.TUNNEL_PIPES + network_limits.TUNNEL_SPARE_PIPES)
    return max(soft // 2, soft - pipes - network_limits.EGRESS_LEAVING)


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
        worker.log(f"it gave up: {describe(error)}")
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


if __name__ == "__main__":
    _prepare()
    own_process.run(_main(int(sys.argv[1])))
