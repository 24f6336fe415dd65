"""What is asked of Docker in other words than of Podman, against a real one: all through `EngineLifecycle`, whose own
tests run against Podman."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from fastclaw.engine.api import EngineLifecycle
from fastclaw.engine.container_spec import OPEN_NETWORK, InitPlan, container_spec
from fastclaw.engine.dialects import find_docker
from fastclaw.errors import StartFailed
from fastclaw.images import BuildImage
from fastclaw.linux.cgroups import CGROUPS
from fastclaw.linux.proc import this_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from typing import Any

    from tests.docker_fixtures import DockerService
    from tests.engine_fixtures import EngineService

LABELS = {"io.fastclaw.test": "dialects"}


@pytest.fixture
async def engine(docker_service: DockerService) -> AsyncIterator[EngineLifecycle]:
    one = EngineLifecycle(docker_service.url, 20, dialect=docker_service.dialect)
    yield one
    await one.aclose()


def spec(service: DockerService, name: str, **changes: Any) -> dict[str, Any]:
    made = container_spec(image=service.image, name=name, namespace="dialects", owner="o", init=InitPlan(), **changes)
    return {**made, "labels": LABELS}


async def test_what_it_is(engine: EngineLifecycle) -> None:
    version = await engine.version()
    assert version.docker[0].isdigit()
    assert (version.podman, version.conmon, version.rootless) == ("", "", False)
    assert version.storage_driver
    assert set(version.controllers) == {"memory", "pids", "cpu", "cpuset"}


def test_podman_is_not_taken_for_it(engine_service: EngineService) -> None:
    with pytest.raises(StartFailed, match="is Podman; use runtime 'podman'"):
        find_docker(engine_service.url, 5)


def test_who_does_not_answer_is_no_docker() -> None:
    with pytest.raises(StartFailed) as raised:
        find_docker("unix:///nonexistent/docker.sock", 5)
    assert raised.value.reason == "engine_unavailable"


async def test_a_container_from_its_making_to_its_end(engine: EngineLifecycle, docker_service: DockerService) -> None:
    id = await engine.create_container(spec(docker_service, "dialects-1"))
    await engine.start_container(id)
    state = await engine.inspect_container(id)
    assert state is not None
    assert state.running
    assert await engine.count_processes(id) == 2  # the shell and its sleep
    assert [one.id for one in await engine.list_containers(LABELS)] == [id]
    await engine.remove_container(id)
    assert await engine.inspect_container(id) is None
    await engine.remove_container(id)


async def test_a_runtime_that_it_does_not_have_is_refused(
    engine: EngineLifecycle, docker_service: DockerService
) -> None:
    with pytest.raises(StartFailed, match="runsc-none"):
        await engine.create_container(spec(docker_service, "dialects-2", oci_runtime="runsc-none"))
    assert await engine.list_containers(LABELS) == []


async def test_an_open_network_that_is_not_there_is_refused(
    engine: EngineLifecycle, docker_service: DockerService
) -> None:
    """Docker would leave the container alone in its network, without a word."""
    with pytest.raises(StartFailed, match="no default network") as raised:
        await engine.create_container(spec(docker_service, "dialects-4", network=OPEN_NETWORK))
    assert raised.value.reason == "network_failed"


async def test_it_is_not_taken_for_podman(docker_service: DockerService) -> None:
    engine = EngineLifecycle(docker_service.url, 20)
    with pytest.raises(StartFailed, match=r"set options\.runtime to docker"):
        await engine.version()
    await engine.aclose()


async def test_a_volume_belongs_to_whom_it_is_for(engine: EngineLifecycle) -> None:
    await engine.create_volume("dialects-1", LABELS, "1000:1001")
    assert [one.name for one in await engine.list_volumes(LABELS)] == ["dialects-1"]
    found = os.stat(f"{(await engine.version()).storage}/volumes/dialects-1/_data")
    assert (found.st_uid, found.st_gid) == (1000, 1001)
    await engine.remove_volume("dialects-1")
    assert await engine.list_volumes(LABELS) == []
    await engine.remove_volume("dialects-1")


async def test_what_is_in_an_image_and_what_is_not(engine: EngineLifecycle, docker_service: DockerService) -> None:
    image = await engine.ensure_image(docker_service.image, "never")
    passwd, none = await engine.image_files(image, spec(docker_service, "dialects-3"), ["/etc/passwd", "/none"])
    assert passwd.startswith("root:x:0:0:")
    assert none == ""


async def test_an_image_that_cannot_be_had(engine: EngineLifecycle) -> None:
    with pytest.raises(StartFailed, match=r"cannot pull 127\.0\.0\.1:1/none") as raised:
        await engine.ensure_image("127.0.0.1:1/none")
    assert raised.value.reason == "image_not_found"


async def test_a_build_leaves_no_control_group(
    engine: EngineLifecycle, docker_service: DockerService, tmp_path: Path
) -> None:
    """runc removes its own, and not the one that we have named above it."""
    await engine.version()
    (tmp_path / "Containerfile").write_text(f"FROM {docker_service.image}\nRUN echo built\n")
    told: list[str] = []
    assert await engine.build_image(BuildImage(directory=str(tmp_path)), lambda progress: told.append(progress.text))
    assert "built\n" in told
    assert [*CGROUPS.glob(f"*/{this_process().table_prefix}*"), *CGROUPS.glob(f"{this_process().table_prefix}*")] == []
