"""Ends process trees in containers of an engine on another host: with a second exec, of a small shell script.

Owns the script. It finds processes by the marker in their environment, as `local_tree` does on this host, and
needs `sh`, `tr` and `grep` in the image. A whole exec per tree is slow, but the API has no other way in: Podman got an
endpoint for signals to execs only in 2026. It does not know of relays or exit records.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from fastclaw.errors import ExecFailed, ProtocolError
from fastclaw.limits import HTTP_READ_BYTES, MAX_HTTP_BODY_BYTES
from fastclaw.podman.rest_lane.attach_frames import STDOUT, Demultiplexer
from fastclaw.podman.rest_lane.exec_calls import ExecCalls, create_body
from fastclaw.processes.lane import PROCESS_ID_VARIABLE, Grace, StartSpec

if TYPE_CHECKING:
    from fastclaw.podman.rest_lane.http_client import Upgraded

_SCRIPT = r"""
find_all() {
  for e in /proc/[0-9]*/environ; do
    if tr '\0' '\n' <"$e" 2>/dev/null | grep -qxF -- "$1"; then p=${e#/proc/}; echo "${p%/environ}"; fi
  done
}
pids=$(find_all "$1")
[ -n "$pids" ] && kill -s TERM $pids 2>/dev/null
n=0
while pids=$(find_all "$1"); [ -n "$pids" ]; do
  [ "$n" -ge "$2" ] && kill -s KILL $pids 2>/dev/null
  [ "$n" -ge "$3" ] && { echo left; exit 0; }
  n=$((n + 1))
  sleep 0.1 2>/dev/null || sleep 1
done
echo gone
"""
_TURNS_PER_SECOND = 10


class RemoteTree:
    """Ends trees in one container.

    Parameters:
        calls: the engine.
        container: full id.
    """

    __slots__ = ("_calls", "_container")

    def __init__(self, calls: ExecCalls, container: str) -> None:
        self._calls = calls
        self._container = container

    async def __call__(self, marker: str, root_pid: int | None, grace: Grace, *, deadline_s: float) -> None:
        """As `local_tree.end_tree`. The grace is read once; `root_pid` means nothing here.

        Raises:
            ExecFailed: `unsupported`, where the image lacks the tools; `engine_timeout`, where something is left; and
            as `ExecCalls.create` and `start`.
        """
        loop = asyncio.get_running_loop()
        seconds = max(grace.ends_at - loop.time(), 0.0)
        try:
            async with asyncio.timeout(seconds + deadline_s):
                answer = await self._run(marker, seconds, deadline_s)
        except TimeoutError as error:
            raise ExecFailed(f"{marker} could not be ended within {deadline_s} s", "engine_timeout") from error
        if answer == b"left\n":
            raise ExecFailed(f"{marker} is still there {deadline_s} s after SIGKILL", "engine_timeout")
        if answer != b"gone\n":
            raise ExecFailed(
                "processes of an engine elsewhere are ended with sh, tr and grep, and the image lacks one",
                "unsupported",
            )

    async def _run(self, marker: str, seconds: float, deadline_s: float) -> bytes:
        turns = int(seconds * _TURNS_PER_SECOND)
        words = [f"{PROCESS_ID_VARIABLE}={marker}", str(turns), str(turns + int(deadline_s * _TURNS_PER_SECOND / 2))]
        spec = StartSpec(process_id="", cmd=["sh", "-c", _SCRIPT, "sh", *words], env={}, user="0", stdin=False)
        session = await self._calls.create(self._container, create_body(spec))
        return await _stdout(await self._calls.start(session))


async def _stdout(hijacked: Upgraded) -> bytes:
    """All of it; the script writes one word."""
    with hijacked.sock:
        try:
            return await _read(hijacked)
        except ProtocolError as error:
            raise ExecFailed(f"the engine's stream makes no sense: {error}") from error
        except OSError as error:
            raise ExecFailed(f"the engine's stream broke: {error.strerror}", "engine_unavailable") from error


async def _read(hijacked: Upgraded) -> bytes:
    loop = asyncio.get_running_loop()
    demultiplexer, said = Demultiplexer(), b""
    data = hijacked.leftover or await loop.sock_recv(hijacked.sock, HTTP_READ_BYTES)
    while data:
        slices = demultiplexer.feed(memoryview(data))
        said += b"".join(payload for stream, payload in slices if stream == STDOUT)
        if len(said) > MAX_HTTP_BODY_BYTES:
            break
        data = await loop.sock_recv(hijacked.sock, HTTP_READ_BYTES)
    return said
