"""The in-process runtime, for users' own tests: processes are coroutines, all above the lane is the real thing."""

import contextlib

from fastclaw import limits
from fastclaw.options import Options
from fastclaw.processes.sockets import SocketDirectory
from fastclaw.runtimes.managed import Environment, ManagedRuntime
from fastclaw.runtimes.memory_lane import MemoryLane


class MemoryRuntime(ManagedRuntime):
    """Runs the programs of `fastclaw.runtimes.memory_programs`. No isolation, no processes."""

    name = "memory"

    async def _bring_up(
        self, namespace: str, options: Options, sockets: SocketDirectory, setup: contextlib.AsyncExitStack
    ) -> Environment:
        target = options.workspace.target if options.workspace else None
        lane = MemoryLane(directories=[target] if target else [], run_output_bytes=options.run_output_bytes)
        most = options.max_starting or limits.MAX_STARTING_SPAWN
        return Environment(lane, {}, target, 1, most, directory="/")
