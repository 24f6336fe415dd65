"""A disk that is full: a clone that cannot be started is one error and leaves nothing, and one that is up can go."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fastclaw.engine.service.facts import host_facts
from fastclaw.engine.service.plan import DEFAULT_IMAGE, plan_service
from fastclaw.engine.service.service import ManagedService
from fastclaw.errors import StartFailed
from tests.engine.clones.clone_fleet import CloneFleet, directories, groups
from tests.engine.test_container import run

SIZE = "size=48m,nr_inodes=4k"


@pytest.mark.podman
@pytest.mark.skipif(os.geteuid() != 0, reason="clones are root's")
@pytest.mark.parametrize("what", ["bytes", "files"])
def test_a_full_disk_is_one_error_and_leaves_nothing(short_dir: Path, what: str) -> None:
    script = f"mount -t tmpfs -o {SIZE} tmpfs {short_dir} && exec {sys.executable} -m {__name__} {short_dir} {what}"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-4_000:]


async def main(disk: Path, what: str) -> None:
    """On a disk of its own."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="fc") as elsewhere:
        service = ManagedService(plan_service(host_facts(disk)), disk / "s", Path(elsewhere, "r"))
        await service.start()
        fleet = CloneFleet(service.url, DEFAULT_IMAGE, Path(elsewhere))
        try:
            await fleet.engine.make_image(DEFAULT_IMAGE)
            await fleet.open()
            await fill_it(fleet, disk, what)
            await fleet.aclose()
        finally:
            await service.aclose()
    assert fleet.remains() == []


async def fill_it(fleet: CloneFleet, disk: Path, what: str) -> None:
    async with fleet.clone() as up:
        filled = fill(disk, what)
        for _ in range(2):
            late = fleet.make()
            with pytest.raises(StartFailed, match="No space left on device"):
                await late.start()
            await late.remove()
        (own,) = directories(fleet.storage)
        assert os.listdir(f"{own}/clones") == [up.id]
        assert len({group.rpartition("/")[2] for group in groups()}) == 1
        assert await run(up, "echo", "still here") == (0, "still here\n")
        await up.remove()
        assert os.listdir(f"{own}/clones") == []
        for path in filled:
            os.unlink(path)
        async with fleet.up() as again:
            assert fleet.cloning.made_by(again.id)[0] == "clone"


def fill(disk: Path, what: str) -> list[Path]:
    """Until nothing more goes on it."""
    made = []
    try:
        for number in range(1 << 20):
            made.append(disk / f"fill-{number}")
            with open(made[-1], "wb", buffering=0) as file:
                while what == "bytes":
                    if file.write(b"x" * 4_096) < 4_096:
                        break
    except OSError:
        pass
    return [path for path in made if path.exists()]


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
    sys.stdout.write("done\n")
