"""Durations and sizes as people give them, as the wire has them."""

import math
import re

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[kmgt]?)(?:i?b)?", re.IGNORECASE)
_FACTORS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
"""Powers of 1 024, with and without an `i`, as `podman run --memory` takes them."""

Size = int | str
"""Bytes, or a number with a unit: `2g`, `512m`, `64 KiB`."""


def size_bytes(size: Size) -> int:
    """A size in bytes.

    Raises:
        ValueError: it is none.
    """
    if isinstance(size, int):
        if size < 0:
            raise ValueError(f"a size is not negative: {size}")
        return size
    found = _SIZE.fullmatch(size.strip())
    if found is None:
        raise ValueError(f"{size!r} is no size; write bytes, or a number with k, m, g or t, as in '2g'")
    return int(float(found["number"]) * _FACTORS[found["unit"].lower()])


def milliseconds(seconds: float) -> int:
    """A duration in milliseconds, rounded up, so that a short one does not become none.

    Raises:
        ValueError: it is negative, or no number.
    """
    if not seconds >= 0 or math.isinf(seconds):
        raise ValueError(f"a duration is a number of seconds from 0 on, or None: {seconds}")
    return math.ceil(seconds * 1000)
