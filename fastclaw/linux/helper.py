"""Child processes of our own: started, seen to end by their pidfd, ended within a deadline, reaped by nobody else.

`Child` is any program; `Helper` is one that lives on a packet socket, as most of ours do: it ends when that closes,
however fastclaw ended. `Backoff` says when something that ended is started again. Knows nothing of what they do.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
from contextlib import suppress
from itertools import starmap
from subprocess import DEVNULL
from typing import TYPE_CHECKING

from fastclaw import limits
from fastclaw.linux.packets import Outbox, receive
from fastclaw.linux.sockets import is_readable, wait_readable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


logger = logging.getLogger(__name__)

_DEFAULTED = [
    *(signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGXFSZ, signal.SIGCHLD)
]
"""Python ignores SIGPIPE and SIGXFSZ, and an ignored signal stays ignored in what is started."""


class Child:
    """A child process. Until `close` nobody reaps it, so its pid is its own for so long.

    It leads a session, so that signals to our terminal are not its; no signal is ignored or blocked in it, and it has
    no descriptor but those that it is given. It is made by the calling thread: with a parent-death signal it ends
    when that *thread* does (prctl(2), PR_SET_PDEATHSIG), so such a child is started by the loop's and never by a
    pool's.

    Parameters:
        argv: command line, its first word a path.
        env: its environment; None is ours.
        fds: what it has open, by the number there: another one of ours, or DEVNULL. 0 and 1 are /dev/null and 2 is ours
            where nothing is said of them.

    Attributes:
        pidfd: -1 once it is reaped.

    Raises:
        OSError: it cannot be started, or no descriptor is left.
    """

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str] | None = None, fds: Mapping[int, int] | None = None
    ) -> None:
        given = {0: DEVNULL, 1: DEVNULL, **(fds or {})}
        actions = [
            *starmap(_give, given.items()),
            *((os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable() if fd not in {2, *given}),
        ]
        self.pid = os.posix_spawn(
            argv[0],
            list(argv),
            os.environ if env is None else env,
            file_actions=actions,
            setsid=True,
            setsigdef=_DEFAULTED,
            setsigmask=[],
        )
        try:
            self.pidfd = os.pidfd_open(self.pid)
        except OSError:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            _reap(self.pid)
            raise
        self._reaped: asyncio.Event | None = None

    def __repr__(self) -> str:
        return f"<Child {self.pid}, {'ended' if self.has_ended else 'running'}>"

    @property
    def has_ended(self) -> bool:
        """Whether it is gone, reaped or not."""
        return self.pidfd < 0 or is_readable(self.pidfd)

    async def ends(self, timeout_ms: float | None) -> bool:
        """Whether it ends in time, None: at any time. Not after `close`."""
        return await wait_readable(self.pidfd, timeout_ms)

    def kill(self) -> None:
        """Send SIGKILL; nothing happens where it has ended."""
        if self.pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def detach(self) -> None:
        """Have it outlive us: only the pidfd is given back. Idempotent."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def close(self) -> None:
        """Reap it, now or as soon as it ends, as long as this loop runs. Idempotent."""
        if self._reaped is not None or self.pidfd < 0:
            return
        self._reaped = asyncio.Event()
        if self.has_ended:
            self._reap()
        else:
            asyncio.get_running_loop().add_reader(self.pidfd, self._on_end, asyncio.get_running_loop())

    def _on_end(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(self.pidfd)
        self._reap()

    def _reap(self) -> None:
        assert self._reaped is not None
        self.detach()
        _reap(self.pid)
        self._reaped.set()

    async def aclose(self, grace_ms: float) -> None:
        """Return when it has ended and is reaped; one that takes longer than `grace_ms` is killed. Idempotent.

        One that sleeps where no signal is heard (state D) is left behind after `limits.CHILD_KILLED_MS` more: it ends
        as soon as it wakes up, and is reaped then if this loop still runs.
        """
        self.close()
        await self._wait(grace_ms)
        if self.pidfd >= 0:
            self.kill()
            await self._wait(limits.CHILD_KILLED_MS)
        if self.pidfd >= 0:
            logger.warning("process %d was killed and does not end; it is left behind", self.pid)

    async def _wait(self, timeout_ms: float) -> None:
        if self._reaped is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_ms / 1000):
                    await self._reaped.wait()


