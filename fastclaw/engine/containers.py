"""The containers of an environment: one on the spawn lane, a number of them on the REST lane.

    slot ── container in use ── dead, or worn ──> successor takes over
                                │
                                └─ on the REST lane it drains until its last process has ended; then it is removed

A `Slot` owns the containers that it makes and every task it starts. How one comes up and goes is
`container.Container`'s affair.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fastclaw import limits
from fastclaw.engine.container import Container, SpawnerContainer
from fastclaw.errors import ExecFailed, FastclawError
from fastclaw.linux.helper import Backoff
from fastclaw.spawner.spawner_host import HostSlot, SpawnerHost

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from fastclaw.spawner.frames import Identity

logger = logging.getLogger(__name__)

C = TypeVar("C", bound=Container)

_COUNTED = ("hits", "oom_kills", "throttled_us", "cpu_pressure_us", "memory_pressure_us", "io_pressure_us")


class Slot(Generic[C]):
    """The container that takes execs, followed by another when it dies: ever later if they do not last.

    Parameters:
        make: makes a container, not started yet; gets the callback for its death.

    Attributes:
        container: the one in use, dead or alive; None before `start`.
        backoff: counts the containers in a row that did not last, or did not come up.
        replacing: brings a successor up.
    """

    def __init__(self, make: Callable[[Callable[[], None]], C]) -> None:
        self._make = make
        self._all: set[C] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self.container: C | None = None
        self.backoff = Backoff(self._loop.time)
        self.replacing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.container!r} of {len(self._all)}, {self.backoff.failures} failures>"

    def __len__(self) -> int:
        return 1

    @property
    def usable(self) -> C | None:
        """The container in use, if it is up."""
        return self.container if self.container is not None and self.container.alive else None

    @property
    def first(self) -> C | None:
        """The container in use."""
        return self.container

    @property
    def in_use(self) -> list[C]:
        """Those that take execs."""
        return [] if self.usable is None else [self.usable]

    @property
    def is_local(self) -> bool:
        """Whether the container in use is this host's."""
        return self.container is not None and self.container.is_local

    def counts(self) -> dict[str, int]:
        """For `health`: places, containers that take execs, containers in all."""
        return {"places": 1, "usable": int(self.usable is not None), "containers": len(self._all)}

    def limits(self) -> dict[str, dict[str, int]]:
        """For `health`: the limits of the container in use, and how often they were hit."""
        return {} if self.usable is None else self.usable.limits()

    # --- up and down ---

    async def start(self) -> None:
        """Bring the first container up.

        Raises:
            StartFailed: it did not come up; nothing is left of it.
        """
        container = self._make(lambda: self._died(container))
        self._all.add(container)
        try:
            await container.start()
        except BaseException:
            await self._remove(container)
            raise
        self.backoff.came_up()
        previous, self.container = self.container, container
        if previous is not None:
            self._own(self._retire(previous))

    async def kill(self) -> None:
        """End everything in every container at once, and replace none. If one resists, the error is raised then."""
        self._closed = True
        await _gather_all(container.kill() for container in self._all)

    async def aclose(self) -> None:
        """Remove every container. Idempotent. If one resists, the error is raised then."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        containers = list(self._all)
        self._all.clear()
        await _gather_all(container.remove() for container in containers)

    # --- execs ---

    def current(self) -> C:
        """The container for the next exec.

        Raises:
            ExecFailed: `container_gone`: it died and its successor is not there yet.
        """
        if self.usable is None:
            raise _gone()
        return self.usable

    # --- succession ---

    def _died(self, container: C) -> None:
        if self.container is not container or self._closed:
            return
        logger.warning("container %s is gone; replacing it", container.id[:12])
        self.backoff.ended()
        self._replace()

    def _replace(self) -> None:
        if self.replacing is None and not self._closed:
            self.replacing = self._own(self._succeed())

    async def _succeed(self) -> None:
        try:
            if self.usable is None:
                await asyncio.sleep(self.backoff.pause_s)
            while not self._closed:
                try:
                    await self.start()
                    return
                except FastclawError as error:
                    self.backoff.failed()
                    pause = self.backoff.pause_s
                    # As text: a log record that is kept must not keep the error's frames and their descriptors.
                    logger.warning("no new container (%s); trying again in %g s", str(error), pause)
                    await asyncio.sleep(pause)
        finally:
            self.replacing = None

    async def _retire(self, container: C) -> None:
        """Remove a container that has a successor."""
        await self._remove(container)

    async def _remove(self, container: C) -> None:
        try:
            await container.remove()
        except FastclawError as error:
            # Its labels say whose it is: the next initialize of the namespace removes it.
            logger.warning("container %s was not removed: %s", container.id[:12], str(error))
        self._all.discard(container)

    def _own(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class SpawnerSlot(Slot[SpawnerContainer], HostSlot):
    """The container of a spawn lane, as where its processes are started."""

    @property
    def host(self) -> SpawnerHost | None:
        """As `HostSlot.host`."""
        return None if self.usable is None else self.usable.host

    def take(self) -> SpawnerHost:
        """As `HostSlot.take`."""
        if (host := self.host) is None:
            raise _gone()
        return host

    @property
    def identity(self) -> Identity | None:
        """Who a process is that names no user, as far as is known."""
        return None if (host := self.host) is None else host.identity

    def health(self) -> dict[str, object]:
        """As `HostSlot.health`."""
        return {"reapers": 0, "kept": 0} if (host := self.host) is None else host.health()


class RotatingSlot(Slot[Container]):
    """A slot of the REST lane: its container is followed by a fresh one once it is worn, and drains.

    An engine keeps every exec session in the container's record and rewrites it whole at each step of each exec (Podman
    4.3.1: 26 starts/s on a fresh container, 12 on one with 1 100 sessions).

    Parameters:
        make: as for `Slot`.
        wears: a container is followed by a fresh one once it has served its number of execs.
    """

    def __init__(self, make: Callable[[Callable[[], None]], Container], *, wears: bool) -> None:
        super().__init__(make)
        self._wears = wears

    def take(self) -> Container:
        """The container for the next exec, which the caller gives back.

        Raises:
            ExecFailed: `container_gone`: it died and its successor is not there yet.
        """
        container = self.current()
        container.execs += 1
        container.live += 1
        if self._wears and container.execs >= limits.EXECS_PER_CONTAINER:
            self._replace()
        return container

    async def _retire(self, container: Container) -> None:
        """Wait until no process needs it, daemons that a command left included, then remove it."""
        while container.alive and (container.live or not await container.is_idle()):  # noqa: ASYNC110 - it sends no event
            await asyncio.sleep(limits.DRAIN_LOOK_MS / 1000)
        await super()._retire(container)


class Containers:
    """The containers of the REST lane.

    Parameters:
        count: slots.
        make: makes a container for a slot, not started yet; gets the slot's number and the callback for its death.
        wears: as for `RotatingSlot`. Not where there is one slot, whose container has the files of all execs.
    """

    def __init__(
        self, count: int, make: Callable[[int, Callable[[], None]], Container], *, wears: bool = False
    ) -> None:
        self.slots = [RotatingSlot(partial(make, index), wears=wears) for index in range(count)]

    def __len__(self) -> int:
        return len(self.slots)

    identity: Identity | None = None
    """Not known: the engine looks it up for each exec."""

    @property
    def first(self) -> Container | None:
        """One of those in use."""
        return self.slots[0].container

    @property
    def in_use(self) -> list[Container]:
        """Those that take execs."""
        return [container for slot in self.slots for container in slot.in_use]

    @property
    def is_local(self) -> bool:
        """Whether every container in use is this host's."""
        return all(slot.is_local for slot in self.slots)

    def counts(self) -> dict[str, int]:
        """As `Slot.counts`, of all slots together."""
        counts = [slot.counts() for slot in self.slots]
        return {name: sum(count[name] for count in counts) for name in counts[0]}

    def limits(self) -> dict[str, dict[str, int]]:
        """As `Slot.limits`: of each limit its peak in any container, and how often it was hit in all of them."""
        together: dict[str, dict[str, int]] = {}
        for slot in self.slots:
            for name, numbers in slot.limits().items():
                total = together.setdefault(name, {})
                for word, number in numbers.items():
                    before = total.get(word, 0)
                    total[word] = before + number if word in _COUNTED else max(before, number)
        return together

    async def start(self) -> None:
        """Fill every slot, all at once.

        Raises:
            StartFailed: one of them did not come up; `aclose` takes the others down.
        """
        await _gather_all(slot.start() for slot in self.slots)

    async def kill(self) -> None:
        """As `Slot.kill`."""
        await _gather_all(slot.kill() for slot in self.slots)

    async def aclose(self) -> None:
        """As `Slot.aclose`."""
        await _gather_all(slot.aclose() for slot in self.slots)

    def take(self, index: int) -> Container:
        """As `RotatingSlot.take`, of a slot."""
        return self.slots[index % len(self.slots)].take()


def _gone() -> ExecFailed:
    return ExecFailed("the container is gone and its successor is not up yet; try again", "container_gone")


async def _gather_all(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do all of it to the end, even if some of it fails; then raise the first error."""
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
