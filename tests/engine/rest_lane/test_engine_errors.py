"""The verdict on real texts. Taken from Podman 4.3.1 with crun 1.8.1 and runc 1.1.5;
test_exec_calls_confirmation.py makes them anew with the engine that is here."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw.engine.rest_lane.engine_errors import (
    Failure,
    is_missing_session,
    is_trailer,
    may_be_failed_execve,
    may_be_failure,
    may_be_trailer,
    refusal,
    start_failure,
    told_failure,
)
from fastclaw.errors import REASONS

TRAILER = b"Error: read unixpacket @->/proc/self/fd/14/attach: read: connection reset by peer\n"
MISSING = b": OCI runtime attempted to invoke a command that was not found\n"
DENIED = b": OCI permission denied\n"
OTHER = b": OCI runtime error\n"
CRUN = b"Error: crun: "
RUNC = b"Error: runc: exec failed: unable to start container process: "

OCI_TEXTS = [
    (
        "nosuch",
        127,
        CRUN + b"executable file `nosuch` not found in $PATH: No such file or directory" + MISSING,
        "not_found",
    ),
    ("no\nsuch", 127, CRUN + b"such` not found in $PATH: No such file or directory" + MISSING, "not_found"),
    ("nosuch", 127, RUNC + b'exec: "nosuch": executable file not found in $PATH' + MISSING, "not_found"),
    (
        "/bin/nosuch",
        127,
        RUNC + b'exec: "/bin/nosuch": stat /bin/nosuch: no such file or directory' + MISSING,
        "not_found",
    ),
    ("/tmp", 126, CRUN + b"open executable: Operation not permitted" + DENIED, "permission_denied"),
    ("/etc/plain", 126, CRUN + b"open executable: Permission denied" + DENIED, "permission_denied"),
    ("/tmp", 126, RUNC + b'exec: "/tmp": permission denied' + DENIED, "permission_denied"),
    ("true", 127, CRUN + b"chdir `/nope`: No such file or directory" + MISSING, "bad_working_dir"),
    ("true", 125, CRUN + b"chdir `/etc/plain`: Not a directory" + OTHER, "bad_working_dir"),
    (
        "true",
        127,
        RUNC + b'chdir to cwd ("/nope") set in config.json failed: no such file or directory' + MISSING,
        "bad_working_dir",
    ),
    ("true", 125, b"Error: runc: exec failed: Cwd must be an absolute path" + OTHER, "bad_working_dir"),
    (
        "true",
        125,
        RUNC + b'environment variable value can\'t contain null(\\x00): "A=b\\x00c"' + OTHER,
        "invalid_params",
    ),
    ("true", 125, CRUN + b"cannot setresuid to `5`: Invalid argument" + OTHER, "unknown_user"),
    ("true", 126, RUNC + b"unable to setup user: invalid argument" + OTHER, "unknown_user"),
    ("true", 125, CRUN + b"the container `0123` is not running" + OTHER, "container_gone"),
    ("/etc/passwd/x", 126, CRUN + b"open executable: Not a directory" + OTHER, "not_found"),
    ("/tmp/loop", 126, CRUN + b"open executable: Too many levels of symbolic links" + OTHER, "not_found"),
    ("x" * 300, 126, CRUN + b"open executable: File name too long" + OTHER, "too_long"),
    ("true", 125, CRUN + b"clone: Resource temporarily unavailable" + OTHER, "overloaded"),
    ("true", 125, CRUN + b"something new" + OTHER, "engine_error"),
    ("true", 125, b'Error: container create failed (no logs from conmon): conmon bytes "": EOF\n', "engine_error"),
]

EXECVE_TEXTS = [
    ("noshebang", 1, b"exec: Exec format error\n", "not_executable"),
    ("noshebang", 1, b"exec /bin/noshebang: exec format error\n", "not_executable"),
    ("/bin/badinterp", 1, b"exec: No such file or directory\n", "not_found"),
    ("true", 1, b"exec: Argument list too long\n", "too_long"),
    ("true", 255, b"exec /bin/true: argument list too long\n", "too_long"),
    (
        "x",
        1,
        b'{"msg":"exec container process `/bin/x`: Exec format error","level":"error","time":"2026-05-07T00:00:00Z"}\n',
        "not_executable",
    ),
]


@pytest.mark.parametrize("trailer", [b"", TRAILER])
@pytest.mark.parametrize(("argv0", "code", "text", "reason"), OCI_TEXTS)
def test_what_the_oci_runtime_refuses(argv0: str, code: int, text: bytes, reason: str, trailer: bytes) -> None:
    failure = start_failure(argv0, code, False, text + trailer, had_pid=False)
    assert failure is not None
    assert failure.reason == reason
    assert argv0 in failure.message
    assert "OCI" not in failure.message


NAMES = ["not running", "no such container", "chdir", "contain null", "Text file busy", "unable to find user"]
"""Of programs, each like a text of an engine's: this one is missing, and nothing else is the matter."""


