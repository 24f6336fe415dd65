"""The runtime without a sandbox: processes of this host, the same contract. Says so in `health` and in the log."""

import contextlib
import logging
import os
from typing import Any

from fastclaw import limits
from fastclaw.decisions.options import Options
from fastclaw.errors import StartFailed
from fastclaw.runtimes.managed import Environment, ManagedRuntime
from fastclaw.spawn.host import HostHome
from fastclaw.spawn.lane import SpawnLane
from fastclaw.transport.listener import SocketDirectory

logger = logging.getLogger(__name__)

NO_ISOLATION = "no isolation: processes run on this host as this user"


class LocalRuntime(ManagedRuntime):
    """Runs commands on this host. For where there is no engine, and for development."""

    name = "local"

    async def _bring_up(
        self, namespace: str, options: Options, sockets: SocketDirectory, setup: contextlib.AsyncExitStack
    ) -> Environment:
        logger.warning("local runtime: %s", NO_ISOLATION)
        home = HostHome()
        setup.push_async_callback(home.aclose)
        await home.start()
        lane = SpawnLane(home, can_set_user=home.spawner.hello.can_set_user)
        return Environment(lane, {}, _workspace(options), 1, options.max_starting or limits.MAX_STARTING_SPAWN)

    def _details(self) -> dict[str, Any]:
        return {"isolation": "none"}


def _workspace(options: Options) -> str | None:
    """Without mounts the workspace is the host's directory itself: `source`, else `target`."""
    if options.workspace is None:
        return None
    directory = options.workspace.source or options.workspace.target
    if not os.path.isdir(directory):
        raise StartFailed(f"workspace {directory} is no directory on this host; create it first", "bad_mount")
    return directory
