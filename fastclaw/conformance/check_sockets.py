"""Checks of the sockets as files: who may reach them, and when they go."""

import asyncio
import os
import stat
import sys
from pathlib import Path

from fastclaw import limits
from fastclaw.conformance.outside import existing, soon
from fastclaw.conformance.registry import proves
from fastclaw.conformance.rig import Process, Rig, expect
from fastclaw.conformance.wire import NotOffered

LINGER_MS = 200
_STRANGER = """
import ctypes, os, socket, sys
os.setresuid(-1, 65534, 0)
ctypes.CDLL(None).setfsuid(0)
peer = socket.socket(socket.AF_UNIX)
peer.settimeout(float(sys.argv[2]))
peer.connect(sys.argv[1])
try:
    print("turned away" if peer.recv(1) == b"" else "served")
except ConnectionResetError:
    print("turned away")
except TimeoutError:
    print("left connected")
"""
"""Another user by SO_PEERCRED (unix(7): the effective user at connect), with root's rights on files (setfsuid(2))."""


def _paths(process: Process) -> tuple[Path, Path]:
    return Path(process.stdio_addr), Path(process.stderr_addr)


@proves("S-MODE")
async def modes(rig: Rig) -> None:
    for path in _paths(await (await rig.shared()).exec(rig.words.sleep(300))):
        here, parent = path.stat(), path.parent.stat()
        expect(stat.S_ISSOCK(here.st_mode), f"{path} is no socket")
        expect(stat.S_IMODE(here.st_mode) == 0o600, f"{path} has mode {stat.S_IMODE(here.st_mode):o}")
        expect(stat.S_IMODE(parent.st_mode) == 0o700, f"{path.parent} has mode {stat.S_IMODE(parent.st_mode):o}")
        expect(here.st_uid == parent.st_uid == os.geteuid(), f"{path} belongs to another user")


@proves("S-PATH")
async def paths(rig: Rig) -> None:
    async with rig.started("n" * limits.MAX_NAMESPACE_BYTES) as session:
        for path in _paths(await session.exec(rig.words.sleep(300))):
            expect(path.is_absolute(), f"{path} is not absolute")
            expect(len(os.fsencode(path)) <= limits.SOCKET_PATH_BYTES, f"{path} has {len(os.fsencode(path))} bytes")


@proves("S-PEER")
async def strangers(rig: Rig) -> None:
    if os.geteuid() != 0:
        raise NotOffered("only root can appear as another user")
    process = await (await rig.shared()).exec(rig.words.sleep(300))
    for path in _paths(process):
        said = await _stranger(path)
        expect(said == "turned away", f"another user's connection to {path}: {said}")


async def _stranger(path: Path) -> str:
    patience = str(limits.CHECK_SOON_MS / 1000)
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _STRANGER, str(path), patience, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await child.communicate()
    return said.decode().strip() or f"the probe ended with code {child.returncode}"


@proves("S-UNLINK")
async def unlinked_when_read(rig: Rig) -> None:
    process = await (await rig.shared()).exec(rig.words.echo("read me"))
    await process.outputs()
    await soon("both sockets are unlinked", lambda: not existing(map(str, _paths(process))))


@proves("S-LINGER")
async def unlinked_unread(rig: Rig) -> None:
    async with rig.with_options(linger_ms=LINGER_MS) as session:
        process = await session.exec(rig.words.echo("nobody reads this"))
        await soon("both sockets are unlinked", lambda: not existing(map(str, _paths(process))))
