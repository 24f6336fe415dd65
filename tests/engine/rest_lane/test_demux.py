"""The relay between a hijacked connection and three pipes, over socket pairs."""

from __future__ import annotations

import asyncio
import os
import socket
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw.engine.rest_lane.demux import STDERR, STDOUT, Demultiplexer, Demux
from fastclaw.errors import ProtocolError
from fastclaw.limits import ATTACH_READ_BYTES
from fastclaw.linux.sockets import wait_readable
from tests.engine.rest_lane.rest_rig import frame
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TRAILER = b"Error: read unixpacket @->/proc/self/fd/16/attach: read: connection reset by peer\n"


def out(payload: bytes) -> bytes:
    """A frame of stdout."""
    return frame(payload, STDOUT)


def err(payload: bytes) -> bytes:
    """A frame of stderr."""
    return frame(payload, STDERR)


class Rig:
    """A relay with both of its sides in the test's hands."""

    def __init__(self, leftover: bytes = b"", *, merge_stderr: bool = False) -> None:
        self.engine, ours = socket.socketpair()
        self.engine.setblocking(False)
        ours.setblocking(False)
        self.stdin_source, self.stdin = os.pipe2(os.O_NONBLOCK)
        self.stdout, stdout = os.pipe2(os.O_NONBLOCK)
        self.stderr, stderr = os.pipe2(os.O_NONBLOCK)
        self.ends: list[Exception | None] = []
        self.ended = asyncio.Event()
        self.relay = Demux(ours, leftover, self.stdin_source, stdout, stderr, self._on_eof, merge_stderr=merge_stderr)

    def _on_eof(self, error: Exception | None) -> None:
        self.ends.append(error)
        self.ended.set()

    async def send(self, data: bytes) -> None:
        """As the engine."""
        await asyncio.get_running_loop().sock_sendall(self.engine, data)

    async def finish(self) -> None:
        """The engine closes, and the relay notices."""
        self.engine.close()
        await asyncio.wait_for(self.ended.wait(), 2)

    def close(self) -> None:
        """Give everything back."""
        self.relay.close()
        self.engine.close()
        for fd in (self.stdin, self.stdout, self.stderr):
            if fd >= 0:
                os.close(fd)

    def close_stdin(self) -> None:
        """As the runtime."""
        os.close(self.stdin)
        self.stdin = -1


async def read_some(fd: int, size: int = 1 << 20) -> bytes:
    """One read, as soon as there is something; b"" at the end."""
    await wait_readable(fd, 2000)
    return os.read(fd, size)


async def read_all(fd: int) -> bytes:
    """Until the end."""
    parts = []
    while part := await read_some(fd):
        parts.append(part)
    return b"".join(parts)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    """A relay without leftover bytes."""
    made = Rig()
    yield made
    made.close()


async def test_streams_are_told_apart_and_end_with_the_connection(rig: Rig) -> None:
    await rig.send(out(b"a") + err(b"b") + out(b"c") + err(b"d"))
    await rig.finish()
    assert (await read_all(rig.stdout), await read_all(rig.stderr), rig.ends) == (b"ac", b"bd", [None])


async def test_bytes_that_came_with_the_header_come_first() -> None:
    rig = Rig(out(b"first ")[:9])
    await rig.send(out(b"first ")[9:] + out(b"second"))
    await rig.finish()
    assert await read_all(rig.stdout) == b"first second"
    rig.close()


async def test_a_full_pipe_stops_reading_and_loses_nothing(rig: Rig) -> None:
    payload = bytes(range(256)) * 32
    sending = asyncio.ensure_future(rig.send(out(payload) * 200 + err(b"after")))
    await until(lambda: rig.relay._stdout.full)
    assert not rig.relay.awaits_engine  # so nothing more is read
    assert not sending.done()
    assert await read_all_of(rig, 200 * len(payload)) == payload * 200
    await sending
    await rig.finish()
    assert await read_all(rig.stderr) == b"after"


async def read_all_of(rig: Rig, size: int) -> bytes:
    """That many bytes of stdout."""
    parts = b""
    while len(parts) < size:
        parts += await read_some(rig.stdout)
    return parts


