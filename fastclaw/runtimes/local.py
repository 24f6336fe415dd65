"""The runtime without a sandbox: processes of this host, the same contract. Says so in `health` and in the log."""

import contextlib
import logging
import os
from typing import Any

from fastclaw import limits
from fastclaw.errors import InvalidParams, StartFailed
from fastclaw.options import Network, Options
from fastclaw.runtimes.sandbox import Sandbox, SandboxFactory, SandboxFacts, plans
from fastclaw.spawner.spawn_lane import SpawnLane
from fastclaw.spawner.spawner_host import LocalHost

logger = logging.getLogger(__name__)

NO_ISOLATION = "no isolation: processes run on this host as this user"


class LocalSandbox(Sandbox):
    """This host, with a spawner of its own."""

    _host: LocalHost | None = None

    async def _bring_up(self, setup: contextlib.AsyncExitStack) -> SandboxFacts:
        options = self.options
        _refuse_limits(options)
        logger.warning("local runtime: %s", NO_ISOLATION)
        workspace = _workspace(options)
        self._host = host = LocalHost(plans(options, workspace, python_path=None), options.run_output_bytes)
        setup.push_async_callback(host.aclose)
        await host.start()
        return SandboxFacts(
            lane=SpawnLane(host, can_set_user=True),  # a user that cannot be taken is refused at each start
            workspace=workspace,
            directory=workspace or os.getcwd(),
            user=options.user or f"{os.geteuid()}:{os.getegid()}",
            home=os.environ.get("HOME") if options.user is None else None,
            max_starting=options.max_starting or limits.MAX_STARTING_SPAWN,
        )

    @property
    def is_alive(self) -> bool:
        return self._host is not None and self._host.host is not None

    @property
    def trouble(self) -> str | None:
        return None if self.is_alive else "the spawner has ended; another is being started"

    def details(self) -> dict[str, Any]:
        return {"isolation": "none"}


class LocalSandboxes(SandboxFactory):
    """Runs commands on this host. For where there is no engine, and for development."""

    name = "local"

    def make(self, options: Options) -> LocalSandbox:
        return LocalSandbox(options)


def _refuse_limits(options: Options) -> None:
    """Refuse a filtered network, or a bound on the disk or on processors: they would be promised and not kept."""
    asked = {
        "network": options.network not in (Network(), Network(mode="open")),
        **{name: getattr(options, name) is not None for name in ("disk_bytes", "cpus", "cpuset")},
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
