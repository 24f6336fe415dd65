"""Containers that are there already and stay, for tests and benches of the lane alone."""

from collections.abc import Sequence


class FixedLease:
    """A claim that nobody counts."""

    def __init__(self, container: str) -> None:
        self.container = container
        self.memory = None

    def give_back(self) -> None:
        """Nothing to do."""

    def lost(self) -> None:
        """Nothing to do."""


class FixedContainers:
    """One container per shard."""

    def __init__(self, containers: Sequence[str]) -> None:
        self._containers = containers

    def take(self, index: int) -> FixedLease:
        """The container of this shard."""
        return FixedLease(self._containers[index % len(self._containers)])

    async def kill(self) -> None:
        """They stay: whoever made them ends them."""
