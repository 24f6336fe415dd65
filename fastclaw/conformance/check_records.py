"""Checks of exit records, of the list and of signals."""

import asyncio
import signal
import time
from typing import Any

from fastclaw import limits
from fastclaw.conformance.check_kill import TIDY, ready
from fastclaw.conformance.registry import proves
from fastclaw.conformance.rig import Rig, Session, drain, expect, read_exactly

REASONS = ("exited", "signaled", "killed", "timeout", "oom", "container_gone", "unknown")
BLOCKING_BYTES = 4 * limits.MIB
"""More than there is room for on the way, with any engine."""
USAGE = ("user_us", "system_us", "max_rss_kb")
_BUSY_BYTES = 8 * limits.MIB
"""What a command writes so that it takes CPU time that can be told from none."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


async def _exit(rig: Rig, session: Session, code: int) -> dict[str, Any]:
    return await (await session.exec(rig.words.exit(code))).wait()


@proves("R-CODE")
async def exit_codes(rig: Rig) -> None:
    session = await rig.shared()
    for code in (0, 1, 42, 128, 137, 143, 255):
        record = await _exit(rig, session, code)
        told = (record.get("state"), record.get("exit_code"), record.get("signal"), record.get("reason"))
        expect(told == ("exited", code, None, "exited"), f"exit {code} gave {record}")


@proves("R-SIGNAL")
async def signaled(rig: Rig) -> None:
    session = await rig.shared()
    for signum in (signal.SIGKILL, signal.SIGTERM):
        process = await session.exec(rig.shell(f"kill -{signum.name[3:]} $$"))
        record = await process.wait()
        told = (record.get("exit_code"), record.get("signal"), record.get("reason"))
        expect(told == (None, int(signum), "signaled"), f"{signum.name} gave {record}")


@proves("R-KILLED")
async def killed(rig: Rig) -> None:
    process = await (await rig.shared()).exec(rig.words.sleep(300))
    await process.kill()
    record = await process.wait()
    expect((record.get("state"), record.get("reason")) == ("exited", "killed"), f"after kill: {record}")


@proves("R-KILLED")
async def killed_and_tidy(rig: Rig) -> None:
    process = await ready(rig, await rig.shared(), TIDY)
    await process.kill(grace_ms=limits.CHECK_SOON_MS)
    record = await process.wait()
    expect((record.get("exit_code"), record.get("reason")) == (7, "killed"), f"after kill: {record}")


@proves("R-RUNNING")
async def running(rig: Rig) -> None:
    process = await (await rig.shared()).exec(rig.words.sleep(300))
    for timeout_ms in (0, 100):
        record = await process.wait(timeout_ms=timeout_ms)
        expect((record.get("process_id"), record.get("state")) == (process.id, "running"), f"wait gave {record}")


@proves("R-AGAIN")
async def again(rig: Rig) -> None:
    session = await rig.shared()
    process = await session.exec(rig.words.exit(3))
    posted = [session.wire.post("wait", {"process_id": process.id}) for _ in range(10)]
    records = [(await session.wire.answer(request_id)).get("result", {}) for request_id in posted]
    records.append(await process.wait())
    await process.outputs()
    records.append(await process.wait())
    told = {(record.get("state"), record.get("exit_code"), record.get("reason")) for record in records}
    expect(told == {("exited", 3, "exited")}, f"the waits gave {records}")


@proves("R-SHAPE")
async def shape(rig: Rig) -> None:
    has_shape(await _exit(rig, await rig.shared(), 0))


def has_shape(record: dict[str, Any]) -> None:
    """Raise `Broken` where a field of the exit record is not there, or not of its kind."""
    missing = {"process_id", "state", "exit_code", "signal", "reason", "timings", "usage"} - set(record)
    expect(not missing, f"the record lacks {sorted(missing)}")
    expect(record["reason"] in REASONS, f"reason is {record['reason']!r}")
    timings = record["timings"]
    expect(isinstance(timings, dict) and all(map(_is_number, timings.values())), f"timings are {timings}")
    expect(record["usage"] is None or isinstance(record["usage"], dict), f"usage is {record['usage']}")


@proves("R-USAGE")
async def usage(rig: Rig) -> None:
    session = await rig.shared()
    told = []
    for command in (rig.words.true, rig.words.out(_BUSY_BYTES)):
        process = await session.exec(command)
        await process.outputs()
        usage = (await process.wait()).get("usage") or {}
        expect(all(_is_number(usage.get(name)) for name in USAGE), f"usage of {command} is {usage}")
        told.append(usage)
    idle, busy = (usage["user_us"] + usage["system_us"] for usage in told)
    expect(busy > idle, f"a command that does nothing takes {idle} us of CPU, and one that writes a lot {busy}")
    expect(all(usage["max_rss_kb"] > 0 for usage in told), f"max_rss_kb is {[usage['max_rss_kb'] for usage in told]}")


@proves("T-LIST")
async def listing(rig: Rig) -> None:
    session = await rig.shared()
    live, ended = await session.exec(rig.words.sleep(300)), await session.exec(rig.words.exit(3))
    await ended.outputs()
    await session.result("wait", {"process_id": ended.id})
    rows = {row["process_id"]: row for row in (await session.result("list"))["processes"]}
    expect(rows.get(live.id, {}).get("state") == "running", f"the live one is {rows.get(live.id)}")
    row = rows.get(ended.id, {})
    expect((row.get("state"), row.get("cmd")) == ("exited", rig.words.exit(3)), f"the ended one is {row}")
    expect(abs(time.time() - row.get("started_at", 0)) < limits.CHECK_MS / 1000, f"started_at is {row}")


@proves("T-LIST-PAGES")
async def pages(rig: Rig) -> None:
    session = await rig.shared()
    started = [(await session.exec(rig.words.sleep(300))).id for _ in range(4)]
    seen: list[str] = []
    params: dict[str, Any] = {"limit": 3}
    while True:
        page = await session.result("list", params)
        ids = [row["process_id"] for row in page["processes"]]
        expect(0 < len(ids) <= 3, f"a page of at most 3 shows {ids}")
        seen += ids
        if "next" not in page:
            break
        params = {"limit": 3, "after": page["next"]}
        expect(len(seen) < limits.KEEP_EXITED, "the pages have no end")
    expect(len(set(seen)) == len(seen), f"some are on two pages: {seen}")
    expect(set(started) <= set(seen), f"{started} are not all on the pages: {seen}")


@proves("T-LIST-CUT")
async def long_commands(rig: Rig) -> None:
    session = await rig.shared()
    cmd = [*rig.words.true, *(str(number) * 20_000 for number in range(6))]
    process = await session.exec(cmd)
    rows = {row["process_id"]: row for row in (await session.result("list"))["processes"]}
    row = rows.get(process.id, {})
    shown = row.get("cmd", [])
    expect(
        sum(map(len, shown)) < 20_000 and row.get("cmd_truncated") is True, f"its cmd is shown as {len(shown)} words"
    )
    expect(bool(shown) and "\0".join(cmd).startswith("\0".join(shown)), "what is shown is not its beginning")


@proves("T-LIST-BLOCKED")
async def blocked_outputs(rig: Rig) -> None:
    session = await rig.shared()
    process = await session.exec(rig.words.out(BLOCKING_BYTES))

    async def blocked() -> object:
        rows = {row["process_id"]: row for row in (await session.result("list"))["processes"]}
        return rows[process.id].get("blocked")

    async with asyncio.timeout(limits.CHECK_SOON_MS / 1000):
        while (seen := await blocked()) is None:  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(limits.CHECK_POLL_MS / 1000)
    expect(seen == ["stdout"], f"of an output that nobody reads, list says {seen}")
    out, _ = await process.outputs()
    expect(len(out) == BLOCKING_BYTES, f"{len(out)} bytes came")
    expect(await blocked() is None, "what has been read is still called blocked")


@proves("T-SIGNAL")
async def signals(rig: Rig) -> None:
    session = await rig.shared()
    for signum in (int(signal.SIGTERM), "KILL", "SIGTERM"):
        process = await session.exec(rig.words.sleep(300))
        answer = await session.result("signal", {"process_id": process.id, "signal": signum})
        expect(answer == {}, f"signal answered {answer}")
        await process.outputs()


@proves("T-SIGNAL-GROUP")
async def group_signals(rig: Rig) -> None:
    session = await rig.shared()
    process = await session.exec(rig.shell("trap : INT; sh -c 'echo ready; exec sleep 300'; echo ended $?"))
    stdio = await process.stdio()
    await read_exactly(stdio, len("ready\n"))
    await session.result("signal", {"process_id": process.id, "signal": "INT", "group": True})
    async with asyncio.timeout(limits.CHECK_SOON_MS / 1000):
        said = await drain(stdio)
    expect(said == b"ended 130\n", f"the shell goes on with {said!r}")
