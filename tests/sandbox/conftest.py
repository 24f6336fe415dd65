"""Hosts that stay up for all tests of this folder, and a fresh sandbox of one for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fastclaw.sandbox import Workspace
from fastclaw.sandbox.loop_thread import loop_thread
from fastclaw.sandbox.sync import Host, Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.engine_fixtures import EngineService


@pytest.fixture(scope="session", autouse=True)
def _thread() -> None:
    """It is there before the books are opened, and stays."""
    loop_thread()


@pytest.fixture(scope="package")
def podman_host(engine_service: EngineService) -> Iterator[Host]:
    """A host on a real engine."""
    with Host(runtime="podman", url=engine_service.url) as host:
        yield host


@pytest.fixture(scope="package")
def local_host() -> Iterator[Host]:
    """A host without one."""
    with Host(runtime="local") as host:
        yield host


@pytest.fixture
def podman_box(podman_host: Host) -> Iterator[Sandbox]:
    """A container."""
    with podman_host.start() as box:
        yield box


@pytest.fixture(params=["podman", "local"])
def box(request: pytest.FixtureRequest, podman_host: Host, local_host: Host, tmp_path: Path) -> Iterator[Sandbox]:
    """A container, and a directory of this host."""
    inside = tmp_path / "inside"
    inside.mkdir()
    started = podman_host.start() if request.param == "podman" else local_host.start(workspace=Workspace(str(inside)))
    with started as box:
        yield box
