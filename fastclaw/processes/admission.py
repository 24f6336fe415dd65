"""Who may start now, who waits, who is turned away: O(1) per decision at any queue length.

A start needs two things: a slot of one of the containers (starts in flight) and room among the live processes. Waiting
tickets are admitted in order of arrival. Time is an argument; nothing here sleeps, or knows what is started.
"""

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from fastclaw import limits
from fastclaw.errors import ExecFailed, StartFailed
from fastclaw.linux.own_process import HostLimits


class TicketState(Enum):
    """What became of one exec call's wish to start."""

    WAITING = "waiting"
    STARTING = "starting"
    LIVE = "live"
    GONE = "gone"


class Ticket:
    """One exec call's wish to start.

    Parameters:
        deadline: in the caller's clock, seconds; past it a waiting ticket is turned away.

    Attributes:
        container_index: which of the environment's containers it starts in, from 0; -1 while it waits.
    """

    __slots__ = ("container_index", "deadline", "owner", "state")

    def __init__(self, owner: object, deadline: float) -> None:
        self.owner = owner
        self.deadline = deadline
        self.container_index = -1
        self.state = TicketState.WAITING


class AdmissionStatistics(NamedTuple):
    """How full it is: what waits, what is being started, what lives, and the bounds of the three."""

    waiting: int
    starting: int
    live: int
    queue_limit: int
    max_starting: int
    max_processes: int


class HostRoom:
    """What all environments share: how many processes there may be, and the descriptors that are held here for them.

    Environments that found no room take turns, one start each, so that none is starved by the others.

    Parameters:
        processes: that start or live.
        files: descriptors, of the environments themselves too.
    """

    def __init__(self, processes: int, files: int) -> None:
        self._processes, self._files = processes, files
        self._hungry: dict[Callable[[], None], None] = {}
        self._is_serving = False

    def __repr__(self) -> str:
        return f"<HostRoom for {self._processes} processes and {self._files} files, {len(self._hungry)} wait>"

    def take(self, files: int, hungry: Callable[[], None]) -> bool:
        """Whether there is room for one more process.

        Parameters:
            files: descriptors that it needs.
            hungry: called where there is none, once there is: it may start one.
        """
        has_turn = self._is_serving or not self._hungry
        if not has_turn or self._processes < 1 or self._files < files:
            self.await_room(hungry)
            return False
        self._processes -= 1
        self._files -= files
        return True

    def await_room(self, hungry: Callable[[], None]) -> None:
        """Have it called in its turn."""
        self._hungry.setdefault(hungry)

    def forget(self, hungry: Callable[[], None]) -> None:
        """It will start nothing any more. Idempotent."""
        self._hungry.pop(hungry, None)

    def release(self, files: int) -> None:
        """A process has ended. `serve` follows."""
        self._processes += 1
        self._files += files

    def serve(self) -> None:
        """Let those start that found no room, in turns."""
        if self._is_serving:
            return
        self._is_serving = True
        try:
            while self._hungry and self._processes > 0:
                hungry = next(iter(self._hungry))
                del self._hungry[hungry]
                free = self._processes
                hungry()
                if hungry in self._hungry and self._processes == free:
                    return  # not enough descriptors
        finally:
            self._is_serving = False

    def hold(self, files: int) -> None:
        """Take descriptors for an environment; `let_go` gives them back.

        Raises:
            StartFailed: `overloaded`: there are not so many.
        """
        if self._files < files:
            text = "no descriptors are left for one more environment; end one, or raise the limit (ulimit -n)"
            raise StartFailed(text, "overloaded")
        self._files -= files

    def let_go(self, files: int) -> None:
        """An environment has ended. `serve` follows."""
        self._files += files


