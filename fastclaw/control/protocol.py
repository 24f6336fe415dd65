"""What goes over the control socket: one JSON object on a line each way, answers in the order of the requests.

A request says what it asks for in `ask`, an answer what it is in `answer`. Times are seconds since the epoch, sizes
bytes, processor time microseconds. What cannot be known is left out, and a screen shows `-` there.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from fastclaw import telemetry_limits
from fastclaw.errors import ProtocolError
from fastclaw.runtime import ExitReason, StreamName

Sort = Literal["age", "command", "environment", "cpu", "memory", "time", "bytes"]
"""What rows are put in order by."""

BY_USAGE = frozenset[Sort]({"cpu", "memory", "time", "bytes"})
"""Those for which all processes have to be measured, and not only those that are shown."""

Offset = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Rows = Annotated[int, Meta(ge=0, le=telemetry_limits.CONTROL_ROWS)]


# --- what is asked ---


class AskSnapshot(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="ask", tag="snapshot"):
    """How the runtime is, and a page of its environments.

    Parameters:
        offset, limit: which environments, in the order of their starts; only of these usage is read.
        names: only of these, where they are there.
    """

    offset: Offset = 0
    limit: Rows = telemetry_limits.CONTROL_ROWS
    names: Annotated[list[str], Meta(max_length=telemetry_limits.CONTROL_ROWS)] | None = None


class AskProcesses(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="ask", tag="processes"):
    """A page of the processes. Only of those on it usage is read, and whether they are blocked.

    Parameters:
        sort: the order, the largest or youngest first; text from A to Z.
        reverse: the other way round.
        group: by environment first.
        filter: only those with this text in their command, id or environment, whatever its case.
        environment: only those of this one.
        ended: those too that have ended and whose record is kept.
    """

    offset: Offset = 0
    limit: Rows = telemetry_limits.CONTROL_ROWS
    sort: Sort = "age"
    reverse: bool = False
    group: bool = False
    filter: Annotated[str, Meta(max_length=telemetry_limits.CONTROL_TEXT_CHARS)] = ""
    environment: str | None = None
    ended: bool = False


class AskKill(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="ask", tag="kill"):
    """End a process with its tree, as the method `kill` of the contract does."""

    process_id: str
    grace_ms: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None


Ask = AskSnapshot | AskProcesses | AskKill


# --- what is answered ---


class EnvironmentRow(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An environment, and what it takes.

    Parameters:
        environment, state, lane, container, image, started_at, live: as in `environment_list`.
        waiting, starting: starts that wait, and that are on their way.
        cpu_us: processor time since its container's start.
        cpu_percent: of one processor, between this client's last two looks at it.
        memory_limit_bytes: what it may have.
        network_in_bytes, network_out_bytes: of its network devices, or through the egress proxy where there are none.
        block_in_bytes, block_out_bytes: read from and written to disks.
        pids: processes and threads in it, ours included.
        decisions: of the egress proxy: how many connections were `allowed`, `denied` and `failed`.
    """

    environment: str
    state: str
    started_at: float
    runtime: str
    lane: str | None = None
    container: str | None = None
    image: str | None = None
    live: int = 0
    waiting: int = 0
    starting: int = 0
    cpu_us: int | None = None
    cpu_percent: float | None = None
    memory_bytes: int | None = None
    memory_limit_bytes: int | None = None
    network_in_bytes: int | None = None
    network_out_bytes: int | None = None
    block_in_bytes: int | None = None
    block_out_bytes: int | None = None
    pids: int | None = None
    decisions: dict[str, int] | None = None


class StartLatency(Struct, frozen=True, kw_only=True):
    """How long the starts of commands took that have ended meanwhile.

    Parameters:
        count: how many commands.
        mean_us: from the request to the running command.
    """

    count: int
    mean_us: float


class Snapshot(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="answer", tag="snapshot"):
    """How a runtime is.

    Parameters:
        at: when this was so.
        pid: the runtime's.
        states: how many environments there are in each state.
        environments: those of the page.
        total: how many there are.
        live, waiting, starting: as in `EnvironmentRow`, of all environments.
        decisions: the same, and of all that there ever were; what never came up is left out.
        pool: as `health.details.pool`.
        latency: of starts, since this client's last look or the runtime's start; left out where none ended since.
    """

    at: float
    pid: int
    version: str
    namespace: str
    started_at: float
    states: dict[str, int]
    environments: list[EnvironmentRow]
    total: int
    live: int = 0
    waiting: int = 0
    starting: int = 0
    pool: dict[str, Any] = field(default_factory=dict)
    decisions: dict[str, int] = field(default_factory=dict)
    latency: StartLatency | None = None


class ProcessRow(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A process.

    Parameters:
        command: its command line, or the beginning of a long one.
        blocked: outputs that are full while no client takes from them.
        cpu_us: processor time of its tree as it is now, children included that have ended and were waited for.
        cpu_percent: of one processor, between this client's last two looks at it.
        memory_bytes: resident memory of its tree; what processes share counts for each.
        processes: in its tree.
        in_bytes, out_bytes: that went through its streams.
    """

    process_id: str
    environment: str
    command: str
    state: Literal["running", "exited"]
    started_at: float
    is_run: bool = False
    exit_code: int | None = None
    signal: int | None = None
    reason: ExitReason | None = None
    blocked: list[StreamName] = field(default_factory=list)
    cpu_us: int | None = None
    cpu_percent: float | None = None
    memory_bytes: int | None = None
    processes: int | None = None
    in_bytes: int | None = None
    out_bytes: int | None = None


class ProcessRows(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="answer", tag="processes"):
    """A page of processes.

    Parameters:
        at: when this was so.
        total: how many there are that fit the filter.
        offset: of the first row: less than was asked for where there are no longer so many.
        measured_at: of an order by usage: when all were measured last.
    """

    at: float
    total: int
    offset: int
    rows: list[ProcessRow]
    measured_at: float | None = None


class Killed(Struct, frozen=True, kw_only=True, tag_field="answer", tag="killed"):
    """Nothing is left of the process."""

    process_id: str


class Refusal(Struct, frozen=True, kw_only=True, tag_field="answer", tag="refusal"):
    """Why there is no other answer. `reason`: as in errors of the contract."""

    message: str
    reason: str


Answer = Snapshot | ProcessRows | Killed | Refusal

_asks = msgspec.json.Decoder(Ask)
_answers = msgspec.json.Decoder(Answer)


def read_ask(line: bytes) -> Ask:
    """A request.

    Raises:
        ProtocolError: it is none.
    """
    try:
        return _asks.decode(line)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"no request of the control socket: {error}") from error


def read_answer(line: bytes) -> Answer:
    """An answer.

    Raises:
        ProtocolError: it is none.
    """
    try:
        return _answers.decode(line)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"what answers is no fastclaw, or one of another version: {error}") from error


def line_of(message: Ask | Answer) -> bytes:
    """As it is sent."""
    return msgspec.json.encode(message) + b"\n"
