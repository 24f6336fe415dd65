"""Bounds on what has ended, over real pumps: what waits in their pipes is known only once they have said so."""

from __future__ import annotations

import asyncio
import fcntl
import os
import termios
from array import array
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw import limits
from fastclaw.client.remote_process import Channel
from fastclaw.errors import InvalidState
from fastclaw.runtime import ExecRequest, ExecResult, InitializeParams
from fastclaw.runtimes.host import EnvironmentHost
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@asynccontextmanager
async def running(**options: Any) -> AsyncIterator[EnvironmentHost]:
    runtime = EnvironmentHost("local")
    await runtime.start(InitializeParams(namespace="lingering", options=options))
    try:
        async with asyncio.timeout(60):
            yield runtime
    finally:
        await runtime.stop()


async def begin(runtime: EnvironmentHost, script: str) -> ExecResult:
    return await runtime.exec(ExecRequest(cmd=["sh", "-c", script]))


async def ended(runtime: EnvironmentHost, script: str) -> ExecResult:
    process = await begin(runtime, script)
    assert (await runtime.wait(process.process_id)).state == "exited"
    return process


def is_listening(process: ExecResult) -> bool:
    return os.path.exists(process.stdio_addr)


async def read_all(channel: Channel) -> bytes:
    data = b""
    while part := await channel.read():
        data += part
    channel.close()
    return data


async def lingering(runtime: EnvironmentHost) -> int:
    return int((await runtime.health()).details["processes"]["lingering"])


async def gone(process: ExecResult) -> None:
    await until(lambda: not is_listening(process))


async def forgotten(runtime: EnvironmentHost, process: ExecResult) -> None:
    """Its record is kept no more."""
    with suppress(InvalidState):
        while await runtime.wait(process.process_id):  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.005)


def unread(channel: Channel) -> int:
    """Bytes in the client's socket (FIONREAD, tty_ioctl(4))."""
    waiting = array("i", [0])
    fcntl.ioctl(channel._socket.fileno(), termios.FIONREAD, waiting)
    return waiting[0]


@asynccontextmanager
async def connected(process: ExecResult) -> AsyncIterator[tuple[Channel, Channel]]:
    out, err = await Channel.connect(process.stdio_addr), await Channel.connect(process.stderr_addr)
    try:
        yield out, err
    finally:
        out.close()
        err.close()


async def nothing_lingers(runtime: EnvironmentHost) -> None:
    async def none() -> bool:
        return not await lingering(runtime)

    await until(none, 10)


@pytest.mark.promise("P-READING")
async def test_who_reads_goes_on_whatever_lingers_besides(tmp_path: Path) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    async with running(max_lingering=0, linger_ms=50, keep_exited_ms=100) as runtime:
        process = await begin(runtime, f"read go; (read go <{go}; head -c 500000 /dev/zero; echo last) & exit 0")
        async with connected(process) as (out, err):
            await out.write(b"go\n")
            await runtime.wait(process.process_id)
            await gone(process)
            for _ in range(5):
                other = await ended(runtime, "echo unread")
                await gone(other)
            assert await lingering(runtime) == 1
            await forgotten(runtime, process)
            await asyncio.to_thread(go.write_bytes, b"go\n")
            data = await read_all(out)
            assert (len(data), data[-5:]) == (500_005, b"last\n")
            assert await read_all(err) == b""
            await nothing_lingers(runtime)


async def test_a_reader_that_leaves_later_leaves_nothing() -> None:
    async with running(max_lingering=0) as runtime:
        process = await begin(runtime, "read go; yes & exit 0")
        async with connected(process) as (out, err):
            await out.write(b"go\n")
            assert (await runtime.wait(process.process_id)).exit_code == 0
            for _ in range(100):
                assert await out.read()
            assert is_listening(process)
            await until(lambda: unread(out) > 0)
            out.close()
            await gone(process)
            err.close()
            await nothing_lingers(runtime)
        assert (await runtime.wait(process.process_id)).gap is True
        await runtime.kill(process.process_id, 0)


async def test_who_is_connected_and_reads_nothing_is_cut_off_and_who_reads_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "PUMP_LOOK_MS", 20)
    async with running(max_lingering=0, linger_ms=100) as runtime:
        reading, deaf = [await begin(runtime, "read go; yes & exit 0") for _ in range(2)]
        async with connected(reading) as (out, _), connected(deaf) as (nobody, _):
            for process, channel in ((reading, out), (deaf, nobody)):
                await channel.write(b"go\n")
                await runtime.wait(process.process_id)
            async with asyncio.timeout(20):
                while (await runtime.wait(deaf.process_id)).gap is not True:
                    assert await out.read()
            assert await nobody.read(), "what was in its socket"
            while await nobody.read():  # the pump may give more until the word reaches it; then comes the end
                pass
            for _ in range(100):
                assert await out.read()
            assert (await runtime.wait(reading.process_id)).gap is not True
        for process in (reading, deaf):
            await runtime.kill(process.process_id, 0)
        await nothing_lingers(runtime)
