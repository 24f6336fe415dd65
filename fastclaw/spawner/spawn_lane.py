"""The spawn lane: one message to a resident spawner, one vfork there, no engine in between.

Owns how a `StartSpec` becomes a request: environment, user, limits, streams. Where the spawner runs, and how it is
followed by another when it has ended, is up to its `HostSlot`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastclaw import limits, stages
from fastclaw.errors import ExecFailed
from fastclaw.params import GROUP_LIMITS, group_limits, rlimits
from fastclaw.processes.lane import PROCESS_ID_VARIABLE, Collection, Grace, Lane, LaneProcess, StartSpec
from fastclaw.spawner import frames
from fastclaw.spawner.measure import measured
from fastclaw.spawner.spawn_process import SpawnProcess, text_refused
from fastclaw.spawner.templates import common_env, flags_of, gone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastclaw.linux.command_groups import CommandGroup
    from fastclaw.processes.lane import Usage
    from fastclaw.spawner.spawner_host import HostSlot, SpawnerHost


class SpawnLane(Lane):
    """Starts processes by a spawner.

    Parameters:
        slot: the spawner host in use; the caller brings it up and closes it.
    """

    name = "spawn"
    files_each = limits.FILES_PER_PUMPED

    def __init__(self, slot: HostSlot, *, can_set_user: bool) -> None:
        self._slot = slot
        self._environments = Environments()
        groups = None if slot.host is None else slot.host.groups
        if groups is not None:
            self.refused = groups.refused
        self.capabilities = [
            *(["user"] if can_set_user else []),
            "signal",
            "kill_tree",
            "usage",
            "separate_eof",
            "signal_number",
            "reopen_stdio",
            "limits",
            *(name for name in GROUP_LIMITS if groups is not None and name not in groups.refused),
            "tty",
            "template",
            "files",
            "file_helper",
        ]

    async def start(self, spec: StartSpec, container_index: int) -> LaneProcess:
        """Send the request for one process; from `next_id` on nothing is awaited, so it cannot be cancelled half-way.

        Only a template's worker is waited for, since it exists before its reaper has adopted it.
        """
        return await self._begin(spec, None)

    async def run(self, spec: StartSpec, collection: Collection, container_index: int) -> LaneProcess:
        """As `Lane.run`, with a pump that collects."""
        return await self._begin(spec, collection)

    async def _begin(self, spec: StartSpec, collection: Collection | None) -> LaneProcess:
        host = self._slot.take()
        if spec.holds_stdin and host.spawner.is_gvisor:
            raise ExecFailed(
                "on_disconnect hold: gVisor does not tell a client that has left from one that has sent all",
                "unsupported",
            )
        if spec.template is not None:
            return await _forked(spec, collection, host)
        identity = host.identity if spec.user is None else await host.identify(spec.user)
        group = await _group(spec, host) if spec.limits else None
        try:
            await host.spawner.make_room()
            id = host.spawner.next_id()
            request = self._request(id, spec, collection, host, identity, 0 if group is None else group.joins)
            process = SpawnProcess(host.spawner, id, spec, collection, group)
            spec.flight.reach(stages.SENT)
            host.spawner.start(process, request, [] if group is None else group.open())
        except BaseException:
            if group is not None:
                group.release()
            raise
        return process

    def _request(
        self,
        id: int,
        spec: StartSpec,
        collection: Collection | None,
        host: SpawnerHost,
        identity: frames.Identity | None,
        joins: int,
    ) -> frames.Start:
        command = spec.cmd[0]
        if not command:
            raise ExecFailed("an empty command", "not_found")
        try:
            return frames.start(
                id,
                frames.strings(spec.cmd),
                self._environments.encode(spec, host, identity),
                directory=spec.working_dir,
                flags=flags_of(spec, has_stdin=spec.stdin if collection is None else True),
                tty=spec.tty,
                identity=identity,
                rlimits=rlimits(spec.limits) if spec.limits else (),
                collection=collection,
                joins=joins,
            )
        except ValueError as error:
            raise text_refused(command, error) from error

    async def end_all(self, processes: list[LaneProcess], grace: Grace) -> None:
        """End everything that is kept, and what commands that ended before have left.

        Raises:
            ExecFailed: `engine_timeout`.
        """
        host = self._slot.host
        if host is None:
            return
        if host.templates is not None:
            host.templates.cancel()
        await host.spawner.end_everything(grace)

    async def usage(self, processes: Sequence[LaneProcess]) -> list[Usage | None]:
        """As `Lane.usage`, as their spawners say."""
        return await measured(processes)

    def health(self) -> dict[str, object]:
        """As `Lane.health`, with the host in use."""
        return {"name": self.name, **self._slot.health()}


async def _group(spec: StartSpec, host: SpawnerHost) -> CommandGroup | None:
    """The control group that a command is to have; None: none is asked for.

    Raises:
        ExecFailed: as `CommandGroups.take`.
    """
    wanted = group_limits(spec.limits)
    return None if not wanted.names or host.groups is None else await host.groups.take(wanted)


async def _forked(spec: StartSpec, collection: Collection | None, host: SpawnerHost) -> SpawnProcess:
    if not host.spawner.alive:
        raise ExecFailed("the spawner has ended", "container_gone")
    if host.templates is None:
        raise gone(f"template {spec.template!r}")
    return await host.templates.fork(spec, collection)


_MARKER_NAME = PROCESS_ID_VARIABLE.encode()


class Environments:
    """Environments as they go into a request: what most requests have in common is encoded once."""

    def __init__(self) -> None:
        self._base: dict[str, str] | None = None
        self._host: SpawnerHost | None = None
        self._identity: frames.Identity | None = None
        self._names: frozenset[str] = frozenset()
        self._encoded = frames.Strings(b"", 0)

    def encode(self, spec: StartSpec, host: SpawnerHost, identity: frames.Identity | None) -> frames.Strings:
        """The host's own variables, HOME, the environment's, the request's; the last wins.

        Raises:
            ValueError: a variable that no process can have.
        """
        if spec.base_env is not self._base or host is not self._host or identity is not self._identity:
            self._prepare(spec.base_env, host, identity)
        if spec.env and not self._names.isdisjoint(spec.env):
            return _encoded({**_common(spec.base_env, host, identity), **spec.env, **spec.marker})
        more = _encoded({**spec.env, **spec.marker}) if spec.env or not spec.process_id else _marker(spec.process_id)
        return frames.Strings(self._encoded.data + more.data, self._encoded.number + more.number)

    def _prepare(self, base: dict[str, str], host: SpawnerHost, identity: frames.Identity | None) -> None:
        common = _common(base, host, identity)
        self._names = frozenset(common)
        self._encoded = _encoded(common)
        self._base, self._host, self._identity = base, host, identity


def _marker(process_id: str) -> frames.Strings:
    """As `StartSpec.marker`: all that most requests add."""
    return frames.Strings(b"%s=%s\0" % (_MARKER_NAME, process_id.encode()), 1)


def _common(base: dict[str, str], host: SpawnerHost, identity: frames.Identity | None) -> dict[str, str]:
    """What every process of one user has."""
    return common_env(base, host.env, identity)


def _encoded(env: dict[str, str]) -> frames.Strings:
    return frames.strings([f"{name}={value}" for name, value in env.items()])
