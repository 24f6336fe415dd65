"""One container of an environment: created, started, connected, watched, killed, removed.

`Container` owns the container and the pidfd of its init. Where the engine is on this host, its death is noticed at
once, elsewhere by the next exec. `SpawnerContainer` is one whose init is our spawner, as on the spawn lane. Neither
knows what runs in it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fastclaw import environment_limits, limits, stages
from fastclaw.engine.container_spec import mask, spawner_pids
from fastclaw.engine.monitors import end_monitors
from fastclaw.errors import ExecFailed, FastclawError, StartFailed
from fastclaw.linux import proc
from fastclaw.linux.cgroups import (
    CGROUPS,
    MemoryWatch,
    count_in_file,
    group_in,
    group_of,
    held_limits,
    pressure_in,
    processors,
)
from fastclaw.linux.command_groups import CommandGroups
from fastclaw.linux.meter import Meter
from fastclaw.linux.sockets import listen_privately, peer
from fastclaw.spawner import users
from fastclaw.spawner.link import greet
from fastclaw.spawner.spawner_host import SpawnerHost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from fastclaw.engine.podman_client import ContainerState
    from fastclaw.linux.cgroups import Group
    from fastclaw.spawner.frames import Identity
    from fastclaw.spawner.link import Spawner
    from fastclaw.spawner.templates import Plans
    from fastclaw.stages import Flight

logger = logging.getLogger(__name__)

_PROC = Path("/proc")


class ContainerEngine(Protocol):
    """What makes containers: an `api.EngineLifecycle`, or a `clones.cloning.CloningEngine` over one."""

    @property
    def url(self) -> str:
        """The engine's."""

    async def create_container(self, spec: Mapping[str, Any]) -> str:
        """As `EngineLifecycle.create_container`, and so on."""

    async def start_container(self, container: str) -> None: ...

    async def inspect_container(self, container: str) -> ContainerState | None: ...

    async def count_processes(self, container: str) -> int: ...

    async def remove_container(self, container: str) -> None: ...

    async def create_volume(self, name: str, labels: Mapping[str, str], owner: str | None = None) -> None: ...

    async def remove_volume(self, name: str) -> None: ...


class Network(Protocol):
    """What a container is connected to."""

    async def attach(self, container: Container, init: int) -> None:
        """Connect one that has just come up, before anything runs in it.

        Parameters:
            init: pid of its init.

        Raises:
            StartFailed: `network_failed`; the container is given up.
        """

    def detach(self, container: Container) -> None:
        """It has ended, or is about to. Idempotent, also for one that was never attached."""


