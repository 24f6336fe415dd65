"""`fastclaw bench` as it is called: the report, what is refused in a line, exit codes, Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.bench.rig import IN_SH, evil
from tests.cli.programs import DEADLINE_S, FASTCLAW, assert_one_line, fastclaw

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.programs import Call

MEMORY = ["--", *FASTCLAW, "serve", "--runtime", "memory", "--log-level", "error"]
LITTLE = ["--load", "run", "--count", "100"]


def test_json_is_all_there_is_on_stdout() -> None:
    done = fastclaw("bench", *LITTLE, "--json", *MEMORY)
    assert (done.returncode, done.stderr) == (0, b"")
    told = json.loads(done.stdout)
    assert (told["ok"], told["load"], told["measured"]["right"]) == (True, "run", 100)
    assert told["leftovers"] == {"processes": 0, "sockets": 0, "containers": 0, "environments": 0}


def test_the_text_fits_the_terminal() -> None:
    for columns in (40, 80):
        done = fastclaw("bench", *LITTLE, *MEMORY, env={**os.environ, "COLUMNS": str(columns)})
        lines = done.stdout.decode().splitlines()
        assert (done.returncode, max(map(len, lines)) <= columns) == (0, True)
        assert lines[0].startswith("run on fastclaw ")
        assert lines[-1] == "left over: nothing"


def test_failures_are_exit_code_1() -> None:
    done = fastclaw("bench", "--load", "run", "--count", "5", "--", *evil("fails"))
    assert done.returncode == 1
    assert b"failed: 5 exit code 3\n" in done.stdout


def test_a_log_and_a_picture(tmp_path: Path) -> None:
    log, picture = tmp_path / "a.hlog", tmp_path / "a.png"
    done = fastclaw("bench", *LITTLE, "--hlog", str(log), "--plot", str(picture), *MEMORY)
    assert done.returncode == 0, done
    assert "#[Histogram log format version 1.3]\n" in log.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_climb_that_its_runtime_does_not_survive() -> None:
    columns = {**os.environ, "COLUMNS": "40"}
    done = fastclaw("bench", "--load", "run", "--cliff", "--duration", "0.2", "--", *evil("dies"), env=columns)
    text = done.stdout.decode()
    assert done.returncode == 1, done
    assert max(map(len, text.splitlines())) <= 40
    assert "- the runtime ended: runtime exited with\n  code 7\n" in text


def test_a_runtime_in_sh() -> None:
    done = fastclaw("bench", "--load", "run", "--burst", "10", "--count", "50", "--", "sh", "-c", IN_SH)
    assert done.returncode == 0, done
    assert done.stdout.startswith(b"run on sh: bursts of 10, 50 operations\n50 right of 50, ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--load", "files", *MEMORY], "--load files needs 'files'; this runtime offers: cancel, environments"),
        (["--", "/nonexistent"], "the runtime '/nonexistent' cannot be started"),
        (["--", "true"], "initialize failed: runtime exited with code 0"),
        (["--option", "nonsense=1", *MEMORY], "initialize failed: unknown option $.options.nonsense"),
    ],
)
def test_what_cannot_be_measured_is_one_line(arguments: list[str], said: str) -> None:
    done = fastclaw("bench", "--count", "5", *arguments)
    assert (done.returncode, done.stdout) == (1, b"")
    assert said in assert_one_line(done.stderr)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rate", "5", "--burst", "3"], "name one"),
        (["--load", "sleep"], "'sleep' is not one of 'exec', 'run', 'hold', 'environments', 'files'"),
        (["--rate", "0"], "--rate"),
        (["--rate", "nan"], "'nan' is not a number"),
        (["--concurrency", "0"], "--concurrency"),
        (["--cmd", "'"], "--cmd"),
        (["--cmd", ""], "--cmd: it has no word"),
        (["--size", "1g"], "--size"),
        (["--option", "nonsense"], "has no '='"),
        (["--plot", "/dev/null"], "ends neither with .png nor with .html"),
        (["--plot", "/nonexistent/a.png"], "No such file or directory"),
        (["--hlog", "/nonexistent/a"], "No such file or directory"),
        (["--load", "files", "--size", "16m", "--concurrency", "65"], "no more than 64 at once"),
        (["--cliff", "--count", "5"], "--cliff goes with none of --burst, --count, --hlog, --plot"),
        (["--load", "hold", "--live", "2", "--concurrency", "3"], "--live"),
    ],
)
def test_wrong_arguments_are_one_line(call: Call, arguments: list[str], said: str) -> None:
    done = call("bench", *arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert said in assert_one_line(done.stderr)


@pytest.mark.parametrize("module", ["hdrh", "matplotlib"])
def test_without_what_it_needs_it_says_what_to_install(tmp_path: Path, module: str) -> None:
    hide = f"import sys; sys.modules[{module!r}] = None"
    code = f"{hide}; from fastclaw.cli.main import main; main()"
    picture = ["--plot", str(tmp_path / "a.png")]
    done = fastclaw("bench", *LITTLE, *picture, *MEMORY, command=[sys.executable, "-c", code])
    assert (done.returncode, done.stdout) == (1, b"")
    assert "pip install 'PATH[bench]'" in assert_one_line(done.stderr)


def test_on_a_terminal_there_is_one_line_which_goes() -> None:
    ours, theirs = pty.openpty()
    try:
        command = [*FASTCLAW, "bench", "--load", "run", "--duration", "1", *MEMORY]
        environment = {**os.environ, "COLUMNS": "60"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment) as bench:
            out, _ = bench.communicate(timeout=DEADLINE_S)
        shown = os.read(ours, 65_536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert bench.returncode == 0
    assert "\r" not in out.decode()
    lines = shown.split("\r")
    assert "\n" not in shown
    assert max(map(len, lines)) < 60
    assert any(line.startswith("[####") and " right, 0 failed" in line for line in lines)
    assert lines[-2:] == [" " * 59, ""]


def test_ctrl_c_ends_with_a_report_of_what_was_measured() -> None:
    ours, theirs = pty.openpty()
    try:
        command = [*FASTCLAW, "bench", "--load", "run", "--duration", "20", "--json", *MEMORY]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs) as bench:
            shown = b""
            while b"[#" not in shown:  # it is measuring
                shown += os.read(ours, 4096)
            bench.send_signal(signal.SIGINT)
            out, _ = bench.communicate(timeout=DEADLINE_S)
    finally:
        os.close(ours)
        os.close(theirs)
    told = json.loads(out)
    assert bench.returncode == 130
    assert told["interrupted"] is True
    assert told["measured"]["right"] > 0
    assert told["measured"]["failed"] == {}
    assert told["leftovers"]["processes"] == 0


def test_ctrl_c_before_there_is_anything_is_an_end_without_a_report() -> None:
    silent = "import os, sys; sys.stdin.readline(); os.write(2, b'x\\n'); sys.stdin.read()"
    command = [*FASTCLAW, "bench", "--", sys.executable, "-c", silent]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as bench:
        assert bench.stderr is not None
        assert bench.stderr.readline() == b"x\n"  # it has been asked to initialize, and says nothing
        bench.send_signal(signal.SIGINT)
        out, _ = bench.communicate(timeout=DEADLINE_S)
    assert (bench.returncode, out) == (130, b"")