@pytest.mark.parametrize("name", [*NAMES, "not`running", "`not running", "not running`", 'a "not running" b', "o", "`"])
@pytest.mark.parametrize("before", ["", "/tmp/", "a\n", "a`b\n"])
def test_a_missing_program_may_be_called_like_an_engines_text(before: str, name: str) -> None:
    argv0 = before + name
    told = f"executable file `{argv0}` not found in $PATH: No such file or directory".rpartition("\n")[2]
    crun = start_failure(argv0, 127, False, CRUN + told.encode() + MISSING, had_pid=False)
    quoted = json.dumps(argv0)
    runc = start_failure(
        argv0,
        127,
        False,
        RUNC + f"exec: {quoted}: stat {argv0}: no such file or directory".encode() + MISSING,
        had_pid=False,
    )
    assert crun is not None
    assert runc is not None
    assert (crun.reason, runc.reason) == ("not_found", "not_found")


@pytest.mark.parametrize("user", [*NAMES, "Invalid argument"])
def test_an_unknown_user_may_be_called_like_an_engines_text(user: str) -> None:
    body = f"unable to find user {user}: no matching entries in passwd file"
    assert refusal(500, json.dumps({"message": body}).encode()).reason == "unknown_user"


@pytest.mark.parametrize("had_pid", [False, True])
@pytest.mark.parametrize(("argv0", "code", "text", "reason"), EXECVE_TEXTS)
def test_what_execve_refuses(argv0: str, code: int, text: bytes, reason: str, had_pid: bool) -> None:
    failure = start_failure(argv0, code, False, text, had_pid=had_pid)
    assert failure is not None
    assert failure.reason == reason


@pytest.mark.parametrize(
    ("code", "stdout_seen", "stderr", "had_pid"),
    [
        (127, False, b"", False),
        (126, False, b"", False),
        (127, False, b"sh: nosuch: not found\n", False),
        (127, False, b"Error: fake\n", False),
        (125, False, b"Error: crun: my own words\n", False),
        (0, False, OCI_TEXTS[0][2], False),
        (1, False, OCI_TEXTS[0][2], False),
        (127, True, OCI_TEXTS[0][2], False),
        (127, False, OCI_TEXTS[0][2], True),
        (127, False, b"before\n" + OCI_TEXTS[0][2], False),
        (127, False, OCI_TEXTS[0][2] + b"after\n", False),
        (0, False, b"exec: Exec format error\n", False),
        (1, False, b"exec /bin/other: exec format error\n", False),
        (1, False, b"exec: Exec format error\nand more\n", False),
    ],
)
def test_a_program_of_the_users_own_is_never_a_failure(
    code: int, stdout_seen: bool, stderr: bytes, had_pid: bool
) -> None:
    assert start_failure("nosuch", code, stdout_seen, stderr, had_pid=had_pid) is None


@given(st.integers(0, 255), st.booleans(), st.binary(max_size=80), st.booleans())
def test_whatever_is_a_failure_has_a_known_reason_and_an_engine_text(
    code: int, stdout_seen: bool, stderr: bytes, had_pid: bool
) -> None:
    failure = start_failure("x", code, stdout_seen, stderr, had_pid=had_pid)
    if failure is not None:
        assert failure.reason in REASONS
        assert may_be_failure(stderr)


