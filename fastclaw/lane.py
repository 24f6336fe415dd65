"""The second interface: a lane, the way in which a runtime starts processes.

A runtime owns ids, sockets, records, admission and deadlines; a lane only turns a `StartSpec` into a running process
with three descriptors. Two rules make every lane look the same from above:

1. Output arrives on the read ends of two pipes, input leaves on the write end of one; all three are non-blocking,
   close-on-exec, and belong to the caller from the moment `start` returns. EOF on a pipe is EOF of that stream.
   With `tty`, stdin and stdout are two descriptors of one terminal's master, and stderr is at its end.
2. `start` returns when the command really runs (or ran already), and raises `ExecFailed` otherwise; a `start` that is
   cancelled or fails leaves no process, descriptor or task behind. A lane may return sooner, as soon as the streams
   are there, and say by `LaneProcess.started` when the command runs: then the caller has that time for its own work.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal

from msgspec import Struct, field

from fastclaw.errors import ExecFailed

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable


class StartSpec(Struct, frozen=True, kw_only=True):
    """One process to start, with everything decided.

    Parameters:
        process_id: unique in this runtime.
        base_env: what every process gets on top of the environment's own variables: the same object for all of them.
        env: this one's variables, which win.
        working_dir: absolute path, or None for the environment's default.
        stdin: False gives the process an empty stdin and the caller no `stdin_fd`.
        limits: soft and hard resource limit by name, where the lane offers it (`decisions.rlimits`).
        tty: rows and columns of a pseudo-terminal instead of pipes, where the lane offers it; None: pipes.
        template: forked from this one instead, where the lane offers it; `cmd` is its argv.
    """

    process_id: str
    cmd: list[str]
    env: dict[str, str] = field(default_factory=dict)
    base_env: dict[str, str] = field(default_factory=dict)
    working_dir: str | None = None
    user: str | None = None
    stdin: bool = True
    limits: dict[str, int] = field(default_factory=dict)
    tty: tuple[int, int] | None = None
    template: str | None = None

    @property
    def marker(self) -> dict[str, str]:
        """Marks the process and its descendants: how those that left the tree are found again. None without an id."""
        return {PROCESS_ID_VARIABLE: self.process_id} if self.process_id else {}

    @property
    def variables(self) -> dict[str, str]:
        """All of them, the marker included."""
        return {**self.base_env, **self.env, **self.marker}


class ExitStatus(Struct, frozen=True, kw_only=True):
    """How the command itself ended, as the lane learnt it. At most one of `exit_code` and `signal` is set."""

    reason: Literal["exited", "signaled", "container_gone", "unknown"]
    exit_code: int | None = None
    signal: int | None = None
    usage: dict[str, int] | None = None


PROCESS_ID_VARIABLE = "FASTCLAW_PROCESS_ID"
"""Marks every process of an exec in its environment: how descendants that left the tree are found again."""


class LaneProcess(ABC):
    """A process that was started.

    Attributes:
        started: resolves when the command really runs, or fails with `ExecFailed`; None where it runs already.
        stdin_fd: write end of the process's stdin, or None.
        stdout_fd, stderr_fd: read ends.
        exited: resolves once, when the command itself has ended; never with an exception. Not before every byte
            that the lane can know of is in the pipes or on its way there.
        timings: microseconds by phase of the start, for the exit record.
    """

    __slots__ = ()

    started: asyncio.Future[None] | None = None
    stdin_fd: int | None
    stdout_fd: int
    stderr_fd: int
    exited: asyncio.Future[ExitStatus]
    timings: dict[str, int]

    @abstractmethod
    def signal(self, signum: int) -> None:
        """Send a signal to the command itself; nothing happens where it has ended.

        Raises:
            ExecFailed: `unsupported`, where the lane cannot reach the process.
        """

    def resize(self, rows: int, columns: int) -> None:
        """Give its terminal another size; nothing happens where it has ended. Only for one started with `tty`.

        Raises:
            ExecFailed: `unsupported`, on a lane without terminals.
        """
        raise ExecFailed("this lane offers no terminals", "unsupported")

    @abstractmethod
    async def end_tree(self, grace: Grace) -> None:
        """TERM to the whole tree, KILL once `grace` is over, until nothing is left.

        Also after the command's own end, and before its start is known: then it never runs, or is ended at once.

        Raises:
            ExecFailed: `engine_timeout` or `unsupported`, where the end cannot be brought about or proven.
        """

    def aclose(self) -> Awaitable[None] | None:
        """Give back what the lane holds for this process. Called once, after `exited`, when nobody reads the pipes.

        Returns:
            What is to be awaited; None where nothing is held.
        """
        return None


class Grace(Struct):
    """Time between TERM and KILL, which a second signal to fastclaw may cut short while it runs.

    Parameters:
        ends_at: `loop.time()` at which it is over.
    """

    ends_at: float


class Lane(ABC):
    """Starts processes."""

    name: str
    capabilities: list[str]

    @abstractmethod
    async def start(self, spec: StartSpec, shard: int) -> LaneProcess:
        """Start one process on one shard (0-based; lanes without shards ignore it).

        Raises:
            ExecFailed: with a reason; see DESIGN of the contract in docs/contract.md.
        """

    @abstractmethod
    async def end_all(self, processes: list[LaneProcess], grace: Grace) -> None:
        """End these processes with all they started: TERM, `grace`, KILL; return when all have `exited`.

        The caller sets a deadline, and the environment goes afterwards.
        """

    def health(self) -> dict[str, object]:
        """What `health.details.lane` says of this lane."""
        return {"name": self.name}
