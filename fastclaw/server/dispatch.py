"""From lines to answers: the one place where a line becomes a call, and an exception a wire error.

Owns the requests in flight, each with a task of its own, and the order in which they begin. Knows neither descriptors
nor what a method means.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from fastclaw import limits
from fastclaw.errors import (
    FastclawError,
    InternalError,
    InvalidParams,
    InvalidRequest,
    InvalidState,
    MethodNotFound,
    RequestCancelled,
)
from fastclaw.lifecycle import RuntimeState
from fastclaw.server import jsonrpc
from fastclaw.server.jsonrpc import LineFramer, Oversized
from fastclaw.server.methods import METHODS, Calls
from fastclaw.server.notices import Notices
from fastclaw.stages import begin as begin_flight

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from fastclaw.runtime import InitializeParams, Runtime
    from fastclaw.server.methods import Method

    Reply = Callable[[bytes], None]

logger = logging.getLogger(__name__)


class Call:
    """One request from its arrival to its answer.

    Parameters:
        method: how it is served.
        reply: takes its answer line.
        room: the most bytes that line may have.
        received: when its line was read, in nanoseconds of CLOCK_MONOTONIC.

    Attributes:
        task: runs it; None while it waits for its turn.
        has_begun: whether the task has come as far as to be cancelled.
        why: it was cut short, and this is its answer.
    """

    __slots__ = ("_answered", "has_begun", "method", "received", "reply", "request", "room", "task", "why")

    def __init__(self, request: jsonrpc.Request, method: Method, reply: Reply, room: int, received: int) -> None:
        self.received = received
        self.request = request
        self.method = method
        self.reply = reply
        self.room = room
        self.task: asyncio.Task[None] | None = None
        self.has_begun = False
        self.why: FastclawError | None = None
        self._answered: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        state = "waiting" if self.task is None else "cut short" if self.why else "running"
        return f"<Call {self.request.method} id={self.request.id!r} {state}>"

    def cut_short(self, why: FastclawError) -> None:
        """Cancel it. Only the first call counts: the taking back is not disturbed by a second."""
        if self.why is None:
            self.why = why
            if (
                self.has_begun and self.task is not None
            ):  # a task that is cancelled before its first step answers nothing
                self.task.cancel()

    def answered(self) -> asyncio.Future[None]:
        """Done once its answer has been given to `reply`, if it gets one."""
        if self._answered is None:
            self._answered = asyncio.get_running_loop().create_future()
        return self._answered

    def has_been_answered(self) -> None:
        """To be called once, after `reply`."""
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(None)


class _Batch:
    """Collects the answers of a batch and sends them as one line when the last is there.

    Attributes:
        room: the most bytes of each answer, its comma or bracket counted, so that the line keeps its limit.
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
        choose: gives the runtime for the params of `initialize`.
        send: takes each answer line; never blocks.
        shut_down: brings the runtime down; raises nothing.
    """

    def __init__(
        self, choose: Callable[[InitializeParams], Runtime], send: Reply, shut_down: Callable[[], Awaitable[None]]
    ) -> None:
        self.calls = Calls(choose, shut_down, self._take_back)
        self._send = send
        self._framer = LineFramer()
        self._loop = asyncio.get_running_loop()
        self._in_flight: set[Call] = set()
        self._by_id: dict[jsonrpc.RequestId, list[Call]] = {}
        self._waiting: deque[Call] = deque()
        self._urgent: deque[Call] = deque()
        self._overtaken = 0
        self._held = False
        self._notices: set[Notices] = set()
        self._turn: asyncio.Handle | None = None
        self._received = 0

    def __repr__(self) -> str:
        return f"<Dispatcher in_flight={len(self._in_flight)}{' held' * self._held} {self.calls.machine.state.value}>"

    # --- from bytes to calls ---

    def receive(self, data: bytes) -> None:
        """Take what one read brought."""
        self._received = monotonic_ns()
        for line in self._framer.feed(data):
            if isinstance(line, Oversized):
                text = f"a line is at most {limits.MAX_LINE_BYTES} bytes; this one is dropped"
                self._send(jsonrpc.encode_error(None, InvalidRequest(text, "line_too_long")))
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
        if method is None or len(self._in_flight) >= method.ceiling():
            answer = _refusal(request, _why_refused(request.method, method), room)
            if answer is not None:
                reply(answer)
            return
        call = Call(request, method, reply, room, self._received)
        self._in_flight.add(call)
        if request.id is not None:
            self._by_id.setdefault(request.id, []).append(call)
        is_urgent = method.is_urgent and self.calls.machine.state is RuntimeState.RUNNING
        (self._urgent if is_urgent else self._waiting).append(call)
        self._begin_soon()

    # --- which one begins ---

    def hold(self, is_held: bool) -> None:
        """Begin no more requests, or go on: for an output that is not read, so that answers do not pile up."""
        self._held = is_held
        for notices in self._notices:
            notices.hold(is_held)
        self._begin_soon()

    def _begin_soon(self) -> None:
        if self._turn is None and not self._held and (self._waiting or self._urgent):
            self._turn = self._loop.call_soon(self._begin_some)

    def _begin_some(self) -> None:
        """Begin as many as one turn of the loop has room for; urgent requests may come in between."""
        self._turn = None
        if self._held:
            return
        there_are = len(self._urgent) + len(self._waiting)
        for _ in range(min(there_are, max(limits.CALLS_PER_TURN, there_are // limits.CALLS_SHARE))):
            call = self._next()
            call.task = self._loop.create_task(self._answer(call))
        self._begin_soon()

    def _next(self) -> Call:
        """The next urgent request, and one of the others now and then. One of the two queues is not empty."""
        if not self._urgent:
            return self._waiting.popleft()
        if not self._waiting:
            return self._urgent.popleft()
        if self._overtaken == limits.URGENT_STREAK:
            self._overtaken = 0
            return self._waiting.popleft()
        self._overtaken += 1
        return self._urgent.popleft()

    # --- one call ---

    async def _answer(self, call: Call) -> None:
        request, method = call.request, call.method
        call.has_begun = True
        flight = None if method.stages is None else begin_flight(call.received, method.stages)
        try:
            if call.why is not None:
                raise call.why
            params = method.read(request.params)
            result = await (self._told(call, params) if method.tells else method.serve(self.calls, params))
            answer = None if request.id is None else method.answer(request.id, call.room, result, params)
            if answer is not None and len(answer) > call.room:
                answer = _too_long(call, len(answer))
        except FastclawError as error:
            answer = _refusal(request, error, call.room)
        except asyncio.CancelledError:
            if call.why is not None:
                answer = _refusal(request, call.why, call.room)
            elif call.task is not None and call.task.cancelling():
                raise  # our own end
            else:
                answer = _bug(request)  # the runtime let the end of a task of its own through
        except Exception:
            answer = _bug(request)
        finally:
            self._forget(call)
        if answer is not None:
            call.reply(answer)
        if flight is not None:
            flight.answer()
        call.has_been_answered()

    async def _told(self, call: Call, params: Any) -> Any:
        """Serve what tells how it comes on, where that was asked for. All that is told comes before the answer."""
        request_id = call.request.id
        if request_id is None or not params.progress:
            return await call.method.serve(self.calls, params, None)
        notices = Notices(request_id, self._send, is_held=self._held)
        self._notices.add(notices)
        try:
            return await call.method.serve(self.calls, params, notices.tell)
        finally:
            self._notices.discard(notices)
            notices.close()

    def _forget(self, call: Call) -> None:
        self._in_flight.discard(call)
        request_id = call.request.id
        if request_id is not None:
            calls = self._by_id[request_id]
            calls.remove(call)
            if not calls:
                del self._by_id[request_id]

    async def _take_back(self, request_id: jsonrpc.RequestId) -> None:
        """Cancel the call with this id; return once it has been answered. Ids of different types are different ids.

        Raises:
            InvalidParams: several have it.
        """
        calls = self._by_id.get(request_id, [])
        if len(calls) > 1:
            text = f"$.id: {len(calls)} requests in flight have the id {request_id!r}"
            raise InvalidParams(text, path="$.id")
        for call in calls:
            if call.method.is_cancellable:
                call.cut_short(RequestCancelled(f"{call.request.method} was cancelled"))
                await asyncio.wait((call.answered(),))
                return

    # --- the end ---

    async def cancel_yielding(self) -> None:
        """Cut short what a shutdown does not wait for; return when it has all answered, or takes too long for that."""
        yielding = [call for call in self._in_flight if call.method.yields_to_shutdown]
        for call in yielding:
            call.cut_short(InvalidState("the runtime is shutting down", "shutting_down"))
        await _all_answered(yielding, limits.YIELD_MS / 1000)

    async def wait_idle(self) -> None:
        """Return when every request has been answered. The caller sets a deadline."""
        while self._in_flight:
            await _all_answered(self._in_flight, None)

    async def aclose(self) -> None:
        """Cancel everything that is still in flight. Idempotent."""
        self._waiting.clear()
        self._urgent.clear()
        tasks = [call.task for call in self._in_flight if call.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._in_flight.clear()
        self._by_id.clear()


async def _all_answered(calls: Iterable[Call], timeout_s: float | None) -> None:
    answered = [call.answered() for call in calls]
    if answered:
        await asyncio.wait(answered, timeout=timeout_s)


def _why_refused(name: str, method: Method | None) -> FastclawError:
    if method is None:
        return MethodNotFound(f"no method {name!r}; there are {', '.join(METHODS)}", method=name)
    return InvalidState(f"{method.ceiling()} requests are in flight; try again later", "overloaded")


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


def _too_long(call: Call, length: int) -> bytes | None:
    """For an answer over the limit of its line. In a batch each has a share of it."""
    text = f"the answer has {length} bytes, and room for {call.room}; ask for less at a time"
    return _refusal(call.request, InvalidRequest(text, "line_too_long"), call.room)
