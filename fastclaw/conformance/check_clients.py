"""Checks of clients that come second, leave, or come back."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable

from fastclaw import limits
from fastclaw.client.remote_process import Channel
from fastclaw.conformance.left import LEFT_BYTES, writes_on
from fastclaw.conformance.outside import bearers, seen, soon
from fastclaw.conformance.registry import proves
from fastclaw.conformance.rig import Process, Rig, Session, drain, expect, read_exactly
from fastclaw.conformance.wire import Broken
from fastclaw.errors import IoError

LARGE = 8 * limits.MIB
LINGER_MS = 200
LONG_LINGER_MS = 600_000


async def _returned(process: Process, greeted: Callable[[Channel], Awaitable[bytes]]) -> bytes:
    """What the first connection that is not turned away greets us with: the runtime may still see the last one."""
    deadline = time.monotonic() + limits.CHECK_SOON_MS / 1000
    while time.monotonic() < deadline:
        try:
            if got := await greeted(await process.stdio()):
                return got
        except IoError:
            # Turned away while we wrote.
            pass
        process.leave()
        await asyncio.sleep(limits.CHECK_POLL_MS / 1000)
    raise Broken("who came back got nothing")


@proves("P-SECOND")
async def second_client(rig: Rig) -> None:
    process = await (await rig.shared()).exec(rig.words.cat)
    stdio, _ = await process.stdio(), await process.stderr()
    await stdio.write(b"mine")
    await read_exactly(stdio, len(b"mine"))
    for connect in (process.stdio, process.stderr):
        async with asyncio.timeout(limits.CHECK_SOON_MS / 1000):
            expect(await (await connect()).read() == b"", "a second client was served")
    await stdio.write(b"still mine")
    got = await read_exactly(stdio, len(b"still mine"))
    expect(got == b"still mine", f"the first client then got {got!r}")


@proves("P-RETURN")
async def comes_back(rig: Rig) -> None:
    process = await (await rig.shared()).exec(rig.words.out(LARGE))
    first = await (await process.stdio()).read()
    process.leave()
    second = await _returned(process, drain)
    expect(len(first) + len(second) <= LARGE, "more bytes than there were")
    expect(rig.words.written(LARGE).endswith(second), "other bytes than there were")


@proves("P-RETURN")
async def comes_back_for_later_output(rig: Rig) -> None:
    process = await (await rig.shared()).exec(rig.shell("echo begin; cat >/dev/null; echo later"))
    await read_exactly(await process.stdio(), len("begin\n"))
    process.leave()
    got = await _returned(process, drain)
    expect(got == b"later\n", f"who came back got {got!r}")


@proves("P-DRAIN")
async def drained_without_a_client(rig: Rig) -> None:
    async with rig.with_options(linger_ms=LINGER_MS) as session:
        await _is_drained(rig, session)


@proves("P-DRAIN")
async def drained_after_a_client(rig: Rig) -> None:
    async with rig.with_options(linger_ms=LINGER_MS) as session:
        witness, done = uuid.uuid4().hex, uuid.uuid4().hex
        process = await session.exec(rig.shell(f"{writes_on(witness, done, after_s=1)}; cat >/dev/null"))
        await read_exactly(await process.stdio(), len(b"up\n"))
        process.leave()
        await seen(witness)
        await soon("what was left behind has written everything and lives", lambda: bool(bearers(done)))


@proves("P-DRAIN")
async def drained_where_too_many_linger(rig: Rig) -> None:
    async with rig.with_options(linger_ms=LONG_LINGER_MS, max_lingering=0) as session:
        await _is_drained(rig, session)


async def _is_drained(rig: Rig, session: Session) -> None:
    witness, done = uuid.uuid4().hex, uuid.uuid4().hex
    await session.exec(rig.shell(writes_on(witness, done)))
    await seen(witness)
    await soon("what was left behind has written everything and lives", lambda: bool(bearers(done)))


@proves("P-DRAIN")
async def not_drained_before(rig: Rig) -> None:
    async with rig.with_options(linger_ms=LONG_LINGER_MS) as session:
        process = await session.exec(rig.shell(writes_on(uuid.uuid4().hex, uuid.uuid4().hex)))
        session.needs("wait")
        await process.wait()
        out, err = await process.outputs()
        got = (len(out), len(err))
        expect(got == (len(b"up\n") + LEFT_BYTES, LEFT_BYTES), f"who came after the exit got {got} bytes")


@proves("P-READING")
async def reads_on(rig: Rig) -> None:
    for options in ({"linger_ms": LINGER_MS}, {"linger_ms": LONG_LINGER_MS, "max_lingering": 0}):
        async with rig.with_options(**options) as session:
            # Not before its client is there.
            script = "read line; (sleep 1; echo later; sleep 1; echo last) & echo up"
            out, _ = await (await session.exec(rig.shell(script))).outputs(b"go\n")
            expect(out == b"up\nlater\nlast\n", f"who reads all the time got {out!r} with {options}")


@proves("P-GONE-EOF")
async def gone_is_eof(rig: Rig) -> None:
    session = await rig.shared()
    session.needs("wait")
    process = await session.exec(rig.words.cat)
    stdio = await process.stdio()
    await stdio.write(b"x")
    await read_exactly(stdio, 1)
    process.leave()
    record = await process.wait(timeout_ms=limits.CHECK_SOON_MS)
    expect(record.get("exit_code") == 0, f"cat without its client: {record}")


@proves("P-GONE-HOLD")
async def hold(rig: Rig) -> None:
    async def speak(channel: Channel) -> bytes:
        await channel.write(b"back")
        return await read_exactly(channel, len(b"back"))

    process = await (await rig.shared()).exec(rig.words.cat, on_disconnect="hold")
    await speak(await process.stdio())
    process.leave()
    got = await _returned(process, speak)
    expect(got == b"back", f"who came back got {got!r}")


@proves("P-GONE-KILL")
async def kill(rig: Rig) -> None:
    session = await rig.shared()
    session.needs("wait")
    process = await session.exec(rig.words.sleep(300), on_disconnect="kill")
    await process.stdio()
    await process.stderr()
    process.leave()
    record = await process.wait(timeout_ms=limits.CHECK_SOON_MS)
    expect((record.get("state"), record.get("reason")) == ("exited", "killed"), f"without its client: {record}")
