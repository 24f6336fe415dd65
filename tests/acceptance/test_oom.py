"""Who was killed for want of memory, on a real Podman and both lanes: told apart from any other 137."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from fastclaw.client import RuntimeClient
from fastclaw.limits import MIB
from tests.acceptance.hostile import need_limits

if TYPE_CHECKING:
    from tests.engine_fixtures import EngineService

pytestmark = pytest.mark.timeout(60)

SERVE = [sys.executable, "-m", "fastclaw", "serve", "--runtime", "podman"]
LIMIT = 64 * MIB
HOG = "tail /dev/zero"
"""tail(1) keeps a line of zeros that never ends."""


@pytest.mark.parametrize("lane", ["spawn", "rest"])
async def test_out_of_memory_is_said(engine_service: EngineService, lane: str) -> None:
    """vm0-ai/vm0#20599, #32963, paradigmxyz/centaur#1454, kubernetes/kubernetes#19825: "raise the limit" and "debug the
    program" could not be told apart."""
    options = {"url": engine_service.url, "lane": lane, "containers": 1, "memory_bytes": LIMIT, "pids_limit": 77}
    async with RuntimeClient.spawn(SERVE, namespace=f"oom-{lane}", options=options) as runtime:
        await need_limits(runtime, "memory_bytes")
        bystander = await runtime.exec(["cat"])
        victim = await (await runtime.exec(["sh", "-c", f"exec {HOG}"])).wait()
        assert (victim.reason, victim.oom_kills) == ("oom", 1)
        assert (victim.signal, victim.exit_code) == ((9, None) if lane == "spawn" else (None, 137))
        assert isinstance(victim.memory, dict)
        assert victim.memory["limit_bytes"] == LIMIT
        assert 0 < victim.memory["peak_bytes"] <= LIMIT

        survivor = await runtime.run(["sh", "-c", f"{HOG}; echo rc $?"])
        assert (survivor.exit_code, survivor.reason, survivor.stdout) == (0, "exited", b"rc 137\n")
        assert (survivor.oom_kills, survivor.memory["limit_bytes"]) == (1, LIMIT)
        passed_on = await runtime.run(["sh", "-c", f"{HOG}; exit $?"])
        assert (passed_on.exit_code, passed_on.reason, passed_on.oom_kills) == (137, "exited", 1)

        other = await runtime.run(["sh", "-c", "kill -9 $$"])
        assert (other.reason, other.oom_kills) == ("signaled" if lane == "spawn" else "exited", 0)

        ended = await runtime.exec(["sleep", "60"])
        assert (await runtime.run(["sh", "-c", HOG])).reason == "oom"
        await ended.signal("KILL")
        sent = await ended.wait()
        assert (sent.reason, sent.oom_kills) == ("signaled" if lane == "spawn" else "exited", 1)

        await bystander.kill(0)
        seen = await bystander.wait()
        assert (seen.reason, seen.oom_kills) == ("killed", 4)

        told = (await runtime.health()).details["limits"]
        assert (told["memory"]["limit_bytes"], told["memory"]["oom_kills"]) == (LIMIT, 4)
        assert told["memory"]["hits"] > 0
        assert told["pids"] == {"limit": 77, "hits": 0}
