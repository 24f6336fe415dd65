"""One socket of a process: serves one client at a time, and outlives each of them.

The outbound half relays one pipe of the process to the connected client; while there is none, the pipe is not read. The
inbound half takes what clients send, one client after the other, into the process's stdin; what a client sent before it
left is still delivered. Both halves of a client end on their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import select
import socket
import struct
import termios
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from fastclaw import limits
from fastclaw.linux import splice
from fastclaw.linux.sockets import has_hung_up, ready_events
from fastclaw.linux.splice import Move, is_holding
from fastclaw.processes.lane import StreamsOwner
from fastclaw.processes.listeners import Listener, drop_input, is_trusted_peer, turn_away

if TYPE_CHECKING:
    from fastclaw.linux.poller import Poller
    from fastclaw.runtime import OnDisconnect


_INT = struct.Struct("i")
_NOBODY: deque[_Client] = deque(maxlen=0)
"""No senders: the usual state, shared by all endpoints."""


class _Client:
    """One connection. Closed when both halves are through."""

    __slots__ = ("fd", "inbound", "inbound_done", "outbound_done", "socket")

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.fd = connection.fileno()
        self.inbound: Relay | None = None
        self.inbound_done = False
        self.outbound_done = False


_NO_OWNER = StreamsOwner()
"""Of a closed endpoint: it keeps no reference, so that no cycle waits for the collector."""


class Endpoint:
    """One socket of a process: relays one of its outputs, and its input if it has one, to one client at a time.

    Parameters:
        owner: is told of abandonment and gaps.
        listener: owned, its path is unlinked at the end.
        output_fd: read end of the process's stdout or stderr; owned.
        input_fd: write end of the process's stdin, or None; owned.
        on_disconnect: what a client that leaves for good means.
        on_change: called when a client is served or has left, and when `drained` has become true.

    Attributes:
        drained: the output's end has reached a client.
    """

    __slots__ = (
        "_accepting",
        "_client",
        "_input_fd",
        "_is_listening",
        "_is_open",
        "_listener",
        "_loop",
        "_move_output",
        "_on_change",
        "_on_disconnect",
        "_outbound",
        "_output_fd",
        "_owner",
        "_poller",
        "_retry",
        "_senders",
        "drained",
    )

    def __init__(
        self,
        owner: StreamsOwner,
        listener: Listener,
        output_fd: int,
        input_fd: int | None,
        poller: Poller,
        on_disconnect: OnDisconnect,
        on_change: Callable[[], None],
    ) -> None:
        self._owner = owner
        self._listener = listener
        self._output_fd = output_fd
        self._input_fd = input_fd
        self._poller = poller
        self._on_disconnect = on_disconnect
        self._on_change = on_change
        self._loop = poller.loop
        self._move_output = splice.mover()
        self._client: _Client | None = None
        self._outbound: Relay | None = None
        self._senders: deque[_Client] = _NOBODY
        self._accepting = True
        self._is_open = True
        self._is_listening = True
        self._retry: asyncio.TimerHandle | None = None
        self.drained = False
        poller.watch_listener(listener.fd, self._on_connection)

    def __repr__(self) -> str:
        state = "closed" if not self._is_open else "listening" if self._is_listening else "released"
        return f"<Endpoint {self._listener.path} {state}{' connected' * self.connected}{' drained' * self.drained}>"

    @property
    def moved_out(self) -> int:
        """Bytes of output handed to the client that is connected now."""
        return self._outbound.moved if self._outbound else 0

    def progress(self) -> tuple[int, int]:
        """Differs from the last one if the client has taken something since: what it was handed, and what of it lies in
        its socket (unix(7), SIOCOUTQ)."""
        queued = 0 if self._client is None else _int_of(self._client.fd, termios.TIOCOUTQ)
        return self.moved_out, queued

    @property
    def connected(self) -> bool:
        """Whether a client is being served."""
        return self._client is not None

    def has_pending_output(self) -> bool:
        """Whether output waits in the pipe (FIONREAD, pipe(7)) or in a copying mover."""
        if not self._is_open:
            return False
        if splice.is_holding(self._move_output):
            return True
        return bool(_int_of(self._output_fd, termios.FIONREAD))

    def is_blocked(self) -> bool:
        """Whether writers of the output wait: no client takes from it, and its pipe is full. Only a writer's end tells
        (poll(2)), so one is opened for a moment."""
        if not self._is_open or (self._outbound is not None and not self._outbound.waits_for_room):
            return False
        try:
            writing = os.open(f"/proc/self/fd/{self._output_fd}", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            return not ready_events(writing, select.POLLOUT)
        finally:
            os.close(writing)

    # --- connections ---

    def _on_connection(self) -> None:
        try:
            connection = self._listener.accept()
        except BlockingIOError:
            return  # gone again
        except OSError:
            self._accept_later()
            return
        # Its predecessor may have left in this very turn of the loop, with the news of that still to come.
        if self._client is not None and not self.drained and has_hung_up(self._client.fd):
            self._client_left(self._client)
        if self._client is not None or not is_trusted_peer(connection):
            turn_away(connection)
            return
        self._serve(_Client(connection))

    def _accept_later(self) -> None:
        """Out of descriptors: the client waits in the backlog, and the loop must not spin on it meanwhile."""
        self._poller.unwatch(self._listener.fd)
        self._retry = self._loop.call_later(limits.ACCEPT_RETRY_MS / 1000, self._accept_again)

    def _accept_again(self) -> None:
        self._retry = None
        if self._accepting and self._is_listening:
            self._poller.watch_listener(self._listener.fd, self._on_connection)

    def _serve(self, client: _Client) -> None:
        self._client = client
        self._poller.watch_hangup(client.fd, lambda: self._client_left(client))
        self._outbound = Relay(self._output_fd, client.fd, self._output_fd, self._move_output, self._output_ended)
        self._outbound.start()
        if self._input_fd is None:
            self._refuse_input(client)
        else:
            self._senders = self._senders or deque()
            self._senders.append(client)
            self._take_input()
        self._on_change()

    def _client_left(self, client: _Client) -> None:
        """The peer closed for good. What it sent before stays in its socket until stdin has taken it."""
        if self._client is not client:
            return
        self._client = None
        self._poller.unwatch(client.fd)
        if client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET:
            self._owner.on_gap()  # it closed with output of ours unread; AF_UNIX does not say how much
        self._stop_outbound(client)
        if self._on_disconnect == "kill":
            self._owner.on_abandoned()
        on_change = self._on_change
        if not self._is_listening:
            self.close()  # no client can come back
        on_change()

    # --- outbound: process → client ---

    def _output_ended(self, error: OSError | None) -> None:
        client = self._client
        assert client is not None  # only a served client has an outbound relay
        if error is not None:
            if error.errno == errno.ECONNRESET:
                self._owner.on_gap()
            if error.errno != errno.EPIPE or has_hung_up(client.fd):
                self._client_left(client)
            # Else it takes no more and may be in the middle of closing: only when it hangs up does the kernel say
            # whether it has left something unread (unix_release_sock).
            return
        with contextlib.suppress(OSError):  # the client may be gone already
            client.socket.shutdown(socket.SHUT_WR)
        self._poller.unwatch(client.fd)  # from here our own shutdown makes a half-close look like a hang-up
        self._stop_outbound(client)
        if not self.drained:
            self.drained = True
            self._on_change()
        if not self._is_listening:
            self.close()

    def _stop_outbound(self, client: _Client) -> None:
        if self._outbound is not None:
            self._outbound.cancel()
            self._outbound = None
        client.outbound_done = True
        self._close_if_through(client)

    # --- inbound: client → process ---

    def _take_input(self) -> None:
        """Relay the first sender's input, if none is being relayed."""
        if not self._senders or self._input_fd is None:
            return
        client = self._senders[0]
        if client.inbound is None:
            client.inbound = Relay(
                client.fd,
                self._input_fd,
                self._input_fd,
                splice.mover(),
                lambda error: self._input_ended(client, error),
            )
            client.inbound.start()
        self._limit_senders()

    def _input_ended(self, client: _Client, error: OSError | None) -> None:
        """Its input is through (half-close, full close), or the process does not read any more (EPIPE)."""
        self._senders.popleft()
        process_stopped_reading = error is not None and error.errno == errno.EPIPE
        if error is not None and error.errno == errno.ECONNRESET:
            self._owner.on_gap()
        left = self._client is not client or (not self.drained and has_hung_up(client.fd))
        client.inbound_done = True
        if process_stopped_reading or not (left and self._on_disconnect == "hold"):
            self.close_input()
        if process_stopped_reading:
            self._refuse_input(client)
        self._close_if_through(client)
        self._take_input()
        self._limit_senders()

    def close_input(self) -> None:
        """EOF on the process's stdin; clients that still send get EPIPE. Idempotent."""
        if self._input_fd is None:
            return
        senders, self._senders = self._senders, _NOBODY
        for client in senders:
            if client.inbound is not None:
                client.inbound.cancel()
        input_fd, self._input_fd = self._input_fd, None
        os.close(input_fd)
        for client in senders:
            self._refuse_input(client)

    def _refuse_input(self, client: _Client) -> None:
        """The client's next write fails with EPIPE; what it wrote already is dropped, as by a pipe without reader."""
        client.inbound_done = True
        with contextlib.suppress(OSError):
            client.socket.shutdown(socket.SHUT_RD)
            drop_input(client.socket)  # a client that polls for room is told of the end by that room only
        self._close_if_through(client)

    def _limit_senders(self) -> None:
        accepting = len(self._senders) < limits.MAX_DRAINING_CLIENTS
        if accepting is not self._accepting:
            self._accepting = accepting
            if not self._is_listening:
                return
            if accepting:
                self._poller.watch_listener(self._listener.fd, self._on_connection)
            else:
                self._poller.unwatch(self._listener.fd)

    # --- the end ---

    def _close_if_through(self, client: _Client) -> None:
        if client.inbound_done and client.outbound_done and client.fd >= 0:
            self._close(client)

    def _close(self, client: _Client) -> None:
        """Close so that the client reads what it was sent and then a clean EOF, never a reset."""
        if self._client is client:
            self._client = None
        self._poller.unwatch(client.fd)
        if client.inbound is not None:
            client.inbound.cancel()
        client.fd = -1
        with contextlib.suppress(OSError):
            client.socket.shutdown(socket.SHUT_RDWR)
            drop_input(client.socket)
        client.socket.close()

    def release(self) -> None:
        """Unlink the path, so that no other client can connect. A connected client reads to the end, or leaves; then,
        or now where there is none, everything is closed. Idempotent."""
        self._stop_listening()
        if self._client is None or self.drained:
            self.close()

    def _stop_listening(self) -> None:
        if not self._is_listening:
            return
        self._is_listening = False
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._poller.unwatch(self._listener.fd)
        self._listener.close()

    def close(self) -> None:
        """Unlink the path and close everything. Idempotent."""
        if not self._is_open:
            return
        self._is_open = False
        self._stop_listening()
        clients = {id(client): client for client in (self._client, *self._senders) if client is not None}
        if self._outbound is not None:
            self._outbound.cancel()
            self._outbound = None
        self.close_input()
        for client in clients.values():
            if client.fd >= 0:
                self._close(client)
        os.close(self._output_fd)
        self._owner, self._on_change = _NO_OWNER, _NO_OWNER.on_clients


