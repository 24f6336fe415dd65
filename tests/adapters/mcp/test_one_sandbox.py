"""The one sandbox of all calls, where one that ends meets the start of the next."""

import asyncio
from typing import Any

import pytest

from fastclaw.adapters.mcp.one_sandbox import OneSandbox
from fastclaw.errors import FastclawError


async def test_who_tells_of_a_lost_one_hears_nothing_of_the_start_of_the_next() -> None:
    start: dict[str, Any] = {}
    one = OneSandbox({"runtime": "local"}, start)
    try:
        box = await one.get()
        one.lost(box)
        start["no_such_option"] = True
        getting = asyncio.create_task(one.get())
        while not getting.done():
            one.lost(box)
            await asyncio.sleep(0)
        with pytest.raises(FastclawError):
            await getting
        del start["no_such_option"]
        assert (await (await one.get()).run(["true"])).exit_code == 0
    finally:
        await one.close()
