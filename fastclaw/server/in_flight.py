"""The requests that are being worked on: by id, so that one can be found, and as tasks, so that it can be cut short.

Knows no method's meaning and no bytes.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

from fastclaw.errors import FastclawError, InvalidParams

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastclaw.server.jsonrpc import Request, RequestId

Method = TypeVar("Method")


class Call(Generic[Method]):
    """One request from its arrival to its answer.

    Parameters:
        method: how it is served.
        reply: takes its answer line.
        room: the most bytes that line may have.

    Attributes:
        task: runs it; None until its turn has come, and where nobody may cut it short.
        why: it was cut short, and this is its answer.
    """

    __slots__ = ("_answered", "method", "reply", "request", "room", "task", "why")

    def __init__(self, request: Request, method: Method, reply: Callable[[bytes], None], room: int) -> None:
        self.request = request
        self.method = method
        self.reply = reply
        self.room = room
        self.task: asyncio.Task[None] | None = None
        self.why: FastclawError | None = None
        self._answered: asyncio.Future[None] | None = None

    def cut_short(self, why: FastclawError) -> None:
        """Cancel it. Only the first one counts: whoever is taking something back is not to be disturbed in it."""
        if self.why is None:
            self.why = why
            if self.task is not None:
                self.task.cancel()

    def is_cut_short(self) -> bool:
        """Whether nobody else has cancelled its task: the cancellation ends here, and the task goes on to other work.

        To be called in the task itself.
        """
        if self.why is None or self.task is None or self.task.cancelling() != 1:
            return False
        self.task.uncancel()
        return True

    async def wait_answered(self) -> None:
        """Return once its answer has been given to `reply`."""
        if self._answered is None:
            self._answered = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._answered)

    def has_been_answered(self) -> None:
        """Its answer has been given to `reply`, if it gets one."""
        if self._answered is not None:
            self._answered.set_result(None)


class InFlight(Generic[Method]):
    """The calls that have an id. Ids of different types are different ids; one may be held by several calls."""

    def __init__(self) -> None:
        self._first: dict[RequestId, Call[Method]] = {}
        self._shared: dict[RequestId, list[Call[Method]]] = {}

    def add(self, call: Call[Method]) -> None:
        """A request that has come."""
        request_id = call.request.id
        if request_id is None:
            return
        first = self._first.setdefault(request_id, call)
        if first is not call:
            self._shared.setdefault(request_id, [first]).append(call)

    def remove(self, call: Call[Method]) -> None:
        """It has been answered."""
        request_id = call.request.id
        if request_id is None:
            return
        if request_id in self._shared:
            self._remove_shared(request_id, call)
        else:
            del self._first[request_id]

    def _remove_shared(self, request_id: RequestId, call: Call[Method]) -> None:
        calls = self._shared[request_id]
        calls.remove(call)
        self._first[request_id] = calls[0]
        if len(calls) == 1:
            del self._shared[request_id]

    def find(self, request_id: RequestId) -> Call[Method] | None:
        """The call that has this id; None where none has.

        Raises:
            InvalidParams: several have it.
        """
        if request_id in self._shared:
            number = len(self._shared[request_id])
            raise InvalidParams(f"$.id: {number} requests in flight have the id {request_id!r}", path="$.id")
        return self._first.get(request_id)
