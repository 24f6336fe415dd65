"""Checks of how a `run` ends: by itself, by time, by another one with its key, and with something left behind."""

import asyncio
import time
import uuid

from fastclaw import limits
from fastclaw.conformance.check_exec import OUTLIVED_MS, OUTLIVES_S
from fastclaw.conformance.check_wire import INVALID_PARAMS
from fastclaw.conformance.left import LEFT_BYTES, becomes, leaves, must_be_seen, outlives, writes_on
from fastclaw.conformance.outside import bearers, seen, soon
from fastclaw.conformance.registry import proves
from fastclaw.conformance.rig import Rig, Session, data_of, expect
from fastclaw.conformance.run_results import ending, outputs
from fastclaw.conformance.wire import Broken

PATIENCE_MS = 20_000
TIMEOUT_MS = 300

WAITING = 3


@proves("RUN-DRAIN")
async def left_behind(rig: Rig) -> None:
    session = await rig.shared()
    for params in ({}, {"drain_ms": 0}, {"merge_stderr": True}):
        ran = await session.run(rig.shell("sleep 300 & echo up"), limits.CHECK_SOON_MS, **params)
        expect(outputs(ran) == (b"up\n", b""), f"with {params} stdout is {ran['stdout']!r}")
        expect(ending(ran) == ("exited", 0, "exited"), f"the command ended with {ending(ran)}")


@proves("RUN-DRAIN")
async def not_before_it_is_drained(rig: Rig) -> None:
    session, begun = await rig.shared(), time.monotonic()
    session.needs("separate_eof")
    ran = await session.run(rig.shell("(sleep 1; echo late) & echo up"), drain_ms=PATIENCE_MS)
    took_ms = (time.monotonic() - begun) * 1000
    expect(outputs(ran) == (b"up\nlate\n", b""), f"stdout is {ran['stdout']!r}")
    expect(took_ms < PATIENCE_MS, f"the streams were at their end, and the answer took {took_ms:.0f} ms")


@proves("RUN-DRAIN")
async def what_the_command_wrote_itself(rig: Rig) -> None:
    """A bound on the waiting, not on what is there at the exit."""
    script = f"sleep 300 & head -c {LEFT_BYTES} /dev/zero"
    out, _ = outputs(await (await rig.shared()).run(rig.shell(script), limits.CHECK_SOON_MS))
    expect(len(out) == LEFT_BYTES, f"{len(out)} bytes of {LEFT_BYTES} are given")


@proves("RUN-ORPHANS")
async def orphans(rig: Rig) -> None:
    session, token = await rig.shared(), uuid.uuid4().hex
    session.needs("kill_tree")
    await must_be_seen(rig, session)
    ran = await session.run(rig.shell(outlives(token)))
    await soon("what was left behind lives", lambda: bool(bearers(token)))
    kill = {"process_id": ran["process_id"], "grace_ms": 0}
    expect(await session.result("kill", kill) == {}, "kill did not answer {}")
    expect(not bearers(token), f"orphans are left after kill: {bearers(token)}")
    token = uuid.uuid4().hex
    await session.run(rig.shell(leaves(token)), orphans="kill")
    await soon("the orphan has ended with its command", lambda: not bearers(token))


@proves("RUN-LATE-WRITER")
async def late_writer(rig: Rig) -> None:
    session, witness, done = await rig.shared(), uuid.uuid4().hex, uuid.uuid4().hex
    session.needs("run")
    ran = await session.run(rig.shell(writes_on(witness, done, after_s=1)), drain_ms=0)
    expect(outputs(ran) == (b"up\n", b""), f"stdout has {len(outputs(ran)[0])} bytes")
    await seen(witness)
    await soon("what was left behind has written everything and lives", lambda: bool(bearers(done)))


@proves("RUN-KEY")
async def joins(rig: Rig) -> None:
    session, key = await rig.shared(), rig.namespace()
    slow, said = _slow(rig)
    posted = [session.wire.post("run", {"cmd": slow, "key": key}) for _ in range(WAITING)]
    answers = [await session.ran(request_id) for request_id in posted]
    expect(len({ran["process_id"] for ran in answers}) == 1, "runs with one key are several processes")
    expect(all(outputs(ran) == (said, b"") for ran in answers), f"they gave {[ran.get('stdout') for ran in answers]}")
    later = await session.run(slow, limits.CHECK_SOON_MS, key=key)
    expect(later["process_id"] == answers[0]["process_id"], "the key ran again")
    expect(ending(later) == ("exited", 0, "exited"), f"the record that is kept says {ending(later)}")
    expect(
        (later.get("stdout"), later.get("stderr")) == (None, None), f"its output is {later.get('stdout')!r}, not null"
    )


