"""The programs that the in-process lane knows by itself, and what a program is.

Owns their behaviour, which follows the coreutils of the same name as far as a test needs it. Knows nothing of pipes,
lanes or signals: a program is a coroutine, ended by cancellation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from fastclaw import limits


class Writer(Protocol):
    """Where a program writes to. One write beyond `limits.MEMORY_WRITER_BYTES` is held; then `drain` is due."""

    def write(self, data: bytes) -> None:
        """Take `data`.

        Raises:
            BrokenPipeError: nobody reads any more.
            BufferError: `drain` was due.
        """

    async def drain(self) -> None:
        """Wait until there is room again.

        Raises:
            BrokenPipeError: nobody reads any more.
        """


Env = Mapping[str, str]
Reader = asyncio.StreamReader
Program = Callable[[list[str], Env, str, Reader, Writer, Writer], Awaitable[int]]
"""`async def program(argv, env, cwd, stdin, stdout, stderr) -> int`: the int is its exit code, 0 to 255."""

_CHUNK = 16 * limits.KIB
_PATTERN = bytes(range(256)) * (_CHUNK // 256)
_USAGE = 2


async def _say(writer: Writer, text: str) -> None:
    writer.write(text.encode("utf-8", "surrogateescape"))
    await writer.drain()


async def true(argv: list[str], env: Env, cwd: str, stdin: Reader, out: Writer, err: Writer) -> int:
    """`true`: exit code 0."""
    return 0


async def false(argv: list[str], env: Env, cwd: str, stdin: Reader, out: Writer, err: Writer) -> int:
    """`false`: exit code 1."""
    return 1


async def cat(argv: list[str], env: Env, cwd: str, stdin: Reader, out: Writer, err: Writer) -> int:
    """`cat`: stdin to stdout until EOF. Files are not offered."""
    if argv[1:] not in ([], ["-"]):
        return await _usage(err, "cat")
    while data := await stdin.read(_CHUNK):
        out.write(data)
        await out.drain()
    return 0


async def echo(argv: list[str], env: Env, cwd: str, stdin: Reader, out: Writer, err: Writer) -> int:
    """`echo [-n] TEXT…`: the arguments with blanks between."""
    bare = argv[1:2] == ["-n"]
    await _say(out, " ".join(argv[2:] if bare else argv[1:]) + ("" if bare else "\n"))
    return 0


async def leave(argv: list[str], env: Env, cwd: str, stdin: Reader, out: Writer, err: Writer) -> int:
    """`exit [N]`: exit code N."""
    number = _number(argv, 255, "0")
    return await _usage(err, "exit [0…255]") if number is None else int(number)


async def sleep(argv: list[str], env: Env, cwd: str, stdin: Reader, out: Writer, err: Writer) -> int:
    """`sleep SECONDS`."""
    seconds = _number(argv, float("inf"))
    if seconds is None:
        return await _usage(err, "sleep SECONDS")
    if seconds == float("inf"):
        await asyncio.Event().wait()
    await asyncio.sleep(seconds)
    return 0


async def printenv(argv: list[str], env: Env, cwd: str, stdin: Reader, out: Writer, err: Writer) -> int:
    """`printenv [NAME]`: exit code 1 where there is no such variable."""
    if len(argv) == 1:
        await _say(out, "".join(f"{name}={value}\n" for name, value in env.items()))
        return 0
    if argv[1] not in env:
        return 1
    await _say(out, env[argv[1]] + "\n")
    return 0


async def pwd(argv: list[str], env: Env, cwd: str, stdin: Reader, out: Writer, err: Writer) -> int:
    """`pwd`: the working directory."""
    await _say(out, cwd + "\n")
    return 0


async def stderr(argv: list[str], env: Env, cwd: str, stdin: Reader, out: Writer, err: Writer) -> int:
    """`stderr TEXT…`: like `echo`, to stderr."""
    await _say(err, " ".join(argv[1:]) + "\n")
    return 0


async def out(argv: list[str], env: Env, cwd: str, stdin: Reader, out: Writer, err: Writer) -> int:
    """`out BYTES`: so many bytes, 0 to 255 over and over."""
    number = _number(argv, limits.MEMORY_MAX_OUT_BYTES)
    if number is None:
        return await _usage(err, f"out BYTES (at most {limits.MEMORY_MAX_OUT_BYTES})")
    left = int(number)
    while left > 0:
        out.write(_PATTERN[:left])
        await out.drain()
        left -= _CHUNK
    return 0


BUILT_IN: Mapping[str, Program] = {
    "true": true,
    "false": false,
    "cat": cat,
    "echo": echo,
    "exit": leave,
    "sleep": sleep,
    "printenv": printenv,
    "pwd": pwd,
    "stderr": stderr,
    "out": out,
}


def _number(argv: list[str], most: float, default: str = "") -> float | None:
    """The first argument as a number from 0 to `most`, else None."""
    try:
        number = float(argv[1] if len(argv) > 1 else default)
    except ValueError:
        return None
    return number if 0 <= number <= most else None


async def _usage(err: Writer, text: str) -> int:
    await _say(err, f"usage: {text}\n")
    return _USAGE
