"""How figures are written. Pure."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def p_text(p: float) -> str:
    """A probability as papers have it."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def quantity(value: float, unit: str) -> str:
    """A value with its unit; seconds as the unit of time that suits them."""
    if unit == "s":
        size, unit = next((one for one in TIMES if value >= one[0]), TIMES[-1])
        value /= size
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{text}{unit}" if unit in ("", "/s") else f"{text} {unit}"


def spread(values: Sequence[float], unit: str) -> str:
    """The quartiles, where there are any."""
    if len(values) < 2:
        return ""
    low, _, high = (quantity(value, unit) for value in statistics.quantiles(values, method="inclusive"))
    return f"{low} to {high}"
