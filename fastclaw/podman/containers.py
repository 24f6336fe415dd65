"""The containers of an environment: a fixed number of places, each with the container that takes the next exec.

    place ── container in use ── worn or dead ──> successor takes over
                                 │
                                 └─ drains until its last process has ended, then is removed

Owns every container and every task it starts. When a container is followed is `restart`'s rule; how one
comes up and goes is `Shard`'s.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from fastclaw import limits
from fastclaw.errors import ExecFailed, FastclawError
from fastclaw.linux.restart import Rotation, revival_delay_s
from fastclaw.podman.container import Shard
from fastclaw.processes.lane import Memory

logger = logging.getLogger(__name__)


_COUNTED = ("hits", "oom_kills")


class Lease:
    """One exec's claim on a container."""

    __slots__ = ("_rotation", "_shard")

    def __init__(self, shard: Shard, rotation: Rotation) -> None:
        self._shard = shard
        self._rotation = rotation

    @property
    def container(self) -> str:
        """Its full id."""
        return self._shard.container

    @property
    def memory(self) -> Memory | None:
        """What becomes of its memory, where that is to be seen."""
        return self._shard.memory

    def give_back(self) -> None:
        """The exec is over, or did not come about. Called once."""
        self._rotation.give_back()

    def lost(self) -> None:
        """The engine says that the container no longer runs: how it is noticed on another host."""
        self._shard.mark_dead()


class Place:
    """One place and who holds it."""

    __slots__ = ("failures", "index", "replacing", "shard")

    def __init__(self, index: int) -> None:
        self.index = index
        self.shard: Shard | None = None
        self.replacing: asyncio.Task[None] | None = None
        self.failures = 0


class Shards:
    """Parameters:
    count: places.
    make: a shard for a place, not started yet, and told whom to tell of its death.
    wears: a container is followed by a fresh one once it has served its number of execs. Not where it is the only one:
        whoever has files in it finds them again.
    """

    def __init__(self, count: int, make: Callable[[int, Callable[[], None]], Shard], *, wears: bool = False) -> None:
        self._make = make
        self._wears = wears
        self._places = [Place(index) for index in range(count)]
        self._rotations: dict[Shard, Rotation] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._loop = asyncio.get_running_loop()

    def __len__(self) -> int:
        return len(self._places)

    @property
    def is_local(self) -> bool:
        """Whether every container in use is this host's."""
        return all(place.shard is not None and place.shard.is_local for place in self._places)

    def counts(self) -> dict[str, int]:
        """For `health`: places, containers that take execs, containers in all."""
        return {"places": len(self._places), "usable": len(self.alive()), "containers": len(self._rotations)}

    def limits(self) -> dict[str, dict[str, int]]:
        """For `health`: the limits of each container in use, their peak, and how often they were hit in all of them."""
        together: dict[str, dict[str, int]] = {}
        for shard in self.alive():
            for name, numbers in shard.limits().items():
                total = together.setdefault(name, {})
                for word, number in numbers.items():
                    before = total.get(word, 0)
                    total[word] = before + number if word in _COUNTED else max(before, number)
        return together

    # --- up and down ---

    async def start(self) -> None:
        """Fill every place, all at once.

        Raises:
            StartFailed: one of them did not come up; `aclose` takes the others down.
        """
        _raise_first(await asyncio.gather(*(self._fill(place) for place in self._places), return_exceptions=True))

    async def kill(self) -> None:
        """End everything in every container at once, even if one resists; the first error is raised then."""
        self._closed = True
        _raise_first(await asyncio.gather(*(shard.kill() for shard in self._rotations), return_exceptions=True))

    async def aclose(self) -> None:
        """Remove every container, even if one resists; the first error is raised then."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        shards = list(self._rotations)
        self._rotations.clear()
        _raise_first(await asyncio.gather(*(shard.remove() for shard in shards), return_exceptions=True))

    async def _fill(self, place: Place) -> None:
        """Bring a container up and give it the place; what it replaces drains."""
        shard = self._make(place.index, lambda: self._died(place, shard))
        self._rotations[shard] = Rotation()
        try:
            await shard.start()
        except BaseException:
            await self._remove(shard)
            raise
        previous, place.shard = place.shard, shard
        if previous is not None:
            self._own(self._drain(previous))

    # --- execs ---

    def current(self, index: int) -> Shard:
        """The container in use at a place, for who does not wear it out.

        Raises:
            ExecFailed: `container_gone`: it died and its successor is not there yet.
        """
        shard = self._places[index % len(self._places)].shard
        if shard is None or not shard.alive:
            raise ExecFailed("the container is gone and its successor is not up yet; try again", "container_gone")
        return shard

    def alive(self) -> list[Shard]:
        """The containers in use that are up."""
        return [place.shard for place in self._places if place.shard is not None and place.shard.alive]

    def take(self, index: int) -> Lease:
        """The container for the next exec at a place.

        Raises:
            ExecFailed: `container_gone`: it died and its successor is not there yet.
        """
        place = self._places[index % len(self._places)]
        shard = self.current(index)
        rotation = self._rotations[shard]
        rotation.take()
        if self._wears and rotation.is_worn:
            self._replace(place)
        return Lease(shard, rotation)

    # --- rotation ---

    def _died(self, place: Place, shard: Shard) -> None:
        if place.shard is not shard or self._closed:
            return
        logger.warning("container %s is gone; replacing it", shard.container[:12])
        lived_s = self._loop.time() - shard.started_at
        place.failures = 0 if lived_s * 1000 >= limits.REVIVE_PROVEN_MS else place.failures + 1
        self._replace(place)

    def _replace(self, place: Place) -> None:
        if place.replacing is None and not self._closed:
            place.replacing = self._own(self._succeed(place))

    async def _succeed(self, place: Place) -> None:
        try:
            if place.shard is not None and not place.shard.alive:
                await asyncio.sleep(revival_delay_s(place.failures))
            while not self._closed:
                try:
                    await self._fill(place)
                    return
                except FastclawError as error:
                    place.failures += 1
                    pause = revival_delay_s(place.failures)
                    # As text: a record that somebody keeps must not keep the error's frames and their descriptors.
                    logger.warning("no new container (%s); trying again in %g s", str(error), pause)
                    await asyncio.sleep(pause)
        finally:
            place.replacing = None

    async def _drain(self, shard: Shard) -> None:
        """Wait until no process needs it, daemons that a command left included, then remove it."""
        while await self._is_needed(shard):  # noqa: ASYNC110 - the engine sends no event when a container falls idle
            await asyncio.sleep(limits.DRAIN_LOOK_MS / 1000)
        await self._remove(shard)

    async def _is_needed(self, shard: Shard) -> bool:
        return shard.alive and not (self._rotations[shard].is_drained and await shard.is_idle())

    async def _remove(self, shard: Shard) -> None:
        try:
            await shard.remove()
        except FastclawError as error:
            # Its labels say whose it is: the next initialize of the namespace removes it.
            logger.warning("container %s was not removed: %s", shard.container[:12], str(error))
        self._rotations.pop(shard, None)

    def _own(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _raise_first(results: Iterable[object]) -> None:
    for result in results:
        if isinstance(result, BaseException):
            raise result
