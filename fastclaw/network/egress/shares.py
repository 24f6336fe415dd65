"""What all environments share and is scarce, and how much of it one may hold.

One may take another unit only while it holds fewer than are free. So one alone gets half of all, of n that want more
than there is each gets an (n + 1)th, and as much is always left for the next one to come: nobody reserves anything, and
nobody has to be told to give back. (The dynamic threshold by which switches share their memory among queues: Choudhury
and Hahne, "Dynamic queue length thresholds for shared-memory packet switches", IEEE/ACM Transactions on Networking
6(2), 1998.)
"""

from __future__ import annotations


class Pool:
    """Units that all environments share.

    Attributes:
        free: those that nobody holds.
    """

    __slots__ = ("free",)

    def __init__(self, units: int) -> None:
        self.free = units


class Share:
    """What one environment holds of a pool."""

    __slots__ = ("_pool", "held")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.held = 0

    def take(self, units: int = 1) -> bool:
        """Hold more, to be given back. False: as much as is free is held already."""
        if self.held + units > self._pool.free:
            return False
        self.held += units
        self._pool.free -= units
        return True

    def give_back(self, units: int = 1) -> None:
        """Hold less."""
        self.held -= units
        self._pool.free += units
