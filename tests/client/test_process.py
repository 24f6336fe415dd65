"""Processes of the real `local` runtime through the client."""

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator

import pytest

from fastclaw import limits
from fastclaw.client import RuntimeClient
from fastclaw.errors import ExecFailed, InvalidParams, InvalidState, IoError

SERVE = [sys.executable, "-m", "fastclaw", "serve", "--runtime", "local", "--log-level", "error"]


@pytest.fixture
async def rt() -> AsyncIterator[RuntimeClient]:
    """A running `local` runtime."""
    async with RuntimeClient.spawn(SERVE, namespace="client-test") as client:
        yield client
    assert client.exit_code == 0


async def test_communicate(rt: RuntimeClient) -> None:
    process = await rt.exec(["sh", "-c", "cat; echo problem >&2; exit 3"])
    assert await process.communicate(b"hello") == (b"hello", b"problem\n")
    record = await process.wait()
    assert (record.process_id, record.exit_code, record.reason) == (process.id, 3, "exited")
    await process.aclose()


async def test_communicate_without_input(rt: RuntimeClient) -> None:
    async with await rt.exec(["cat"]) as process:
        assert await process.communicate() == (b"", b"")


async def test_communicate_never_deadlocks(rt: RuntimeClient) -> None:
    data = hashlib.sha256(b"seed").digest() * (8 * limits.MIB // 32)
    async with await rt.exec(["sh", "-c", "tee /dev/stderr"]) as process:
        out, err = await process.communicate(data)
    assert (out == data, err == data) == (True, True)


async def test_input_that_is_not_read_is_no_error(rt: RuntimeClient) -> None:
    async with await rt.exec(["sh", "-c", "echo done"]) as process:
        assert await process.communicate(bytes(4 * limits.MIB)) == (b"done\n", b"")


async def test_iteration_writes_and_half_close(rt: RuntimeClient) -> None:
    async with await rt.exec(["cat"]) as process:
        await process.write(b"one")
        assert await process.stdout_read() == b"one"
        await process.write(b"two")
        await process.write_eof()
        assert b"".join([chunk async for chunk in process]) == b"two"
        assert await process.stderr_read() == b""


async def test_environment_and_working_directory(rt: RuntimeClient) -> None:
    async with await rt.exec(["sh", "-c", "echo $A; pwd"], env={"A": "x y"}, working_dir="/tmp") as process:
        assert await process.communicate() == (b"x y\n/tmp\n", b"")


async def test_the_reason_of_a_failed_exec(rt: RuntimeClient) -> None:
    with pytest.raises(ExecFailed) as caught:
        await rt.exec(["no-such-program"])
    assert (caught.value.reason, caught.value.fault) == ("not_found", "caller")


async def test_a_terminal_and_its_size(rt: RuntimeClient) -> None:
    script = "trap 'stty size; exit 4' WINCH; stty size; while :; do sleep 1 & wait; done"
    async with await rt.exec(["sh", "-c", script], tty=True, tty_size=[7, 9]) as process:
        assert await process.stdout_read() == b"7 9\r\n"
        await process.resize(50, 132)
        assert await process.stdout_read() == b"50 132\r\n"
        assert (await process.wait()).exit_code == 4
        await process.resize(1, 1)
    async with await rt.exec(["true"]) as process:
        with pytest.raises(InvalidParams) as raised:
            await process.resize(1, 1)
        assert raised.value.reason == "no_tty"


async def test_wait_kill_signal_and_list(rt: RuntimeClient) -> None:
    process, other = await rt.exec(["sleep", "300"]), await rt.exec(["sleep", "300"])
    assert (await process.wait(timeout_ms=10)).state == "running"
    assert {info.process_id: info.state for info in await rt.list()} == {process.id: "running", other.id: "running"}
    await process.kill(grace_ms=0)
    assert (await process.wait()).reason == "killed"
    await other.signal("TERM")
    assert (await other.wait()).signal == 15
    with pytest.raises(InvalidState) as caught:
        await rt.kill("unknown")
    assert caught.value.reason == "unknown_process"
    assert (await rt.health()).status == "healthy"


async def test_leaving_and_coming_back(rt: RuntimeClient) -> None:
    process = await rt.exec(["cat"], on_disconnect="hold")
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


async def test_many_at_once(rt: RuntimeClient) -> None:
    async def one(number: int) -> None:
        async with await rt.exec(["sh", "-c", f"echo {number}; exit {number % 256}"]) as process:
            assert await process.communicate() == (f"{number}\n".encode(), b"")
            assert (await process.wait()).exit_code == number % 256

    await asyncio.gather(*(one(number) for number in range(100)))


async def test_the_sockets_are_gone_after_shutdown(rt: RuntimeClient) -> None:
    process = await rt.exec(["sleep", "300"])
    await rt.shutdown()
    with pytest.raises(IoError, match="cannot connect"):
        await process.connect()
