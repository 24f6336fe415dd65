"""Checks of `run`: its answer, its params, its input, and every byte of its output."""

import asyncio
import base64
import hashlib
import time
from typing import Any

from fastclaw import limits
from fastclaw.conformance.check_exec import EXEC_FAILED, MISSING
from fastclaw.conformance.check_records import has_shape
from fastclaw.conformance.check_wire import INVALID_PARAMS
from fastclaw.conformance.registry import proves
from fastclaw.conformance.rig import Rig, Session, data_of, expect
from fastclaw.conformance.run_results import ending, given, outputs

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


def same(got: bytes, wanted: bytes) -> bool:
    """Whether they are equal, without a comparison that pytest or a report would print."""
    return len(got) == len(wanted) and hashlib.sha256(got).digest() == hashlib.sha256(wanted).digest()


def encoded(data: bytes) -> str:
    """For `input_base64`."""
    return base64.b64encode(data).decode()


@proves("RUN-RESULT")
async def result(rig: Rig) -> None:
    session = await rig.shared()
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
async def not_before_the_end(rig: Rig) -> None:
    session, begun = await rig.shared(), time.monotonic()
    await session.run(rig.words.sleep(1))
    # Half of it: loops round their timers.
    expect(time.monotonic() - begun > 0.5, "a command that takes a second was answered at once")


@proves("RUN-RESULT")
async def silent_before_the_end(rig: Rig) -> None:
    ran = await (await rig.shared()).run(rig.shell("exec >&- 2>&-; sleep 1; exit 3"))
    expect(ending(ran) == ("exited", 3, "exited"), f"a command that closed its streams ended with {ending(ran)}")


@proves("RUN-EXEC")
async def shared_params(rig: Rig) -> None:
    session = await rig.shared()
    out, _ = outputs(await session.run(rig.words.printenv("CHECK_A"), env={"CHECK_A": "request"}))
    expect(out == b"request\n", f"a variable of the request is {out!r}")
    out, _ = outputs(await session.run(rig.words.pwd, working_dir="/"))
    expect(out == b"/\n", f"in working_dir / pwd said {out!r}")


@proves("RUN-EXEC")
async def shared_errors(rig: Rig) -> None:
    session = await rig.shared()
    await session.error("run", {"cmd": [MISSING]}, EXEC_FAILED, "not_found")
    if rig.words.directory is not None:
        params = {"cmd": rig.words.true, "working_dir": f"{rig.words.directory}/{MISSING}"}
        await session.error("run", params, EXEC_FAILED, "bad_working_dir")
    for name, wrong in (("$.cmd", {"cmd": []}), ("$.cmd", {"cmd": ["a\0b"]}), ("$.env", {"env": {"A": "a\0b"}})):
        await _names(session, name, {"cmd": rig.words.true, **wrong})


async def _names(session: Session, name: str, params: dict[str, Any]) -> None:
    """The call fails, and says that this field is wrong."""
    told = str(data_of(await session.error("run", params, INVALID_PARAMS)).get("path"))
    expect(told.startswith(name), f"data.path is {told!r}, not {name!r}")


@proves("RUN-BOUNDS")
async def bounds(rig: Rig) -> None:
    session = await rig.shared()
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
        await _names(session, name, {"cmd": rig.words.true, **params})


# --- Output ---


@proves("RUN-OUTPUT")
async def every_byte(rig: Rig) -> None:
    session = await rig.shared()
    for count in (0, 1, 65_536, DEFAULT_LIMIT):
        await _is_whole(rig, session, count)
    await _is_whole(rig, session, HIGHEST_LIMIT, output_limit=HIGHEST_LIMIT)


async def _is_whole(rig: Rig, session: Session, count: int, **params: Any) -> None:
    out, err = outputs(await session.run(rig.words.out(count), **params))
    expect(same(out, rig.words.written(count)), f"{len(out)} bytes of {count} are given, or other ones")
    expect(err == b"", f"stderr is {err[:100]!r}")


@proves("RUN-OUTPUT")
async def without_patience(rig: Rig) -> None:
    """`drain_ms` is for what is left behind: a command's own output is whole without it."""
    session = await rig.shared()
    for _ in range(10):
        await _is_whole(rig, session, DEFAULT_LIMIT, drain_ms=0)


@proves("RUN-OUTPUT")
async def both_streams(rig: Rig) -> None:
    script = f"head -c {BOTH_BYTES} /dev/zero >&2; head -c {BOTH_BYTES} /dev/zero"
    out, err = outputs(await (await rig.shared()).run(rig.shell(script)))
    expect((len(out), len(err)) == (BOTH_BYTES, BOTH_BYTES), f"{len(out)} and {len(err)} bytes of {BOTH_BYTES} each")


