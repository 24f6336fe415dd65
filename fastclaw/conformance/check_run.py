"""Checks of `run`: its answer, its params, its input, every byte of its output, and how it ends."""

import asyncio
import base64
import time
import uuid
from typing import Any

from fastclaw import limits
from fastclaw.conformance.check_exec import MISSING, OUTLIVED_MS, OUTLIVES_S, has_shape
from fastclaw.conformance.rig import (
    LEFT_BYTES,
    Rig,
    Session,
    bearers,
    becomes,
    has_written,
    leaves,
    must_be_seen,
    none_bears,
    outlives,
    same,
    seen,
    soon,
    writes_on,
)
from fastclaw.conformance.runner import proves
from fastclaw.conformance.wire import EXEC_FAILED, ending, expect, given, outputs

DEFAULT_LIMIT = limits.MIB
HIGHEST_LIMIT = 16 * limits.MIB
LARGE = 8 * limits.MIB
"""More than every buffer on the way together."""

AT_ONCE = 64
BOTH_BYTES = 500_000
"""To each stream, one after the other: more than a pipe holds."""

TURNS = 100
BINARY = bytes(range(256))
TEXT = "ключ-🦀\u0001\n"


def encoded(data: bytes) -> str:
    """For `input_base64`."""
    return base64.b64encode(data).decode()


@proves("RUN-RESULT")
async def _result(rig: Rig, session: Session) -> None:
    for cmd, code, wanted in (
        (rig.words.true, 0, (b"", b"")),
        (rig.words.exit(42), 42, (b"", b"")),
        (rig.words.echo("to stdout"), 0, (b"to stdout\n", b"")),
        (rig.words.stderr("to stderr"), 0, (b"", b"to stderr")),
    ):
        ran = await session.run(cmd)
        has_shape(ran)
        out, err = outputs(ran)
        expect(ending(ran) == ("exited", code, "exited"), f"{cmd} ended with {ending(ran)}")
        expect((out, err.rstrip(b"\n")) == wanted, f"{cmd} gave {out!r} and {err!r}")


@proves("RUN-RESULT")
async def _not_before_the_end(rig: Rig, session: Session) -> None:
    begun = time.monotonic()
    await session.run(rig.words.sleep(1))
    # Half of it: loops round their timers.
    expect(time.monotonic() - begun > 0.5, "a command that takes a second was answered at once")


@proves("RUN-RESULT")
async def _silent_before_the_end(rig: Rig, session: Session) -> None:
    ran = await session.run(rig.shell("exec >&- 2>&-; sleep 1; exit 3"))
    expect(ending(ran) == ("exited", 3, "exited"), f"a command that closed its streams ended with {ending(ran)}")


@proves("RUN-EXEC")
async def _shared_params(rig: Rig, session: Session) -> None:
    out, _ = outputs(await session.run(rig.words.printenv("CHECK_A"), env={"CHECK_A": "request"}))
    expect(out == b"request\n", f"a variable of the request is {out!r}")
    out, _ = outputs(await session.run(rig.words.pwd, working_dir="/"))
    expect(out == b"/\n", f"in working_dir / pwd said {out!r}")


@proves("RUN-EXEC")
async def _shared_errors(rig: Rig, session: Session) -> None:
    await session.error("run", {"cmd": [MISSING]}, EXEC_FAILED, "not_found")
    if rig.words.directory is not None:
        params = {"cmd": rig.words.true, "working_dir": f"{rig.words.directory}/{MISSING}"}
        await session.error("run", params, EXEC_FAILED, "bad_working_dir")
    for name, wrong in (("$.cmd", {"cmd": []}), ("$.cmd", {"cmd": ["a\0b"]}), ("$.env", {"env": {"A": "a\0b"}})):
        await session.rejects("run", {"cmd": rig.words.true, **wrong}, name)


@proves("RUN-BOUNDS")
async def _bounds(rig: Rig, session: Session) -> None:
    for name, params in (
        ("$.output_limit", {"output_limit": HIGHEST_LIMIT + 1}),
        ("$.output_limit", {"output_limit": -1}),
        ("$.drain_ms", {"drain_ms": -1}),
        ("$.keep", {"keep": "middle"}),
        ("$.on_limit", {"on_limit": "wait"}),
        ("$.orphans", {"orphans": "adopt"}),
        ("$.input_base64", {"input": "a", "input_base64": "YQ=="}),
        ("$.input_base64", {"input_base64": "no base64!"}),
        ("$.input_base64", {"input_base64": "YQ"}),
    ):
        await session.rejects("run", {"cmd": rig.words.true, **params}, name)


