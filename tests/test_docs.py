"""The example runtime of the docs is a runtime."""

import sys
from pathlib import Path

from fastclaw.client import RuntimeClient
from fastclaw.conformance import POSIX, check

EXAMPLE = [sys.executable, str(Path(__file__).parent.parent / "docs" / "echo_runtime.py")]


async def test_the_example_runtime_serves_a_supervisor() -> None:
    async with RuntimeClient.spawn(EXAMPLE, namespace="docs") as runtime:
        assert runtime.welcome is not None
        assert runtime.welcome.env == {"WHERE": "nowhere"}
        assert (await runtime.health()).status == "healthy"
        async with await runtime.exec(["anything"]) as process:
            assert await process.communicate(b"hello") == (b"hello", b"")
            await process.kill()
    assert runtime.exit_code == 0


async def test_the_example_runtime_keeps_the_promises_of_the_wire() -> None:
    report = await check(EXAMPLE, POSIX, {}, {"W-LINE", "W-PIECES", "W-PARSE", "W-INVALID", "W-ID-ECHO", "W-LINE-OVER"})
    assert report.ok, report.to_text()