def _int_of(fd: int, request: int) -> int:
    """The number that an ioctl gives."""
    number = bytearray(_INT.size)
    fcntl.ioctl(fd, request, number)
    return int(_INT.unpack(number)[0])


OnEnd = Callable[[OSError | None], None]


class Relay:
    """Moves bytes until the source ends, the target breaks, or `cancel`. Owns no descriptor.

    Parameters:
        source, target: descriptors, both non-blocking; one of them a pipe.
        pipe: the one of the two that is a pipe: it is enlarged when the stream proves to be a bulk one.
        on_end: called once, unless cancelled before: None at the source's end, the error when either side broke;
            ECONNRESET where a reader has left something unread, unless that was told otherwise.
    """

    __slots__ = ("_loop", "_move", "_on_end", "_pipe", "_source", "_source_is_pipe", "_target", "_waits_for", "moved")

    def __init__(self, source: int, target: int, pipe: int, move: Move, on_end: OnEnd) -> None:
        self._source = source
        self._target = target
        self._pipe: int | None = pipe
        self._source_is_pipe = pipe == source
        self._move = move
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._waits_for: int | None = None
        self.moved = 0

    @property
    def waits_for_room(self) -> bool:
        """Whether the target takes nothing now."""
        return self._waits_for == self._target

    def start(self) -> None:
        """Begin. `on_end` is never called from within this."""
        if is_holding(self._move):  # from an earlier relay of the same source
            self._wait_for_target()
        else:
            self._wait_for_source()

    def cancel(self) -> None:
        """Leave both descriptors alone from now on. Idempotent; `on_end` will not be called."""
        if self._waits_for == self._source:
            self._loop.remove_reader(self._source)
        elif self._waits_for == self._target:
            self._loop.remove_writer(self._target)
        self._waits_for = None

    def _wait_for_source(self) -> None:
        self.cancel()
        self._loop.add_reader(self._source, self._pump, self._wait_for_target)
        self._waits_for = self._source

    def _wait_for_target(self) -> None:
        self.cancel()
        self._loop.add_writer(self._target, self._pump, self._wait_for_source)
        self._waits_for = self._target

    def _pump(self, other_side_blocked: Callable[[], None]) -> None:
        for turn in range(limits.RELAY_BURST):
            try:
                moved = self._move(self._source, self._target)
            except BlockingIOError:
                if is_holding(self._move):
                    self._wait_for_target()
                elif turn == 0:
                    other_side_blocked()
                return
            except OSError as error:
                if not (turn and self._end_if_left_unread()):
                    self._end(error)
                return
            if moved == 0:
                self._end(None)
                return
            self.moved += moved
            # A short move most likely emptied a pipe: asking again would cost a call for an EAGAIN. A socket is read on
            # until EAGAIN or its end: after a reset (POLLERR) uvloop calls once more and then drops the poller.
            if moved >= limits.PIPE_BYTES:
                self._enlarge()
            elif self._source_is_pipe:
                if is_holding(self._move):
                    self._wait_for_target()
                break
        self._end_if_left_unread()

    def _end_if_left_unread(self) -> bool:
        """Right after a move."""
        if not self._source_is_pipe or not has_hung_up(self._target):
            return False
        took_less = is_holding(self._move) or ready_events(self._source, select.POLLIN) & select.POLLIN != 0
        if took_less:
            self._end(ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))
        return took_less

    def _enlarge(self) -> None:
        if self._pipe is not None:
            with contextlib.suppress(OSError):  # the user's pipe quota is used up (fs.pipe-user-pages-soft)
                fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, limits.BULK_PIPE_BYTES)
            self._pipe = None

    def _end(self, error: OSError | None) -> None:
        self.cancel()
        self._on_end(error)
