"""podman-py's client as it is made here, and the shapes of a real engine's answers."""

from __future__ import annotations

import gc
import json
import os
import socket
from typing import TYPE_CHECKING

import msgspec
import pytest
import requests
from podman.errors import APIError

from fastclaw.errors import StartFailed
from fastclaw.podman.podman_client import (
    Created,
    Info,
    Inspected,
    Listed,
    ListedVolume,
    Top,
    answer,
    make_client,
    mapped_errors,
    to_start_failed,
)
from tests.balance import open_descriptors
from tests.podman.rest_rig import RUNTIME

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from podman.api.client import APIClient

    from tests.podman.conftest import EngineService
    from tests.podman.rest_rig import Engine


@pytest.fixture
def client(engine_service: EngineService) -> Iterator[APIClient]:
    """On the shared service."""
    with make_client(engine_service.url, 10) as made:
        yield made


@pytest.mark.podman
def test_the_engine_itself(client: APIClient, engine_service: EngineService) -> None:
    info = answer(client.get("/info"), Info)
    assert info.version.version[0].isdigit()
    assert "conmon" in info.host.conmon.version
    assert (info.host.oci_runtime.name, info.host.security.rootless) == (
        engine_service.plan.oci_runtime,
        os.geteuid() != 0,
    )
    assert info.host.cgroup_version in ("v1", "v2")
    assert info.store.graph_driver_name


@pytest.mark.podman
def test_a_running_container(client: APIClient, rest_engine: Engine) -> None:
    container = rest_engine.containers[RUNTIME]
    inspected = answer(client.get(f"/containers/{container}/json"), Inspected)
    assert inspected.state.running
    assert inspected.state.pid > 0
    assert inspected.oci_runtime == RUNTIME
    listed = answer(client.get("/containers/json"), list[Listed])
    assert {one.id: one.state for one in listed}[container] == "running"
    top = answer(client.get(f"/containers/{container}/top", params={"stream": "false"}), Top)
    assert any("sleep" in words[-1] for words in top.processes)


@pytest.mark.podman
def test_a_container_that_never_ran(client: APIClient, engine_service: EngineService) -> None:
    body = json.dumps({"image": engine_service.image, "labels": {"a": "b"}, "netns": {"nsmode": "none"}})
    created = answer(client.post("/containers/create", data=body), Created)
    try:
        inspected = answer(client.get(f"/containers/{created.id}/json"), Inspected)
        assert (inspected.state.running, inspected.state.pid) == (False, 0)
        [listed] = answer(
            client.get("/containers/json", params={"all": True, "filters": '{"label":["a=b"]}'}), list[Listed]
        )
        assert (listed.id, (listed.labels or {})["a"]) == (created.id, "b")
    finally:
        client.delete(f"/containers/{created.id}", params={"force": True}).raise_for_status()


@pytest.mark.podman
def test_volumes(client: APIClient) -> None:
    name = f"client-{os.getpid()}"
    client.post("/volumes/create", data=json.dumps({"Name": name, "Label": {"a": "b"}})).raise_for_status()
    try:
        volumes = {one.name: one.labels for one in answer(client.get("/volumes/json"), list[ListedVolume])}
        assert volumes[name] == {"a": "b"}
    finally:
        client.delete(f"/volumes/{name}").raise_for_status()


@pytest.mark.podman
def test_a_refusal_is_podman_pys_own_error(client: APIClient) -> None:
    with pytest.raises(APIError, match="no such container") as caught:
        answer(client.get("/containers/no-such-container/json"), Inspected)
    assert caught.value.status_code == 404


@pytest.mark.podman
def test_a_shape_that_was_not_asked_for(client: APIClient) -> None:
    with pytest.raises(msgspec.MsgspecError):
        answer(client.get("/info"), list[Listed])


