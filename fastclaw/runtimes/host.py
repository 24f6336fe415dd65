"""The runtime that `fastclaw serve` serves: many environments in one process, which share nothing that they can see.

Owns their names, tokens and lifetimes, and what they have in common: the directory of the sockets, the room for
processes, and a factory for each kind of sandbox. What is in an environment is `environment`'s affair.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import os
import secrets
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from fastclaw import __version__, environment_limits, stages
from fastclaw.control.socket import CONTROL_NAME, ControlSocket
from fastclaw.errors import FastclawError, InvalidParams, InvalidState, MethodNotFound, StartFailed
from fastclaw.files import FileRuntime
from fastclaw.images import ImageRuntime
from fastclaw.linux.own_process import host_limits, raise_file_limit
from fastclaw.options import INHERITED, HostOptions, Options, PoolKind
from fastclaw.params import trace_of
from fastclaw.processes.admission import HostRoom, host_room
from fastclaw.processes.listeners import SocketDirectory
from fastclaw.processes.starts import KeyedCalls, require_same
from fastclaw.processes.table import unknown_process
from fastclaw.runtime import (
    MAIN,
    EnvironmentRequest,
    EnvironmentRuntime,
    HealthStatus,
    InitializeResult,
)
from fastclaw.runtimes.choose import Chooser, factory_of, require_known
from fastclaw.runtimes.environment import CAPABILITIES, Environment, stopped
from fastclaw.runtimes.read_options import read_options
from fastclaw.runtimes.ready_pool import ReadyPool
from fastclaw.runtimes.watched import HostView
from fastclaw.telemetry.metrics import Counts
from fastclaw.telemetry.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from fastclaw.files import Files
    from fastclaw.images import BuildImage, ImageResult, LoadedImages, LoadImages, PullImage
    from fastclaw.processes.pool import ProcessPool
    from fastclaw.progress import Tell
    from fastclaw.runtime import (
        EnvironmentInfo,
        ExecRequest,
        ExecResult,
        ExitRecord,
        InitializeParams,
        ListedEnvironment,
        ProcessInfo,
        RunRequest,
        RunResult,
    )
    from fastclaw.runtimes.sandbox import ImageStore, Sandbox, SandboxFactory
    from fastclaw.stages import Flight

logger = logging.getLogger(__name__)

FROM_POOL = "pool"
"""The lane of starts that took a ready sandbox; others have what made it, or the name of the runtime."""

OPTIONS = "$.options"
"""Where an environment's options are in most params."""


