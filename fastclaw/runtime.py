"""The words of the contract: the `Runtime` interface and the values that cross it.

The first five methods are the trait `Runtime` of the Rust crate anyclaw-sdk-runtime 0.1.0; `ProcessRuntime` adds
the extensions (run, wait, list, signal). Nothing here does I/O, and nothing here knows of engines, sockets or JSON-RPC.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from msgspec import UNSET, Meta, Struct, UnsetType, field

from fastclaw import environment_limits, limits, telemetry_limits
from fastclaw.errors import InvalidParams, MethodNotFound
from fastclaw.progress import Tell

OnDisconnect = Literal["eof", "hold", "kill"]
ExitReason = Literal["exited", "signaled", "killed", "timeout", "oom", "container_gone", "unknown"]
StreamName = Literal["stdout", "stderr"]
HealthWord = Literal["healthy", "degraded", "unhealthy"]
Orphans = Literal["keep", "kill"]
"""Whether processes that a command leaves running are ended with it."""
Keep = Literal["head", "tail", "ends"]
"""Which part of an output over its limit is given: `ends` is its first and its last half."""
OnLimit = Literal["truncate", "kill"]
"""What becomes of a command whose output is over its limit."""

Milliseconds = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Extent = Annotated[int, Meta(ge=1, le=limits.MAX_TTY_EXTENT)]
"""Rows or columns of a terminal."""
User = Annotated[str, Meta(min_length=1)]
"""A name or `uid[:gid]` inside. An empty one is refused: it would be read as the environment's own user."""
RunTime = Annotated[int, Meta(ge=1, le=2**31 - 1)]
"""Milliseconds a command may run."""
Key = Annotated[str, Meta(min_length=1, max_length=limits.MAX_KEY_BYTES)]
PlainName = Annotated[
    str, Meta(min_length=1, max_length=limits.MAX_NAMESPACE_BYTES, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*\Z")
]
"""Of a namespace or of an environment."""
MAIN = "main"
"""The environment that `initialize` starts, and that is meant where a call names none."""
Limits = Mapping[str, int | float]
"""By name: resource limits, which are whole numbers, and those of a control group (`GroupLimits`)."""
TRACEPARENT = r"^(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$"
_MEMBER = r"[a-z0-9][a-z0-9_*/@\-]{0,255}=[ -+\--<>-~]{0,255}[!-+\--<>-~]"
TRACESTATE = rf"^{_MEMBER}(?:[ \t]*,[ \t]*{_MEMBER}){{0,31}}$"
"""What W3C Trace Context, level 1, allows (https://www.w3.org/TR/trace-context-1/)."""
Traceparent = Annotated[str, Meta(extra_json_schema={"pattern": TRACEPARENT})]
Tracestate = Annotated[
    str, Meta(extra_json_schema={"pattern": TRACESTATE, "maxLength": telemetry_limits.TRACESTATE_BYTES})
]
"""Looked at by `params.trace_of`, which says what is wrong with one in words."""
OutputBytes = Annotated[int, Meta(ge=0, le=limits.MAX_RUN_OUTPUT_BYTES)]

_TTY_SIZE = (limits.TTY_ROWS, limits.TTY_COLUMNS)
_OUTPUT_LIMIT, _DRAIN_MS = limits.RUN_OUTPUT_LIMIT_BYTES, limits.DRAIN_MS
PoolKinds = Annotated[list[dict[str, Any]], Meta(max_length=environment_limits.MAX_POOL_KINDS)]
"""What is kept ready: each an environment's options with its `size` (`options.PoolKind`)."""


class InitializeParams(Struct, frozen=True, kw_only=True):
    """What `start` is given.

    Parameters:
        namespace: the owner's name for this environment, unique per host (`[A-Za-z0-9][A-Za-z0-9_.-]*`).
        options: the runtime's own settings, not looked at by the harness.
    """

    namespace: PlainName
    options: dict[str, Any] = field(default_factory=dict)


class InitializeResult(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What `start` gives back.

    Parameters:
        env: environment variables for every process.
        workspace_root: where the workspace is inside.
        warnings: where the environment differs from what was asked for or is usual, each in a line with the reason.
    """

    env: dict[str, str] = field(default_factory=dict)
    workspace_root: str | None = None
    warnings: list[str] = field(default_factory=list)


MadeBy = Literal["engine", "clone"]
"""Who made the container of an environment: the engine, or fastclaw after an engine's container of the same kind."""


class EnvironmentRequest(Struct, frozen=True, kw_only=True):
    """One environment to start.

    Parameters:
        environment: its name; None takes one that is free.
        token: idempotency token: a second start with the same token answers for the first one's environment.
        options: as `initialize` has them, for this environment alone.
        progress: whether it is told how the pull of its image comes on.
        traceparent, tracestate: the trace that its start belongs to; its processes have one of their own.
    """

    environment: PlainName | None = None
    token: Key | None = None
    options: dict[str, Any] = field(default_factory=dict)
    progress: bool = False
    traceparent: Traceparent | None = None
    tracestate: Tracestate | None = None


class EnvironmentInfo(InitializeResult, frozen=True, kw_only=True, omit_defaults=True):
    """An environment that is up.

    Parameters:
        environment: its name.
        lane: how processes are started in it.
        working_dir: where a process starts that names no directory, as an absolute path inside.
        user: who a process is that names no user: `uid:gid` inside, or as it was asked for where that is not known.
        token: the one that it was started with.
        home: that user's home directory, where it is known.
        container: name of its container, where it is one.
        image: what that was made of.
        made_by: who made the container.
        why_no_clone: why it was not cloned, in one line.
        capabilities: the optional parts of the contract that there are in it.
    """

    environment: str
    lane: str
    working_dir: str
    user: str
    token: str | None = None
    home: str | None = None
    container: str | None = None
    image: str | None = None
    made_by: MadeBy | None = None
    why_no_clone: str | None = None
    capabilities: list[str]


class ListedEnvironment(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of `environment_list`.

    Parameters:
        state: a word of `lifecycle.EnvironmentState`.
        started_at: Unix time in seconds at which it was asked for.
        ends_at: the same of the end of its lifetime, where it has one.
        live: processes that run in it.
        token: the one that it was started with.
        container, image, lane, made_by: as in `EnvironmentInfo`, once it is up.
        labels: what its container is found by; a clone's are known to nobody but fastclaw.
    """

    environment: str
    state: str
    started_at: float
    ends_at: float | None = None
    live: int = 0
    token: str | None = None
    lane: str | None = None
    container: str | None = None
    image: str | None = None
    made_by: MadeBy | None = None
    labels: dict[str, str] = field(default_factory=dict)


class GroupLimits(NamedTuple):
    """What a command may have that has a control group of its own, with all that it starts. None: no limit of its own.

    Parameters:
        memory_bytes: memory, swap included.
        cpus: processor time, in processors.
        pids: processes and threads.
    """

    memory_bytes: int | None = None
    cpus: float | None = None
    pids: int | None = None

    @property
    def names(self) -> list[str]:
        """Of those that there are."""
        return [name for name, value in zip(self._fields, self, strict=True) if value is not None]


class ExecRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One process to start.

    Parameters:
        cmd: argv; `cmd[0]` is looked up in PATH inside the environment.
        env: added to (and winning over) the environment's own variables.
        working_dir: path inside, relative to the default directory: the workspace root, or else the image's own; None
            is that directory itself.
        user: name or `uid[:gid]` inside; None is the environment's own user.
        stdin: False gives the process an empty stdin.
        timeout_ms: run time after which the process tree is killed; None is no limit.
        on_disconnect: what a client that closes its connection means for the process.
        key: idempotency key: a second exec with the same key answers for the first one's process.
        limits: resource limits by name (`nofile`, …), where the lane offers them, and `memory_bytes`, `cpus`,
            `pids` for a control group of its own (`GroupLimits`), where the environment offers them.
        tty: a pseudo-terminal instead of pipes, where the lane offers it.
        tty_size: its rows and columns; nothing without `tty`.
        template: forked from this one of `options.templates`, where the lane offers it; `cmd` is the worker's argv.
        merge_stderr: what it writes to stderr goes to stdout, in the order of its writes; stderr is at its end at once.
        orphans: whether what it leaves running is ended when the command itself has ended.
        environment: in which it runs; None is `main`.
        traceparent, tracestate: the trace that it belongs to (W3C Trace Context), handed on as variables.
    """

    cmd: Annotated[list[str], Meta(min_length=1)]
    env: dict[str, str] = field(default_factory=dict)
    working_dir: str | None = None
    user: User | None = None
    stdin: bool = True
    timeout_ms: RunTime | None = None
    on_disconnect: OnDisconnect = "eof"
    key: Key | None = None
    limits: Limits = field(default_factory=dict)
    tty: bool = False
    tty_size: tuple[Extent, Extent] = _TTY_SIZE
    template: str | None = None
    merge_stderr: bool = False
    orphans: Orphans = "keep"
    environment: str | None = None
    traceparent: Traceparent | None = None
    tracestate: Tracestate | None = None


class RunRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One command to run to its end, its output to be given back with the exit record.

    Parameters:
        cmd, env, working_dir, user, timeout_ms, limits, template, merge_stderr, orphans: as in `ExecRequest`.
        key: idempotency key: a second run with the same key joins one that is in flight; later it gets the record.
        input: what the command reads on stdin; None is nothing.
        input_base64: the same for what is no text. At most one of the two.
        output_limit: bytes of each stream that are given back.
        keep: which part of a longer one that is.
        on_limit: whether a longer one ends the command with its tree.
        drain_ms: how long after the exit a stream is still read that something else than the command holds open.
        environment: in which it runs; None is `main`.
        traceparent, tracestate: as in `ExecRequest`.
    """

    cmd: Annotated[list[str], Meta(min_length=1)]
    env: dict[str, str] = field(default_factory=dict)
    working_dir: str | None = None
    user: User | None = None
    timeout_ms: RunTime | None = None
    key: Key | None = None
    limits: Limits = field(default_factory=dict)
    template: str | None = None
    merge_stderr: bool = False
    orphans: Orphans = "keep"
    input: str | None = None
    input_base64: str | None = None
    output_limit: OutputBytes = _OUTPUT_LIMIT
    keep: Keep = "ends"
    on_limit: OnLimit = "truncate"
    drain_ms: Milliseconds = _DRAIN_MS
    environment: str | None = None
    traceparent: Traceparent | None = None
    tracestate: Tracestate | None = None


class ExecResult(Struct, frozen=True, kw_only=True):
    """A process that runs (or ran): its id and the two Unix sockets that listen for its client."""

    process_id: str
    stdio_addr: str
    stderr_addr: str


class HealthStatus(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the runtime is, in one word; `message` says why in one line, `details` in numbers."""

    status: HealthWord
    message: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


class ExitRecord(Struct, frozen=True, kw_only=True):
    """How a process ended, or `state: "running"` where it has not yet.

    Parameters:
        exit_code: None when a signal ended it, or when it cannot be known.
        signal: the number, when a signal ended it.
        reason: why it ended; None while it runs.
        timings: microseconds from the request's arrival to each stage that was reached, by its name.
        usage: `user_us`, `system_us`, `max_rss_kb`; None where the lane cannot tell.
        gap: present and True when a client left output unread in its socket, which is lost.
        oom_kills: present where the kernel's out-of-memory killer was at work in the environment during its life: how
            many processes of the environment it killed.
        memory: with `oom_kills`: `limit_bytes` and `peak_bytes` of the environment, where they are known; of the
            command's own control group where it has a limit of memory, and then `oom_kills` is of that as well.
        group: present where it had a control group of its own: what was counted there, by the limits that it had.
        error: present where it was a stream of a file and failed: `reason`, `errno` (or None) and `path`.
    """

    process_id: str
    state: Literal["running", "exited"]
    exit_code: int | None = None
    signal: int | None = None
    reason: ExitReason | None = None
    timings: dict[str, int] = field(default_factory=dict)
    usage: dict[str, int] | None = None
    gap: bool | UnsetType = UNSET
    oom_kills: int | UnsetType = UNSET
    memory: dict[str, int] | UnsetType = UNSET
    group: dict[str, int] | UnsetType = UNSET
    error: dict[str, str | int | None] | UnsetType = UNSET


class RunResult(ExitRecord, frozen=True, kw_only=True):
    """How a command ended, and what it wrote.

    Parameters:
        stdout, stderr: text; None where `*_base64` is there instead, and for a key whose run was answered before.
        stdout_base64, stderr_base64: present where that stream is no UTF-8.
        dropped: bytes of `stdout` and `stderr` that were written and are not given.
        gap_at: present where the middle of a stream is missing: after which byte of what is given.
        incomplete: present and True where what it wrote could not be collected to its end.
    """

    stdout: str | None = None
    stderr: str | None = None
    stdout_base64: str | UnsetType = UNSET
    stderr_base64: str | UnsetType = UNSET
    dropped: dict[str, int] = field(default_factory=lambda: {"stdout": 0, "stderr": 0})
    gap_at: dict[str, int] | UnsetType = UNSET
    incomplete: bool | UnsetType = UNSET


class ProcessInfo(Struct, frozen=True, kw_only=True):
    """One line of `list`.

    Parameters:
        cmd: its command line, or the beginning of a long one.
        cmd_truncated: present and True where that is so.
        started_at: Unix time in seconds.
        blocked: outputs that are full while no client takes from them, so that their writers wait; left out where
            there are none.
    """

    process_id: str
    state: Literal["running", "exited"]
    cmd: list[str]
    cmd_truncated: bool | UnsetType = UNSET
    started_at: float
    exit_code: int | None = None
    signal: int | None = None
    reason: ExitReason | None = None
    blocked: list[StreamName] | UnsetType = UNSET


class Runtime(ABC):
    """An execution environment that starts processes. Implement this and serve it with `RuntimeHarness`.

    Errors are raised as `fastclaw.errors.RuntimeSdkError`; anything else is a bug and reaches the supervisor as
    `internal` without its text.

    Attributes:
        stop_timeout_ms: how long `stop` may take; then it is left alone.
    """

    stop_timeout_ms: int = limits.SHUTDOWN_TIMEOUT_MS

    @property
    def control(self) -> str | None:
        """Where its control socket is, by which it can be looked at; None: it has none."""
        return None

    @property
    def capabilities(self) -> list[str]:
        """Names of the optional parts this runtime offers, as `initialize` reports them."""
        return []

    @abstractmethod
    async def start(self, params: InitializeParams) -> InitializeResult:
        """Bring the environment up. Called once.

        Raises:
            StartFailed: the environment cannot be had; whatever was set up is taken down by `stop`.
            InvalidParams: an option is unknown or has the wrong shape.
        """

    @abstractmethod
    async def exec(self, request: ExecRequest) -> ExecResult:
        """Start a process; called concurrently. Returns once the command really runs and its sockets listen.

        Where its task is cancelled, the process is ended with all that it started before the cancellation goes on.

        Raises:
            ExecFailed: the command did not start.
        """

    @abstractmethod
    async def health(self) -> HealthStatus:
        """How it is. Never fails, never waits for an exec."""

    @abstractmethod
    async def stop(self) -> None:
        """End every process and remove everything that `start` and `exec` set up. Safe after a failed `start`."""

    @abstractmethod
    async def kill(self, process_id: str, grace_ms: int | None = None) -> None:
        """End one process with everything it started; return when nothing is left of it.

        Parameters:
            grace_ms: time between TERM and KILL; None is the runtime's default, 0 is KILL at once.

        Raises:
            InvalidState: `unknown_process`.
        """

    def hasten(self) -> None:  # noqa: B027 - optional: a stop without grace periods cannot be cut short
        """Cut a `stop` that is under way short: no more grace, but still nothing left behind."""


class ProcessRuntime(Runtime):
    """A runtime that also offers the extensions wait, list and signal; run, and resize where it has terminals."""

    async def run(self, request: RunRequest) -> RunResult:
        """Run a command to its end; called concurrently. Returns once it has ended and its output is collected.

        Where its task is cancelled, the command is ended with all that it started before the cancellation goes on.

        Raises:
            ExecFailed: the command did not start, or `overloaded`: all runs together have too much output.
            MethodNotFound: this runtime has no `run`.
        """
        raise MethodNotFound("this runtime offers no run; use exec", method="run")

    @abstractmethod
    async def wait(self, process_id: str, timeout_ms: int | None = None) -> ExitRecord:
        """The exit record, once there is one or `timeout_ms` has passed (then `state` is `running`)."""

    @abstractmethod
    async def list_processes(self, after: str | None = None) -> list[ProcessInfo]:
        """The live processes and the ended ones whose record is kept, in an order that stays.

        Parameters:
            after: only those that come after the process of this id, which need not be there any more.

        Raises:
            InvalidParams: it never was one of this runtime's.
        """

    @abstractmethod
    async def signal(self, process_id: str, signal: int, *, group: bool = False) -> None:
        """Send a signal to the process itself. A process that ended already is left alone.

        Parameters:
            group: to all of its process group: also to what it runs and waits for, as Ctrl-C at a terminal does.
        """

    async def resize(self, process_id: str, rows: int, columns: int) -> None:
        """Give a process's terminal another size, which it hears of by SIGWINCH. Nothing where it ended already.

        Raises:
            InvalidParams: `no_tty`, it has no terminal.
        """
        raise InvalidParams("this runtime offers no terminals", "no_tty", path="$.process_id")


class EnvironmentRuntime(ProcessRuntime):
    """A runtime of many environments that share nothing. `exec` and `run` name theirs in the request."""

    @abstractmethod
    async def environment_start(self, request: EnvironmentRequest, tell: Tell | None = None) -> EnvironmentInfo:
        """Bring one more environment up; called concurrently. One that fails, or is cancelled, leaves nothing.

        Parameters:
            tell: hears how the pull of its image comes on.

        Raises:
            StartFailed: the environment cannot be had.
            InvalidParams: an option is unknown or has the wrong shape; the token was used with other options.
            InvalidState: `environment_exists`: the name is taken; `environment_stopped` while it came up.
        """

    @abstractmethod
    async def environment_stop(self, name: str) -> None:
        """End one with everything in it; return when nothing of it is left.

        Raises:
            InvalidState: `unknown_environment`.
        """

    @abstractmethod
    async def environment_reset(self, name: str) -> EnvironmentInfo:
        """Bring one back to the state of its image: every process ends, with the reason `killed`, and what was written
        is gone, but for directories of the host.

        Raises:
            StartFailed: nothing new can be had; the environment is as it was.
            InvalidState: `unknown_environment`, `environment_busy`, `environment_stopped` meanwhile.
        """

    @abstractmethod
    def environment_list(self) -> list[ListedEnvironment]:
        """All that there are, those on their way up or down too, in the order of their starts."""

    @abstractmethod
    async def pool_set(self, kinds: list[dict[str, Any]]) -> None:
        """Keep other environments ready than before.

        Parameters:
            kinds: options with a `size`, for all that are kept from now on.

        Raises:
            InvalidParams: as `environment_start`.
        """

    @abstractmethod
    async def health(self, environment: str | None = None) -> HealthStatus:
        """How one is; None: how `main` is, and what all have in common.

        Raises:
            InvalidState: `unknown_environment`.
        """

    @abstractmethod
    async def list_processes(self, after: str | None = None, environment: str | None = None) -> list[ProcessInfo]:
        """As `ProcessRuntime.list_processes`, of one environment.

        Raises:
            InvalidState: `unknown_environment`.
        """
