"""Resource limits by name, as `limits` of exec gives them: which there are, and their numbers.

Numbers are those of asm-generic/resource.h, which x86_64 and aarch64 use; names are those of prlimit(1) and containers.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from fastclaw.errors import InvalidParams

if TYPE_CHECKING:
    from collections.abc import Mapping

NUMBERS = {
    "cpu": 0,
    "fsize": 1,
    "data": 2,
    "stack": 3,
    "core": 4,
    "rss": 5,
    "nproc": 6,
    "nofile": 7,
    "memlock": 8,
    "as": 9,
    "locks": 10,
    "sigpending": 11,
    "msgqueue": 12,
    "nice": 13,
    "rtprio": 14,
    "rttime": 15,
}
"""getrlimit(2). Times are seconds (rttime: microseconds), sizes bytes."""

_MAX = 2**64 - 1
"""RLIM_INFINITY."""


def rlimits(limits: Mapping[str, int]) -> list[tuple[int, int]]:
    """Number and value of each.

    Raises:
        InvalidParams: an unknown name (`data.nearest`), or a value that is no limit.
    """
    return [(_number(name), _value(name, value)) for name, value in limits.items()]


def _number(name: str) -> int:
    number = NUMBERS.get(name)
    if number is None:
        nearest = next(iter(difflib.get_close_matches(name, NUMBERS, n=1)), None)
        hint = f"did you mean {nearest!r}?" if nearest else f"there are {', '.join(NUMBERS)}"
        path = f"$.limits.{name}"
        raise InvalidParams(f"{path}: no resource limit {name!r}; {hint}", path=path, nearest=nearest)
    return number


def _value(name: str, value: int) -> int:
    if not 0 <= value <= _MAX:
        path = f"$.limits.{name}"
        raise InvalidParams(f"{path} must be 0 to 2^64-1", path=path)
    return value
