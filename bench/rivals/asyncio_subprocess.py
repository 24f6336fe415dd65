"""asyncio's subprocesses with both pipes read to their end, on its own loop or on uvloop's: COUNT AT_ONCE LOOP PATH."""

from __future__ import annotations

import asyncio
import platform
from asyncio.subprocess import DEVNULL, PIPE
from importlib.metadata import version

import uvloop

from bench.rivals.measuring import arguments, measure


async def main(count: int, at_once: int, told: str, path: str) -> None:
    """Measure the loop that runs this."""

    async def run_one(_: int) -> None:
        process = await asyncio.create_subprocess_exec(path, stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
        assert await process.communicate() == (b"", b"")
        assert process.returncode == 0

    await measure(told, count, at_once, run_one)


if __name__ == "__main__":
    count, at_once, (loop, path) = arguments()
    if loop == "uvloop":
        uvloop.run(main(count, at_once, version("uvloop"), path))
    else:
        asyncio.run(main(count, at_once, f"Python {platform.python_version()}", path))
