"""What a report says, and the whole contract over the runtimes of this package.

Each runtime is checked once per run; each promise is a test of its own. What a test cites, that runtime keeps; all
else it does not offer, and it breaks nothing.
"""

import asyncio
import json
import os
import sys
from typing import Any

import pytest

from fastclaw.conformance import BY_ID, MEMORY, POSIX, Finding, Report, Vocabulary, check, runner
from fastclaw.conformance.rig import Rig, Session
from fastclaw.conformance.runner import proves

REPORT = Report(
    command=["serve"],
    vocabulary="posix",
    capabilities=["wait"],
    findings=[
        Finding(promise=BY_ID["W-LINE"], verdict="kept"),
        Finding(promise=BY_ID["W-PARSE"], verdict="broken", detail="it fell over", exchange=["-> {", "<- (gone)"]),
        Finding(promise=BY_ID["X-KEY"], verdict="not offered", detail="no capability"),
    ],
)


def test_text() -> None:
    lines = REPORT.to_text().splitlines()
    assert lines[0] == "wire:"
    assert lines[1].startswith("  ok   W-LINE ")
    assert lines[2].startswith("  FAIL W-PARSE ")
    assert [line.strip() for line in lines[3:6]] == ["broken: it fell over", "-> {", "<- (gone)"]
    assert lines[6] == "exec:"
    assert lines[8].strip() == "not offered: no capability"
    assert lines[-1] == "1 kept, 1 broken, 1 not offered"


def test_json() -> None:
    told = json.loads(REPORT.to_json())
    assert told["ok"] is False
    assert told["findings"][1]["promise"]["id"] == "W-PARSE"
    assert told["findings"][1]["exchange"] == ["-> {", "<- (gone)"]


def test_lookup() -> None:
    assert not REPORT.ok
    assert REPORT["X-KEY"].verdict == "not offered"
    with pytest.raises(KeyError):
        REPORT["W-BATCH"]


# --- The table of checks ---


async def holds(rig: Rig, session: Session) -> None:
    """A check."""


def test_a_promise_may_have_several_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "CHECKS", {})
    assert proves("W-LINE")(holds) is proves("W-LINE", alone=True)(holds) is holds
    assert [check.__name__ for check in runner.CHECKS["W-LINE"]] == ["holds", "holds"]


def test_a_check_for_no_promise_is_refused() -> None:
    with pytest.raises(AssertionError, match="X-NO-SUCH-PROMISE"):
        proves("X-NO-SUCH-PROMISE")


# --- The runtimes of this package ---


pytestmark = pytest.mark.timeout(600)
AT_ONCE = 4
"""Promises under check at a time: most of a check is waiting."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each id that a test cites."""
    if "promise_id" in metafunc.fixturenames:
        metafunc.parametrize("promise_id", _cited(metafunc.definition))


def _cited(item: Any) -> list[str]:
    marker = item.get_closest_marker("promise")
    assert marker is not None
    return list(marker.args)


def _report(runtime: str, vocabulary: Vocabulary, **options: Any) -> Report:
    command = [sys.executable, "-m", "fastclaw", "serve", "--runtime", runtime]
    # The log of hundreds of deliberate errors helps nobody who reads the result of a test.
    with open(os.devnull, "wb") as log:
        return asyncio.run(check(command, vocabulary, options, stderr=log, jobs=AT_ONCE))


@pytest.fixture(scope="module")
def memory() -> Report:
    """The contract over `memory`."""
    return _report("memory", MEMORY)


@pytest.fixture(scope="module")
def local() -> Report:
    """The contract over `local`."""
    return _report("local", POSIX)


@pytest.fixture(scope="module")
def podman() -> Report:
    """The contract over `podman`, with an engine of its own."""
    return _report("podman", POSIX, lane="spawn")


@pytest.fixture(scope="module")
def rest() -> Report:
    """The same over the engine's own execs."""
    return _report("podman", POSIX, lane="rest")


def _is_kept(report: Report, promise_id: str) -> None:
    finding = report[promise_id]
    assert finding.verdict == "kept", "\n".join([finding.detail, *finding.exchange])


def _offers_no_more(report: Report, test: Any) -> None:
    """Neither more nor less than the test cites is kept."""
    marker = next(mark for mark in test.pytestmark if mark.name == "promise")
    others = {finding.promise.id: finding.verdict for finding in report.findings if finding.verdict != "kept"}
    assert others == dict.fromkeys(set(BY_ID) - set(marker.args), "not offered")