async def test_what_a_full_pipe_did_not_take_comes_after_the_engine_left(rig: Rig) -> None:
    data = b"x" * 70_000
    await rig.send(out(data) + err(b"y"))
    rig.engine.close()
    assert await read_all(rig.stdout) == data
    assert await read_all(rig.stderr) == b"y"
    assert rig.ends == [None]


async def test_many_tiny_frames_arrive_in_order(rig: Rig) -> None:
    count = ATTACH_READ_BYTES // 9
    await rig.send(b"".join(out(bytes((index % 256,))) for index in range(count)))
    await rig.finish()
    assert await read_all(rig.stdout) == bytes(index % 256 for index in range(count))


async def test_a_reader_that_left_stops_neither_the_other_stream_nor_the_end(rig: Rig) -> None:
    os.close(rig.stdout)
    await rig.send(out(b"x" * 200_000) + err(b"y"))
    assert await read_some(rig.stderr) == b"y"
    await rig.finish()
    rig.stdout = -1


async def test_a_reader_that_leaves_a_full_pipe_stops_neither(rig: Rig) -> None:
    sending = asyncio.ensure_future(rig.send(out(b"x" * 200_000) + err(b"y")))
    await until(lambda: rig.relay._stdout.full)
    os.close(rig.stdout)
    rig.stdout = -1
    assert await read_some(rig.stderr) == b"y"
    await sending
    await rig.finish()


async def test_stdin_flows_and_its_end_half_closes(rig: Rig) -> None:
    loop = asyncio.get_running_loop()
    os.write(rig.stdin, b"question")
    assert await loop.sock_recv(rig.engine, 100) == b"question"
    rig.close_stdin()
    assert await loop.sock_recv(rig.engine, 100) == b""
    await rig.send(out(b"answer"))
    assert await read_some(rig.stdout) == b"answer"


async def test_stdin_waits_for_a_slow_engine(rig: Rig) -> None:
    loop = asyncio.get_running_loop()
    data = bytes(range(256)) * 8192
    sent, received = 0, b""
    while len(received) < len(data):
        try:
            sent += os.write(rig.stdin, data[sent : sent + 65536])
        except BlockingIOError:
            received += await loop.sock_recv(rig.engine, 1 << 20)
            continue
        if sent == len(data):
            received += await loop.sock_recv(rig.engine, 1 << 20)
    assert received == data


async def test_a_failed_write_keeps_unread_output(rig: Rig) -> None:
    """The engine closes while stdin is under way: what it sent before must arrive, and the writer must learn of it."""
    await rig.send(out(b"last words") * 500 + err(b"bye"))
    rig.engine.close()
    os.write(rig.stdin, b"nobody reads this")
    await asyncio.wait_for(rig.ended.wait(), 2)
    assert await read_all(rig.stdout) == b"last words" * 500
    assert await read_all(rig.stderr) == b"bye"
    with pytest.raises(BrokenPipeError):
        os.write(rig.stdin, b"x")


async def test_a_reset_after_data_is_an_end(rig: Rig) -> None:
    """Closing with unread stdin resets a Unix socket; uvloop then announces the input once only."""
    os.write(rig.stdin, b"never read")
    await wait_readable(rig.engine.fileno(), 2000)
    await rig.send(out(b"x" * 1000) * 150)
    rig.engine.close()
    assert len(await read_all(rig.stdout)) == 150_000
    assert rig.ends == [None]


async def test_the_engines_last_line_is_kept_from_stderr(rig: Rig) -> None:
    await rig.send(err(b"mine\n") + err(TRAILER))
    await rig.finish()
    assert await read_all(rig.stderr) == b"mine\n"


@pytest.mark.parametrize("cut", [8, 9, 20, 60, len(TRAILER) + 7])
async def test_the_engines_last_line_in_two_reads(cut: int) -> None:
    rig = Rig((err(b"mine\n") + err(TRAILER))[: len(err(b"mine\n")) + cut])
    await rig.send(err(TRAILER)[cut:])
    await rig.finish()
    assert await read_all(rig.stderr) == b"mine\n"
    rig.close()


async def test_a_line_like_the_engines_that_is_not_the_last_is_the_commands(rig: Rig) -> None:
    await rig.send(err(TRAILER))
    await rig.send(err(b"more"))
    await rig.finish()
    assert await read_all(rig.stderr) == TRAILER + b"more"


