"""The checker against a runtime that breaks promises on purpose."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from fastclaw import limits
from fastclaw.conformance import POSIX, Report, check
from fastclaw.conformance.registry import CHECKS
from tests.conformance import test_broken_run

COMMAND = [sys.executable, str(Path(__file__).with_name("broken_runtime.py"))]
BROKEN = {
    "W-PARSE": "what?",
    "W-ID-ECHO": '"id":"ключ-🦀"',
    "W-NOTIFY": '"id": null',
    "L-BEFORE": '"method":"exec"',
    "L-BEFORE-HEALTH": '"fine"',
    "L-BEFORE-STOP": "exited with code 3",
    "L-INIT": '"env": {}',
    "L-TWICE": '"method":"initialize"',
    "X-RESULT": '"process_id": "1"',
    "X-LISTEN": "/no/such/socket",
    "X-MISSING": "no-such-thing-here",
    "K-UNKNOWN": "no such process",
}
"""Promise → what the exchange must show."""

CARELESS = {
    "E-DATA": "`kind` does not fit the code",
    "E-WORDS": "the message does not begin with 'exec failed: '",
    "P-ECHO": "cat gave b'FIRST",
    "P-SECOND": "a second client was served",
    "K-KILL": "what was due within 1000 ms did not come",
    "S-MODE": "has mode 755",
    "R-CODE": "exit 1 gave",
    "T-TTY": "what was due within 1000 ms did not come",
}
"""Promise → what must be said of the runtime that has sockets."""


@pytest.fixture(scope="module")
def report() -> Report:
    only = {*BROKEN, "W-LINE", "W-PIECES", "W-ID-DUP", "L-EOF", "X-KEY", "R-CODE"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "CHECK_ANSWER_MS", 300)
        return asyncio.run(check(COMMAND, POSIX, {}, only, stderr=subprocess.DEVNULL))


@pytest.mark.parametrize("promise_id", BROKEN)
def test_a_broken_promise_is_reported_with_its_exchange(report: Report, promise_id: str) -> None:
    finding = report[promise_id]
    assert finding.verdict == "broken"
    assert finding.detail
    assert any(BROKEN[promise_id] in entry for entry in finding.exchange), finding.exchange


@pytest.fixture(scope="module")
def careless(tmp_path_factory: pytest.TempPathFactory) -> Report:
    command = [*COMMAND, str(tmp_path_factory.mktemp("careless"))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "CHECK_SOON_MS", 1_000)
        return asyncio.run(check(command, POSIX, {}, {*CARELESS, "X-LISTEN"}, stderr=subprocess.DEVNULL))


@pytest.mark.parametrize("promise_id", CARELESS)
def test_a_broken_promise_is_reported_with_what_was_seen(careless: Report, promise_id: str) -> None:
    finding = careless[promise_id]
    assert finding.verdict == "broken"
    assert CARELESS[promise_id] in finding.detail
    assert finding.exchange


def test_what_the_careless_one_keeps_is_not_blamed(careless: Report) -> None:
    assert careless["X-LISTEN"].verdict == "kept"


def test_each_module_of_checks_is_seen_to_report_something_broken() -> None:
    modules = {entry.run.__module__ for entry in CHECKS}
    broken = {*BROKEN, *CARELESS, *(promise_id for _, promise_id, _ in test_broken_run.BROKEN)}
    assert {entry.run.__module__ for entry in CHECKS if entry.promise_id in broken} == modules


def test_what_it_keeps_is_not_blamed(report: Report) -> None:
    assert [report[name].verdict for name in ("W-LINE", "W-PIECES")] == ["kept", "kept"]


def test_what_it_does_not_offer_is_not_blamed(report: Report) -> None:
    assert report["R-CODE"].verdict == "not offered"
    assert "'wait'" in report["R-CODE"].detail


def test_what_it_claims_to_offer_is_checked(report: Report) -> None:
    assert report["X-KEY"].verdict == "broken"


def test_the_report_as_a_whole(report: Report) -> None:
    assert not report.ok
    assert report.capabilities == ["key"]
    assert "no such process" in report.to_text()


async def test_a_runtime_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CHECK_ANSWER_MS", "CLIENT_INITIALIZE_MS"):
        monkeypatch.setattr(limits, name, 100)
    report = await check([sys.executable, "-c", "import sys; sys.stdin.read()"], POSIX, {}, {"L-HEALTH", "X-RESULT"})
    assert (report.capabilities, report.findings, report.ok) == (None, [], False)
    assert "did not come within 100 ms" in (report.refused or "")


async def test_a_check_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHECK_MS", 2)  # in which nobody answers 10 000 requests
    report = await check(COMMAND, POSIX, {}, {"W-BURST"}, stderr=subprocess.DEVNULL)
    assert report["W-BURST"].detail == "no end within 2 ms"


async def test_a_runtime_that_cannot_be_started() -> None:
    report = await check(["/no/such/runtime"], POSIX, {}, {"W-LINE"})
    assert report.to_text().startswith("nothing was checked: io error: ")
    assert "cannot be started" in report.to_text()
