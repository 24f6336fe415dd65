"""How the commands end: exit codes, and errors of one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import click
import pytest

from fastclaw.cli.commands import cli, complete_standard_descriptors, setting
from fastclaw.cli.main import COMMANDS
from fastclaw.errors import StartFailed
from tests.cli.programs import DEADLINE_S, FASTCLAW, Call, assert_one_line, fastclaw


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_is_there(call: Call, name: str) -> None:
    done = call(name, "--help")
    assert done.returncode == 0
    assert name.encode() + b" [OPTIONS]" in done.stdout
    assert done.stdout.splitlines()[2].strip()  # what it does


def test_without_a_command_there_is_help(call: Call) -> None:
    done = call()
    assert done.returncode == 2
    assert b"Commands:" in done.stderr


@pytest.mark.parametrize("arguments", [["nonsense"], ["--nonsense"], ["doctor", "--nonsense"], ["engine", "nonsense"]])
def test_a_wrong_word_is_one_line_that_says_where_to_look(call: Call, arguments: list[str]) -> None:
    done = call(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    line = assert_one_line(done.stderr)
    assert "nonsense" in line
    assert line.endswith("--help")


OTHER = b"/tmp/\xff"
POSIX = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    "words", [["printf", OTHER], ["-e", b"X=\xff", "env"], ["-w", OTHER, "pwd"], ["-o", b"image=\xff", "true"]]
)
def test_an_argument_that_is_no_utf8_is_named(words: list[str | bytes]) -> None:
    """UKGovernmentBEIS/inspect_k8s_sandbox#206: one odd file name took a whole run down in the JSON layer."""
    for locale in ({}, POSIX):
        done = fastclaw("run", "--runtime=local", *words, env={**os.environ, **locale})  # type: ignore[arg-type]
        number = 3 + [isinstance(word, bytes) for word in words].index(True)
        assert done.returncode == 125
        assert assert_one_line(done.stderr).startswith(f"Error: argument {number}, b'")


@pytest.mark.parametrize("name", ["XDG_STATE_HOME", "XDG_RUNTIME_DIR", "HOME"])
def test_a_variable_with_a_path_that_is_no_utf8_is_named(name: str) -> None:
    environment: dict[str, str | bytes] = {**os.environ, name: OTHER}
    done = fastclaw("run", "--runtime=local", "true", env=environment)
    assert done.returncode == 125
    assert assert_one_line(done.stderr).startswith(rf"Error: {name}, b'/tmp/\xff', is no UTF-8")


def test_utf8_goes_through_in_any_locale() -> None:
    """Tencent/AI-Infra-Guard PR 571, gabrieldemarmiesse/python-on-whales#606."""
    script = 'printf "%s %s" "$X" "$0"; cd /tmp; pwd'
    words = ["run", "--runtime=local", "-e", "X=ä", "sh", "-c", script, "中"]
    done = fastclaw(*words, env={**os.environ, **POSIX})
    assert (done.returncode, done.stdout.decode()) == (0, "ä 中/tmp\n")


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """The command `doctor` raises what is put in here."""
    errors: list[Exception] = []

    @click.command()
    def doctor() -> None:
        raise errors[0]

    monkeypatch.setitem(cli.commands, "doctor", doctor)
    return errors


def test_an_error_of_ours_is_one_line(call: Call, fail: list[Exception]) -> None:
    fail.append(StartFailed("no podman; install it", "engine_unavailable"))
    done = call("doctor")
    assert done.returncode == 1
    assert assert_one_line(done.stderr) == "Error: start failed: no podman; install it"


def test_a_bug_is_one_line_that_says_how_to_see_more(call: Call, fail: list[Exception]) -> None:
    fail.append(KeyError("x"))
    done = call("doctor")
    assert done.returncode == 1
    assert assert_one_line(done.stderr) == "Error: KeyError: 'x'; fastclaw --debug shows where"


@pytest.mark.parametrize("error", [StartFailed("no podman"), KeyError("x")])
def test_debug_lets_it_through(call: Call, fail: list[Exception], error: Exception) -> None:
    fail.append(error)
    with pytest.raises(type(error)):
        call("--debug", "doctor")


def test_debug_shows_the_traceback() -> None:
    done = fastclaw("--debug", "run", "-o", "nonsense=1", "--", "true")
    assert done.returncode == 1
    assert done.stderr.startswith(b"Traceback")
    assert b"options.nonsense" in done.stderr


@pytest.mark.parametrize("error", [KeyboardInterrupt(), click.Abort()])
def test_an_interrupted_command_ends_as_a_shell_says(
    call: Call, fail: list[BaseException], error: BaseException
) -> None:
    fail.append(error)
    done = call("doctor")
    assert (done.returncode, done.stderr.strip()) == (128 + signal.SIGINT, b"")


def test_output_that_nobody_reads_is_no_traceback() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = fastclaw("engine", "--help", capture_output=False, stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_serve_refuses_closed_descriptors_and_the_others_do_without() -> None:
    serve = subprocess.run(
        ["sh", "-c", '"$@" 1>&-', "sh", *FASTCLAW, "serve", "--runtime=memory"],
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert serve.returncode == 1
    assert "stdin or stdout is closed" in assert_one_line(serve.stderr)
    other = fastclaw(*FASTCLAW, "engine", "status", command=["sh", "-c", '"$@" 0<&- 1>&-', "sh"])
    assert (other.returncode, other.stderr) == (0, b"")


def test_descriptors_that_are_open_are_left_alone() -> None:
    before = [os.fstat(fd).st_ino for fd in (0, 1, 2)]
    complete_standard_descriptors()
    assert [os.fstat(fd).st_ino for fd in (0, 1, 2)] == before


def test_closed_descriptors_become_nothing() -> None:
    script = (
        "import os; from fastclaw.cli.commands import complete_standard_descriptors as complete; "
        "os.close(0); os.close(2); complete(); "
        "print(*(os.readlink(f'/proc/self/fd/{fd}') for fd in (0, 2)))"
    )
    assert fastclaw(script, command=[sys.executable, "-c"]).stdout == b"/dev/null /dev/null\n"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("a=1", ("a", 1)),
        ('a={"b": [true, null]}', ("a", {"b": [True, None]})),
        ('a="1"', ("a", "1")),
        ("a=never", ("a", "never")),
        ("a=", ("a", "")),
        ("a=b=c", ("a", "b=c")),
    ],
)
def test_a_setting_is_json_or_else_text(entry: str, expected: tuple[str, object]) -> None:
    assert setting(entry) == expected
