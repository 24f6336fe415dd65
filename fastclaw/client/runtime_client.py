"""The supervisor's client: start a runtime, call it, end it.

Owns the runtime's child process and the shapes of its answers. Knows no engine and no particular runtime.
"""

import base64
import binascii
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from fastclaw import limits
from fastclaw.client.remote_process import RemoteProcess
from fastclaw.client.rpc import Child, PendingCalls, Stderr
from fastclaw.errors import FastclawError, ProtocolError
from fastclaw.runtime import ExecResult, ExitReason, ExitRecord, HealthStatus, InitializeResult, ProcessInfo, RunResult


class Ran(Struct, frozen=True, kw_only=True):
    """A command that has ended.

    Parameters:
        exit_code, signal, reason, timings, usage: as in the exit record.
        oom_kills, memory: as in the exit record; 0 and nothing where they are not in it.
        stdout, stderr: what is given of its output: nothing for a key whose run was answered before.
        dropped: bytes of `stdout` and `stderr` that are not given.
        gap_at: after which byte of a stream its missing middle was, for each stream that lacks it.
        incomplete: there may have been more output, which could not be had.
    """

    process_id: str
    exit_code: int | None
    signal: int | None
    reason: ExitReason | None
    timings: dict[str, int]
    usage: dict[str, int] | None
    oom_kills: int = 0
    memory: dict[str, int] = msgspec.field(default_factory=dict)
    stdout: bytes
    stderr: bytes
    dropped: dict[str, int]
    gap_at: dict[str, int] = msgspec.field(default_factory=dict)
    incomplete: bool = False


def ran_of(result: RunResult) -> Ran:
    """The answer of a `run`, unpacked.

    Raises:
        ProtocolError: its base64 is none.
    """
    told = {name: getattr(result, name) for name in Ran.__struct_fields__}
    told["stdout"] = _bytes(result.stdout, result.stdout_base64)
    told["stderr"] = _bytes(result.stderr, result.stderr_base64)
    return Ran(**{name: value for name, value in told.items() if value is not UNSET})


def _bytes(text: str | None, encoded: str | UnsetType) -> bytes:
    if encoded is UNSET:
        return (text or "").encode()
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProtocolError(f"the runtime's answer to run has base64 that is none: {error}") from error


def input_params(data: bytes | str | None) -> dict[str, str]:
    """The params that carry a command's input: as text where it is some."""
    if data is None:
        return {}
    if isinstance(data, str):
        return {"input": data}
    try:
        return {"input": str(data, "utf-8")}
    except UnicodeDecodeError:
        return {"input_base64": base64.b64encode(data).decode()}


log = logging.getLogger(__name__)
Shape = TypeVar("Shape")


class Welcome(InitializeResult, frozen=True, kw_only=True):
    """What a runtime answers to `initialize`.

    Parameters:
        server: its name and version.
        capabilities: the optional parts of the contract that it offers.
    """

    server: dict[str, str] = msgspec.field(default_factory=dict)
    capabilities: list[str] = msgspec.field(default_factory=list)


class _Page(msgspec.Struct, frozen=True):
    processes: list[ProcessInfo]
    next: str | None = None


