"""The checker against runtimes that break promises on purpose."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from fastclaw import limits
from fastclaw.conformance import BY_ID, POSIX, Report, check, check_run_limits
from fastclaw.conformance.runner import CHECKS
from tests.conformance.plain_runtime import BREAKS

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
    broken = {*BROKEN, *CARELESS, *(promise_id for _, promise_id, _ in BROKEN_BY_WORD)}
    seen = {check.__module__ for promise_id in broken for check in CHECKS[promise_id]}
    assert seen == {check.__module__ for checks in CHECKS.values() for check in checks}


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


# --- A runtime that keeps what is not broken ---


ROOT = Path(__file__).parents[2]
AT_ONCE = 16
"""Runtimes under check at a time: each spends most of it waiting."""

KEPT = {
    *(name for name, promise in BY_ID.items() if promise.section in ("run", "cancel")),
    *("X-DIR-RELATIVE", "X-TIMEOUT", "X-MERGE", "X-ORPHANS", "P-DRAIN", "P-READING"),
}
"""Promises that the runtime keeps as long as nothing is broken."""

BROKEN_BY_WORD = (
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
    ("drains-at-once", "P-DRAIN", "who came after the exit got"),
    ("closes-readers", "P-READING", "who reads all the time got b'up\\n'"),
    ("uses-nothing", "R-USAGE", "takes 0 us of CPU, and one that writes a lot 0"),
)
"""How it breaks, the promise that this breaks, and what must be said of it."""


def _serve(directory: Path, *breaks: str) -> list[str]:
    module = "tests.conformance.plain_runtime"
    return ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", module, str(directory), *breaks]


async def _check(directory: Path, only: set[str], *breaks: str, jobs: int = 1) -> Report:
    return await check(_serve(directory, *breaks), POSIX, {}, only, stderr=subprocess.DEVNULL, jobs=jobs)


async def _check_all(directory: Path) -> dict[str, Report]:
    room = asyncio.Semaphore(AT_ONCE)

    async def one(name: str) -> tuple[str, Report]:
        async with room:
            only = {promise_id for broken, promise_id, _ in BROKEN_BY_WORD if broken == name}
            return name, await _check(directory, only, name)

    return dict(await asyncio.gather(*map(one, BREAKS)))


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Report]:
    """By what is broken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "CHECK_SOON_MS", 3_000)
        patch.setattr(limits, "CHECK_ANSWER_MS", 15_000)
        # Who does not end a command that floods it must hold all that comes.
        patch.setattr(check_run_limits, "FLOOD", 8 * limits.MIB)
        return asyncio.run(_check_all(tmp_path_factory.mktemp("broken")))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Of the same runtime, not broken."""
    return asyncio.run(_check(tmp_path_factory.mktemp("plain"), KEPT, jobs=AT_ONCE))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("broken", "promise_id", "said"), BROKEN_BY_WORD)
def test_a_broken_promise_is_reported(reports: dict[str, Report], broken: str, promise_id: str, said: str) -> None:
    finding = reports[broken][promise_id]
    assert finding.verdict == "broken", finding.detail
    assert said in finding.detail
    assert finding.exchange


@pytest.mark.timeout(300)
@pytest.mark.parametrize("promise_id", sorted(KEPT))
def test_who_keeps_it_is_not_blamed(kept: Report, promise_id: str) -> None:
    assert kept[promise_id].verdict == "kept", kept[promise_id].detail


def test_every_way_to_break_it_is_tried_and_every_promise_broken() -> None:
    assert {broken for broken, _, _ in BROKEN_BY_WORD} == set(BREAKS)
    assert {promise_id for _, promise_id, _ in BROKEN_BY_WORD} == KEPT | {"R-USAGE"}, "which it offers only to break it"
