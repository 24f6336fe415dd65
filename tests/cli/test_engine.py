"""`fastclaw engine` on a private state of its own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from podman import PodmanClient

from fastclaw.engine.service.plan import DEFAULT_IMAGE, ServicePlan
from fastclaw.linux.proc import start_time
from tests.cli.programs import FASTCLAW_WITHOUT_PODMAN, Call, assert_one_line, fastclaw, homes, without_podman

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engine_fixtures import EngineService


@pytest.fixture
def at_home(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands of this process find their directories below this one."""
    for name, value in homes(short_dir).items():
        monkeypatch.setenv(name, value)
    return short_dir


def state(call: Call, *arguments: str) -> dict[str, Any]:
    """What `engine ARGUMENTS… --json` says."""
    done = call("engine", *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    told: dict[str, Any] = msgspec.json.decode(done.stdout)
    return told


@pytest.mark.podman
def test_start_status_image_stop(engine_plan: ServicePlan, at_home: Path, call: Call) -> None:
    assert b"not running" in call("engine", "status").stdout
    started = state(call, "start")
    try:
        assert (started["running"], started["answers"]) == (True, True)
        assert started["url"].startswith(f"unix://{at_home}")
        assert state(call, "start") == state(call, "status") == started
        assert (
            call("engine", "status").stdout == f"running, pid {started['pid']}: use --url {started['url']}\n".encode()
        )
        assert call("engine", "image", "--url", started["url"]).stdout == f"{DEFAULT_IMAGE}\n".encode()
        assert call("engine", "image", "localhost/mine:1").stdout == b"localhost/mine:1\n"
        with PodmanClient(base_url=started["url"]) as client:
            assert {tag for image in client.images.list() for tag in image.tags} == {DEFAULT_IMAGE, "localhost/mine:1"}
        run = fastclaw("run", "--runtime=podman", "--url", started["url"], "-ocontainers=1", "--", "echo", "hi")
        assert (run.returncode, run.stdout) == (0, b"hi\n")
    finally:
        stopped = state(call, "stop")
    assert (stopped["running"], stopped["pid"]) == (False, None)
    assert start_time(started["pid"]) is None
    assert state(call, "stop") == stopped
    assert not os.path.exists(started["url"].removeprefix("unix://"))


@pytest.mark.podman
def test_the_engine_outlives_the_command_that_started_it(engine_plan: ServicePlan, at_home: Path, call: Call) -> None:
    done = fastclaw("engine", "start", "--json", env=homes(at_home))
    try:
        assert done.returncode == 0, done.stderr
        assert state(call, "status") == msgspec.json.decode(done.stdout)
    finally:
        state(call, "stop")


@pytest.mark.podman
def test_an_image_in_a_named_engine(engine_service: EngineService, call: Call) -> None:
    assert call("engine", "image", "--url", engine_service.url, "localhost/named:1").returncode == 0
    with PodmanClient(base_url=engine_service.url) as client:
        assert client.images.exists("localhost/named:1")
        client.images.remove("localhost/named:1")


def test_an_image_in_an_engine_that_is_not_there(call: Call) -> None:
    done = call("engine", "image", "--url", "unix:///nonexistent/socket")
    assert (done.returncode, done.stdout) == (1, b"")
    assert "no engine answers" in assert_one_line(done.stderr)


def test_without_podman_start_says_what_to_install(tmp_path: Path) -> None:
    environment = {**homes(tmp_path), **without_podman(tmp_path)}
    done = fastclaw("engine", "start", command=FASTCLAW_WITHOUT_PODMAN, env=environment)
    assert (done.returncode, done.stdout) == (1, b"")
    assert "apt-get install podman" in assert_one_line(done.stderr)
