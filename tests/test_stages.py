"""The flight record: stages in the order in which they come, whoever tells them first."""

from __future__ import annotations

import asyncio
from contextvars import copy_context

import pytest

from fastclaw import stages
from fastclaw.errors import ExecFailed
from fastclaw.stages import ENVIRONMENT_STAGES, Flight


class Heard:
    """A ledger that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, int]]] = []

    def began(self, flight: Flight, program: str) -> None:
        """Nothing of it is kept."""

    def ended(self, flight: Flight) -> None:
        self.told.append(("ended", flight.timings()))

    def gone(self, flight: Flight) -> None:
        self.told.append(("gone", flight.timings()))

    def answered(self, flight: Flight) -> None:
        self.told.append(("answered", flight.timings()))


@pytest.fixture
def heard() -> Heard:
    return Heard()


def a_flight(heard: Heard) -> Flight:
    flight = Flight(1_000)
    flight.ledger = heard
    return flight


def test_a_stage_is_reached_once(heard: Heard) -> None:
    flight = a_flight(heard)
    flight.reach(stages.ADMITTED, 2_000)
    flight.reach(stages.ADMITTED, 9_000)
    flight.merge((0, 4_000, 0, 0, 0))
    flight.merge((3_000, 5_000, 0, 0, 0))
    assert flight.timings() == {"admitted": 1, "taken": 2, "started": 3}
    assert heard.told == []


def test_of_a_run_all_is_told_with_its_end(heard: Heard) -> None:
    flight = a_flight(heard)
    flight.merge((0, 2_000, 0, 3_000, 4_000))
    flight.end("exited")
    flight.end("killed")
    assert flight.outcome == "exited"
    flight.answer()
    (ended, timings), (answered, all_of_them) = heard.told
    assert (ended, timings) == ("ended", {"started": 1, "exited": 2, "gone": 3})
    assert answered == "answered"
    assert list(all_of_them) == ["started", "exited", "gone", "answered"]


def test_of_an_exec_the_answer_comes_first_and_its_tree_may_outlive_it(heard: Heard) -> None:
    flight = a_flight(heard)
    flight.answer()
    flight.merge((0, 2_000, 0, 3_000, 0))
    flight.end("exited")
    assert [what for what, _ in heard.told] == ["ended", "answered"]
    flight.merge((0, 0, 0, 0, 9_000))
    flight.merge((0, 0, 0, 0, 9_000))
    assert [what for what, _ in heard.told] == ["ended", "answered", "gone"]


def test_a_call_has_one_flight_and_what_it_starts_besides_has_others(heard: Heard) -> None:
    def call() -> None:
        flight = stages.begin(5)
        assert stages.present() is flight
        assert stages.present(ENVIRONMENT_STAGES) is not flight, "it is no start of an environment"
        flight.ledger = heard
        assert stages.present() is not flight, "it was given away"
        assert stages.unseen().ledger is None

    copy_context().run(call)
    assert stages.present().at[stages.RECEIVED] > 5, "outside of any call"


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (ExecFailed("no", "not_found"), "not_found"),
        (asyncio.CancelledError(), "cancelled"),
        (ValueError("a bug"), "internal"),
    ],
)
def test_what_came_to_nothing_has_a_word(error: BaseException, word: str) -> None:
    assert stages.outcome_of(error) == word
