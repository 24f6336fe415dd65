"""podman-py's client as it is made here, and the shapes of a real engine's answers."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import msgspec
import pytest
import requests
from podman.errors import APIError

from fastclaw.engine.podman_client import (
    Info,
    Inspected,
    Listed,
    ListedVolume,
    answer,
    close_client,
    is_refusal,
    make_client,
    mapped_errors,
    to_start_failed,
)
from fastclaw.errors import StartFailed
from tests.balance import open_descriptors

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engine.conftest import EngineService


def test_labels_may_be_missing() -> None:
    """Podman leaves them out or says null."""
    wire = b'[{"Id":"a","State":"created"},{"Id":"b","State":"exited","Labels":null}]'
    assert [one.labels for one in msgspec.json.decode(wire, type=list[Listed])] == [{}, {}]
    assert msgspec.json.decode(b'{"Name":"v","Labels":null}', type=ListedVolume).labels == {}


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


def test_a_closed_client_has_no_connection_left_though_an_answer_is_still_held(engine_service: EngineService) -> None:
    before = open_descriptors()
    client = make_client(engine_service.url, 5)
    held = client.get("/_ping")
    assert open_descriptors() != before
    close_client(client)
    assert open_descriptors() == before
    assert held.status_code == 200


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
        (refused(500, 'exec: "slirp4netns": executable file not found in $PATH'), "network_failed"),
        (
            refused(500, "failed to mount runtime directory for rootless netns: no such file or directory"),
            "network_failed",
        ),
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


def test_a_tmpdir_that_root_inside_cannot_enter_is_named() -> None:
    said = "crun: open `/tmp/user/0/intermediate-mountpoint-0.0`: Permission denied: OCI permission denied"
    text = str(to_start_failed(refused(500, said), "u", 1))
    assert text.endswith("; set TMPDIR to a directory that others may enter")


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


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (refused(500, "no"), True),
        (requests.ConnectionError(ConnectionRefusedError("refused")), True),
        (requests.ConnectionError(FileNotFoundError("no socket")), True),
        (requests.ConnectionError(ConnectionResetError("reset")), False),
        (requests.ReadTimeout("read timed out"), False),
    ],
)
def test_what_was_surely_not_done(error: Exception, is_one: bool) -> None:
    assert is_refusal(error) is is_one


def test_what_to_do_where_no_engine_answers() -> None:
    error = requests.ConnectionError("refused")
    assert str(to_start_failed(error, "u", 1)).endswith("; start it or change options.url")
    assert str(to_start_failed(error, "u", 1, "try again")).endswith("; try again")


def test_why_no_engine_answers() -> None:
    broken = requests.ConnectionError("a long address", ConnectionResetError("it hung up"))
    assert "(it hung up)" in str(to_start_failed(broken, "u", 1))
