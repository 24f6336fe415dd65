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
from fastclaw.network.egress import proxy_frames as frames
from fastclaw.network.egress.accounting import Counters
from fastclaw.network.egress.proxy_main import ProxyProcess, ReportHandler, describe, read_whole
from tests.balance import descriptors_left, open_descriptors
from tests.network.egress.rig import HERE, PATIENCE_S, Client, config, listening, request
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from fastclaw.network.egress.proxy_frames import EgressConfig

SECRET = "s3cr3t-s3cr3t"


class Other:
    """Fastclaw's end, with one environment of number 1, and those that a test opens besides."""

    def __init__(self, ours: socket.socket) -> None:
        self.socket = ours
        self.counters = Counters.create()

    def orders(self, order: frames.Order, *fds: int) -> None:
        socket.send_fds(self.socket, [frames.encode(order)], fds)

    def opens(self, text: bytes, number: int = 1) -> None:
        file = os.memfd_create("test")
        os.write(file, text)
        self.orders(frames.Open(number), file, self.counters.fd)
        os.close(file)

    async def hears(self) -> frames.Report:
        async with asyncio.timeout(PATIENCE_S):
            frame = await asyncio.get_running_loop().sock_recv(self.socket, network_limits.EGRESS_FRAME_BYTES)
        return frames.parse_report(frame)

    async def has_served(self, settings: EgressConfig, number: int = 1) -> int:
        """Open an environment and give it a listener for `proxy`; its port."""
        self.opens(frames.encode(settings), number)
        assert await self.hears() == frames.Ready(number)
        return self.gives(1, number)

    def gives(self, id: int, number: int = 1) -> int:
        with listening() as sock:
            self.orders(frames.Listen(number, id, "proxy"), sock.fileno())
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


async def is_served(port: int) -> None:
    """Somebody listens there, and refuses what is not allowed."""
    client, line = await asks(port, "192.0.2.1:80")
    assert line.split()[1] == b"403"
    await client.close()


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
            other.orders(frames.Unlisten(1, 1))
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


@pytest.mark.parametrize("frame", [b"{}", b"x" * 4096])
async def test_an_order_that_is_none_is_told_for_the_log_and_nothing_stays_open(frame: bytes) -> None:
    async with a_worker() as (other, _):
        port = await other.has_served(config())
        await is_served(port)
        await until(lambda: other.counters.snapshot()["open"] == 0)
        before = open_descriptors()
        with listening() as one, listening() as two:
            socket.send_fds(other.socket, [frame], [one.fileno(), two.fileno()])
            report = await other.hears()
        assert isinstance(report, frames.Logged)
        assert "a frame that it does not know" in report.text
        assert open_descriptors().keys() == before.keys()
        await is_served(port)


@pytest.mark.parametrize(
    ("order", "count"),
    [
        (frames.Open(2), 1),
        (frames.Listen(2, 2, "proxy"), 0),
        (frames.Listen(2, 2, "proxy"), 2),
        (frames.Unlisten(2, 1), 1),
        (frames.Close(2), 2),
        (frames.Open(2), 2),  # it is there already
    ],
)
async def test_an_order_that_is_wrong_for_one_environment_ends_no_other(order: frames.Order, count: int) -> None:
    async with a_worker() as (other, _):
        kept = await other.has_served(config())
        await is_served(kept)
        await until(lambda: other.counters.snapshot()["open"] == 0)
        before = open_descriptors()
        ended = await other.has_served(config(), 2)
        with listening() as one, listening() as two:
            other.orders(order, *[one.fileno(), two.fileno()][:count])
        report = await other.hears()
        assert isinstance(report, frames.Failed)
        assert report.environment == 2
        with pytest.raises(ConnectionRefusedError):
            await asks(ended, "192.0.2.1:80")
        await is_served(kept)
        other.orders(frames.Listen(2, 3, "proxy"), other.socket.fileno())  # said before FAILED was heard
        other.orders(frames.Unlisten(2, 3))
        other.orders(frames.Close(2))
        assert await other.hears() == frames.Closed(2)
        await until(lambda: open_descriptors().keys() == before.keys())


async def test_an_environment_that_goes_leaves_nothing_and_the_others_alone(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with a_worker() as (other, _):
        kept = await other.has_served(config([f"{HERE}:*"]))
        with listening() as origin:
            target = f"{HERE}:{origin.getsockname()[1]}"
            stays, _ = await asks(kept, target)
            peer = origin.accept()[0]
            before = len(open_descriptors())
            ended = await other.has_served(config([f"{HERE}:*"], log=str(log)), 2)
            goes, _ = await asks(ended, target)
            other.orders(frames.Close(2))
            assert await other.hears() == frames.Closed(2)
            assert log.read_text().count("\n") == 1
            assert await goes.rest() == b""
            await goes.close()
            await until(lambda: len(open_descriptors()) == before)
            await stays.say(b"still there")
            assert await asyncio.to_thread(peer.recv, 100) == b"still there"
            peer.close()
            await stays.close()


async def test_a_configuration_that_is_none_fails_without_a_word_of_it() -> None:
    async with a_worker() as (other, _):
        other.opens(json.dumps({"allow": SECRET}).encode(), 2)
        report = await other.hears()
        assert isinstance(report, frames.Failed)
        assert report.text.startswith("ProtocolError at ")
        assert SECRET not in report.text
        await is_served(await other.has_served(config()))


async def test_a_listener_that_cannot_be_served_is_said_and_others_are() -> None:
    async with a_worker() as (other, _):
        await other.has_served(config())
        with socket.socket(socket.AF_UNIX) as sock:
            other.orders(frames.Listen(1, 2, "proxy"), sock.fileno())
        report = await other.hears()
        assert isinstance(report, frames.Trouble)
        assert report.environment == 1
        assert "listener for proxy cannot be served: " in report.text
        await is_served(other.gives(3))


async def test_a_listener_arrives_where_connections_have_taken_all_descriptors() -> None:
    async with a_worker() as (other, _):
        await other.has_served(config())
        with socket.socket(socket.AF_UNIX) as sock, descriptors_left(0):
            with pytest.raises(OSError, match="Too many open files"):
                os.dup(sock.fileno())
            other.orders(frames.Listen(1, 2, "proxy"), sock.fileno())
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


def test_what_an_environment_cannot_be_served_with_is_told_to_fastclaw_and_not_to_stderr() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        child = run("", theirs)
    with ours:
        other = Other(ours)
        other.opens(frames.encode(config([f"{SECRET} is no rule"])))
        report = frames.parse_report(ours.recv(network_limits.EGRESS_FRAME_BYTES))
        assert isinstance(report, frames.Failed)
        assert report.text.startswith("InvalidParams at ")
        assert SECRET not in report.text
        other.counters.close()
    assert (child.communicate(timeout=60)[1], child.returncode) == ("", 0)


GIVES_UP = """
import sys
from fastclaw.network.egress import proxy_main
def fails(orders, *_):
    orders.recv(100)
    raise ValueError("{}")
proxy_main.receive = fails
proxy_main.own_process.run(proxy_main._main(int(sys.argv[1])))
"""


def test_what_it_cannot_go_on_with_is_told_to_fastclaw_and_not_to_stderr() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        child = run(GIVES_UP.format(SECRET), theirs)
    with ours:
        ours.send(b"{}")
        report = frames.parse_report(ours.recv(network_limits.EGRESS_FRAME_BYTES))
        assert (child.communicate(timeout=60)[1], child.returncode) == ("", 1)
        assert isinstance(report, frames.Logged)
        assert report.text.startswith("it gave up: ValueError at ")
        assert SECRET not in report.text


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
