"""The built-in programs, as coroutines."""

from __future__ import annotations

import asyncio

import pytest

from fastclaw import limits
from fastclaw.runtimes.memory_programs import BUILT_IN

PATTERN = bytes(range(256))
ENV = {"ONE": "1", "TWO": "a b"}
OUT_USAGE = f"usage: out BYTES (at most {limits.MEMORY_MAX_OUT_BYTES})\n".encode()


class Paper:
    """A `programs.Writer` that keeps what is written, and holds its writers to the rule that drain is due."""

    def __init__(self) -> None:
        self.data = b""
        self._since_drain = 0

    def write(self, data: bytes) -> None:
        if self._since_drain > limits.MEMORY_WRITER_BYTES:
            raise BufferError("drain was due")
        self._since_drain += len(data)
        self.data += data

    async def drain(self) -> None:
        self._since_drain = 0


def a_stdin(data: bytes) -> asyncio.StreamReader:
    stdin = asyncio.StreamReader()
    stdin.feed_data(data)
    stdin.feed_eof()
    return stdin


async def run(*argv: str, stdin: bytes = b"in") -> tuple[int, bytes, bytes]:
    out, err = Paper(), Paper()
    code = await BUILT_IN[argv[0]](list(argv), ENV, "/tmp", a_stdin(stdin), out, err)
    return code, out.data, err.data


@pytest.mark.parametrize(
    ("argv", "code", "out", "err"),
    [
        ("true", 0, b"", b""),
        ("false", 1, b"", b""),
        ("cat", 0, b"in", b""),
        ("cat -", 0, b"in", b""),
        ("cat file", 2, b"", b"usage: cat\n"),
        ("echo", 0, b"\n", b""),
        ("echo a b", 0, b"a b\n", b""),
        ("echo -n a b", 0, b"a b", b""),
        ("echo a -n", 0, b"a -n\n", b""),
        ("exit", 0, b"", b""),
        ("exit 7", 7, b"", b""),
        ("exit 255", 255, b"", b""),
        ("exit 256", 2, b"", "usage: exit [0…255]\n".encode()),
        ("exit -1", 2, b"", "usage: exit [0…255]\n".encode()),
        ("sleep 0", 0, b"", b""),
        ("sleep 0.01", 0, b"", b""),
        ("sleep", 2, b"", b"usage: sleep SECONDS\n"),
        ("sleep long", 2, b"", b"usage: sleep SECONDS\n"),
        ("sleep nan", 2, b"", b"usage: sleep SECONDS\n"),
        ("sleep -1", 2, b"", b"usage: sleep SECONDS\n"),
        ("printenv", 0, b"ONE=1\nTWO=a b\n", b""),
        ("printenv TWO", 0, b"a b\n", b""),
        ("printenv THREE", 1, b"", b""),
        ("pwd", 0, b"/tmp\n", b""),
        ("stderr not good", 0, b"", b"not good\n"),
        ("out 0", 0, b"", b""),
        ("out 300", 0, (PATTERN * 2)[:300], b""),
        ("out", 2, b"", OUT_USAGE),
        (f"out {limits.MEMORY_MAX_OUT_BYTES + 1}", 2, b"", OUT_USAGE),
    ],
)
async def test_what_a_program_does(argv: str, code: int, out: bytes, err: bytes) -> None:
    assert await run(*argv.split()) == (code, out, err)


async def test_more_than_a_writer_takes_at_once() -> None:
    count = 3 * limits.MIB + 1
    assert await run("out", str(count)) == (0, PATTERN * (count // 256) + b"\0", b"")
    data = PATTERN * 4_096
    assert await run("cat", stdin=data) == (0, data, b"")


async def test_bytes_that_are_no_text_come_out_as_they_went_in() -> None:
    assert await run("echo", b"\xff\xfe".decode(errors="surrogateescape")) == (0, b"\xff\xfe\n", b"")


@pytest.mark.parametrize("argv", [("sleep", "inf"), ("sleep", "1e300"), ("cat",)])
async def test_cancellation_ends_what_waits(argv: tuple[str, ...]) -> None:
    stdin = asyncio.StreamReader()
    program = asyncio.ensure_future(BUILT_IN[argv[0]](list(argv), {}, "/", stdin, Paper(), Paper()))
    await asyncio.sleep(0)
    assert not program.done()
    program.cancel()
    with pytest.raises(asyncio.CancelledError):
        await program
