"""Checks of `run` where there is more output than it may give, and of `cancel`."""

import uuid
from typing import Any

import orjson

from fastclaw import limits
from fastclaw.conformance.check_run import DEFAULT_LIMIT, HIGHEST_LIMIT, TEXT, encoded
from fastclaw.conformance.rig import Process, Rig, Session, bearers, echoed, leaves, none_bears, same, seen, soon
from fastclaw.conformance.runner import proves
from fastclaw.conformance.wire import (
    CANCELLED,
    EXEC_FAILED,
    around_gap,
    data_of,
    dropped,
    ending,
    expect,
    given,
    outputs,
    refused,
)

MORE = 1_000
"""Bytes over the default limit: of a command that writes, more than one character and less than one read."""

SMALL = 64 * limits.KIB
FLOOD = 256 * limits.MIB
"""Takes long enough that a command which is not ended is seen to go on."""

CHARACTER_BYTES = 4
"""The longest in UTF-8: so much less than its limit may a text have at each cut."""

LIMITS = (0, 1, 9, 10, 11, 12, 13, 64, 1_001)
CHARACTERS = TEXT.strip() * 300
ROOM = limits.MIB
"""For the output of all runs."""

LEAST_OF_A_LINE = 4 * limits.MIB
"""Of a stream whose bytes take six each on the wire, a line of 32 MiB holds 5.3 MiB."""


GROUP_BYTES = 16 * limits.MIB
NEEDS_BYTES = ["dd", "if=/dev/zero", "of=/dev/null", f"bs={4 * GROUP_BYTES}", "count=1"]
"""It has its block in memory at once."""
SHARE = 0.1
SPIN = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done"
"""Takes some 100 ms, of which each period of 100 ms has 10 then."""
FEW = 6
FORKS = "for i in 1 2 3 4 5 6; do sleep 1 & sleep 1 & sleep 1 & done 2>/dev/null; wait"


def _counts(ran: dict[str, Any], stream: str, total: int) -> None:
    """What is given and what was dropped are all there was."""
    got, missing = len(given(ran, stream)), dropped(ran, stream)
    expect(got + missing == total, f"of {total} bytes of {stream} {got} are given and {missing} dropped")


@proves("RUN-LIMIT-ENDS")
async def _each_stream_by_itself(rig: Rig, session: Session) -> None:
    ran = await session.run(rig.words.stderr("x" * 100), output_limit=10)
    expect(dropped(ran, "stdout") == 0, f"`dropped` is {ran['dropped']}, where nothing was written to stdout")
    expect(dropped(ran, "stderr") in (90, 91), f"`dropped` is {ran['dropped']}, where stderr has 90 bytes too many")
    ran = await session.run(rig.words.echo("x" * 100), output_limit=0)
    expect((given(ran, "stdout"), dropped(ran, "stdout")) == (b"", 101), f"with a limit of 0: {ran}")


@proves("RUN-LIMIT-ENDS")
async def _ends(rig: Rig, session: Session) -> None:
    await _keeps(rig, session, "ends", LIMITS[2:])
    ran = await session.run(rig.words.out(DEFAULT_LIMIT + MORE))
    _is_cut(ran, "ends", rig.words.written(DEFAULT_LIMIT + MORE), DEFAULT_LIMIT)
    expect(ending(ran) == ("exited", 0, "exited"), f"the command ended with {ending(ran)}")


@proves("RUN-LIMIT-HEAD")
async def _head(rig: Rig, session: Session) -> None:
    await _keeps(rig, session, "head", LIMITS)


@proves("RUN-LIMIT-TAIL")
async def _tail(rig: Rig, session: Session) -> None:
    await _keeps(rig, session, "tail", LIMITS)


async def _keeps(rig: Rig, session: Session, keep: str, of_text: tuple[int, ...]) -> None:
    """That part of a stream that is a little too long, and of a text, cut between characters, for each limit."""
    total = DEFAULT_LIMIT + MORE
    ran = await session.run(rig.words.out(total), keep=keep)
    _is_cut(ran, keep, rig.words.written(total), DEFAULT_LIMIT)
    expect(dropped(ran, "stdout") == MORE, f"{dropped(ran, 'stdout')} bytes were dropped, where {MORE} were too many")
    for limit in of_text:
        ran = await session.run(rig.words.cat, input=CHARACTERS, output_limit=limit, keep=keep)
        expect(isinstance(ran.get("stdout"), str), f"with a limit of {limit} a text came as base64")
        _is_cut(ran, keep, CHARACTERS.encode(), limit)