# --- Output ---


@proves("RUN-OUTPUT")
async def _every_byte(rig: Rig, session: Session) -> None:
    for count in (0, 1, 65_536, DEFAULT_LIMIT):
        await _is_whole(rig, session, count)
    await _is_whole(rig, session, HIGHEST_LIMIT, output_limit=HIGHEST_LIMIT)
    for _ in range(10):  # `drain_ms` is for what is left behind: a command's own output is whole without it
        await _is_whole(rig, session, DEFAULT_LIMIT, drain_ms=0)


async def _is_whole(rig: Rig, session: Session, count: int, **params: Any) -> None:
    out, err = outputs(await session.run(rig.words.out(count), **params))
    expect(same(out, rig.words.written(count)), f"{len(out)} bytes of {count} are given, or other ones")
    expect(err == b"", f"stderr is {err[:100]!r}")


@proves("RUN-OUTPUT")
async def _both_streams(rig: Rig, session: Session) -> None:
    script = f"head -c {BOTH_BYTES} /dev/zero >&2; head -c {BOTH_BYTES} /dev/zero"
    out, err = outputs(await session.run(rig.shell(script)))
    expect((len(out), len(err)) == (BOTH_BYTES, BOTH_BYTES), f"{len(out)} and {len(err)} bytes of {BOTH_BYTES} each")


@proves("RUN-OUTPUT")
async def _at_once(rig: Rig, session: Session) -> None:
    texts = [f"{number} {TEXT}" * (50 * number) for number in range(AT_ONCE)]
    posted = [session.post("run", {"cmd": rig.words.cat, "input": text}) for text in texts]
    for request_id, text in zip(posted, texts, strict=True):
        out, _ = outputs(await session.ran(request_id))
        expect(same(out, text.encode()), f"one of {AT_ONCE} runs gave {len(out)} bytes of {len(text.encode())}")


@proves("RUN-BINARY")
async def _binary_and_text(rig: Rig, session: Session) -> None:
    for data in (BINARY, b"\xff", "é".encode()[:1], b"caf\xc3", b"\xed\xa0\x80"):
        ran = await session.run(rig.words.cat, input_base64=encoded(data))
        out, err = outputs(ran)
        expect((out, err) == (data, b""), f"cat gave {out!r} for {data!r}")
        expect("stdout" in ran and "stderr_base64" not in ran, f"the answer has the fields {sorted(ran)}")
    for said in (TEXT, "\0", "\ufeff\uffff", '"\\\n\x7f', "\U0010ffff"):
        ran = await session.run(rig.words.cat, input=said)
        expect(ran.get("stdout") == said, f"cat gave {ran.get('stdout')!r} for {said!r}")
        expect("stdout_base64" not in ran, f"{said!r} came as base64 too")


@proves("RUN-BINARY")
async def _one_stream_of_each_kind(rig: Rig, session: Session) -> None:
    ran = await session.run(rig.shell("printf '\\377'; echo text >&2"))
    expect(outputs(ran) == (b"\xff", b"text\n"), f"the streams are {given(ran, 'stdout')!r}, {given(ran, 'stderr')!r}")
    expect((ran.get("stdout"), ran.get("stderr")) == (None, "text\n"), "the text of a binary stream is not null")


@proves("RUN-MERGE")
async def _merged(rig: Rig, session: Session) -> None:
    out, err = outputs(await session.run(rig.words.stderr("to stderr"), merge_stderr=True))
    expect((out.rstrip(b"\n"), err) == (b"to stderr", b""), f"stdout is {out!r}, stderr {err!r}")


@proves("RUN-MERGE")
async def _merged_in_order(rig: Rig, session: Session) -> None:
    session.needs("separate_eof")
    script = f"i=0; while [ $i -lt {TURNS} ]; do echo out; echo err >&2; i=$((i+1)); done"
    out, err = outputs(await session.run(rig.shell(script), merge_stderr=True))
    expect((out, err) == (b"out\nerr\n" * TURNS, b""), f"stdout begins with {out[:100]!r}, stderr with {err[:100]!r}")


