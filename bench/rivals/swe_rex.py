"""`execute` of SWE-ReX's local runtime: COUNT AT_ONCE PATH. Its environment is made by scripts/get-rivals."""

from __future__ import annotations

import asyncio
import logging

import swerex
from swerex.runtime.abstract import Command
from swerex.runtime.local import LocalRuntime

from bench.rivals.measuring import arguments, measure


async def main(count: int, at_once: int, path: str) -> None:
    """It blocks until the command has ended, so that there is never more than one."""
    runtime = LocalRuntime(logger=logging.getLogger("quiet"))

    async def run_one(_: int) -> None:
        assert (await runtime.execute(Command(command=[path]))).exit_code == 0

    await measure(swerex.__version__, count, at_once, run_one)


if __name__ == "__main__":
    count, at_once, (path,) = arguments()
    asyncio.run(main(count, at_once, path))