@pytest.mark.promise(
    "W-LINE", "W-PIECES", "W-UTF8", "W-LINE-MAX", "W-LINE-OVER", "W-PARSE", "W-INVALID", "W-ID-ECHO",
    "W-ID-BAD", "W-ID-DUP", "W-ANSWER-MAX", "W-BURST", "W-NOTIFY", "W-PIPELINE", "W-BATCH", "W-BATCH-BAD",
    "W-BATCH-QUIET", "W-METHOD", "W-PARAMS", "W-PARAMS-NONE", "W-PARAMS-MORE", "W-STDOUT", "E-DATA",
    "E-WORDS", "L-BEFORE", "L-BEFORE-HEALTH", "L-BEFORE-STOP", "L-INIT", "L-TWICE", "L-NAMESPACE",
    "L-OPTION", "L-HEALTH", "L-STOP", "L-EOF", "L-TERM", "X-RESULT", "X-LISTEN", "X-MISSING", "X-DIR",
    "X-EMPTY", "X-NUL", "X-BIG", "X-ENV", "X-OWN-127", "X-NO-STDIN", "X-KEY", "X-TIMEOUT", "P-ECHO",
    "P-STDERR", "P-EARLY", "P-LOSSLESS", "P-BOTH-WAYS", "P-HALF-CLOSE", "P-EOF", "P-SLOW", "P-SECOND",
    "P-RETURN", "P-GONE-EOF", "P-GONE-HOLD", "P-GONE-KILL", "S-MODE", "S-PATH", "S-PEER", "S-UNLINK",
    "S-LINGER", "K-KILL", "K-ENDED", "K-UNKNOWN", "R-CODE", "R-KILLED", "R-RUNNING", "R-AGAIN",
    "R-SHAPE", "T-LIST", "T-LIST-PAGES", "T-LIST-CUT", "T-LIST-BLOCKED", "T-SIGNAL", "X-DIR-RELATIVE", "X-MERGE",
    "RUN-RESULT", "RUN-EXEC", "RUN-BOUNDS", "RUN-OUTPUT", "RUN-INPUT", "RUN-NO-INPUT", "RUN-LIMIT-ENDS",
    "RUN-LIMIT-HEAD", "RUN-LIMIT-TAIL", "RUN-LIMIT-KILL", "RUN-BINARY", "RUN-MERGE", "RUN-KEY",
    "RUN-TIMEOUT", "RUN-KILL", "RUN-OVERLOADED", "RUN-LINE", "C-EXEC", "C-RUN", "C-WAIT",
    "C-NOTIFY", "C-UNKNOWN", "C-DUPLICATE",
)  # fmt: skip
def test_memory_keeps(memory: Report, promise_id: str) -> None:
    _is_kept(memory, promise_id)


def test_memory_does_not_offer_the_rest(memory: Report) -> None:
    _offers_no_more(memory, test_memory_keeps)


spawn_lane = pytest.mark.promise(
    "W-LINE", "W-PIECES", "W-UTF8", "W-LINE-MAX", "W-LINE-OVER", "W-PARSE", "W-INVALID", "W-ID-ECHO",
    "W-ID-BAD", "W-ID-DUP", "W-ANSWER-MAX", "W-BURST", "W-NOTIFY", "W-PIPELINE", "W-BATCH", "W-BATCH-BAD",
    "W-BATCH-QUIET", "W-METHOD", "W-PARAMS", "W-PARAMS-NONE", "W-PARAMS-MORE", "W-STDOUT", "E-DATA",
    "E-WORDS", "L-BEFORE", "L-BEFORE-HEALTH", "L-BEFORE-STOP", "L-INIT", "L-TWICE", "L-NAMESPACE",
    "L-OPTION", "L-HEALTH", "L-STOP", "L-EOF", "L-TERM", "L-CLOSING", "L-NOTHING-LEFT", "L-KILLED",
    "X-RESULT", "X-LISTEN", "X-MISSING", "X-NOT-A-PROGRAM", "X-DIR", "X-DIR-MISSING", "X-USER",
    "X-EMPTY", "X-NUL", "X-BIG", "X-ENV", "X-OWN-127", "X-NO-STDIN", "X-KEY", "X-TIMEOUT", "P-ECHO",
    "P-STDERR", "P-EARLY", "P-LOSSLESS", "P-BOTH-WAYS", "P-HALF-CLOSE", "P-EOF", "P-EOF-OWN", "P-SLOW",
    "P-REOPEN", "P-SECOND", "P-RETURN", "P-GONE-EOF", "P-GONE-HOLD", "P-GONE-KILL", "S-MODE", "S-PATH",
    "S-PEER", "S-UNLINK", "S-LINGER", "K-KILL", "K-TERM", "K-HARD", "K-TREE", "K-ORPHANS", "K-ENDED",
    "K-UNKNOWN", "R-CODE", "R-SIGNAL", "R-KILLED", "R-RUNNING", "R-AGAIN", "R-SHAPE", "R-USAGE",
    "T-LIST", "T-LIST-PAGES", "T-LIST-CUT", "T-LIST-BLOCKED", "T-SIGNAL", "T-SIGNAL-GROUP", "T-LIMITS", "T-LIMITS-NAME",
    "T-TTY", "T-TTY-EOF", "T-TTY-LOSSLESS", "T-TTY-SIZE", "T-TTY-NONE", "T-TEMPLATE-NAME",
    "X-DIR-RELATIVE", "X-MERGE", "X-ORPHANS", "P-DRAIN", "P-READING", "RUN-DRAIN", "RUN-ORPHANS", "RUN-LATE-WRITER",
    "RUN-RESULT", "RUN-EXEC", "RUN-BOUNDS", "RUN-OUTPUT", "RUN-INPUT", "RUN-NO-INPUT", "RUN-LIMIT-ENDS",
    "RUN-LIMIT-HEAD", "RUN-LIMIT-TAIL", "RUN-LIMIT-KILL", "RUN-BINARY", "RUN-MERGE", "RUN-KEY",
    "RUN-TIMEOUT", "RUN-KILL", "RUN-OVERLOADED", "RUN-LINE", "C-EXEC", "C-RUN", "C-WAIT",
    "C-NOTIFY", "C-UNKNOWN", "C-DUPLICATE",
)  # fmt: skip
"""What the spawn lane keeps, on this host and in a container."""


