"""What the runtimes of this package have in common: the order in which everything comes up and goes down, and health.

A subclass brings its environment and names the lane; the processes are `ProcessPool`'s. Nothing here knows the wire.
"""

import asyncio
import contextlib
import os
from abc import abstractmethod
from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple

from fastclaw import limits
from fastclaw.errors import InvalidState
from fastclaw.linux import splice
from fastclaw.linux.own_process import host_limits, raise_file_limit
from fastclaw.options import Options, no_templates
from fastclaw.processes.admission import Capacity, capacity
from fastclaw.processes.lane import Lane
from fastclaw.processes.listeners import SocketDirectory
from fastclaw.processes.pool import ProcessPool
from fastclaw.runtime import (
    ExecRequest,
    ExecResult,
    ExitRecord,
    HealthStatus,
    HealthWord,
    InitializeParams,
    InitializeResult,
    ProcessInfo,
    ProcessRuntime,
    RunRequest,
    RunResult,
)
from fastclaw.runtimes.read_options import read_options
from fastclaw.spawner.templates import Plans

_CAPABILITIES = ["wait", "list", "run", "cancel", "timeout_ms", "on_disconnect", "key"]
"""What the pool offers over any lane; the lane adds its own."""


class Environment(NamedTuple):
    """What a subclass has brought up.

    Parameters:
        env: for every process, and for the supervisor to know of.
        working_dir: the workspace as the processes see it.
        containers, max_starting: how starts are spread.
        directory: where a process starts that names none, where there is no workspace; None is where we are ourselves.
        warnings: as `InitializeResult` has them.
    """

    lane: Lane
    env: dict[str, str]
    working_dir: str | None
    containers: int
    max_starting: int
    directory: str | None = None
    warnings: Sequence[str] = ()


def plans(options: Options, workspace: str | None, *, python_path: str | None) -> Plans | None:
    """The environment's templates, for a lane that can have some; None: there are none.

    Parameters:
        workspace: as the processes see it.
        python_path: where a Python inside finds fastclaw/template.py, where it does not know by itself.
    """
    if not options.templates:
        return None
    ready_ms = options.start_timeout_ms * limits.TEMPLATE_START_PERCENT // 100
    return Plans(
        options.templates,
        base_env=options.env,
        working_dir=workspace,
        user=options.user,
        ready_s=ready_ms / 1000,
        python_path=python_path,
    )


class ManagedRuntime(ProcessRuntime):
    """Base of the runtimes of this package: an environment, and a pool of processes in it.

    Which call is allowed when is the harness's affair (`lifecycle`).

    Parameters:
        warnings: the first of what `initialize` answers.
    """

    def __init__(self, warnings: Sequence[str] = ()) -> None:
        self._notes = warnings
        self._setup = contextlib.AsyncExitStack()
        self._environment: Environment | None = None
        self._pool: ProcessPool | None = None
        self._room: Capacity | None = None
        self._sockets: SocketDirectory | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._pool or 'not running'}>"

    # --- what a subclass brings ---

    name: str

    @abstractmethod
    async def _bring_up(
        self, namespace: str, options: Options, sockets: SocketDirectory, setup: contextlib.AsyncExitStack
    ) -> Environment:
        """Set the environment up. What must be undone goes on `setup`, which is unwound even when this fails."""

    def _trouble(self) -> str | None:
        """What is wrong with the environment now, in one line."""
        return None

    def _details(self) -> dict[str, Any]:
        """What `health.details` says of the environment."""
        return {}

    # --- up and down ---

    @property
    def capabilities(self) -> list[str]:
        """What the pool offers over any lane, and what the lane of the environment adds."""
        lane = self._environment.lane.capabilities if self._environment else []
        return list(dict.fromkeys([*_CAPABILITIES, *lane]))

    async def start(self, params: InitializeParams) -> InitializeResult:
        """See `Runtime.start`. One that fails has undone what it did, and may be tried again."""
        options = read_options(params)
        self.stop_timeout_ms = options.shutdown_timeout_ms
        try:
            environment = await self._set_up(params.namespace, options)
        except BaseException:
            await self._tear_down()
            raise
        warnings = [*self._notes, *environment.warnings]
        return InitializeResult(env=environment.env, workspace_root=environment.working_dir, warnings=warnings)

    async def _set_up(self, namespace: str, options: Options) -> Environment:
        raise_file_limit()
        host = host_limits()
        self._sockets = sockets = SocketDirectory()
        self._setup.callback(sockets.close)
        self._environment = environment = await self._bring_up(namespace, options, sockets, self._setup)
        if options.templates and "template" not in environment.lane.capabilities:
            raise no_templates(f"the {environment.lane.name} lane")
        self._room = capacity(host, options.max_processes, environment.lane.files_each)
        self._pool = ProcessPool(
            environment.lane,
            options,
            sockets,
            environment={**options.env, **environment.env},
            working_dir=environment.working_dir,
            base_dir=environment.working_dir or environment.directory or os.getcwd(),
            containers=environment.containers,
            max_starting=environment.max_starting,
            max_live=self._room.processes,
        )
        # Last in, first out: the sockets close before the environment goes.
        self._setup.push_async_callback(self._pool.aclose)
        return environment

    async def stop(self) -> None:
        """See `Runtime.stop`. Idempotent."""
        try:
            if self._pool is not None:
                await self._pool.end_all()
        finally:
            await self._tear_down()

    async def _tear_down(self) -> None:
        self._pool = None
        await asyncio.shield(self._setup.aclose())

    def hasten(self) -> None:
        if self._pool is not None:
            self._pool.hasten()

    async def health(self) -> HealthStatus:
        if self._pool is None or self._environment is None or self._room is None or self._sockets is None:
            return HealthStatus(status="unhealthy", message="not running")
        unreachable = self._sockets.trouble
        trouble = unreachable or self._trouble()
        details = {
            "runtime": self.name,
            "lane": self._environment.lane.health(),
            "relay": splice.kind(),
            "processes": await self._pool.health_now(),
            "bound_by": self._room.binds,
            **self._details(),
        }
        word: HealthWord = "unhealthy" if unreachable else "degraded" if trouble else "healthy"
        return HealthStatus(status=word, message=trouble, details=details)

    # --- processes: what the pool gives is handed on, with no coroutine of its own ---

    @property
    def pool(self) -> ProcessPool:
        """The processes. The harness asks for none before `initialize`; others may.

        Raises:
            InvalidState: `not_initialized`: it is not running.
        """
        if self._pool is None:
            raise InvalidState("call initialize first", "not_initialized")
        return self._pool

    def exec(self, request: ExecRequest) -> Coroutine[Any, Any, ExecResult]:
        return self.pool.exec(request)

    def run(self, request: RunRequest) -> Coroutine[Any, Any, RunResult]:
        return self.pool.run(request)

    def kill(self, process_id: str, grace_ms: int | None = None) -> Coroutine[Any, Any, None]:
        return self.pool.kill(process_id, grace_ms)

    def wait(self, process_id: str, timeout_ms: int | None = None) -> Coroutine[Any, Any, ExitRecord]:
        return self.pool.wait(process_id, timeout_ms)

    def list_processes(self, after: str | None = None) -> Coroutine[Any, Any, list[ProcessInfo]]:
        return self.pool.listed(after)

    async def signal(self, process_id: str, signal: int, *, group: bool = False) -> None:
        self.pool.signal(process_id, signal, group=group)

    async def resize(self, process_id: str, rows: int, columns: int) -> None:
        self.pool.resize(process_id, rows, columns)