def start_on_a_socket(argv: Sequence[str], env: Mapping[str, str] | None = None) -> tuple[Child, socket.socket]:
    """Start a program whose last argument is the number of its end of a packet socket: it, and our end, non-blocking.

    Raises:
        OSError: as `Child`.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        try:
            ours.setblocking(False)
            number = 4 if theirs.fileno() == 3 else 3
            return Child([*argv, str(number)], env, {number: theirs.fileno()}), ours
        except BaseException:
            ours.close()
            raise


class Helper:
    """A helper process and the packet socket that it lives on.

    Parameters:
        argv: command line; the number of its end of the socket is appended.
        env: its environment; None is ours.
        on_packet: called with each packet that it sends, and once with an empty one: it has ended, or does not keep
            to `packet_bytes`. Without it nothing is read.
        packet_bytes: the longest packet that it may send.

    Raises:
        OSError: it cannot be started, or no descriptor is left.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        on_packet: Callable[[bytes], None] | None = None,
        packet_bytes: int = 0,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._child, self._socket = start_on_a_socket(argv, env)
        self._outbox = Outbox(self._socket, self._loop)
        self._on_packet = on_packet
        self._packet = memoryview(bytearray(packet_bytes))
        if on_packet is not None:
            self._loop.add_reader(self._socket.fileno(), self._read, on_packet)

    def __repr__(self) -> str:
        state = "ended" if self.has_ended else "running" if self.is_open else "closed"
        return f"<Helper {self.pid}, {state}>"

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    @property
    def has_ended(self) -> bool:
        """Whether it is gone, reaped or not."""
        return self._child.has_ended

    @property
    def is_open(self) -> bool:
        """Whether it can be told something."""
        return self._socket.fileno() >= 0

    def send(self, frame: bytes, fds: list[int], *, bounded: bool = True) -> None:
        """Tell it something; as `Outbox.send`. Not after `close`."""
        self._outbox.send(frame, fds, bounded=bounded)

    def _read(self, on_packet: Callable[[bytes], None]) -> None:
        try:
            size, _ = receive(self._socket, self._packet, 0)
        except BlockingIOError:
            return
        if not size:
            self._loop.remove_reader(self._socket.fileno())
        on_packet(bytes(self._packet[:size]))

    def close(self) -> None:
        """Close its socket, of which it ends, and have it reaped then. Idempotent."""
        if self.is_open:
            self._loop.remove_reader(self._socket.fileno())
            self._outbox.close()
            self._socket.close()
            self._child.close()

    async def aclose(self, grace_ms: float) -> None:
        """The same; return when it has ended, as `Child.aclose`. Idempotent."""
        self.close()
        await self._child.aclose(grace_ms)


def _give(number: int, source: int) -> tuple[int, int, str, int, int] | tuple[int, int, int]:
    if source == DEVNULL:
        return os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY, 0
    return os.POSIX_SPAWN_DUP2, source, number


def _inheritable() -> list[int]:
    """What our parent has left open, or something in here has opened for its own children.

    Without those beyond the soft limit, which was lowered since: posix_spawn(3) refuses to close them.
    """
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # closed since, as the one that listed the directory
            if os.get_inheritable(int(name)):
                found.append(int(name))
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return [fd for fd in found if fd < limit]


def _reap(pid: int) -> None:
    with suppress(ChildProcessError):  # SIGCHLD is ignored in here, so the kernel has reaped it (wait(2))
        os.waitpid(pid, 0)


class Backoff:
    """The pause before the next start of one thing that is kept running.

    Parameters:
        now: the time, in seconds.
        forgiven: failures at the beginning that cost the first pause only.

    Attributes:
        failures: in a row, since it last was up for `limits.REVIVE_PROVEN_MS`.
    """

    __slots__ = ("_now", "_up_since", "failures")

    def __init__(self, now: Callable[[], float], forgiven: int = 0) -> None:
        self._now = now
        self._up_since: float | None = None
        self.failures = -forgiven

    def came_up(self) -> None:
        """It has been started."""
        self._up_since = self._now()

    def ended(self) -> None:
        """It has ended, or could not be started. One that was up for long enough has not failed."""
        up_since, self._up_since = self._up_since, None
        is_proven = up_since is not None and (self._now() - up_since) * 1000 >= limits.REVIVE_PROVEN_MS
        self.failures = 0 if is_proven else self.failures + 1

    def failed(self) -> None:
        """A successor did not come up; nothing is said of what may still be up."""
        self.failures += 1

    @property
    def pause_s(self) -> float:
        """Seconds before the next attempt."""
        return pause_s(self.failures)


def pause_s(failures: int) -> float:
    """Seconds before the next attempt after so many failures: doubled each time, up to `limits.REVIVE_LAST_MS`."""
    pause: float = limits.REVIVE_FIRST_MS / 1000 * 2 ** min(max(failures, 0), 30)
    return min(pause, limits.REVIVE_LAST_MS / 1000)
