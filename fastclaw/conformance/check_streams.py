"""Checks of a process's two sockets: their bytes, their clients, their files, and terminals on them."""

import asyncio
import os
import stat
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from fastclaw import limits
from fastclaw.client.remote_process import Channel
from fastclaw.conformance.rig import (
    LEFT_BYTES,
    Process,
    Rig,
    Session,
    drain,
    drain_soon,
    echoed,
    existing,
    has_written,
    read_exactly,
    same,
    soon,
    writes_on,
)
from fastclaw.conformance.runner import proves
from fastclaw.conformance.wire import INVALID_PARAMS, Broken, NotOffered, expect
from fastclaw.errors import IoError

LARGE = 8 * limits.MIB
"""More than every buffer on the way together."""


@proves("P-ECHO")
async def _echo(rig: Rig, session: Session) -> None:
    stdio = await (await session.exec(rig.words.cat)).stdio()
    for line in (b"first\n", b"\x00\xff second\n"):
        got = await echoed(stdio, line)
        expect(got == line, f"cat gave {got!r} for {line!r}")


@proves("P-STDERR")
async def _separate(rig: Rig, session: Session) -> None:
    out, err = await session.outputs(rig.words.stderr("to stderr"))
    expect((out, err.rstrip(b"\n")) == (b"", b"to stderr"), f"stdout {out!r}, stderr {err!r}")
    out, err = await session.outputs(rig.words.echo("to stdout"))
    expect((out, err) == (b"to stdout\n", b""), f"stdout {out!r}, stderr {err!r}")


@proves("P-EARLY")
async def _early_output(rig: Rig, session: Session) -> None:
    processes = [await session.exec(rig.words.echo(f"early {number}")) for number in range(5)]
    # By now the first ones have ended: each exec took a round trip.
    await session.result("health")
    for number, process in enumerate(processes):
        out, _ = await process.outputs()
        expect(out == f"early {number}\n".encode(), f"process {number} gave {out!r}")


@proves("P-LOSSLESS")
async def _lossless(rig: Rig, session: Session) -> None:
    for count in (0, 1, 65_536, LARGE + 1):
        out, _ = await session.outputs(rig.words.out(count))
        expect(same(out, rig.words.written(count)), f"{len(out)} bytes of {count} arrived")


