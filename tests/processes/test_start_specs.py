"""From a request to what a lane is asked for; what is refused is tested with the params and the lanes."""

from __future__ import annotations

from typing import Any

import pytest

from fastclaw import stages
from fastclaw.errors import InvalidParams
from fastclaw.latency import Latency
from fastclaw.options import Options
from fastclaw.processes.start_specs import StartSpecs
from fastclaw.runtime import RunRequest
from tests.processes.lanes import ScriptedLane


@pytest.fixture
def specs() -> StartSpecs:
    options = Options(user="1:2")
    return StartSpecs(
        options, "ab", {"A": "1"}, working_dir="/w", base_dir="/b", ledger=Latency(), name="main"
    )  # fmt: skip


def test_what_the_request_does_not_say_is_the_environment_s(specs: StartSpecs) -> None:
    lane = ScriptedLane()
    spec = specs.make(lane, RunRequest(cmd=["x"], env={"B": "2"}), stdin=False, tty=None)
    assert (spec.process_id, spec.cmd, spec.user, spec.working_dir) == ("ab-1", ["x"], "1:2", "/w")
    assert (spec.base_env, spec.env) == ({"A": "1"}, {"B": "2"})
    told = specs.make(lane, RunRequest(cmd=["x"], working_dir="sub"), stdin=False, tty=None)
    assert (told.process_id, told.working_dir) == ("ab-2", "/b/sub")


def test_a_call_s_flight_is_its_start_s_and_a_helper_s_is_nobody_s(specs: StartSpecs) -> None:
    call = stages.begin(5)
    helper = specs.make(ScriptedLane(), RunRequest(cmd=["x"]), stdin=False, tty=None, is_helper=True)
    assert helper.flight is not call
    assert helper.flight.ledger is None
    spec = specs.make(ScriptedLane(), RunRequest(cmd=["x"]), stdin=False, tty=None)
    assert spec.flight is call
    assert (call.subject, call.environment, call.lane) == (spec.process_id, "main", ScriptedLane.name)
    assert call.ledger is not None


PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_trace_is_in_the_environment_unless_the_request_has_one_there(specs: StartSpecs) -> None:
    def env(**params: Any) -> dict[str, str]:
        return dict(specs.make(ScriptedLane(), RunRequest(cmd=["x"], **params), stdin=False, tty=None).env)

    assert env(env={"B": "2"}, traceparent=PARENT, tracestate="a=b") == {
        "B": "2",
        "TRACEPARENT": PARENT,
        "TRACESTATE": "a=b",
    }
    assert env(traceparent=PARENT) == {"TRACEPARENT": PARENT, "TRACESTATE": ""}
    for mine in ({"TRACEPARENT": ""}, {"TRACESTATE": "c=d"}):
        assert env(env=mine, traceparent=PARENT, tracestate="a=b") == mine
    with pytest.raises(InvalidParams, match="traceparent"):
        env(traceparent="00")


def test_numbers_are_those_of_its_own_ids(specs: StartSpecs) -> None:
    for _ in range(12):
        specs.make(ScriptedLane(), RunRequest(cmd=["x"]), stdin=False, tty=None)
    assert [specs.number("ab-1"), specs.number("ab-12")] == [1, 12]
    for other in ("", "ab", "ab-", "cd-1", "ab-x", "ab-\N{SUPERSCRIPT TWO}", "ab-123"):
        with pytest.raises(InvalidParams, match=r"\$\.after"):
            specs.number(other)
