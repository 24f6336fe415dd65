"""The egress proxy's process, by itself, with a test at the other end of its socket."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw import network_limits
from fastclaw.errors import ProtocolError
from fastclaw.network.egress import proxy_frames as frames
from fastclaw.network.egress.accounting import Counters
from fastclaw.network.egress.proxy_main import ProxyProcess, ReportHandler, describe, read_whole
from tests.balance import descriptors_left, open_descriptors
from tests.network.egress.rig import HERE, PATIENCE_S, Client, config, listening, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from fastclaw.network.egress.proxy_frames import EgressConfig

SECRET = "s3cr3t-s3cr3t"


class Other:
    """Fastclaw's end."""

    def __init__(self, ours: socket.socket) -> None:
        self.socket = ours
        self.counters = Counters.create()

    def orders(self, order: frames.Order, *fds: int) -> None:
        socket.send_fds(self.socket, [frames.encode(order)], fds)

    def configures(self, text: bytes) -> None:
        file = os.memfd_create("test")
        os.write(file, text)
        self.orders(frames.Config(), file, self.counters.fd)
        os.close(file)

    async def hears(self) -> frames.Report:
        async with asyncio.timeout(PATIENCE_S):
            frame = await asyncio.get_running_loop().sock_recv(self.socket, network_limits.EGRESS_FRAME_BYTES)
        return frames.parse_report(frame)

    async def has_served(self, settings: EgressConfig, id: int = 1) -> int:
        """Configure it and give it a listener for `proxy`; its port."""
        self.configures(frames.encode(settings))
        assert await self.hears() == frames.Ready()
        return self.gives(id)

    def gives(self, id: int) -> int:
        with listening() as sock:
            self.orders(frames.Listen(id, "proxy"), sock.fileno())
            port: int = sock.getsockname()[1]
        return port

    def ends(self) -> None:
        self.socket.close()
        self.counters.close()


@asynccontextmanager
async def a_worker() -> AsyncIterator[tuple[Other, asyncio.Task[None]]]:
    """In this very process; ended by the end of its socket, as always."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    other = Other(ours)
    with theirs:
        task = asyncio.create_task(ProxyProcess(theirs).run())
        try:
            yield other, task
        finally:
            other.ends()
            await asyncio.wait([task], timeout=PATIENCE_S)
            assert task.done()


async def asks(port: int, target: str) -> tuple[Client, bytes]:
    """A client that asked for a tunnel, and the first line that it was answered."""
    client = Client(*await asyncio.open_connection(HERE, port))
    await client.say(request(f"CONNECT {target} HTTP/1.1\nHost: {target}"))
    return client, (await client.until(b"\r\n\r\n")).split(b"\r\n")[0]


async def test_it_serves_what_it_is_given_and_counts_for_both() -> None:
    async with a_worker() as (other, task):
        port = await other.has_served(config([f"{HERE}:*"]))
        with listening() as origin:
            client, line = await asks(port, f"{HERE}:{origin.getsockname()[1]}")
            assert line.split()[1] == b"200"
            refused, line = await asks(port, "192.0.2.1:80")
            assert line.split()[1] == b"403"
            numbers = other.counters.snapshot()
            assert (numbers["allowed"], numbers["open"]) == (1, 2)
            await refused.close()
            other.orders(frames.Unlisten(1))
            assert await client.rest() == b""
            with pytest.raises(ConnectionRefusedError):
                await asks(port, "192.0.2.1:80")
            await client.close()
        assert not task.done()
    task.result()


async def test_it_closes_all_connections_at_the_end() -> None:
    with listening() as origin:
        async with a_worker() as (other, _):
            port = await other.has_served(config([f"{HERE}:*"]))
            client, _ = await asks(port, f"{HERE}:{origin.getsockname()[1]}")
        assert await client.rest() == b""
        await client.close()


async def test_what_is_lasting_is_said_in_one_line_that_fits(tmp_path: Path) -> None:
    async with a_worker() as (other, _):
        missing = tmp_path / ("\x01" * 200) / "log"
        port = await other.has_served(config(log=str(missing)))
        client, line = await asks(port, "192.0.2.1:80")
        assert line.split()[1] == b"403"
        report = await other.hears()
        assert isinstance(report, frames.Trouble)
        assert "decision log" in report.text
        assert len(report.text) <= network_limits.EGRESS_LINE_CHARS
        assert other.counters.snapshot()["log_lost"] == 1
        await client.close()


@pytest.mark.parametrize(
    "frame", [b"{}", frames.encode(frames.Listen(1, "proxy")), frames.encode(frames.Config()), b"x" * 4096]
)
async def test_an_order_that_is_none_ends_it_and_nothing_stays_open(frame: bytes) -> None:
    async with a_worker() as (other, task):
        before = open_descriptors()
        with listening() as one, listening() as two:
            fds = [] if b"listen" in frame else [one.fileno()] if b"config" in frame else [one.fileno(), two.fileno()]
            socket.send_fds(other.socket, [frame], fds)
        await asyncio.wait([task], timeout=PATIENCE_S)
        with pytest.raises(ProtocolError, match="egress proxy"):
            task.result()
        assert open_descriptors().keys() == before.keys()


async def test_a_configuration_that_is_none_ends_it_without_a_word_of_it() -> None:
    async with a_worker() as (other, task):
        other.configures(json.dumps({"allow": SECRET}).encode())
        await asyncio.wait([task], timeout=PATIENCE_S)
        with pytest.raises(ProtocolError) as raised:
            task.result()
        assert SECRET not in str(raised.value)


async def test_a_listener_that_cannot_be_served_is_said_and_others_are() -> None:
    async with a_worker() as (other, _):
        await other.has_served(config())
        with socket.socket(socket.AF_UNIX) as sock:
            other.orders(frames.Listen(2, "proxy"), sock.fileno())
        report = await other.hears()
        assert isinstance(report, frames.Trouble)
        assert "listener for proxy cannot be served: " in report.text
        client, line = await asks(other.gives(3), "192.0.2.1:80")
        assert line.split()[1] == b"403"
        await client.close()


async def test_a_listener_arrives_where_connections_have_taken_all_descriptors() -> None:
    async with a_worker() as (other, _):
        await other.has_served(config())
        with socket.socket(socket.AF_UNIX) as sock, descriptors_left(0):
            with pytest.raises(OSError, match="Too many open files"):
                os.dup(sock.fileno())
            other.orders(frames.Listen(2, "proxy"), sock.fileno())
            assert isinstance(await other.hears(), frames.Trouble)  # it has it, and cannot use it


def test_a_description_has_the_kind_and_the_place_and_no_text() -> None:
    with pytest.raises(ValueError, match=SECRET) as raised:
        int(SECRET)
    assert describe(raised.value).startswith("ValueError at test_proxy_main.py:")
    assert describe(ValueError(SECRET)) == "ValueError"


def test_a_line_of_the_log_has_no_text_of_an_exception() -> None:
    lines: list[str] = []
    logger = logging.getLogger("test-egress-worker")
    handler = ReportHandler(lines.append)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        raise ValueError(SECRET)
    except ValueError:
        logger.exception("it failed at %s", "once")
    logger.info("not this")
    logger.warning("%d of %d", 1, 2)
    logger.removeHandler(handler)
    assert lines[0].startswith("it failed at once: ValueError at test_proxy_main.py:")
    assert lines[1:] == ["1 of 2"]


def test_a_file_is_read_wherever_another_reader_stands() -> None:
    file = os.memfd_create("test")
    os.write(file, b"whole")
    assert read_whole(file) == b"whole"
    os.close(file)


# --- as a process ---


def run(code: str, theirs: socket.socket, **more: Any) -> subprocess.Popen[str]:
    argv = [
        sys.executable,
        *(["-c", code] if code else ["-m", "fastclaw.network.egress.proxy_main"]),
        str(theirs.fileno()),
    ]
    return subprocess.Popen(argv, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True, **more)


STUCK = """
import asyncio, sys, time
from fastclaw.network.egress import proxy_main
async def main():
    asyncio.get_running_loop().run_in_executor(None, time.sleep, 600)  # as a dead name server does
    await proxy_main._main(int(sys.argv[1]))
