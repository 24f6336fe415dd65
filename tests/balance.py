"""What a test of processes must leave behind: nothing. Compares descriptors, children and tasks before and after."""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from fastclaw.linux import proc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


def open_descriptors(pid: int | str = "self") -> dict[int, str]:
    """Descriptors of a process, ourselves for one, with what they refer to."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue  # closed since, as the one that listed our own directory
    return found


@contextmanager
def descriptors_left(room: int) -> Iterator[None]:
    """So many can be opened here and no more, holes in the numbers counted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = open_descriptors()
    free = (fd for fd in itertools.count() if fd not in taken)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(itertools.islice(free, room, None)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def children() -> set[int]:
    """Our children, zombies included, without what a rootless engine leaves for the next one."""
    return {pid for pid, _ in proc.children(os.getpid()) if not proc.is_podman_pause(pid)}


@asynccontextmanager
async def balanced() -> AsyncIterator[None]:
    """Fails where the block leaves a descriptor, a child or a task behind."""
    await asyncio.to_thread(int)  # the executor's first thread is no leak
    before = open_descriptors(), children(), asyncio.all_tasks()
    yield
    await asyncio.sleep(0)  # callbacks that are due
    assert open_descriptors() == before[0]
    assert children() == before[1]
    assert asyncio.all_tasks() == before[2]