def _slow(rig: Rig) -> tuple[list[str], bytes]:
    """A command that takes a second, and what it says where this vocabulary can make it speak."""
    return (rig.shell("sleep 1; echo once"), b"once\n") if rig.words.shell else (rig.words.sleep(1), b"")


@proves("RUN-KEY")
async def key_of_another(rig: Rig) -> None:
    session, key = await rig.shared(), rig.namespace()
    await session.run(rig.words.true, key=key)
    for other in ({"cmd": rig.words.echo("other")}, {"cmd": rig.words.true, "input": "other"}):
        told = data_of(await session.error("run", {**other, "key": key}, INVALID_PARAMS)).get("path")
        expect(told == "$.key", f"for another request with the same key data.path is {told!r}")


@proves("RUN-TIMEOUT")
async def timeout(rig: Rig) -> None:
    ran = await (await rig.shared()).run(rig.words.sleep(300), limits.CHECK_SOON_MS, timeout_ms=TIMEOUT_MS)
    expect((ran.get("state"), ran.get("reason")) == ("exited", "timeout"), f"after its time: {ending(ran)}")


@proves("RUN-TIMEOUT")
async def timeout_of_a_tree(rig: Rig) -> None:
    session, token = await rig.shared(), uuid.uuid4().hex
    ran = await session.run(rig.shell(f"{leaves(token)}echo begun; sleep 300"), timeout_ms=limits.CHECK_SOON_MS // 4)
    expect(ran.get("reason") == "timeout", f"after its time: {ending(ran)}")
    expect(outputs(ran) == (b"begun\n", b""), f"stdout is {ran.get('stdout')!r}")
    if "kill_tree" in session.welcome.get("capabilities", []):
        await soon("nothing of the tree is left", lambda: not bearers(token))


@proves("RUN-TIMEOUT")
async def timeout_of_what_has_ended(rig: Rig) -> None:
    session, token = await rig.shared(), uuid.uuid4().hex
    await must_be_seen(rig, session)
    await session.run(rig.shell(outlives(token, OUTLIVES_S)), timeout_ms=OUTLIVED_MS)
    await soon("what was left behind outlives the timeout", lambda: bool(bearers(token)))


@proves("RUN-KILL")
async def killed(rig: Rig) -> None:
    session = await rig.shared()
    session.needs("list")
    await _is_killed(session, rig.words.sleep(300), b"")


@proves("RUN-KILL")
async def killed_after_a_word(rig: Rig) -> None:
    session, token = await rig.shared(), uuid.uuid4().hex
    session.needs("list")
    await _is_killed(session, rig.shell(f"echo begun; {becomes(token)}"), b"begun\n", token)


async def _is_killed(session: Session, cmd: list[str], said: bytes, token: str = "") -> None:
    """It is, by the id under which it is listed; where there is a token, once it has that."""
    request_id = session.wire.post("run", {"cmd": cmd})
    process_id = await _listed(session, cmd)
    if token:
        await seen(token)
    answer = await session.result("kill", {"process_id": process_id})
    expect(answer == {}, f"kill answered {answer}")
    ran = await session.ran(request_id, limits.CHECK_SOON_MS)
    expect((ran["process_id"], ran.get("reason")) == (process_id, "killed"), f"after kill: {ending(ran)}")
    expect(outputs(ran) == (said, b""), f"stdout is {ran.get('stdout')!r}")


async def _listed(session: Session, cmd: list[str]) -> str:
    """The id under which the live process of this command is listed.

    Raises:
        Broken: it is not.
    """
    deadline = time.monotonic() + limits.CHECK_SOON_MS / 1000
    while time.monotonic() < deadline:
        for row in (await session.result("list"))["processes"]:
            if (row["cmd"], row["state"]) == (cmd, "running"):
                return str(row["process_id"])
        await asyncio.sleep(limits.CHECK_POLL_MS / 1000)
    raise Broken("`list` does not show a run that lives")