# --- Input ---


@proves("RUN-INPUT")
async def _input_to_its_end(rig: Rig, session: Session) -> None:
    for said in ("", TEXT, TEXT * 50_000):
        out, _ = outputs(await session.run(rig.words.cat, input=said))
        expect(same(out, said.encode()), f"{len(out)} bytes of {len(said.encode())} came back, or other ones")
    data = BINARY * (LARGE // len(BINARY))
    ran = await session.run(rig.words.cat, input_base64=encoded(data), output_limit=LARGE)
    expect(same(outputs(ran)[0], data), f"{len(given(ran, 'stdout'))} bytes of {LARGE} came back, or other ones")


@proves("RUN-INPUT")
async def _input_not_read(rig: Rig, session: Session) -> None:
    for _ in range(10):
        ran = await session.run(rig.words.echo("said"), input="x" * limits.MIB)
        expect(ending(ran) == ("exited", 0, "exited"), f"a command that reads no input ended with {ending(ran)}")
        expect(outputs(ran) == (b"said\n", b""), f"a command that reads no input gave {given(ran, 'stdout')!r}")


@proves("RUN-NO-INPUT")
async def _no_input(rig: Rig, session: Session) -> None:
    async with asyncio.timeout(limits.CHECK_SOON_MS / 1000):
        out, err = outputs(await session.run(rig.words.cat))
    expect((out, err) == (b"", b""), f"without input cat gave {out!r} and {err!r}")


# --- Ends ---


PATIENCE_MS = 20_000
TIMEOUT_MS = 300

WAITING = 3


@proves("RUN-DRAIN")
async def _left_behind(rig: Rig, session: Session) -> None:
    for params in ({}, {"drain_ms": 0}, {"merge_stderr": True}):
        ran = await session.run(rig.shell("sleep 300 & echo up"), limits.CHECK_SOON_MS, **params)
        expect(outputs(ran) == (b"up\n", b""), f"with {params} stdout is {ran['stdout']!r}")
        expect(ending(ran) == ("exited", 0, "exited"), f"the command ended with {ending(ran)}")


@proves("RUN-DRAIN")
async def _not_before_it_is_drained(rig: Rig, session: Session) -> None:
    begun = time.monotonic()
    session.needs("separate_eof")
    ran = await session.run(rig.shell("(sleep 1; echo late) & echo up"), drain_ms=PATIENCE_MS)
    took_ms = (time.monotonic() - begun) * 1000
    expect(outputs(ran) == (b"up\nlate\n", b""), f"stdout is {ran['stdout']!r}")
    expect(took_ms < PATIENCE_MS, f"the streams were at their end, and the answer took {took_ms:.0f} ms")


@proves("RUN-DRAIN")
async def _what_the_command_wrote_itself(rig: Rig, session: Session) -> None:
    """A bound on the waiting, not on what is there at the exit."""
    script = f"sleep 300 & head -c {LEFT_BYTES} /dev/zero"
    out, _ = outputs(await session.run(rig.shell(script), limits.CHECK_SOON_MS))
    expect(len(out) == LEFT_BYTES, f"{len(out)} bytes of {LEFT_BYTES} are given")


@proves("RUN-ORPHANS")
async def _orphans(rig: Rig, session: Session) -> None:
    token = uuid.uuid4().hex
    session.needs("kill_tree")
    await must_be_seen(rig, session)
    ran = await session.run(rig.shell(outlives(token)))
    await soon("what was left behind lives", lambda: bool(bearers(token)))
    kill = {"process_id": ran["process_id"], "grace_ms": 0}
    expect(await session.result("kill", kill) == {}, "kill did not answer {}")
    none_bears(token)
    token = uuid.uuid4().hex
    await session.run(rig.shell(leaves(token)), orphans="kill")
    await soon("the orphan has ended with its command", lambda: not bearers(token))


@proves("RUN-LATE-WRITER")
async def _late_writer(rig: Rig, session: Session) -> None:
    witness, done = uuid.uuid4().hex, uuid.uuid4().hex
    session.needs("run")
    ran = await session.run(rig.shell(writes_on(witness, done, after_s=1)), drain_ms=0)
    expect(outputs(ran) == (b"up\n", b""), f"stdout has {len(outputs(ran)[0])} bytes")
    await has_written(witness, done)


@proves("RUN-KEY")
async def _joins(rig: Rig, session: Session) -> None:
    key = rig.namespace()
    slow, said = _slow(rig)
    posted = [session.post("run", {"cmd": slow, "key": key}) for _ in range(WAITING)]
    answers = [await session.ran(request_id) for request_id in posted]
    expect(len({ran["process_id"] for ran in answers}) == 1, "runs with one key are several processes")
    expect(all(outputs(ran) == (said, b"") for ran in answers), f"they gave {[ran.get('stdout') for ran in answers]}")
    later = await session.run(slow, limits.CHECK_SOON_MS, key=key)
    expect(later["process_id"] == answers[0]["process_id"], "the key ran again")
    expect(ending(later) == ("exited", 0, "exited"), f"the record that is kept says {ending(later)}")
    kept = (later.get("stdout"), later.get("stderr"))
    expect(kept == (None, None), f"its output is {kept}, not null")


def _slow(rig: Rig) -> tuple[list[str], bytes]:
    """A command that takes a second, and what it says where this vocabulary can make it speak."""
    return (rig.shell("sleep 1; echo once"), b"once\n") if rig.words.shell else (rig.words.sleep(1), b"")


@proves("RUN-KEY")
async def _key_of_another(rig: Rig, session: Session) -> None:
    key = rig.namespace()
    await session.run(rig.words.true, key=key)
    for other in ({"cmd": rig.words.echo("other")}, {"cmd": rig.words.true, "input": "other"}):
        await session.rejects("run", {**other, "key": key}, "$.key")


@proves("RUN-TIMEOUT")
async def _timeout(rig: Rig, session: Session) -> None:
    ran = await session.run(rig.words.sleep(300), limits.CHECK_SOON_MS, timeout_ms=TIMEOUT_MS)
    expect((ran.get("state"), ran.get("reason")) == ("exited", "timeout"), f"after its time: {ending(ran)}")


@proves("RUN-TIMEOUT")
async def _timeout_of_a_tree(rig: Rig, session: Session) -> None:
    token = uuid.uuid4().hex
    ran = await session.run(rig.shell(f"{leaves(token)}echo begun; sleep 300"), timeout_ms=limits.CHECK_SOON_MS // 4)
    expect(ran.get("reason") == "timeout", f"after its time: {ending(ran)}")
    expect(outputs(ran) == (b"begun\n", b""), f"stdout is {ran.get('stdout')!r}")
    if session.offers("kill_tree"):
        await soon("nothing of the tree is left", lambda: not bearers(token))


@proves("RUN-TIMEOUT")
async def _timeout_of_what_has_ended(rig: Rig, session: Session) -> None:
    token = uuid.uuid4().hex
    await must_be_seen(rig, session)
    await session.run(rig.shell(outlives(token, OUTLIVES_S)), timeout_ms=OUTLIVED_MS)
    await soon("what was left behind outlives the timeout", lambda: bool(bearers(token)))


@proves("RUN-KILL")
async def _killed(rig: Rig, session: Session) -> None:
    session.needs("list")
    await _is_killed(session, rig.words.sleep(300), b"")


@proves("RUN-KILL")
async def _killed_after_a_word(rig: Rig, session: Session) -> None:
    token = uuid.uuid4().hex
    session.needs("list")
    await _is_killed(session, rig.shell(f"echo begun; {becomes(token)}"), b"begun\n", token)


async def _is_killed(session: Session, cmd: list[str], said: bytes, token: str = "") -> None:
    """It is, by the id under which it is listed; where there is a token, once it has that."""
    request_id = session.post("run", {"cmd": cmd})
    deadline = time.monotonic() + limits.CHECK_SOON_MS / 1000
    while not (listed := await session.running(cmd)):
        expect(time.monotonic() < deadline, "`list` does not show a run that lives")
        await asyncio.sleep(limits.CHECK_POLL_MS / 1000)
    if token:
        await seen(token)
    answer = await session.result("kill", {"process_id": listed[0]})
    expect(answer == {}, f"kill answered {answer}")
    ran = await session.ran(request_id, limits.CHECK_SOON_MS)
    expect((ran["process_id"], ran.get("reason")) == (listed[0], "killed"), f"after kill: {ending(ran)}")
    expect(outputs(ran) == (said, b""), f"stdout is {ran.get('stdout')!r}")
