"""A container whose init is our spawner: a shard of the spawn lane.

Owns the socket that its spawner connects to, for as long as that takes: one connection, from the container's own init
process, and then the socket is gone. Knows nothing of what is started.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from fastclaw import limits
from fastclaw.errors import ExecFailed, StartFailed
from fastclaw.linux.cgroups import group_of
from fastclaw.podman.capabilities import mask
from fastclaw.podman.container import Shard
from fastclaw.podman.pids_limit import PidsLimit
from fastclaw.spawner import userdb
from fastclaw.spawner.link import greet
from fastclaw.spawner.spawn_lane import Home, Homes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from fastclaw.podman.api import EngineLifecycle
    from fastclaw.podman.container import Network
    from fastclaw.podman.containers import Shards
    from fastclaw.spawner.frames import Identity
    from fastclaw.spawner.templates import Plans

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
