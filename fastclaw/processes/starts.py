"""Turns admission's decisions into waiting: an exec call awaits its ticket, and is woken or turned away.

The decisions are `admission`'s; the clock and the futures are here.
"""

import asyncio

from fastclaw.errors import ExecFailed, FastclawError, InvalidState
from fastclaw.processes.admission import Admission, Ticket, TicketState


class StartQueue:
    """Parameters:
    admission: who may start.
    timeout_s: how long a call may wait.
    """

    def __init__(self, admission: Admission, timeout_s: float) -> None:
        self._admission = admission
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: set[asyncio.Future[None]] = set()
        self._closed = False

    def ask(self) -> Ticket:
        """Ask for a start. The caller owns the ticket and must `leave` it; before it starts, it waits for its `turn`.

        Raises:
            ExecFailed: `overloaded`: the queue is full.
            InvalidState: `shutting_down`.
        """
        if self._closed:
            raise InvalidState("the runtime is shutting down", "shutting_down")
        ticket = self._admission.request(None, self._loop.time() + self._timeout_s)
        if ticket.state is TicketState.WAITING:
            ticket.owner = self._loop.create_future()
        return ticket

    async def admit(self) -> Ticket:
        """Wait until a start is allowed. The caller then owns the ticket and must `started` and `leave` it.

        Raises:
            ExecFailed: `overloaded`: the queue is full, or the wait took too long.
            InvalidState: `shutting_down`.
        """
        ticket = self.ask()
        if ticket.state is TicketState.WAITING:
            await self.turn(ticket)
        return ticket

    async def turn(self, ticket: Ticket) -> None:
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

    def close(self) -> None:
        """Turn away all that wait, and all that come."""
        self._closed = True
        self._disarm()
        for turn in list(self._waiting):
            _fail(turn, InvalidState("the runtime is shutting down", "shutting_down"))

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


def _fail(turn: "asyncio.Future[None]", error: FastclawError) -> None:
    if not turn.done():
        turn.set_exception(error)
