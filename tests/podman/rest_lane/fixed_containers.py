"""Containers that are there already and stay, for tests and benches of the lane alone."""

from collections.abc import Sequence

from fastclaw.podman.containers import Containers, Lease


class FixedLease(Lease):
    """A claim that is not counted."""

    __slots__ = ("_id",)

    def __init__(self, container: str) -> None:
        self._id = container

    @property
    def container(self) -> str:
        return self._id

    @property
    def memory(self) -> None:
        """Not looked at."""

    def give_back(self) -> None:
        """Nothing to do."""

    def lost(self) -> None:
        """Nothing to do."""


class FixedContainers(Containers):
    """One container per slot."""

    def __init__(self, containers: Sequence[str]) -> None:
        self._containers = containers

    def take(self, index: int) -> FixedLease:
        """The container of this slot."""
        return FixedLease(self._containers[index % len(self._containers)])

    async def kill(self) -> None:
        """They stay: whoever made them ends them."""
