"""Checks of processes on a terminal."""

import asyncio

from fastclaw import limits
from fastclaw.client.remote_process import Channel
from fastclaw.conformance.check_wire import INVALID_PARAMS
from fastclaw.conformance.registry import proves
from fastclaw.conformance.rig import Rig, drain, expect

ALL_THREE = "test -t 0 && test -t 1 && test -t 2 && echo all"
WINDOW = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 1 & wait; done"
SHORT = 1_000
"""Fits into what the kernel keeps of a terminal's output."""


async def _read_until(channel: Channel, wanted: bytes) -> bytes:
    """What comes until `wanted` has come, or the end."""
    got = b""
    async with asyncio.timeout(limits.CHECK_SOON_MS / 1000):
        while wanted not in got and (chunk := await channel.read()):
            got += chunk
    return got


def _shown(written: bytes) -> bytes:
    """How a terminal shows it (ONLCR, termios(3))."""
    return written.replace(b"\n", b"\r\n")


@proves("T-TTY")
async def terminal(rig: Rig) -> None:
    script = f"stty -echo; {ALL_THREE}; echo err >&2; echo own >/dev/tty; read line; echo got $line"
    process = await (await rig.shared()).exec(rig.shell(script), tty=True)
    stdio, stderr = await process.stdio(), await process.stderr()
    async with asyncio.timeout(limits.CHECK_SOON_MS / 1000):
        expect(await drain(stderr) == b"", "bytes came on stderr")
    out = await _read_until(stdio, b"own\r\n")
    await stdio.write(b"word\n")
    out += await drain(stdio)
    expect(out == _shown(b"all\nerr\nown\ngot word\n"), f"on the terminal came {out!r}")


@proves("T-TTY")
async def own_terminal(rig: Rig) -> None:
    session = await rig.shared()
    names = []
    for _ in range(2):
        stdio = await (await session.exec(rig.shell("tty; exec sleep 300"), tty=True)).stdio()
        names.append(await _read_until(stdio, b"\n"))
    expect(len(set(names)) == 2 and all(name.startswith(b"/dev/") for name in names), f"two processes are on {names}")


@proves("T-TTY-EOF")
async def end_of_input(rig: Rig) -> None:
    session = await rig.shared()
    for data in (b"", b"a line\n", b"half a line"):
        out, _ = await (await session.exec(rig.shell("cat; echo after"), tty=True)).outputs(data)
        expect(out.endswith(b"after\r\n"), f"after {data!r} and a half-close came {out!r}")
        expect(data.strip() in out, f"of {data!r} came {out!r}")


@proves("T-TTY-LOSSLESS")
async def lossless(rig: Rig) -> None:
    session = await rig.shared()
    processes = [await session.exec(rig.words.out(SHORT), tty=True) for _ in range(10)]
    # By now the first ones have ended: each exec took a round trip.
    await session.result("health")
    wanted = _shown(rig.words.written(SHORT))
    for number, process in enumerate(processes):
        out = await drain(await process.stdio())
        expect(out == wanted, f"of {len(wanted)} bytes process {number} gave {len(out)}, or other ones")
    out, _ = await (await session.exec(rig.words.out(limits.MIB), tty=True)).outputs()
    wanted = _shown(rig.words.written(limits.MIB))
    expect(out == wanted, f"of {len(wanted)} bytes {len(out)} arrived, or other ones")


@proves("T-TTY-SIZE")
async def size(rig: Rig) -> None:
    session = await rig.shared()
    for params, wanted in (({}, b"24 80\r\n"), ({"tty_size": [50, 132]}, b"50 132\r\n")):
        out = await drain(await (await session.exec(rig.shell("stty size"), tty=True, **params)).stdio())
        expect(out == wanted, f"with {params} stty size said {out!r}")
    process = await session.exec(rig.shell(WINDOW), tty=True)
    stdio = await process.stdio()
    await _read_until(stdio, b"ready\r\n")
    answer = await session.result("resize", {"process_id": process.id, "rows": 33, "columns": 77})
    expect(answer == {}, f"resize answered {answer}")
    out = await _read_until(stdio, b"\n")
    expect(out == b"33 77\r\n", f"after SIGWINCH stty size said {out!r}")


@proves("T-TTY-NONE")
async def nothing_to_resize(rig: Rig) -> None:
    session = await rig.shared()
    process = await session.exec(rig.words.sleep(300))
    window = {"rows": 24, "columns": 80}
    await session.error("resize", {"process_id": process.id, **window}, INVALID_PARAMS, "no_tty")
    ended = await session.exec(rig.words.true, tty=True)
    await drain(await ended.stdio())
    answer = await session.result("resize", {"process_id": ended.id, **window})
    expect(answer == {}, f"resize of an ended process answered {answer}")
