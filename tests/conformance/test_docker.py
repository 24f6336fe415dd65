"""Over Docker: those promises that an engine has a part in, on both lanes, and what becomes of containers whose
`fastclaw serve` is killed. All promises over Docker are checked by `make test-hosts`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from fastclaw.client import RuntimeClient
from fastclaw.conformance.rig import POSIX
from fastclaw.conformance.runner import check
from fastclaw.engine.api import EngineLifecycle
from fastclaw.engine.container_spec import LABEL_NAMESPACE
from tests.waiting import until

if TYPE_CHECKING:
    from typing import Any

    from tests.docker_fixtures import DockerService

SERVE = [sys.executable, "-m", "fastclaw", "serve", "--runtime", "docker"]
AT_ONCE = 4

PROMISES = {
    "spawn": """
        X-USER P-REOPEN K-TREE R-SIGNAL T-TTY F-CONTENT ENV-APART-FILES ENV-RESET-FILES
        IMG-BUILD IMG-FAILS IMG-PULL IMG-LOAD IMG-CANCEL""",
    "rest": """
        X-MISSING X-NOT-A-PROGRAM X-DIR-MISSING X-USER X-OWN-127 P-ECHO K-TREE R-CODE F-ERRORS F-TAR""",
}


@pytest.mark.parametrize("lane", PROMISES)
async def test_promises_are_kept(docker_service: DockerService, lane: str) -> None:
    wanted = set(PROMISES[lane].split())
    options = {"url": docker_service.url, "lane": lane}
    report = await check(SERVE, POSIX, options, wanted, stderr=subprocess.DEVNULL, jobs=AT_ONCE)
    found = {finding.promise.id: finding for finding in report.findings}
    assert set(found) == wanted
    bad = [f"{name}: {one.verdict}: {one.detail}" for name, one in found.items() if one.verdict != "kept"]
    assert not bad, "\n".join(bad)


async def _containers(service: DockerService, namespace: str) -> list[str]:
    engine = EngineLifecycle(service.url, 20, dialect=service.dialect)
    try:
        return [found.id for found in await engine.list_containers({LABEL_NAMESPACE: namespace})]
    finally:
        await engine.aclose()


async def _are_gone(service: DockerService, namespace: str) -> bool:
    return not await _containers(service, namespace)


async def _killed(service: DockerService, namespace: str, **options: Any) -> None:
    """A `fastclaw serve` that was up, with one container."""
    client = RuntimeClient.spawn(SERVE, namespace=namespace, options={"url": service.url, **options})
    async with client:
        assert len(await _containers(service, namespace)) == 1
        os.kill(client.pid, signal.SIGKILL)
        assert await client.exited(10) == -signal.SIGKILL


async def test_a_spawner_takes_its_container_along_where_fastclaw_is_killed(docker_service: DockerService) -> None:
    await _killed(docker_service, "docker-killed", lane="spawn")
    await until(lambda: _are_gone(docker_service, "docker-killed"))
    async with RuntimeClient.spawn(SERVE, namespace="docker-killed", options={"environment": False}):
        """It removes the directory of the sockets."""


async def test_the_next_initialize_removes_what_the_rest_lane_had(docker_service: DockerService) -> None:
    await _killed(docker_service, "docker-killed-rest", lane="rest", workspace={"target": "/w"})
    (left,) = await _containers(docker_service, "docker-killed-rest")
    options = {"url": docker_service.url, "environment": False}
    async with (
        RuntimeClient.spawn(SERVE, namespace="docker-killed-rest", options=options) as runtime,
        await runtime.environment_start(user="1000", workspace={"target": "/w"}) as box,
    ):
        assert left not in await _containers(docker_service, "docker-killed-rest")
        done = await box.run(["sh", "-c", "echo hello >file && cat file; id -u"])
        assert done.stdout == b"hello\n1000\n"
    assert await _containers(docker_service, "docker-killed-rest") == []
