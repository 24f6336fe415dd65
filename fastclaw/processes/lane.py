"""The second interface: a lane, the way in which a runtime starts processes.

A runtime owns ids, sockets, records, admission and deadlines; a lane only turns a `StartSpec` into a running process
whose streams clients reach. Two rules make every lane look the same from above:

1. The bytes of an exec are the lane's affair: `serve` is given two listening sockets, and has clients reach stdin,
   stdout and stderr by them. EOF of a stream is EOF there.
2. `start` returns when the command really runs (or ran already), and raises `ExecFailed` otherwise; a `start` that is
   cancelled or fails leaves no process, descriptor or task behind. A lane may return sooner, as soon as the streams
   are there, and say by `LaneProcess.started` when the command runs: then the caller has that time for its own work.

`run` is the same for a command whose input is there from the beginning and whose output is collected to the end: the
streams are the lane's then, and `LaneProcess.collected` brings what came of them.
"""

from __future__ import annotations

import asyncio
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from msgspec import Struct, field

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.linux.cgroups import MemoryWatch, OomKills
from fastclaw.runtime import Keep, Limits, OnLimit, Orphans
from fastclaw.stages import Flight, unseen

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping, Sequence

    from fastclaw.runtime import OnDisconnect


class StartSpec(Struct, frozen=True, kw_only=True):
    """One process to start, with everything decided.

    Parameters:
        process_id: unique in this runtime.
        base_env: what every process gets on top of the environment's own variables: the same object for all of them.
        env: this one's variables, which win.
        working_dir: absolute path, or None for the environment's default.
        stdin: False gives the process an empty stdin and the caller no `stdin_fd`.
        limits: by name, where the lane offers them: soft and hard resource limit, and those of a control group of its
            own (`params.rlimits`, `params.group_limits`).
        tty: rows and columns of a pseudo-terminal instead of pipes, where the lane offers it; None: pipes.
        template: forked from this one instead, where the lane offers it; `cmd` is its argv.
        merge_stderr: its stderr is its stdout; stderr is at its end at once.
        holds_stdin: a client that leaves for good does not end its stdin.
        orphans: whether the lane ends the rest of the tree when the command itself has ended.
        flight: told when the start and the process come how far.
    """

    process_id: str
    cmd: list[str]
    env: dict[str, str] = field(default_factory=dict)
    base_env: dict[str, str] = field(default_factory=dict)
    working_dir: str | None = None
    user: str | None = None
    stdin: bool = True
    limits: Limits = field(default_factory=dict)
    tty: tuple[int, int] | None = None
    template: str | None = None
    merge_stderr: bool = False
    holds_stdin: bool = False
    orphans: Orphans = "keep"
    flight: Flight = field(default_factory=unseen)

    @property
    def marker(self) -> dict[str, str]:
        """Marks the process and its descendants: how those that left the tree are found again. None without an id."""
        return {PROCESS_ID_VARIABLE: self.process_id} if self.process_id else {}

    @property
    def variables(self) -> dict[str, str]:
        """All of them, the marker included."""
        return {**self.base_env, **self.env, **self.marker}


class ExitStatus(Struct, frozen=True, kw_only=True):
    """How the command itself ended, as the lane learnt it. At most one of `exit_code` and `signal` is set.

    Parameters:
        reason: `oom` where it was killed itself, and the out-of-memory killer was at work.
        ooms: what that killed in the command's life; None: nothing, as far as is known.
        group: what was counted in a control group of its own; None: it had none.
    """

    reason: Literal["exited", "signaled", "oom", "container_gone", "unknown"]
    exit_code: int | None = None
    signal: int | None = None
    usage: dict[str, int] | None = None
    ooms: OomKills | None = None
    group: dict[str, int] | None = None


Ooms = Callable[[bool], OomKills | None]
"""What the out-of-memory killer killed in a command's life. Told whether the command, or its child, seems to have been
killed."""


