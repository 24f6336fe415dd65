"""The two sockets of a process whose bytes a pump moves: accepts clients, checks them, hands them to the pump.

Owns the listeners. The pump has the pipes and the clients' sockets; its events decide who may connect next.
"""

from __future__ import annotations

import errno
import math
import socket
from typing import TYPE_CHECKING

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.processes.lane import Streams
from fastclaw.processes.listeners import is_trusted_peer, turn_away
from fastclaw.spawner import frames

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from fastclaw.linux.poller import Poller
    from fastclaw.processes.lane import StreamsOwner
    from fastclaw.processes.listeners import Listener, ProcessSockets
    from fastclaw.runtime import OnDisconnect
    from fastclaw.spawner.spawn_process import SpawnProcess

STDIO, STDERR = 0, 1


class SpawnStreams(Streams):
    """The streams of a process whose pump moves them.

    Parameters:
        process: its pump takes clients, RELEASE and LOOK.
        owner: is told of abandonment, gaps, and that both outputs have been read.
        sockets: taken over.
    """

    __slots__ = (
        "_blocked",
        "_connected",
        "_delivered",
        "_is_free",
        "_is_gone",
        "_is_open",
        "_kills",
        "_look",
        "_looked_at",
        "_may_have_output",
        "_owner",
        "_poller",
        "_pump",
        "_sockets",
        "_stalled",
        "_watched",
    )

    def __init__(
        self,
        process: SpawnProcess,
        owner: StreamsOwner,
        sockets: ProcessSockets,
        poller: Poller,
        on_disconnect: OnDisconnect,
    ) -> None:
        self._pump: SpawnProcess | None = process
        self._owner: StreamsOwner | None = owner
        self._sockets = sockets
        self._poller = poller
        self._kills = on_disconnect == "kill"
        self._connected = self._delivered = self._stalled = 0
        self._is_free = self._is_gone = self.drained = False
        self._is_open = self._may_have_output = True
        self._look: asyncio.TimerHandle | None = None
        self._looked_at = -math.inf
        self._blocked: asyncio.Future[int] | None = None
        self._watched: dict[int, socket.socket] = {}
        poller.watch_listener(sockets.stdio.fd, self._on_stdio)
        poller.watch_listener(sockets.stderr.fd, self._on_stderr)

    # --- clients that come ---

    def _on_stdio(self) -> None:
        self._accept(STDIO, self._sockets.stdio)

    def _on_stderr(self) -> None:
        self._accept(STDERR, self._sockets.stderr)

    def _accept(self, which: int, listener: Listener) -> None:
        try:
            client = listener.accept()
        except BlockingIOError:
            return  # gone again
        except OSError:
            self._accept_later(listener.fd, self._on_stdio if which == STDIO else self._on_stderr)
            return
        if self._connected & 1 << which or not is_trusted_peer(client):
            turn_away(client)
        elif self._is_free:
            turn_away(client)
            self._deliver(which)
        else:
            self._hand_over(which, client)

    def _accept_later(self, fd: int, callback: Callable[[], None]) -> None:
        """Out of descriptors: the client waits in the backlog, and the loop must not spin on it meanwhile."""
        self._poller.unwatch(fd)
        loop = self._poller.loop

        def again() -> None:
            if self._is_open:
                self._poller.watch_listener(fd, callback)

        loop.call_later(limits.ACCEPT_RETRY_MS / 1000, again)

    def _hand_over(self, which: int, client: socket.socket) -> None:
        assert self._pump is not None
        if self._pump.spawner.is_gvisor and not self._watch(which, client):
            turn_away(client)
            return
        self._connected |= 1 << which
        try:
            self._pump.attach(which, client.detach())
        except ExecFailed:
            self._connected &= ~(1 << which)
        else:
            self._tell_clients()

    def _watch(self, which: int, client: socket.socket) -> bool:
        """See by a duplicate when a client is gone, which gVisor tells nobody inside; False: no descriptor is left."""
        self._unwatch(which)
        try:
            ours = self._watched[which] = client.dup()
        except OSError:
            return False

        def on_hang_up() -> None:
            is_gap = ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET
            self._unwatch(which)
            if self._pump is not None:
                self._pump.order(frames.HANGUP, which | is_gap << 1)

        self._poller.watch_hangup(ours.fileno(), on_hang_up)
        return True

    def _unwatch(self, which: int) -> None:
        if (ours := self._watched.pop(which, None)) is not None:
            self._poller.unwatch(ours.fileno())
            ours.close()

    # --- what the pump says ---

    def on_event(self, op: int, which: int, value: int) -> None:
        """ENDED, LEFT, GAP, WAITING, STUCK or BLOCKED."""
        if op == frames.ENDED:
            self._deliver(which)
        elif op == frames.LEFT:
            self._on_left(which, bool(value))
        elif op == frames.WAITING:
            self._on_waiting(bool(which), value)
        elif op == frames.BLOCKED:
            self._on_blocked(which)
        elif self._owner is not None:
            self._owner.on_gap()

    def _deliver(self, which: int) -> None:
        """The end of an output has reached a client."""
        self._delivered |= 1 << which
        if self._delivered != 3:
            self._tell_clients()
        elif not self.drained:
            self.drained = True
            if self._owner is not None:
                self._owner.on_drained()

    def _on_waiting(self, may_have_output: bool, stalled: int) -> None:
        """`stalled`: bit set of outputs whose clients read nothing since the last look."""
        self._may_have_output = may_have_output
        if stalled != self._stalled:
            self._stalled = stalled
            self._tell_clients()

    def _on_blocked(self, outputs: int) -> None:
        """Answers all that wait for `blocked`; a later call asks anew."""
        asked, self._blocked = self._blocked, None
        if asked is not None and not asked.done():
            asked.set_result(outputs)

    def _on_left(self, which: int, gap: bool) -> None:
        was_connected = self._connected & 1 << which  # else `release` has cut it off
        self._connected &= ~(1 << which)
        self._stalled &= self._connected
        owner = self._owner
        if owner is None:
            return
        if gap:
            owner.on_gap()
        if which == STDIO and was_connected and self._kills and not self._delivered & 1:
            owner.on_abandoned()
        owner.on_clients()

    def _tell_clients(self) -> None:
        if self._owner is not None:
            self._owner.on_clients()

    def _forget_owner(self) -> None:
        """Break the reference cycle once closed and with no more events to come: else only the collector would."""
        if self._is_free and not self._is_open:
            self._owner = None

    def on_free(self) -> None:
        """The pump is done: clients that connect from now on read EOF at once; connected ones have read it."""
        self._is_free = True
        self._may_have_output = False
        self._stop_looking()
        for which in (STDIO, STDERR):
            if self._connected & 1 << which:
                self._deliver(which)
        self._pump = None
        self._on_blocked(0)
        self._forget_owner()

    def on_gone(self) -> None:
        """The tree is gone. A pump that is blocked by a locked pipe cannot end its clients: LOOKs have main do it."""
        self._is_gone = True
        self._look_later()

    def _look_later(self) -> None:
        if self._is_gone and not self._is_free and self._look is None and self._pump is not None:
            self._look = self._poller.loop.call_later(limits.PUMP_LOOK_MS / 1000, self._look_now)

    def _look_now(self) -> None:
        self._look = None
        if self._connected:
            self.look()
        self._look_later()

    def _stop_looking(self) -> None:
        if self._look is not None:
            self._look.cancel()
            self._look = None

    def on_lost(self) -> None:
        """The pump is gone, and with it unread output."""
        if self._owner is not None and not self._is_free and self._delivered != 3:
            self._owner.on_gap()
        self._pump = None
        for which in (STDIO, STDERR):
            self._unwatch(which)
        self._is_free = True
        self._may_have_output = False
        self._stop_looking()
        self._on_blocked(0)
        self._tell_clients()
        self._forget_owner()

    # --- what the owner wants to know ---

    def is_unread(self) -> bool:
        """As `Streams.is_unread`, by the pump's last answer."""
        if self._is_open and self._connected | self._delivered != 3:
            return True
        return bool(self._stalled & ~self._delivered)

    def is_served(self) -> bool:
        """As `Streams.is_served`."""
        return bool(self._connected & ~self._delivered) and not self._is_free

    def has_pending_output(self) -> bool:
        """As of the pump's last answer; True until there is one."""
        return self._may_have_output

    def look(self) -> bool:
        """The pump answers. Main ends the clients of a pump that is in the same call at two LOOKs, so LOOKs are a while
        apart, however many callers there are."""
        now = self._poller.loop.time()
        if self._pump is None or now < self._looked_at + limits.PUMP_LOOK_MS / 2000:
            return False
        self._looked_at = now
        self._pump.order(frames.LOOK)
        return True

    def blocked(self) -> asyncio.Future[int]:
        """The pump answers, unless a locked pipe blocks it."""
        if self._blocked is not None:
            return self._blocked
        asked = self._blocked = self._poller.loop.create_future()
        if self._pump is None:
            self._on_blocked(0)
        else:
            self._pump.order(frames.LOOK, frames.LOOK_BLOCKED)
        return asked

    # --- the end ---

    def release(self, *, cut: bool = False) -> None:
        ends = self._stalled & ~self._delivered if cut else 0
        if ends:
            self._connected &= ~ends
            self._stalled = 0
            if self._owner is not None:
                self._owner.on_gap()
        if self._is_open:
            self._stop_listening()
        elif not ends:
            return
        if not self._is_free and self._pump is not None:
            self._pump.order(frames.RELEASE, int(ends != 0))
        self._forget_owner()

    def _stop_listening(self) -> None:
        self._is_open = False
        self._poller.unwatch(self._sockets.stdio.fd)
        self._poller.unwatch(self._sockets.stderr.fd)
        self._sockets.close()

    def close(self) -> None:
        """As `release`; output that is unread when the spawner ends is lost."""
        self.release()
