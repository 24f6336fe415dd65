"""The tables of legal moves."""

import itertools
from collections.abc import Callable

import pytest

from fastclaw import lifecycle
from fastclaw.errors import InternalError, InvalidState
from fastclaw.lifecycle import PROCESS_MOVES, RUNTIME_MOVES, Machine, ProcessState, RuntimeState


@pytest.mark.parametrize(("before", "after"), list(itertools.product(RuntimeState, repeat=2)))
def test_a_runtime_moves_along_its_table_only(before: RuntimeState, after: RuntimeState) -> None:
    machine = Machine(RUNTIME_MOVES, before)
    if after in RUNTIME_MOVES[before]:
        machine.move(after)
        assert machine.state is after
    else:
        with pytest.raises(InternalError):
            machine.move(after)
        assert machine.state is before


def test_every_state_is_in_its_table_and_the_last_is_final() -> None:
    assert set(RUNTIME_MOVES) == set(RuntimeState)
    assert set(PROCESS_MOVES) == set(ProcessState)
    assert not RUNTIME_MOVES[RuntimeState.STOPPED]
    assert not PROCESS_MOVES[ProcessState.CLOSED]


@pytest.mark.parametrize(
    ("require", "state", "reason"),
    [
        (lifecycle.require_new, RuntimeState.STARTING, "already_initialized"),
        (lifecycle.require_new, RuntimeState.RUNNING, "already_initialized"),
        (lifecycle.require_new, RuntimeState.STOPPING, "shutting_down"),
        (lifecycle.require_new, RuntimeState.STOPPED, "shutting_down"),
        (lifecycle.require_running, RuntimeState.NEW, "not_initialized"),
        (lifecycle.require_running, RuntimeState.STARTING, "not_initialized"),
        (lifecycle.require_running, RuntimeState.STOPPING, "shutting_down"),
        (lifecycle.require_running, RuntimeState.STOPPED, "shutting_down"),
    ],
)
def test_who_may_not_initialize_or_exec(
    require: Callable[[RuntimeState], None], state: RuntimeState, reason: str
) -> None:
    with pytest.raises(InvalidState) as raised:
        require(state)
    assert raised.value.reason == reason


def test_who_may() -> None:
    lifecycle.require_new(RuntimeState.NEW)
    lifecycle.require_running(RuntimeState.RUNNING)