def ooms_from_now(memory: MemoryWatch | None) -> Ooms:
    """For a command that begins now. `memory`: of its environment; None: nothing of it is to be seen."""
    if memory is None:
        return _never
    return functools.partial(memory.since, memory.mark())


def _never(is_killed: bool) -> None:
    return None


SIGKILLED = 9
KILLED_CODE = 128 + SIGKILLED
"""The exit code by which shells and engines report SIGKILL."""


class Collection(Struct, frozen=True, kw_only=True):
    """What a run wants of its streams.

    Parameters:
        input: what the command reads on stdin; `StartSpec.stdin` says whether there is any.
        output_limit: bytes of each stream that are kept.
        keep: which ones of a longer stream.
        on_limit: whether a longer stream ends the tree.
        drain_ms: how long after the exit to wait for a stream that another process holds open.
    """

    input: bytes = b""
    output_limit: int = limits.RUN_OUTPUT_LIMIT_BYTES
    keep: Keep = "ends"
    on_limit: OnLimit = "truncate"
    drain_ms: int = limits.DRAIN_MS


class Output(NamedTuple):
    """What was kept of one stream: its first and its last bytes, and how many there were in all.

    It is whole when `total` is the length of the other two together; then `tail` follows right upon `head`.
    """

    head: bytes = b""
    tail: bytes = b""
    total: int = 0


class Collected(Struct, kw_only=True):
    """A command that has ended, and what it wrote. The pool drops the outputs once it has used them: the process's
    record is kept for minutes.

    Parameters:
        incomplete: there may have been more, which could not be had.
        limited: it was ended because a stream went over its limit (`on_limit` is `kill`).
        overloaded: it was ended because all runs together have too much output.
    """

    status: ExitStatus
    stdout: Output
    stderr: Output
    incomplete: bool = False
    limited: bool = False
    overloaded: bool = False


PROCESS_ID_VARIABLE = "FASTCLAW_PROCESS_ID"
"""Marks every process of an exec in its environment: how descendants that left the tree are found again."""


class StreamsOwner:
    """Is told what becomes of a process's streams. A method that a subclass leaves out does nothing."""

    __slots__ = ()

    def on_abandoned(self) -> None:
        """A client left, and `on_disconnect` is `kill`."""

    def on_gap(self) -> None:
        """A client left output unread in its socket: it is lost."""

    def on_drained(self) -> None:
        """Both outputs have reached clients to their ends. Called once, or never."""

    def on_clients(self) -> None:
        """A client came or left, or one that reads stopped reading, or began again: `Streams.is_unread` may differ."""


class Streams:
    """The streams of a process. This base is what a process has that has no sockets: a run, or one that is closed.

    Attributes:
        drained: both outputs have reached clients to their ends.
    """

    __slots__ = ("drained",)

    def __init__(self) -> None:
        self.drained = True

    def is_unread(self) -> bool:
        """Whether an output that is not at its end has no client, or one that reads nothing, as far as is known."""
        return False

    def is_served(self) -> bool:
        """Whether a client is connected to an output that is not at its end."""
        return False

    def has_pending_output(self) -> bool:
        """Whether output waits for a reader, as far as is known at once."""
        return False

    def look(self) -> bool:
        """Find out what waits and who reads, for the methods above. A client reads nothing if output has waited for it
        at `limits.STALLED_LOOKS` in a row and it has taken none. Looks that come too soon after one do not count.

        Returns:
            Whether the answer is known a moment later only.
        """
        return False

    def blocked(self) -> asyncio.Future[int]:
        """Which outputs are full while no client takes from them, so that their writers wait: 1 for stdout, 2 for
        stderr, 3 for both. No answer comes while a pipe is locked by its command."""
        asked = asyncio.get_running_loop().create_future()
        asked.set_result(0)
        return asked

    def release(self, *, cut: bool = False) -> None:
        """Unlink the sockets, so that no client can connect any more. Output without a client is thrown away; clients
        read on. Idempotent but for `cut`.

        Parameters:
            cut: end clients that read nothing, too; that is a gap.
        """

    def close(self) -> None:
        """Hold nothing here any longer: the environment goes. Idempotent."""


