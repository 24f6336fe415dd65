"""The streams of processes whose pipes this process holds: of the lanes without a spawner.

The other ends of the pipes are this process's own too, or a program's in it; what a hostile command holds is touched by
helpers only. Knows nothing of how a process was started.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from fastclaw import limits
from fastclaw.linux.packets import close_all
from fastclaw.processes.endpoint import Endpoint
from fastclaw.processes.lane import LaneProcess

if TYPE_CHECKING:
    import asyncio

    from fastclaw.linux.poller import Watcher
    from fastclaw.processes.lane import Owner, Streams
    from fastclaw.processes.sockets import ProcessSockets
    from fastclaw.runtime import OnDisconnect


class Pipes(NamedTuple):
    """Our ends of a process's pipes; stdin is None for one that has none."""

    stdin: int | None
    stdout: int
    stderr: int


class _Outlet:
    """One output with its endpoint, and whether its client reads."""

    __slots__ = ("_looks", "_seen", "endpoint")

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._seen: tuple[int, int] | None = None
        self._looks = 0

    @property
    def is_stalled(self) -> bool:
        """Whether output has waited at so many looks for a client who has taken none."""
        return self._looks >= limits.STALLED_LOOKS and self.is_served()

    def is_served(self) -> bool:
        return self.endpoint.connected and not self.endpoint.drained

    def forget_who_left(self) -> None:
        if not self.is_served():
            self._looks = 0
            self._seen = None

    def look(self) -> None:
        if not self.is_served():
            return
        progress = self.endpoint.progress()
        is_idle = progress == self._seen and self.endpoint.has_pending_output()
        self._looks = self._looks + 1 if is_idle else 0
        self._seen = progress

    def close(self, *, cut: bool) -> bool:
        """Whether a client was cut off."""
        was_cut = cut and self.is_stalled
        if was_cut:
            self.endpoint.close()
        else:
            self.endpoint.release()
        return was_cut


class LocalStreams:
    """Held in this process. `sockets` and `pipes` are taken over."""

    __slots__ = ("_is_open", "_looked_at", "_loop", "_outlets", "_owner", "drained")

    def __init__(
        self, owner: Owner, sockets: ProcessSockets, pipes: Pipes, watcher: Watcher, on_disconnect: OnDisconnect
    ) -> None:
        self._owner = owner
        self._loop = watcher.loop
        self._looked_at = -math.inf
        self._is_open = True
        self.drained = False
        self._outlets = (
            _Outlet(Endpoint(self, sockets.stdio, pipes.stdout, pipes.stdin, watcher, on_disconnect)),
            _Outlet(Endpoint(self, sockets.stderr, pipes.stderr, None, watcher, "hold")),
        )

    # --- what the endpoints say ---

    def on_abandoned(self) -> None:
        """From an endpoint."""
        self._owner.on_abandoned()

    def on_gap(self) -> None:
        """From an endpoint."""
        self._owner.on_gap()

    def on_drained(self) -> None:
        """From an endpoint; the second one counts."""
        if all(outlet.endpoint.drained for outlet in self._outlets):
            self.drained = True
            self._owner.on_drained()
        else:
            self.on_clients()

    def on_clients(self) -> None:
        """From an endpoint."""
        for outlet in self._outlets:
            outlet.forget_who_left()
        self._owner.on_clients()

    # --- what the owner wants to know ---

    def is_unread(self) -> bool:
        return any(
            outlet.is_stalled or not (outlet.endpoint.connected or outlet.endpoint.drained)
            for outlet in self._outlets
            if self._is_open or outlet.is_served()
        )

    def is_served(self) -> bool:
        return any(outlet.is_served() for outlet in self._outlets)

    def has_pending_output(self) -> bool:
        return any(outlet.endpoint.has_pending_output() for outlet in self._outlets)

    def look(self) -> bool:
        now = self._loop.time()
        if now < self._looked_at + limits.PUMP_LOOK_MS / 2000:
            return False
        self._looked_at = now
        before = self.is_unread()
        for outlet in self._outlets:
            outlet.look()
        if self.is_unread() is not before:
            self._owner.on_clients()
        return False

    def blocked(self) -> asyncio.Future[int]:
        """Known at once: both ends of the pipes are in this process."""
        asked: asyncio.Future[int] = self._loop.create_future()
        asked.set_result(sum(1 << which for which, outlet in enumerate(self._outlets) if outlet.endpoint.is_blocked()))
        return asked

    # --- the end ---

    def close(self, *, cut: bool = False) -> None:
        self._is_open = False
        were_cut = [outlet.close(cut=cut) for outlet in self._outlets]
        if any(were_cut):
            self._owner.on_gap()

    def give_up(self) -> None:
        self._is_open = False
        for outlet in self._outlets:
            outlet.endpoint.close()


class PipedProcess(LaneProcess):
    """A process whose output arrives on the read ends of two pipes, and whose input leaves on the write end of one.

    Attributes:
        stdin_fd, stdout_fd, stderr_fd: non-blocking; the caller's from the moment in which the lane has returned.
    """

    __slots__ = ()

    stdin_fd: int | None
    stdout_fd: int
    stderr_fd: int

    def _pipes(self) -> Pipes:
        return Pipes(self.stdin_fd, self.stdout_fd, self.stderr_fd)

    def serve(self, owner: Owner, sockets: ProcessSockets, watcher: Watcher, on_disconnect: OnDisconnect) -> Streams:
        return LocalStreams(owner, sockets, self._pipes(), watcher, on_disconnect)

    def close_streams(self) -> None:
        close_all(fd for fd in self._pipes() if fd is not None)
