"""`fastclaw serve` on the command line."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.programs import FASTCLAW_WITHOUT_PODMAN, without_podman
from tests.served import Served


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastclaw", "serve", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_nothing_to_read_is_a_clean_end() -> None:
    done = run("--runtime", "memory")
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("arguments", [("--runtime", "vm"), ("--log-format", "xml"), ("--nonsense",)])
def test_wrong_arguments_say_what_is_wrong(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert arguments[0] in done.stderr
    assert "Traceback" not in done.stderr


def test_help() -> None:
    assert "--runtime" in run("--help").stdout


def test_auto_without_podman_is_local_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in without_podman(tmp_path).items():
        monkeypatch.setenv(name, value)
    with Served([*FASTCLAW_WITHOUT_PODMAN, "serve"], tmp_path / "log") as served:
        assert "nearest" in served.call("initialize", namespace="n", options={"runtime": "podmann"})["error"]["data"]
        served.initialize()
        assert served.call("health")["result"]["details"]["runtime"] == "local"
    log = (tmp_path / "log").read_text()
    assert "podman is not installed" in log
    assert "isolates nothing" in log
