"""The stages of real calls, from the line that was read to the line that was written."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw.errors import InvalidState
from fastclaw.stages import STAGES
from tests.served import Served, served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RUN = ["admitted", "sent", "taken", "started", "first_byte", "exited", "gone"]
"""What a run's answer has of one that says something; when it is written it cannot say itself."""


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Served]:
    for child in served(tmp_path, "local"):
        child.initialize()
        yield child


def counts(runtime: Served, method: str = "run", lane: str = "spawn") -> dict[str, dict[str, int]]:
    """How many of each stage, by outcome."""
    latency = runtime.call("health")["result"]["details"]["latency"].get(method, {}).get(lane, {})
    return {
        outcome: {stage: figures["count"] for stage, figures in stages.items()} for outcome, stages in latency.items()
    }


def test_the_stages_of_a_run_come_in_their_order(runtime: Served) -> None:
    timings = runtime.call("run", cmd=["echo", "hello"])["result"]["timings"]
    assert list(timings) == RUN
    assert timings.pop("first_byte") >= timings["started"], "it may be read after the command's end"
    assert list(timings.values()) == sorted(timings.values())
    assert runtime.call("run", cmd=["true"])["result"]["timings"].keys() == set(RUN) - {"first_byte"}


def test_an_exec_is_answered_before_it_ends(runtime: Served) -> None:
    process = runtime.exec("cat")["process_id"]
    runtime.call("kill", process_id=process, grace_ms=0)
    timings = runtime.call("wait", process_id=process)["result"]["timings"]
    assert list(timings) == [*STAGES[1:5], "exited", "gone", "answered"]
    assert timings["started"] <= timings["answered"] <= timings["exited"] <= timings["gone"]


def test_a_tree_that_outlives_its_command_is_told_of_when_it_goes(runtime: Served) -> None:
    told = runtime.call("run", cmd=["sh", "-c", "sleep 1000 >/dev/null 2>&1 & echo $!"])["result"]
    assert "gone" not in told["timings"]
    os.kill(int(told["stdout"]), 9)
    record: dict[str, Any] = {}

    def is_gone() -> bool:
        record.update(runtime.call("wait", process_id=told["process_id"])["result"])
        return "gone" in record["timings"]

    while not is_gone():
        pass
    assert record["timings"]["gone"] > record["timings"]["exited"]
    assert counts(runtime)["exited"]["gone"] == 1


def test_each_outcome_is_counted_apart(runtime: Served) -> None:
    for cmd in (["true"], ["false"], ["sh", "-c", "kill -9 $$"], ["no-such-program"]):
        runtime.call("run", cmd=cmd)
    runtime.call("run", cmd=["sleep", "1000"], timeout_ms=50)
    found = counts(runtime)
    assert {outcome: stages["total"] for outcome, stages in found.items()} == {
        "exited": 2, "signaled": 1, "not_found": 1, "timeout": 1,
    }  # fmt: skip
    assert list(found["not_found"]) == ["total", "admitted", "sent"]
    assert set(found["timeout"]) >= {"admitted", "sent", "taken", "started", "exited", "gone", "answered", "total"}


def test_helpers_of_ours_count_for_nobody(runtime: Served, tmp_path: Path) -> None:
    assert "result" in runtime.call("write_file", path=str(tmp_path / "file"), content="x")
    assert "result" in runtime.call("read_file", path=str(tmp_path / "file"))
    assert counts(runtime) == {}


def test_who_joins_a_call_by_its_key_counts_once(runtime: Served) -> None:
    first = runtime.call("run", cmd=["echo", "x"], key="k")["result"]
    again = runtime.call("run", cmd=["echo", "x"], key="k")["result"]
    assert again["process_id"] == first["process_id"]
    assert counts(runtime)["exited"]["total"] == 1


def test_the_start_of_an_environment_has_stages_too(tmp_path: Path) -> None:
    for runtime in served(tmp_path, "local"):
        runtime.initialize(environment=False)
        assert counts(runtime, "environment_start", "local") == {}
        assert "result" in runtime.call("environment_start", environment="one")
        refused = runtime.call("environment_start", environment="one")["error"]
        assert refused["data"]["reason"] == InvalidState("", "environment_exists").reason
        assert counts(runtime, "environment_start", "local") == {
            "ready": dict.fromkeys(("admitted", "made", "ready", "answered", "total"), 1)
        }
