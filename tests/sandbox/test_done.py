"""How a command ended, for people."""

import pickle
import signal

import pytest

from fastclaw.errors import ExecFailed
from fastclaw.runtime import ExitRecord
from fastclaw.sandbox import CommandFailed, Done, SandboxGone
from fastclaw.sandbox.done import done_of, not_started


def record(**fields: object) -> ExitRecord:
    return ExitRecord(process_id="p", state="exited", timings={"started": 500_000, "exited": 2_000_000}, **fields)  # type: ignore[arg-type]  # fields of a record, each with a type of its own


def test_an_exit_code_is_the_commands_own() -> None:
    done = done_of(record(exit_code=3, reason="exited"))
    assert (done.exit_code, done.signal, done.reason, done.duration, done.ok) == (3, None, "exited", 1.5, False)


def test_a_signal_is_told_as_a_shell_does() -> None:
    done = done_of(record(signal=signal.SIGTERM, reason="signaled"))
    assert (done.exit_code, done.signal, done.ending) == (143, 15, "SIGTERM")
    assert done_of(record(signal=42, reason="signaled")).ending == "signal 42"


def test_an_end_that_cannot_be_known_is_no_success() -> None:
    done = done_of(record(reason="unknown"))
    assert done.exit_code == -1
    assert not done.ok


def test_success_is_an_exit_of_its_own() -> None:
    assert done_of(record(exit_code=0, reason="exited")).ok
    for reason in ("timeout", "killed", "oom"):
        assert not done_of(record(exit_code=0, reason=reason)).ok


def test_the_end_of_the_sandbox_is_an_error_with_what_is_known() -> None:
    with pytest.raises(SandboxGone) as failed:
        done_of(record(reason="container_gone"))
    assert failed.value.done is not None
    assert failed.value.reason == "container_gone"


@pytest.mark.parametrize(
    ("reason", "code"),
    [("not_found", 127), ("permission_denied", 126), ("not_executable", 126), ("unknown_user", 125), ("too_long", 125)],
)
def test_what_the_caller_got_wrong_is_an_outcome(reason: str, code: int) -> None:
    done = not_started(ExecFailed("'x': because", reason))
    assert (done.exit_code, done.reason, done.error, done.ok) == (code, reason, "'x': because", False)
    assert done.ending == f"did not start ({reason})"
    assert done.error_text == "'x': because"


@pytest.mark.parametrize("reason", ["overloaded", "engine_error", "engine_timeout", "template_gone"])
def test_what_the_machine_did_is_an_error(reason: str) -> None:
    with pytest.raises(ExecFailed):
        not_started(ExecFailed("x", reason))


def test_a_check_shows_the_end_of_what_it_said() -> None:
    failed = Done(exit_code=1, reason="exited", stderr=b"x" * 2000 + b"\nValueError: no\n")
    with pytest.raises(CommandFailed, match=r"^exit code 1: x+\nValueError: no$") as error:
        failed.check()
    assert len(str(error.value)) < 600
    assert error.value.done is failed
    quiet = Done(exit_code=1, reason="exited", stdout=b"only this")
    with pytest.raises(CommandFailed, match=r"^exit code 1: only this$"):
        quiet.check()
    with pytest.raises(CommandFailed, match=r"^exit code 1$"):
        Done(exit_code=1, reason="exited").check()


def test_a_success_is_passed_on() -> None:
    done = Done(exit_code=0, reason="exited", stdout=b"\xff.")
    assert done.check() is done
    assert done.text == "\N{REPLACEMENT CHARACTER}."


def test_its_error_goes_to_other_processes() -> None:
    error = CommandFailed(Done(exit_code=1, reason="exited", stderr=b"no"))
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.done) == (str(error), error.done)


def test_it_says_what_one_wants_to_know() -> None:
    done = Done(exit_code=1, reason="exited", stdout=b"abc", stderr=b"de", duration=0.25)
    assert repr(done) == "<Done exit code 1 after 0.250 s, 3 bytes of stdout, 2 bytes of stderr>"
    assert repr(Done(exit_code=143, signal=15, reason="timeout", duration=1)).startswith(
        "<Done timeout, SIGTERM after 1.000 s"
    )