class Container:
    """A container of an engine.

    Parameters:
        engine: the engine it lives in.
        spec: SpecGenerator JSON, as from `container_spec.container_spec`.
        init_processes: how many processes its init consists of.
        on_death: called once, when it is noticed that the container has ended.
        network: what it is connected to; None: to nothing that fastclaw has a part in.
        flight: of the start of its environment; one that comes after the first, or later, changes nothing of it.

    Attributes:
        id: its full id; empty before `start`.
        is_local: its processes are this host's, and ours to signal.
        alive: as far as is known.
        memory: its memory and what was killed for want of it, where its processes are this host's.
        meter: reads what it takes, where its processes are this host's.
        held: the controllers of cgroups that hold a limit of its own; None where its processes are not this host's.
        execs, live: on the REST lane: how many execs it has been given, and how many of them are not over.
    """

    _has_execs = True
    """The engine starts what runs in it, and monitors it."""

    def __init__(
        self,
        engine: ContainerEngine,
        spec: Mapping[str, Any],
        init_processes: int,
        on_death: Callable[[], None],
        network: Network | None = None,
        flight: Flight | None = None,
    ) -> None:
        self._engine = engine
        self._network = network
        self._flight = flight or stages.unseen(stages.ENVIRONMENT_STAGES)
        self._spec = spec
        self._init_processes = init_processes
        self._on_death = on_death
        self._creation: asyncio.Task[str] | None = None
        self._pidfd: int | None = None
        self._commands = int(spec["resource_limits"]["pids"]["limit"])
        self._pids = PidsLimit(None, "", self._commands)
        self._cpu: Group | None = None
        self.id = ""
        self.is_local = False
        self.alive = False
        self.memory: MemoryWatch | None = None
        self.meter: Meter | None = None
        self.held: frozenset[str] | None = None
        self.execs = self.live = 0
        self._dead = asyncio.Event()

    def __repr__(self) -> str:
        state = "up" if self.alive else "not up"
        return f"<{type(self).__name__} {self._spec['name']} {self.id[:12] or 'not created'} {state}>"

    @property
    def name(self) -> str:
        """Its name."""
        return str(self._spec["name"])

    async def start(self) -> None:
        """Create and start it.

        Raises:
            StartFailed: with the engine's reason; `remove` takes back what is there.
        """
        self._creation = asyncio.get_running_loop().create_task(self._engine.create_container(self._spec))
        self.id = await asyncio.shield(self._creation)
        await self._engine.start_container(self.id)
        self._flight.reach(stages.MADE)
        _take_back_null(self._spec)
        state = await self._engine.inspect_container(self.id)
        if state is None or not state.running or await self._has_ended(state.pid):
            raise StartFailed(f"the container ended at once; {self._why_ended()}")
        self._flight.reach(stages.UP)
        self._pids = PidsLimit(group_of(state.pid, "pids"), self.id, self._commands)
        await self._came_up(state.pid)
        self.alive = True
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
            state = await self._engine.inspect_container(self.id)
            if state is None or not state.running:
                return True
        return False

    async def _came_up(self, init: int) -> None:
        """What is to be done before it takes execs."""
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
        self.is_local = _may_signal(pidfd)
        self._pidfd = pidfd
        memberships = _text(_PROC / str(init) / "cgroup")
        memory, cpu = (group_in(memberships, controller, CGROUPS) for controller in ("memory", "cpu"))
        self.memory = MemoryWatch(memory if self.id in str(memory) else None)
        self.meter = Meter(init, self.id)
        self._cpu = cpu if self.id in str(cpu) else None
        self.held = held_limits(memberships, self.id)
        asyncio.get_running_loop().add_reader(pidfd, self.mark_dead)

    def _is_ours(self, init: int) -> bool:
        """By its id in the names of its control groups, or of the files that the engine has mounted in it: a rootless
        engine without a systemd of its user's makes no groups."""
        return any(self.id in _text(_PROC / str(init) / name) for name in ("cgroup", "mountinfo"))

    async def listen_inside(self, port: int) -> socket.socket:
        """A socket that listens on its loopback device.

        Raises:
            ExecFailed: it has no spawner that could; or that cannot.
        """
        raise ExecFailed("it has no spawner", "unsupported")

    def limits(self) -> dict[str, dict[str, int]]:
        """For `health`: each limit, and how often it was hit."""
        memory = {} if self.memory is None else self.memory.health()
        pressure = pressure_in(self._cpu.folder) if self._cpu is not None and self._cpu.is_unified else {}
        found = {"memory": memory, "cpu": processors(self._cpu), "pids": self._pids.health(), "pressure": pressure}
        return {name: numbers for name, numbers in found.items() if numbers}

    def mark_dead(self) -> None:
        """The container has ended, as its pidfd, its spawner or an exec says. Idempotent."""
        self._close()
        self._dead.set()
        if self.alive:
            self.alive = False
            self._on_death()

    def _close(self) -> None:
        """Let go of what is held of it here. Idempotent."""
        if self._network is not None:
            self._network.detach(self)
        if self._pidfd is not None:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None
        if self.memory is not None:
            self.memory.close()

    def give_back(self) -> None:
        """An exec of the REST lane is over, or did not come about."""
        self.live -= 1

    async def is_idle(self) -> bool:
        """Whether nothing but its init runs in it. A container that cannot be asked is taken for busy."""
        with suppress(FastclawError):
            return await self._engine.count_processes(self.id) <= self._init_processes
        return False

    async def kill(self) -> None:
        """End everything in it at once: the kernel kills a PID namespace with its init, which is dead once all others
        are (pid_namespaces(7))."""
        if self._pidfd is not None and self.is_local:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            with suppress(TimeoutError):  # its removal follows, and says what is wrong
                await asyncio.wait_for(self._dead.wait(), environment_limits.RESET_KILL_MS / 1000)
        elif self.alive and not self.is_local:
            await self._engine.remove_container(self.id)

    async def remove(self) -> None:
        """Remove it with all that runs in it. Idempotent, also after a failed `start`."""
        self._close()
        self.alive = False
        await self._finish_creation()
        self._on_death, self._creation = _nothing, None
        if self.id:
            await self._engine.remove_container(self.id)
            if self.is_local and self._has_execs:
                await asyncio.to_thread(end_monitors, [self.id])

    async def _finish_creation(self) -> None:
        """A start that was cancelled: let the engine say what it creates, so that it can be removed here and now."""
        if self._creation is None or self.id:
            return
        await asyncio.wait((self._creation,), timeout=limits.ABANDONED_START_MS / 1000)
        self._creation.cancel()  # too late: the engine's thread removes what still comes
        with suppress(FastclawError, asyncio.CancelledError):
            self.id = await self._creation