async def test_short_output_is_not_held_back(rig: Rig) -> None:
    await rig.send(err(b"E"))
    assert await read_some(rig.stderr) == b"E"


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    ("frames", "wanted"),
    [
        ([out(b"a"), err(b"b"), out(b"c")], b"abc"),
        ([err(b"b"), err(b"c"), out(b"d"), err(b"e")], b"bcde"),
        ([out(b"a"), err(TRAILER)], b"a"),
        ([err(TRAILER), out(b"a")], TRAILER + b"a"),
        ([err(b"Error: read unixpacket @->x"), err(b"more")], b"Error: read unixpacket @->xmore"),
        ([], b""),
    ],
)
async def test_frames_of_both_streams_in_their_order(frames: list[bytes], wanted: bytes, size: int) -> None:
    rig = Rig(merge_stderr=True)
    assert os.read(rig.stderr, 1) == b""  # at its end at once
    data = b"".join(frames)
    for start in range(0, len(data), size):
        await rig.send(data[start : start + size])
        await asyncio.sleep(0)
    await rig.finish()
    assert (await read_all(rig.stdout), rig.ends) == (wanted, [None])
    rig.close()


@pytest.mark.parametrize("wire", [b"HTTP/1.1 500 x", out(b"abc")[:9]])
async def test_a_broken_stream_is_reported_once(rig: Rig, wire: bytes) -> None:
    await rig.send(wire)
    await rig.finish()
    [error] = rig.ends
    assert isinstance(error, ProtocolError)


# --- The frames, in any split ----------------------------------------------------------------------


frames = st.lists(st.tuples(st.sampled_from([STDOUT, STDERR]), st.binary(max_size=50)), max_size=12)


def encode(parts: list[tuple[int, bytes]]) -> bytes:
    """The stream that carries these frames."""
    return b"".join(frame(payload, stream) for stream, payload in parts)


def joined(parts: list[tuple[int, bytes]], wanted: int) -> bytes:
    """All payload of one stream."""
    return b"".join(payload for stream, payload in parts if stream == wanted)


@given(frames, st.lists(st.integers(min_value=0), max_size=10))
def test_any_split_gives_the_same_streams(parts: list[tuple[int, bytes]], cuts: list[int]) -> None:
    wire = encode(parts)
    places = [0, *sorted(cut % (len(wire) + 1) for cut in cuts), len(wire)]
    demultiplexer = Demultiplexer()
    seen = [
        (stream, bytes(payload))
        for start, end in pairwise(places)
        for stream, payload in demultiplexer.feed(memoryview(wire)[start:end])
    ]
    demultiplexer.feed_eof()
    assert joined(seen, STDOUT) == joined(parts, STDOUT)
    assert joined(seen, STDERR) == joined(parts, STDERR)


def test_payloads_are_slices_of_what_was_fed() -> None:
    data = bytearray(encode([(STDOUT, b"abc")]))
    [(_, payload)] = Demultiplexer().feed(memoryview(data))
    data[8:] = b"xyz"
    assert bytes(payload) == b"xyz"


@pytest.mark.parametrize(
    "header",
    [b"\x00\0\0\0\0\0\0\1", b"\x03\0\0\0\0\0\0\1", b"\x01\0\0\1\0\0\0\1", b"Error: c", b"\xff" * 8],
)
@pytest.mark.parametrize("cut", [0, 3, 8])
def test_garbage_is_refused(header: bytes, cut: int) -> None:
    demultiplexer = Demultiplexer()
    wire = memoryview(header)

    def feed_both() -> None:
        demultiplexer.feed(wire[:cut])
        demultiplexer.feed(wire[cut:])

    with pytest.raises(ProtocolError, match="frame header"):
        feed_both()


@pytest.mark.parametrize("size", [1, 7, 8, 10])
def test_an_end_inside_a_frame_is_an_error(size: int) -> None:
    demultiplexer = Demultiplexer()
    demultiplexer.feed(memoryview(encode([(STDERR, b"abc")]))[:size])
    with pytest.raises(ProtocolError, match="middle"):
        demultiplexer.feed_eof()