class Admission:
    """Bounds how many processes start and live at a time, and queues the tickets that have to wait.

    Parameters:
        containers: how many containers the starts are spread over; 1 on a lane without.
        max_starting: starts in flight per container.
        max_live: processes that are starting or live.
        queue_limit: tickets that wait.
        room: what is shared with other environments; None: nothing is.
        files_each: descriptors of each process, of those in `room`.

    Attributes:
        hungry: called once there is room again where there was none; `next_one` may start then.
    """

    def __init__(
        self,
        containers: int,
        max_starting: int,
        max_live: int,
        queue_limit: int,
        room: HostRoom | None = None,
        files_each: int = 0,
    ) -> None:
        # Slots are handed out round robin over the containers and come back to the end of the line: a container that
        # is slow to give its slots back gets fewer starts, without a scan.
        self._slots: deque[int] = deque(container for _ in range(max_starting) for container in range(containers))
        self._max_starting = len(self._slots)
        self._max_live = max_live
        self._queue_limit = queue_limit
        self._room, self._files_each = room, files_each
        self.hungry: Callable[[], None] = lambda: None
        self._queue: deque[Ticket] = deque()
        self._waiting = 0
        self._occupied = 0

    def __repr__(self) -> str:
        now = self.statistics()
        return f"<Admission live={now.live}/{now.max_processes} starting={now.starting} waiting={now.waiting}>"

    def statistics(self) -> AdmissionStatistics:
        """A snapshot."""
        starting = self._max_starting - len(self._slots)
        return AdmissionStatistics(
            self._waiting, starting, self._occupied, self._queue_limit, self._max_starting, self._max_live
        )

    def request(self, owner: object, deadline: float) -> Ticket:
        """Ask for a start. The ticket is STARTING (its container_index is set) or WAITING.

        Raises:
            ExecFailed: `overloaded`, the queue is full.
        """
        ticket = Ticket(owner, deadline)
        if not self._waiting and self._admit(ticket):
            return ticket
        if self._waiting >= self._queue_limit:
            raise ExecFailed(f"{self._waiting} exec calls wait already; try again later", "overloaded")
        self._queue.append(ticket)
        self._waiting += 1
        return ticket

    def _admit(self, ticket: Ticket) -> bool:
        if not self._slots or self._occupied >= self._max_live:
            return False
        if self._room is not None and not self._room.take(self._files_each, self.hungry):
            return False
        ticket.container_index = self._slots.popleft()
        ticket.state = TicketState.STARTING
        self._occupied += 1
        return True

    def started(self, ticket: Ticket) -> list[Ticket]:
        """The process runs: its slot is free, its place is not. Returns the tickets that may start now."""
        self._slots.append(ticket.container_index)
        ticket.state = TicketState.LIVE
        return self._next()

    def leave(self, ticket: Ticket) -> list[Ticket]:
        """A waiting ticket gave up, a start failed, or a live process ended. Returns the tickets that may start now."""
        state, ticket.state = ticket.state, TicketState.GONE
        if state is TicketState.WAITING:
            self._waiting -= 1  # its entry in the queue is passed over later
            self._trim()
            return []
        if state is TicketState.GONE:
            return []
        if state is TicketState.STARTING:
            self._slots.append(ticket.container_index)
        self._occupied -= 1
        if self._room is not None:
            self._room.release(self._files_each)
        return self._next()

    def next_one(self) -> list[Ticket]:
        """There is room again: the ticket that may start now. More of them wait for the next turn."""
        admitted = self._next(1)
        if self._room is not None and self._waiting and self._slots and self._occupied < self._max_live:
            self._room.await_room(self.hungry)
        return admitted

    def _trim(self) -> None:
        # Rebuilt only when most entries are of tickets that gave up: amortised O(1).
        if len(self._queue) > 2 * self._waiting + 16:
            self._queue = deque(ticket for ticket in self._queue if ticket.state is TicketState.WAITING)

    def _next(self, most: int | None = None) -> list[Ticket]:
        admitted: list[Ticket] = []
        while self._waiting and len(admitted) != most:
            ticket = self._queue[0]
            if ticket.state is TicketState.WAITING:
                if not self._admit(ticket):
                    break
                self._waiting -= 1
                admitted.append(ticket)
            self._queue.popleft()
        return admitted

    def expire(self, now: float) -> list[Ticket]:
        """Turn away what has waited past its deadline. Deadlines must not decrease in order of arrival."""
        expired: list[Ticket] = []
        while self._queue and (self._queue[0].state is not TicketState.WAITING or self._queue[0].deadline <= now):
            ticket = self._queue.popleft()
            if ticket.state is TicketState.WAITING:
                ticket.state = TicketState.GONE
                self._waiting -= 1
                expired.append(ticket)
        return expired

    def next_deadline(self) -> float | None:
        """When `expire` has something to do next, or None."""
        while self._queue and self._queue[0].state is not TicketState.WAITING:
            self._queue.popleft()
        return self._queue[0].deadline if self._queue else None


class Capacity(NamedTuple):
    """How many processes, and the name of the limit that says so."""

    processes: int
    binds: str


def capacity(host: HostLimits, asked: int, files_each: int = limits.FILES_PER_PROCESS) -> Capacity:
    """The most processes that `options.max_processes` (`asked`) and the host allow.

    Parameters:
        files_each: descriptors of this process for each.
    """
    ceilings = {
        "options.max_processes": asked,
        "open files": _share(host.nofile, limits.RESERVED_FILES, files_each),
        "processes of this user": _share(host.nproc, limits.RESERVED_PIDS, limits.PIDS_PER_PROCESS),
        "kernel.pid_max": _share(host.pid_max, limits.RESERVED_PIDS, limits.PIDS_PER_PROCESS),
        "memory": _share(host.memory_bytes, 0, limits.MEMORY_PER_PROCESS),
    }
    known = {name: count for name, count in ceilings.items() if count is not None}
    binds = min(known, key=lambda name: known[name])
    return Capacity(known[binds], binds)


def host_room(host: HostLimits) -> HostRoom:
    """What all environments of this process share."""
    known = (
        _share(host.nproc, limits.RESERVED_PIDS, limits.PIDS_PER_PROCESS),
        _share(host.pid_max, limits.RESERVED_PIDS, limits.PIDS_PER_PROCESS),
        _share(host.memory_bytes, 0, limits.MEMORY_PER_PROCESS),
    )
    files = _share(host.nofile, limits.RESERVED_FILES, 1)
    processes = min((count for count in known if count is not None), default=_MANY)
    return HostRoom(processes, _MANY if files is None else files)


_MANY = 2**31
"""Where the host sets no limit."""


def _share(total: int | None, reserved: int, each: int) -> int | None:
    return None if total is None else max(1, (total - reserved) // each)