def _text(path: Path) -> str:
    """Of a file in /proc; empty where it cannot be read any more."""
    with suppress(OSError):
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    return ""


def _may_signal(pidfd: int) -> bool:
    """An engine of root's that an ordinary user may ask has processes that are root's."""
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except PermissionError:
        return False
    except ProcessLookupError:
        pass  # it has ended, and its pidfd says so
    return True


def _take_back_null(spec: Mapping[str, Any]) -> None:
    """Have /dev/null belong to this host's root again.

    crun gives its streams to root inside (1.8.1, maybe_chown_std_streams), and conmon's stdin is the host's /dev/null,
    which is the containers' too: with a user namespace, root inside could have forbidden everybody to open it.
    """
    for mapping in spec.get("idmappings", {}).get("UIDMap", ()):
        with suppress(OSError):  # the engine is on another host, or we are not root
            if os.stat(os.devnull).st_uid == mapping["host_id"]:
                os.chown(os.devnull, 0, 0)


def _lend_working_dir(init: int, root: int) -> None:
    """Have a working directory that was not in the image belong inside to whom it belongs by its number.

    Podman makes it without regard to the user namespace (4.3.1, `resolveWorkDir` in libpod/container_internal.go), so
    that inside it would be nobody's, where nobody could write. The init is in it, and so far runs nothing but us; the
    directories above it that were made with it stay as they are, and can be gone through.
    """
    with suppress(OSError):  # the engine is on another host, or we are not root
        path = f"/proc/{init}/cwd"
        found = os.stat(path)
        if found.st_uid < limits.IDS <= root:
            os.chown(path, root + found.st_uid, root + found.st_gid)


class SpawnerContainer(Container):
    """A container whose init is our spawner.

    Owns the socket that its spawner connects to, for as long as that takes: one connection, from the container's own
    init process, and then the socket is gone.

    Parameters:
        engine, spec, on_death, network: as for `Container`; the spec's init is the spawner.
        path: where the spec has the spawner's socket on this host.
        user: who its processes are by default, by name or number.
        plans: templates that come up with it.
        collect_bytes: what all runs together may collect.
        pids_limit: processes of its commands; what is ours comes on top of that.
        capabilities: of its commands that are root.
        root: who root inside is on this host; None: a user whose files are not ours to make.
        secret: by which its init is known where another process connects for it (gvisor.py); None: by its pid.

    Attributes:
        host: where its processes are started, once it has come up.
    """

    _has_execs = False

    def __init__(
        self,
        engine: ContainerEngine,
        spec: Mapping[str, Any],
        on_death: Callable[[], None],
        *,
        path: str,
        user: str,
        plans: Plans | None = None,
        network: Network | None = None,
        flight: Flight | None = None,
        collect_bytes: int = limits.RUN_OUTPUT_BYTES,
        pids_limit: int = limits.PIDS_LIMIT,
        capabilities: Sequence[str] = (),
        root: int | None = 0,
        secret: str | None = None,
    ) -> None:
        super().__init__(engine, spec, 1, on_death, network, flight)
        self._path = path
        self._user = user
        self._plans = plans
        self._collect_bytes = collect_bytes
        self._commands = pids_limit
        self._capabilities = mask(capabilities)
        self._root = root
        self._secret = secret
        self.host: ContainerHost | None = None

    async def start(self) -> None:
        """Create and start it, and let its spawner in.

        Raises:
            StartFailed: besides the engine's reasons: nothing connected in time, or something else than its init did.
        """
        with _listening(self._path, self._root) as self._listener:
            await super().start()

    def _why_ended(self) -> str:
        return "its spawner could not run or not connect; set options.lane to rest to do without"

    async def _came_up(self, init: int) -> None:
        if self._root is not None:
            _lend_working_dir(init, self._root)
        spawner = await greet(
            await self._accept(init),
            confine=True,
            reaper_uid=limits.REAPER_UID,
            collect_bytes=self._collect_bytes,
            capabilities=self._capabilities,
            secret=self._secret,
            on_end=self.mark_dead,
            on_growth=self._pids.make_room,
        )
        self.host = ContainerHost(spawner)
        why_none = None if self._secret is None else "what runs in gVisor is one process of this host"
        memberships = _text(_PROC / str(init) / "cgroup")
        self.host.groups = CommandGroups(memberships, within=self.id, why_none_at_all=why_none)
        if spawner.hello.can_set_user:
            try:
                self.host.identity = await self.host.identify(self._user)
            except ExecFailed as error:
                raise StartFailed(f"options.user or the image's user: {error}", "unknown_user") from error
        await super()._came_up(init)
        await self.host.start_templates(self._plans)
        if not spawner.alive:
            raise StartFailed("the container has ended while its templates came up")

    async def _accept(self, init: int) -> socket.socket:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(limits.SPAWN_HELLO_MS / 1000):
                control, _ = await loop.sock_accept(self._listener)
        except TimeoutError as error:
            if await self._has_ended(init):  # after the first look
                raise StartFailed(f"the container ended at once; {self._why_ended()}") from error
            raise StartFailed("the container's spawner did not connect; is the engine on this host?") from error
        pid, _ = peer(control)
        if pid != init and self._secret is None:
            control.close()
            raise StartFailed(f"process {pid} connected to the spawner's socket, and not the container's init {init}")
        return control

    def _watch(self, init: int) -> None:
        super()._watch(init)
        if self.host is not None:
            self.host.spawner.memory = self.memory

    async def remove(self) -> None:
        """As for `Container`."""
        if self.host is not None and self.host.groups is not None:
            await self.host.groups.aclose()
        await super().remove()

    async def listen_inside(self, port: int) -> socket.socket:
        """As for `Container`: its spawner listens."""
        if self.host is None:
            return await super().listen_inside(port)
        listener, _ = await self.host.spawner.listen_inside(port)
        return listener

    def _close(self) -> None:
        super()._close()
        if self.host is not None:
            if self.host.templates is not None:
                self.host.templates.cancel()
            self.host.spawner.close()


