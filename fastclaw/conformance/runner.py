"""One run over a runtime: every check against its deadline, every promise to its verdict.

Owns the order, how many at once, and the verdicts. Checks register themselves in `registry`.
"""

import asyncio
from typing import Any

from fastclaw import limits
from fastclaw.client.child import Stderr
from fastclaw.conformance.promises import PROMISES, Promise
from fastclaw.conformance.registry import CHECKS, Check
from fastclaw.conformance.report import Finding, Report
from fastclaw.conformance.rig import Rig
from fastclaw.conformance.vocabulary import Vocabulary
from fastclaw.conformance.wire import Broken, NotOffered
from fastclaw.errors import FastclawError


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
    findings = [await _attempt(rig, promise, entry.run) for entry in CHECKS if entry.promise_id == promise.id]
    order = ("broken", "kept", "not offered")
    return min(findings, key=lambda finding: order.index(finding.verdict))


async def _attempt(rig: Rig, promise: Promise, run: Check) -> Finding:
    await rig.between_checks()
    bound = asyncio.timeout(limits.CHECK_MS / 1000)
    try:
        async with bound:
            await run(rig)
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