@spawn_lane
def test_local_keeps(local: Report, promise_id: str) -> None:
    _is_kept(local, promise_id)


def test_local_does_not_offer_the_rest(local: Report) -> None:
    _offers_no_more(local, test_local_keeps)


@pytest.mark.podman
@spawn_lane
def test_podman_keeps(podman: Report, promise_id: str) -> None:
    _is_kept(podman, promise_id)


@pytest.mark.podman
def test_podman_does_not_offer_the_rest(podman: Report) -> None:
    _offers_no_more(podman, test_podman_keeps)


@pytest.mark.podman
@pytest.mark.promise(
    "W-LINE", "W-PIECES", "W-UTF8", "W-LINE-MAX", "W-LINE-OVER", "W-PARSE", "W-INVALID", "W-ID-ECHO",
    "W-ID-BAD", "W-ID-DUP", "W-ANSWER-MAX", "W-BURST", "W-NOTIFY", "W-PIPELINE", "W-BATCH", "W-BATCH-BAD",
    "W-BATCH-QUIET", "W-METHOD", "W-PARAMS", "W-PARAMS-NONE", "W-PARAMS-MORE", "W-STDOUT", "E-DATA",
    "E-WORDS", "L-BEFORE", "L-BEFORE-HEALTH", "L-BEFORE-STOP", "L-INIT", "L-TWICE", "L-NAMESPACE",
    "L-OPTION", "L-HEALTH", "L-STOP", "L-EOF", "L-TERM", "L-CLOSING", "L-NOTHING-LEFT", "L-KILLED",
    "X-RESULT", "X-LISTEN", "X-MISSING", "X-NOT-A-PROGRAM", "X-DIR", "X-DIR-MISSING", "X-EMPTY",
    "X-NUL", "X-BIG", "X-ENV", "X-OWN-127", "X-NO-STDIN", "X-KEY", "X-TIMEOUT", "P-ECHO", "P-STDERR",
    "P-EARLY", "P-LOSSLESS", "P-BOTH-WAYS", "P-HALF-CLOSE", "P-EOF", "P-SLOW", "P-SECOND", "P-RETURN",
    "P-GONE-EOF", "P-GONE-HOLD", "P-GONE-KILL", "S-MODE", "S-PATH", "S-PEER", "S-UNLINK", "S-LINGER",
    "K-KILL", "K-TERM", "K-HARD", "K-ENDED", "K-UNKNOWN", "R-CODE", "R-KILLED", "R-RUNNING", "R-AGAIN",
    "R-SHAPE", "T-LIST", "T-LIST-PAGES", "T-LIST-CUT", "T-LIST-BLOCKED", "T-SIGNAL", "T-SIGNAL-GROUP", "X-USER",
    "P-REOPEN", "K-TREE", "K-ORPHANS",
    "X-DIR-RELATIVE", "X-MERGE", "X-ORPHANS", "RUN-DRAIN", "RUN-ORPHANS",
    "RUN-RESULT", "RUN-EXEC", "RUN-BOUNDS", "RUN-OUTPUT", "RUN-INPUT", "RUN-NO-INPUT", "RUN-LIMIT-ENDS",
    "RUN-LIMIT-HEAD", "RUN-LIMIT-TAIL", "RUN-LIMIT-KILL", "RUN-BINARY", "RUN-MERGE", "RUN-KEY",
    "RUN-TIMEOUT", "RUN-KILL", "RUN-OVERLOADED", "RUN-LINE", "C-EXEC", "C-RUN", "C-WAIT",
    "C-NOTIFY", "C-UNKNOWN", "C-DUPLICATE",
)  # fmt: skip
def test_the_rest_lane_keeps(rest: Report, promise_id: str) -> None:
    _is_kept(rest, promise_id)


@pytest.mark.podman
def test_the_rest_lane_does_not_offer_the_rest(rest: Report) -> None:
    _offers_no_more(rest, test_the_rest_lane_keeps)
