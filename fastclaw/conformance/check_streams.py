"""Checks of a process's two sockets while one client uses them."""

import asyncio
import hashlib

from fastclaw import limits
from fastclaw.conformance.registry import proves
from fastclaw.conformance.rig import Rig, drain, expect, read_exactly

LARGE = 8 * limits.MIB
"""More than every buffer on the way together."""


def _same(got: bytes, wanted: bytes) -> bool:
    return len(got) == len(wanted) and hashlib.sha256(got).digest() == hashlib.sha256(wanted).digest()


def _pattern(count: int) -> bytes:
    """Bytes of which any two stretches differ."""
    return b"".join(number.to_bytes(4, "big") for number in range(count // 4))


@proves("P-ECHO")
async def echo(rig: Rig) -> None:
    stdio = await (await (await rig.shared()).exec(rig.words.cat)).stdio()
    for line in (b"first\n", b"\x00\xff second\n"):
        await stdio.write(line)
        got = await read_exactly(stdio, len(line))
        expect(got == line, f"cat gave {got!r} for {line!r}")


@proves("P-STDERR")
async def separate(rig: Rig) -> None:
    session = await rig.shared()
    out, err = await (await session.exec(rig.words.stderr("to stderr"))).outputs()
    expect((out, err.rstrip(b"\n")) == (b"", b"to stderr"), f"stdout {out!r}, stderr {err!r}")
    out, err = await (await session.exec(rig.words.echo("to stdout"))).outputs()
    expect((out, err) == (b"to stdout\n", b""), f"stdout {out!r}, stderr {err!r}")


@proves("P-EARLY")
async def early_output(rig: Rig) -> None:
    session = await rig.shared()
    processes = [await session.exec(rig.words.echo(f"early {number}")) for number in range(5)]
    # By now the first ones have ended: each exec took a round trip.
    await session.result("health")
    for number, process in enumerate(processes):
        out, _ = await process.outputs()
        expect(out == f"early {number}\n".encode(), f"process {number} gave {out!r}")


@proves("P-LOSSLESS")
async def lossless(rig: Rig) -> None:
    session = await rig.shared()
    for count in (0, 1, 65_536, LARGE + 1):
        out, _ = await (await session.exec(rig.words.out(count))).outputs()
        expect(_same(out, rig.words.written(count)), f"{len(out)} bytes of {count} arrived")


@proves("P-BOTH-WAYS")
async def both_ways(rig: Rig) -> None:
    data = _pattern(LARGE)
    out, err = await (await (await rig.shared()).exec(rig.words.cat)).outputs(data)
    expect(_same(out, data), f"{len(out)} bytes of {len(data)} came back, or other ones")
    expect(err == b"", f"stderr {err[:100]!r}")


@proves("P-HALF-CLOSE")
async def half_close(rig: Rig) -> None:
    out, _ = await (await (await rig.shared()).exec(rig.words.cat)).outputs(b"to the end")
    expect(out == b"to the end", f"cat gave {out!r}")


@proves("P-HALF-CLOSE")
async def output_after_half_close(rig: Rig) -> None:
    script = f"cat >/dev/null; head -c {limits.MIB} /dev/zero; echo end"
    out, _ = await (await (await rig.shared()).exec(rig.shell(script))).outputs(b"x")
    expect(_same(out, bytes(limits.MIB) + b"end\n"), f"{len(out)} bytes came after EOF on stdin")


@proves("P-EOF")
async def eof(rig: Rig) -> None:
    process = await (await rig.shared()).exec(rig.words.true)
    async with asyncio.timeout(limits.CHECK_SOON_MS / 1000):
        out, err = await drain(await process.stdio()), await drain(await process.stderr())
    expect((out, err) == (b"", b""), f"stdout {out!r}, stderr {err!r}")


@proves("P-EOF-OWN")
async def own_eof(rig: Rig) -> None:
    process = await (await rig.shared()).exec(rig.shell("echo out; exec >&-; read line; echo $line >&2"))
    stdio, stderr = await process.stdio(), await process.stderr()
    async with asyncio.timeout(limits.CHECK_SOON_MS / 1000):
        expect(await drain(stdio) == b"out\n", "stdout differs")
        await stdio.write(b"alive\n")
        expect(await drain(stderr) == b"alive\n", "stderr differs")


@proves("P-SLOW")
async def slow_reader(rig: Rig) -> None:
    session = await rig.shared()
    slow = await session.exec(rig.words.out(LARGE))
    stdio = await slow.stdio()
    out, _ = await (await session.exec(rig.words.out(limits.MIB))).outputs()
    expect(len(out) == limits.MIB, f"beside a slow reader {len(out)} bytes arrived")
    expect(_same(await drain(stdio), rig.words.written(LARGE)), "the slow reader lost bytes")


@proves("P-REOPEN")
async def reopen(rig: Rig) -> None:
    script = "echo out >/dev/stdout; echo err >/dev/stderr; cat </dev/stdin"
    out, err = await (await (await rig.shared()).exec(rig.shell(script))).outputs(b"in\n")
    expect((out, err) == (b"out\nin\n", b"err\n"), f"stdout {out!r}, stderr {err!r}")
