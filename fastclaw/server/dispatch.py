"""From lines to answers: the one place where a line becomes a call, and an exception a wire error.

Owns the methods, the connection's state and the requests in flight. Knows neither descriptors nor environments.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec

from fastclaw import __version__, answer_limits, lifecycle, limits
from fastclaw.errors import (
    FastclawError,
    InternalError,
    InvalidRequest,
    InvalidState,
    MethodNotFound,
    RequestCancelled,
)
from fastclaw.lifecycle import RuntimeState
from fastclaw.params import (
    CancelParams,
    KillParams,
    ListParams,
    NoParams,
    ResizeParams,
    SignalParams,
    WaitParams,
    convert,
    signal_number,
)
from fastclaw.processes.run_output import fitted, may_be_too_long, without_output
from fastclaw.runtime import (
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
from fastclaw.server.framing import LineFramer, Oversized
from fastclaw.server.in_flight import Call, InFlight
from fastclaw.server.workers import Workers

logger = logging.getLogger(__name__)

SERVER_NAME = "fastclaw"

_NOTHING: dict[str, Any] = {}


def _encode(call: "Work", result: Any, params: Any) -> bytes:
    assert call.request.id is not None
    return jsonrpc.encode_result(call.request.id, result)


def _encode_run(call: "Work", result: RunResult, params: RunRequest) -> bytes:
    """An answer that fits its line, whatever was collected and however long JSON makes it."""
    request_id = call.request.id
    assert request_id is not None
    if may_be_too_long(result, request_id, call.room):
        around = len(jsonrpc.encode_result(request_id, without_output(result)))
        result = fitted(result, params.keep, call.room - around)
    return jsonrpc.encode_result(request_id, result)


def _encode_list(call: "Work", found: list[ProcessInfo], params: ListParams) -> bytes:
    """The first of them, as many as were asked for and fit the line; `next` says that there are more."""
    request_id = call.request.id
    assert request_id is not None
    rows: list[bytes] = []
    room = call.room - len(jsonrpc.encode_result(request_id, {"processes": [], "next": ""}))
    for process in found[: params.limit]:
        row = jsonrpc.encoded(process)
        room -= len(row) + len(b",")
        if rows and room < len(process.process_id) * answer_limits.MOST_PER_CHARACTER:
            break
        rows.append(row)
    more = {"next": found[len(rows) - 1].process_id} if len(rows) < len(found) else {}
    return jsonrpc.encode_result(request_id, {"processes": jsonrpc.array(rows), **more})


def _encode_health(call: "Work", status: HealthStatus, params: NoParams) -> bytes:
    """The word and what is wrong; the details where they are no book."""
    line = _encode(call, status, params)
    if len(line) <= min(call.room, answer_limits.MAX_HEALTH_BYTES):
        return line
    message = None if status.message is None else status.message[: answer_limits.MIN_ERROR_BYTES]
    details = {"left_out": f"{len(line)} bytes"}
    return _encode(call, HealthStatus(status=status.status, message=message, details=details), params)


class Method(NamedTuple):
    """How a method is served.

    Parameters:
        shape: what its params are.
        serve: takes the harness's calls and the params.
        is_control: answered even while `exec` and `wait` are turned away.
        is_urgent: begun before whatever else has come, thousands of `exec` for example.
        yields_to_shutdown: a shutdown does not wait for it but cancels it.
        is_cancellable: `cancel` takes it back.
        encode: makes the answer line of its result.
    """

    shape: type[msgspec.Struct]
    serve: Callable[["Calls", Any], Awaitable[Any]]
    is_control: bool = False
    is_urgent: bool = False
    yields_to_shutdown: bool = False
    is_cancellable: bool = False
    encode: Callable[["Work", Any, Any], bytes] = _encode

    def ceiling(self) -> int:
        """Requests in flight at which it is turned away."""
        return limits.MAX_CONTROL_IN_FLIGHT if self.is_control else limits.MAX_IN_FLIGHT


class Calls:
    """The methods, in terms of the served runtime."""

    def __init__(self, runtime: Runtime, shut_down: Callable[[], Awaitable[None]], in_flight: InFlight[Method]) -> None:
        self._runtime = runtime
        self._in_flight = in_flight
        self._shut_down = shut_down
        self.machine = lifecycle.runtime_machine()

    async def initialize(self, params: InitializeParams) -> dict[str, Any]:
        lifecycle.require_new(self.machine.state)
        self.machine.move(RuntimeState.STARTING)
        try:
            result = await self._runtime.start(params)
        except BaseException:
            if self.machine.state is RuntimeState.STARTING:
                self.machine.move(RuntimeState.NEW)
            raise
        if self.machine.state is not RuntimeState.STARTING:
            # A start that did not heed its cancellation.
            raise InvalidState("the runtime is shutting down", "shutting_down")
        self.machine.move(RuntimeState.RUNNING)
        server = {"name": SERVER_NAME, "version": __version__}
        return {**msgspec.to_builtins(result), "server": server, "capabilities": self._runtime.capabilities}

    def exec(self, params: ExecRequest) -> Awaitable[Any]:
        # No coroutine of its own: this is the call that comes by the thousand.
        lifecycle.require_running(self.machine.state)
        return self._runtime.exec(params)

    def run(self, params: RunRequest) -> Awaitable[Any]:
        return self._extended().run(params)

    async def cancel(self, params: CancelParams) -> dict[str, Any]:
        """Answered after the request that it took back."""
        lifecycle.require_running(self.machine.state)
        call = self._in_flight.find(params.id)
        if call is not None and call.method.is_cancellable:
            call.cut_short(RequestCancelled(f"{call.request.method} was cancelled"))
            await call.wait_answered()
        return _NOTHING

    async def health(self, params: NoParams) -> HealthStatus:
        if self.machine.state is not RuntimeState.RUNNING:
            return HealthStatus(status="unhealthy", message=self.machine.state.value)
        return await self._runtime.health()

    async def kill(self, params: KillParams) -> dict[str, Any]:
        lifecycle.require_running(self.machine.state)
        await self._runtime.kill(params.process_id, params.grace_ms)
        return _NOTHING

    async def wait(self, params: WaitParams) -> Any:
        return await self._extended().wait(params.process_id, params.timeout_ms)

    def list(self, params: ListParams) -> Awaitable[Any]:
        return self._extended().list_processes(params.after)

    async def signal(self, params: SignalParams) -> dict[str, Any]:
        signum = signal_number(params.signal)
        await self._extended().signal(params.process_id, signum, group=params.group)
        return _NOTHING

    async def resize(self, params: ResizeParams) -> dict[str, Any]:
        await self._extended().resize(params.process_id, params.rows, params.columns)
        return _NOTHING

    async def shutdown(self, params: NoParams) -> dict[str, Any]:
        if self.machine.state in (RuntimeState.STOPPING, RuntimeState.STOPPED):
            raise InvalidState("the runtime is shutting down", "shutting_down")
        await self._shut_down()
        return _NOTHING

    def _extended(self) -> ProcessRuntime:
        if not isinstance(self._runtime, ProcessRuntime):
            raise MethodNotFound("this runtime offers initialize, exec, health, kill and shutdown")
        lifecycle.require_running(self.machine.state)
        return self._runtime


METHODS: dict[str, Method] = {
    "initialize": Method(InitializeParams, Calls.initialize, yields_to_shutdown=True),
    "exec": Method(ExecRequest, Calls.exec, yields_to_shutdown=True, is_cancellable=True),
    "run": Method(RunRequest, Calls.run, yields_to_shutdown=True, is_cancellable=True, encode=_encode_run),
    "wait": Method(WaitParams, Calls.wait, is_cancellable=True),
    "cancel": Method(CancelParams, Calls.cancel, is_control=True, is_urgent=True),
    "health": Method(NoParams, Calls.health, is_control=True, is_urgent=True, encode=_encode_health),
    "kill": Method(KillParams, Calls.kill, is_control=True, is_urgent=True),
    "signal": Method(SignalParams, Calls.signal, is_control=True, is_urgent=True),
    "resize": Method(ResizeParams, Calls.resize, is_control=True),
    "list": Method(ListParams, Calls.list, is_control=True, encode=_encode_list),
    "shutdown": Method(NoParams, Calls.shutdown, is_control=True),
    "stop": Method(NoParams, Calls.shutdown, is_control=True),
}

Reply = Callable[[bytes], None]
Work = Call[Method]


def _refusal(request: jsonrpc.Request, error: FastclawError, room: int) -> bytes | None:
    """The answer that says `error`, or None to a notification."""
    if request.id is None:
        return None
    try:
        return jsonrpc.encode_error(request.id, error, room)
    except TypeError:  # orjson: the served runtime put something into its error that JSON has no form for
        return _bug(request)


def _bug(request: jsonrpc.Request) -> bytes | None:
    """To be called while the exception is handled: its traceback goes to the log, its text nowhere else."""
    logger.exception("%s failed: a bug", request.method)
    return None if request.id is None else jsonrpc.encode_error(request.id, InternalError("internal error"))


def _fitting(call: "Work", answer: bytes) -> bytes | None:
    """An answer that its line has room for: in a batch each has a share, and a runtime may answer with a book."""
    if len(answer) <= call.room:
        return answer
    text = f"the answer has {len(answer)} bytes, and room for {call.room}; ask for less at a time"
    return _refusal(call.request, InvalidRequest(text, "line_too_long"), call.room)


def _why_refused(name: str, method: Method | None) -> FastclawError:
    if method is None:
        return MethodNotFound(f"no method {name!r}; there are {', '.join(METHODS)}", method=name)
    return InvalidState(f"{method.ceiling()} requests are in flight; try again later", "overloaded")


def _is_cancelled() -> bool:
    """Whether somebody cancelled the task that runs."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _Batch:
    """Collects the answers of a batch and sends them as one line when the last is there.

    Attributes:
        room: what each answer may have, so that the line is none that nobody reads: its comma or bracket counts.
    """

    __slots__ = ("_answers", "_missing", "_send", "room")

    def __init__(self, missing: int, send: Reply) -> None:
        self._answers: list[bytes] = []
        self._missing = missing
        self._send = send
        self.room = (limits.MAX_LINE_BYTES - 1) // max(missing, 1) - 1

    def __call__(self, answer: bytes) -> None:
        self._answers.append(answer)
        self._missing -= 1
        if not self._missing:
            self._send(jsonrpc.encode_batch(self._answers))


