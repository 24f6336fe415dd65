"""Cutting bytes into lines: the rate, and that a long line costs no more per byte than a short one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.messages import chunks, exec_lines
from bench.ratios import Ratios, compare
from fastclaw import limits
from fastclaw.server.jsonrpc import LineFramer

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

LINES = 20_000
SHORT_LINE_BYTES = 2 * limits.MIB
LONG_LINE_BYTES = 16 * limits.MIB


def frame(reads: list[bytes]) -> list[object]:
    framer = LineFramer()
    return [line for read in reads for line in framer.feed(read)]


def test_exec_requests(benchmark: BenchmarkFixture, ratios: Ratios) -> None:
    lines = exec_lines(LINES)
    reads = chunks(lines, limits.READ_CHUNK_BYTES)
    assert frame(reads) == lines

    def split() -> None:
        assert len(b"".join(reads).split(b"\n")) == LINES + 1

    def framed() -> None:
        assert len(frame(reads)) == LINES

    found = compare(benchmark, framed, {"split": split}, rounds=9)
    ratios.compared("framing", "one bytes.split of it all", found.rates("split", LINES))


def test_a_long_line_in_pieces_is_never_scanned_again(benchmark: BenchmarkFixture, ratios: Ratios) -> None:
    long_line = chunks([b"x" * LONG_LINE_BYTES], limits.READ_CHUNK_BYTES)
    short_lines = chunks([b"x" * SHORT_LINE_BYTES] * (LONG_LINE_BYTES // SHORT_LINE_BYTES), limits.READ_CHUNK_BYTES)
    assert frame(long_line) == [b"x" * LONG_LINE_BYTES]

    def one_long() -> None:
        assert len(frame(long_line)) == 1

    def eight_short() -> None:
        assert len(frame(short_lines)) == LONG_LINE_BYTES // SHORT_LINE_BYTES

    found = compare(benchmark, one_long, {"short": eight_short}, rounds=9)
    ratios.compared("framing one line of 16 MiB", "eight of 2 MiB", found.times("short"))
