"""The protocol's two descriptors: claimed, given back unchanged, read and written without blocking."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from fastclaw import limits
from fastclaw.server.stdio import ByteSink, ByteSource
from tests.processes.endpoint_rig import PipeEnd
from tests.waiting import turns, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    yield ends
    for fd in ends:
        os.close(fd)


class Read(ByteSource):
    """A source, what it has brought, and how often its end."""

    def __init__(self, fd: int) -> None:
        self.got: list[bytes] = []
        self.ended = 0
        super().__init__(fd, self.got.append, self._at_end)

    def _at_end(self) -> None:
        self.ended += 1


def run(code: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    """Run `code` with fds of its own: `StdioClaim` is about fd 0 and 1 of a whole process."""
    prelude = "import os, sys\nfrom fastclaw.server.stdio import StdioClaim\nfrom fastclaw.errors import IoError\n"
    return subprocess.run([sys.executable, "-c", prelude + code], timeout=20, check=True, **options)  # type: ignore[call-overload,no-any-return]  # passed through


def test_while_claimed_a_stray_print_goes_to_stderr_and_stdin_is_empty() -> None:
    code = """
claim = StdioClaim()
print("stray", flush=True)
assert sys.stdin.read() == ""
os.system("echo child")
os.write(claim.output_fd, os.read(claim.input_fd, 100))
claim.close()
print("after", flush=True)
assert os.read(0, 100) == b""
"""
    done = run(code, input=b"wire", capture_output=True)
    assert done.stdout == b"wireafter\n"
    assert done.stderr == b"stray\nchild\n"


def test_a_second_claim_is_refused_until_the_first_is_released() -> None:
    run("""
claim = StdioClaim()
try:
    StdioClaim()
except IoError:
    claim.close()
else:
    sys.exit(1)
StdioClaim().close()
""")


@pytest.mark.parametrize("closed", [0, 1])
def test_a_closed_descriptor_is_an_error_and_nothing_leaks(closed: int) -> None:
    run(f"""
os.close({closed})
before = sorted(os.listdir("/proc/self/fd"))
try:
    StdioClaim()
except IoError:
    assert sorted(os.listdir("/proc/self/fd")) == before
else:
    os._exit(1)
""")


def test_a_closed_stderr_does_not_let_the_wire_become_stderr() -> None:
    code = """
os.close(2)
claim = StdioClaim()
os.write(1, b"stray")
os.write(2, b"stray")
os.write(claim.output_fd, b"wire")
claim.close()
"""
    assert run(code, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE).stdout == b"wire"


def test_a_closed_descriptor_is_found_before_a_loop_takes_its_place() -> None:
    run("""
from fastclaw.server.harness import RuntimeHarness
from fastclaw.runtimes.host import EnvironmentHost
os.close(0)
try:
    RuntimeHarness(EnvironmentHost("memory")).run()
except IoError:
    os._exit(0)
os._exit(1)
""")


def test_a_shared_pipe_stays_blocking_for_the_others() -> None:
    code = """
claim = StdioClaim()
assert not os.get_blocking(claim.input_fd) and not os.get_blocking(claim.output_fd)
os.write(claim.output_fd, b"claimed")
while True:
    try:
        os.read(claim.input_fd, 1)
        break
    except BlockingIOError:
        pass
os._exit(0)
"""
    read_out, write_out = os.pipe()
    read_in, write_in = os.pipe()
    prelude = "import os\nfrom fastclaw.server.stdio import StdioClaim\n"
    with subprocess.Popen([sys.executable, "-c", prelude + code], stdin=read_in, stdout=write_out):
        assert os.read(read_out, 100) == b"claimed"
        assert all(os.get_blocking(fd) for fd in (read_in, write_out))
        os.write(write_in, b"x")
    assert all(os.get_blocking(fd) for fd in (read_in, write_out))
    for fd in (read_out, write_out, read_in, write_in):
        os.close(fd)


def test_one_socket_as_both_is_set_back_at_the_end() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        run(
            "claim = StdioClaim()\nassert not os.get_blocking(claim.input_fd)\nclaim.close()",
            stdin=theirs,
            stdout=theirs,
        )
        assert os.get_blocking(theirs.fileno())


async def test_a_source_reads_pauses_resumes_and_ends(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe[0], os.dup(pipe[1])
    source = Read(read_end)
    os.write(write_end, b"a")
    source.resume()
    source.resume()
    await until(lambda: source.got == [b"a"])
    source.pause()
    source.pause()
    os.write(write_end, b"b")
    await turns(10)
    assert source.got == [b"a"]
    source.resume()
    await until(lambda: source.got == [b"a", b"b"])
    source.close()
    source.resume()
    os.close(write_end)
    assert not source.ended


async def test_the_end_of_a_pipe_is_told_once() -> None:
    read_end, write_end = os.pipe2(os.O_NONBLOCK)
    source = Read(read_end)
    source.resume()
    os.write(write_end, b"last")
    os.close(write_end)
    await until(lambda: source.ended)
    await turns(10)
    assert (source.got, source.ended) == ([b"last"], 1)
    os.close(read_end)


async def test_a_regular_file_is_read_to_its_end(tmp_path: Path) -> None:
    data = os.urandom(3 * limits.READ_CHUNK_BYTES + 7)
    path = tmp_path / "in"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    source = Read(fd)
    source.resume()
    await until(lambda: source.got)
    source.pause()
    source.resume()
    await until(lambda: source.ended)
    assert b"".join(source.got) == data
    os.close(fd)


async def test_dev_null_ends_at_once() -> None:
    fd = os.open(os.devnull, os.O_RDONLY)
    source = Read(fd)
    source.resume()
    await until(lambda: source.ended)
    os.close(fd)


async def test_a_sink_writes_one_turns_writes_at_once(pipe: tuple[int, int]) -> None:
    sink = ByteSink(pipe[1], lambda high: None, lambda _: None)
    sink.write(b"a\n")
    sink.write(b"b\n")
    with pytest.raises(BlockingIOError):
        os.read(pipe[0], 10)
    await turns(2)
    assert os.read(pipe[0], 10) == b"a\nb\n"
    sink.close()


async def test_a_slow_reader_presses_and_relieves(pipe: tuple[int, int]) -> None:
    pressure: list[bool] = []
    sink = ByteSink(pipe[1], pressure.append, lambda _: None)
    line = b"x" * 1023 + b"\n"
    count = limits.OUTPUT_HIGH_WATER_BYTES // len(line) + 100
    for _ in range(count):
        sink.write(line)
    assert pressure == [True]
    received = bytearray()
    reader = PipeEnd(pipe[0])
    draining = asyncio.create_task(sink.drain())
    while len(received) < count * len(line):
        received += await reader.read()
        if pressure == [True, False]:
            assert sink.pending_bytes < limits.OUTPUT_LOW_WATER_BYTES
    async with asyncio.timeout(5):
        await draining
    assert received == line * count
    assert pressure == [True, False]
    assert sink.pending_bytes == 0
    sink.close()


async def test_a_reader_that_goes_breaks_the_sink_once() -> None:
    read_end, write_end = os.pipe2(os.O_NONBLOCK)
    broken: list[bool] = []
    sink = ByteSink(write_end, lambda high: None, lambda _: broken.append(True))
    for _ in range(200):
        sink.write(b"x" * 1000)
    await asyncio.sleep(0)
    draining = asyncio.create_task(sink.drain())
    await asyncio.sleep(0)
    os.close(read_end)
    async with asyncio.timeout(5):
        await draining
    sink.write(b"dropped")
    assert sink.pending_bytes == 0
    assert broken == [True]
    sink.close()
    os.close(write_end)
