"""The real spawner as fastclaw sees it: keepers, signals, files and listeners inside, requests of any size."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.lane import Grace
from fastclaw.transport.outbox import close_all
from tests.spawn.fake_spawner import (
    children_of,
    descendants_of,
    has_not_ended,
    is_there,
    keeper_of,
    state_of,
    until,
)
from tests.spawn.rig import a_home, finish, line, start

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_killed_keeper_takes_its_process_along_and_nobody_else() -> None:
    async with a_home() as (home, lane):
        other = await start(lane, "cat")
        script = "sleep 1000 & setsid sleep 1000 & env -i setsid sleep 1000 & echo $$; wait"
        process = await start(lane, "sh", "-c", script)
        command = int(await line(process))
        await until(lambda: len(descendants_of(command)) == 3)
        tree = [command, *descendants_of(command)]
        keeper = keeper_of(home.pid, command)
        os.kill(keeper, signal.SIGKILL)
        assert (await finish(process))[0].reason == "container_gone"
        await process.end_tree(Grace(0.0))
        await until(lambda: not any(map(is_there, [keeper, *tree])))
        assert home.spawner.counts()["kept"] == 1
        assert (await finish(await start(lane, "echo", "on")))[1] == b"on\n"
        assert (await finish(other, b"still here"))[1] == b"still here"
        assert home.spawner.counts()["keepers"] == len(children_of(home.pid))


async def test_a_killed_spawner_takes_everything_along() -> None:
    async with a_home() as (home, lane):
        keepers = children_of(home.pid)
        processes = [await start(lane, "sh", "-c", "setsid sleep 1000 & sleep 1000") for _ in range(3)]
        await until(lambda: len(descendants_of(home.pid)) >= len(keepers) + 9)
        everybody = descendants_of(home.pid)
        os.kill(home.pid, signal.SIGKILL)
        for process in processes:
            # Its keeper ends it, and may still get to say so.
            assert (await finish(process))[0].reason in {"container_gone", "signaled"}
        await until(lambda: not any(map(has_not_ended, everybody)))
        with pytest.raises(ExecFailed) as refused:
            await start(lane, "true")
        assert refused.value.reason == "container_gone"


async def test_a_listener_inside_is_on_loopback_and_takes_connections() -> None:
    async with a_home() as (home, _):
        listener, port = await home.spawner.listen_inside()
        with listener:
            assert listener.getsockname() == ("127.0.0.1", port)
            assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
            assert not os.get_blocking(listener.fileno())
            assert not listener.get_inheritable()
            with socket.create_connection(("127.0.0.1", port)):
                accepted, _ = listener.accept()
                accepted.close()
            with pytest.raises(ExecFailed, match=f"port {port} inside: Address already in use") as refused:
                await home.spawner.listen_inside(port)
            assert refused.value.reason == "io_error"
        again, same = await home.spawner.listen_inside(port)
        again.close()
        assert same == port


async def test_files_are_read_as_they_are_inside(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"t\xc3\xa4xt\n\xff")
    (tmp_path / "empty").touch()
    (tmp_path / "big").write_bytes(b"x" * (limits.SPAWN_FILE_BYTES + 1))
    os.mkfifo(tmp_path / "fifo")
    async with a_home() as (home, _):
        read = home.spawner.read_file
        assert (await read("/etc/passwd")).encode() == slurp("/etc/passwd")
        assert await read(str(tmp_path / "text")) == "t\u00e4xt\n\ufffd"
        assert await read(str(tmp_path / "big")) == "x" * limits.SPAWN_FILE_BYTES
        for nothing_in_it in ("empty", "missing", "fifo", "", "x" * 300):
            assert await read(str(tmp_path / nothing_in_it)) == ""


def slurp(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


async def test_three_hundred_live_and_back() -> None:
    async with a_home() as (home, lane):
        many = 300
        processes = await asyncio.gather(*(start(lane, "sleep", "1000", stdin=False) for _ in range(many)))
        counts = home.spawner.counts()
        assert counts["kept"] == many
        assert many <= counts["keepers"] <= many + many // 2
        await asyncio.gather(*(process.end_tree(Grace(0.0)) for process in processes))
        assert {process.exited.result().signal for process in processes} == {signal.SIGKILL}
        assert home.spawner.counts() == {"keepers": limits.SPAWN_IDLE_KEEPERS, "kept": 0}
        await until(lambda: len(children_of(home.pid)) == limits.SPAWN_IDLE_KEEPERS)
        for process in processes:
            close_all([process.stdout_fd, process.stderr_fd])


HEARS = """
import os, signal
heard = set(range(1, 65)) - {9, 19, 32, 33}
signal.pthread_sigmask(signal.SIG_BLOCK, heard)
os.write(1, b"0")
while True:
    os.write(1, b"%d" % signal.sigwait(heard))
