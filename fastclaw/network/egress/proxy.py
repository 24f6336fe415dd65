"""Fastclaw's side of its egress proxy: one process for all environments, and of each its listening sockets, what it may
do, and what was counted.

The process is started by the first connection of any environment, and hears of an environment with the first connection
of that one. Until it serves, and while it is replaced, connections wait in the backlogs of the listening sockets, which
fastclaw keeps as well.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import sys
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from fastclaw import network_limits
from fastclaw.errors import ExecFailed, ProtocolError
from fastclaw.linux.helper import Backoff, Helper
from fastclaw.linux.packets import close_all
from fastclaw.network.egress import proxy_frames as frames
from fastclaw.network.egress.accounting import Counters

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from fastclaw.network.egress.proxy_frames import EgressConfig, Role

logger = logging.getLogger(__name__)

_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "RES_OPTIONS")
"""What the process needs of ours, with all that begins with PYTHON. Not more: secrets for `inject` are there too."""

_ABSOLUTE_NAMES = {"LOCALDOMAIN": "."}
"""No search domains but the root (resolv.conf(5)): the name that is asked for is the one that was judged. A trailing
dot would say the same, but would hide the names in /etc/hosts."""


class _Listener(NamedTuple):
    role: Role
    socket: socket.socket


class _Process:
    """One egress proxy process.

    Parameters:
        on_report: called with what it says.
        on_end: called with the reason when it is gone or of no use; not after `aclose`.

    Attributes:
        pid: its own.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, on_report: Callable[[frames.Report], None], on_end: Callable[[str], None]) -> None:
        self._on_report, self._on_end = on_report, on_end
        self._helper = Helper(
            [sys.executable, "-m", "fastclaw.network.egress.proxy_main"],
            env=_environment(),
            on_packet=self._on_frame,
            packet_bytes=network_limits.EGRESS_FRAME_BYTES,
        )
        self.pid = self._helper.pid
        self._grace_ms = network_limits.EGRESS_EXIT_MS
        late_s = network_limits.EGRESS_READY_MS / 1000
        self._late = asyncio.get_running_loop().call_later(late_s, self.cancel, "it does not come up")

    def order(self, order: frames.Order, *fds: int, bounded: bool = True) -> None:
        """Tell it something.

        Parameters:
            fds: it gets copies.
            bounded: as `Outbox.send`.

        Raises:
            OSError: no descriptor is left for a copy.
            ExecFailed: `overloaded`: it does not keep up.
        """
        if not self._helper.is_open:
            return
        copies: list[int] = []
        try:
            copies.extend(map(os.dup, fds))
        except OSError:
            close_all(copies)
            raise
        self._helper.send(frames.encode(order), copies, bounded=bounded)

    def _on_frame(self, frame: bytes) -> None:
        if not frame:
            self._end("it ended")
            return
        try:
            report = frames.parse_report(frame)
        except ProtocolError:
            self.cancel("it does not keep to its protocol")
            return
        if not isinstance(report, frames.Logged):
            self._late.cancel()
        self._on_report(report)

    def cancel(self, why: str) -> None:
        """End it at once: it is of no use any more."""
        if self._helper.is_open:
            self._grace_ms = 0
            self._end(why)

    def _end(self, why: str) -> None:
        self._late.cancel()
        self._helper.close()
        self._on_end(why)

    async def aclose(self) -> None:
        """Have it end, and reap it; one that does not end is killed."""
        self._late.cancel()
        await self._helper.aclose(self._grace_ms)