class Dispatcher:
    """From lines to answers. Knows the runtime, not the descriptors.

    Parameters:
        send: takes each answer line; never blocks.
        shut_down: brings the runtime down; raises nothing.
    """

    def __init__(self, runtime: Runtime, send: Reply, shut_down: Callable[[], Awaitable[None]]) -> None:
        self._calls_in_flight: InFlight[Method] = InFlight()
        self.calls = Calls(runtime, shut_down, self._calls_in_flight)
        self._send = send
        self._framer = LineFramer()
        self._workers: Workers[Work] = Workers(self._answer)
        self._in_flight = 0
        self._yielding: dict[Work, None] = {}
        self._settled: asyncio.Future[None] | None = None
        self._idle: asyncio.Future[None] | None = None

    def receive(self, data: bytes) -> None:
        """Take what one read brought."""
        for line in self._framer.feed(data):
            if isinstance(line, Oversized):
                error = InvalidRequest(
                    f"a line is at most {limits.MAX_LINE_BYTES} bytes; this one is dropped", "line_too_long"
                )
                self._send(jsonrpc.encode_error(None, error))
            else:
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            message = jsonrpc.decode(line)
        except FastclawError as error:
            self._send(jsonrpc.encode_error(None, error))
            return
        if isinstance(message, jsonrpc.Request):
            self._submit(message, self._send, limits.MAX_LINE_BYTES)
        else:
            self._take_batch(message)

    def _take_batch(self, items: list[jsonrpc.Item]) -> None:
        answers = sum(1 for item in items if isinstance(item, FastclawError) or item.id is not None)
        reply = _Batch(answers, self._send)
        for item in items:
            if isinstance(item, FastclawError):
                reply(jsonrpc.encode_error(None, item))
            else:
                self._submit(item, reply, reply.room)

    def _submit(self, request: jsonrpc.Request, reply: Reply, room: int) -> None:
        method = METHODS.get(request.method)
        if method is None or (self._in_flight >= limits.MAX_IN_FLIGHT and self._in_flight >= method.ceiling()):
            answer = _refusal(request, _why_refused(request.method, method), room)
            if answer is not None:
                reply(answer)
            return
        self._in_flight += 1
        call = Call(request, method, reply, room)
        self._calls_in_flight.add(call)
        self._workers.submit(call, urgent=method.is_urgent and self.calls.machine.state is RuntimeState.RUNNING)

    def hold(self, is_held: bool) -> None:
        """Begin no more requests, or go on: for an output that is not read, so that answers do not pile up."""
        self._workers.hold(is_held)

    async def _answer(self, call: Work) -> None:
        request, method = call.request, call.method
        if method.is_cancellable or method.yields_to_shutdown:
            self._note_task(call)
        try:
            if call.why is not None:
                raise call.why
            params = convert(request.params, method.shape)
            result = await method.serve(self.calls, params)
            answer = None if request.id is None else _fitting(call, method.encode(call, result, params))
        except FastclawError as error:
            answer = _refusal(request, error, call.room)
        except asyncio.CancelledError as cancelled:
            answer = self._cut_short(call, cancelled)
        except Exception:
            answer = _bug(request)
        finally:
            self._in_flight -= 1
            self._calls_in_flight.remove(call)
            if method.yields_to_shutdown:
                self._forget_yielding(call)
        if call.why is not None:
            call.is_cut_short()  # where the runtime has gone on all the same
        if answer is not None:
            call.reply(answer)
        call.has_been_answered()
        if not self._in_flight and self._idle is not None:
            self._idle.set_result(None)
            self._idle = None

    def _note_task(self, call: Work) -> None:
        call.task = asyncio.current_task()
        if call.method.yields_to_shutdown:
            self._yielding[call] = None

    def _forget_yielding(self, call: Work) -> None:
        del self._yielding[call]
        if self._settled is not None and not self._yielding and not self._settled.done():
            self._settled.set_result(None)

    def _cut_short(self, call: Work, cancelled: asyncio.CancelledError) -> bytes | None:
        """The answer of a call that was cancelled: by its caller or the shutdown, by a bug of the runtime, or, raised,
        by our end."""
        if call.why is not None and call.is_cut_short():
            return _refusal(call.request, call.why, call.room)
        if _is_cancelled():
            raise cancelled
        return _bug(call.request)  # the runtime let the end of a task of its own through

    async def cancel_yielding(self) -> None:
        """Cut short what a shutdown does not wait for; return when it has all answered, or takes too long for that."""
        for call in list(self._yielding):
            call.cut_short(InvalidState("the runtime is shutting down", "shutting_down"))
        if self._yielding:
            self._settled = asyncio.get_running_loop().create_future()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limits.YIELD_MS / 1000):
                    await self._settled
            self._settled = None

    async def wait_idle(self) -> None:
        """Return when every request has been answered. The caller sets a deadline."""
        if self._in_flight:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle

    async def aclose(self) -> None:
        """Cancel everything that is still in flight."""
        await self._workers.aclose()