class RuntimeClient:
    """A runtime extension that runs as a child and is spoken to over its stdin and stdout.

        async with RuntimeClient.spawn(["fastclaw", "serve"], namespace="demo") as rt:
            process = await rt.exec(["cat"])
            out, err = await process.communicate(b"hello")

    Attributes:
        welcome: the answer to `initialize`; None before it.
    """

    def __init__(
        self, command: Sequence[str], namespace: str | None, options: dict[str, Any] | None,
        env: Mapping[str, str] | None, stderr: Stderr,
    ) -> None:  # fmt: skip
        self._command = list(command)
        self._namespace = namespace
        self._options = options
        self._env = env
        self._stderr = stderr
        self._child: Child | None = None
        self._calls: PendingCalls | None = None
        self._extra_shutdown_ms = 0
        self.welcome: Welcome | None = None

    @classmethod
    def spawn(
        cls,
        command: Sequence[str],
        *,
        namespace: str | None = None,
        options: dict[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        stderr: Stderr = None,
    ) -> Self:
        """A client whose runtime starts when the client is entered and ends when it is left.

        Parameters:
            command: argv of the runtime.
            namespace: `initialize` is called on entering with this and `options`; None leaves that to the caller.
            env: the runtime's whole environment; None is this process's own.
            stderr: where the runtime's log goes, as for `subprocess`; None is this process's own stderr.
        """
        return cls(command, namespace, options, env, stderr)

    async def __aenter__(self) -> Self:
        child = Child(on_data=lambda data: calls.feed(data), on_lost=lambda why: calls.lose(why))
        calls = PendingCalls(child.write, child.writable)
        await child.start(self._command, self._env, self._stderr)
        self._child, self._calls = child, calls
        if self._namespace is not None:
            try:
                await self.initialize(self._namespace, self._options)
            except BaseException:
                await child.aclose()
                raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        if self._child is None:
            return f"<RuntimeClient of {self._command[0]}, not entered>"
        return f"<RuntimeClient pid={self._child.pid} {'ended' if self._child.has_ended else 'running'}>"

    async def aclose(self) -> None:
        """End the runtime: `shutdown`, then EOF, then TERM, then KILL, each with its deadline."""
        if self._child is None:
            return
        try:
            if not self._child.has_ended:
                await self._try_shutdown()
        finally:
            await self._child.aclose()

    async def _try_shutdown(self) -> None:
        try:
            await self.shutdown()
        except FastclawError as error:
            log.debug("the runtime did not take shutdown: %s", error)

    @property
    def pid(self) -> int:
        """Process id of the runtime."""
        return self._entered().pid

    @property
    def exit_code(self) -> int | None:
        """How the runtime itself ended, negative for a signal; None while it runs, and where this process ignores
        SIGCHLD: then the kernel does not tell."""
        return None if self._child is None else self._child.code

    @property
    def capabilities(self) -> frozenset[str]:
        """The optional parts of the contract that the runtime offers."""
        return frozenset(self.welcome.capabilities if self.welcome else ())

    async def call(
        self, method: str, params: dict[str, Any] | None = None, timeout_s: float | None = limits.CLIENT_CALL_MS / 1000
    ) -> Any:
        """Any method, as it is on the wire.

        Parameters:
            timeout_s: seconds until `IoError` (`no_answer`); None waits as long as the runtime lives.

        Raises:
            FastclawError: what the runtime answered.
            IoError: it did not, or it is gone.
        """
        assert self._calls is not None, "enter the client first"
        return await self._calls.call(method, params, timeout_s)

    def _entered(self) -> Child:
        assert self._child is not None, "enter the client first"
        return self._child

    async def initialize(self, namespace: str, options: dict[str, Any] | None = None) -> Welcome:
        """Bring the environment up.

        Raises:
            StartFailed, InvalidParams, InvalidState.
        """
        params: dict[str, Any] = {"namespace": namespace, "options": options or {}}
        told_ms = params["options"].get("shutdown_timeout_ms")
        self._extra_shutdown_ms = max(0, told_ms - limits.SHUTDOWN_TIMEOUT_MS) if isinstance(told_ms, int) else 0
        answer = await self.call("initialize", params, limits.CLIENT_INITIALIZE_MS / 1000)
        self.welcome = _shaped(answer, Welcome, "initialize")
        return self.welcome

    async def exec(
        self,
        cmd: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        working_dir: str | None = None,
        timeout_s: float | None = limits.CLIENT_EXEC_MS / 1000,
        **extensions: Any,
    ) -> RemoteProcess:
        """Start a process; it runs when this returns.

        Parameters:
            env: added to, and winning over, the environment's variables.
            working_dir: path inside, relative to the environment's default, which it is if None.
            timeout_s: seconds to wait for the answer.
            extensions: `user`, `stdin`, `timeout_ms`, `on_disconnect`, `key`, `limits`, `tty`, `tty_size`, `template`,
                `merge_stderr`, `orphans`, as in the contract.

        Where this is cancelled, or no answer comes in time, the runtime is told to take the process back.

        Raises:
            ExecFailed: with the reason why it does not run.
            InvalidParams, InvalidState, IoError.
        """
        params = {**_given(cmd=[*cmd], env=dict(env or {}) or None, working_dir=working_dir), **extensions}
        return RemoteProcess(self, _shaped(await self.call("exec", params, timeout_s), ExecResult, "exec"))

    async def run(
        self,
        cmd: Sequence[str],
        *,
        input: bytes | str | None = None,
        env: Mapping[str, str] | None = None,
        working_dir: str | None = None,
        timeout_s: float | None = None,
        **extensions: Any,
    ) -> Ran:
        """Run a command to its end: its exit record, stdout and stderr.

        Parameters:
            input: what it reads on stdin; None is nothing.
            env, working_dir: as in `exec`.
            timeout_s: seconds to wait for the answer; None waits as long as the runtime lives.
            extensions: `user`, `timeout_ms`, `key`, `limits`, `template`, `merge_stderr`, `orphans`, `output_limit`,
                `keep`, `on_limit`, `drain_ms`, as in the contract.

        Where this is cancelled, or no answer comes in time, the runtime is told to end the command with its tree.

        Raises:
            ExecFailed: with the reason why it did not run.
            InvalidParams, InvalidState, IoError.
            MethodNotFound: the runtime does not offer `run`.
        """
        given = _given(cmd=[*cmd], env=dict(env or {}) or None, working_dir=working_dir)
        params = {**given, **extensions, **input_params(input)}
        return ran_of(_shaped(await self.call("run", params, timeout_s), RunResult, "run"))

    async def health(self) -> HealthStatus:
        """How the runtime is."""
        return _shaped(await self.call("health"), HealthStatus, "health")

    async def kill(self, process_id: str, grace_ms: int | None = None) -> None:
        """End a process with its whole tree; back when nothing is left.

        Parameters:
            grace_ms: milliseconds from TERM to KILL; None is the runtime's default, 0 KILL at once.

        Raises:
            InvalidState: `unknown_process`.
        """
        params = _given(process_id=process_id, grace_ms=grace_ms)
        await self.call("kill", params, ((grace_ms or 0) + limits.CLIENT_CALL_MS) / 1000)

    async def wait(self, process_id: str, timeout_ms: int | None = None) -> ExitRecord:
        """How a process ended; with `state` "running" where it has not within `timeout_ms` milliseconds.

        Raises:
            InvalidState: `unknown_process`.
        """
        timeout_s = None if timeout_ms is None else (timeout_ms + limits.CLIENT_CALL_MS) / 1000
        params = _given(process_id=process_id, timeout_ms=timeout_ms)
        return _shaped(await self.call("wait", params, timeout_s), ExitRecord, "wait")

    async def list(self) -> "list[ProcessInfo]":
        """The live processes, and the ended ones whose record is kept: all of them, however many pages that takes.

        Raises:
            ProtocolError: the runtime goes on and on with the same page.
        """
        page = _shaped(await self.call("list"), _Page, "list")
        found, seen = page.processes, set[str]()
        while page.next is not None:
            if page.next in seen:
                raise ProtocolError(f"the runtime's answer to list says next {page.next!r} a second time")
            seen.add(page.next)
            page = _shaped(await self.call("list", {"after": page.next}), _Page, "list")
            found += page.processes
        return found

    async def signal(self, process_id: str, signal: int | str, *, group: bool = False) -> None:
        """Send a signal to a process, by number or name.

        Parameters:
            group: to its whole process group, so also to what it runs: what Ctrl-C does.

        Raises:
            InvalidState: `unknown_process`.
        """
        await self.call("signal", _given(process_id=process_id, signal=signal, group=group or None))

    async def resize(self, process_id: str, rows: int, columns: int) -> None:
        """Give a process's terminal another size.

        Raises:
            InvalidParams: `no_tty`, it was not started with `tty`.
            InvalidState: `unknown_process`.
        """
        await self.call("resize", {"process_id": process_id, "rows": rows, "columns": columns})

    async def shutdown(self) -> None:
        """End every process and take the environment down; the runtime exits after its answer.

        Raises:
            IoError: the runtime is gone, or took longer than `limits.CLIENT_SHUTDOWN_MS` and as much as
                `options.shutdown_timeout_ms` is over its default.
        """
        await self.call("shutdown", None, (limits.CLIENT_SHUTDOWN_MS + self._extra_shutdown_ms) / 1000)

    def close_stdin(self) -> None:
        """End the runtime's input, which is another way to say `shutdown`; `exited` tells when it is through."""
        self._entered().write_eof()

    async def exited(self, timeout_s: float) -> int | None:
        """The runtime's exit code once it ended by itself; None where it has not within `timeout_s` seconds, or as
        `exit_code`."""
        await self._entered().ended(int(timeout_s * 1000))
        return self._entered().code


def _given(**params: Any) -> dict[str, Any]:
    """The params that are not None."""
    return {name: value for name, value in params.items() if value is not None}


def _shaped(answer: Any, shape: type[Shape], method: str) -> Shape:
    try:
        return msgspec.convert(answer, shape)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"the runtime's answer to {method} has the wrong shape: {error}") from error