proxy_main.own_process.run(main())
"""


def test_a_thread_that_hangs_does_not_keep_it_from_ending() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        child = run(STUCK, theirs)
    ours.close()
    began = time.monotonic()
    assert (child.communicate(timeout=60)[1], child.returncode) == ("", 0)
    assert time.monotonic() - began < 30


def test_what_it_cannot_go_on_with_is_told_to_fastclaw_and_not_to_stderr() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        child = run("", theirs)
    with ours:
        other = Other(ours)
        other.configures(frames.encode(config([f"{SECRET} is no rule"])))
        report = frames.parse_report(ours.recv(network_limits.EGRESS_FRAME_BYTES))
        assert (child.communicate(timeout=60)[1], child.returncode) == ("", 1)
        assert isinstance(report, frames.Trouble)
        assert report.text.startswith("it gave up: InvalidParams at ")
        assert SECRET not in report.text
        other.counters.close()


BUG = """
import asyncio, sys
from fastclaw.network.egress import proxy_main
async def main():
    asyncio.get_running_loop().call_soon(int, "{}")
    await proxy_main._main(int(sys.argv[1]))
proxy_main.own_process.run(main())
"""


def test_a_bug_is_told_for_the_log_with_its_kind_only() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        child = run(BUG.format(SECRET), theirs)
    report = frames.parse_report(ours.recv(network_limits.EGRESS_FRAME_BYTES))
    ours.close()
    assert (child.communicate(timeout=60)[1], child.returncode) == ("", 0)
    assert isinstance(report, frames.Logged)
    assert report.text.startswith("a bug: ValueError")
    assert SECRET not in report.text


HEAVY = {"podman", "click", "rich", "requests", "orjson", "aiofiles", "fastclaw.runtime"}


def test_it_loads_nothing_that_it_does_not_need() -> None:
    show = f"print([name for name in {sorted(HEAVY)} if name in sys.modules])"
    code = f"import sys, fastclaw.network.egress.proxy_main; {show}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
