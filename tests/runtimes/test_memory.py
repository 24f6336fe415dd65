"""The in-process runtime: its programs behind the real sockets."""

import asyncio
import hashlib

import pytest

from fastclaw.errors import ExecFailed, InvalidParams
from fastclaw.runtime import ExecRequest, InitializeParams
from fastclaw.runtimes.memory import MemoryRuntime


async def test_a_program_behind_a_real_socket() -> None:
    runtime = MemoryRuntime()
    await runtime.start(InitializeParams(namespace="n"))
    result = await runtime.exec(ExecRequest(cmd=["cat"]))
    reader, writer = await asyncio.open_unix_connection(result.stdio_addr)
    data = hashlib.shake_256(b"x").digest(1_000_000)
    writer.write(data)
    writer.write_eof()
    async with asyncio.timeout(20):
        assert await reader.read() == data
        assert (await runtime.wait(result.process_id)).exit_code == 0
    writer.close()
    await runtime.stop()


async def test_a_program_that_is_not_there() -> None:
    runtime = MemoryRuntime()
    await runtime.start(InitializeParams(namespace="n"))
    with pytest.raises(ExecFailed) as raised:
        await runtime.exec(ExecRequest(cmd=["nonsense"]))
    assert raised.value.reason == "not_found"
    await runtime.stop()


async def test_the_workspace_is_told() -> None:
    runtime = MemoryRuntime()
    started = await runtime.start(InitializeParams(namespace="n", options={"workspace": {"target": "/tmp"}}))
    assert started.workspace_root == "/tmp"
    await runtime.stop()


async def test_templates_are_refused() -> None:
    runtime = MemoryRuntime()
    options = {"templates": {"t": {"cmd": ["cat"]}}}
    with pytest.raises(InvalidParams) as raised:
        await runtime.start(InitializeParams(namespace="n", options=options))
    assert (raised.value.reason, raised.value.data["path"]) == ("unsupported", "$.options.templates")
    await runtime.stop()
