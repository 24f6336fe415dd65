"""Container root signals nobody by way of a descriptor's owner, and does not slow PID 1 down by its scheduling group.

The kernel asks for other rights there than kill(2) does, and allows everything to the host's uid 0, which is container
root where Podman runs as root. That PID 1 and its reapers are out of reach is in test_spawn_security.py.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.acceptance.hostile import WAIT_S, Box, a_workspace, need_root_for, served
from tests.pids import init_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.engine.conftest import EngineService

pytestmark = [pytest.mark.podman, pytest.mark.timeout(120)]
shared = pytest.mark.asyncio(loop_scope="module")

PROGRAM = "/w/owner_signals"
ROOT, OTHER = "0", "1000"
VICTIM = "trap 'exit 7' URG; echo $$; while :; do sleep 0.05; done"
"""Every signal by default but one, which by default does nothing: who gets that says so."""
UNHARMED_MS = 200
"""How long a victim is watched: a signal is there with the event."""
OWNERS = ("F_SETOWN", "group", "F_OWNER_PID", "F_OWNER_TID", "F_OWNER_PGRP", "FIOSETOWN", "SIOCSPGRP")
WAYS = [
    *(("own", owner, how, "0") for owner in OWNERS for how in ("O_ASYNC", "FIOASYNC")),
    *(("own", "F_SETOWN", "O_ASYNC", signum) for signum in ("1", "2", "6", "9", "15", "19", "34", "64")),
    *(("urgent", owner) for owner in OWNERS),
    ("directory",),
    ("lease",),
]
SECURITY = Path(__file__).parents[2] / "docs" / "security.md"


@pytest.fixture(scope="module")
def workspace() -> Iterator[Path]:
    with a_workspace("owner_signals") as directory:
        yield directory


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["host", "private"])
async def box(engine_service: EngineService, workspace: Path, request: pytest.FixtureRequest) -> AsyncIterator[Box]:
    """Container root is the host's without rights, and one with some in a user namespace."""
    need_root_for(request.param)
    async with served(engine_service, workspace, user_namespace=request.param) as one:
        yield one
        assert await one.works()


@shared
@pytest.mark.parametrize("way", WAYS, ids="-".join)
async def test_the_owner_of_a_descriptor_of_container_root_is_not_signalled(box: Box, way: tuple[str, ...]) -> None:
    """Whatever the call says: the command of another user lives on."""
    word, *arguments = way
    async with await box.start("sh", "-c", VICTIM, user=OTHER) as victim:
        pid = (await asyncio.wait_for(victim.stdout_read(), WAIT_S)).decode().strip()
        attempts = await box.output(PROGRAM, word, pid, *arguments, user=ROOT)
        assert attempts
        record = await victim.wait(UNHARMED_MS)
        assert record.state == "running", f"signal {record.signal}, exit code {record.exit_code} by {attempts}"
        assert "stopped" not in await box.output("sh", "-c", f"grep State /proc/{pid}/status", user=OTHER)
        await asyncio.wait_for(victim.kill(0), WAIT_S)


@shared
async def test_the_scheduling_group_of_the_init_is_out_of_reach_or_said_not_to_be(box: Box) -> None:
    """It counts only where the container has no cpu cgroup of its own (autogroup_task_group in kernel/sched)."""
    async with await box.start("sleep", "1000", user=OTHER) as process:
        init = init_of(process.id)
        before = autogroup(init)
        await box.output(PROGRAM, "autogroup", user=ROOT)
        changed = autogroup(init) != before
        has_group_of_its_own = cpu_cgroup(init) not in ("/", "")
        await asyncio.wait_for(process.kill(0), WAIT_S)
    if changed and not has_group_of_its_own:
        undefended = SECURITY.read_text(encoding="utf-8").partition("## What is not defended")[2]
        assert "autogroup" in undefended


def autogroup(pid: int) -> str:
    """Empty where the kernel has none."""
    path = Path(f"/proc/{pid}/autogroup")
    return path.read_text() if path.exists() else ""


def cpu_cgroup(pid: int) -> str:
    """Its cgroup of the cpu controller, or its only one (cgroups(7)); empty for none."""
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    paths = {name: path for _, names, path in lines for name in names.split(",")}
    return paths.get("cpu", paths.get("", ""))
