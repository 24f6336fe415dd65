"""The seam: podman-py's errors as the product's. Real engines provoke most of them in test_lifecycle.py."""

import msgspec
import pytest
import requests
from podman.errors import APIError

from fastclaw.errors import StartFailed
from fastclaw.podman.failures import mapped_errors, to_start_failed


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