class EnvironmentHost(EnvironmentRuntime, FileRuntime, ImageRuntime):
    """Environments by name, of any kind.

    Parameters:
        runtime: taken where `options.runtime` is left out or `auto`.
        control: taken where `options.control` is left out or False.

    Attributes:
        telemetry: how long execs, runs and starts of environments took.
    """

    def __init__(self, runtime: str = "auto", control: bool | str = False) -> None:
        self._chooser, self._default_control = Chooser(runtime), control
        self._environments: dict[str, Environment] = {}
        self._by_token: dict[str, Environment] = {}
        self._by_prefix: dict[str, Environment] = {}
        self._factories: dict[str, SandboxFactory] = {}
        self._tasks: set[asyncio.Future[Any]] = set()
        self._tokens = KeyedCalls(self._own, self._take_back, "token")
        self._inherited: dict[str, Any] = {}
        self._numbers = itertools.count(1)
        self._namespace = ""
        self._engine: str | None = None
        self._sockets: SocketDirectory | None = None
        self._room: HostRoom | None = None
        self._ready: ReadyPool | None = None
        self.telemetry = Telemetry(self._counts, logger.warning)
        self._control: ControlSocket | None = None

    def __repr__(self) -> str:
        state = "not running" if self._sockets is None else self._namespace
        return f"<{type(self).__name__} {state}, {len(self._environments)} environments>"

    # --- up and down ---

    @property
    def capabilities(self) -> list[str]:
        """What there is in `main`, or in any environment where there is no `main`, and that there are many."""
        main = self._environments.get(MAIN)
        images = ["images"] if self._engine is not None else []
        return [*(CAPABILITIES if main is None else main.capabilities), "environments", *images]

    async def start(self, params: InitializeParams) -> InitializeResult:
        """See `Runtime.start`. One that fails has undone what it did, and may be tried again."""
        require_known(params.options)
        options = read_options(params.options, HostOptions)
        self._inherited = {name: params.options[name] for name in INHERITED if name in params.options}
        self.stop_timeout_ms = options.shutdown_timeout_ms
        self._namespace = params.namespace
        self._engine = self._chooser.engine(self._inherited)
        try:
            raise_file_limit()
            self._sockets, self._room = SocketDirectory(), host_room(host_limits())
            self._ready = ReadyPool(self._factory, self._room)
            await self.telemetry.open(options)
            await self._listen(options.control or self._default_control)
            kinds = self._kinds(options.pool, "$.options.pool")
            info = await self._start_main(params.options) if options.environment else InitializeResult()
            self._ready.keep(kinds)
            return info
        except BaseException:
            await self.stop()
            raise

    async def _listen(self, control: bool | str) -> None:
        """Have a control socket, where one is wanted: at a path, or among the sockets of processes."""
        if not control:
            return
        assert self._sockets is not None
        assert self._ready is not None
        usual = f"{self._sockets.path}/{CONTROL_NAME}"
        path = control if isinstance(control, str) else usual
        view = HostView(
            *(self._namespace, self._environments, self._counts, self._ready.health, self.telemetry.latency, self.kill)
        )
        self._control = ControlSocket(path, view)
        await self._control.start()
        if path != usual:
            os.symlink(path, usual)  # by which it is found

    @property
    def control(self) -> str | None:
        return None if self._control is None else self._control.path

    async def _start_main(self, given: dict[str, Any]) -> EnvironmentInfo:
        return await self._start(EnvironmentRequest(environment=MAIN, options=options_of(given)))

    async def stop(self) -> None:
        """See `Runtime.stop`. Idempotent."""
        if self._control is not None:
            await self._control.aclose()
            self._control = None
        environments = list(self._environments.values())
        try:
            await _gather_all(
                [
                    *(self._end(environment, None) for environment in environments),
                    *([] if self._ready is None else [asyncio.ensure_future(self._ready.aclose())]),
                ]
            )
        finally:
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.shield(self._tear_down())

    async def _tear_down(self) -> None:
        factories = list(self._factories.values())
        self._factories.clear()
        try:
            await _gather_all(asyncio.ensure_future(factory.aclose()) for factory in factories)
        finally:
            if self._sockets is not None:
                self._sockets.close()
            self._sockets = self._room = self._ready = None
            await self.telemetry.aclose()

    def hasten(self) -> None:
        for environment in self._environments.values():
            environment.hasten()

    # --- environments ---

    async def environment_start(self, request: EnvironmentRequest, tell: Tell | None = None) -> EnvironmentInfo:
        """See `EnvironmentRuntime.environment_start`."""
        token = request.token
        if token is None:
            return await self._start(request, tell=tell)
        mark = _fingerprint(request)
        if not await self._tokens.has(token) and (known := self._by_token.get(token)) is not None:
            require_same(known.mark, mark, "token")
            if known.ending is not None:
                raise stopped(known.name)
            known.usable()
            return known.info()
        info: EnvironmentInfo = await self._tokens.join(token, mark, lambda: self._start(request, mark, tell))
        return info

    async def _start(self, request: EnvironmentRequest, mark: bytes = b"", tell: Tell | None = None) -> EnvironmentInfo:
        flight = stages.present(stages.ENVIRONMENT_STAGES)
        flight.trace = trace_of(request)
        environment = self._admit(request, mark)
        flight.subject, flight.lane, flight.ledger = environment.name, environment.runtime, self.telemetry.ledger
        self.telemetry.ledger.began(flight, flight.method)
        flight.reach(stages.ADMITTED)
        self._environments[environment.name] = environment
        if request.token is not None:
            self._by_token[request.token] = environment
        environment.starting = asyncio.get_running_loop().create_task(self._bring_up(environment, tell, flight))
        try:
            await asyncio.wait((environment.starting,))
            if environment.ending is None or not environment.starting.cancelled():
                environment.starting.result()
            if environment.ending is not None:  # by its `environment_stop`, perhaps in this turn
                raise stopped(environment.name)
            environment.begin_lifetime(lambda: self._lifetime_over(environment))
            flight.end("ready")
            return environment.info()
        except BaseException as error:
            await asyncio.shield(self._end(environment, stopped(environment.name)))
            flight.end(stages.outcome_of(error))
            raise

    def _admit(self, request: EnvironmentRequest, mark: bytes) -> Environment:
        """One that is not up yet: its name is free, and its options are some."""
        if self._sockets is None or self._room is None:
            raise InvalidState("call initialize first", "not_initialized")
        given = {**self._inherited, **request.options}
        runtime, notes = self._chooser.choose(given)
        options = read_options(given, Options)
        name = request.environment or self._free_name()
        if name in self._environments:
            text = f"there is an environment {name!r}; stop it, or take another name"
            raise InvalidState(text, "environment_exists")
        if len(self._environments) >= environment_limits.MAX_ENVIRONMENTS:
            raise StartFailed(f"there are {environment_limits.MAX_ENVIRONMENTS} environments; end one", "overloaded")
        return Environment(
            name, runtime, options, request.token, mark, self._sockets, self._room, notes, self.telemetry.ledger
        )

    def _free_name(self) -> str:
        return next(name for number in self._numbers if (name := f"e{number}") not in self._environments)

    def _factory(self, runtime: str) -> SandboxFactory:
        if runtime not in self._factories:
            assert self._sockets is not None
            self._factories[runtime] = factory_of(runtime)(self._namespace, self._sockets)
        return self._factories[runtime]

    async def _bring_up(self, environment: Environment, tell: Tell | None, flight: Flight) -> None:
        sandbox = await self._obtain(environment, tell, flight)
        flight.reach(stages.MADE)
        prefix = self._free_prefix()
        self._by_prefix[prefix] = environment
        environment.move_in(sandbox, prefix)
        flight.reach(stages.READY)
        if flight.lane != FROM_POOL:
            flight.lane = environment.info().made_by or environment.runtime

    async def _obtain(
        self, environment: Environment, tell: Tell | None = None, flight: Flight | None = None
    ) -> Sandbox:
        """One that is up: a ready one, or else a new one."""
        assert self._ready is not None
        ready = await self._ready.take(environment.runtime, environment.options)
        if ready is not None:
            if flight is not None:
                flight.lane = FROM_POOL
            return ready
        sandbox = self._factory(environment.runtime).make(environment.options)
        self._ready.starting += 1
        try:
            await sandbox.start(tell, flight)
        finally:
            self._ready.starting -= 1
        return sandbox

    def _free_prefix(self) -> str:
        while (prefix := secrets.token_hex(environment_limits.PROCESS_PREFIX_BYTES)) in self._by_prefix:
            pass
        return prefix

    def _lifetime_over(self, environment: Environment) -> None:
        logger.info("environment %s has lived for its %s ms", environment.name, environment.options.lifetime_ms)
        self._own(self._end_logged(environment))

    async def _end_logged(self, environment: Environment) -> None:
        try:
            await self._end(environment, stopped(environment.name))
        except FastclawError as error:
            logger.warning("environment %s could not be ended: %s", environment.name, str(error))

    async def environment_stop(self, name: str) -> None:
        """See `EnvironmentRuntime.environment_stop`."""
        await asyncio.shield(self._end(self._find(name), stopped(name)))

    def _end(self, environment: Environment, why: FastclawError | None) -> asyncio.Task[None]:
        """The task that ends it: the same for all that ask. It is not cancelled with one of them."""
        if environment.ending is None:
            environment.ending = asyncio.get_running_loop().create_task(self._ended(environment, why))
        return environment.ending

    async def _ended(self, environment: Environment, why: FastclawError | None) -> None:
        try:
            if environment.starting is not None:
                environment.starting.cancel()
                await asyncio.wait((environment.starting,))
            await environment.stop(why)
        finally:
            del self._environments[environment.name]
            self._by_prefix.pop(environment.prefix, None)
            if environment.token is not None:
                del self._by_token[environment.token]

    async def environment_reset(self, name: str) -> EnvironmentInfo:
        """See `EnvironmentRuntime.environment_reset`."""
        environment = self._find(name)
        await environment.reset(lambda: self._obtain(environment))
        return environment.info()

    def environment_list(self) -> list[ListedEnvironment]:
        """See `EnvironmentRuntime.environment_list`."""
        return [environment.listed() for environment in self._environments.values()]

    async def pool_set(self, kinds: list[dict[str, Any]]) -> None:
        """See `EnvironmentRuntime.pool_set`."""
        if self._ready is None:
            raise InvalidState("call initialize first", "not_initialized")
        self._ready.keep(self._kinds(kinds, "$.pool"))

    def _kinds(self, kinds: list[dict[str, Any]], path: str) -> list[tuple[str, PoolKind]]:
        read: list[tuple[str, PoolKind]] = []
        for index, kind in enumerate(kinds):
            given = {**self._inherited, **kind}
            try:
                require_known(given)
                options = read_options(given, PoolKind)
                read.append((self._chooser.choose(options_of(given))[0], options))
            except InvalidParams as error:
                raise _at(f"{path}[{index}]", error) from error
        if sum(options.size for _, options in read) > environment_limits.MAX_ENVIRONMENTS:
            raise InvalidParams(
                f"{path}: there are {environment_limits.MAX_ENVIRONMENTS} environments at most", path=path
            )
        return read

    # --- images ---

    async def image_pull(self, request: PullImage, tell: Tell | None = None) -> ImageResult:
        """See `ImageRuntime.image_pull`."""
        return await (await self._images()).pull(request, tell)

    async def image_build(self, request: BuildImage, tell: Tell | None = None) -> ImageResult:
        """See `ImageRuntime.image_build`."""
        return await (await self._images()).build(request, tell)

    async def image_load(self, request: LoadImages, tell: Tell | None = None) -> LoadedImages:
        """See `ImageRuntime.image_load`."""
        return await (await self._images()).load(request, tell)

    async def _images(self) -> ImageStore:
        """Those of the engine that an environment has which names none."""
        if self._engine is None:
            raise MethodNotFound("there is no engine here, and so there are no images")
        return await self._factory(self._engine).images(read_options(self._inherited, Options))

    # --- health ---

    async def health(self, environment: str | None = None) -> HealthStatus:
        """See `EnvironmentRuntime.health`."""
        if environment is not None:
            return await self._find(environment).health()
        shared = self._shared_health()
        main = self._environments.get(MAIN)
        if main is None:
            if self._sockets is None:
                return HealthStatus(status="unhealthy", message="not running")
            return HealthStatus(status="healthy", details=shared)
        status = await main.health()
        return msgspec.structs.replace(status, details={**status.details, **shared})

    def _shared_health(self) -> dict[str, Any]:
        ready = {} if self._ready is None else {"pool": self._ready.health()}
        made = {name: health for name, factory in self._factories.items() if (health := factory.health())}
        control = {} if self.control is None else {"control": self.control}
        return {"environments": dict(self._states()), **self.telemetry.health(), **ready, **made, **control}

    def _states(self) -> Counter[str]:
        return Counter(environment.machine.state.value for environment in self._environments.values())

    def _counts(self) -> Counts:
        environments = self._environments.values()
        pools = [environment.pool.health() for environment in environments if environment.pool is not None]
        return Counts(
            environments=self._states(),
            processes=sum(pool["live"] for pool in pools),
            waiting=sum(pool["waiting"] for pool in pools),
            starting=sum(pool["starting"] for pool in pools),
            version=__version__,
            egress=sum((factory.decisions() for factory in self._factories.values()), Counter()),
        )

    def _find(self, name: str | None) -> Environment:
        wanted = MAIN if name is None else name
        environment = self._environments.get(wanted)
        if environment is None:
            if self._sockets is None:
                raise InvalidState("call initialize first", "not_initialized")
            text = f"there is no environment {wanted!r}: it never was, or has ended"
            raise InvalidState(text, "unknown_environment")
        return environment

    # --- processes: what the pool gives is handed on, with no coroutine of its own ---

    def pool(self, environment: str | None = None) -> ProcessPool:
        """The processes of one environment.

        Raises:
            InvalidState: `unknown_environment`, `environment_busy`.
        """
        return self._find(environment).usable()

    def files(self, environment: str | None = None) -> Files:
        return self._find(environment).files()

    def exec(self, request: ExecRequest) -> Coroutine[Any, Any, ExecResult]:
        return self.pool(request.environment).exec(request)

    def run(self, request: RunRequest) -> Coroutine[Any, Any, RunResult]:
        return self.pool(request.environment).run(request)

    def list_processes(
        self, after: str | None = None, environment: str | None = None
    ) -> Coroutine[Any, Any, list[ProcessInfo]]:
        return self.pool(environment).listed(after)

    def kill(self, process_id: str, grace_ms: int | None = None) -> Coroutine[Any, Any, None]:
        return self._pool_of(process_id).kill(process_id, grace_ms)

    def wait(self, process_id: str, timeout_ms: int | None = None) -> Coroutine[Any, Any, ExitRecord]:
        return self._pool_of(process_id).wait(process_id, timeout_ms)

    async def signal(self, process_id: str, signal: int, *, group: bool = False) -> None:
        self._pool_of(process_id).signal(process_id, signal, group=group)

    async def resize(self, process_id: str, rows: int, columns: int) -> None:
        self._pool_of(process_id).resize(process_id, rows, columns)

    def _pool_of(self, process_id: str) -> ProcessPool:
        environment = self._by_prefix.get(process_id.partition("-")[0])
        if environment is None or environment.pool is None:
            raise unknown_process(process_id)
        return environment.pool

    # --- tasks ---

    def _own(self, work: Any) -> asyncio.Future[Any]:
        task: asyncio.Future[Any] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _take_back(self, token: str) -> None:
        """A start with a token succeeded in the moment in which its last caller was cancelled."""
        known = self._by_token.get(token)
        if known is not None:
            await asyncio.shield(self._end(known, None))


def options_of(given: dict[str, Any]) -> dict[str, Any]:
    """What is an environment's own, of options that have more."""
    more = {*HostOptions.__struct_fields__, *PoolKind.__struct_fields__} - {*Options.__struct_fields__}
    return {name: value for name, value in given.items() if name not in more}


def _at(place: str, error: InvalidParams) -> InvalidParams:
    """What is wrong with options of an environment, where they are at this place in the params."""
    data = {**error.data, "path": str(error.data.get("path", place)).replace(OPTIONS, place, 1)}
    return InvalidParams(str(error).replace(OPTIONS, place, 1), error.reason, **data)


def _fingerprint(request: EnvironmentRequest) -> bytes:
    """Tells starts apart that have the same token."""
    encoded = msgspec.json.encode([request.environment, request.options], order="deterministic")
    return hashlib.sha256(encoded).digest()


async def _gather_all(work: Any) -> None:
    """Do all of it to the end, even if some of it fails; then raise the first error."""
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
