"""What can be seen of a runtime from outside its protocol: paths and /proc.

Owns the looking. Knows neither sessions nor promises.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from fastclaw import limits
from fastclaw.conformance.wire import Broken, NotOffered


async def soon(what: str, holds: Callable[[], bool], timeout_ms: int = limits.CHECK_SOON_MS) -> None:
    """Look until it holds; for what sends no event.

    Raises:
        Broken: not within `timeout_ms`.
    """
    deadline = time.monotonic() + timeout_ms / 1000
    while not holds():
        if time.monotonic() > deadline:
            raise Broken(f"{what}: not within {timeout_ms} ms")
        await asyncio.sleep(limits.CHECK_POLL_MS / 1000)


def bearers(token: str) -> list[int]:
    """Processes of this host, those in containers included, that have `token` in their command line."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _bears(entry, token)]


async def seen(token: str) -> None:
    """Look until a process with `token` is there.

    Raises:
        NotOffered: it is not, and so nothing can be said of its end.
    """
    try:
        await soon("the process is seen", lambda: bool(bearers(token)))
    except Broken as error:
        raise NotOffered("the processes cannot be seen from this host") from error


def _bears(entry: Path, token: str) -> bool:
    try:
        return token.encode() in (entry / "cmdline").read_bytes()
    except OSError:
        # It ended while we looked.
        return False


def existing(paths: Iterable[str]) -> list[str]:
    """Those of the paths that are there."""
    return [path for path in paths if Path(path).exists()]
