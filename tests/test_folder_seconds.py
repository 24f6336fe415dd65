"""The budgets of the folders of tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.folder_seconds import folder_of, read_budgets, too_slow

TESTS = Path(__file__).parent

SUITE = """
import time

def test_it():
    time.sleep(0.02)
"""


@pytest.mark.parametrize(
    ("nodeid", "folder"),
    [
        ("tests/test_docs.py::test_x", "tests"),
        ("tests/cli/test_run.py::test_x[a/b::c]", "cli"),
        ("tests/network/egress/test_dial.py::test_x", "network"),
    ],
)
def test_a_test_belongs_to_the_folder_below_tests(nodeid: str, folder: str) -> None:
    assert folder_of(nodeid) == folder


def test_every_folder_has_a_budget() -> None:
    folders = {folder_of(str(path.relative_to(TESTS.parent))) for path in TESTS.rglob("test_*.py")}
    assert set(read_budgets(TESTS.parent)) == folders - {"adapters"}  # which `make test` does not run


def test_only_what_no_noise_explains_is_too_slow() -> None:
    assert too_slow({"a": 19.9, "b": 20.1, "new": 0.1}, {"a": 10, "b": 10}) == ["b", "new"]


@pytest.mark.parametrize(
    ("ci", "arguments", "seconds", "code"),
    [
        ("true", [], 100, pytest.ExitCode.OK),
        ("true", [], 0, pytest.ExitCode.TESTS_FAILED),
        ("", [], 0, pytest.ExitCode.OK),
        ("true", ["tests"], 0, pytest.ExitCode.OK),
        ("true", ["-k", "it"], 0, pytest.ExitCode.OK),
    ],
)
def test_a_whole_run_of_ci_fails_where_a_folder_has_become_slow(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    ci: str,
    arguments: list[str],
    seconds: int,
    code: pytest.ExitCode,
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyprojecttoml(
        f"""
        [tool.pytest.ini_options]
        testpaths = ["tests"]
        [tool.fastclaw.test-seconds]
        cli = {seconds}
        """
    )
    pytester.mkdir("tests").joinpath("cli").mkdir()
    pytester.path.joinpath("tests/cli/test_it.py").write_text(SUITE)
    done = pytester.runpytest_inprocess("-p", "tests.folder_seconds", *arguments)
    done.stdout.fnmatch_lines([f"cli 0 of {seconds}*"])
    assert done.ret == code
