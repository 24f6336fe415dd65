"""An engine that has the tests' image, tasks made for a test, and `harbor run` on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.adapters.image import USER, image_archive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

IMAGE, AGENT_IMAGE = "localhost/fastclaw-harbor:root", f"localhost/fastclaw-harbor:{USER}"
ADAPTER = "fastclaw.adapters.harbor:Environment"
RUN_S = 300

HARBOR = {"HARBOR_TELEMETRY": "off", "LITELLM_LOCAL_MODEL_COST_MAP": "true", "COLUMNS": "500"}
"""It asks nobody outside, and breaks no lines."""

TASK = """
schema_version = "1.4"
[task]
name = "fastclaw/{name}"
[verifier]
environment_mode = "shared"
[agent]
{agent}
[environment]
{environment}
"""


class Trial(NamedTuple):
    """What became of a task.

    Attributes:
        reward: what its verifier gave; None where it gave none.
        error: type and text of what went wrong, else "".
        directory: the files of it.
        said: what the command printed.
    """

    reward: float | None
    error: str
    directory: Path | None
    said: str

    def file(self, name: str) -> str:
        """The text of one of its files."""
        assert self.directory is not None, self.said
        return (self.directory / name).read_text()


@pytest.fixture(scope="session")
def engine() -> Iterator[str]:
    """URL of an engine of these tests, in directories of its own."""
    with tempfile.TemporaryDirectory(prefix="fch") as place:  # a socket's path is short
        base = Path(place)
        (base / "r").mkdir(mode=0o700)
        env = {**os.environ, "XDG_STATE_HOME": str(base / "s"), "XDG_RUNTIME_DIR": str(base / "r")}
        fastclaw = [sys.executable, "-m", "fastclaw", "engine"]
        started = subprocess.run([*fastclaw, "start", "--json"], env=env, capture_output=True, text=True, check=True)
        url = json.loads(started.stdout)["url"]
        try:
            for reference, user in ((IMAGE, None), (AGENT_IMAGE, USER)):
                archive = image_archive(base / "image.tar", reference, user)
                subprocess.run(["podman", "--url", url, "load", "-qi", archive], check=True, stdout=subprocess.DEVNULL)
            yield url
        finally:
            subprocess.run([*fastclaw, "stop"], env=env, check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def make_task(tmp_path: Path) -> Callable[..., Path]:
    """Writes a task: what its solution and its verifier do, in bash; the verifier's last status is the reward."""

    def make(solve: str, verify: str, *, environment: str, agent: str = "", name: str = "task") -> Path:
        task = tmp_path / name
        verify = f"cd /logs/verifier\n({verify}) && echo 1 >reward.txt || echo 0 >reward.txt"
        files = {
            "task.toml": TASK.format(name=name, environment=environment, agent=agent),
            "instruction.md": "Do what the solution does.\n",
            "solution/solve.sh": f"#!/bin/bash\n{solve}\n",
            "tests/test.sh": f"#!/bin/bash\n{verify}\n",
        }
        (task / "environment").mkdir(parents=True)
        for file, text in files.items():
            (task / file).parent.mkdir(exist_ok=True)
            (task / file).write_text(text)
        return task

    return make


@pytest.fixture
def harbor_run(engine: str, tmp_path: Path) -> Callable[..., list[Trial]]:
    """`harbor run` with the oracle agent, in the sandboxes of the tests' engine."""

    def run(task: Path, *options: str) -> list[Trial]:
        jobs = tmp_path / "jobs"
        harbor = [str(Path(sys.executable).with_name("harbor")), "run", "--path", str(task), "--agent", "oracle"]
        where = ["--env", ADAPTER, "--ek", f"url={engine}", "--jobs-dir", str(jobs), "--job-name", "job", "--yes"]
        done = subprocess.run(
            [*harbor, *where, *options],
            env={**os.environ, **HARBOR},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=RUN_S,
            check=False,
        )
        results = sorted((jobs / "job").glob("*/result.json"))
        if not results:
            return [Trial(None, "", None, done.stdout)]
        return [_trial(result.parent, json.loads(result.read_text()), done.stdout) for result in results]

    return run


def _trial(directory: Path, result: dict[str, Any], said: str) -> Trial:
    rewards = (result["verifier_result"] or {}).get("rewards") or {}
    error = result["exception_info"] or {}
    words = f"{error['exception_type']}: {error['exception_message']}" if error else ""
    return Trial(rewards.get("reward"), words, directory, said)