def _is_cut(ran: dict[str, Any], keep: str, written: bytes, limit: int) -> None:
    """What is given is what is to be kept of `written`, and each part of it is short by less than one character."""
    _counts(ran, "stdout", len(written))
    if keep == "ends":
        head, tail = around_gap(ran, "stdout")
        parts = [("head", head, limit // 2, (limit + 1) // 2), ("tail", tail, limit // 2, (limit + 1) // 2)]
    else:
        expect("stdout" not in (ran.get("gap_at") or {}), f"`gap_at` is {ran.get('gap_at')} where no middle is missing")
        parts = [(keep, given(ran, "stdout"), limit, limit)]
    for name, part, least, most in parts:
        fits = written.startswith(part) if name == "head" else written.endswith(part)
        expect(fits, f"what is given is not the {name} of the stream")
        said = f"with a limit of {limit} the {name} that is given has {len(part)} bytes"
        expect(least - CHARACTER_BYTES < len(part) <= most, said)


@proves("RUN-LIMIT-KILL")
async def _kill(rig: Rig, session: Session) -> None:
    for keep in ("head", "ends"):
        ran = await session.run(rig.words.out(FLOOD), output_limit=SMALL, on_limit="kill", keep=keep)
        got, missing = given(ran, "stdout"), dropped(ran, "stdout")
        expect((ran.get("state"), ran.get("reason")) == ("exited", "killed"), f"over its limit: {ending(ran)}")
        expect(len(got) <= SMALL < len(got) + missing < FLOOD, f"{len(got)} bytes are given, {missing} dropped")
        expect(got[: SMALL // 2] == rig.words.written(SMALL // 2), "what is given is not how the stream begins")
    ran = await session.run(rig.words.out(SMALL), output_limit=SMALL, on_limit="kill")
    expect(ending(ran) == ("exited", 0, "exited"), f"a stream of exactly its limit: {ending(ran)}")
    expect(same(outputs(ran)[0], rig.words.written(SMALL)), "bytes are missing")


@proves("RUN-LIMIT-KILL")
async def _the_tree_of_a_kill(rig: Rig, session: Session) -> None:
    token = uuid.uuid4().hex
    ran = await session.run(rig.shell(leaves(token) + "yes | cat"), output_limit=SMALL, on_limit="kill")
    expect(ran.get("reason") == "killed", f"over its limit: {ending(ran)}")
    if session.offers("kill_tree"):
        await soon("nothing of the tree is left", lambda: not bearers(token))


@proves("RUN-OVERLOADED")
async def _overloaded(rig: Rig, common: Session) -> None:
    async with rig.with_options(run_output_bytes=ROOM) as session:
        other = session.post("run", {"cmd": rig.words.sleep(1)})
        params = {"cmd": rig.words.out(4 * ROOM), "output_limit": 4 * ROOM}
        error = await session.error("run", params, EXEC_FAILED, "overloaded")
        expect(data_of(error).get("retryable") is True, f"it is not `retryable`: {error}")
        await session.none_runs(rig.words.out(4 * ROOM))
        expect(ending(await session.ran(other)) == ("exited", 0, "exited"), "another run did not go on")
        out, _ = outputs(await session.run(rig.words.out(ROOM // 2)))
        expect(same(out, rig.words.written(ROOM // 2)), f"a later run gave {len(out)} bytes of {ROOM // 2}")


@proves("RUN-LINE")
async def _longest_answer(rig: Rig, session: Session) -> None:
    # Each of these bytes takes six in JSON.
    data = bytes(HIGHEST_LIMIT)
    for keep in ("ends", "head", "tail"):
        ran = await session.run(rig.words.cat, input_base64=encoded(data), output_limit=HIGHEST_LIMIT, keep=keep)
        _counts(ran, "stdout", len(data))
        expect(len(given(ran, "stdout")) >= LEAST_OF_A_LINE, f"only {len(given(ran, 'stdout'))} bytes are given")
        expect(dropped(ran, "stdout") > 0, "more bytes are given than a line holds")


# --- Cancel ---


ROUNDS = 20
ENOUGH = 3
"""Execs that were taken back."""

IN_FRONT = 8
"""Execs ahead of the one that is cancelled: something to do for a runtime that has begun to read."""

SECONDS = 300


async def _taken_back(session: Session, request_id: Any) -> None:
    """The request's answer is the error of a cancelled one."""
    error = refused(await session.answer(request_id, limits.CHECK_SOON_MS), CANCELLED, "cancelled")
    expect(data_of(error).get("kind") == "cancelled", f"its `kind` is not `cancelled`: {error}")


async def _cancel(session: Session, request_id: Any) -> None:
    answer = await session.result("cancel", {"id": request_id})
    expect(answer == {}, f"cancel answered {answer}")


@proves("C-RUN")
async def _run(rig: Rig, session: Session) -> None:
    session.needs("run")
    for number in range(5):
        cmd = rig.words.sleep(SECONDS + number)
        request_id = session.post("run", {"cmd": cmd})
        if number:  # the first one is cancelled before it can have begun
            await session.result("health")
        await _cancel(session, request_id)
        await _taken_back(session, request_id)
        await session.none_runs(cmd)


@proves("C-RUN")
async def _run_with_its_tree(rig: Rig, session: Session) -> None:
    token = uuid.uuid4().hex
    session.needs("run")
    session.needs("kill_tree")
    one = f"sleep {SECONDS}; : {token}"
    request_id = session.post("run", {"cmd": rig.shell(f"setsid sh -c '{one}' & (sh -c '{one}' &); {one}")})
    await seen(token)
    await _cancel(session, request_id)
    await _taken_back(session, request_id)
    none_bears(token)


@proves("C-EXEC")
async def _exec(rig: Rig, session: Session) -> None:
    """A runtime that answers each exec before it reads on has nothing to take back, and breaks nothing."""
    token = uuid.uuid4().hex
    script = f"sleep {SECONDS}; : {token}"
    cmd = rig.shell(script) if rig.words.shell else rig.words.sleep(SECONDS * 10)
    caught = 0
    for _ in range(ROUNDS):
        caught += caught < ENOUGH and await _is_caught(rig, session, cmd)
    await session.none_runs(cmd)
    none_bears(token)


async def _is_caught(rig: Rig, session: Session, cmd: list[str]) -> bool:
    """Whether the exec was taken back; else it was answered before its cancel was, and lives until it is killed."""
    wire = session
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
async def _wait(rig: Rig, session: Session) -> None:
    session.needs("wait")
    process = await session.exec(rig.words.cat)
    waits = [session.post("wait", {"process_id": process.id}) for _ in range(2)]
    await _cancel(session, waits[0])
    await _taken_back(session, waits[0])
    await _lives(process)
    await process.kill()
    record = (await session.answer(waits[1])).get("result", {})
    expect(record.get("state") == "exited", f"the other wait gave {record}")


async def _lives(process: Process) -> None:
    """A `cat` that answers."""
    got = await echoed(await process.stdio(), b"alive")
    expect(got == b"alive", f"the process does not live: it gave {got!r}")


@proves("C-NOTIFY")
async def _notification(rig: Rig, session: Session) -> None:
    session.needs("run")
    cmd = rig.words.sleep(SECONDS * 2)
    request_id = session.post("run", {"cmd": cmd})
    session.send(orjson.dumps({"jsonrpc": "2.0", "method": "cancel", "params": {"id": request_id}}) + b"\n")
    await _taken_back(session, request_id)
    await session.none_runs(cmd)
    others = await session.rest()
    expect(not others, f"a notification was answered: {others}")


@proves("C-UNKNOWN")
async def _unknown_and_answered(rig: Rig, session: Session) -> None:
    for request_id in ("no such request", 2**40, -1):
        await _cancel(session, request_id)
    await session.rejects("cancel", {}, "$.id")
    request_id = session.post("exec", {"cmd": rig.words.cat})
    process = await session.began(request_id)
    await _cancel(session, request_id)
    await _lives(process)


@proves("C-UNKNOWN")
async def _another_type(rig: Rig, session: Session) -> None:
    session.needs("run")
    request_id = session.post("run", {"cmd": rig.words.sleep(1)})
    await _cancel(session, str(request_id))
    ran = await session.ran(request_id)
    expect(ending(ran) == ("exited", 0, "exited"), f"a run of another id ended with {ending(ran)}")


@proves("C-DUPLICATE")
async def _duplicate(rig: Rig, session: Session) -> None:
    request_id = uuid.uuid4().hex
    session.needs("run")
    for _ in range(2):
        session.post("run", {"cmd": rig.words.sleep(1)}, id=request_id)
    await session.rejects("cancel", {"id": request_id}, "$.id")
    for _ in range(2):
        ran = await session.ran(request_id)
        expect(ending(ran) == ("exited", 0, "exited"), f"one of the two ended with {ending(ran)}")


# --- Limits of a control group of the command's own ---


@proves("T-LIMITS-MEMORY")
async def _memory(rig: Rig, session: Session) -> None:
    session.needs("run")
    beside = session.post("run", {"cmd": NEEDS_BYTES})
    ran = await session.run(NEEDS_BYTES, limits={"memory_bytes": GROUP_BYTES})
    told = (ran["reason"], ran.get("oom_kills"), (ran.get("memory") or {}).get("limit_bytes"))
    expect(told == ("oom", 1, GROUP_BYTES), f"a command that needs four times its memory is told as {told}")
    other = await session.ran(beside)
    expect((other["exit_code"], other["reason"]) == (0, "exited"), f"one without a limit is told as {other}")


@proves("T-LIMITS-CPUS")
async def _processors(rig: Rig, session: Session) -> None:
    session.needs("run")
    ran = await session.run(rig.shell(SPIN), limits={"cpus": SHARE})
    held_up = (ran.get("group") or {}).get("throttled_us", 0)
    expect(held_up > 0, f"with cpus {SHARE} a command that spins was held up for {held_up} us: {ran}")


@proves("T-LIMITS-PIDS")
async def _processes(rig: Rig, session: Session) -> None:
    session.needs("run")
    ran = await session.run(rig.shell(FORKS), limits.CHECK_SOON_MS * 4, limits={"pids": FEW})
    refused_forks = (ran.get("group") or {}).get("forks_refused", 0)
    expect(refused_forks > 0, f"with pids {FEW} a command that forks 18 times was refused none: {ran}")
    free = await session.run(rig.shell(FORKS))
    expect(free["exit_code"] == 0, f"one without a limit ended with {free['exit_code']}")