@proves("RUN-OUTPUT")
async def at_once(rig: Rig) -> None:
    session = await rig.shared()
    texts = [f"{number} {TEXT}" * (50 * number) for number in range(AT_ONCE)]
    posted = [session.wire.post("run", {"cmd": rig.words.cat, "input": text}) for text in texts]
    for request_id, text in zip(posted, texts, strict=True):
        out, _ = outputs(await session.ran(request_id))
        expect(same(out, text.encode()), f"one of {AT_ONCE} runs gave {len(out)} bytes of {len(text.encode())}")


@proves("RUN-BINARY")
async def binary(rig: Rig) -> None:
    session = await rig.shared()
    for data in (BINARY, b"\xff", "é".encode()[:1], b"caf\xc3", b"\xed\xa0\x80"):
        ran = await session.run(rig.words.cat, input_base64=encoded(data))
        out, err = outputs(ran)
        expect((out, err) == (data, b""), f"cat gave {out!r} for {data!r}")
        expect("stdout" in ran and "stderr_base64" not in ran, f"the answer has the fields {sorted(ran)}")


@proves("RUN-BINARY")
async def text(rig: Rig) -> None:
    session = await rig.shared()
    for said in (TEXT, "\0", "\ufeff\uffff", '"\\\n\x7f', "\U0010ffff"):
        ran = await session.run(rig.words.cat, input=said)
        expect(ran.get("stdout") == said, f"cat gave {ran.get('stdout')!r} for {said!r}")
        expect("stdout_base64" not in ran, f"{said!r} came as base64 too")


@proves("RUN-BINARY")
async def one_stream_of_each_kind(rig: Rig) -> None:
    ran = await (await rig.shared()).run(rig.shell("printf '\\377'; echo text >&2"))
    expect(outputs(ran) == (b"\xff", b"text\n"), f"the streams are {given(ran, 'stdout')!r}, {given(ran, 'stderr')!r}")
    expect((ran.get("stdout"), ran.get("stderr")) == (None, "text\n"), "the text of a binary stream is not null")


@proves("RUN-MERGE")
async def merged(rig: Rig) -> None:
    out, err = outputs(await (await rig.shared()).run(rig.words.stderr("to stderr"), merge_stderr=True))
    expect((out.rstrip(b"\n"), err) == (b"to stderr", b""), f"stdout is {out!r}, stderr {err!r}")


@proves("RUN-MERGE")
async def merged_in_order(rig: Rig) -> None:
    session = await rig.shared()
    session.needs("separate_eof")
    script = f"i=0; while [ $i -lt {TURNS} ]; do echo out; echo err >&2; i=$((i+1)); done"
    out, err = outputs(await session.run(rig.shell(script), merge_stderr=True))
    expect((out, err) == (b"out\nerr\n" * TURNS, b""), f"stdout begins with {out[:100]!r}, stderr with {err[:100]!r}")


# --- Input ---


@proves("RUN-INPUT")
async def input_to_its_end(rig: Rig) -> None:
    session = await rig.shared()
    for said in ("", TEXT, TEXT * 50_000):
        out, _ = outputs(await session.run(rig.words.cat, input=said))
        expect(same(out, said.encode()), f"{len(out)} bytes of {len(said.encode())} came back, or other ones")


@proves("RUN-INPUT")
async def input_both_ways(rig: Rig) -> None:
    data = BINARY * (LARGE // len(BINARY))
    ran = await (await rig.shared()).run(rig.words.cat, input_base64=encoded(data), output_limit=LARGE)
    expect(same(outputs(ran)[0], data), f"{len(given(ran, 'stdout'))} bytes of {LARGE} came back, or other ones")


@proves("RUN-INPUT")
async def input_not_read(rig: Rig) -> None:
    session = await rig.shared()
    for _ in range(10):
        ran = await session.run(rig.words.echo("said"), input="x" * limits.MIB)
        expect(ending(ran) == ("exited", 0, "exited"), f"a command that reads no input ended with {ending(ran)}")
        expect(outputs(ran) == (b"said\n", b""), f"a command that reads no input gave {given(ran, 'stdout')!r}")


@proves("RUN-NO-INPUT")
async def no_input(rig: Rig) -> None:
    async with asyncio.timeout(limits.CHECK_SOON_MS / 1000):
        out, err = outputs(await (await rig.shared()).run(rig.words.cat))
    expect((out, err) == (b"", b""), f"without input cat gave {out!r} and {err!r}")
