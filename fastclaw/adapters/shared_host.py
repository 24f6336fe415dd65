"""The hosts of a process that its adapters share: one for each set of options, started when first asked for and ended
with the program.

They live on the loop of `fastclaw.sandbox.sync`, so that tools with any event loop, several or none can use them.
"""

import asyncio
import json
import os
from typing import Any

from fastclaw.sandbox import Host
from fastclaw.sandbox.loop_thread import loop_thread

_hosts: dict[tuple[int, str], "asyncio.Task[Host]"] = {}


async def shared_host(**options: Any) -> Host:
    """The host with these options; to be awaited on the loop thread (`LoopThread.call`, `LoopThread.bring`).

    Raises:
        FastclawError: it does not come up; the next call tries again.
    """
    key = os.getpid(), json.dumps(options, sort_keys=True)
    starting = _hosts.get(key)
    if starting is None:
        starting = _hosts[key] = asyncio.get_running_loop().create_task(_started(options))
    try:
        host = await asyncio.shield(starting)
    except BaseException:
        if starting.done() and (starting.cancelled() or starting.exception() is not None):
            _hosts.pop(key, None)
        raise
    if host.has_ended:
        _hosts.pop(key, None)
        return await shared_host(**options)
    return host


async def _started(options: dict[str, Any]) -> Host:
    host = await Host(**options).__aenter__()
    loop_thread().close_at_end(host.close)
    return host
