"""Containers that are there already and stay, for tests and benches of the lane alone."""

from collections.abc import Sequence

from fastclaw.podman.container import Container
from fastclaw.podman.containers import Containers


class FixedContainer(Container):
    """One that is neither watched nor counted."""

    def __init__(self, id: str) -> None:
        self.id, self.memory, self.live = id, None, 0

    def mark_dead(self) -> None:
        """Nothing to do."""


class FixedContainers(Containers):
    """One container per slot."""

    def __init__(self, containers: Sequence[str]) -> None:
        self._containers = [FixedContainer(id) for id in containers]

    def take(self, index: int) -> FixedContainer:
        """The container of this slot."""
        return self._containers[index % len(self._containers)]

    async def kill(self) -> None:
        """They stay: whoever made them ends them."""
