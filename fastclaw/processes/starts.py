"""A start on its way: its turn, its key, and what must be taken back if it fails.

`admission` decides; clock, futures and tasks are here. Processes that run are in the table.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastclaw.errors import ExecFailed, FastclawError, InvalidParams, InvalidState, IoError, RuntimeSdkError
from fastclaw.processes.admission import Admission, HostRoom, Ticket, TicketState
from fastclaw.processes.lane import Output
from fastclaw.processes.run_output import result_of

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from fastclaw.processes.lane import Collected, LaneProcess
    from fastclaw.processes.process import Process
    from fastclaw.runtime import RunRequest, RunResult

# --- its turn ---


class StartQueue:
    """Turns admission's decisions into waiting: a call awaits its ticket, and is woken or turned away.

    Parameters:
        admission: who may start.
        timeout_s: how long a call may wait.
        room: what is shared with other environments; None: nothing is.
    """

    def __init__(self, admission: Admission, timeout_s: float, room: HostRoom | None = None) -> None:
        self._admission = admission
        self._room = room
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: set[asyncio.Future[None]] = set()
        self._closed = False
        admission.hungry = self._on_room

    def __repr__(self) -> str:
        return f"<StartQueue{' closed' if self._closed else ''} {self._admission}>"

    async def admit(self) -> Ticket:
        """Wait until a start is allowed. The caller then owns the ticket and must `started` and `leave` it.

        Raises:
            ExecFailed: `overloaded`: the queue is full, or the wait took too long.
            InvalidState: `shutting_down`.
        """
        if self._closed:
            raise InvalidState("the runtime is shutting down", "shutting_down")
        ticket = self._admission.request(None, self._loop.time() + self._timeout_s)
        if ticket.state is TicketState.WAITING:
            ticket.owner = self._loop.create_future()
            await self._turn(ticket)
        return ticket

    async def _turn(self, ticket: Ticket) -> None:
        """Return once a ticket that waits may start. Where this fails, it has left.

        Raises:
            ExecFailed: `overloaded`: the wait took too long.
            InvalidState: `shutting_down`.
        """
        turn = ticket.owner
        assert isinstance(turn, asyncio.Future)
        self._arm()
        self._waiting.add(turn)
        try:
            await turn
        except BaseException:
            self.leave(ticket)
            raise
        finally:
            self._waiting.discard(turn)

    def started(self, ticket: Ticket) -> None:
        """The process runs."""
        self._wake(self._admission.started(ticket))

    def leave(self, ticket: Ticket) -> None:
        """The start failed or the process ended. Idempotent."""
        self._wake(self._admission.leave(ticket))
        if self._room is not None:
            self._room.serve()

    def _on_room(self) -> None:
        self._wake(self._admission.next_one())

    def turn_away(self, error: FastclawError) -> None:
        """Fail all that wait."""
        for turn in list(self._waiting):
            _fail(turn, error)

    def close(self, error: FastclawError | None = None) -> None:
        """Turn away all that wait, and all that come.

        Parameters:
            error: what those that wait are told; None: that the runtime is shutting down.
        """
        self._closed = True
        self._disarm()
        self.turn_away(error or InvalidState("the runtime is shutting down", "shutting_down"))
        if self._room is not None:
            self._room.forget(self._admission.hungry)
        self._admission.hungry = _nothing

    def _wake(self, tickets: list[Ticket]) -> None:
        while tickets:
            freed: list[Ticket] = []
            for ticket in tickets:
                turn = ticket.owner
                assert isinstance(turn, asyncio.Future)
                if turn.done():  # cancelled or turned away in this very turn of the loop: its place goes to the next
                    freed += self._admission.leave(ticket)
                else:
                    turn.set_result(None)
            tickets = freed

    def _arm(self) -> None:
        deadline = self._admission.next_deadline()
        if self._timer is None and deadline is not None:
            self._timer = self._loop.call_at(deadline, self._expire)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        for ticket in self._admission.expire(self._loop.time()):
            turn = ticket.owner
            assert isinstance(turn, asyncio.Future)
            _fail(turn, ExecFailed(f"no start became free within {self._timeout_s:g} s; try again later", "overloaded"))
        if not self._closed:
            self._arm()


def _nothing() -> None:
    """For a queue that lets nobody in any more."""


def _fail(turn: asyncio.Future[None], error: FastclawError) -> None:
    if not turn.done():
        turn.set_exception(error)


# --- its key ---


def require_same(first: bytes, again: bytes, name: str = "key") -> None:
    """Raises InvalidParams: the key was used for another request. Both are fingerprints of requests."""
    if first != again:
        raise InvalidParams(f"$.{name} was used for another request; take a new {name}", path=f"$.{name}")


class _Joined:
    """One call, how many wait for it, and whether it is being taken back."""

    __slots__ = ("is_leaving", "mark", "task", "waiting")

    def __init__(self, mark: bytes, task: asyncio.Future[Any]) -> None:
        self.mark = mark
        self.task = task
        self.waiting = 0
        self.is_leaving = False


class KeyedCalls:
    """The calls by key, while they are in flight.

    Parameters:
        own: makes a task of a call; it outlives its caller.
        take_back: ends what the call with a key has started, which has no caller left.
        name: of the field that has the key.

    Attributes:
        why: what the callers of a call are told that was cancelled, and not by them.
    """

    def __init__(
        self,
        own: Callable[[Awaitable[Any]], asyncio.Future[Any]],
        take_back: Callable[[str], Awaitable[None]],
        name: str = "key",
    ) -> None:
        self.why: FastclawError = InvalidState("the runtime is shutting down", "shutting_down")
        self._name = name
        self._own = own
        self._take_back = take_back
        self._calls: dict[str, _Joined] = {}

    def close(self) -> None:
        """Begin no more."""
        self._own, self._take_back = _refuse, _nobody

    async def has(self, key: str) -> bool:
        """Whether a call with this key is in flight. One that is being taken back is waited for; that frees the key."""
        while (joined := self._calls.get(key)) is not None and joined.is_leaving:
            await asyncio.wait((joined.task,))
        return joined is not None

    async def join(self, key: str, mark: bytes, begin: Callable[[], Awaitable[Any]]) -> Any:
        """The result of the call with this key; `begin` makes one where there is none.

        A caller that is cancelled leaves the call to the others. With the last one the call is cancelled, and this
        returns once that is through.

        Raises:
            InvalidParams: the call in flight is another request.
            FastclawError: `why`.
        """
        joined = self._calls.get(key)
        if joined is None:
            joined = self._begin(key, mark, begin)
        require_same(joined.mark, mark, self._name)
        joined.waiting += 1
        try:
            return await asyncio.shield(joined.task)
        except asyncio.CancelledError:
            if joined.task.cancelled():
                raise self.why from None
            if joined.waiting == 1:
                await self._leave_last(key, joined)
            raise
        finally:
            joined.waiting -= 1

    def _begin(self, key: str, mark: bytes, begin: Callable[[], Awaitable[Any]]) -> _Joined:
        joined = self._calls[key] = _Joined(mark, self._own(begin()))
        joined.task.add_done_callback(lambda _: self._calls.pop(key))
        return joined

    async def _leave_last(self, key: str, joined: _Joined) -> None:
        joined.is_leaving = True
        joined.task.cancel()
        await asyncio.wait((joined.task,))
        if joined.task.cancelled():
            return
        joined.task.result()  # an error says that it could not be taken back
        await self._take_back(key)


def _refuse(call: Awaitable[Any]) -> asyncio.Future[Any]:
    if asyncio.iscoroutine(call):
        call.close()
    raise InvalidState("the environment has ended", "environment_stopped")


async def _nobody(key: str) -> None:
    """There is nothing to take back."""


# --- what there is of it ---

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC, errno.EAGAIN})
"""The kernel's errors for a resource that is short now: trying later may help."""


class Begun:
    """A start on its way: all that must be taken back if it fails."""

    __slots__ = ("lane_process", "process", "ticket")

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.lane_process: LaneProcess | None = None
        self.process: Process | None = None


Tell = Callable[["Process", "Collected", "RunRequest"], Any]
"""What becomes of a run's output in the end."""


def tell_run(process: Process, collected: Collected, request: RunRequest) -> RunResult:
    """Its answer. What is kept of it for minutes is the record."""
    result = result_of(process.record(), collected, request.keep)
    collected.stdout = collected.stderr = Output()
    return result


def never_ran(lane_process: LaneProcess) -> bool:
    """Whether the lane has refused the start, and left nothing behind."""
    started = lane_process.started
    return started is not None and started.done() and not started.cancelled() and started.exception() is not None


def explained(error: OSError) -> RuntimeSdkError:
    """A refusal of the kernel as an error of the contract."""
    text = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in _EXHAUSTED:
        return ExecFailed(f"{text}; fewer processes at a time, or a higher limit (fastclaw doctor)", "overloaded")
    return IoError(f"the process's sockets: {text}")
