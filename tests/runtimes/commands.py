"""Commands on a runtime, from their start to their end, and whether their resource limits really hold."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
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


Output = Callable[..., Awaitable[tuple[bytes, "ExitRecord"]]]
"""Runs a command with `limits`; what it writes on stdout, and how it ended."""

_MIB = 1 << 20

_ALL_OPEN = "exec 3</dev/null 4</dev/null 5</dev/null; (: </dev/null) || echo held"
_LARGE_VARIABLE = "x=$(head -c 67108864 /dev/zero | tr '\\0' x) && echo ${#x} || echo held"


async def check_limits(output: Output, directory: str) -> None:
    """nofile, fsize, cpu, core and as.

    Parameters:
        directory: one that may be written to, inside.
    """
    assert (await output("sh", "-c", _ALL_OPEN, limits={"nofile": 6}))[0] == b"held\n"
    await _check_fsize(output, f"{directory}/file")
    _, record = await output("sh", "-c", "while :; do :; done", limits={"cpu": 1})
    assert record.signal in (signal.SIGKILL, signal.SIGXCPU)
    assert record.usage is not None
    # The limit is checked against ticks, usage is exact: on a busy machine they are far apart.
    assert 100_000 < record.usage["user_us"] + record.usage["system_us"] < 5_000_000
    assert (await output("sh", "-c", "ulimit -Sc; ulimit -Hc", limits={"core": 0}))[0] == b"0\n0\n"
    assert (await output("sh", "-c", _LARGE_VARIABLE, limits={"as": 4096 * _MIB}))[0] == b"67108864\n"
    out, record = await output("sh", "-c", _LARGE_VARIABLE, limits={"as": 32 * _MIB})
    assert b"67108864" not in out
    assert (record.exit_code, out) != (0, b"")


async def _check_fsize(output: Output, path: str) -> None:
    _, record = await output("sh", "-c", f"exec head -c 8192 /dev/zero >{path}", limits={"fsize": 4096})
    assert record.signal == signal.SIGXFSZ
    assert (await output("sh", "-c", f"wc -c <{path}; rm {path}"))[0].strip() == b"4096"
