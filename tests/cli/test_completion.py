"""The shells' scripts, as a shell runs them, and what an answer to one of them costs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fastclaw.cli.completion import SHELLS
from fastclaw.cli.main import COMMANDS
from tests.cli.programs import DEADLINE_S, assert_one_line, fastclaw

if TYPE_CHECKING:
    from tests.cli.programs import Call

BIN = Path(sys.executable).parent
"""Where the command is, as it is installed: scripts for shells call it by its name."""

TYPED = {
    "fastclaw r": {"run"},
    "fastclaw e": {"engine"},
    "fastclaw engine st": {"start", "status", "stop"},
    "fastclaw doctor --j": {"--json"},
    "fastclaw serve --runtime lo": {"local"},
    "fastclaw completion ": {*SHELLS},
    "fastclaw ": {*COMMANDS},
    "fastclaw --deb": {"--debug"},
}

PRESS_TAB = """
source <(fastclaw completion bash)
COMP_WORDS=({line}{empty}) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_fastclaw_completion fastclaw
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize("line", TYPED)
def test_bash_completes(line: str) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    script = PRESS_TAB.format(line=line, empty=" ''" if line.endswith(" ") else "")
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(
        [bash, "-c", script], env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert (set(done.stdout.split()), done.stderr) == (TYPED[line], "")


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_has_a_script_that_asks_this_command(call: Call, shell: str) -> None:
    done = call("completion", shell)
    assert done.returncode == 0
    assert f"_FASTCLAW_COMPLETE={shell}_complete" in done.stdout.decode()


def test_a_shell_that_is_not_named_is_asked_for_in_a_line(call: Call) -> None:
    line = assert_one_line(call("completion").stderr)
    assert all(shell in line for shell in SHELLS)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_are_told_what_each_command_does(shell: str) -> None:
    words = {"COMP_WORDS": "fastclaw doc", "COMP_CWORD": "1" if shell == "zsh" else "doc"}
    answer = fastclaw(
        command=[str(BIN / "fastclaw")], env={**os.environ, **words, "_FASTCLAW_COMPLETE": f"{shell}_complete"}
    )
    assert COMMANDS["doctor"].encode() in answer.stdout


LIGHT = [name for name in COMMANDS if name != "demo"]  # which draws


@pytest.mark.parametrize("line", ["fastclaw ", *(f"fastclaw {name} -" for name in LIGHT)])
def test_completing_loads_no_engine(line: str) -> None:
    words = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)}
    code = "import sys; sys.argv = ['fastclaw']; from fastclaw.cli.main import main\ntry: main()\n"
    code += "finally: print(*sys.modules, file=sys.stderr)"
    environment = {**os.environ, **words, "_FASTCLAW_COMPLETE": "bash_complete"}
    done = fastclaw(code, command=[sys.executable, "-c"], env=environment)
    loaded = set(done.stderr.decode().split())
    assert done.stdout
    assert loaded.isdisjoint({"podman", "requests", "rich", "uvloop"})
    assert loaded.isdisjoint({"asyncio"}) or line != "fastclaw "