class LaneProcess(ABC):
    """A process that was started.

    Attributes:
        started: resolves when the command really runs, or fails with `ExecFailed`; None where it runs already.
        exited: resolves once, when the command itself has ended; never with an exception. Not before every byte
            that the lane can know of is in its streams or on its way there.
        collected: for a run, resolves once after `exited` or together with it; fails with `ExecFailed` only where
            `started` does. The pool may cancel it, when the result is not wanted any more. None for an exec.
        streams_ended: for a run whose streams this process reads: resolves when nothing holds them any more. What is
            written until then is read and thrown away, so that no writer gets SIGPIPE. None: nothing is waited for.
    """

    __slots__ = ()

    started: asyncio.Future[None] | None = None
    exited: asyncio.Future[ExitStatus]
    collected: asyncio.Future[Collected] | None = None
    streams_ended: asyncio.Future[None] | None = None

    @abstractmethod
    def serve(self, owner: StreamsOwner, sockets: Any, poller: Any, on_disconnect: OnDisconnect) -> Streams:
        """Let clients reach the streams of an exec. Called once, before `started`.

        Parameters:
            owner: is told what becomes of them.
            sockets: `sockets.ProcessSockets`, listening; taken over, unless this fails.
            poller: `poller.Poller`, for them.

        Raises:
            OSError: there is not enough of something.
        """

    def close_streams(self) -> None:  # noqa: B027 - most lanes hold none
        """Instead of `serve`, for an exec whose start has failed before it."""

    @abstractmethod
    def signal(self, signum: int, *, group: bool = False) -> None:
        """Send a signal to the command itself, or to all of its process group; nothing happens where it has ended.

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
        """Give back what the lane holds for this process. Called once, after `exited`, when its streams are closed; of
        a run, when `streams_ended` is done, or earlier where the environment itself goes.

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


class Usage(NamedTuple):
    """What a process takes together with all that it has started.

    Parameters:
        cpu_us: processor time so far of what is there now, with children that were waited for, in microseconds.
        memory_bytes: resident memory; what processes share counts for each.
        processes: how many there are.
        in_bytes, out_bytes: of its stdin and of both outputs.
    """

    cpu_us: int
    memory_bytes: int
    processes: int
    in_bytes: int
    out_bytes: int


class Lane(ABC):
    """Starts processes.

    Attributes:
        files_each: descriptors that this process holds for each of them.
        refused: of limits that need a control group, why there is none, in one line.
    """

    name: str
    capabilities: list[str]
    refused: Mapping[str, str] = MappingProxyType({})
    files_each = limits.FILES_PER_PROCESS

    @abstractmethod
    async def start(self, spec: StartSpec, container_index: int) -> LaneProcess:
        """Start one process.

        Parameters:
            container_index: which of the environment's containers, from 0; a lane without containers ignores it.

        Raises:
            ExecFailed: with a reason of docs/contract.md.
        """

    @abstractmethod
    async def run(self, spec: StartSpec, collection: Collection, container_index: int) -> LaneProcess:
        """Start one process as `start` does, feed it and collect what it writes: its `collected` tells.

        Raises:
            ExecFailed: as `start`.
        """

    @abstractmethod
    async def end_all(self, processes: list[LaneProcess], grace: Grace) -> None:
        """End these processes with all they started: TERM, `grace`, KILL; return when all have `exited`.

        The caller sets a deadline, and the environment goes afterwards.
        """

    async def usage(self, processes: Sequence[LaneProcess]) -> list[Usage | None]:
        """What each of these takes now; None where that cannot be known."""
        return [None] * len(processes)

    def health(self) -> dict[str, object]:
        """What `health.details.lane` says of this lane."""
        return {"name": self.name}
