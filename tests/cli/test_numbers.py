"""Numbers as options take them: within their bounds, and numbers."""

from __future__ import annotations

import click
import pytest

from fastclaw.cli.numbers import NumberRange


@pytest.mark.parametrize("text", ["nan", "-NaN", "inf", "-inf", "0.4", "61", "x", ""])
def test_what_is_no_number_within_the_bounds_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        NumberRange(0.5, 60).convert(text, None, None)


def test_a_number_within_the_bounds_is_taken() -> None:
    assert [NumberRange(0.5, 60).convert(text, None, None) for text in ("0.5", "7", "60")] == [0.5, 7.0, 60.0]
