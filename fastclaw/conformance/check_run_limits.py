"""Checks of `run` where there is more output than it may give."""

import uuid
from typing import Any

from fastclaw import limits
from fastclaw.conformance.check_exec import EXEC_FAILED
from fastclaw.conformance.check_run import DEFAULT_LIMIT, HIGHEST_LIMIT, TEXT, encoded, same
from fastclaw.conformance.left import leaves
from fastclaw.conformance.outside import bearers, soon
from fastclaw.conformance.registry import proves
from fastclaw.conformance.rig import Rig, data_of, expect
from fastclaw.conformance.run_results import around_gap, dropped, ending, given, has_no_gap, outputs

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


def _counts(ran: dict[str, Any], stream: str, total: int) -> None:
    """What is given and what was dropped are all there was."""
    got, missing = len(given(ran, stream)), dropped(ran, stream)
    expect(got + missing == total, f"of {total} bytes of {stream} {got} are given and {missing} dropped")


def _ends(ran: dict[str, Any], written: bytes, limit: int) -> None:
    """The first and the last half of `written`, each short of it by less than one character."""
    _counts(ran, "stdout", len(written))
    head, tail = around_gap(ran, "stdout")
    expect(written.startswith(head) and written.endswith(tail), "what is given are not the two ends of the stream")
    for name, part in (("beginning", head), ("end", tail)):
        expect(
            limit // 2 - CHARACTER_BYTES < len(part) <= (limit + 1) // 2,
            f"with a limit of {limit} the {name} that is given has {len(part)} bytes",
        )


@proves("RUN-LIMIT-ENDS")
async def ends(rig: Rig) -> None:
    session, total = await rig.shared(), DEFAULT_LIMIT + MORE
    ran = await session.run(rig.words.out(total))
    _ends(ran, rig.words.written(total), DEFAULT_LIMIT)
    expect(dropped(ran, "stdout") == MORE, f"{dropped(ran, 'stdout')} bytes were dropped, where {MORE} were too many")
    expect(ending(ran) == ("exited", 0, "exited"), f"the command ended with {ending(ran)}")


@proves("RUN-LIMIT-ENDS")
async def ends_at_characters(rig: Rig) -> None:
    session = await rig.shared()
    for limit in LIMITS[2:]:
        ran = await session.run(rig.words.cat, input=CHARACTERS, output_limit=limit, keep="ends")
        expect(isinstance(ran.get("stdout"), str), f"with a limit of {limit} a text came as base64")
        _ends(ran, CHARACTERS.encode(), limit)


@proves("RUN-LIMIT-ENDS")
async def each_stream_by_itself(rig: Rig) -> None:
    session = await rig.shared()
    ran = await session.run(rig.words.stderr("x" * 100), output_limit=10)
    expect(dropped(ran, "stdout") == 0, f"`dropped` is {ran['dropped']}, where nothing was written to stdout")
    expect(dropped(ran, "stderr") in (90, 91), f"`dropped` is {ran['dropped']}, where stderr has 90 bytes too many")
    ran = await session.run(rig.words.echo("x" * 100), output_limit=0)
    expect((given(ran, "stdout"), dropped(ran, "stdout")) == (b"", 101), f"with a limit of 0: {ran}")


@proves("RUN-LIMIT-HEAD")
async def head(rig: Rig) -> None:
    await _one_end(rig, "head")


@proves("RUN-LIMIT-TAIL")
async def tail(rig: Rig) -> None:
    await _one_end(rig, "tail")


async def _one_end(rig: Rig, keep: str) -> None:
    session, total = await rig.shared(), DEFAULT_LIMIT + MORE
    ran = await session.run(rig.words.out(total), keep=keep)
    _is_end(ran, keep, rig.words.written(total), DEFAULT_LIMIT)
    expect(dropped(ran, "stdout") == MORE, f"{dropped(ran, 'stdout')} bytes were dropped, where {MORE} were too many")
    for limit in LIMITS:
        ran = await session.run(rig.words.cat, input=CHARACTERS, output_limit=limit, keep=keep)
        expect(isinstance(ran.get("stdout"), str), f"with a limit of {limit} a text came as base64")
        _is_end(ran, keep, CHARACTERS.encode(), limit)


