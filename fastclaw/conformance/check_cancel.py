"""Checks of `cancel`: what it takes back, and what it leaves alone."""

import uuid
from typing import Any

import orjson

from fastclaw import limits
from fastclaw.conformance.check_wire import INVALID_PARAMS
from fastclaw.conformance.outside import bearers, seen
from fastclaw.conformance.registry import proves
from fastclaw.conformance.rig import Process, Rig, Session, data_of, expect, read_exactly, refused
from fastclaw.conformance.run_results import ending

CANCELLED = -32800
ROUNDS = 20
ENOUGH = 3
"""Execs that were taken back."""

IN_FRONT = 8
"""Execs ahead of the one that is cancelled: something to do for a runtime that has begun to read."""

SECONDS = 300


async def _taken_back(session: Session, request_id: Any) -> None:
    """The request's answer is the error of a cancelled one."""
    error = refused(await session.wire.answer(request_id, limits.CHECK_SOON_MS), CANCELLED, "cancelled")
    expect(data_of(error).get("kind") == "cancelled", f"its `kind` is not `cancelled`: {error}")


async def _cancel(session: Session, request_id: Any) -> None:
    answer = await session.result("cancel", {"id": request_id})
    expect(answer == {}, f"cancel answered {answer}")


@proves("C-RUN")
async def run(rig: Rig) -> None:
    session = await rig.shared()
    session.needs("run")
    for number in range(5):
        cmd = rig.words.sleep(SECONDS + number)
        request_id = session.wire.post("run", {"cmd": cmd})
        if number:
            # The first one is cancelled before it can have begun.
            await session.result("health")
        await _cancel(session, request_id)
        await _taken_back(session, request_id)
        await session.none_runs(cmd)


@proves("C-RUN")
async def run_with_its_tree(rig: Rig) -> None:
    session, token = await rig.shared(), uuid.uuid4().hex
    session.needs("run")
    session.needs("kill_tree")
    one = f"sleep {SECONDS}; : {token}"
    request_id = session.wire.post("run", {"cmd": rig.shell(f"setsid sh -c '{one}' & (sh -c '{one}' &); {one}")})
    await seen(token)
    await _cancel(session, request_id)
    await _taken_back(session, request_id)
    expect(not bearers(token), f"processes are left: {bearers(token)}")


@proves("C-EXEC")
async def exec_(rig: Rig) -> None:
    """A runtime that answers each exec before it reads on has nothing to take back, and breaks nothing."""
    session, token = await rig.shared(), uuid.uuid4().hex
    script = f"sleep {SECONDS}; : {token}"
    cmd = rig.shell(script) if rig.words.shell else rig.words.sleep(SECONDS * 10)
    caught = 0
    for _ in range(ROUNDS):
        caught += await _is_caught(rig, session, cmd)
        if caught == ENOUGH:
            break
    await session.none_runs(cmd)
    expect(not bearers(token), f"processes are left: {bearers(token)}")


async def _is_caught(rig: Rig, session: Session, cmd: list[str]) -> bool:
    """Whether the exec was taken back; else it was answered before its cancel was, and lives until it is killed."""
    wire = session.wire
    for _ in range(IN_FRONT):
        wire.post("exec", {"cmd": rig.words.true})
    begun = wire.post("exec", {"cmd": cmd})
    cancel = wire.post("cancel", {"id": begun})
    first = await wire.take(lambda answer: answer["id"] in (begun, cancel), limits.CHECK_ANSWER_MS, "an answer")
    second = await wire.answer(begun if first["id"] == cancel else cancel)
    of_exec, of_cancel = (first, second) if first["id"] == begun else (second, first)
    expect(of_cancel.get("result") == {}, f"cancel answered {of_cancel}")
    for request_id in range(begun - IN_FRONT, begun):
        await wire.answer(request_id)
    if "error" in of_exec:
        refused(of_exec, CANCELLED, "cancelled")
        return True
    expect(first is of_exec, "an exec that was cancelled was answered all the same, later")
    answer = await session.result("kill", {"process_id": of_exec["result"]["process_id"], "grace_ms": 0})
    expect(answer == {}, f"kill of an exec that had been answered gave {answer}")
    return False


@proves("C-WAIT")
async def wait(rig: Rig) -> None:
    session = await rig.shared()
    session.needs("wait")
    process = await session.exec(rig.words.cat)
    waits = [session.wire.post("wait", {"process_id": process.id}) for _ in range(2)]
    await _cancel(session, waits[0])
    await _taken_back(session, waits[0])
    await _lives(process)
    await process.kill()
    record = (await session.wire.answer(waits[1])).get("result", {})
    expect(record.get("state") == "exited", f"the other wait gave {record}")


async def _lives(process: Process) -> None:
    """A `cat` that answers."""
    stdio = await process.stdio()
    await stdio.write(b"alive")
    got = await read_exactly(stdio, len(b"alive"))
    expect(got == b"alive", f"the process does not live: it gave {got!r}")


@proves("C-NOTIFY")
async def notification(rig: Rig) -> None:
    session = await rig.shared()
    session.needs("run")
    cmd = rig.words.sleep(SECONDS * 2)
    request_id = session.wire.post("run", {"cmd": cmd})
    session.wire.send(orjson.dumps({"jsonrpc": "2.0", "method": "cancel", "params": {"id": request_id}}) + b"\n")
    await _taken_back(session, request_id)
    await session.none_runs(cmd)
    others = await session.wire.rest()
    expect(not others, f"a notification was answered: {others}")


@proves("C-UNKNOWN")
async def unknown(rig: Rig) -> None:
    session = await rig.shared()
    for request_id in ("no such request", 2**40, -1):
        await _cancel(session, request_id)
    told = data_of(await session.error("cancel", {}, INVALID_PARAMS)).get("path")
    expect(told == "$.id", f"without an id data.path is {told!r}")


@proves("C-UNKNOWN")
async def answered(rig: Rig) -> None:
    session = await rig.shared()
    request_id = session.wire.post("exec", {"cmd": rig.words.cat})
    process = await session.began(request_id)
    await _cancel(session, request_id)
    await _lives(process)


@proves("C-UNKNOWN")
async def another_type(rig: Rig) -> None:
    session = await rig.shared()
    session.needs("run")
    request_id = session.wire.post("run", {"cmd": rig.words.sleep(1)})
    await _cancel(session, str(request_id))
    ran = await session.ran(request_id)
    expect(ending(ran) == ("exited", 0, "exited"), f"a run of another id ended with {ending(ran)}")


@proves("C-DUPLICATE")
async def duplicate(rig: Rig) -> None:
    session, request_id = await rig.shared(), uuid.uuid4().hex
    session.needs("run")
    for _ in range(2):
        session.wire.post("run", {"cmd": rig.words.sleep(1)}, id=request_id)
    told = data_of(await session.error("cancel", {"id": request_id}, INVALID_PARAMS)).get("path")
    expect(told == "$.id", f"data.path is {told!r}")
    for _ in range(2):
        ran = await session.ran(request_id)
        expect(ending(ran) == ("exited", 0, "exited"), f"one of the two ended with {ending(ran)}")
