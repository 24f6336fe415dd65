"""Processes and runs of real runtimes through the client, and what becomes of commands whose callers are cancelled."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.client import RuntimeClient
from fastclaw.errors import ExecFailed, InvalidParams, InvalidState, IoError
from fastclaw.processes.listeners import SocketDirectory
from tests.waiting import until

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
    SocketDirectory().close()  # removes that of a killed one


async def none_runs(rt: RuntimeClient) -> None:
    """Soon; the cancellation of a caller does not wait for the runtime."""

    async def none() -> bool:
        return all(process.state != "running" for process in await rt.list())

    await until(none, 10)


async def test_text_and_bytes(memory: RuntimeClient) -> None:
    assert {"run", "cancel"} <= memory.capabilities
    for data in ("é\0".encode(), b"\xff\0", b"", os.urandom(2 << 20)):
        ran = await memory.run(["cat"], input=data, output_limit=len(data))
        assert ran.stdout == data
        assert (ran.stderr, ran.exit_code, ran.reason, ran.dropped) == (b"", 0, "exited", {"stdout": 0, "stderr": 0})
    assert (await memory.run(["cat"], input="é")).stdout == "é".encode()
    assert (await memory.run(["cat"])).stdout == b""


async def test_environment_directory_and_a_key(memory: RuntimeClient) -> None:
    first = await memory.run(["printenv", "A"], env={"A": "x"}, key="k")
    again = await memory.run(["printenv", "A"], env={"A": "x"}, key="k")
    assert (first.stdout, again.stdout, again.stderr) == (b"x\n", b"", b"")
    assert first.process_id == again.process_id
    assert (await memory.run(["pwd"], working_dir="tmp")).stdout == b"/tmp\n"


async def test_a_cancelled_run_and_one_without_an_answer_in_time(memory: RuntimeClient) -> None:
    running = asyncio.ensure_future(memory.run(["sleep", "1000"]))
    await until(memory.list)
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


async def test_cancelled_streams_of_files_leave_no_process(local: RuntimeClient, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(1 << 20))
    for turns in range(20):
        for opening in (local.file_reader(f"{tmp_path}/f"), local.tar_writer(str(tmp_path))):
            starting = asyncio.ensure_future(opening)
            for _ in range(turns):
                await asyncio.sleep(0.0002)
            if starting.done():
                await (await starting).aclose()
            starting.cancel()
            await asyncio.wait((starting,))
    await none_runs(local)


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

    async def both_are() -> bool:
        return await blocked() == both

    await until(both_are, 10)
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

    async def is_blocked() -> bool:
        return (await local.list())[0].blocked == ["stdout"]

    await until(is_blocked, 10)
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


async def test_communicate(local: RuntimeClient) -> None:
    process = await local.exec(["sh", "-c", "cat; echo problem >&2; exit 3"])
    assert await process.communicate(b"hello") == (b"hello", b"problem\n")
    record = await process.wait()
    assert (record.process_id, record.exit_code, record.reason) == (process.id, 3, "exited")
    await process.aclose()


async def test_communicate_never_deadlocks(local: RuntimeClient) -> None:
    data = hashlib.sha256(b"seed").digest() * (8 * limits.MIB // 32)
    async with await local.exec(["sh", "-c", "tee /dev/stderr"]) as process:
        out, err = await process.communicate(data)
    assert (out == data, err == data) == (True, True)


async def test_input_that_is_not_read_is_no_error(local: RuntimeClient) -> None:
    async with await local.exec(["sh", "-c", "echo done"]) as process:
        assert await process.communicate(bytes(4 * limits.MIB)) == (b"done\n", b"")


async def test_iteration_writes_and_half_close(local: RuntimeClient) -> None:
    async with await local.exec(["cat"]) as process:
        await process.write(b"one")
        assert await process.stdout_read() == b"one"
        await process.write(b"two")
        await process.write_eof()
        assert b"".join([chunk async for chunk in process]) == b"two"
        assert await process.stderr_read() == b""


async def test_environment_and_working_directory(local: RuntimeClient) -> None:
    async with await local.exec(["sh", "-c", "cat; echo $A; pwd"], env={"A": "x y"}, working_dir="/tmp") as process:
        assert await process.communicate() == (b"x y\n/tmp\n", b"")


async def test_the_reason_of_what_does_not_start(memory: RuntimeClient) -> None:
    for start in (memory.exec, memory.run):
        with pytest.raises(ExecFailed) as caught:
            await start(["no-such-program"])
        assert (caught.value.reason, caught.value.fault) == ("not_found", "caller")


async def test_a_terminal_and_its_size(local: RuntimeClient) -> None:
    script = "trap 'stty size; exit 4' WINCH; stty size; while :; do sleep 1 & wait; done"
    async with await local.exec(["sh", "-c", script], tty=True, tty_size=[7, 9]) as process:
        assert await process.stdout_read() == b"7 9\r\n"
        await process.resize(50, 132)
        assert await process.stdout_read() == b"50 132\r\n"
        assert (await process.wait()).exit_code == 4
        await process.resize(1, 1)
    async with await local.exec(["true"]) as process:
        with pytest.raises(InvalidParams) as raised:
            await process.resize(1, 1)
        assert raised.value.reason == "no_tty"


async def test_wait_kill_signal_and_list(local: RuntimeClient) -> None:
    process, other = await local.exec(["sleep", "300"]), await local.exec(["sleep", "300"])
    assert (await process.wait(timeout_ms=10)).state == "running"
    assert {info.process_id: info.state for info in await local.list()} == {process.id: "running", other.id: "running"}
    await process.kill(grace_ms=0)
    assert (await process.wait()).reason == "killed"
    await other.signal("TERM")
    assert (await other.wait()).signal == 15
    with pytest.raises(InvalidState) as caught:
        await local.kill("unknown")
    assert caught.value.reason == "unknown_process"
    assert (await local.health()).status == "healthy"


async def test_leaving_and_coming_back(local: RuntimeClient) -> None:
    process = await local.exec(["cat"], on_disconnect="hold")
    await process.write(b"first")
    assert await process.stdout_read() == b"first"
    reading = asyncio.ensure_future(process.stdout_read())
    await asyncio.sleep(0)
    await process.aclose()
    with pytest.raises(IoError, match="closed"):
        await reading
    await process.connect()
    await process.kill()
    await process.aclose()
