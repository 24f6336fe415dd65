"""The methods of the wire: what each one's params are, how it is served by a runtime, how its result is written.

Knows neither lines nor tasks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from fastclaw import __version__, lifecycle, limits
from fastclaw.errors import InvalidState, MethodNotFound
from fastclaw.files import FileRuntime, ListDir, MakeDir, Move, ReadFile, ReadTar, Remove, StatFile, WriteFile, WriteTar
from fastclaw.images import BuildImage, ImageRuntime, LoadImages, PullImage
from fastclaw.lifecycle import RUNTIME_MOVES, Machine, RuntimeState
from fastclaw.params import (
    CancelParams,
    EnvironmentParams,
    HealthParams,
    KillParams,
    ListParams,
    NoParams,
    PoolParams,
    ResizeParams,
    SignalParams,
    WaitParams,
    reader,
    signal_number,
)
from fastclaw.processes.run_output import fitted, may_be_too_long, without_output
from fastclaw.runtime import (
    MAIN,
    EnvironmentInfo,
    EnvironmentRequest,
    EnvironmentRuntime,
    ExecRequest,
    HealthStatus,
    InitializeParams,
    ProcessInfo,
    ProcessRuntime,
    RunRequest,
    RunResult,
    Runtime,
)
from fastclaw.server import jsonrpc
from fastclaw.stages import ENVIRONMENT_STAGES, STAGES
from fastclaw.wire import SHAPES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fastclaw.files import Files
    from fastclaw.progress import Tell
    from fastclaw.server.jsonrpc import RequestId

SERVER_NAME = "fastclaw"

_NOTHING: dict[str, Any] = {}


class Method(NamedTuple):
    """How a method is served.

    Parameters:
        read: makes a struct of its params.
        serve: takes the calls and the params.
        is_control: answered even while `exec` and `wait` are turned away.
        is_urgent: begun before whatever else has come, thousands of `exec` for example.
        yields_to_shutdown: a shutdown does not wait for it but cancels it.
        is_cancellable: `cancel` takes it back.
        stages: of its flight; None: it has none.
        tells: where its params have `progress`, `serve` is given something to tell it to besides.
        encode: makes the answer line of its result: takes the request's id, the room of the line, result and params.
    """

    read: Callable[[msgspec.Raw], Any]
    serve: Callable[..., Awaitable[Any]]
    is_control: bool = False
    is_urgent: bool = False
    yields_to_shutdown: bool = False
    is_cancellable: bool = False
    tells: bool = False
    stages: tuple[str, ...] | None = None
    encode: Callable[[RequestId, int, Any, Any], bytes] | None = None

    def ceiling(self) -> int:
        """Requests in flight at which it is turned away."""
        return limits.MAX_CONTROL_IN_FLIGHT if self.is_control else limits.MAX_IN_FLIGHT

    def answer(self, request_id: RequestId, room: int, result: Any, params: Any) -> bytes:
        """The line with its result."""
        if self.encode is None:
            return jsonrpc.encode_result(request_id, result)
        return self.encode(request_id, room, result, params)


def _encode_run(request_id: RequestId, room: int, result: RunResult, params: RunRequest) -> bytes:
    """An answer that fits its line, whatever was collected and however long JSON makes it."""
    if may_be_too_long(result, request_id, room):
        around = len(jsonrpc.encode_result(request_id, without_output(result)))
        result = fitted(result, params.keep, room - around)
    return jsonrpc.encode_result(request_id, result)


def _encode_list(request_id: RequestId, room: int, found: list[ProcessInfo], params: ListParams) -> bytes:
    """The first of them, as many as were asked for and fit the line; `next` says that there are more."""
    rows: list[bytes] = []
    room -= len(jsonrpc.encode_result(request_id, {"processes": [], "next": ""}))
    for process in found[: params.limit]:
        row = jsonrpc.encoded(process)
        room -= len(row) + len(b",")
        if rows and room < len(process.process_id) * limits.MOST_PER_CHARACTER:
            break
        rows.append(row)
    more = {"next": found[len(rows) - 1].process_id} if len(rows) < len(found) else {}
    return jsonrpc.encode_result(request_id, {"processes": jsonrpc.array(rows), **more})


def _encode_health(request_id: RequestId, room: int, status: HealthStatus, params: HealthParams) -> bytes:
    """Status and message; the details only if they are short enough."""
    line = jsonrpc.encode_result(request_id, status)
    if len(line) <= min(room, limits.MAX_HEALTH_BYTES):
        return line
    message = None if status.message is None else status.message[: limits.MIN_ERROR_BYTES]
    details = {"left_out": f"{len(line)} bytes"}
    return jsonrpc.encode_result(request_id, HealthStatus(status=status.status, message=message, details=details))


class Calls:
    """The methods in terms of the served runtime, and the one state machine that says which of them is allowed.

    Parameters:
        choose: gives the runtime for the params of `initialize`.
        shut_down: brings the runtime down; raises nothing.
        cancel: takes back the request with this id; returns once it has been answered.

    Attributes:
        runtime: what `choose` gave; None before `initialize`.
    """

    def __init__(
        self,
        choose: Callable[[InitializeParams], Runtime],
        shut_down: Callable[[], Awaitable[None]],
        cancel: Callable[[RequestId], Awaitable[None]],
    ) -> None:
        self.runtime: Runtime | None = None
        self._choose = choose
        self._shut_down = shut_down
        self._cancel = cancel
        self.machine = Machine(RUNTIME_MOVES, RuntimeState.NEW)

    async def initialize(self, params: InitializeParams) -> dict[str, Any]:
        """`initialize`: choose the runtime and start it."""
        lifecycle.require_new(self.machine.state)
        self.machine.move(RuntimeState.STARTING)
        try:
            runtime = self.runtime = self._choose(params)
            result = await runtime.start(params)
        except BaseException:
            if self.machine.state is RuntimeState.STARTING:
                self.machine.move(RuntimeState.NEW)
            raise
        if self.machine.state is not RuntimeState.STARTING:
            # A start that did not heed its cancellation.
            raise InvalidState("the runtime is shutting down", "shutting_down")
        self.machine.move(RuntimeState.RUNNING)
        server = {"name": SERVER_NAME, "version": __version__}
        control = {} if runtime.control is None else {"control": runtime.control}
        return {**msgspec.to_builtins(result), "server": server, "capabilities": runtime.capabilities, **control}

    def _running(self, environment: str | None = None) -> Runtime:
        """The runtime, which has one environment or knows them by name."""
        lifecycle.require_running(self.machine.state)
        runtime = self.runtime
        assert runtime is not None
        if environment is not None and environment != MAIN and not isinstance(runtime, EnvironmentRuntime):
            raise InvalidState(f"this runtime has no environment but {MAIN!r}", "unknown_environment")
        return runtime

    def _extended(self, environment: str | None = None) -> ProcessRuntime:
        runtime = self.runtime
        if runtime is not None and not isinstance(runtime, ProcessRuntime):
            raise MethodNotFound("this runtime offers initialize, exec, health, kill and shutdown")
        runtime = self._running(environment)
        assert isinstance(runtime, ProcessRuntime)
        return runtime

    def _environments(self) -> EnvironmentRuntime:
        runtime = self.runtime
        if runtime is not None and not isinstance(runtime, EnvironmentRuntime):
            raise MethodNotFound("this runtime has one environment only")
        lifecycle.require_running(self.machine.state)
        assert runtime is not None
        return runtime

    def _files(self, environment: str | None) -> Files:
        runtime = self._running(environment)
        if not isinstance(runtime, FileRuntime):
            raise MethodNotFound("this runtime offers no files; use exec")
        return runtime.files(environment)

    def _images(self) -> ImageRuntime:
        runtime = self._running()
        if not isinstance(runtime, ImageRuntime):
            raise MethodNotFound("this runtime has no images")
        return runtime

    # The frequent calls have no coroutine of their own here: the runtime's is handed on.

    def exec(self, params: ExecRequest) -> Awaitable[Any]:
        """`exec`."""
        return self._running(params.environment).exec(params)

    def run(self, params: RunRequest) -> Awaitable[Any]:
        """`run`."""
        return self._extended(params.environment).run(params)

    def wait(self, params: WaitParams) -> Awaitable[Any]:
        """`wait`."""
        return self._extended().wait(params.process_id, params.timeout_ms)

    def list(self, params: ListParams) -> Awaitable[Any]:
        """`list`."""
        runtime = self._extended(params.environment)
        if isinstance(runtime, EnvironmentRuntime):
            return runtime.list_processes(params.after, params.environment)
        return runtime.list_processes(params.after)

    # --- files ---

    def read_file(self, params: ReadFile) -> Awaitable[Any]:
        """`read_file`."""
        return self._files(params.environment).read_file(params)

    def write_file(self, params: WriteFile) -> Awaitable[Any]:
        """`write_file`."""
        return self._files(params.environment).write_file(params)

    def stat(self, params: StatFile) -> Awaitable[Any]:
        """`stat`."""
        return self._files(params.environment).stat(params)

    def list_dir(self, params: ListDir) -> Awaitable[Any]:
        """`list_dir`."""
        return self._files(params.environment).list_dir(params)

    def read_tar(self, params: ReadTar) -> Awaitable[Any]:
        """`read_tar`."""
        return self._files(params.environment).read_tar(params)

    def write_tar(self, params: WriteTar) -> Awaitable[Any]:
        """`write_tar`."""
        return self._files(params.environment).write_tar(params)

    async def make_dir(self, params: MakeDir) -> dict[str, Any]:
        """`make_dir`."""
        await self._files(params.environment).make_dir(params)
        return _NOTHING

    async def remove(self, params: Remove) -> dict[str, Any]:
        """`remove`."""
        await self._files(params.environment).remove(params)
        return _NOTHING

    async def move(self, params: Move) -> dict[str, Any]:
        """`move`."""
        await self._files(params.environment).move(params)
        return _NOTHING

    async def cancel(self, params: CancelParams) -> dict[str, Any]:
        """`cancel`: answered after the request that it took back."""
        lifecycle.require_running(self.machine.state)
        await self._cancel(params.id)
        return _NOTHING

    async def health(self, params: HealthParams) -> HealthStatus:
        """`health`: of the runtime, of one environment, or of the connection while there is none."""
        if self.machine.state is not RuntimeState.RUNNING:
            return HealthStatus(status="unhealthy", message=self.machine.state.value)
        runtime = self._running(params.environment)
        if isinstance(runtime, EnvironmentRuntime):
            return await runtime.health(params.environment)
        return await runtime.health()

    # --- environments ---

    def environment_start(self, params: EnvironmentRequest, tell: Tell | None) -> Awaitable[EnvironmentInfo]:
        """`environment_start`."""
        return self._environments().environment_start(params, tell)

    async def environment_stop(self, params: EnvironmentParams) -> dict[str, Any]:
        """`environment_stop`."""
        await self._environments().environment_stop(params.environment)
        return _NOTHING

    def environment_reset(self, params: EnvironmentParams) -> Awaitable[EnvironmentInfo]:
        """`environment_reset`."""
        return self._environments().environment_reset(params.environment)

    async def environment_list(self, params: NoParams) -> dict[str, Any]:
        """`environment_list`."""
        return {"environments": self._environments().environment_list()}

    async def pool_set(self, params: PoolParams) -> dict[str, Any]:
        """`pool_set`."""
        await self._environments().pool_set(params.pool)
        return _NOTHING

    # --- images ---

    def image_pull(self, params: PullImage, tell: Tell | None) -> Awaitable[Any]:
        """`image_pull`."""
        return self._images().image_pull(params, tell)

    def image_build(self, params: BuildImage, tell: Tell | None) -> Awaitable[Any]:
        """`image_build`."""
        return self._images().image_build(params, tell)

    def image_load(self, params: LoadImages, tell: Tell | None) -> Awaitable[Any]:
        """`image_load`."""
        return self._images().image_load(params, tell)

    # --- processes by id ---

    async def kill(self, params: KillParams) -> dict[str, Any]:
        """`kill`."""
        await self._running().kill(params.process_id, params.grace_ms)
        return _NOTHING

    async def signal(self, params: SignalParams) -> dict[str, Any]:
        """`signal`."""
        signum = signal_number(params.signal)
        await self._extended().signal(params.process_id, signum, group=params.group)
        return _NOTHING

    async def resize(self, params: ResizeParams) -> dict[str, Any]:
        """`resize`."""
        await self._extended().resize(params.process_id, params.rows, params.columns)
        return _NOTHING

    async def shutdown(self, params: NoParams) -> dict[str, Any]:
        """`shutdown` and `stop`."""
        if self.machine.state in (RuntimeState.STOPPING, RuntimeState.STOPPED):
            raise InvalidState("the runtime is shutting down", "shutting_down")
        await self._shut_down()
        return _NOTHING


_read = {name: reader(shape.params) for name, shape in SHAPES.items()}


def _file_method(name: str, serve: Callable[[Calls, Any], Awaitable[Any]]) -> Method:
    """A call for files: it starts a process, and is taken back as one is."""
    return Method(_read[name], serve, yields_to_shutdown=True, is_cancellable=True)


def _long_method(name: str, serve: Callable[..., Awaitable[Any]], stages: tuple[str, ...] | None = None) -> Method:
    """A call that may take minutes, and tells how it comes on."""
    return Method(_read[name], serve, yields_to_shutdown=True, is_cancellable=True, tells=True, stages=stages)


METHODS: dict[str, Method] = {
    "initialize": Method(  # starts `main`, as a rule
        _read["initialize"], Calls.initialize, yields_to_shutdown=True, stages=ENVIRONMENT_STAGES
    ),
    "exec": Method(_read["exec"], Calls.exec, yields_to_shutdown=True, is_cancellable=True, stages=STAGES),
    "run": Method(
        _read["run"], Calls.run, yields_to_shutdown=True, is_cancellable=True, stages=STAGES, encode=_encode_run
    ),
    "wait": Method(_read["wait"], Calls.wait, is_cancellable=True),
    "cancel": Method(_read["cancel"], Calls.cancel, is_control=True, is_urgent=True),
    "health": Method(_read["health"], Calls.health, is_control=True, is_urgent=True, encode=_encode_health),
    "kill": Method(_read["kill"], Calls.kill, is_control=True, is_urgent=True),
    "signal": Method(_read["signal"], Calls.signal, is_control=True, is_urgent=True),
    "resize": Method(_read["resize"], Calls.resize, is_control=True),
    "list": Method(_read["list"], Calls.list, is_control=True, encode=_encode_list),
    "environment_start": _long_method("environment_start", Calls.environment_start, ENVIRONMENT_STAGES),
    "environment_stop": Method(_read["environment_stop"], Calls.environment_stop, is_control=True),
    "environment_reset": Method(_read["environment_reset"], Calls.environment_reset, yields_to_shutdown=True),
    "environment_list": Method(_read["environment_list"], Calls.environment_list, is_control=True),
    "pool_set": Method(_read["pool_set"], Calls.pool_set, is_control=True),
    "image_pull": _long_method("image_pull", Calls.image_pull),
    "image_build": _long_method("image_build", Calls.image_build),
    "image_load": _long_method("image_load", Calls.image_load),
    "read_file": _file_method("read_file", Calls.read_file),
    "write_file": _file_method("write_file", Calls.write_file),
    "stat": _file_method("stat", Calls.stat),
    "list_dir": _file_method("list_dir", Calls.list_dir),
    "make_dir": _file_method("make_dir", Calls.make_dir),
    "remove": _file_method("remove", Calls.remove),
    "move": _file_method("move", Calls.move),
    "read_tar": _file_method("read_tar", Calls.read_tar),
    "write_tar": _file_method("write_tar", Calls.write_tar),
    "shutdown": Method(_read["shutdown"], Calls.shutdown, is_control=True),
    "stop": Method(_read["stop"], Calls.shutdown, is_control=True),
}
