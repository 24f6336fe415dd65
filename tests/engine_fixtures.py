"""One private Podman service for all tests that need an engine, with its own storage and the busybox image in it.

Registered by tests/conftest.py; started by the first test that asks for it.
"""

import asyncio
import os
import select
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest
from msgspec import Struct
from podman import PodmanClient

from fastclaw.engine.base_image import default_archive, make_image
from fastclaw.engine.service.facts import host_facts
from fastclaw.engine.service.plan import DEFAULT_IMAGE, ServicePlan, plan_service
from fastclaw.engine.service.service import ManagedService
from fastclaw.errors import StartFailed
from fastclaw.linux import proc
from tests.pids import command_line


class EngineService(Struct, frozen=True, kw_only=True):
    """A running service. `image` is in its storage."""

    url: str
    image: str
    state_dir: Path
    run_dir: Path
    plan: ServicePlan


class LoopThread:
    """An event loop in a thread that lives as long as the session, as the service's death signal asks for."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine-service")
        self._thread.start()

    def run(self, call: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a coroutine on the loop and wait for it."""
        asyncio.run_coroutine_threadsafe(call(), self._loop).result(60)

    def close(self) -> None:
        """End the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


@pytest.hookimpl(tryfirst=True)  # before `-m` looks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that asks for an engine needs Podman."""
    for item in items:
        if {"engine_plan", "engine_service"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.podman)


def unusable(reason: str) -> NoReturn:
    """Skip where a developer has no engine; fail where CI promises one."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"engine tests need Podman in CI: {reason}", pytrace=False)
    pytest.skip(reason)


@contextmanager
def short_directory() -> Iterator[Path]:
    """What a private engine can be in: whoever still uses it in the end is ended, and what it mounted is unmounted."""
    path = Path(tempfile.mkdtemp(prefix="fc", dir="/tmp"))
    try:
        yield path
    finally:
        _end_processes_of(path)
        _unmount_below(path)
        remove_tree(path)


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory with a path short enough for sockets; what is mounted below it is unmounted first."""
    with short_directory() as path:
        yield path


@pytest.fixture(scope="session")
def engine_plan() -> ServicePlan:
    """How a service runs on this machine."""
    try:
        return plan_service(host_facts(Path(tempfile.gettempdir())))
    except StartFailed as error:
        unusable(str(error))


@pytest.fixture(autouse=True)
def _podman_where_it_is_needed(request: pytest.FixtureRequest) -> None:
    """Also for a test that has an engine of its own."""
    if request.node.get_closest_marker("podman") is not None:
        request.getfixturevalue("engine_plan")


@pytest.fixture(scope="session")
def engine_service(engine_plan: ServicePlan) -> Iterator[EngineService]:
    """A service with `.url` and `.image`, shared by all tests of the session."""
    loop = LoopThread()
    with short_directory() as base:
        state_dir, run_dir = base / "s", base / "r"
        service = ManagedService(engine_plan, state_dir, run_dir)
        try:
            loop.run(service.start)
            _import_image(service.url)
            yield EngineService(
                url=service.url, image=DEFAULT_IMAGE, state_dir=state_dir, run_dir=run_dir, plan=engine_plan
            )
            _remove_containers(service.url)
        except StartFailed as error:
            unusable(str(error))
        finally:
            loop.run(service.aclose)
            loop.close()


def _import_image(url: str) -> None:
    with PodmanClient(base_url=url) as client:
        make_image(client.api, DEFAULT_IMAGE, default_archive())


def _remove_containers(url: str) -> None:
    with PodmanClient(base_url=url) as client:
        for container in client.containers.list(all=True):
            client.api.delete(f"/containers/{container.id}", params={"force": True, "timeout": 0})


def remove_tree(path: Path) -> None:
    """With what is of subordinate ids, or shut by its mode: an ordinary user may that where he is the root of these."""
    argv = ["unshare", "--map-root-user", "--map-auto", "rm", "-rf", "--", str(path)]
    if os.geteuid() == 0 or subprocess.run(argv, capture_output=True, check=False).returncode:
        shutil.rmtree(path)


def _end_processes_of(path: Path) -> None:
    """conmon starts a Podman when its container ends; it would go on writing below `path`."""
    for pid in proc.pids():
        if f"{path}/".encode() in command_line(pid):
            _kill_and_wait(pid)


def _kill_and_wait(pid: int) -> None:
    with suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], 5)
        finally:
            os.close(pidfd)


def _unmount_below(path: Path) -> None:
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        point = line.split(" ")[4]
        if point.startswith(f"{path}/"):
            os.spawnlp(os.P_WAIT, "umount", "umount", "-l", point)
