"""The disk of the state directory is full: everything answers, and afterwards nothing is left on it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastclaw.client import RuntimeClient
from fastclaw.errors import StartFailed
from tests.waiting import until

pytestmark = pytest.mark.podman

SIZE = "size=64m,nr_inodes=1000"
BYTES = "dd if=/dev/zero of=/tmp/x bs=64k; dd if=/dev/zero of=/tmp/y bs=1"
INODES = "i=0; while : >/tmp/f$i; do i=$((i+1)); done"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
@pytest.mark.parametrize("lane", ["spawn", "rest"])
def test_everything_answers_and_nothing_is_left(lane: str, short_dir: Path) -> None:
    """NousResearch/hermes-agent#57994, openclaw/openclaw#105466: tear-down failed just then. Podman lost the container
    and kept its layer, and every later start failed."""
    disk = short_dir / "d"
    disk.mkdir()
    script = f"mount -t tmpfs -o {SIZE} tmpfs {disk} && exec {sys.executable} -m {__name__} {disk} {lane}"
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    (short_dir / "r").mkdir(mode=0o700)
    env = {**os.environ, "XDG_RUNTIME_DIR": str(short_dir / "r")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-4_000:]


class Disk:
    """What is on it."""

    def __init__(self, path: Path, lane: str) -> None:
        self.path, self.lane = path, lane

    def client(self) -> RuntimeClient:
        options = {"lane": self.lane, "state_dir": str(self.path / "s")}
        command = [sys.executable, "-m", "fastclaw", "serve", "--log-level", "error"]
        return RuntimeClient.spawn(command, namespace="full", options=options)

    def layers(self) -> set[str]:
        """The image's and those of containers."""
        return {path.name for path in self.path.glob("s/*/storage/overlay/" + "[0-9a-f]" * 64)}

    def is_full(self) -> bool:
        found = os.statvfs(self.path)
        return found.f_bavail == 0 or found.f_favail == 0

    async def has_only_the_image(self) -> None:
        """A janitor, or whoever else it is, has removed everything."""
        await until(lambda: len(self.layers()) == 1 and not self.is_full())


async def stopped(disk: Disk) -> None:
    """While it is full; and then it is stopped."""
    async with disk.client() as client:
        await client.run(["sh", "-c", BYTES], timeout_s=60)
        assert disk.is_full()
        health = await client.health()
        assert health.status == "degraded"
        assert "is full: " in str(health.message)
        assert health.details["disk"]["path"].startswith(str(disk.path))
        if disk.lane == "spawn":  # on the other one Podman writes a file for each exec
            process = await client.exec(["sleep", "1000"])
            await process.kill(grace_ms=0)
            assert (await process.wait()).reason == "killed"
            await no_other_starts(disk)
    assert client.exit_code == 0
    await disk.has_only_the_image()


async def no_other_starts(disk: Disk) -> None:
    """And nothing is left of one that tries."""
    before = disk.layers()
    with pytest.raises(StartFailed, match="no space left on device; make room") as raised:
        await disk.client().__aenter__()
    assert "\n" not in str(raised.value)
    assert disk.layers() == before


async def killed(disk: Disk) -> None:
    """Another one starts on what was full, fills it anew, and is killed."""
    async with disk.client() as client:
        await client.run(["sh", "-c", INODES], timeout_s=60)
        assert disk.is_full()
        os.kill(client.pid, signal.SIGKILL)
        assert await client.exited(10) == -signal.SIGKILL
    await disk.has_only_the_image()


async def main(disk: Disk) -> None:
    await stopped(disk)
    if disk.lane == "spawn":
        await killed(disk)


if __name__ == "__main__":
    asyncio.run(main(Disk(Path(sys.argv[1]), sys.argv[2])))
    print("done")  # noqa: T201 - for the test
