"""From errno to the product's words: what the kernel meant, and at which step."""

from __future__ import annotations

import errno
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from fastclaw.errors import REASONS
from fastclaw.spawn import refusals

if TYPE_CHECKING:
    from pathlib import Path

OVERLOADED = [errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM]
EXECVE = {
    errno.ENOENT: "not_found",
    errno.ENOTDIR: "not_found",
    errno.ELOOP: "not_found",
    errno.EACCES: "permission_denied",
    errno.EPERM: "permission_denied",
    errno.ENOEXEC: "not_executable",
    errno.ELIBBAD: "not_executable",
    errno.ETXTBSY: "not_executable",
    errno.E2BIG: "too_long",
    errno.ENAMETOOLONG: "too_long",
    **dict.fromkeys(OVERLOADED, "overloaded"),
}
"""Errors of execve(2)."""


def failure(number: int, filename: str | bytes | None = None) -> OSError:
    return OSError(number, "not shown", filename)


@pytest.mark.parametrize("number", EXECVE, ids=errno.errorcode.get)
def test_an_error_of_execve_names_the_command_and_the_kernels_words(number: int) -> None:
    refused = refusals.exec_refused("agent", failure(number))
    assert refused.reason == EXECVE[number]
    assert str(refused) == f"exec failed: 'agent': {os.strerror(number)}"


@pytest.mark.parametrize("number", errno.errorcode, ids=errno.errorcode.get)
def test_every_errno_at_every_step_has_a_reason_of_the_contract(number: int) -> None:
    error = failure(number)
    made = (
        refusals.exec_refused("a", error),
        refusals.directory_refused("/a", error),
        refusals.user_refused("a", error),
        refusals.resources_refused(error),
    )
    assert {refused.reason for refused in made} <= set(REASONS)
    assert all(os.strerror(number) in str(refused) for refused in made)


@pytest.mark.parametrize("number", OVERLOADED, ids=errno.errorcode.get)
def test_a_full_host_is_not_the_callers_fault_at_any_step(number: int) -> None:
    made = (
        refusals.exec_refused("a", failure(number)),
        refusals.directory_refused("/a", failure(number)),
        refusals.resources_refused(failure(number)),
    )
    assert {(refused.reason, refused.retryable) for refused in made} == {("overloaded", True)}


def test_an_error_without_a_number_keeps_its_own_words() -> None:
    refused = refusals.resources_refused(OSError("odd"))
    assert (refused.reason, str(refused)) == (
        "io_error",
        "exec failed: the host has no room for one more process: odd",
    )


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.EINVAL, "unknown_user"), (errno.EPERM, "permission_denied")], ids=str
)
def test_setuids_errors_are_about_the_user(number: int, reason: str) -> None:
    for filename in (None, b"/tmp"):
        refused = refusals.start_refused("a", "/tmp", "joe", failure(number, filename))
        assert refused.reason == reason
        assert "'joe'" in str(refused)


@pytest.mark.parametrize(
    ("user", "directory", "filename", "reason"),
    [
        (None, None, "a", "permission_denied"),
        ("joe", "/tmp", "a", "permission_denied"),
        (None, "/tmp", b"/tmp", "bad_working_dir"),
        ("joe", "/tmp", b"/tmp", "bad_working_dir"),
        (None, None, None, "io_error"),
        (None, "/tmp", None, "io_error"),
    ],
)
def test_the_filename_tells_the_step(
    user: str | None, directory: str | None, filename: str | bytes | None, reason: str
) -> None:
    assert refusals.start_refused("a", directory, user, failure(errno.EACCES, filename)).reason == reason


@pytest.mark.parametrize(
    ("command", "directory", "reason"),
    [
        ("/no/such", "/no/such", "bad_working_dir"),
        ("/no/such", "/", "not_found"),
        ("/", "/", "permission_denied"),
    ],
)
def test_subprocess_still_tells_the_steps_apart(command: str, directory: str, reason: str) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - any errno: what it means is what is asked
        subprocess.Popen([command], cwd=os.fsencode(directory))
    assert refusals.start_refused(command, directory, None, caught.value).reason == reason


def test_a_busy_text_file_is_no_program_yet(tmp_path: Path) -> None:
    path = tmp_path / "tool"
    with path.open("wb") as being_written:
        being_written.write(b"#!/bin/sh\n")
        being_written.flush()
        path.chmod(0o755)
        with pytest.raises(OSError) as caught:  # noqa: PT011 - any errno: what it means is what is asked
            subprocess.Popen([path])
    assert refusals.start_refused(str(path), None, None, caught.value).reason == "not_executable"


def test_what_is_no_text_for_a_process_is_the_callers_fault() -> None:
    refused = refusals.text_refused("a\0b", ValueError("embedded null byte"))
    assert (refused.reason, refused.fault) == ("invalid_params", "caller")
    assert str(refused) == "exec failed: 'a\\x00b': embedded null byte"
