"""Looks at the file of a command that the engine refused, and at those it needs: on the spawn lane program.c does that.

The engine is asked for the beginning of each file as an archive (what `podman cp` does), so a path is resolved inside,
and nothing of the container's is opened here. It does not know of users: of rights it sees the mode only.
"""

from __future__ import annotations

import asyncio
import errno
import posixpath
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.linux.executable import Finding, interpreter_of, loader_of, why_refused

if TYPE_CHECKING:
    from fastclaw.podman.rest_lane.exec_calls import ExecCalls
    from fastclaw.processes.lane import StartSpec

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BLOCK = 512
_OF_THE_FILE = ("not_found", "permission_denied", "not_executable")


class Seen(NamedTuple):
    """One file: an errno for which it cannot be executed, or 0, and its first bytes."""

    error: int
    head: bytes


def first_entry(archive: bytes) -> Seen:
    """What the first file of a tar archive is (tar(5)), behind headers that only say more of it."""
    while archive[156:157] in b"xgLK" and len(archive) >= _BLOCK:
        size = _octal(archive[124:136])
        archive = archive[_BLOCK + -(-size // _BLOCK) * _BLOCK :]
    kind = archive[156:157]
    if kind == b"5":
        return Seen(errno.EISDIR, b"")
    if kind not in (b"0", b"\0") or not archive[0]:
        return Seen(errno.ENXIO, b"")  # a device or a FIFO; an archive without a file begins with zeros
    error = 0 if _octal(archive[100:108]) & 0o111 else errno.EACCES
    return Seen(error, archive[_BLOCK : _BLOCK + _octal(archive[124:136])])


def _octal(digits: bytes) -> int:
    text = digits.strip(b" \0")
    return int(text, 8) if text.isdigit() and not set(text) & set(b"89") else 0


class _Looks:
    """A bounded number of looks at files of one container."""

    def __init__(self, calls: ExecCalls, container: str) -> None:
        self._calls, self._container = calls, container
        self._left = limits.PROGRAM_LOOKS

    async def at(self, path: str) -> Seen:
        self._left -= 1
        if self._left < 0 or not posixpath.isabs(path):
            raise ExecFailed("not looked at")
        archive = await self._calls.beginning_of(self._container, path)
        return Seen(errno.ENOENT, b"") if archive is None else first_entry(archive)


async def explained(refused: ExecFailed, calls: ExecCalls, container: str, spec: StartSpec) -> ExecFailed:
    """The same refusal, with what is in the way where that is seen; as it is in any other case."""
    if refused.reason not in _OF_THE_FILE:
        return refused
    is_format = refused.reason == "not_executable"
    words = None
    with suppress(ExecFailed, TimeoutError):
        async with asyncio.timeout(limits.PROGRAM_LOOK_MS / 1000):
            found = await _find_out(_Looks(calls, container), spec, is_format)
            words = why_refused(found, is_format=is_format)
    return refused if words is None else ExecFailed(f"{spec.cmd[0]!r}: {words}", refused.reason)


async def _find_out(looks: _Looks, spec: StartSpec, is_format: bool) -> Finding:
    name, seen = await _program(looks, spec)
    found = Finding(0, False, seen.error, name, seen.head)
    while not found.error and found.depth < limits.PROGRAM_DEPTH:
        following = interpreter_of(found.head)
        is_loader = following is None
        if is_loader and not found.is_loader and not is_format:  # else it is for another machine, and so is its loader
            following = loader_of(found.head)
        if following is None:
            break
        seen = await looks.at(following)
        found = Finding(found.depth + 1, is_loader, seen.error, following, seen.head)
    return found


async def _program(looks: _Looks, spec: StartSpec) -> tuple[str, Seen]:
    """As execvp(3) finds it, whatever it is."""
    command, directory = spec.cmd[0], spec.working_dir or ""
    if "/" in command:
        path = posixpath.join(directory, command)
        return path, await looks.at(path)
    for entry in spec.variables.get("PATH", _PATH).split(":"):
        path = posixpath.join(directory, entry, command)
        seen = await looks.at(path)
        if seen.error != errno.ENOENT:
            return path, seen
    return command, Seen(errno.ENOENT, b"")
