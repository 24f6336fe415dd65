"""Fastclaw's side of its egress proxy: the listening sockets, the process that serves them, and what it says.

The process is started by the first connection. Until it serves, and while it is replaced, connections wait in the
backlogs of the listening sockets, which this process keeps as well.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
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
        self._loop = asyncio.get_running_loop()
        self._helper = Helper(
            [sys.executable, "-m", "fastclaw.network.egress.proxy_main"],
            env=_environment(),
            on_packet=self._on_frame,
            packet_bytes=network_limits.EGRESS_FRAME_BYTES,
        )
        self.pid = self._helper.pid
        self._grace_ms = network_limits.EGRESS_EXIT_MS
        self._late = self._loop.call_later(network_limits.EGRESS_READY_MS / 1000, self.cancel, "it does not come up")

    def order(self, order: frames.Order, *fds: int) -> None:
        """Tell it something.

        Parameters:
            fds: it gets copies.

        Raises:
            OSError: no descriptor is left for a copy.
            ExecFailed: `overloaded`: it does not keep up.
        """
        copies: list[int] = []
        try:
            copies.extend(map(os.dup, fds))
        except OSError:
            close_all(copies)
            raise
        self._helper.send(frames.encode(order), copies)

    def _on_frame(self, frame: bytes) -> None:
        if not frame:
            self._end("it ended")
            return
        try:
            report = frames.parse_report(frame)
        except ProtocolError:
            self.cancel("it does not keep to its protocol")
            return
        if isinstance(report, frames.Ready):
            self._late.cancel()
        self._on_report(report)

    def cancel(self, why: str) -> None:
        """End it at once: it is of no use any more."""
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


class EgressProxy:
    """Our side of one sandbox's egress proxy: its listeners, its counters, and the process while one is needed.

    Parameters:
        config: for all that it serves. It holds secrets; they go into a file without a name and nowhere else.

    Raises:
        OSError: no descriptor is left.
    """

    def __init__(self, config: EgressConfig) -> None:
        self._loop = asyncio.get_running_loop()
        self._state: Literal["idle", "running", "failed", "closed"] = "idle"
        self._config = _file(frames.encode(config))
        try:
            self._counters = Counters.create()
        except OSError:
            os.close(self._config)
            raise
        self._numbers = self._counters.snapshot()
        self._listeners: dict[int, _Listener] = {}
        self._last_id = 0
        self._process: _Process | None = None
        self._recovery: asyncio.Task[None] | None = None
        self._backoff = Backoff(self._loop.time, forgiven=1)
        self._failure: str | None = None
        self._told: str | None = None

    def __repr__(self) -> str:
        return f"<EgressProxy {self._state}, {len(self._listeners)} listeners>"

    # --- listeners ---

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
        if self._state == "closed":
            sock.close()
            return id
        if self._state == "running":
            try:
                self._hand_over(id, _Listener(role, sock))
            except (OSError, ExecFailed):
                sock.close()
                raise
        self._listeners[id] = _Listener(role, sock)
        if self._state == "idle":
            self._loop.add_reader(sock.fileno(), self._wake)
        return id

    def unlisten(self, id: int) -> None:
        """Close a listening socket, and have what came over it ended. Idempotent."""
        listener = self._listeners.pop(id, None)
        if listener is None:
            return
        if self._state == "idle":
            self._loop.remove_reader(listener.socket.fileno())
        listener.socket.close()
        if self._state == "running" and self._process is not None:
            try:
                self._process.order(frames.Unlisten(id))
            except ExecFailed:
                self._process.cancel("it does not keep up")

    def _hand_over(self, id: int, listener: _Listener) -> None:
        if self._process is not None:
            self._process.order(frames.Listen(id, listener.role), listener.socket.fileno())

    def _wake(self) -> None:
        """A client has connected. Of two in one turn of the loop the first counts."""
        if self._state != "idle":
            return
        for listener in self._listeners.values():
            self._loop.remove_reader(listener.socket.fileno())
        self._start()

    # --- the process ---

    def _start(self) -> None:
        self._state = "running"
        try:
            self._process = _Process(self._on_report, self._on_end)
            self._backoff.came_up()
        except OSError as error:
            self._on_end(f"it cannot be started: {error.strerror}")
            return
        try:
            self._process.order(frames.Config(), self._config, self._counters.fd)
            for id, listener in self._listeners.items():
                self._hand_over(id, listener)
        except (OSError, ExecFailed) as error:
            self._process.cancel(f"it cannot be told what to do: {error}")

    def _on_report(self, report: frames.Report) -> None:
        if isinstance(report, frames.Ready):
            self._failure = None
            return
        logger.warning("the egress proxy says: %s", report.text)
        if isinstance(report, frames.Trouble):
            self._told = report.text

    def _on_end(self, why: str) -> None:
        """The process is gone, or of no use. Its connections end with it."""
        self._backoff.ended()
        delay_s = self._backoff.pause_s
        self._state = "failed"
        self._failure = f"the egress proxy failed: {why}"
        logger.warning("the egress proxy failed: %s; another one is started in %.1f s", why, delay_s)
        self._recovery = self._loop.create_task(self._recover(delay_s))

    async def _recover(self, delay_s: float) -> None:
        await self._reap()
        await asyncio.sleep(delay_s)
        self._recovery = None
        if self._listeners:
            self._start()
        else:
            self._state, self._failure = "idle", None

    async def _reap(self) -> None:
        if self._process is not None:
            await self._process.aclose()
            self._process = None
            self._counters.reset_open()

    # --- for health, and the end ---

    @property
    def trouble(self) -> str | None:
        """What is wrong now, in one line."""
        return self._failure or self._told

    def health(self) -> dict[str, Any]:
        """The counters, and whether the proxy is `idle` (not needed yet), `running` or `failed` (another one comes)."""
        if self._state != "closed":
            self._numbers = self._counters.snapshot()
        return {"proxy": "idle" if self._state == "closed" else self._state, **self._numbers}

    async def aclose(self) -> None:
        """Close the listening sockets, and have the process end all connections and itself. Idempotent."""
        if self._state == "closed":
            return
        for id in list(self._listeners):
            self.unlisten(id)
        self._state = "closed"
        if self._recovery is not None:
            self._recovery.cancel()
            await asyncio.wait([self._recovery])
        await self._reap()
        self._numbers = self._counters.snapshot()
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
