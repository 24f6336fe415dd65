"""A process that has clones, to be killed: says how many are up, and goes on making more where it is told to.

python -m tests.engine.clones.clone_owner URL IMAGE DIRECTORY COUNT
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.engine.clones.clone_fleet import CloneFleet


def say(*words: object) -> None:
    """A line on stdout."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def main(url: str, image: str, directory: str, count: int) -> None:
    """Make one of the engine's and so many clones; each that is up is a line with its init's pid."""
    fleet = CloneFleet(url, image, Path(directory))
    await fleet.open()
    for _ in range(2):
        first = fleet.make()
        await first.start()
        await first.remove()
    cloner = fleet.cloning._cloner
    assert cloner is not None
    say("begin", cloner.pid)

    async def make() -> None:
        container = fleet.make()
        await container.start()
        state = await fleet.cloning.inspect_container(container.id)
        assert state is not None
        say(state.pid, fleet.cloning.made_by(container.id)[0])

    await asyncio.gather(*(make() for _ in range(count)))
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
