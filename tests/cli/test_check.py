"""`fastclaw check` over runtimes that keep their promises, and over one that does not."""

from __future__ import annotations

import json
import sys

import pytest

from tests.cli.programs import FASTCLAW, Call, assert_one_line, fastclaw

MEMORY = ["--vocabulary", "memory"]
SERVE = ["--", *FASTCLAW, "serve", "--runtime", "memory", "--log-level", "error"]
FEW = ["--only", "R-CODE", "--only", "P-LOSSLESS"]


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_a_runtime_that_keeps_its_promises(call: Call, jobs: str) -> None:
    done = call("check", "--jobs", jobs, *MEMORY, *FEW, *SERVE)
    assert done.returncode == 0, done
    text = done.stdout.decode()
    assert text.count("  ok  ") == 2
    assert text.endswith("2 kept, 0 broken, 0 not offered\n")


def test_signals_that_are_ignored_here_are_none_that_the_runtime_ignores() -> None:
    """As in a script's background, where a shell has SIGINT ignored."""
    ignoring = ["sh", "-c", 'trap "" HUP INT TERM; exec "$@"', "sh", *FASTCLAW]
    done = fastclaw("check", *MEMORY, "--only", "L-TERM", *SERVE, command=ignoring)
    assert done.returncode == 0, done


def test_the_report_as_json(call: Call) -> None:
    done = call("check", *MEMORY, "--json", "--only", "R-CODE", *SERVE)
    assert done.returncode == 0
    told = json.loads(done.stdout)
    assert told["ok"] is True
    assert [(found["promise"]["id"], found["verdict"]) for found in told["findings"]] == [("R-CODE", "kept")]


def test_a_runtime_that_is_none(call: Call) -> None:
    done = call("check", "--json", "--only", "R-CODE", "--", sys.executable, "-c", "pass")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert (told["ok"], told["capabilities"], told["findings"]) == (False, None, [])
    assert told["refused"]


def test_a_program_that_says_what_it_hears_is_no_runtime(call: Call) -> None:
    """It was a KeyError of ours: its answer has the id that was asked for, and neither a result nor an error."""
    done = call("check", "--only", "R-CODE", "--", "cat")
    assert done.returncode == 1
    assert assert_one_line(done.stdout).startswith("nothing was checked: initialize answered {'jsonrpc'")


def test_options_reach_initialize(call: Call) -> None:
    done = call("check", *MEMORY, "-o", "nonsense=1", *SERVE)
    assert done.returncode == 1
    line = assert_one_line(done.stdout)
    assert line.startswith("nothing was checked: initialize failed: unknown option $.options.nonsense")


@pytest.mark.parametrize(("name", "nearest"), [("R-COD", "R-CODE"), ("p-lossles", "P-LOSSLESS")])
def test_a_promise_that_does_not_exist_is_refused(call: Call, name: str, nearest: str) -> None:
    done = call("check", "--only", name, *SERVE)
    assert (done.returncode, done.stdout) == (2, b"")
    line = assert_one_line(done.stderr)
    assert name in line
    assert nearest in line


@pytest.mark.parametrize("arguments", [[], ["--vocabulary", "nonsense", "--", "true"], ["--nonsense", "--", "true"]])
def test_wrong_arguments_are_one_line(call: Call, arguments: list[str]) -> None:
    done = call("check", *arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert_one_line(done.stderr)
