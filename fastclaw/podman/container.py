"""One container of an environment: created, started, connected, watched, killed, removed.

Owns the container and the pidfd of its init. Where the engine is on this host, its death is noticed at once, elsewhere
by the next exec. Knows nothing of what runs in it.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from fastclaw import limits
from fastclaw.errors import FastclawError, StartFailed
from fastclaw.linux import proc
from fastclaw.linux.cgroups import MemoryWatch, group_of
from fastclaw.podman.api import EngineLifecycle
from fastclaw.podman.monitors import end_monitors
from fastclaw.podman.pids_limit import PidsLimit

_PROC = Path("/proc")


class Network(Protocol):
    """What a container is connected to."""

    async def attach(self, shard: "Shard", init: int) -> None:
        """Connect one that has just come up, before anything runs in it.

        Parameters:
            init: pid of its init.

        Raises:
            StartFailed: `network_failed`; the container is given up.
        """

    def detach(self, shard: "Shard") -> None:
        """It has ended, or is about to. Idempotent, also for one that was never attached."""


class Shard:
    """Parameters:
    engine: the engine it lives in.
    spec: SpecGenerator JSON, as from `container_spec.container_spec`.
    init_processes: how many processes its init consists of.
    on_death: called once, when it is noticed that the container has ended.
    network: what it is connected to; None: to nothing that fastclaw has a part in.

    Attributes:
        container: its full id; empty before `start`.
        is_local: its processes are this host's.
        alive: as far as is known.
        started_at: when it came up, on the loop's clock.
        has_execs: the engine starts what runs in it, and monitors it.
        memory: what becomes of its memory, where its processes are this host's.
    """

    has_execs = True

    def __init__(
        self,
        engine: EngineLifecycle,
        spec: Mapping[str, Any],
        init_processes: int,
        on_death: Callable[[], None],
        network: Network | None = None,
    ) -> None:
        self._engine = engine
        self._network = network
        self._spec = spec
        self._init_processes = init_processes
        self._on_death = on_death
        self._creation: asyncio.Task[str] | None = None
        self._pidfd: int | None = None
        self.container = ""
        self.is_local = False
        self.alive = False
        self.started_at = 0.0
        self.memory: MemoryWatch | None = None
        self._pids: PidsLimit | None = None

    async def start(self) -> None:
        """Create and start it.

        Raises:
            StartFailed: with the engine's reason; `remove` takes back what is there.
        """
        self._creation = asyncio.get_running_loop().create_task(self._engine.create_container(self._spec))
        self.container = await asyncio.shield(self._creation)
        await self._engine.start_container(self.container)
        state = await self._engine.inspect_container(self.container)
        if state is None or not state.running or await self._has_ended(state.pid):
            raise StartFailed(f"the container ended at once; {self._why_ended()}")
        await self._came_up(state.pid)
        self.alive = True
        self.started_at = asyncio.get_running_loop().time()
        self._watch(state.pid)

    def _why_ended(self) -> str:
        """What to look at when the container ends at once."""
        return (
            f"does the image {self._spec['image']} have a /bin/sh? "
            "(it needs none where catatonit is installed on this host)"
        )

    async def _has_ended(self, init: int) -> bool:
        """Whether a container that the engine calls running has just ended: an engine of this host learns of it later.

        Where its init is not here, the engine has a proxy for a socket, and its containers are somewhere else.
        """
        if not self._engine.url.startswith("unix:"):
            return False
        for pause_ms in limits.GONE_LOOKS_MS:
            if (stat := proc.read_stat(init)) is not None and self._is_ours(init):
                return stat.gone
            await asyncio.sleep(pause_ms / 1000)
            state = await self._engine.inspect_container(self.container)
            if state is None or not state.running:
                return True
        return False

    async def _came_up(self, init: int) -> None:
        """What is to be done before it takes execs."""
        await self._connect(init)

    async def _connect(self, init: int) -> None:
        if self._network is not None:
            await self._network.attach(self, init)

    def _watch(self, init: int) -> None:
        """Take hold of the init, if that number is its own here and not on some other machine."""
        try:
            pidfd = os.pidfd_open(init)
        except (ProcessLookupError, ValueError):
            return
        except OSError as error:
            raise StartFailed(f"the container cannot be watched: {error.strerror}", "io_error") from error
        # Asked for after the open: a number that was given out anew in between does not carry our container's id.
        if not self._is_ours(init):
            os.close(pidfd)
            return
        self.is_local = True
        self._pidfd = pidfd
        self.memory = MemoryWatch(group_of(init, "memory"))
        self._pids = PidsLimit(group_of(init, "pids"), self.container, self._commands_pids)
        asyncio.get_running_loop().add_reader(pidfd, self.mark_dead)

    def _is_ours(self, init: int) -> bool:
        try:
            return self.container in (_PROC / str(init) / "cgroup").read_text(encoding="utf-8")
        except OSError:
            return False

    @property
    def _commands_pids(self) -> int:
        """Processes that its commands may have."""
        return int(self._spec["resource_limits"]["pids"]["limit"])

    def limits(self) -> dict[str, dict[str, int]]:
        """For `health`: each limit, and how often it was hit."""
        memory = {} if self.memory is None else {"memory": self.memory.health()}
        pids = {} if self._pids is None else self._pids.health()
        return {**memory, "pids": pids} if pids else memory

    def mark_dead(self) -> None:
        """The container has ended. Idempotent."""
        self._forget()
        if self.alive:
            self.alive = False
            self._on_death()

    def _forget(self) -> None:
        if self._network is not None:
            self._network.detach(self)
        if self._pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        if self.memory is not None:
            self.memory.close()

    async def is_idle(self) -> bool:
        """Whether nothing but its init runs in it. A container that cannot be asked is taken for busy."""
        with suppress(FastclawError):
            return await self._engine.count_processes(self.container) <= self._init_processes
        return False

    async def kill(self) -> None:
        """End everything in it at once: the kernel kills a PID namespace with its init (pid_namespaces(7))."""
        if self._pidfd is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        elif self.alive and not self.is_local:
            await self._engine.remove_container(self.container)

    async def remove(self) -> None:
        """Remove it with all that runs in it. Idempotent, also after a failed `start`."""
        self._forget()
        self.alive = False
        await self._finish_creation()
        if self.container:
            await self._engine.remove_container(self.container)
            if self.is_local and self.has_execs:
                await asyncio.to_thread(end_monitors, [self.container])

    async def _finish_creation(self) -> None:
        """A start that was cancelled: let the engine say what it creates, so that it can be removed here and now."""
        if self._creation is None or self.container:
            return
        await asyncio.wait((self._creation,), timeout=limits.ABANDONED_START_MS / 1000)
        self._creation.cancel()  # too late: the engine's thread removes what still comes
        with suppress(FastclawError, asyncio.CancelledError):
            self.container = await self._creation
