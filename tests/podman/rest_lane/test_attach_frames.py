"""The multiplexed stream, in any split."""

from itertools import pairwise
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw.errors import ProtocolError
from fastclaw.podman.rest_lane.attach_frames import STDERR, STDOUT, Demultiplexer

frames = st.lists(st.tuples(st.sampled_from([STDOUT, STDERR]), st.binary(max_size=50)), max_size=12)


def encode(parts: list[tuple[int, bytes]]) -> bytes:
    """The stream that carries these frames."""
    return b"".join(pack(">BxxxI", stream, len(payload)) + payload for stream, payload in parts)


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
