"""Numbers as `fastclaw stats` and `fastclaw top` write them. What is not known is a dash."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

UNKNOWN = "-"
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400


def size(number: int | None) -> str:
    """Bytes, as `podman stats` writes them: three digits and a decimal unit."""
    if number is None:
        return UNKNOWN
    value, unit = float(number), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.{_decimals(value) if unit else 0}f}{_UNITS[unit]}"


def _decimals(value: float) -> int:
    return 2 if value < 9.995 else 1 if value < 99.95 else 0


def percent(number: float | None) -> str:
    """Hundredths with their sign."""
    return UNKNOWN if number is None else f"{number:.{1 if number >= 99.995 else 2}f}%"


def share(part: int | None, whole: int | None) -> str:
    """A part in hundredths of the whole."""
    return UNKNOWN if part is None or not whole else percent(100 * part / whole)


def pair(first: str, second: str) -> str:
    """Two of a kind; a dash where neither is known."""
    return UNKNOWN if first == second == UNKNOWN else f"{first} / {second}"


def seconds(microseconds: int | None) -> str:
    """Processor time."""
    return UNKNOWN if microseconds is None else duration(microseconds / 1e6)


def duration(number: float) -> str:
    """Seconds in at most six characters, as far as a hundred days reach."""
    if number < 9.995:
        return f"{max(number, 0):.2f}s"
    if number < 99.95:
        return f"{number:.1f}s"
    whole = round(number)
    if whole < _HOUR:
        return f"{whole // _MINUTE}m{whole % _MINUTE:02}s"
    if whole < _DAY:
        return f"{whole // _HOUR}h{whole % _HOUR // _MINUTE:02}m"
    return f"{whole // _DAY}d{whole % _DAY // _HOUR:02}h"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest entry, three blanks apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("   ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
