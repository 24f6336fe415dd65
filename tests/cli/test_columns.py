"""Numbers in as few characters as they can be read in."""

import pytest

from fastclaw.cli.columns import duration, pair, percent, seconds, share, size, table


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "-"),
        (0, "0B"),
        (999, "999B"),
        (1_000, "1.00kB"),
        (9_994, "9.99kB"),
        (9_996, "10.0kB"),
        (99_960, "100kB"),
        (999_499, "999kB"),
        (999_600, "1.00MB"),
        (25_300_000_000, "25.3GB"),
        (10**18, "1000PB"),
    ],
)
def test_a_size_has_three_digits(number: int | None, text: str) -> None:
    assert size(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(None, "-"), (0.0, "0.00%"), (99.99, "99.99%"), (99.996, "100.0%"), (12_800.0, "12800.0%")]
)
def test_hundredths(number: float | None, text: str) -> None:
    assert percent(number) == text


def test_a_share_of_nothing_is_not_known() -> None:
    assert [share(1, 4), share(None, 4), share(1, None), share(1, 0)] == ["25.00%", "-", "-", "-"]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (-0.5, "0.00s"),
        (0.004, "0.00s"),
        (9.99, "9.99s"),
        (9.999, "10.0s"),
        (99.96, "1m40s"),
        (3_599.6, "1h00m"),
        (86_399, "23h59m"),
        (90_000, "1d01h"),
        (99 * 86_400, "99d00h"),
    ],
)
def test_a_duration_has_at_most_six_characters(number: float, text: str) -> None:
    assert duration(number) == text
    assert len(text) <= 6


def test_processor_time_is_a_duration() -> None:
    assert [seconds(None), seconds(1_230_000)] == ["-", "1.23s"]


def test_of_two_unknown_ones_there_is_one_dash() -> None:
    assert [pair("-", "-"), pair("1B", "-"), pair("1B", "2B")] == ["-", "1B / -", "1B / 2B"]


def test_columns_are_as_wide_as_their_widest_entry() -> None:
    assert table([["A", "LONG"], ["wide", "x"]]) == "A      LONG\nwide   x"
