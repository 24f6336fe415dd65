"""One run over a runtime: every check against its deadline, every promise to its verdict, all verdicts to a report.

Owns the order, how many at once, the verdicts and their rendering. Checks register themselves by `proves`.
"""

import asyncio
import functools
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec
from msgspec import Struct

from fastclaw import limits
from fastclaw.client.rpc import Stderr
from fastclaw.conformance.promises import BY_ID, PROMISES, Promise
from fastclaw.conformance.rig import Rig, Session, Vocabulary
from fastclaw.conformance.wire import Broken, NotOffered
from fastclaw.errors import FastclawError

Check = Callable[[Rig, Session], Awaitable[None]]
"""Returns where the promise holds, raises `Broken` or `NotOffered` where not."""

CHECKS: dict[str, list[Callable[[Rig], Awaitable[None]]]] = {}
"""By the promise that they prove."""


def proves(promise_id: str, *, alone: bool = False) -> Callable[[Check], Check]:
    """Register a check. A promise with several checks is kept where none of them breaks.

    Parameters:
        alone: the check's session is its own and not initialized, instead of the common one.
    """
    assert promise_id in BY_ID, promise_id

    def register(check: Check) -> Check:
        @functools.wraps(check)
        async def run(rig: Rig) -> None:
            if not alone:
                await check(rig, await rig.shared())
                return
            async with rig.fresh() as session:
                await check(rig, session)

        CHECKS.setdefault(promise_id, []).append(run)
        return check

    return register


# --- The report ---


Verdict = Literal["kept", "broken", "not offered"]
_MARKS: dict[Verdict, str] = {"kept": "ok  ", "broken": "FAIL", "not offered": "-   "}


class Finding(Struct, frozen=True, kw_only=True):
    """One promise's verdict.

    Parameters:
        detail: why it is broken or not offered; empty where it is kept.
        exchange: the messages that show a broken promise, oldest first, each with its direction.
    """

    promise: Promise
    verdict: Verdict
    detail: str = ""
    exchange: list[str] = msgspec.field(default_factory=list)


class Report(Struct, frozen=True, kw_only=True):
    """All findings of one run, in the order of the contract.

    Parameters:
        capabilities: what the runtime reported; None where it could not be initialized.
        refused: why it could not; nothing was checked then.
    """

    command: list[str]
    vocabulary: str
    capabilities: list[str] | None
    findings: list[Finding] = msgspec.field(default_factory=list)
    refused: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the runtime came up and no promise is broken."""
        return self.capabilities is not None and not any(finding.verdict == "broken" for finding in self.findings)

    def __getitem__(self, promise_id: str) -> Finding:
        """The finding on one promise.

        Raises:
            KeyError: it was not part of this run.
        """
        for finding in self.findings:
            if finding.promise.id == promise_id:
                return finding
        raise KeyError(promise_id)

    def to_text(self) -> str:
        """The report as lines: one per promise, the exchange below a broken one, a summary at the end."""
        if self.refused is not None:
            return f"nothing was checked: {self.refused}\n"
        lines: list[str] = []
        section = ""
        for finding in self.findings:
            if finding.promise.section != section:
                section = finding.promise.section
                lines.append(f"{section}:")
            lines += _lines(finding)
        return "\n".join([*lines, self._summary()]) + "\n"

    def _summary(self) -> str:
        counts = Counter(finding.verdict for finding in self.findings)
        return f"{counts['kept']} kept, {counts['broken']} broken, {counts['not offered']} not offered"

    def to_json(self) -> bytes:
        """The report as one JSON object."""
        return msgspec.json.encode({"ok": self.ok, **msgspec.to_builtins(self)})


def _lines(finding: Finding) -> list[str]:
    promise = finding.promise
    lines = [f"  {_MARKS[finding.verdict]} {promise.id:<16} {promise.text}"]
    if finding.detail:
        lines.append(f"       {finding.verdict}: {finding.detail}")
    return lines + [f"         {entry}" for entry in finding.exchange]


# --- The run ---


async def check(
    command: list[str],
    vocabulary: Vocabulary,
    options: dict[str, Any],
    only: set[str] | None = None,
    stderr: Stderr = None,
    jobs: int = 1,
) -> Report:
    """Check a runtime extension, in whatever language, against the contract.

    Parameters:
        command: argv that serves it over stdin and stdout.
        options: `options` of every `initialize`.
        only: ids of the promises to check; None is all.
        stderr: where the runtime's log goes, as for `subprocess`; None is this process's own stderr.
        jobs: promises that are checked at a time, each with runtimes of its own. Most of a check is waiting.
    """
    rigs = [Rig(command, vocabulary, options, stderr) for _ in range(jobs)]
    chosen = [promise for promise in PROMISES if only is None or promise.id in only]
    waiting = iter(chosen)
    findings: dict[str, Finding] = {}

    async def work(rig: Rig) -> None:
        for promise in waiting:
            findings[promise.id] = await _judge(rig, promise, capabilities)

    try:
        try:
            capabilities = await _capabilities(rigs[0])
        except (Broken, FastclawError) as error:  # and nothing but the same would come of every check
            return Report(command=command, vocabulary=vocabulary.name, capabilities=None, refused=str(error))
        async with asyncio.TaskGroup() as group:
            for rig in rigs:
                group.create_task(work(rig))
    finally:
        for rig in rigs:
            await rig.aclose()
    found = [findings[promise.id] for promise in chosen]
    return Report(command=command, vocabulary=vocabulary.name, capabilities=capabilities, findings=found)


async def _capabilities(rig: Rig) -> list[str]:
    told = (await rig.shared()).welcome.get("capabilities", [])
    return [name for name in told if isinstance(name, str)] if isinstance(told, list) else []


async def _judge(rig: Rig, promise: Promise, capabilities: list[str]) -> Finding:
    if promise.needs is not None and promise.needs not in capabilities:
        detail = f"the runtime does not report the capability {promise.needs!r}"
        return Finding(promise=promise, verdict="not offered", detail=detail)
    findings = [await _attempt(rig, promise, check) for check in CHECKS[promise.id]]
    order = ("broken", "kept", "not offered")
    return min(findings, key=lambda finding: order.index(finding.verdict))


async def _attempt(rig: Rig, promise: Promise, check: Callable[[Rig], Awaitable[None]]) -> Finding:
    await rig.between_checks()
    bound = asyncio.timeout(limits.CHECK_MS / 1000)
    try:
        async with bound:
            await check(rig)
    except NotOffered as reason:
        return Finding(promise=promise, verdict="not offered", detail=str(reason))
    except Exception as seen:
        # Whatever a check stumbles over was put there by the runtime under check.
        detail = f"no end within {limits.CHECK_MS} ms" if bound.expired() else _told(seen)
        return Finding(promise=promise, verdict="broken", detail=detail, exchange=rig.exchange())
    return Finding(promise=promise, verdict="kept")


def _told(seen: BaseException) -> str:
    if isinstance(seen, ExceptionGroup):
        return "; ".join(_told(part) for part in seen.exceptions)
    if isinstance(seen, TimeoutError):
        return f"what was due within {limits.CHECK_SOON_MS} ms did not come"
    text = str(seen)
    return text if isinstance(seen, Broken | FastclawError) else f"{type(seen).__name__}: {text}"