def test_labels_may_be_missing() -> None:
    """Podman leaves them out or says null."""
    wire = b'[{"Id":"a","State":"created"},{"Id":"b","State":"exited","Labels":null}]'
    assert [one.labels for one in msgspec.json.decode(wire, type=list[Listed])] == [None, None]
    assert msgspec.json.decode(b'{"Name":"v","Labels":null}', type=ListedVolume).labels is None


def test_an_old_engine_does_not_name_the_oci_runtime() -> None:
    inspected = msgspec.json.decode(b'{"State":{"Pid":1,"Running":true}}', type=Inspected)
    assert inspected.oci_runtime == ""


def test_a_failed_connect_closes_its_socket_at_once(short_dir: Path) -> None:
    """While the error, and with it every frame on the way, is still held."""
    with make_client(f"unix://{short_dir}/none.sock", 5) as client:
        gc.disable()
        try:
            before = open_descriptors()
            with pytest.raises(APIError) as caught:
                client.get("/info")
            assert open_descriptors() == before
        finally:
            gc.enable()
    assert isinstance(caught.value.__cause__, requests.ConnectionError)


def test_an_engine_that_never_answers(short_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_dir / "e.sock"))
        listener.listen()
        with make_client(f"unix://{short_dir}/e.sock", 0.1) as client, pytest.raises(APIError) as caught:
            client.get("/info")
    assert isinstance(caught.value.__cause__, requests.Timeout)


@pytest.mark.podman
def test_proxies_of_the_environment_are_not_asked(
    engine_service: EngineService, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with make_client(engine_service.url, 5) as client:
        assert not client.trust_env
        assert answer(client.get("/info"), Info).version.version


def test_a_proxy_is_not_asked_for_tcp_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens at either port of this host; the error names the one that was tried."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with make_client("tcp://127.0.0.1:2", 5) as client, pytest.raises(APIError) as caught:
        client.get("/info")
    assert "port=2" in str(caught.value.__cause__)
    assert not isinstance(caught.value.__cause__, requests.exceptions.ProxyError)


def refused(status: int, text: str) -> APIError:
    """What podman-py raises for an answer of the engine."""
    response = requests.Response()
    response.status_code = status
    return APIError(text, response=response, explanation=text)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (refused(404, "localhost/x:latest: image not known"), "image_not_found"),
        (refused(404, "no such image"), "image_not_found"),
        (refused(404, 'no container with name or ID "x" found: no such container'), "container_gone"),
        (refused(500, "statfs /nowhere: no such file or directory"), "bad_mount"),
        (refused(500, "crun: mount `/x` to `y`: Permission denied: OCI permission denied"), "bad_mount"),
        (refused(500, "netavark: No such file or directory (os error 2)"), "network_failed"),
        (
            refused(500, "--storage-opt is supported only for overlay over xfs"),
            "unsupported",
        ),
        (refused(500, "write /x/.tmp-layers.json1: no space left on device"), "engine_error"),
        (refused(500, "crun: setrlimit: Operation not permitted"), "engine_error"),
        (TimeoutError(), "engine_timeout"),
        (requests.ReadTimeout("read timed out"), "engine_timeout"),
        (requests.ConnectionError("refused"), "engine_unavailable"),
        (ValueError("not JSON"), "engine_error"),
        (msgspec.ValidationError("Object missing required field `Id`"), "engine_error"),
    ],
)
def test_reason(error: Exception, reason: str) -> None:
    mapped = to_start_failed(error, "unix:///x", 3)
    assert mapped.reason == reason
    assert "\n" not in str(mapped)


def test_many_lines_become_one() -> None:
    assert str(to_start_failed(refused(500, "a\n  b\n"), "u", 1)) == "start failed: a b"


def test_the_original_error_is_kept() -> None:
    original = requests.ConnectionError("refused")
    with pytest.raises(StartFailed) as caught, mapped_errors("u", 1):
        raise original
    assert caught.value.__cause__ is original


def test_a_bug_is_not_an_engine_error() -> None:
    with pytest.raises(AttributeError), mapped_errors("u", 1):
        raise AttributeError("a bug")
