"""Lean calls: deadlines, ids, and the words for errors of any shape. Runtimes that lie: test_benchmark.py."""

from __future__ import annotations

import os
from typing import Any

import pytest

from fastclaw import bench_limits
from fastclaw.bench.calls import Calls, reason_of
from fastclaw.bench.recorder import Failed
from tests.bench.rig import evil


@pytest.mark.parametrize(
    ("error", "word"),
    [
        ({"code": -32000, "message": "m", "data": {"reason": "overloaded"}}, "overloaded"),
        ({"code": -32000, "message": "m", "data": {"reason": 5}}, "error -32000"),
        ({"code": -32000, "message": "m", "data": []}, "error -32000"),
        ({"code": True}, "wrong_error"),
        ({"data": {"reason": ""}}, "wrong_error"),
        (None, "wrong_error"),
        ("no", "wrong_error"),
        ({"data": {"reason": "x" * 1000}}, "x" * bench_limits.BENCH_REASON_CHARS),
    ],
)
def test_the_word_for_an_error(error: Any, word: str) -> None:
    assert reason_of(error) == word


async def test_a_deadline_passes_and_the_next_call_goes_on() -> None:
    calls = Calls(deadline_ms=100)
    try:
        await calls.start(evil("never"), dict(os.environ))
        with pytest.raises(Failed, match="no_answer"):
            await calls.result("run", b"{}")
        _, result = await calls.result("health", b"{}")
        assert result == {}
    finally:
        await calls.aclose()


async def test_after_the_end_each_call_is_told_at_once() -> None:
    calls = Calls(deadline_ms=60_000)
    ends: list[str | None] = []
    calls.on_end = lambda: ends.append(calls.end)
    try:
        await calls.start(evil("dies-at-once"), dict(os.environ))
        for _ in range(2):
            with pytest.raises(Failed, match="runtime_exited"):
                await calls.result("initialize", b"{}")
        assert ends == ["runtime exited with code 3"]
        assert await calls.exit_code(1_000) == 3
    finally:
        await calls.aclose()


async def test_calls_that_were_given_up_are_forgotten_at_some_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_limits, "BENCH_LATE_IDS", 2)
    calls = Calls(deadline_ms=60)
    try:
        await calls.start(evil("late"), dict(os.environ))
        waiting = [calls.call("run", b"{}") for _ in range(4)]
        assert [(await one)[2] for one in waiting] == ["no_answer"] * 4
        await calls.call("health", b"{}", 10_000)
        assert calls.oddities == {"answered_twice": 2, "late_answer": 2}
    finally:
        await calls.aclose()
