"""Checks of kill: what it takes, when it answers."""

import asyncio
import time
import uuid

from fastclaw import limits
from fastclaw.conformance.check_lifecycle import INVALID_STATE, begin_family
from fastclaw.conformance.outside import bearers, seen
from fastclaw.conformance.registry import proves
from fastclaw.conformance.rig import Process, Rig, Session, drain, expect, read_exactly

GRACE_MS = 300
LONG_GRACE_MS = 20_000
STUBBORN = 'trap "" TERM; echo ready; while :; do sleep 1; done'
TIDY = 'trap "echo bye; exit 7" TERM; echo ready; while :; do sleep 300 & wait; done'


async def ready(rig: Rig, session: Session, script: str) -> Process:
    """Start a script and wait for its first word."""
    process = await session.exec(rig.shell(script))
    await read_exactly(await process.stdio(), len("ready\n"))
    return process


@proves("K-KILL")
async def kill(rig: Rig) -> None:
    process = await (await rig.shared()).exec(rig.words.sleep(300))
    stdio, stderr = await process.stdio(), await process.stderr()
    expect(await process.kill() == {}, "kill did not answer {}")
    async with asyncio.timeout(limits.CHECK_SOON_MS / 1000):
        expect((await drain(stdio), await drain(stderr)) == (b"", b""), "bytes came from nowhere")


@proves("K-TERM")
async def term_first(rig: Rig) -> None:
    session = await rig.shared()
    process = await session.exec(rig.shell(TIDY))
    stdio = await process.stdio()
    await read_exactly(stdio, len("ready\n"))
    begun = time.monotonic()
    await process.kill(grace_ms=LONG_GRACE_MS)
    took_ms = (time.monotonic() - begun) * 1000
    expect(await drain(stdio) == b"bye\n", "the process could not tidy up")
    expect(took_ms < LONG_GRACE_MS, "kill waited for the end of the grace time, though the process had ended")


@proves("K-HARD")
async def hard(rig: Rig) -> None:
    session = await rig.shared()
    for grace_ms in (GRACE_MS, 0):
        process = await ready(rig, session, STUBBORN)
        begun = time.monotonic()
        await process.kill(grace_ms=grace_ms)
        took_ms = (time.monotonic() - begun) * 1000
        # Half of it: loops round their timers.
        expect(grace_ms / 2 <= took_ms < grace_ms + limits.CHECK_SOON_MS, f"grace {grace_ms} ms, took {took_ms:.0f} ms")


@proves("K-TREE")
async def tree(rig: Rig) -> None:
    session, token = await rig.shared(), uuid.uuid4().hex
    process = await begin_family(rig, session, token)
    await process.kill(grace_ms=GRACE_MS)
    expect(not bearers(token), f"processes are left: {bearers(token)}")


@proves("K-ORPHANS")
async def orphans(rig: Rig) -> None:
    session, token = await rig.shared(), uuid.uuid4().hex
    process = await ready(rig, session, f"setsid sh -c 'sleep 300; : {token}' & echo ready")
    await seen(token)
    await process.wait(timeout_ms=limits.CHECK_SOON_MS)
    expect(await process.kill() == {}, "kill did not answer {}")
    expect(not bearers(token), f"orphans are left: {bearers(token)}")


@proves("K-ENDED")
async def ended(rig: Rig) -> None:
    process = await (await rig.shared()).exec(rig.words.echo("ended"))
    await process.outputs()
    for _ in range(2):
        expect(await process.kill() == {}, "kill did not answer {}")


@proves("K-UNKNOWN")
async def unknown(rig: Rig) -> None:
    session = await rig.shared()
    offered = {"kill", "wait", "signal"} & {"kill", *session.welcome.get("capabilities", [])}
    for method in sorted(offered):
        params = {"process_id": "no such process", **({"signal": 15} if method == "signal" else {})}
        await session.error(method, params, INVALID_STATE, "unknown_process")