class ContainerHost(SpawnerHost):
    """The inside of a container, as a spawn lane starts processes there.

    Parameters:
        spawner: the container's init, which has been greeted.
    """

    def __init__(self, spawner: Spawner) -> None:
        self.spawner = spawner
        self.env = spawner.hello.env
        self.identity = None
        self._user_files: list[bytes] = []
        self._known_users: dict[str, Identity] = {}

    async def identify(self, user: str) -> Identity | None:
        """As `SpawnerHost.identify`, by the container's own /etc/passwd and /etc/group as they are now."""
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


async def _resolved(user: str, passwd: str, group: str) -> Identity:
    """In steps, between which the loop goes on.

    Raises:
        ExecFailed: `unknown_user`, `permission_denied`.
    """
    steps = users.resolving(user, passwd, group)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            identity: Identity = done.value
            return identity
        await asyncio.sleep(0)


@contextmanager
def _listening(path: str, owner: int | None) -> Iterator[socket.socket]:
    """A socket of one user's that a spawner is awaited at; afterwards it is gone. Without an owner it is open to all
    who get there: its directory is ours alone, and of who connects the pid is asked."""
    try:
        listener = socket.socket(fileno=listen_privately(path, socket.SOCK_SEQPACKET, 1, owner or 0))
    except OSError as error:
        raise StartFailed(f"cannot await the spawner at {path}: {error.strerror}", "io_error") from error
    try:
        with listener:
            if owner is None:
                os.chmod(path, 0o666)
            listener.setblocking(False)
            yield listener
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)


class PidsLimit:
    """The pids limit of a container, raised by what is ours in it: the user's limit is for the commands alone.

    It is raised as reapers are added, and not for all that there could ever be: a fork bomb takes whatever is free.
    Where the cgroup cannot be written to, what is ours counts among the commands' from some number of processes on.

    Parameters:
        group: where the pids controller has the container's init; None: nowhere that is seen from here.
        container: its id, which is in the name of its own groups: a limit further up is not the container's.
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
            return
        try:
            self._file.write_text(str(self._commands + spawner_pids(reapers)))
        except OSError as error:
            logger.info("the container's pids limit cannot be raised: %s", error.strerror)  # docs/docker.md
            self._file = None

    def health(self) -> dict[str, int]:
        """What the commands may have, and how often a fork was refused for it; nothing where no limit is in force."""
        if self._events is None:
            return {}
        return {"limit": self._commands, "hits": count_in_file(self._events, "max")}


def _nothing() -> None:
    """For one that has been removed, and has nobody to tell."""
