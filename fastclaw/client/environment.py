"""What can be asked of one environment: by its own object, or, for `main`, by the client itself.

Knows the shapes of the answers. Sends nothing itself.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import msgspec
from msgspec import UNSET, Struct, UnsetType

from fastclaw import limits
from fastclaw.client.answers import given, shaped
from fastclaw.client.environment_files import EnvironmentFiles
from fastclaw.client.remote_process import RemoteProcess
from fastclaw.errors import InvalidState, IoError, ProtocolError
from fastclaw.runtime import (
    EnvironmentInfo,
    ExecResult,
    ExitReason,
    HealthStatus,
    ProcessInfo,
    RunResult,
)

if TYPE_CHECKING:
    from fastclaw.client.runtime_client import RuntimeClient


class Ran(Struct, frozen=True, kw_only=True):
    """A command that has ended.

    Parameters:
        exit_code, signal, reason, timings, usage: as in the exit record.
        oom_kills, memory, group: as in the exit record; 0 and nothing where they are not in it.
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
    group: dict[str, int] = msgspec.field(default_factory=dict)
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


class _Page(msgspec.Struct, frozen=True):
    processes: list[ProcessInfo]
    next: str | None = None


class EnvironmentCalls(EnvironmentFiles):
    """The calls that mean one environment."""

    def _given(self, **params: Any) -> dict[str, Any]:
        return given(environment=self.environment, **params)

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
                `merge_stderr`, `orphans`, `traceparent`, `tracestate`, as in the contract.

        Where this is cancelled, or no answer comes in time, the runtime is told to take the process back.

        Raises:
            ExecFailed: with the reason why it does not run.
            InvalidParams, InvalidState, IoError.
        """
        params = {**self._given(cmd=[*cmd], env=dict(env or {}) or None, working_dir=working_dir), **extensions}
        return RemoteProcess(self.client, shaped(await self.client.call("exec", params, timeout_s), ExecResult, "exec"))

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
                `keep`, `on_limit`, `drain_ms`, `traceparent`, `tracestate`, as in the contract.

        Where this is cancelled, or no answer comes in time, the runtime is told to end the command with its tree.

        Raises:
            ExecFailed: with the reason why it did not run.
            InvalidParams, InvalidState, IoError.
            MethodNotFound: the runtime does not offer `run`.
        """
        asked = self._given(cmd=[*cmd], env=dict(env or {}) or None, working_dir=working_dir)
        params = {**asked, **extensions, **input_params(input)}
        return ran_of(shaped(await self.client.call("run", params, timeout_s), RunResult, "run"))

    async def health(self) -> HealthStatus:
        """How the runtime is."""
        return shaped(await self.client.call("health", self._given()), HealthStatus, "health")

    async def list(self) -> "list[ProcessInfo]":
        """The live processes, and the ended ones whose record is kept: all of them, however many pages that takes.

        Raises:
            ProtocolError: the runtime goes on and on with the same page.
        """
        page = shaped(await self.client.call("list", self._given()), _Page, "list")
        found, seen = page.processes, set[str]()
        while page.next is not None:
            if page.next in seen:
                raise ProtocolError(f"the runtime's answer to list says next {page.next!r} a second time")
            seen.add(page.next)
            page = shaped(await self.client.call("list", self._given(after=page.next)), _Page, "list")
            found += page.processes
        return found


class Environment(EnvironmentCalls):
    """An environment of a runtime, which ends when it is left.

        async with await rt.environment_start(image="python:3.12") as box:
            done = await box.run(["python", "-V"])

    Parameters:
        client: sends its calls.

    Attributes:
        info: the answer to its start, or to its last reset.
    """

    def __init__(self, client: "RuntimeClient", info: EnvironmentInfo) -> None:
        self._client = client
        self.environment: str = info.environment
        self.info = info

    def __repr__(self) -> str:
        return f"<Environment {self.environment} {self.info.lane} {self.info.image or ''}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def client(self) -> "RuntimeClient":
        """What sends the calls."""
        return self._client

    async def reset(self) -> EnvironmentInfo:
        """Bring it back to the state of its image: what runs in it is killed, what was written is gone.

        Raises:
            StartFailed: nothing new can be had; it is as it was.
            InvalidState: `unknown_environment`, `environment_busy`.
        """
        answer = await self.client.call("environment_reset", self._given(), limits.CLIENT_INITIALIZE_MS / 1000)
        self.info = shaped(answer, EnvironmentInfo, "environment_reset")
        return self.info

    async def aclose(self) -> None:
        """End it with everything in it. Idempotent; nothing happens where the runtime is gone."""
        try:
            await self.client.call("environment_stop", self._given(), limits.CLIENT_SHUTDOWN_MS / 1000)
        except IoError:
            pass
        except InvalidState as error:
            if error.reason not in ("unknown_environment", "shutting_down"):
                raise