def _is_end(ran: dict[str, Any], keep: str, written: bytes, limit: int) -> None:
    _counts(ran, "stdout", len(written))
    has_no_gap(ran, "stdout")
    got = given(ran, "stdout")
    fits = written.startswith(got) if keep == "head" else written.endswith(got)
    expect(fits, f"what is given is not the {keep} of the stream")
    expect(limit - CHARACTER_BYTES < len(got) <= limit, f"with a limit of {limit} {len(got)} bytes are given")


@proves("RUN-LIMIT-KILL")
async def kill(rig: Rig) -> None:
    session = await rig.shared()
    for keep in ("head", "ends"):
        ran = await session.run(rig.words.out(FLOOD), output_limit=SMALL, on_limit="kill", keep=keep)
        got, missing = given(ran, "stdout"), dropped(ran, "stdout")
        expect((ran.get("state"), ran.get("reason")) == ("exited", "killed"), f"over its limit: {ending(ran)}")
        expect(len(got) <= SMALL < len(got) + missing < FLOOD, f"{len(got)} bytes are given, {missing} dropped")
        expect(got[: SMALL // 2] == rig.words.written(SMALL // 2), "what is given is not how the stream begins")


@proves("RUN-LIMIT-KILL")
async def no_kill_within_the_limit(rig: Rig) -> None:
    session = await rig.shared()
    ran = await session.run(rig.words.out(SMALL), output_limit=SMALL, on_limit="kill")
    expect(ending(ran) == ("exited", 0, "exited"), f"a stream of exactly its limit: {ending(ran)}")
    expect(same(outputs(ran)[0], rig.words.written(SMALL)), "bytes are missing")


@proves("RUN-LIMIT-KILL")
async def the_tree_of_a_kill(rig: Rig) -> None:
    session, token = await rig.shared(), uuid.uuid4().hex
    ran = await session.run(rig.shell(leaves(token) + "yes | cat"), output_limit=SMALL, on_limit="kill")
    expect(ran.get("reason") == "killed", f"over its limit: {ending(ran)}")
    if "kill_tree" in session.welcome.get("capabilities", []):
        await soon("nothing of the tree is left", lambda: not bearers(token))


@proves("RUN-OVERLOADED")
async def overloaded(rig: Rig) -> None:
    async with rig.with_options(run_output_bytes=ROOM) as session:
        other = session.wire.post("run", {"cmd": rig.words.sleep(1)})
        error = await session.error(
            "run", {"cmd": rig.words.out(4 * ROOM), "output_limit": 4 * ROOM}, EXEC_FAILED, "overloaded"
        )
        expect(data_of(error).get("retryable") is True, f"it is not `retryable`: {error}")
        await session.none_runs(rig.words.out(4 * ROOM))
        expect(ending(await session.ran(other)) == ("exited", 0, "exited"), "another run did not go on")
        out, _ = outputs(await session.run(rig.words.out(ROOM // 2)))
        expect(same(out, rig.words.written(ROOM // 2)), f"a later run gave {len(out)} bytes of {ROOM // 2}")


@proves("RUN-LINE")
async def longest_answer(rig: Rig) -> None:
    # Each of these bytes takes six in JSON.
    data = bytes(HIGHEST_LIMIT)
    for keep in ("ends", "head", "tail"):
        ran = await (await rig.shared()).run(
            rig.words.cat, input_base64=encoded(data), output_limit=HIGHEST_LIMIT, keep=keep
        )
        _counts(ran, "stdout", len(data))
        expect(len(given(ran, "stdout")) >= LEAST_OF_A_LINE, f"only {len(given(ran, 'stdout'))} bytes are given")
        expect(dropped(ran, "stdout") > 0, "more bytes are given than a line holds")
