"""Admission against a naive model, and its cost at any queue length."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.linux.own_process import HostLimits
from fastclaw.processes.admission import Admission, Capacity, Ticket, TicketState, capacity

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType


class NaiveAdmission:
    """The same rules with a plain list, scanned every time."""

    def __init__(self, slots: int, max_live: int, queue_limit: int) -> None:
        self.slots, self.max_live, self.queue_limit = slots, max_live, queue_limit
        self.queue: list[int] = []
        self.starting: set[int] = set()
        self.live: set[int] = set()

    def has_room(self) -> bool:
        return len(self.starting) < self.slots and len(self.starting) + len(self.live) < self.max_live

    def request(self, name: int) -> str:
        if not self.queue and self.has_room():
            self.starting.add(name)
            return "starting"
        if len(self.queue) >= self.queue_limit:
            return "overloaded"
        self.queue.append(name)
        return "waiting"

    def next(self) -> list[int]:
        admitted = []
        while self.queue and self.has_room():
            admitted.append(self.queue.pop(0))
            self.starting.add(admitted[-1])
        return admitted

    def started(self, name: int) -> list[int]:
        self.starting.remove(name)
        self.live.add(name)
        return self.next()

    def leave(self, name: int) -> list[int]:
        if name in self.queue:
            self.queue.remove(name)
            return []
        self.starting.discard(name)
        self.live.discard(name)
        return self.next()


class AdmissionMachine(RuleBasedStateMachine):
    """Every order of requests, starts, ends and expiries."""

    tickets = Bundle("tickets")

    @initialize(
        containers=st.integers(1, 3), each=st.integers(1, 2), max_live=st.integers(1, 5), queue_limit=st.integers(0, 30)
    )
    def begin(self, containers: int, each: int, max_live: int, queue_limit: int) -> None:
        self.real = Admission(containers, each, max_live, queue_limit)
        self.model = NaiveAdmission(containers * each, max_live, queue_limit)
        self.containers, self.each = containers, each
        self.all: dict[int, Ticket] = {}
        self.clock = 0.0

    @rule(target=tickets)
    def request(self) -> object:
        self.clock += 1
        name = len(self.all)
        expected = self.model.request(name)
        try:
            ticket = self.real.request(name, self.clock + 10)
        except ExecFailed as error:
            assert (expected, error.reason) == ("overloaded", "overloaded")  # noqa: PT017 - either outcome is looked at
            return multiple()
        assert ticket.state.value == expected
        self.all[name] = ticket
        return ticket

    @rule(ticket=tickets)
    def started(self, ticket: Ticket) -> None:
        if ticket.state is TicketState.STARTING:
            self.same(self.real.started(ticket), self.model.started(self.name(ticket)))

    @rule(ticket=consumes(tickets))
    def leave(self, ticket: Ticket) -> None:
        self.same(self.real.leave(ticket), self.model.leave(self.name(ticket)))
        assert self.real.leave(ticket) == []

    @rule(seconds=st.integers(0, 8))
    def expire(self, seconds: int) -> None:
        self.clock += seconds
        due = [name for name in self.model.queue if self.all[name].deadline <= self.clock]
        expired = self.real.expire(self.clock)
        assert [ticket.owner for ticket in expired] == due
        for name in due:
            self.model.leave(name)

    @invariant()
    def they_agree(self) -> None:
        statistics = self.real.statistics()
        model = self.model
        assert (statistics.waiting, statistics.starting) == (len(model.queue), len(model.starting))
        assert statistics.live == len(model.starting) + len(model.live)
        first = self.all[model.queue[0]].deadline if model.queue else None
        assert self.real.next_deadline() == first

    @invariant()
    def no_container_is_over_its_share(self) -> None:
        used = [ticket.container_index for ticket in self.all.values() if ticket.state is TicketState.STARTING]
        assert all(0 <= container < self.containers and used.count(container) <= self.each for container in used)

    def name(self, ticket: Ticket) -> int:
        assert isinstance(ticket.owner, int)
        return ticket.owner

    def same(self, tickets: list[Ticket], names: list[int]) -> None:
        assert [ticket.owner for ticket in tickets] == names
        assert all(ticket.state is TicketState.STARTING for ticket in tickets)


TestAdmission = AdmissionMachine.TestCase
TestAdmission.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def crowded(waiting: int) -> tuple[Admission, list[Ticket]]:
    admission = Admission(4, 4, 100_000, 100_000)
    return admission, [admission.request(index, float(index)) for index in range(16 + waiting)]


def test_starts_are_spread_over_the_containers() -> None:
    admission = Admission(3, 2, 100, 0)
    assert [admission.request(None, 0.0).container_index for _ in range(6)] == [0, 1, 2, 0, 1, 2]


def test_a_slow_container_gets_no_more_than_it_gives_back() -> None:
    admission = Admission(2, 1, 100, 100)
    slow, quick = admission.request("slow", 0.0), admission.request("quick", 0.0)
    for _ in range(5):
        waiting = admission.request("next", 0.0)
        assert admission.started(quick) == [waiting]
        assert waiting.container_index == quick.container_index != slow.container_index
        quick = waiting


def steps(work: Callable[[], object]) -> int:
    """How many lines of Python are run."""
    count = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def test_a_decision_takes_as_many_steps_with_10_000_waiting_as_with_10() -> None:
    def some_turns(admission: Admission, live: list[Ticket]) -> None:
        for ticket in live:
            admission.started(ticket)
            admission.leave(ticket)
            admission.request(None, 1e9)

    few, many = crowded(20), crowded(10_000)
    assert steps(lambda: some_turns(many[0], many[1][:16])) == steps(lambda: some_turns(few[0], few[1][:16]))


def test_giving_up_takes_few_steps_from_any_place_of_a_long_queue() -> None:
    admission, tickets = crowded(2_000)
    assert steps(lambda: [admission.leave(ticket) for ticket in reversed(tickets[16:])]) < 20 * 2_000
    assert admission.statistics().waiting == 0
    assert admission.next_deadline() is None


FREE = HostLimits(None, None, None, None)
FILES = limits.RESERVED_FILES + 10 * limits.FILES_PER_PROCESS
"""For ten processes whose bytes are moved here."""


def test_a_host_without_limits_holds_what_was_asked_for() -> None:
    assert capacity(FREE, 5) == Capacity(5, "options.max_processes")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (FREE._replace(nofile=FILES), Capacity(10, "open files")),
        (
            FREE._replace(nproc=limits.RESERVED_PIDS + 7 * limits.PIDS_PER_PROCESS),
            Capacity(7, "processes of this user"),
        ),
        (FREE._replace(pid_max=limits.RESERVED_PIDS + 6 * limits.PIDS_PER_PROCESS), Capacity(6, "kernel.pid_max")),
        (FREE._replace(memory_bytes=3 * limits.MEMORY_PER_PROCESS), Capacity(3, "memory")),
    ],
)
def test_the_smallest_binds(host: HostLimits, expected: Capacity) -> None:
    assert capacity(host, 4096) == expected


def test_one_process_always_fits() -> None:
    assert capacity(HostLimits(1, 1, 1, 1), 4096).processes == 1


def test_a_lane_that_holds_less_of_each_holds_more_of_them() -> None:
    few = capacity(FREE._replace(nofile=FILES), 4096, limits.FILES_PER_PUMPED)
    assert few == Capacity(10 * limits.FILES_PER_PROCESS // limits.FILES_PER_PUMPED, "open files")
