"""Every errno of every step has its words and its reason."""

from __future__ import annotations

import errno
import os

import pytest

from fastclaw.linux.executable import Finding
from fastclaw.processes.lane import StartSpec
from fastclaw.spawner import frames
from fastclaw.spawner.refusals import resources_refused, step_refused, text_refused

SPEC = StartSpec(
    process_id="p",
    cmd=["/bin/prog", "-x"],
    working_dir="/work",
    user="me",
    limits={"nofile": 9},
    tty=(24, 80),
    template="warm",
)
STEPS = {number for name, number in vars(frames).items() if name.startswith("STEP_")}
OVERLOADED = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOENT, "not_found"),
        (errno.ENOTDIR, "not_found"),
        (errno.ELOOP, "not_found"),
        (errno.EACCES, "permission_denied"),
        (errno.EPERM, "permission_denied"),
        (errno.ENOEXEC, "not_executable"),
        (errno.EINVAL, "not_executable"),
        (errno.ELIBBAD, "not_executable"),
        (errno.EISDIR, "not_executable"),
        (errno.ETXTBSY, "file_busy"),
        (errno.E2BIG, "too_long"),
        (errno.ENAMETOOLONG, "too_long"),
        (errno.ENOMEM, "overloaded"),
        (errno.EAGAIN, "overloaded"),
        (errno.EMFILE, "overloaded"),
        (errno.ENFILE, "overloaded"),
        (errno.EIO, "io_error"),
    ],
)
def test_execve(number: int, reason: str) -> None:
    refused = step_refused(frames.STEP_EXEC, number, SPEC)
    assert refused.reason == reason
    assert refused.retryable == (reason in ("overloaded", "file_busy"))
    assert str(refused) == f"exec failed: '/bin/prog': {os.strerror(number)}"


def test_what_was_found_is_said_in_place_of_the_kernel_s_word_and_only_where_it_is_about_files() -> None:
    found = Finding(1, False, errno.ENOENT, "/no/such/sh", b"")
    refused = step_refused(frames.STEP_EXEC, errno.ENOENT, SPEC, found)
    assert str(refused) == "exec failed: '/bin/prog': its interpreter '/no/such/sh' does not exist here"
    for number in (errno.ETXTBSY, errno.E2BIG, errno.ENOMEM):
        assert str(step_refused(frames.STEP_EXEC, number, SPEC, found)).endswith(os.strerror(number))


@pytest.mark.parametrize("number", OVERLOADED)
@pytest.mark.parametrize("step", sorted(STEPS - {frames.STEP_EXEC}))
def test_what_will_pass_may_be_tried_again_whatever_the_step(step: int, number: int) -> None:
    refused = step_refused(step, number, SPEC)
    assert (refused.reason, refused.retryable) == ("overloaded", True)


@pytest.mark.parametrize(
    ("step", "number", "reason", "words"),
    [
        (frames.STEP_DIRECTORY, errno.ENOENT, "bad_working_dir", "working directory '/work': No such file"),
        (frames.STEP_DIRECTORY, errno.EACCES, "bad_working_dir", "working directory '/work': Permission denied"),
        (frames.STEP_TTY, errno.ENOENT, "io_error", "no pseudo-terminal: No such file"),
        (frames.STEP_LIMIT, errno.EPERM, "permission_denied", "limits {'nofile': 9}: Operation not permitted"),
        (frames.STEP_LIMIT, errno.EINVAL, "io_error", "limits {'nofile': 9}: Invalid argument"),
        (frames.STEP_USER, errno.EPERM, "permission_denied", "user 'me': Operation not permitted"),
        (frames.STEP_USER, errno.EINVAL, "unknown_user", "user 'me': the environment's user namespace has no such id"),
        (frames.STEP_PROCESS, errno.ENOSYS, "io_error", "the process: Function not implemented"),
        (frames.STEP_REQUEST, errno.EBADF, "io_error", "the process: Bad file descriptor"),
        (frames.STEP_ADOPT, errno.ESRCH, "template_gone", "the worker ended before template 'warm'"),
        (999, errno.EIO, "io_error", "the process: Input/output error"),
    ],
)
def test_the_other_steps(step: int, number: int, reason: str, words: str) -> None:
    refused = step_refused(step, number, SPEC)
    assert (refused.reason, refused.retryable) == (reason, reason == "template_gone")
    assert str(refused).startswith(f"exec failed: {words}")


def test_an_errno_that_nobody_knows_still_has_words() -> None:
    assert step_refused(frames.STEP_EXEC, 9_999, SPEC).reason == "io_error"


def test_no_room() -> None:
    full = resources_refused(OSError(errno.EMFILE, "x"))
    assert (full.reason, full.retryable) == ("overloaded", True)
    assert "one more process: Too many open files" in str(full)
    other = resources_refused(OSError("no number"))
    assert (other.reason, str(other)) == ("io_error", "exec failed: there is no room for one more process: no number")


def test_a_text_that_cannot_be_passed_is_the_callers() -> None:
    refused = text_refused("true", ValueError("embedded null byte"))
    assert (refused.reason, refused.fault) == ("invalid_params", "caller")
    assert str(refused) == "exec failed: 'true': embedded null byte"
