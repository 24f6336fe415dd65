"""The runtime without a sandbox: processes of this host, the same contract. Says so in `health` and in the log."""

import contextlib
import logging
import os
from collections.abc import Sequence
from typing import Any

from fastclaw import limits
from fastclaw.errors import InvalidParams, StartFailed
from fastclaw.options import Network, Options
from fastclaw.processes.listeners import SocketDirectory
from fastclaw.runtimes.managed import Environment, ManagedRuntime, plans
from fastclaw.spawner.spawn_lane import SpawnLane
from fastclaw.spawner.spawner_host import LocalHost

logger = logging.getLogger(__name__)

NO_ISOLATION = "no isolation: processes run on this host as this user"


class LocalRuntime(ManagedRuntime):
    """Runs commands on this host. For where there is no engine, and for development."""

    name = "local"

    def __init__(self, warnings: Sequence[str] = ()) -> None:
        super().__init__(warnings)
        self._host: LocalHost | None = None

    async def _bring_up(
        self, namespace: str, options: Options, sockets: SocketDirectory, setup: contextlib.AsyncExitStack
    ) -> Environment:
        _refuse_limits(options)
        logger.warning("local runtime: %s", NO_ISOLATION)
        workspace = _workspace(options)
        host = LocalHost(plans(options, workspace, python_path=None), options.run_output_bytes)
        setup.push_async_callback(host.aclose)
        await host.start()
        self._host = host
        lane = SpawnLane(host, can_set_user=True)  # a user that cannot be taken is refused at each start
        return Environment(lane, {}, workspace, 1, options.max_starting or limits.MAX_STARTING_SPAWN)

    def _trouble(self) -> str | None:
        return None if self._host is None or self._host.host else "the spawner has ended; another is being started"

    def _details(self) -> dict[str, Any]:
        return {"isolation": "none"}


def _refuse_limits(options: Options) -> None:
    """Refuse a filtered network or a bound on the disk: they would be promised and not kept."""
    asked = {
        "network": options.network not in (Network(), Network(mode="open")),
        "disk_bytes": options.disk_bytes is not None,
    }
    for name in (name for name, is_asked in asked.items() if is_asked):
        text = f"runtime 'local' isolates nothing and cannot keep options.{name}; use runtime 'podman', or leave it out"
        raise InvalidParams(text, "unsupported", path=f"$.options.{name}")


def _workspace(options: Options) -> str | None:
    """Without mounts the workspace is the host's directory itself: `source`, else `target`."""
    if options.workspace is None:
        return None
    directory = options.workspace.source or options.workspace.target
    if not os.path.isdir(directory):
        raise StartFailed(f"workspace {directory} is no directory on this host; create it first", "bad_mount")
    return directory
