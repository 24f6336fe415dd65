"""One environment: the sandbox in which its processes run, which a reset renews, and their pool, which stays.

Knows neither its neighbours nor the wire.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from msgspec import structs

from fastclaw import environment_limits
from fastclaw.errors import FastclawError, InvalidState, MethodNotFound
from fastclaw.lifecycle import ENVIRONMENT_MOVES, EnvironmentState, Machine, require_usable
from fastclaw.linux import splice
from fastclaw.linux.meter import Takes
from fastclaw.linux.own_process import host_limits
from fastclaw.options import Options, no_templates
from fastclaw.processes.admission import Capacity, HostRoom, capacity
from fastclaw.processes.file_calls import HelperFiles
from fastclaw.processes.pool import ProcessPool
from fastclaw.runtime import EnvironmentInfo, HealthStatus, HealthWord, ListedEnvironment

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from fastclaw.files import Files
    from fastclaw.processes.lane import Usage
    from fastclaw.processes.listeners import SocketDirectory
    from fastclaw.processes.process import Process
    from fastclaw.runtimes.sandbox import Sandbox, SandboxFacts
    from fastclaw.stages import Ledger

logger = logging.getLogger(__name__)

CAPABILITIES = ["wait", "list", "run", "cancel", "timeout_ms", "on_disconnect", "key"]
"""What the pool offers over any lane; the lane adds its own."""


class Environment:
    """An environment of a runtime.

    Parameters:
        name: unique among those that there are.
        runtime: the kind of its sandboxes.
        options: of it alone.
        token, mark: the one that it was asked for with, and the fingerprint of that request.
        sockets: a directory for its processes' sockets.
        room: what it shares with the others.
        notes: the first of its warnings.
        ledger: where the flights of its processes count.

    Attributes:
        pool: its processes; None until it is up.
        machine: its state.
        prefix: of the ids of its processes, once it is up.
        ends_at: Unix time in seconds of the end of its lifetime; None: it has none.
        starting, ending: the tasks that bring it up and take it down, which the host owns.
    """

    def __init__(
        self,
        name: str,
        runtime: str,
        options: Options,
        token: str | None,
        mark: bytes,
        sockets: SocketDirectory,
        room: HostRoom,
        notes: Sequence[str] = (),
        ledger: Ledger | None = None,
    ) -> None:
        self.name, self.runtime, self.options = name, runtime, options
        self.token, self.mark, self.prefix = token, mark, ""
        self.machine = Machine(ENVIRONMENT_MOVES, EnvironmentState.STARTING)
        self.pool: ProcessPool | None = None
        self.ends_at: float | None = None
        self._lifetime: asyncio.TimerHandle | None = None
        self.starting: asyncio.Task[None] | None = None
        self.ending: asyncio.Task[None] | None = None
        self._sockets, self._room, self._notes, self._ledger = sockets, room, notes, ledger
        self._sandbox: Sandbox | None = None
        self._removals: set[asyncio.Task[None]] = set()
        self._renewal: asyncio.Task[Sandbox] | None = None
        self._resetting: asyncio.Task[None] | None = None
        self._capacity: Capacity | None = None
        self._asked_at = time.time()
        room.hold(environment_limits.FILES_PER_ENVIRONMENT)

    def __repr__(self) -> str:
        return f"<Environment {self.name} {self.machine.state.value} {self.pool or ''}>"

    # --- up ---

    def move_in(self, sandbox: Sandbox, prefix: str) -> None:
        """It is up, in a sandbox that is, and that it owns from now on, also where this fails.

        Parameters:
            prefix: for the ids of its processes.

        Raises:
            InvalidParams: `unsupported`: templates on a lane that has none.
        """
        self._sandbox, self.prefix = sandbox, prefix
        facts, options = sandbox.facts, self.options
        if options.templates and "template" not in facts.lane.capabilities:
            raise no_templates(f"the {facts.lane.name} lane")
        self._capacity = capacity(host_limits(), options.max_processes, facts.lane.files_each)
        self.pool = ProcessPool(
            facts.lane,
            options,
            self._sockets,
            prefix=prefix,
            environment=self._variables(facts),
            working_dir=facts.workspace,
            base_dir=facts.directory,
            containers=facts.containers,
            max_starting=facts.max_starting,
            max_live=self._capacity.processes,
            room=self._room,
            ledger=self._ledger,
            name=self.name,
        )
        self.machine.move(EnvironmentState.RUNNING)

    def begin_lifetime(self, on_end: Callable[[], None]) -> None:
        """From now on its lifetime counts, if it has one.

        Parameters:
            on_end: called when that is over, where it was not stopped before.
        """
        lifetime_ms = self.options.lifetime_ms
        if lifetime_ms is not None:
            self.ends_at = time.time() + lifetime_ms / 1000
            self._lifetime = asyncio.get_running_loop().call_later(lifetime_ms / 1000, on_end)

    def _variables(self, facts: SandboxFacts) -> dict[str, str]:
        return {**self.options.env, **facts.env}

    def usable(self) -> ProcessPool:
        """Its processes, for a call that starts one or looks at them.

        Raises:
            InvalidState: `environment_busy`.
        """
        require_usable(self.machine.state, self.name)
        assert self.pool is not None
        return self.pool

    def sandbox(self) -> Sandbox:
        """The one in use.

        Raises:
            InvalidState: `environment_busy`.
        """
        require_usable(self.machine.state, self.name)
        assert self._sandbox is not None
        return self._sandbox

    def files(self) -> Files:
        """Its files.

        Raises:
            MethodNotFound: there is no way to them.
            InvalidState: `environment_busy`.
        """
        pool, facts = self.usable(), self.sandbox().facts
        if facts.files is not None:
            return facts.files
        if "files" not in facts.lane.capabilities:
            raise MethodNotFound(f"the {facts.lane.name} lane offers no files; use exec")
        return HelperFiles(pool)

    # --- reset ---

    async def reset(self, renew: Callable[[], Coroutine[Any, Any, Sandbox]]) -> None:
        """Move into a new sandbox, and have nothing run in the old one, which is removed meanwhile.

        Parameters:
            renew: gives one that is up.

        Raises:
            StartFailed: there is no new one; everything is as it was.
            InvalidState: `environment_busy`; `environment_stopped` meanwhile.
        """
        self.usable()
        self.machine.move(EnvironmentState.RESETTING)
        loop = asyncio.get_running_loop()
        self._renewal = loop.create_task(renew())
        self._resetting = loop.create_task(self._reset(self._renewal))
        await asyncio.shield(self._resetting)  # a caller that leaves does not leave it half done

    async def _reset(self, renewal: asyncio.Task[Sandbox]) -> None:
        pool, old = self.pool, self._sandbox
        assert pool is not None
        assert old is not None
        try:
            await asyncio.wait((renewal,))
            if renewal.cancelled():  # by `stop`
                raise stopped(self.name)
            self._sandbox = new = renewal.result()
            try:
                await pool.end_now(_busy_with_reset(self.name))
                await old.kill()
            finally:
                self._remove(old)
                pool.move(new.facts.lane, self._variables(new.facts))
        finally:
            if self.machine.state is EnvironmentState.RESETTING:
                self.machine.move(EnvironmentState.RUNNING)
        if self.machine.state is not EnvironmentState.RUNNING:
            raise stopped(self.name)

    def _remove(self, sandbox: Sandbox) -> None:
        task = asyncio.get_running_loop().create_task(self._removed(sandbox))
        self._removals.add(task)
        task.add_done_callback(self._removals.discard)

    async def _removed(self, sandbox: Sandbox) -> None:
        try:
            await sandbox.aclose()
        except FastclawError as error:  # the next `initialize` of the namespace removes it
            logger.warning("what environment %s had before its reset is not removed: %s", self.name, str(error))

    # --- down ---

    async def stop(self, why: FastclawError | None = None) -> None:
        """End everything in it and remove it. For one that is up, or could not come up; called once.

        Parameters:
            why: what calls that wait for a start are told; None: that the runtime is shutting down.
        """
        self.machine.move(EnvironmentState.STOPPING)
        if self._lifetime is not None:
            self._lifetime.cancel()
        try:
            await self._end_reset()
            if self.pool is not None:
                await self.pool.end_all(why)
                await asyncio.shield(self.pool.aclose())  # the sockets close before what is behind them
        finally:
            try:
                await asyncio.gather(*self._removals)
                if self._sandbox is not None:
                    await self._sandbox.aclose()
            finally:
                self.machine.move(EnvironmentState.GONE)
                self._room.let_go(environment_limits.FILES_PER_ENVIRONMENT)
                self._room.serve()

    async def _end_reset(self) -> None:
        """One that waits for a new sandbox waits no more; one that has it is finished first."""
        if self._renewal is not None and self._resetting is not None:
            self._renewal.cancel()
            await asyncio.gather(self._resetting, return_exceptions=True)

    def hasten(self) -> None:
        """Cut the grace of a stop short."""
        if self.pool is not None:
            self.pool.hasten()

    # --- what is said of it ---

    @property
    def capabilities(self) -> list[str]:
        """What the pool offers over any lane, and what the lane adds."""
        lane = [] if self._sandbox is None else self._sandbox.facts.lane.capabilities
        return list(dict.fromkeys([*CAPABILITIES, *lane]))

    def info(self) -> EnvironmentInfo:
        """The answer to its start."""
        assert self._sandbox is not None
        facts = self._sandbox.described()
        return EnvironmentInfo(
            environment=self.name,
            lane=facts.lane.name,
            env=dict(facts.env),
            workspace_root=facts.workspace,
            working_dir=facts.directory,
            user=facts.user,
            token=self.token,
            home=facts.home,
            container=facts.container,
            image=facts.image,
            made_by=facts.made_by,
            why_no_clone=facts.why_no_clone,
            capabilities=self.capabilities,
            warnings=[*self._notes, *facts.warnings],
        )

    def listed(self) -> ListedEnvironment:
        """Its line of `environment_list`."""
        state, facts = self.machine.state, None if self._sandbox is None else self._sandbox.described()
        row = ListedEnvironment(
            environment=self.name,
            state=state.value,
            started_at=self._asked_at,
            ends_at=self.ends_at,
            token=self.token,
        )
        if facts is None or self.pool is None:
            return row
        return structs.replace(
            row,
            live=len(self.pool.table.live()),
            lane=facts.lane.name,
            container=facts.container,
            image=facts.image,
            made_by=facts.made_by,
            labels=dict(facts.labels),
        )

    def takes(self) -> Takes:
        """What the kernel has counted of all that is in it."""
        return Takes() if self._sandbox is None else self._sandbox.takes()

    def decisions(self) -> dict[str, int] | None:
        """As `Sandbox.decisions`."""
        return None if self._sandbox is None else self._sandbox.decisions()

    async def usage(self, processes: Sequence[Process]) -> list[Usage | None]:
        """What each of its processes takes; None where that is not known."""
        if self._sandbox is None:
            return [None] * len(processes)
        return await self._sandbox.facts.lane.usage([process.lane_process for process in processes])

    async def health(self) -> HealthStatus:
        """How it is."""
        if self.pool is None or self._sandbox is None or self._capacity is None:
            return HealthStatus(status="unhealthy", message=f"environment {self.name!r} is {self.machine.state.value}")
        unreachable = self._sockets.trouble
        trouble = unreachable or self._sandbox.trouble
        details: dict[str, Any] = {
            "runtime": self.runtime,
            "lane": self._sandbox.facts.lane.health(),
            "relay": splice.kind(),
            "processes": await self.pool.health_now(),
            "bound_by": self._capacity.binds,
            **self._sandbox.details(),
        }
        word: HealthWord = "unhealthy" if unreachable else "degraded" if trouble else "healthy"
        return HealthStatus(status=word, message=trouble, details=details)


def _busy_with_reset(name: str) -> InvalidState:
    """For calls that wait for a start in what a reset ends."""
    return InvalidState(f"environment {name!r} is being reset; try again", "environment_busy")


def stopped(name: str) -> InvalidState:
    """For calls on an environment that ends meanwhile."""
    return InvalidState(f"environment {name!r} was stopped", "environment_stopped")
