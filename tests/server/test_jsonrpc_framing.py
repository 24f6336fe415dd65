"""Lines out of bytes, however they arrive."""

import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw.server.jsonrpc import OVERSIZED, LineFramer, Oversized

LIMIT = 8


def lines_of(chunks: list[bytes], limit: int = LIMIT) -> list[bytes | Oversized]:
    framer = LineFramer(limit)
    return [line for chunk in chunks for line in framer.feed(chunk)]


def naive(data: bytes, limit: int) -> list[bytes | Oversized]:
    """What the rules say, looking at everything at once."""
    complete, tail = data.split(b"\n")[:-1], data.split(b"\n")[-1]
    found: list[bytes | Oversized] = []
    for line in complete:
        bare = line.removesuffix(b"\r")
        if len(bare) > limit:
            found.append(OVERSIZED)
        elif bare.strip():
            found.append(bare)
    return [*found, OVERSIZED] if len(tail) > limit + 1 else found


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"a\n", [b"a"]),
        (b"a\r\n", [b"a"]),
        (b"a\r\r\n", [b"a\r"]),
        (b"\n\r\n \t\n", []),
        (b"a\nb\nc", [b"a", b"b"]),
        (b"12345678\n", [b"12345678"]),
        (b"12345678\r\n", [b"12345678"]),
        (b"123456789\na\n", [OVERSIZED, b"a"]),
        (b"123456789\r\na\n", [OVERSIZED, b"a"]),
        (b"\n\n123456789012345678901234567890\nok\n", [OVERSIZED, b"ok"]),
    ],
)
def test_lines(data: bytes, expected: list[bytes]) -> None:
    assert lines_of([data]) == expected
    assert lines_of([bytes([byte]) for byte in data]) == expected


@given(st.text(alphabet="ab\r\n \t", max_size=80).map(str.encode), st.lists(st.integers(0, 12)))
def test_chunks_do_not_matter(data: bytes, sizes: list[int]) -> None:
    chunks, rest = [], data
    for size in sizes:
        chunks.append(rest[:size])
        rest = rest[size:]
    assert lines_of([*chunks, rest]) == naive(data, LIMIT)


def test_a_line_over_the_limit_is_told_once_and_at_once() -> None:
    framer = LineFramer(LIMIT)
    assert framer.feed(b"x" * 20) == [OVERSIZED]
    assert len(framer._held) == 0
    assert framer.feed(b"x" * 20) == []
    assert framer.feed(b"x\ny\n") == [b"y"]


def test_the_unfinished_line_is_held() -> None:
    framer = LineFramer(LIMIT)
    assert framer.feed(b"abc") == []
    assert len(framer._held) == 3
    assert framer.feed(b"d\n") == [b"abcd"]
    assert len(framer._held) == 0


def test_small_pieces_take_no_more_memory_than_their_bytes() -> None:
    size = 1 << 18
    framer = LineFramer(size)
    pieces = [bytes((index & 0x3F | 0x40, 0x40)) for index in range(size // 2)]
    tracemalloc.start()
    for piece in pieces:
        framer.feed(piece)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(framer._held) == size
    assert used < 2 * size


def test_one_byte_pieces_cost_the_same_however_long_the_line() -> None:
    def cost(count: int) -> float:
        framer = LineFramer(1 << 24)
        began = time.process_time()
        for _ in range(count):
            framer.feed(b"x")
        return (time.process_time() - began) / count

    short = min(cost(10_000) for _ in range(3))
    long = min(cost(160_000) for _ in range(3))
    assert long < 4 * short  # rescanning would make it 16 times as dear