@pytest.mark.parametrize("text", [entry[2] for entry in OCI_TEXTS + EXECVE_TEXTS])
def test_every_beginning_of_an_engine_text_is_held_for_one(text: bytes) -> None:
    assert all(may_be_failure(text[:end]) for end in range(len(text) + 1))


@pytest.mark.parametrize("text", [b"x", b"error: ", b"Err!", b"\n"])
def test_other_text_is_let_go_at_once(text: bytes) -> None:
    assert not may_be_failure(text)


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (500, "can only create exec sessions on running containers: container state improper", "container_gone"),
        (404, 'no container with name or ID "x" found: no such container', "container_gone"),
        (409, "cannot create exec session as container 0123 is paused", "engine_error"),
        (500, "unable to find user nobodyx: no matching entries in passwd file", "unknown_user"),
        (500, "unable to find group nogrp: no matching entries in group file", "unknown_user"),
        (500, "open /var/lib/x: no such file or directory", "engine_error"),
    ],
)
def test_plain_refusals(status: int, body: str, reason: str) -> None:
    assert refusal(status, b'{"cause":"c","message":"%b","response":1}' % body.replace('"', '\\"').encode()) == Failure(
        reason, body
    )


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'"x"', b"\xff"])
def test_a_refusal_in_another_form_still_has_a_message(body: bytes) -> None:
    assert refusal(502, body) == Failure("engine_error", "the engine answered 502")


def test_a_missing_session_is_told_from_a_missing_container() -> None:
    session = b'{"message":"no exec session with ID 27a2 found: no such exec session"}'
    container = b'{"message":"no container with name or ID \\"k0\\" found: no such container"}'
    assert is_missing_session(404, session)
    assert not is_missing_session(404, container)
    assert not is_missing_session(500, session)


def test_wait_statuses_of_a_failed_execve() -> None:
    assert may_be_failed_execve(1 << 8)
    assert not may_be_failed_execve(0)
    assert not may_be_failed_execve(7 << 8)
    assert not may_be_failed_execve(9)


@pytest.mark.parametrize(
    "trailer", [TRAILER, TRAILER.replace(b"read", b"write").replace(b"connection reset by peer", b"broken pipe")]
)
def test_the_engines_last_line(trailer: bytes) -> None:
    assert is_trailer(trailer)
    assert all(may_be_trailer(trailer[:end], cut=True) for end in range(1, len(trailer) + 1))
    assert not may_be_trailer(trailer[:3], cut=False)
    assert not may_be_trailer(trailer + b"more", cut=True)
    assert not is_trailer(trailer + b"more")
    assert not is_trailer(b"x" + trailer)


@pytest.mark.parametrize(
    ("text", "reason", "message"),
    [
        (
            b'OCI runtime exec failed: exec failed: unable to start container process: exec: "nope": executable file '
            b"not found in $PATH: unknown\r\n",
            "not_found",
            'exec: "nope": executable file not found in $PATH',
        ),
        (
            b"unable to find user nobody2: no matching entries in passwd file\r\n",
            "unknown_user",
            "nope: unable to find user nobody2: no matching entries in passwd file",
        ),
        (
            b'OCI runtime exec failed: exec failed: unable to start container process: chdir to cwd ("/x") set in '
            b"config.json failed: no such file or directory: unknown\r\n",
            "bad_working_dir",
            'nope: chdir to cwd ("/x") set in config.json failed: no such file or directory',
        ),
        (b"", "engine_error", "nope: the engine does not say why"),
    ],
)
def test_what_docker_says_of_a_start_that_failed(text: bytes, reason: str, message: str) -> None:
    """Taken from Docker 20.10.24 with runc 1.1.5."""
    assert told_failure("nope", text) == Failure(reason, message)


def test_docker_has_another_word_for_a_session() -> None:
    assert is_missing_session(404, b'{"message":"No such exec instance: 5e55"}')
    assert not is_missing_session(404, b'{"message":"No such container: c"}')
