"""A whole benchmark, of runtimes that are good and of runtimes that die, lie, or never answer."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw.bench.benchmark import benchmark
from fastclaw.bench.job import LoadName, Plan
from fastclaw.bench.session import NotMeasured
from fastclaw.conformance.rig import bearers
from fastclaw.errors import IoError
from tests.bench.rig import IN_SH, LOCAL, MEMORY, evil, ignored, job, report_of

if TYPE_CHECKING:
    from fastclaw.bench.driver import Driver

CLEAN = {"processes": 0, "sockets": 0, "containers": 0, "environments": 0}


def left(report: Any) -> dict[str, int]:
    return {name: getattr(report.leftovers, name) for name in CLEAN}


@pytest.mark.parametrize("load", ["exec", "run", "hold", "environments"])
async def test_each_load_on_a_runtime_that_is_good(load: LoadName) -> None:
    report = await report_of(job(MEMORY, load, live=4))
    assert report.ok, report
    assert (report.measured.right, report.measured.right_percent, report.measured.failed) == (40, 100.0, {})
    assert report.measured.latency.samples == 40
    assert report.floor is not None
    assert report.floor.measured.failed == {}
    assert report.floor.measured.right == report.floor.measured.latency.samples > 0
    stages = {"exec": ["exec", "wait"], "environments": ["start", "first byte", "stop"]}
    assert list(report.measured.stages) == stages.get(load, [])
    assert left(report) == CLEAN


async def test_files_are_written_read_and_removed() -> None:
    report = await report_of(job(LOCAL, "files", size=10_000))
    assert report.ok, report
    assert list(report.measured.stages) == ["write", "read"]
    assert not [name for name in os.listdir("/tmp") if name.startswith("fastclaw-bench-")]


async def test_a_runtime_in_sh_is_one_like_any_other() -> None:
    report = await report_of(job(["sh", "-c", IN_SH]))
    assert report.ok, report
    assert report.server == {"name": "sh"}


@pytest.mark.parametrize("how", ["good", "backwards"])
async def test_the_order_of_answers_is_the_runtimes_own_affair(how: str) -> None:
    report = await report_of(job(evil(how)))
    assert report.ok, report
    assert report.measured.right == 40


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("never", "no_answer"),
        ("errors", "overloaded"),
        ("bare-errors", "wrong_error"),
        ("lists", "wrong_result"),
        ("no-record", "wrong_result"),
        ("text-code", "wrong_result"),
        ("true-code", "wrong_result"),
        ("fails", "exit code 3"),
        ("signals", "signal 9"),
        ("kills", "killed"),
    ],
)
async def test_what_is_wrong_is_counted_by_its_reason(how: str, reason: str) -> None:
    report = await report_of(job(evil(how), plan=Plan(concurrency=4, count=8), deadline_ms=100))
    assert not report.ok
    assert report.measured.failed == {reason: 8}
    assert (report.measured.begun, report.measured.right, report.measured.right_percent) == (8, 0, 0.0)
    assert report.ended_early is None
    if how == "errors":
        assert report.messages == {"overloaded": "exec failed: overloaded"}


@pytest.mark.parametrize(
    ("how", "oddities"),
    [
        ("twice", {"answered_twice": 40}),
        ("unknown-ids", {"unknown_id": 80}),
        ("garbage", {"not_json": 40}),
        ("talks", {"notification": 40, "no_answer_object": 40}),
    ],
)
async def test_what_nobody_asked_for_is_counted_and_shown(how: str, oddities: dict[str, int]) -> None:
    report = await report_of(job(evil(how)))
    assert report.measured.right == 40
    assert report.oddities == oddities
    assert report.example
    assert not report.ok


async def test_an_answer_that_is_late_is_a_failure_and_no_lie() -> None:
    report = await report_of(job(evil("late"), plan=Plan(count=2), deadline_ms=100))
    assert report.measured.failed == {"no_answer": 2}
    assert set(report.oddities) == {"late_answer"}
    assert report.example == ""


async def test_a_runtime_that_dies_is_measured_until_then() -> None:
    report = await report_of(job(evil("dies"), plan=Plan(concurrency=4, duration_s=20)))
    assert report.ended_early == "runtime exited with code 7"
    assert report.exit_code == 7
    assert report.measured.right == 20
    assert report.measured.failed == {"runtime_exited": 4}
    assert report.measured.begun == 24
    assert not report.ok


async def test_a_rate_ends_with_the_runtime_too() -> None:
    report = await report_of(job(evil("dies"), plan=Plan(rate=400, duration_s=20)))
    assert report.ended_early == "runtime exited with code 7"
    assert report.measured.right == 20


async def test_a_code_at_the_end_is_told() -> None:
    report = await report_of(job(evil("ends-with-4")))
    assert (report.exit_code, report.ended_early, report.ok) == (4, None, False)


async def test_a_runtime_that_stays_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastclaw.limits.CLIENT_EXIT_MS", 200)
    report = await report_of(job(evil("stays")))
    assert report.exit_code is None
    assert not report.ok
    assert left(report) == CLEAN


async def test_a_runtime_that_reads_nothing_any_more_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastclaw.limits.CLIENT_EXIT_MS", 200)
    monkeypatch.setattr("fastclaw.limits.CLIENT_SHUTDOWN_MS", 200)
    one = job(evil("deaf"), plan=Plan(concurrency=4, count=8), cmd=["x" * 100_000], deadline_ms=100)
    report = await report_of(one)
    assert report.measured.failed == {"no_answer": 8}
    assert report.ended_early == "shutdown was answered with no_answer"
    assert report.exit_code is None
    assert left(report) == CLEAN


async def test_a_clock_that_jumps_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour ahead and back, at every look: what is measured is told by the monotonic clock, which nobody sets."""
    turns = itertools.count()
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + 3_600 * (next(turns) % 3 - 1))
    report = await report_of(job(MEMORY, plan=Plan(rate=200, duration_s=0.5)))
    assert report.ok
    assert report.measured.seconds < 10
    assert 0 < report.measured.latency.max_us < 10_000_000


