"""`run` through the client, and what becomes of commands whose callers are cancelled: over real runtimes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from fastclaw.client import RuntimeClient
from fastclaw.errors import ExecFailed, IoError
from fastclaw.processes.sockets import SocketDirectory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable
    from pathlib import Path

SERVE = [sys.executable, "-m", "fastclaw", "serve", "--log-level", "error", "--runtime"]


@pytest.fixture
async def memory() -> AsyncIterator[RuntimeClient]:
    """A running `memory` runtime."""
    async with RuntimeClient.spawn([*SERVE, "memory"], namespace="client-run") as client:
        yield client
    assert client.exit_code == 0


@pytest.fixture
async def local() -> AsyncIterator[RuntimeClient]:
    """A running `local` runtime, which the test may kill."""
    async with RuntimeClient.spawn([*SERVE, "local"], namespace="client-run") as client:
        yield client
    assert client.exit_code in (0, -signal.SIGKILL)
    SocketDirectory().remove()  # removes that of a killed one


async def none_runs(rt: RuntimeClient) -> None:
    """Soon; the cancellation of a caller does not wait for the runtime."""
    async with asyncio.timeout(10):
        while any(process.state == "running" for process in await rt.list()):  # noqa: ASYNC110 - it sends no event
            await asyncio.sleep(0.01)


async def test_text_and_bytes(memory: RuntimeClient) -> None:
    assert {"run", "cancel"} <= memory.capabilities
    for data in ("é\0".encode(), b"\xff\0", b"", os.urandom(2 << 20)):
        ran = await memory.run(["cat"], input=data, output_limit=len(data))
        assert ran.stdout == data
        assert (ran.stderr, ran.exit_code, ran.reason, ran.dropped) == (b"", 0, "exited", {"stdout": 0, "stderr": 0})
    assert (await memory.run(["cat"], input="é")).stdout == "é".encode()
    assert (await memory.run(["cat"])).stdout == b""


async def test_what_is_missing(memory: RuntimeClient) -> None:
    ran = await memory.run(["cat"], input="abcdefghij", output_limit=4)
    assert (ran.stdout, ran.dropped["stdout"], ran.gap_at) == (b"abij", 6, {"stdout": 2})
    ran = await memory.run(["cat"], input="abcdefghij", output_limit=4, keep="tail")
    assert (ran.stdout, ran.gap_at, ran.incomplete) == (b"ghij", {}, False)


async def test_environment_directory_and_a_key(memory: RuntimeClient) -> None:
    first = await memory.run(["printenv", "A"], env={"A": "x"}, key="k")
    again = await memory.run(["printenv", "A"], env={"A": "x"}, key="k")
    assert (first.stdout, again.stdout, again.stderr) == (b"x\n", b"", b"")
    assert first.process_id == again.process_id
    assert (await memory.run(["pwd"], working_dir="tmp")).stdout == b"/tmp\n"


async def test_the_reason_of_a_failed_run(memory: RuntimeClient) -> None:
    with pytest.raises(ExecFailed) as caught:
        await memory.run(["no-such-program"])
    assert caught.value.reason == "not_found"


async def test_a_cancelled_run_and_one_without_an_answer_in_time(memory: RuntimeClient) -> None:
    running = asyncio.ensure_future(memory.run(["sleep", "1000"]))
    while not await memory.list():  # noqa: ASYNC110 - the runtime sends no event of it
        await asyncio.sleep(0.005)
    running.cancel()
    await asyncio.wait((running,))
    assert running.cancelled()
    await none_runs(memory)
    with pytest.raises(IoError) as raised:
        await memory.run(["sleep", "1000"], timeout_s=0.05)
    assert raised.value.reason == "no_answer"
    await none_runs(memory)
    assert [process.reason for process in await memory.list()] == ["killed", "killed"]


async def test_cancelled_execs_leave_no_process(memory: RuntimeClient) -> None:
    for turns in range(20):
        starting = asyncio.ensure_future(memory.exec(["sleep", "1000"]))
        for _ in range(turns):
            await asyncio.sleep(0.0002)
        if starting.done():
            await (await starting).kill(0)
        starting.cancel()
        await asyncio.wait((starting,))
    await none_runs(memory)


async def test_a_cancelled_wait_kills_nothing(memory: RuntimeClient) -> None:
    async with await memory.exec(["cat"]) as process:
        waiting = asyncio.ensure_future(process.wait())
        await memory.health()
        waiting.cancel()
        await asyncio.wait((waiting,))
        assert (await process.wait(50)).state == "running"
        assert await process.communicate(b"alive") == (b"alive", b"")


async def outcome(call: Awaitable[object]) -> object:
    try:
        return await call
    except IoError as error:
        return error.reason


async def test_a_runtime_that_is_killed_meanwhile_is_an_error(local: RuntimeClient) -> None:
    process = await local.exec(["sh", "-c", "echo begun; sleep 1000"])
    assert await process.stdout_read() == b"begun\n"
    streamed = await local.exec(["sleep", "1000"])
    await streamed.connect()

    async def all_chunks() -> list[bytes]:
        return [chunk async for chunk in streamed]

    waits = (process.communicate(), process.wait(), all_chunks(), streamed.stderr_read())
    calls = [asyncio.ensure_future(outcome(wait)) for wait in waits]
    await local.health()
    os.kill(local.pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        assert await asyncio.gather(*calls) == ["runtime_exited"] * len(calls)
    await process.aclose()
    await streamed.aclose()


@pytest.mark.promise("T-LIST-BLOCKED")
async def test_list_and_health_say_who_is_blocked_on_output_that_nobody_reads(local: RuntimeClient) -> None:
    """modal-labs/modal-client PR 2416, PR 2399: `wait` never comes, and nothing says why. Writes of 3 000 bytes leave a
    quarter of each page of the pipe empty: it is full with 48 000 of 65 536 bytes."""

    async def blocked() -> dict[str, list[str]]:
        rows = {one.process_id: one.blocked for one in await local.list()}
        return {one: [*names] for one, names in rows.items() if isinstance(names, list)}

    idle = await local.exec(["sh", "-c", "head -c 60000 /dev/zero; exec sleep 1000"])
    out = await local.exec(["dd", "if=/dev/zero", "bs=3000", "count=100", "status=none"])
    err = await local.exec(["sh", "-c", "echo read; exec dd if=/dev/zero of=/dev/stderr bs=4096 count=100 status=none"])
    both = {out.id: ["stdout"], err.id: ["stderr"]}
    async with asyncio.timeout(10):
        while await blocked() != both:  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.005)
    assert (await local.health()).details["processes"]["blocked"] == 2
    assert await err.stdout_read() == b"read\n"  # its client takes stdout, and has not begun with stderr
    assert len((await out.communicate())[0]) == 300_000
    for process in (idle, out, err):
        await process.kill(0)
        await process.aclose()
    assert await blocked() == {}
    assert (await local.health()).details["processes"]["blocked"] == 0


async def test_a_client_that_does_not_read_is_nobody(local: RuntimeClient) -> None:
    process = await local.exec(["head", "-c", "10000000", "/dev/zero"])
    await process.connect()
    async with asyncio.timeout(10):
        while (await local.list())[0].blocked != ["stdout"]:  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.005)
    out, _ = await process.communicate()
    assert len(out) == 10_000_000
    await process.aclose()


async def test_communicate_does_not_wait_for_what_is_left_behind(local: RuntimeClient) -> None:
    loop = asyncio.get_running_loop()
    async with await local.exec(["sh", "-c", "sleep 1000 & echo up"]) as process:
        began = loop.time()
        assert await process.communicate() == (b"up\n", b"")
        assert loop.time() - began < 5
        await process.kill(0)


async def test_communicate_brings_what_a_command_wrote_last_of_all(local: RuntimeClient) -> None:
    async with await local.exec(["sh", "-c", "sleep 1000 & head -c 300000 /dev/zero"]) as process:
        out, err = await process.communicate()
        assert (len(out), err) == (300_000, b"")
        await process.kill(0)


async def test_communicate_gives_all_input_to_a_command_that_closed_its_outputs(
    local: RuntimeClient, tmp_path: Path
) -> None:
    taken = tmp_path / "taken"
    async with await local.exec(["sh", "-c", f"exec >&- 2>&-; cat >{taken}"]) as process:
        assert await process.communicate(bytes(3 << 20)) == (b"", b"")
        await process.wait()
    assert taken.stat().st_size == 3 << 20
