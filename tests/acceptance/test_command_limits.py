"""Limits of single commands, on a real Podman: each ends or bounds the command that has it and nobody else.

Where this host's engine has no controller for one, it is refused with the reason, and that is what is tested then.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from fastclaw.client import RuntimeClient
from fastclaw.errors import InvalidParams
from fastclaw.limits import MIB
from fastclaw.linux.cgroups import group_of
from fastclaw.linux.command_groups import OWN
from tests.acceptance.hostile import need_root_for
from tests.pids import marked
from tests.waiting import until

if TYPE_CHECKING:
    from pathlib import Path

    from fastclaw.client.environment import Ran
    from tests.engine_fixtures import EngineService

pytestmark = pytest.mark.timeout(60)

SERVE = [sys.executable, "-m", "fastclaw", "serve", "--runtime", "podman"]
HOG = ["tail", "/dev/zero"]
FORKS = ["sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do sleep 1 & sleep 1 & sleep 1 & done; wait"]
"""27 processes, and no more where they are not refused."""
SPIN = ["timeout", "1", "sh", "-c", "while :; do :; done"]


async def limited(runtime: RuntimeClient, cmd: list[str], **limits: float) -> Ran | None:
    """What a command did with these limits; None where they cannot be had, which is said with the reason."""
    (name,) = limits
    if name in runtime.capabilities:
        return await runtime.run(cmd, limits=limits)
    with pytest.raises(InvalidParams, match=r"cannot be had: .*controller") as raised:
        await runtime.run(cmd, limits=limits)
    assert (raised.value.reason, raised.value.data["path"]) == ("unsupported", f"$.limits.{name}")
    return None


def group_of_exec(process_id: str) -> Path:
    """The one of its own for the controller of pids."""
    group = group_of(marked(process_id)[0], "pids")
    assert group is not None
    return group.folder


@pytest.mark.parametrize("clone", ["never", "always"])
async def test_a_command_has_limits_of_its_own(engine_service: EngineService, clone: str) -> None:
    need_root_for("clone" if clone == "always" else "host")
    options: dict[str, Any] = {"url": engine_service.url, "lane": "spawn", "clone": clone}
    async with RuntimeClient.spawn(SERVE, namespace=f"limited-{clone}", options=options) as runtime:
        bystander = await runtime.exec(["cat"])
        if hog := await limited(runtime, HOG, memory_bytes=32 * MIB):
            assert (hog.reason, hog.oom_kills, hog.memory["limit_bytes"]) == ("oom", 1, 32 * MIB)
            least = await runtime.run(["echo", "up"], limits={"memory_bytes": MIB})
            assert (least.stdout, least.reason) == (b"up\n", "exited")
        if forks := await limited(runtime, FORKS, pids=8):
            assert forks.exit_code != 0
            assert b"fork" in forks.stderr
            assert (await runtime.run(FORKS)).exit_code == 0
        if spin := await limited(runtime, SPIN, cpus=0.05):
            assert spin.usage is not None
            assert spin.usage["user_us"] + spin.usage["system_us"] < 300_000
        async with bystander:
            assert await bystander.communicate(b"lives") == (b"lives", b"")


async def test_nothing_is_left_of_the_groups(engine_service: EngineService) -> None:
    """Also not in a container that was killed while commands had groups of their own."""
    options = {"url": engine_service.url, "lane": "spawn"}
    async with RuntimeClient.spawn(SERVE, namespace="limited-left", options=options) as runtime:
        orphaned = await limited(runtime, ["sh", "-c", "sleep 60 >/dev/null 2>&1 &"], pids=9)
        if orphaned is None:
            return
        assert orphaned.exit_code == 0
        long = await runtime.exec(["sleep", "60"], limits={"pids": 9})
        own = group_of_exec(long.id)
        assert own.name.startswith(OWN)
        assert len(list(own.parent.glob(f"{OWN}*/"))) > 1
        await runtime.call("environment_reset", {"environment": "main"})
        assert (await long.wait()).reason == "killed"
    await until(lambda: not own.parent.exists())


async def test_the_rest_lane_refuses_them(engine_service: EngineService) -> None:
    options = {"url": engine_service.url, "lane": "rest", "containers": 1}
    async with RuntimeClient.spawn(SERVE, namespace="limited-rest", options=options) as runtime:
        with pytest.raises(InvalidParams, match=r"\$.limits.pids cannot be had: it is not offered by the rest lane"):
            await runtime.run(["true"], limits={"pids": 9})