@pytest.mark.parametrize("load", ["environments", "hold", "exec"])
async def test_what_is_cut_off_leaves_nothing(load: LoadName, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastclaw.bench_limits.BENCH_CUT_OFF_MS", 1)
    one = job(MEMORY, load, Plan(concurrency=16, duration_s=60), live=16)

    def interrupted_soon(driver: Driver) -> None:
        asyncio.get_running_loop().call_later(0.3, driver.interrupt)

    report, _ = await benchmark(one, interrupted_soon)
    assert report.interrupted
    assert report.measured.right > 0
    assert report.measured.right + report.measured.cut_off == report.measured.begun
    assert report.measured.failed == {}
    assert left(report) == CLEAN


async def test_a_process_that_it_leaves_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastclaw.bench_limits.BENCH_GONE_MS", 100)
    token = uuid.uuid4().hex
    report = await report_of(job(evil("leaves", token)))
    shell = next(pid for pid in bearers(token) if os.getpgid(pid) == pid)
    os.killpg(shell, signal.SIGKILL)
    assert left(report) == {**CLEAN, "processes": 2}  # the shell and its sleep
    assert not report.ok


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("dies-at-once", "initialize failed: runtime exited with code 3"),
        ("refuses", "initialize failed: exec failed: image_not_found"),
        ("odd-welcome", "initialize failed: wrong_result"),
    ],
)
async def test_a_runtime_that_does_not_come_up(how: str, said: str) -> None:
    with pytest.raises(NotMeasured, match=said):
        await benchmark(job(evil(how)), ignored)


async def test_what_is_not_offered_is_not_demanded() -> None:
    with pytest.raises(NotMeasured, match="--load files needs 'files'; this runtime offers: run"):
        await benchmark(job(evil("good"), "files"), ignored)


async def test_a_program_that_is_not_there() -> None:
    with pytest.raises(IoError, match="cannot be started"):
        await benchmark(job(["/nonexistent"]), ignored)
