"""The checker against a runtime that breaks promises on purpose, and against what is no runtime."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from fastclaw import limits
from fastclaw.conformance import BY_ID, POSIX, Report, check, check_run_limits
from fastclaw.conformance.runner import CHECKS
from tests.conformance.plain_process import bearers

ROOT = Path(__file__).parents[2]
AT_ONCE = 8
"""Runtimes under check at a time: most of them are waiting."""

KEPT = {
    *(name for name, promise in BY_ID.items() if promise.section in ("run", "cancel", "environments", "images")),
    *("W-LINE", "W-PIECES", "X-DIR-RELATIVE", "X-TIMEOUT", "X-MERGE", "X-ORPHANS", "P-DRAIN", "P-READING"),
} - {"ENV-FAILS-ALONE", "ENV-APART-FILES", "ENV-RESET-FILES"}
"""Promises that the runtime keeps as long as nothing is broken."""

BROKEN = (
    ("answers-at-start", "RUN-RESULT", "ended with ('running', None"),
    ("answers-at-end-of-streams", "RUN-RESULT", "ended with ('running', None"),
    ("runs-anywhere", "RUN-EXEC", "a variable of the request is"),
    ("takes-any-params", "RUN-BOUNDS", "expected the error -32602"),
    ("loses-a-byte", "RUN-OUTPUT", "bytes of"),
    ("reads-one-by-one", "RUN-OUTPUT", "did not come within"),
    ("ignores-input", "RUN-INPUT", "0 bytes of"),
    ("fails-on-unread-input", "RUN-INPUT", "a command that reads no input ended with ('exited', 1"),
    ("leaves-stdin-open", "RUN-NO-INPUT", "what was due within"),
    ("cuts-characters", "RUN-LIMIT-ENDS", "bytes of stdout"),
    ("counts-what-is-given", "RUN-LIMIT-ENDS", "dropped"),
    ("keeps-ends-always", "RUN-LIMIT-HEAD", "where no middle is missing"),
    ("keeps-ends-always", "RUN-LIMIT-TAIL", "where no middle is missing"),
    ("never-kills", "RUN-LIMIT-KILL", "over its limit: ('exited', 0, 'exited')"),
    ("kills-the-group", "RUN-LIMIT-KILL", "nothing of the tree is left: not within"),
    ("replaces-bytes", "RUN-BINARY", "cat gave"),
    ("never-merges", "RUN-MERGE", "stderr b'to stderr"),
    ("merges-late", "RUN-MERGE", "stdout begins with b'out\\nout"),
    ("answers-at-exit", "RUN-DRAIN", "stdout is 'up\\n'"),
    ("waits-for-orphans", "RUN-DRAIN", "did not come within"),
    ("keeps-orphans", "RUN-ORPHANS", "the orphan has ended with its command: not within"),
    ("ends-orphans", "RUN-ORPHANS", "what was left behind lives: not within"),
    ("closes-streams", "RUN-LATE-WRITER", "written everything and lives: not within"),
    ("stops-reading", "RUN-LATE-WRITER", "written everything and lives: not within"),
    ("forgets-keys", "RUN-KEY", "are several processes"),
    ("joins-anything", "RUN-KEY", "expected the error -32602"),
    ("never-times-out", "RUN-TIMEOUT", "did not come within"),
    ("times-out-late", "RUN-TIMEOUT", "outlives the timeout: not within"),
    ("hides-runs", "RUN-KILL", "does not show a run that lives"),
    ("holds-anything", "RUN-OVERLOADED", "expected the error -32000"),
    ("long-lines", "RUN-LINE", "a line over the limit"),
    ("cancels-nothing", "C-EXEC", "was answered all the same"),
    ("cancels-nothing", "C-RUN", "did not come within"),
    ("cancels-nothing", "C-WAIT", "did not come within"),
    ("cancels-nothing", "C-NOTIFY", "did not come within"),
    ("cancels-in-word", "C-RUN", "still there"),
    ("kills-for-a-wait", "C-WAIT", "does not live"),
    ("answers-notifications", "C-NOTIFY", "a notification was answered"),
    ("cancels-the-answered", "C-UNKNOWN", "does not live"),
    ("mixes-ids", "C-UNKNOWN", "-32800"),
    ("cancels-one-of-two", "C-DUPLICATE", "expected the error -32602"),
    ("refuses-relative", "X-DIR-RELATIVE", "bad_working_dir"),
    ("times-out-late", "X-TIMEOUT", "outlives the timeout: not within"),
    ("never-merges", "X-MERGE", "stderr b'to stderr"),
    ("keeps-orphans", "X-ORPHANS", "the orphan has ended with its command: not within"),
    ("closes-streams", "P-DRAIN", "written everything and lives: not within"),
    ("stops-reading", "P-DRAIN", "written everything and lives: not within"),
    ("drains-at-once", "P-DRAIN", "a client that came after the exit got"),
    ("closes-readers", "P-READING", "a client that reads all the time got b'up\\n'"),
    ("uses-nothing", "R-USAGE", "takes 0 us of CPU, and one that writes a lot 0"),
    ("says-what", "W-PARSE", "something else than the protocol: what?"),
    ("shouts-ids", "W-ID-ECHO", "did not come within"),
    ("answers-notifications", "W-NOTIFY", "one answer too many"),
    ("bare-errors", "E-DATA", "`kind` does not fit the code"),
    ("bare-errors", "E-WORDS", "the message does not begin with 'exec failed: '"),
    ("knows-no-states", "L-BEFORE", "expected the reason 'not_initialized'"),
    ("knows-no-states", "L-BEFORE-HEALTH", "health is {'status': 'healthy'"),
    ("ends-with-3", "L-BEFORE-STOP", "ended with code 3"),
    ("empty-env", "L-INIT", "an empty one is left out"),
    ("knows-no-states", "L-TWICE", "expected the error -32002"),
    ("forgets-ids", "X-RESULT", "came twice"),
    ("listens-late", "X-LISTEN", "cannot connect to the process's socket"),
    ("finds-anything", "X-MISSING", "expected the error -32000"),
    ("shouts", "P-ECHO", "cat gave b'FIRST"),
    ("knows-no-states", "P-SECOND", "a second client was served"),
    ("knows-no-states", "S-MODE", "has mode 755"),
    ("kills-nothing", "K-KILL", "what was due within"),
    ("kills-nothing", "K-UNKNOWN", "expected the error -32002"),
    ("all-is-well", "R-CODE", "exit 1 gave"),
    ("claims-a-terminal", "T-TTY", "what was due within"),
    ("claims-files", "F-CONTENT", "-32601"),
    ("claims-limits", "T-LIMITS-MEMORY", "needs four times its memory is told as ('exited', None, None)"),
    ("claims-limits", "T-LIMITS-CPUS", "was held up for 0 us"),
    ("claims-limits", "T-LIMITS-PIDS", "was refused none"),
    ("claims-files", "F-TAR", "-32601"),
    ("starts-nowhere", "ENV-START", "working_dir is '/nowhere'"),
    ("always-has-main", "ENV-MAIN", "there are environments"),
    ("knows-any-environment", "ENV-UNKNOWN", "expected the error -32002"),
    ("takes-names-twice", "ENV-NAME", "expected the error -32002"),
    ("forgets-tokens", "ENV-TOKEN", "one token stands for"),
    ("takes-tokens-for-anything", "ENV-TOKEN", "expected the error -32602"),
    ("takes-any-option", "ENV-OPTION", "expected the error -32602"),
    ("lists-all", "ENV-APART", "listed in several environments"),
    ("bounds-nothing", "ENV-APART", "expected the error -32000"),
    ("numbers-anew", "ENV-IDS", "a process id came twice"),
    ("stops-in-word", "ENV-STOP", "processes are left"),
    ("leaves-sockets", "ENV-STOP", "sockets are left"),
    ("comes-up-all-the-same", "ENV-STOP-EARLY", "it is still listed"),
    ("cancels-in-word", "ENV-CANCEL", "it is still listed"),
    ("resets-in-word", "ENV-RESET", "what ran is told as"),
    ("resets-leaders", "ENV-RESET", "processes are left"),
    ("hides-gaps", "ENV-RESET", "its output unread, is told as"),
    ("forgets-why", "ENV-RESET-RUN", "a run in flight is told as"),
    ("hides-what-is-busy", "ENV-BUSY", "expected the reason 'environment_busy'"),
    ("lives-for-ever", "ENV-LIFETIME", "its lifetime ends it: not within"),
    ("counts-nothing", "ENV-LIST", "the rows are"),
    ("takes-any-option", "ENV-POOL", "expected the error -32602"),
    ("shuts-main-down", "ENV-SHUTDOWN", "processes are left"),
    ("builds-nothing", "IMG-BUILD", "a variable of the image is"),
    ("fails-in-silence", "IMG-FAILS", "data.output is None"),
    ("pulls-anything", "IMG-PULL", "expected the error -32001"),
    ("loads-anything", "IMG-LOAD", "expected the error -32004"),
    ("tells-nobody", "IMG-PROGRESS", "what a step says is not told"),
    ("tells-everybody", "IMG-PROGRESS", "told without having been asked"),
    ("tells-of-others", "IMG-PROGRESS", "not of request"),
    ("cancels-in-word", "IMG-CANCEL", "processes are left"),
)
"""How it breaks, the promise that this breaks, and what must be said of it."""


OURS = f"FASTCLAW_BROKEN={os.getpid()}-{time.monotonic_ns()}"
"""In the environment of whatever a runtime of these tests starts, and may leave."""


def _serve(directory: Path, *breaks: str) -> list[str]:
    module = "tests.conformance.plain_runtime"
    return ["env", f"PYTHONPATH={ROOT}", OURS, sys.executable, "-m", module, str(directory), *breaks]


async def _check(directory: Path, only: set[str], *breaks: str, jobs: int = 1) -> Report:
    return await check(_serve(directory, *breaks), POSIX, {}, only, stderr=subprocess.DEVNULL, jobs=jobs)


async def _check_all(directory: Path) -> dict[str, Report]:
    room = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> tuple[str, Report]:
        async with room:
            only = {promise_id for broken, promise_id, _ in BROKEN if broken == name}
            return name, await _check(directory, only, name)

    return dict(await asyncio.gather(*map(one, dict.fromkeys(broken for broken, _, _ in BROKEN))))


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Report]:
    """By what is broken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "CHECK_SOON_MS", 3_000)
        patch.setattr(limits, "CHECK_ANSWER_MS", 15_000)
        # Who does not end a command that floods it must hold all that comes.
        patch.setattr(check_run_limits, "FLOOD", 8 * limits.MIB)
        found = asyncio.run(_check_all(tmp_path_factory.mktemp("broken")))
    for pid in bearers(OURS):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return found


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Of the same runtime, not broken."""
    return asyncio.run(_check(tmp_path_factory.mktemp("plain"), {*KEPT, "R-SIGNAL"}, jobs=AT_ONCE))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("broken", "promise_id", "said"), BROKEN)
def test_a_broken_promise_is_reported(reports: dict[str, Report], broken: str, promise_id: str, said: str) -> None:
    finding = reports[broken][promise_id]
    assert finding.verdict == "broken", finding.detail
    assert said in finding.detail
    assert finding.exchange


@pytest.mark.timeout(300)
@pytest.mark.parametrize("promise_id", sorted(KEPT))
def test_who_keeps_it_is_not_blamed(kept: Report, promise_id: str) -> None:
    assert kept[promise_id].verdict == "kept", kept[promise_id].detail


def test_what_it_does_not_offer_is_not_blamed(kept: Report) -> None:
    assert kept["R-SIGNAL"].verdict == "not offered"
    assert "'signal_number'" in kept["R-SIGNAL"].detail
    assert kept.ok


def test_every_promise_that_it_keeps_is_broken_and_each_module_of_checks_has_something_to_report() -> None:
    broken = {promise_id for _, promise_id, _ in BROKEN}
    assert broken >= KEPT - {"W-LINE", "W-PIECES"}
    modules = {check.__module__ for checks in CHECKS.values() for check in checks}
    assert {check.__module__ for promise_id in broken for check in CHECKS[promise_id]} == modules


async def test_a_runtime_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CHECK_ANSWER_MS", "CLIENT_INITIALIZE_MS"):
        monkeypatch.setattr(limits, name, 100)
    report = await check([sys.executable, "-c", "import sys; sys.stdin.read()"], POSIX, {}, {"L-HEALTH", "X-RESULT"})
    assert (report.capabilities, report.findings, report.ok) == (None, [], False)
    assert "did not come within 100 ms" in (report.refused or "")


async def test_a_check_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHECK_MS", 2)  # in which nobody answers 10 000 requests
    report = await _check(tmp_path, {"W-BURST"})
    assert report["W-BURST"].detail == "no end within 2 ms"


async def test_a_runtime_that_cannot_be_started() -> None:
    report = await check(["/no/such/runtime"], POSIX, {}, {"W-LINE"})
    assert report.to_text().startswith("nothing was checked: io error: ")
    assert "cannot be started" in report.to_text()
