"""What a report says, and the whole contract over the runtimes of this package.

Each runtime is checked once per run; each promise is a test of its own.
"""

import asyncio
import json
import subprocess
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


AT_ONCE = 4
"""Promises under check at a time: most of a check is waiting."""

RUNTIMES: dict[str, tuple[str, Vocabulary, dict[str, Any]]] = {
    "memory": ("memory", MEMORY, {}),
    "local": ("local", POSIX, {}),
    "podman": ("podman", POSIX, {"lane": "spawn", "clone": "never"}),
    "clone": ("podman", POSIX, {"lane": "spawn", "clone": "always"}),
    "rest": ("podman", POSIX, {"lane": "rest"}),
}
"""`--runtime`, vocabulary and options of each; the last three have an engine of their own."""

NOT_OFFERED = {
    "memory": """
        L-CLOSING L-NOTHING-LEFT L-KILLED X-NOT-A-PROGRAM X-DIR-MISSING X-USER X-ORPHANS P-EOF-OWN P-REOPEN P-DRAIN
        P-READING K-TERM K-HARD K-TREE K-ORPHANS R-SIGNAL R-USAGE RUN-DRAIN RUN-ORPHANS RUN-LATE-WRITER T-SIGNAL-GROUP
        T-LIMITS T-LIMITS-NAME T-LIMITS-MEMORY T-LIMITS-CPUS T-LIMITS-PIDS
        T-TTY T-TTY-EOF T-TTY-LOSSLESS T-TTY-SIZE T-TTY-NONE T-TEMPLATE-NAME
        ENV-FAILS-ALONE ENV-APART-FILES ENV-RESET-FILES
        F-CONTENT F-PART F-ERRORS F-NAMES F-LIST F-TAR F-TAR-EXCLUDE F-TAR-WITHIN F-TAR-LIES F-KINDS F-ATOMIC F-MOVE
        F-REMOVE F-STREAM F-USER IMG-BUILD IMG-FAILS IMG-PULL IMG-LOAD IMG-PROGRESS IMG-CANCEL""",
    "local": """
        ENV-FAILS-ALONE ENV-APART-FILES ENV-RESET-FILES IMG-BUILD IMG-FAILS IMG-PULL IMG-LOAD IMG-PROGRESS
        IMG-CANCEL""",
    "podman": "",
    "clone": "",
    "rest": """
        P-EOF-OWN P-DRAIN P-READING R-SIGNAL R-USAGE RUN-LATE-WRITER T-LIMITS T-LIMITS-NAME T-LIMITS-MEMORY
        T-LIMITS-CPUS T-LIMITS-PIDS T-TTY T-TTY-EOF
        T-TTY-LOSSLESS T-TTY-SIZE T-TTY-NONE T-TEMPLATE-NAME F-KINDS F-ATOMIC F-MOVE F-REMOVE F-STREAM F-USER""",
}
"""What each does not offer; it keeps all else. No image and no container is in `memory` and on `local`."""


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.podman] * ("podman" in of)) for name, of in RUNTIMES.items()],
)
def checked(request: pytest.FixtureRequest) -> tuple[str, Report]:
    """The contract over each runtime."""
    runtime, vocabulary, options = RUNTIMES[request.param]
    command = [sys.executable, "-m", "fastclaw", "serve", "--runtime", runtime]
    # The log of hundreds of deliberate errors helps nobody who reads the result of a test.
    report = asyncio.run(check(command, vocabulary, options, stderr=subprocess.DEVNULL, jobs=AT_ONCE))
    return request.param, report


@pytest.mark.timeout(600)
@pytest.mark.promise(
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
    "T-LIMITS-MEMORY", "T-LIMITS-CPUS", "T-LIMITS-PIDS",
    "T-TTY", "T-TTY-EOF", "T-TTY-LOSSLESS", "T-TTY-SIZE", "T-TTY-NONE", "T-TEMPLATE-NAME",
    "X-DIR-RELATIVE", "X-MERGE", "X-ORPHANS", "P-DRAIN", "P-READING", "RUN-DRAIN", "RUN-ORPHANS", "RUN-LATE-WRITER",
    "RUN-RESULT", "RUN-EXEC", "RUN-BOUNDS", "RUN-OUTPUT", "RUN-INPUT", "RUN-NO-INPUT", "RUN-LIMIT-ENDS",
    "RUN-LIMIT-HEAD", "RUN-LIMIT-TAIL", "RUN-LIMIT-KILL", "RUN-BINARY", "RUN-MERGE", "RUN-KEY",
    "RUN-TIMEOUT", "RUN-KILL", "RUN-OVERLOADED", "RUN-LINE", "C-EXEC", "C-RUN", "C-WAIT",
    "C-NOTIFY", "C-UNKNOWN", "C-DUPLICATE", "F-CONTENT", "F-PART", "F-ERRORS", "F-NAMES", "F-LIST", "F-TAR",
    "F-TAR-EXCLUDE", "F-TAR-WITHIN", "F-TAR-LIES", "F-KINDS", "F-ATOMIC", "F-MOVE", "F-REMOVE", "F-STREAM", "F-USER",
    "ENV-START", "ENV-MAIN", "ENV-UNKNOWN", "ENV-NAME", "ENV-TOKEN", "ENV-OPTION", "ENV-FAILS-ALONE", "ENV-APART",
    "ENV-APART-FILES", "ENV-IDS", "ENV-STOP", "ENV-STOP-EARLY", "ENV-CANCEL", "ENV-RESET", "ENV-RESET-RUN",
    "ENV-RESET-FILES", "ENV-BUSY", "ENV-LIFETIME", "ENV-LIST", "ENV-POOL", "ENV-SHUTDOWN",
    "IMG-BUILD", "IMG-FAILS", "IMG-PULL", "IMG-LOAD", "IMG-PROGRESS", "IMG-CANCEL",
)  # fmt: skip
@pytest.mark.parametrize("promise_id", BY_ID)
def test_a_promise_is_kept_where_it_is_offered(checked: tuple[str, Report], promise_id: str) -> None:
    runtime, report = checked
    finding = report[promise_id]
    wanted = "not offered" if promise_id in NOT_OFFERED[runtime].split() else "kept"
    assert finding.verdict == wanted, "\n".join([finding.detail, *finding.exchange])
