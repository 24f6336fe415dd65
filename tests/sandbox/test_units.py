"""Sizes and durations as people give them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw.sandbox.units import milliseconds, size_bytes


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, 0),
        (17, 17),
        ("17", 17),
        ("2g", 2 << 30),
        ("2G", 2 << 30),
        ("512m", 512 << 20),
        ("64 KiB", 64 << 10),
        ("64kb", 64 << 10),
        ("1.5k", 1536),
        ("1t", 1 << 40),
        (" 3b ", 3),
    ],
)
def test_sizes(size: int | str, expected: int) -> None:
    assert size_bytes(size) == expected


@pytest.mark.parametrize("size", ["", "g", "2x", "-1", "1e3", "2 g g", "0x10", "1.", "²"])
def test_what_is_no_size_is_told_how_to_write_one(size: str) -> None:
    with pytest.raises(ValueError, match="is no size; write bytes, or a number with k, m, g or t"):
        size_bytes(size)


def test_a_size_is_not_negative() -> None:
    with pytest.raises(ValueError, match="not negative"):
        size_bytes(-1)


@given(st.floats(min_value=0, max_value=1e6))
def test_a_duration_never_becomes_shorter(seconds: float) -> None:
    made = milliseconds(seconds)
    assert made >= seconds * 1000 > made - 1 or made == seconds == 0


@pytest.mark.parametrize("seconds", [-1, -0.001, float("nan"), float("inf")])
def test_what_is_no_duration(seconds: float) -> None:
    with pytest.raises(ValueError, match="number of seconds"):
        milliseconds(seconds)
