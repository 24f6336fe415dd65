"""The tests' images, tasks made for a test, and `harbor run` on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from fastclaw.adapters.shared_host import shared_host
from fastclaw.sandbox.loop_thread import loop_thread
from fastclaw.sandbox.sync import Host
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


@pytest.fixture(scope="session", autouse=True)
def images() -> Iterator[None]:
    """fastclaw has directories of its own here, an engine with the tests' images in them."""
    with tempfile.TemporaryDirectory(prefix="fch") as place, pytest.MonkeyPatch.context() as patched:
        base = Path(place)  # short, as a socket's path has to be
        (base / "r").mkdir(mode=0o700)
        for name, value in (("XDG_STATE_HOME", base / "s"), ("XDG_RUNTIME_DIR", base / "r"), ("CONTAINER_HOST", "")):
            patched.setenv(name, str(value))
        with Host(runtime="podman") as host:
            for reference, user in ((IMAGE, None), (AGENT_IMAGE, USER)):
                host.load(image_archive(base / "image.tar", reference, user))
        yield
        loop_thread().call(_end_shared_host())


async def _end_shared_host() -> None:
    await (await shared_host(runtime="podman", url=None, storage="private")).close()


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
def harbor_run(tmp_path: Path) -> Callable[..., list[Trial]]:
    """`harbor run` with the oracle agent."""

    def run(task: Path, *options: str) -> list[Trial]:
        jobs = tmp_path / "jobs"
        harbor = [str(Path(sys.executable).with_name("harbor")), "run", "--path", str(task), "--agent", "oracle"]
        where = ["--env", ADAPTER, "--jobs-dir", str(jobs), "--job-name", "job", "--yes"]
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