class EgressProcess:
    """The egress proxy's process, one for all environments: there while one needs it, and replaced when it dies.

    Nothing is started before an environment's first connection.

    Attributes:
        state: `idle`: nobody has needed it yet.
        failure: why there is none, in one line; until its successor serves.
    """

    def __init__(self) -> None:
        self.state: Literal["idle", "running", "failed", "closed"] = "idle"
        self.failure: str | None = None
        self._process: _Process | None = None
        self._needing: dict[EgressProxy, None] = {}
        self._known: dict[int, EgressProxy] = {}
        self._numbers = itertools.count(1)
        self._recovery: asyncio.Task[None] | None = None
        self._backoff = Backoff(time.monotonic, forgiven=1)
        self._open: dict[EgressProxy, None] = {}
        self._decided: Counter[tuple[str, str]] = Counter()

    def __repr__(self) -> str:
        return f"<EgressProcess {self.state}, {len(self._known)} environments>"

    @property
    def pid(self) -> int | None:
        """Its process id; None: there is none."""
        return None if self._process is None else self._process.pid

    def decisions(self) -> Counter[tuple[str, str]]:
        """Those for all environments that there ever were, as `Counters.decisions`: none of them grows smaller."""
        decided = Counter(self._decided)
        for proxy in self._open:
            decided.update(proxy.decisions())
        return decided

    # --- for EgressProxy ---

    def begun(self, proxy: EgressProxy) -> None:
        """It counts from now on."""
        self._open[proxy] = None

    def ended(self, proxy: EgressProxy) -> None:
        """It counts no more: what it has counted is kept."""
        self._decided.update(proxy.decisions())
        del self._open[proxy]

    def need(self, proxy: EgressProxy) -> None:
        """Have an environment served by this process and its successors, until `release`. It is told by `on_up`."""
        if self.state == "closed":
            return
        self._needing[proxy] = None
        if self.state == "idle":
            self._start()
        elif self.state == "running":
            proxy.on_up()

    def open(self, proxy: EgressProxy, config: int, counters: int) -> int:
        """Tell the process of an environment, and return the number for it.

        Parameters:
            config, counters: descriptors; it gets copies.

        Raises:
            OSError, ExecFailed: as `order`.
        """
        number = next(self._numbers)
        self.order(frames.Open(number), config, counters)
        self._known[number] = proxy
        return number

    def order(self, order: frames.Order, *fds: int) -> None:
        """Tell the process something; nothing happens where there is none.

        Raises:
            OSError: no descriptor is left for a copy.
            ExecFailed: `overloaded`: it does not keep up.
        """
        if self._process is not None:
            self._process.order(order, *fds)

    def withdraw(self, order: frames.Unlisten | frames.Close) -> None:
        """Tell the process that something has gone. One that cannot be told is replaced."""
        if self._process is not None:
            try:
                self._process.order(order, bounded=False)  # as many as were announced
            except ExecFailed:
                self._process.cancel("it does not keep up")

    async def release(self, proxy: EgressProxy) -> None:
        """Return when the process has nothing of an environment any more, or is gone."""
        self._needing.pop(proxy, None)
        if proxy.number is None:
            return
        process = self._process
        self.withdraw(frames.Close(proxy.number))
        with suppress(TimeoutError):
            async with asyncio.timeout(network_limits.EGRESS_EXIT_MS / 1000):
                await proxy.has_left.wait()
        if not proxy.has_left.is_set() and process is not None:
            process.cancel("it does not end what it has of an environment")
        await proxy.has_left.wait()

    # --- the process ---

    def _start(self) -> None:
        self.state = "running"
        try:
            self._process = _Process(self._on_report, self._on_end)
            self._backoff.came_up()
        except OSError as error:
            self._on_end(f"it cannot be started: {error.strerror}")
            return
        for proxy in list(self._needing):
            proxy.on_up()

    def _on_report(self, report: frames.Report) -> None:
        if isinstance(report, frames.Logged):
            logger.warning("the egress proxy says: %s", report.text)
            return
        self.failure = None
        proxy = self._known.get(report.environment)
        if proxy is None:
            return
        if isinstance(report, (frames.Closed, frames.Failed)):
            del self._known[report.environment]
        proxy.on_report(report)

    def _on_end(self, why: str) -> None:
        """The process is gone, or of no use. All connections end with it."""
        self._backoff.ended()
        delay_s = self._backoff.pause_s
        self.state = "failed"
        self.failure = f"the egress proxy failed: {why}"
        logger.warning("the egress proxy failed: %s; another one is started in %.1f s", why, delay_s)
        self._recovery = asyncio.get_running_loop().create_task(self._recover(delay_s))

    async def _recover(self, delay_s: float) -> None:
        await self._reap()
        await asyncio.sleep(delay_s)
        self._recovery = None
        for proxy in list(self._needing):
            if not proxy.has_listeners:
                del self._needing[proxy]
                proxy.on_unneeded()
        if self._needing:
            self._start()
        else:
            self.state, self.failure = "idle", None

    async def _reap(self) -> None:
        if self._process is not None:
            await self._process.aclose()
            self._process = None
        known, self._known = self._known, {}
        for proxy in known.values():
            proxy.on_gone()

    async def aclose(self) -> None:
        """End it, with all connections; the environments are closed before. Idempotent."""
        if self.state == "closed":
            return
        self.state, self.failure = "closed", None
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.wait([self._recovery])
        await self._reap()