"""
LIBC_SIGNALS = (32, 33)
"""The C library keeps them for itself (nptl(7)), so that Python cannot wait for them."""


async def test_every_signal_arrives() -> None:
    async with a_home() as (_, lane):
        process = await start(lane, sys.executable, "-S", "-c", HEARS)
        assert await line(process) == b"0"
        for signum in sorted(set(range(1, 65)) - {signal.SIGKILL, signal.SIGSTOP, *LIBC_SIGNALS}):
            process.signal(signum)
            assert await line(process) == b"%d" % signum
        await process.end_tree(Grace(0.0))
        await finish(process)


@pytest.mark.parametrize("signum", [signal.SIGKILL, *LIBC_SIGNALS, signal.SIGRTMAX])
async def test_a_signal_ends_who_does_not_care(signum: int) -> None:
    async with a_home() as (_, lane):
        process = await start(lane, "sleep", "1000")
        process.signal(signum)
        assert (await finish(process))[0].signal == signum


async def test_a_stopped_process_goes_on_and_can_be_ended() -> None:
    async with a_home() as (_, lane):
        process = await start(lane, "sh", "-c", "echo $$; read line; echo $line; sleep 1000")
        pid = int(await line(process))
        process.signal(signal.SIGSTOP)
        await until(lambda: state_of(pid) == "T")
        process.signal(signal.SIGCONT)
        assert process.stdin_fd is not None
        os.write(process.stdin_fd, b"on\n")
        assert await line(process) == b"on\n"
        process.signal(signal.SIGSTOP)
        await until(lambda: state_of(pid) == "T")
        await process.end_tree(Grace(0.0))
        assert (await finish(process))[0].signal == signal.SIGKILL


@pytest.mark.parametrize("signum", [0, -1, 65, 4711])
async def test_a_number_that_is_no_signal_hurts_nobody(signum: int) -> None:
    async with a_home() as (home, lane):
        process = await start(lane, "cat")
        try:
            with pytest.raises(ExecFailed) as refused:
                process.signal(signum)
            assert refused.value.reason == "unsupported"
            assert (await finish(process, b"alive"))[0].exit_code == 0
        finally:
            await home.aclose()
            for fd in (process.stdin_fd, process.stdout_fd, process.stderr_fd):
                if fd is not None and process.exited.result().reason != "exited":
                    os.close(fd)


# --- requests that are too large for a frame ---


async def test_one_long_argument() -> None:
    async with a_home() as (_, lane):
        text = "x" * (120 * limits.KIB)
        _, out, _ = await finish(await start(lane, "sh", "-c", 'printf %s "$1"', "sh", text))
        assert out == text.encode()


async def test_ten_thousand_variables(tmp_path: Path) -> None:
    async with a_home() as (_, lane):
        env = {f"V_{number}": str(number) for number in range(10_000)}
        _, out, _ = await finish(await start(lane, "env", env=env, working_dir=str(tmp_path)))
        assert {f"{name}={value}" for name, value in env.items()} <= set(out.decode().splitlines())


async def test_two_megabytes_of_variables_need_a_larger_stack() -> None:
    env = {f"V_{number}": "x" * (102 * limits.KIB) for number in range(20)}
    async with a_home() as (_, lane):
        with pytest.raises(ExecFailed) as refused:
            await start(lane, "env", env=env, limits={"stack": 4 * limits.MIB})
        assert refused.value.reason == "too_long"
        process = await start(lane, "env", env=env, limits={"stack": 64 * limits.MIB})
        _, out, _ = await finish(process)
        assert set(out.decode().splitlines()) >= {f"{name}={value}" for name, value in env.items()}


async def test_more_than_the_spawner_takes_is_too_long_and_leaks_nothing() -> None:
    async with a_home() as (_, lane):
        with pytest.raises(ExecFailed) as refused:
            await start(lane, "true", *["x" * limits.MIB] * 8)
        assert refused.value.reason == "too_long"


async def test_many_large_requests_at_once() -> None:
    async with a_home() as (_, lane):
        texts = [f"{number} " + "x" * (40 * limits.KIB) for number in range(20)]
        processes = await asyncio.gather(*(start(lane, "echo", "-n", text) for text in texts))
        results = await asyncio.gather(*map(finish, processes))
        assert [out.decode() for _, out, _ in results] == texts
