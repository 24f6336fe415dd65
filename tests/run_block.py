"""Runs one block of Python from a page, as the page means it: `await` may be anywhere, and what it takes for granted is
there. For tests/test_code_blocks.py.

    python -m tests.run_block PAGE:LINE [runtime|host|box]... <BLOCK
"""

import ast
import asyncio
import inspect
import sys
from contextlib import AsyncExitStack
from typing import Any

from fastclaw.client import RuntimeClient
from fastclaw.sandbox import Host

GIVEN = ("runtime", "host", "box")
"""Names that a page has introduced before: a client that is initialized, a host, a sandbox of it."""


async def _run(code: Any, wanted: list[str]) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    async with AsyncExitStack() as ends:
        if "runtime" in wanted:
            serve = [sys.executable, "-m", "fastclaw", "serve", "--log-level", "warning"]
            names["runtime"] = await ends.enter_async_context(RuntimeClient.spawn(serve, namespace="docs"))
        if {"host", "box"} & {*wanted}:
            names["host"] = await ends.enter_async_context(Host())
        if "box" in wanted:
            names["box"] = await ends.enter_async_context(await names["host"].start())
        await eval(code, names)


def main() -> None:
    """Run it. A block without `await` is run as a program is, with no loop around it."""
    where, *wanted = sys.argv[1:]
    code = compile(sys.stdin.read(), where, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if code.co_flags & inspect.CO_COROUTINE:
        asyncio.run(_run(code, wanted))
    else:
        exec(code, {"__name__": "__main__"})


if __name__ == "__main__":
    main()