@proves("P-BOTH-WAYS")
async def _both_ways(rig: Rig, session: Session) -> None:
    data = b"".join(number.to_bytes(4, "big") for number in range(LARGE // 4))  # no two stretches are alike
    out, err = await (await session.exec(rig.words.cat)).outputs(data)
    expect(same(out, data), f"{len(out)} bytes of {len(data)} came back, or other ones")
    expect(err == b"", f"stderr {err[:100]!r}")


@proves("P-HALF-CLOSE")
async def _half_close(rig: Rig, session: Session) -> None:
    out, _ = await (await session.exec(rig.words.cat)).outputs(b"to the end")
    expect(out == b"to the end", f"cat gave {out!r}")


@proves("P-HALF-CLOSE")
async def _output_after_half_close(rig: Rig, session: Session) -> None:
    script = f"cat >/dev/null; head -c {limits.MIB} /dev/zero; echo end"
    out, _ = await (await session.exec(rig.shell(script))).outputs(b"x")
    expect(same(out, bytes(limits.MIB) + b"end\n"), f"{len(out)} bytes came after EOF on stdin")


@proves("P-EOF")
async def _eof(rig: Rig, session: Session) -> None:
    process = await session.exec(rig.words.true)
    out, err = await drain_soon(await process.stdio(), await process.stderr())
    expect((out, err) == (b"", b""), f"stdout {out!r}, stderr {err!r}")


@proves("P-EOF-OWN")
async def _own_eof(rig: Rig, session: Session) -> None:
    process = await session.exec(rig.shell("echo out; exec >&-; read line; echo $line >&2"))
    stdio, stderr = await process.stdio(), await process.stderr()
    expect(await drain_soon(stdio) == [b"out\n"], "stdout differs")
    await stdio.write(b"alive\n")
    expect(await drain_soon(stderr) == [b"alive\n"], "stderr differs")


@proves("P-SLOW")
async def _slow_reader(rig: Rig, session: Session) -> None:
    stdio = await (await session.exec(rig.words.out(LARGE))).stdio()
    out, _ = await session.outputs(rig.words.out(limits.MIB))
    expect(len(out) == limits.MIB, f"beside a slow reader {len(out)} bytes arrived")
    expect(same(await drain(stdio), rig.words.written(LARGE)), "the slow reader lost bytes")


ANOTHER_USER = "1"
"""By number: an image need not have an entry for it."""


@proves("P-REOPEN")
async def _reopen(rig: Rig, session: Session) -> None:
    script = "echo out >/dev/stdout; echo err >/dev/stderr; cat </dev/stdin"
    for who in ({}, {"user": ANOTHER_USER}) if session.offers("user") else ({},):
        out, err = await (await session.exec(rig.shell(script), **who)).outputs(b"in\n")
        expect((out, err) == (b"out\nin\n", b"err\n"), f"{who}: stdout {out!r}, stderr {err!r}")


# --- Clients that come second, leave, or come back ---


LINGER_MS = 200
LONG_LINGER_MS = 600_000


async def _returned(process: Process, greeted: Callable[[Channel], Awaitable[bytes]]) -> bytes:
    """The first bytes that a new connection brings; it may be closed at once until the last one's end is seen."""
    deadline = time.monotonic() + limits.CHECK_SOON_MS / 1000
    while time.monotonic() < deadline:
        with suppress(IoError):  # turned away while we wrote
            if got := await greeted(await process.stdio()):
                return got
        process.close()
        await asyncio.sleep(limits.CHECK_POLL_MS / 1000)
    raise Broken("a client that came back got nothing")


@proves("P-SECOND")
async def _second_client(rig: Rig, session: Session) -> None:
    process = await session.exec(rig.words.cat)
    stdio, _ = await process.stdio(), await process.stderr()
    await echoed(stdio, b"mine")
    for connect in (process.stdio, process.stderr):
        async with asyncio.timeout(limits.CHECK_SOON_MS / 1000):
            expect(await (await connect()).read() == b"", "a second client was served")
    got = await echoed(stdio, b"still mine")
    expect(got == b"still mine", f"the first client then got {got!r}")


@proves("P-RETURN")
async def _comes_back(rig: Rig, session: Session) -> None:
    process = await session.exec(rig.words.out(LARGE))
    first = await (await process.stdio()).read()
    process.close()
    second = await _returned(process, drain)
    expect(len(first) + len(second) <= LARGE, "more bytes than there were")
    expect(rig.words.written(LARGE).endswith(second), "other bytes than there were")


@proves("P-RETURN")
async def _comes_back_for_later_output(rig: Rig, session: Session) -> None:
    process, _ = await session.ready(rig.shell("echo ready; cat >/dev/null; echo later"))
    process.close()
    got = await _returned(process, drain)
    expect(got == b"later\n", f"a client that came back got {got!r}")


ENDS_LINGERING = ({"linger_ms": LINGER_MS}, {"linger_ms": LONG_LINGER_MS, "max_lingering": 0})


@proves("P-DRAIN")
async def _drained_without_a_client(rig: Rig, common: Session) -> None:
    for options in ENDS_LINGERING:
        async with rig.with_options(**options) as session:
            witness, done = uuid.uuid4().hex, uuid.uuid4().hex
            await session.exec(rig.shell(writes_on(witness, done)))
            await has_written(witness, done)


@proves("P-DRAIN")
async def _drained_after_a_client(rig: Rig, common: Session) -> None:
    async with rig.with_options(linger_ms=LINGER_MS) as session:
        witness, done = uuid.uuid4().hex, uuid.uuid4().hex
        process = await session.exec(rig.shell(f"{writes_on(witness, done, after_s=1)}; cat >/dev/null"))
        await read_exactly(await process.stdio(), len(b"up\n"))
        process.close()
        await has_written(witness, done)


@proves("P-DRAIN")
async def _not_drained_before(rig: Rig, common: Session) -> None:
    async with rig.with_options(linger_ms=LONG_LINGER_MS) as session:
        process = await session.exec(rig.shell(writes_on(uuid.uuid4().hex, uuid.uuid4().hex)))
        session.needs("wait")
        await process.wait()
        out, err = await process.outputs()
        got = (len(out), len(err))
        expect(got == (len(b"up\n") + LEFT_BYTES, LEFT_BYTES), f"a client that came after the exit got {got} bytes")


@proves("P-READING")
async def _reads_on(rig: Rig, common: Session) -> None:
    for options in ENDS_LINGERING:
        async with rig.with_options(**options) as session:
            # Not before its client is there.
            script = "read line; (sleep 1; echo later; sleep 1; echo last) & echo up"
            out, _ = await (await session.exec(rig.shell(script))).outputs(b"go\n")
            expect(out == b"up\nlater\nlast\n", f"a client that reads all the time got {out!r} with {options}")


@proves("P-GONE-EOF")
async def _gone_is_eof(rig: Rig, session: Session) -> None:
    session.needs("wait")
    process = await session.exec(rig.words.cat)
    await echoed(await process.stdio(), b"x")
    process.close()
    record = await process.wait(timeout_ms=limits.CHECK_SOON_MS)
    expect(record.get("exit_code") == 0, f"cat without its client: {record}")


@proves("P-GONE-HOLD")
async def _hold(rig: Rig, session: Session) -> None:
    try:
        process = await session.exec(rig.words.cat, on_disconnect="hold")
    except Broken as error:
        if "'unsupported'" in str(error):
            raise NotOffered("it refuses on_disconnect hold") from error
        raise
    await echoed(await process.stdio(), b"back")
    process.close()
    got = await _returned(process, lambda stdio: echoed(stdio, b"back"))
    expect(got == b"back", f"a client that came back got {got!r}")


@proves("P-GONE-KILL")
async def _kill(rig: Rig, session: Session) -> None:
    session.needs("wait")
    process = await session.exec(rig.words.sleep(300), on_disconnect="kill")
    await process.stdio()
    await process.stderr()
    process.close()
    record = await process.wait(timeout_ms=limits.CHECK_SOON_MS)
    expect((record.get("state"), record.get("reason")) == ("exited", "killed"), f"without its client: {record}")


# --- The sockets as files ---


_STRANGER = """
import ctypes, os, socket, sys
os.setresuid(-1, 65534, 0)
ctypes.CDLL(None).setfsuid(0)
peer = socket.socket(socket.AF_UNIX)
peer.settimeout(float(sys.argv[2]))
peer.connect(sys.argv[1])
try:
    print("turned away" if peer.recv(1) == b"" else "served")
except ConnectionResetError:
    print("turned away")
except TimeoutError:
    print("left connected")
"""
"""Another user by SO_PEERCRED (unix(7): the effective user at connect), with root's rights on files (setfsuid(2))."""


@proves("S-MODE")
async def _modes(rig: Rig, session: Session) -> None:
    for path in (await session.exec(rig.words.sleep(300))).paths:
        here, parent = path.stat(), path.parent.stat()
        expect(stat.S_ISSOCK(here.st_mode), f"{path} is no socket")
        expect(stat.S_IMODE(here.st_mode) == 0o600, f"{path} has mode {stat.S_IMODE(here.st_mode):o}")
        expect(stat.S_IMODE(parent.st_mode) == 0o700, f"{path.parent} has mode {stat.S_IMODE(parent.st_mode):o}")
        expect(here.st_uid == parent.st_uid == os.geteuid(), f"{path} belongs to another user")


@proves("S-PATH")
async def _socket_paths(rig: Rig, common: Session) -> None:
    async with rig.started("n" * limits.MAX_NAMESPACE_BYTES) as session:
        for path in (await session.exec(rig.words.sleep(300))).paths:
            expect(path.is_absolute(), f"{path} is not absolute")
            expect(len(os.fsencode(path)) <= limits.SOCKET_PATH_BYTES, f"{path} has {len(os.fsencode(path))} bytes")


@proves("S-PEER")
async def _strangers(rig: Rig, session: Session) -> None:
    if os.geteuid() != 0:
        raise NotOffered("only root can appear as another user")
    for path in (await session.exec(rig.words.sleep(300))).paths:
        said = await _stranger(path)
        expect(said == "turned away", f"another user's connection to {path}: {said}")


async def _stranger(path: Path) -> str:
    argv = [sys.executable, "-c", _STRANGER, str(path), str(limits.CHECK_SOON_MS / 1000)]
    child = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    said, _ = await child.communicate()
    return said.decode().strip() or f"the probe ended with code {child.returncode}"


@proves("S-UNLINK")
async def _unlinked_when_read(rig: Rig, session: Session) -> None:
    process = await session.exec(rig.words.echo("read me"))
    await process.outputs()
    await soon("both sockets are unlinked", lambda: not existing(process.paths))


@proves("S-LINGER")
async def _unlinked_unread(rig: Rig, common: Session) -> None:
    async with rig.with_options(linger_ms=LINGER_MS) as session:
        process = await session.exec(rig.words.echo("nobody reads this"))
        await soon("both sockets are unlinked", lambda: not existing(process.paths))


# --- Terminals ---


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
async def _terminal(rig: Rig, session: Session) -> None:
    script = f"stty -echo; {ALL_THREE}; echo err >&2; echo own >/dev/tty; read line; echo got $line"
    process = await session.exec(rig.shell(script), tty=True)
    stdio, stderr = await process.stdio(), await process.stderr()
    expect(await drain_soon(stderr) == [b""], "bytes came on stderr")
    out = await _read_until(stdio, b"own\r\n")
    await stdio.write(b"word\n")
    out += await drain(stdio)
    expect(out == _shown(b"all\nerr\nown\ngot word\n"), f"on the terminal came {out!r}")


@proves("T-TTY")
async def _own_terminal(rig: Rig, session: Session) -> None:
    names = []
    for _ in range(2):
        stdio = await (await session.exec(rig.shell("tty; exec sleep 300"), tty=True)).stdio()
        names.append(await _read_until(stdio, b"\n"))
    expect(len(set(names)) == 2 and all(name.startswith(b"/dev/") for name in names), f"two processes are on {names}")


@proves("T-TTY-EOF")
async def _end_of_input(rig: Rig, session: Session) -> None:
    for data in (b"", b"a line\n", b"half a line"):
        out, _ = await (await session.exec(rig.shell("cat; echo after"), tty=True)).outputs(data)
        expect(out.endswith(b"after\r\n"), f"after {data!r} and a half-close came {out!r}")
        expect(data.strip() in out, f"of {data!r} came {out!r}")


@proves("T-TTY-LOSSLESS")
async def _terminal_lossless(rig: Rig, session: Session) -> None:
    processes = [await session.exec(rig.words.out(SHORT), tty=True) for _ in range(10)]
    # By now the first ones have ended: each exec took a round trip.
    await session.result("health")
    wanted = _shown(rig.words.written(SHORT))
    for number, process in enumerate(processes):
        out = await drain(await process.stdio())
        expect(out == wanted, f"of {len(wanted)} bytes process {number} gave {len(out)}, or other ones")
    out, _ = await session.outputs(rig.words.out(limits.MIB), tty=True)
    wanted = _shown(rig.words.written(limits.MIB))
    expect(out == wanted, f"of {len(wanted)} bytes {len(out)} arrived, or other ones")


@proves("T-TTY-SIZE")
async def _size(rig: Rig, session: Session) -> None:
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
async def _nothing_to_resize(rig: Rig, session: Session) -> None:
    process = await session.exec(rig.words.sleep(300))
    window = {"rows": 24, "columns": 80}
    await session.error("resize", {"process_id": process.id, **window}, INVALID_PARAMS, "no_tty")
    ended = await session.exec(rig.words.true, tty=True)
    await drain(await ended.stdio())
    answer = await session.result("resize", {"process_id": ended.id, **window})
    expect(answer == {}, f"resize of an ended process answered {answer}")
