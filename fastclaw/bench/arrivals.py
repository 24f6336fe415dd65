"""When the operations of an open loop are to begin. Knows no clock and draws nothing itself."""

import math
from collections.abc import Callable, Iterator

_NS = 1_000_000_000


def poisson(rate: float, draw: Callable[[], float]) -> Iterator[int]:
    """The moments, without end, in nanoseconds from the beginning, of arrivals that know nothing of each other.

    Parameters:
        rate: how many a second on average.
        draw: gives evenly spread numbers from 0 on and below 1.
    """
    at_s = 0.0
    while True:
        at_s -= math.log(1.0 - draw()) / rate
        yield round(at_s * _NS)
