"""Who may start next: the cost of a decision with 10 calls waiting and with 10 000."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from bench.ratios import Ratios, compare
from fastclaw import limits
from fastclaw.processes.admission import Admission, Ticket, TicketState

if TYPE_CHECKING:
    from collections.abc import Callable

    from pytest_benchmark.fixture import BenchmarkFixture

FEW = 10
MANY = limits.QUEUE_LIMIT
TURNS = 20_000
CONTAINERS = 4
LIVE = 64


def waiting_line(waiting: int) -> tuple[Admission, deque[Ticket]]:
    """An admission that is full, with so many that wait; and its live tickets."""
    admission = Admission(CONTAINERS, limits.MAX_STARTING_REST, LIVE, MANY + 1)
    live = deque(admission.request(number, 0.0) for number in range(CONTAINERS * limits.MAX_STARTING_REST))
    for ticket in list(live):
        assert admission.started(ticket) == []
    while len(live) < LIVE:
        ticket = admission.request(len(live), 0.0)
        admission.started(ticket)
        live.append(ticket)
    for number in range(waiting):
        assert admission.request(LIVE + number, 0.0).state is TicketState.WAITING
    return admission, live


def turns(waiting: int) -> Callable[[], None]:
    """One ends, the next may start and does, a new one comes: three decisions a turn, at a constant queue."""
    admission, live = waiting_line(waiting)

    def run() -> None:
        for _ in range(TURNS):
            (admitted,) = admission.leave(live.popleft())
            admission.started(admitted)
            live.append(admitted)
            admission.request(admitted.owner, 0.0)
        assert admission.statistics().waiting == waiting
        assert admission.statistics().live == LIVE

    return run


def impatience(waiting: int) -> Callable[[], None]:
    """The last in the queue gives up and asks again."""
    admission, _ = waiting_line(waiting)

    def run() -> None:
        for number in range(TURNS):
            ticket = admission.request(number, 0.0)
            assert admission.leave(ticket) == []
        assert admission.statistics().waiting == waiting

    return run


def test_first_come_first_served() -> None:
    admission, live = waiting_line(FEW)
    order = [admission.leave(live.popleft())[0].owner for _ in range(FEW)]
    assert order == list(range(LIVE, LIVE + FEW))


def test_turns(benchmark: BenchmarkFixture, ratios: Ratios) -> None:
    found = compare(benchmark, turns(MANY), {"few": turns(FEW)}, rounds=15)
    ratios.compared("admission with 10 000 waiting", "with 10", found.rates("few", 3 * TURNS))


def test_giving_up(benchmark: BenchmarkFixture, ratios: Ratios) -> None:
    found = compare(benchmark, impatience(MANY), {"few": impatience(FEW)}, rounds=15)
    ratios.compared("giving up with 10 000 waiting", "with 10", found.rates("few", TURNS))
