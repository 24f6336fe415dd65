"""One container of an environment: created, started, connected, watched, killed, removed.

Owns the container and the pidfd of its init. Where the engine is on this host, its death is noticed at once, elsewhere
by the next exec. Knows nothing of what runs in it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fastclaw import limits
from fastclaw.errors import ExecFailed, FastclawError, StartFailed
from fastclaw.linux import proc
from fastclaw.linux.cgroups import MemoryWatch, count_in_file, group_of
from fastclaw.podman.api import EngineLifecycle
from fastclaw.podman.container_spec import spawner_pids
from fastclaw.podman.privileges import mask
from fastclaw.spawner import userdb
from fastclaw.spawner.link import greet
from fastclaw.spawner.spawn_lane import Home, Homes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from typing import Any

    from fastclaw.linux.cgroups import Group
    from fastclaw.podman.api import EngineLifecycle
    from fastclaw.podman.containers import Shards
    from fastclaw.spawner.frames import Identity
    from fastclaw.spawner.templates import Plans


_PROC = Path("/proc")


class Network(Protocol):
    """What a container is connected to."""

    async def attach(self, shard: Shard, init: int) -> None:
        """Connect one that has just come up, before anything runs in it.

        Parameters:
            init: pid of its init.

        Raises:
            StartFailed: `network_failed`; the container is given up.
        """

    def detach(self, shard: Shard) -> None:
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


_UCRED = struct.Struct("3i")


class SpawnShard(Shard, Home):
    """Parameters:
    engine, spec, on_death: as for `Shard`; the spec's init is the spawner.
    path: where the spec has the spawner's socket on this host.
    user: who its processes are by default, by name or number.
    plans: templates that come up with it.
    network: as for `Shard`.
    collect_bytes: what all runs together may collect.
    pids_limit: processes of its commands; what is ours comes on top of that.
    capabilities: of its commands that are root.
    root: who root inside is on this host.
    """

    has_execs = False

    def __init__(
        self,
        engine: EngineLifecycle,
        spec: Mapping[str, Any],
        on_death: Callable[[], None],
        *,
        path: str,
        user: str,
        plans: Plans | None = None,
        network: Network | None = None,
        collect_bytes: int = limits.RUN_OUTPUT_BYTES,
        pids_limit: int = limits.PIDS_LIMIT,
        capabilities: Sequence[str] = (),
        root: int = 0,
    ) -> None:
        super().__init__(engine, spec, 1, on_death, network)
        self.env = {}
        self.identity = None
        self._path = path
        self._user = user
        self._plans = plans
        self._collect_bytes = collect_bytes
        self._pids_limit = pids_limit
        self._capabilities = mask(capabilities)
        self._root = root
        self._user_files: list[bytes] = []
        self._known_users: dict[str, Identity] = {}

    async def start(self) -> None:
        """Create and start it, and let its spawner in.

        Raises:
            StartFailed: besides the engine's reasons: nothing connected in time, or something else than its init did.
        """
        listener = _listen(self._path, self._root)
        try:
            self._listener = listener
            await super().start()
        finally:
            listener.close()
            with suppress(FileNotFoundError):
                os.unlink(self._path)

    def _why_ended(self) -> str:
        return "its spawner could not run or not connect; set options.lane to rest to do without"

    async def _came_up(self, init: int) -> None:
        control = await self._accept(init)
        pids = PidsLimit(group_of(init, "pids"), self.container, self._pids_limit)
        self.spawner = await greet(
            control,
            confine=True,
            reaper_uid=limits.REAPER_UID,
            collect_bytes=self._collect_bytes,
            capabilities=self._capabilities,
            on_end=self.mark_dead,
            on_growth=pids.make_room,
        )
        self.env = self.spawner.hello.env
        if self.spawner.hello.can_set_user:
            try:
                self.identity = await self.identify(self._user)
            except ExecFailed as error:
                raise StartFailed(f"options.user or the image's user: {error}", "unknown_user") from error
        await self._connect(init)
        await self.start_templates(self._plans)
        if not self.spawner.alive:
            raise StartFailed("the container has ended while its templates came up")

    @property
    def _commands_pids(self) -> int:
        return self._pids_limit

    def _watch(self, init: int) -> None:
        super()._watch(init)
        self.spawner.memory = self.memory

    async def _accept(self, init: int) -> socket.socket:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(limits.SPAWN_HELLO_MS / 1000):
                control, _ = await loop.sock_accept(self._listener)
        except TimeoutError as error:
            raise StartFailed("the container's spawner did not connect; is the engine on this host?") from error
        peer, _, _ = _UCRED.unpack(control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if peer != init:
            control.close()
            raise StartFailed(f"process {peer} connected to the spawner's socket, and not the container's init {init}")
        return control

    async def identify(self, user: str) -> Identity | None:
        if not self.spawner.hello.can_set_user:
            raise ExecFailed("this container's spawner may not change users", "permission_denied")
        files = [await self.spawner.read_file(path) for path in ("/etc/passwd", "/etc/group")]
        if files != self._user_files or len(self._known_users) >= limits.KNOWN_USERS:
            self._user_files, self._known_users = files, {}
        if user in self._known_users:
            return self._known_users[user]
        known = self._known_users
        identity = known[user] = await _resolved(user, *(data.decode("utf-8", "replace") for data in files))
        return identity

    def _forget(self) -> None:
        super()._forget()
        if self.templates is not None:
            self.templates.stop()
        if hasattr(self, "spawner"):
            self.spawner.close()


class SpawnShards(Homes):
    """The containers of a spawn lane, as its homes.

    Parameters:
        shards: made of `SpawnShard`s.
    """

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    def take(self, shard: int) -> Home:
        home = self._shards.current(shard)
        assert isinstance(home, SpawnShard)
        return home

    def all(self) -> Sequence[Home]:
        return [shard for shard in self._shards.alive() if isinstance(shard, SpawnShard)]

    def health(self) -> dict[str, object]:
        homes = self.all()
        counts = [home.spawner.counts() for home in homes]
        templates = homes[0].templates_health() if homes else {}  # of the only place there is
        return {name: sum(count[name] for count in counts) for name in ("reapers", "kept")} | templates


async def _resolved(user: str, passwd: str, group: str) -> Identity:
    """Step by step: everybody else has the loop in between.

    Raises:
        ExecFailed: `unknown_user`, `permission_denied`.
    """
    steps = userdb.resolving(user, passwd, group)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            identity: Identity = done.value
            return identity
        await asyncio.sleep(0)


def _listen(path: str, owner: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        os.fchmod(listener.fileno(), 0o600)  # before bind: the path is born with this mode
        listener.bind(path)
        if owner:
            os.chown(path, owner, -1)
        listener.listen(1)
    except OSError as error:
        listener.close()
        raise StartFailed(f"cannot await the spawner at {path}: {error.strerror}", "io_error") from error
    return listener


logger = logging.getLogger(__name__)


class PidsLimit:
    """Parameters:
    group: where the pids controller has the container's init; None: nowhere that is seen from here.
    container: its id, which is in the name of its own groups: a limit further up is somebody else's.
    commands: what the commands may have.
    """

    def __init__(self, group: Group | None, container: str, commands: int) -> None:
        self._commands = commands
        nearest = group.nearest("pids.max") if group is not None else None
        self._file = nearest if nearest is not None and container in str(nearest) else None
        self._events = self._file.with_name("pids.events") if self._file is not None else None

    def make_room(self, reapers: int) -> None:
        """For so many reapers with their pumps."""
        if self._file is None:
            logger.info("no pids limit of the container is to be found; reapers count among its processes")
            return
        try:
            self._file.write_text(str(self._commands + spawner_pids(reapers)))
        except OSError as error:
            logger.warning("the container's pids limit cannot be raised: %s", error.strerror)
            self._file = None

    def health(self) -> dict[str, int]:
        """What the commands may have, and how often a fork was refused for it; nothing where no limit is in force."""
        if self._events is None:
            return {}
        return {"limit": self._commands, "hits": count_in_file(self._events, "max")}


def end_monitors(containers: Collection[str]) -> int:
    """End what monitors execs of these containers, which have been removed; return how many there were.

    Parameters:
        containers: their full ids.
    """
    return sum(_ended(pid, containers) for pid in proc.pids() if _is_monitor(pid, containers))


def _ended(pid: int, containers: Collection[str]) -> bool:
    with suppress(OSError):  # it has ended by itself, or belongs to somebody else
        pidfd = os.pidfd_open(pid)
        try:
            if _is_monitor(pid, containers):  # from the open on it cannot become another process
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                return True
        finally:
            os.close(pidfd)
    return False


def _is_monitor(pid: int, containers: Collection[str]) -> bool:
    """Of an exec: the container's own monitor has the container's id for its `-u` as well, and ends with it."""
    words = _command(pid)
    if os.path.basename(words[0]) != "conmon":
        return False
    container, session = (words[words.index(name) + 1] if name in words[:-1] else "" for name in ("-c", "-u"))
    return container in containers and session != container


def _command(pid: int) -> list[str]:
    with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb", buffering=0) as file:
        return file.read(limits.ENGINE_LOG_BYTES).decode("utf-8", "surrogateescape").split("\0")
    return [""]
