"""An environment does what mini-swe-agent's own tests ask of its `docker` and `local`, after their list, and more."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from minisweagent import environments
from minisweagent.agents.default import DefaultAgent
from minisweagent.environments import get_environment
from minisweagent.exceptions import Submitted
from minisweagent.models.test_models import DeterministicModel, make_output
from pydantic import ValidationError

from fastclaw.adapters.mini_swe_agent import OUTPUT_BYTES, Environment, EnvironmentConfig
from fastclaw.adapters.shared_host import shared_host
from fastclaw.sandbox.loop_thread import loop_thread
from tests.adapters.suites import load_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATH = "fastclaw.adapters.mini_swe_agent.Environment"
SUBMIT = "COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"
PAGE = Path(__file__).parents[3] / "docs" / "adapters" / "mini-swe-agent.md"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    return load_image(tmp_path_factory.mktemp("image"))


@pytest.fixture
def start(image: str) -> Iterator[Callable[..., Environment]]:
    started: list[Environment] = []

    def begin(**config: Any) -> Environment:
        started.append(get_environment({"environment_class": PATH, "image": image, **config}))
        return started[-1]

    yield begin
    for environment in started:
        environment.cleanup()


def run(environment: Environment, command: str, **how: Any) -> dict[str, Any]:
    return environment.execute({"command": command}, **how)


def output(environment: Environment, command: str, **how: Any) -> str:
    done = run(environment, command, **how)
    assert (done["returncode"], done["exception_info"]) == (0, "")
    said: str = done["output"]
    return said


def sandboxes() -> int:
    async def count() -> int:
        return len(await (await shared_host()).list())

    return loop_thread().call(count())


def until_there_are(count: int) -> None:
    """They go without being waited for."""
    latest = time.monotonic() + 10
    while sandboxes() != count:
        assert time.monotonic() < latest


def test_the_fields_have_dockers_defaults() -> None:
    config = EnvironmentConfig(image="python:3.12")
    assert (config.cwd, config.env, config.forward_env, config.timeout) == ("/", {}, [], 30)
    assert (config.interpreter, config.container_timeout, config.pull_timeout) == (["bash", "-lc"], "2h", 120)


def test_a_field_that_would_do_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="run_args"):
        get_environment({"environment_class": PATH, "image": "python:3.12", "run_args": ["--network", "host"]})


def test_output_is_whole_in_order_and_has_the_exit_code(start: Callable[..., Environment]) -> None:
    environment = start()
    assert output(environment, "echo 'hello world'") == "hello world\n"
    assert output(environment, "echo out; echo err >&2; echo more") == "out\nerr\nmore\n"
    assert output(environment, "echo -e 'line1\\nline2\\nline3'") == "line1\nline2\nline3\n"
    assert output(environment, "echo $(echo nested) | grep nested") == "nested\n"
    assert output(environment, "printf 'a\\377b'") == "a\ufffdb"
    assert len(output(environment, "head -c 3000000 /dev/zero | tr '\\0' x")) == 3_000_000
    for code in (1, 42):
        assert run(environment, f"exit {code}") == {"output": "", "returncode": code, "exception_info": ""}
    missing = run(environment, "nonexistent_command_12345")
    assert missing["returncode"] == 127
    assert "nonexistent_command_12345" in missing["output"]
    assert run(environment, "kill -9 $$")["returncode"] == 137


def test_files_stay(start: Callable[..., Environment]) -> None:
    environment = start(cwd="/tmp")
    output(environment, "echo 'test content' > test.txt")
    assert output(environment, "cat test.txt") == "test content\n"


def test_variables_are_set_and_forwarded(start: Callable[..., Environment], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOST_VAR", "from_host")
    monkeypatch.setenv("CONFLICT_VAR", "from_host")
    monkeypatch.setenv("KEPT_VAR", "from_host")
    environment = start(
        env={"SET_VAR": "from_config", "CONFLICT_VAR": "from_config"},
        forward_env=["HOST_VAR", "CONFLICT_VAR", "NONEXISTENT_VAR"],
    )
    said = output(environment, 'echo "$SET_VAR $HOST_VAR $CONFLICT_VAR [$NONEXISTENT_VAR] [$KEPT_VAR]"')
    assert said == "from_config from_host from_config [] []\n"


def test_the_directory_is_the_calls_or_the_environments(start: Callable[..., Environment]) -> None:
    environment = start(cwd="/tmp")
    assert output(environment, "pwd") == "/tmp\n"
    assert output(environment, "pwd", cwd="/usr") == "/usr\n"
    missing = run(environment, "pwd", cwd="/nowhere")
    assert missing["returncode"] == 125
    assert "/nowhere" in missing["output"]


def test_a_command_that_takes_too_long_is_told_so_and_its_children_are_ended(start: Callable[..., Environment]) -> None:
    environment = start(timeout=1)
    late = run(environment, "echo begun; sh -c 'echo $$ > /tmp/child; exec sleep 1000'")
    assert (late["output"], late["returncode"]) == ("begun\n", -1)
    assert "timed out after 1 seconds" in late["exception_info"]
    assert late["extra"]["exception_type"] == "TimeoutExpired"
    assert run(environment, "kill -0 $(cat /tmp/child)")["returncode"] == 1
    assert output(environment, "sleep 1.5; echo done", timeout=20) == "done\n"


def test_too_much_output_ends_the_command(start: Callable[..., Environment]) -> None:
    much = run(start(), f"echo {SUBMIT}; yes")
    assert (much["output"], much["returncode"]) == ("", -1)
    assert str(OUTPUT_BYTES) in much["exception_info"]


def test_the_sandbox_ends_after_container_timeout(start: Callable[..., Environment]) -> None:
    environment = start(container_timeout="3s")
    assert output(environment, "echo running") == "running\n"
    gone = run(environment, "sleep 20", timeout=20)
    assert gone["returncode"] == -1
    assert gone["extra"]["exception_type"] == "SandboxGone"
    with pytest.raises(ValueError, match="container_timeout"):
        start(container_timeout="soon")


def test_a_start_that_takes_longer_than_pull_timeout_fails_and_leaves_nothing(image: str) -> None:
    before = sandboxes()
    with pytest.raises(TimeoutError, match="pull_timeout, 0 s"):
        Environment(image=image, pull_timeout=0)
    until_there_are(before)


def test_it_says_what_it_is(start: Callable[..., Environment]) -> None:
    environment = start(start={"memory": "256m", "user": "agent"})
    assert output(environment, "whoami") == "agent\n"
    assert environment.container_id
    told = environment.serialize()["info"]["config"]
    assert told["environment_type"] == PATH
    assert told["environment"]["start"] == {"memory": "256m", "user": "agent"}
    assert json.dumps(told)
    values = environment.get_template_vars(task="fix it")
    assert (values["cwd"], values["system"], values["task"]) == ("/", "Linux", "fix it")


def test_cleanup_ends_the_sandbox_as_often_as_one_likes(start: Callable[..., Environment]) -> None:
    environment = start()
    before = sandboxes()
    environment.cleanup()
    environment.cleanup()
    assert sandboxes() == before - 1
    assert run(environment, "echo")["returncode"] == -1


def test_an_environment_that_is_dropped_ends_whichever_thread_drops_it(image: str) -> None:
    before = sandboxes()
    held = [Environment(image=image), Environment(image=image)]
    held.pop()

    async def drop() -> None:
        held.clear()
        gc.collect()

    loop_thread().call(drop())  # in the thread that does the work
    until_there_are(before)


def test_many_threads_have_one_each(image: str) -> None:
    """As `mini-extra swebench --workers` has it."""

    def work(number: int) -> str:
        environment = Environment(image=image)
        try:
            return output(environment, f"echo {number} > /tmp/n; cat /tmp/n")
        finally:
            environment.cleanup()

    with ThreadPoolExecutor(8) as workers:
        assert list(workers.map(work, range(8))) == [f"{number}\n" for number in range(8)]


def test_a_submission_is_told_from_other_output(start: Callable[..., Environment]) -> None:
    environment = start()
    with pytest.raises(Submitted) as submitted:
        run(environment, f"echo {SUBMIT}; echo the patch")
    assert submitted.value.messages[0]["extra"] == {"exit_status": "Submitted", "submission": "the patch\n"}
    assert run(environment, f"echo {SUBMIT}; exit 1")["returncode"] == 1


STEPS = ("echo 'print(6 * 7)' > /tmp/a.py", "python3 /tmp/a.py", f"echo {SUBMIT}; python3 /tmp/a.py")


def says() -> list[dict[str, Any]]:
    return [make_output(f"step {number}", [{"command": command}]) for number, command in enumerate(STEPS)]


def test_an_agent_writes_a_program_runs_it_and_submits(start: Callable[..., Environment]) -> None:
    agent = DefaultAgent(
        DeterministicModel(outputs=says()), start(), system_template="be brief", instance_template="{{task}}"
    )
    assert agent.run("compute")["submission"] == "42\n"
    assert any("42" in str(message["content"]) for message in agent.messages)


def test_the_command_of_the_page_runs(image: str, tmp_path: Path) -> None:
    """All of it but the model, for which a network would be needed."""
    command = PAGE.read_text().partition("```sh\n")[2].splitlines()[1]
    assert command.startswith("mini ")
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"model": {"model_name": "deterministic", "outputs": says()}}))
    model = "--model-class minisweagent.models.test_models.DeterministicModel -c model.yaml"
    told = f"{command.replace('python:3.12', image)} {model} --yolo --exit-immediately --output done.json"
    environ = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "MSWEA_CONFIGURED": "true",
        "MSWEA_GLOBAL_CONFIG_DIR": str(tmp_path),
    }
    subprocess.run(told, shell=True, cwd=tmp_path, env=environ, check=True, timeout=120)
    assert json.loads((tmp_path / "done.json").read_text())["info"]["submission"] == "42\n"


def test_swe_bench_runs_as_the_page_says(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from minisweagent.run.benchmarks import swebench

    settings = swebench.get_config_from_spec("swebench.yaml")["environment"] | {"cwd": "/tmp"}
    monkeypatch.setitem(environments._ENVIRONMENT_MAPPING, "docker", PATH)
    environment = swebench.get_sb_environment({"environment": settings}, {"instance_id": "a__b-1", "image_name": image})
    assert isinstance(environment, Environment)
    assert output(environment, "echo $PAGER") == "cat\n"
    environment.cleanup()
