"""The streams of one process: its two endpoints, held here."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple, Protocol

from fastclaw.transport.endpoint import Endpoint
from fastclaw.transport.terminal import TerminalEndpoint

if TYPE_CHECKING:
    from fastclaw.runtime import OnDisconnect
    from fastclaw.transport.listener import ProcessSockets
    from fastclaw.transport.watcher import Watcher


class Owner(Protocol):
    """Whose streams they are."""

    def on_abandoned(self) -> None:
        """A client left, and `on_disconnect` is `kill`."""

    def on_gap(self) -> None:
        """A client left output unread in its socket: it is lost."""

    def on_drained(self) -> None:
        """Both outputs have reached clients to their ends. Called once, or never."""


class Pipes(NamedTuple):
    """Our ends of a process's pipes, or its terminal's master for stdin and stdout."""

    stdin: int | None
    stdout: int
    stderr: int


class Streams(Protocol):
    """Wherever they are held.

    Attributes:
        drained: both outputs have reached clients to their ends.
    """

    drained: bool

    def has_pending_output(self) -> bool:
        """Whether output waits for a reader, as far as is known at once."""

    def close(self) -> None:
        """Unlink and close everything. Idempotent."""


class LocalStreams:
    """Held in this process. `sockets` and `pipes` are taken over."""

    __slots__ = ("_owner", "_stderr", "_stdio", "drained")

    def __init__(
        self, owner: Owner, sockets: ProcessSockets, pipes: Pipes, watcher: Watcher, on_disconnect: OnDisconnect
    ) -> None:
        self._owner = owner
        self.drained = False
        kind = TerminalEndpoint if os.isatty(pipes.stdout) else Endpoint
        self._stdio = kind(self, sockets.stdio, pipes.stdout, pipes.stdin, watcher, on_disconnect)
        self._stderr = Endpoint(self, sockets.stderr, pipes.stderr, None, watcher, "hold")

    def on_abandoned(self) -> None:
        """From an endpoint."""
        self._owner.on_abandoned()

    def on_gap(self) -> None:
        """From an endpoint."""
        self._owner.on_gap()

    def on_drained(self) -> None:
        """From an endpoint; the second one counts."""
        if self._stdio.drained and self._stderr.drained:
            self.drained = True
            self._owner.on_drained()

    def has_pending_output(self) -> bool:
        return self._stdio.has_pending_output() or self._stderr.has_pending_output()

    def close(self) -> None:
        self._stdio.close()
        self._stderr.close()