class EgressProxy:
    """One environment's side of the egress proxy: its listeners, its counters, and what it may do.

    Parameters:
        config: for all that is served. It holds secrets; they go into a file without a name and nowhere else.
        process: stays its owner's.

    Attributes:
        number: what the process knows it by; None: it does not.
        has_left: set while `number` is None.

    Raises:
        OSError: no descriptor is left.
    """

    def __init__(self, config: EgressConfig, process: EgressProcess) -> None:
        self._loop = asyncio.get_running_loop()
        self._process = process
        self._config = _file(frames.encode(config))
        try:
            self._counters = Counters.create()
        except OSError:
            os.close(self._config)
            raise
        self._numbers = self._counters.snapshot()
        self._listeners: dict[int, _Listener] = {}
        self._last_id = 0
        self._is_needed = self._is_closed = False
        self.number: int | None = None
        self.has_left = asyncio.Event()
        self.has_left.set()
        self._backoff = Backoff(self._loop.time, forgiven=1)
        self._retry: asyncio.TimerHandle | None = None
        self._failure: str | None = None
        self._told: str | None = None
        process.begun(self)

    def __repr__(self) -> str:
        return f"<EgressProxy {'closed' if self._is_closed else self._state}, {len(self._listeners)} listeners>"

    # --- listeners ---

    @property
    def has_listeners(self) -> bool:
        """Whether there is anything to serve."""
        return bool(self._listeners)

    def listen(self, role: Role, sock: socket.socket) -> int:
        """Have a socket served, and return its number for `unlisten`. After `aclose` it is only closed.

        Parameters:
            sock: listening (a bound one for `dns_udp`); taken over, also where this fails.

        Raises:
            OSError: no descriptor is left for the proxy's copy.
            ExecFailed: `overloaded`: the proxy does not keep up.
        """
        sock.setblocking(False)
        self._last_id += 1
        id = self._last_id
        if self._is_closed:
            sock.close()
            return id
        if self.number is not None:
            try:
                self._process.order(frames.Listen(self.number, id, role), sock.fileno())
            except (OSError, ExecFailed):
                sock.close()
                raise
        self._listeners[id] = _Listener(role, sock)
        if not self._is_needed:
            self._loop.add_reader(sock.fileno(), self._wake)
        return id

    def unlisten(self, id: int) -> None:
        """Close a listening socket, and have what came over it ended. Idempotent."""
        if id in self._listeners:
            self._stop_listening(id)
            if self.number is not None:
                self._process.withdraw(frames.Unlisten(self.number, id))

    def _stop_listening(self, id: int) -> None:
        sock = self._listeners.pop(id).socket
        if not self._is_needed:
            self._loop.remove_reader(sock.fileno())
        sock.close()

    def _wake(self) -> None:
        """A client has connected. Of two in one turn of the loop the first counts."""
        if self._is_needed or self._is_closed:
            return
        for listener in self._listeners.values():
            self._loop.remove_reader(listener.socket.fileno())
        self._is_needed = True
        self._process.need(self)

    # --- what the process says ---

    def on_up(self) -> None:
        """There is a process: tell it what to do."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._backoff.came_up()
        try:
            self.number = self._process.open(self, self._config, self._counters.fd)
            self.has_left.clear()
            for id, listener in self._listeners.items():
                self._process.order(frames.Listen(self.number, id, listener.role), listener.socket.fileno())
        except (OSError, ExecFailed) as error:
            if self.number is None:
                self._fail(f"it cannot be told what to do: {error}")
            else:
                self._process.withdraw(frames.Close(self.number))  # CLOSED says when it can be tried again

    def on_report(self, report: frames.Ready | frames.Trouble | frames.Failed | frames.Closed) -> None:
        """It says something of this environment."""
        if isinstance(report, frames.Ready):
            self._failure = None
            return
        if isinstance(report, frames.Trouble):
            logger.warning("the egress proxy says: %s", report.text)
            self._told = report.text
            return
        self.on_gone()
        if not self._is_closed:
            self._fail(
                report.text if isinstance(report, frames.Failed) else "it could not be told all that it is to do"
            )

    def on_gone(self) -> None:
        """It has nothing of this environment any more."""
        self.number = None
        self.has_left.set()
        if self._counters.fd >= 0:
            self._counters.reset_open()

    def on_unneeded(self) -> None:
        """There is none, and nothing to serve: the next connection starts one."""
        self._is_needed = False

    def _fail(self, why: str) -> None:
        """It does not serve this environment; the others are not concerned."""
        self._backoff.ended()
        delay_s = self._backoff.pause_s
        self._failure = f"the egress proxy failed: {why}"
        logger.warning("the egress proxy does not serve an environment: %s; again in %.1f s", why, delay_s)
        self._retry = self._loop.call_later(delay_s, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        if self.number is None:
            self._process.need(self)

    # --- for health, and the end ---

    @property
    def _state(self) -> Literal["idle", "running", "failed"]:
        if not self._is_needed or self._is_closed or self._process.state == "closed":
            return "idle"
        return "failed" if self._failure is not None or self._process.state == "failed" else "running"

    @property
    def trouble(self) -> str | None:
        """What is wrong now, in one line."""
        return self._failure or (self._process.failure if self._is_needed else None) or self._told

    def decisions(self) -> dict[tuple[str, str], int]:
        """As `Counters.decisions`."""
        return self._counters.decisions()

    def health(self) -> dict[str, Any]:
        """The counters, and whether the proxy is `idle` (not needed yet), `running` or `failed` (it is tried again)."""
        if not self._is_closed:
            self._numbers = self._counters.snapshot()
        return {"proxy": self._state, **self._numbers}

    async def aclose(self) -> None:
        """Close the listening sockets; return when the process has nothing of this environment any more. Idempotent.

        A process that does not say so within `network_limits.EGRESS_EXIT_MS` is killed, with what it has of others.
        """
        if self._is_closed:
            return
        for id in list(self._listeners):
            self._stop_listening(id)
        self._is_closed = True
        if self._retry is not None:
            self._retry.cancel()
        try:
            await self._process.release(self)
        finally:
            self._numbers = self._counters.snapshot()
            self._process.ended(self)
            self._counters.close()
            os.close(self._config)


def _file(data: bytes) -> int:
    """A file without a name that holds `data`.

    Raises:
        OSError: no descriptor or no memory is left.
    """
    fd = os.memfd_create("fastclaw-egress-config", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
    except OSError:
        os.close(fd)
        raise
    return fd


def _environment() -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if name in _ENVIRONMENT or name.startswith("PYTHON")}
    return {**ours, **_ABSOLUTE_NAMES}
