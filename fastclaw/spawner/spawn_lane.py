"""The spawn lane: one message to a resident spawner, one vfork there, no engine in between.

Owns how a `StartSpec` becomes a request: environment, user, limits, streams. What a spawner is init of, and who brings
it back when it has ended, is the business of whoever gives it (`Home`).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.linux.rlimits import rlimits
from fastclaw.processes.lane import PROCESS_ID_VARIABLE, Collection, Grace, Lane, LaneProcess, StartSpec
from fastclaw.spawner import frames
from fastclaw.spawner.spawn_process import SpawnProcess, text_refused
from fastclaw.spawner.templates import Plans, Templates, common_env, flags_of, gone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastclaw.spawner.link import Spawner


class Home(ABC):
    """Where processes are started: a spawner, and what must be known of its surroundings.

    Attributes:
        spawner: takes the requests.
        env: what every process gets before the request's own variables.
        identity: who a process is that names no user; None leaves it who its spawner is.
        templates: what may be forked, where there is anything.
    """

    spawner: Spawner
    env: dict[str, str]
    identity: frames.Identity | None
    templates: Templates | None = None

    async def start_templates(self, plans: Plans | None) -> None:
        """Bring its templates up. The spawner is.

        Raises:
            StartFailed: see `Templates.start`.
        """
        if plans is not None:
            self.templates = Templates(plans, self)
            await self.templates.start()

    def templates_health(self) -> dict[str, object]:
        """For `health`, where there are any."""
        return {} if self.templates is None else {"templates": self.templates.health()}

    @abstractmethod
    async def identify(self, user: str) -> frames.Identity | None:
        """Who `user` is inside: a name or a number, either with `:group`; None is who its spawner is.

        Raises:
            ExecFailed: `unknown_user`, `permission_denied`.
        """


class Homes(ABC):
    """The homes there are."""

    @abstractmethod
    def take(self, shard: int) -> Home:
        """The one for the next start.

        Raises:
            ExecFailed: `container_gone`, it is dead and its successor is not up yet.
        """

    @abstractmethod
    def all(self) -> Sequence[Home]:
        """Those that are up."""

    @abstractmethod
    def health(self) -> dict[str, object]:
        """What `health` says of them."""


class SpawnLane(Lane):
    """Parameters:
    homes: where processes are started; the caller's to bring up and down.
    """

    name = "spawn"
    files_each = limits.FILES_PER_PUMPED

    def __init__(self, homes: Homes, *, can_set_user: bool) -> None:
        self._homes = homes
        self._environments = Environments()
        self.capabilities = [
            *(["user"] if can_set_user else []),
            "signal",
            "kill_tree",
            "usage",
            "separate_eof",
            "signal_number",
            "reopen_stdio",
            "limits",
            "tty",
            "template",
        ]

    async def start(self, spec: StartSpec, shard: int) -> LaneProcess:
        """Send the request for one process. Once its turn has come, nothing is awaited: nobody can cut in half-way.

        Only a template's worker is waited for, which is there before it is ours.
        """
        return await self._begin(spec, None, shard)

    async def run(self, spec: StartSpec, collection: Collection, shard: int) -> LaneProcess:
        return await self._begin(spec, collection, shard)

    async def _begin(self, spec: StartSpec, collection: Collection | None, shard: int) -> LaneProcess:
        home = self._homes.take(shard)
        if spec.template is not None:
            return await _forked(spec, collection, home)
        identity = home.identity if spec.user is None else await home.identify(spec.user)
        if not home.spawner.has_room:
            await home.spawner.make_room()
        id = home.spawner.next_id()
        request = self._request(id, spec, collection, home, identity)
        process = SpawnProcess(home.spawner, id, spec, collection)
        home.spawner.start(process, request)
        return process

    def _request(
        self, id: int, spec: StartSpec, collection: Collection | None, home: Home, identity: frames.Identity | None
    ) -> frames.Start:
        command = spec.cmd[0]
        if not command:
            raise ExecFailed("an empty command", "not_found")
        try:
            return frames.start(
                id,
                frames.strings(spec.cmd),
                self._environments.encode(spec, home, identity),
                directory=spec.working_dir,
                flags=flags_of(spec, has_stdin=spec.stdin if collection is None else True),
                tty=spec.tty,
                identity=identity,
                rlimits=rlimits(spec.limits) if spec.limits else (),
                collection=collection,
            )
        except ValueError as error:
            raise text_refused(command, error) from error

    async def end_all(self, processes: list[LaneProcess], grace: Grace) -> None:
        """End everything that is kept, and what commands that ended before have left.

        Raises:
            ExecFailed: `engine_timeout`.
        """
        for home in self._homes.all():
            if home.templates is not None:
                home.templates.stop()
        await asyncio.gather(*(home.spawner.end_everything(grace) for home in self._homes.all()))

    def health(self) -> dict[str, object]:
        return {"name": self.name, **self._homes.health()}


async def _forked(spec: StartSpec, collection: Collection | None, home: Home) -> SpawnProcess:
    if not home.spawner.alive:
        raise ExecFailed("the spawner has ended", "container_gone")
    if home.templates is None:
        raise gone(f"template {spec.template!r}")
    return await home.templates.fork(spec, collection)


_MARKER_NAME = PROCESS_ID_VARIABLE.encode()


class Environments:
    """Environments as they go into a request: what most requests have in common is encoded once."""

    def __init__(self) -> None:
        self._base: dict[str, str] | None = None
        self._home: Home | None = None
        self._identity: frames.Identity | None = None
        self._names: frozenset[str] = frozenset()
        self._encoded = frames.Strings(b"", 0)

    def encode(self, spec: StartSpec, home: Home, identity: frames.Identity | None) -> frames.Strings:
        """The home's own variables, HOME, the environment's, the request's; the last wins.

        Raises:
            ValueError: a variable that no process can have.
        """
        if spec.base_env is not self._base or home is not self._home or identity is not self._identity:
            self._prepare(spec.base_env, home, identity)
        if spec.env and not self._names.isdisjoint(spec.env):
            return _encoded({**_common(spec.base_env, home, identity), **spec.env, **spec.marker})
        more = _encoded({**spec.env, **spec.marker}) if spec.env or not spec.process_id else _marker(spec.process_id)
        return frames.Strings(self._encoded.data + more.data, self._encoded.number + more.number)

    def _prepare(self, base: dict[str, str], home: Home, identity: frames.Identity | None) -> None:
        common = _common(base, home, identity)
        self._names = frozenset(common)
        self._encoded = _encoded(common)
        self._base, self._home, self._identity = base, home, identity


def _marker(process_id: str) -> frames.Strings:
    """As `StartSpec.marker`: all that most requests add."""
    return frames.Strings(b"%s=%s\0" % (_MARKER_NAME, process_id.encode()), 1)


def _common(base: dict[str, str], home: Home, identity: frames.Identity | None) -> dict[str, str]:
    """What every process of one user has."""
    return common_env(base, home.env, identity)


def _encoded(env: dict[str, str]) -> frames.Strings:
    return frames.strings([f"{name}={value}" for name, value in env.items()])
