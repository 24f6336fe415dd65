"""The runtime on this host: its workspace, its warning, its end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw.errors import StartFailed
from fastclaw.runtime import ExecRequest, InitializeParams
from fastclaw.runtimes.local import LocalRuntime

if TYPE_CHECKING:
    from pathlib import Path


def params(**options: Any) -> InitializeParams:
    return InitializeParams(namespace="n", options=options)


async def test_stop_ends_what_runs() -> None:
    runtime = LocalRuntime()
    await runtime.start(params(kill_grace_ms=100))
    results = [await runtime.exec(ExecRequest(cmd=["sleep", "1000"])) for _ in range(5)]
    waits = [asyncio.create_task(runtime.wait(result.process_id)) for result in results]
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await runtime.stop()
        assert {(await wait).reason for wait in waits} == {"killed"}


async def test_local_says_that_it_isolates_nothing(caplog: pytest.LogCaptureFixture) -> None:
    runtime = LocalRuntime()
    await runtime.start(params())
    assert (await runtime.health()).details["isolation"] == "none"
    assert "no isolation" in caplog.text
    await runtime.stop()


async def test_the_local_workspace(tmp_path: Path) -> None:
    runtime = LocalRuntime()
    with pytest.raises(StartFailed) as raised:
        await runtime.start(params(workspace={"target": "/nowhere/at/all"}))
    assert raised.value.reason == "bad_mount"
    result = await runtime.start(params(workspace={"target": "/w", "source": str(tmp_path)}))
    assert result.workspace_root == str(tmp_path)
    await runtime.exec(ExecRequest(cmd=["touch", "here"]))
    async with asyncio.timeout(10):
        await runtime.wait((await runtime.list_processes())[0].process_id)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]  # noqa: ASYNC240 - a directory of one
    await runtime.stop()
