"""Whole evaluations, with inspect-ai's own mock model, tools and command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageTool
from inspect_ai.scorer import includes
from inspect_ai.solver import Generate, Solver, TaskState, generate, solver, use_tools
from inspect_ai.tool import bash, bash_session, python, text_editor
from inspect_ai.util import sandbox

from fastclaw.adapters.shared_host import shared_host
from fastclaw.sandbox.loop_thread import loop_thread
from tests.adapters.image import USER
from tests.adapters.inspect.model import Say, model_saying

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog

CALLS: list[Say] = [
    ("bash", {"command": "id -un; cat data/given.txt made.txt"}),
    ("python", {"code": "print(6 * 7)"}),
    ("bash", {"command": "echo begun; sleep 60"}),
    ("bash", {"command": "yes | head -c 20000000"}),
    "42",
]


def evaluated(tmp_path: Path, environment: Any, **more: Any) -> EvalLog:
    """One sample, on the given sandbox."""
    sample = Sample("?", target="42", files={"data/given.txt": "given\n"}, setup="echo made > made.txt")
    task = Task(
        dataset=[sample],
        solver=[use_tools(bash(timeout=2), python()), generate()],
        scorer=includes(),
        sandbox=environment,
    )
    (log,) = eval(task, model=model_saying(CALLS), log_dir=str(tmp_path), display="none", **more)
    return log


@pytest.mark.parametrize("user", [USER, "root"])
def test_a_model_uses_tools_in_a_sandbox(containerfiles: dict[str, str], tmp_path: Path, user: str) -> None:
    log = evaluated(tmp_path, ("fastclaw", containerfiles[user]))
    assert log.status == "success", log.error
    assert log.samples is not None
    first, computed, slow, long = [one for one in log.samples[0].messages if isinstance(one, ChatMessageTool)]
    assert first.text == f"{user}\ngiven\nmade\n"
    assert computed.text == "42\n"
    assert slow.error is not None
    assert slow.error.type == "timeout"
    assert "begun" in slow.text
    assert long.error is not None
    assert long.error.type == "limit"
    assert "y\ny\n" in long.text
    assert log.samples[0].scores is not None
    assert log.samples[0].scores["includes"].value == "C"
    assert left() == []


def test_a_sandbox_outlives_its_sample_where_that_is_asked_for(containerfiles: dict[str, str], tmp_path: Path) -> None:
    log = evaluated(tmp_path, ("fastclaw", containerfiles[USER]), sandbox_cleanup=False)
    assert log.status == "success", log.error
    assert len(left()) == 1
    loop_thread().call(end_the_host())


def left() -> list[str]:
    """Sandboxes that are up."""

    async def listed() -> list[str]:
        return [one.environment for one in await (await shared_host()).list()]

    return loop_thread().call(listed())


@pytest.mark.parametrize("user", [USER, "root"])
def test_the_tools_that_have_a_program_of_inspect_ai_in_the_sandbox(
    containerfiles: dict[str, str], tmp_path: Path, user: str
) -> None:
    calls: list[Say] = [
        ("text_editor", {"command": "create", "path": "/work/a.txt", "file_text": "edited\n"}),
        ("bash_session", {"action": "type_submit", "input": "cat /work/a.txt; id -un"}),
        "done",
    ]
    task = Task(
        dataset=[Sample("?", target="remote")],
        solver=[use_tools(text_editor(), bash_session()), generate(), run_remotely()],
        scorer=includes(),
        sandbox=("fastclaw", containerfiles[user]),
    )
    (log,) = eval(task, model=model_saying(calls), log_dir=str(tmp_path), display="none")
    assert log.status == "success", log.error
    assert log.samples is not None
    edited, session = [one for one in log.samples[0].messages if isinstance(one, ChatMessageTool)]
    assert "created successfully" in edited.text
    assert f"edited\n{user}" in session.text.replace("\r", "")
    assert log.samples[0].output.completion == "remote 3\n"


@solver
def run_remotely() -> Solver:
    """A command by that program."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        done = await sandbox().exec_remote(["sh", "-c", "echo remote; exit 3"], stream=False)
        state.output.completion = f"{done.stdout.strip()} {done.returncode}\n"
        return state

    return solve


def test_an_image_by_its_name(containerfiles: dict[str, str], tmp_path: Path) -> None:
    name = "localhost/fastclaw-adapter-test:1"

    async def built() -> None:
        await (await shared_host()).build(Path(containerfiles[USER]).parent, tag=name)

    loop_thread().call(built())
    log = evaluated(tmp_path, ("fastclaw", name))
    assert log.status == "success", log.error


async def end_the_host() -> None:
    """And all that it holds; the next evaluation has another."""
    await (await shared_host()).close()


TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import solver
from inspect_ai.util import sandbox

@solver
def who():
    async def solve(state, generate):
        state.output.completion = (await sandbox().exec(["id", "-un"])).stdout
        return state
    return solve

@task
def who_am_i():
    return Task(dataset=[Sample("?", target="agent")], solver=who(), scorer=includes(), sandbox={sandbox})
"""


@pytest.mark.parametrize(
    ("named", "arguments", "backend"),
    [
        ("'fastclaw'", [], "asyncio"),
        ("'fastclaw'", [], "trio"),
        ("('docker', 'an.Dockerfile')", ["--sandbox", "fastclaw"], "asyncio"),
    ],
    ids=["found beside the task", "on trio", "in the place of Docker"],
)
def test_the_command_line_finds_the_provider_and_the_containerfile(
    containerfiles: dict[str, str], tmp_path: Path, named: str, arguments: list[str], backend: str
) -> None:
    shutil.copytree(Path(containerfiles[USER]).parent, tmp_path, dirs_exist_ok=True)
    if arguments:
        (tmp_path / "Containerfile").rename(tmp_path / "an.Dockerfile")
    (tmp_path / "task.py").write_text(TASK.replace("{sandbox}", named))
    logs = tmp_path / "logs"
    where = ["--log-dir", str(logs), "--log-format", "json", "--display", "plain", *arguments]
    done = subprocess.run(
        [Path(sys.executable).with_name("inspect"), "eval", "task.py", "--model", "mockllm/model", *where],
        cwd=tmp_path,
        env={**os.environ, "INSPECT_ASYNC_BACKEND": backend},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (log,) = logs.glob("*.json")
    assert json.loads(log.read_text())["results"]["scores"][0]["metrics"]["accuracy"]["value"] == 1.0
