"""One command on a runtime, from its start to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastclaw.client.remote_process import Channel
from fastclaw.runtime import ExecRequest

if TYPE_CHECKING:
    from fastclaw.runtime import ExitRecord, ProcessRuntime


async def ended(runtime: ProcessRuntime, *cmd: str, **request: Any) -> tuple[bytes, ExitRecord]:
    """What a command writes on stdout, and how it ended."""
    process = await runtime.exec(ExecRequest(cmd=[*cmd], **request))
    channel = await Channel.connect(process.stdio_addr)
    try:
        parts = []
        while part := await channel.read():
            parts.append(part)
    finally:
        channel.close()
    return b"".join(parts), await runtime.wait(process.process_id)
