"""What the provider's interface says beyond the self checks: limits, ends, configurations, both event loops."""

from __future__ import annotations

import asyncio
import subprocess
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from inspect_ai.util import (
    OutputLimitExceededError,
    SandboxEnvironment,
    SandboxEnvironmentSpec,
    SandboxUnavailableError,
    parse_compose_yaml,
)

from fastclaw.adapters.inspect import FastclawSandboxEnvironment
from fastclaw.adapters.inspect_config import FastclawSandbox, config_of
from fastclaw.errors import InvalidParams
from tests.adapters.image import USER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.adapters.inspect.conftest import Sandboxes

MIB = 1 << 20


@pytest.fixture
async def sandbox(containerfiles: dict[str, str], sandboxes: Sandboxes) -> AsyncIterator[SandboxEnvironment]:
    """With an ordinary user."""
    async with sandboxes(containerfiles[USER]) as made:
        yield made


async def test_more_output_than_the_limit_is_an_error_that_has_its_end(sandbox: SandboxEnvironment) -> None:
    writing = f"head -c {11 * MIB} /dev/zero | tr '\\0' a; echo end; touch ran-to-its-end"
    with pytest.raises(OutputLimitExceededError, match="10 MiB") as caught:
        await sandbox.exec(["sh", "-c", writing])
    told = caught.value.truncated_output
    assert told is not None
    assert told.endswith("aend\n")
    assert len(told) == 10 * MIB
    assert await sandbox.read_file("ran-to-its-end") == ""


async def test_a_timeout_has_what_was_written_until_then(sandbox: SandboxEnvironment) -> None:
    with pytest.raises(TimeoutError) as caught:
        await sandbox.exec(["sh", "-c", "echo begun; exec sleep 60"], timeout=1)
    assert caught.value.truncated_output == "begun\n"  # type: ignore[attr-defined]  # inspect-ai's own word


async def test_what_is_no_text_is_shown_by_replacement_characters(sandbox: SandboxEnvironment) -> None:
    assert (await sandbox.exec(["printf", "a\\377"])).stdout == "a\ufffd"
    await sandbox.write_file("bytes", b"\xff")
    with pytest.raises(UnicodeDecodeError):
        await sandbox.read_file("bytes")


async def test_a_program_that_is_not_there_is_a_result(sandbox: SandboxEnvironment) -> None:
    result = await sandbox.exec(["no-such-program"])
    assert (result.success, result.returncode) == (False, 127)
    assert "no-such-program" in result.stderr


async def test_a_directory_that_is_not_there_is_a_result(sandbox: SandboxEnvironment) -> None:
    result = await sandbox.exec(["true"], cwd="no/such/directory")
    assert not result.success
    assert "no/such/directory" in result.stderr


async def test_a_file_over_the_limit_is_not_read(sandbox: SandboxEnvironment) -> None:
    await sandbox.exec(["truncate", "-s", str(100 * MIB + 1), "large"])
    with pytest.raises(OutputLimitExceededError, match="100 MiB"):
        await sandbox.read_file("large", text=False)


async def test_cancelling_ends_the_command(sandbox: SandboxEnvironment) -> None:
    running = asyncio.create_task(sandbox.exec(["sh", "-c", "mkfifo go; echo > go; exec sleep 1234"]))
    async with asyncio.timeout(30):
        while not (await sandbox.exec(["sh", "-c", "read -r _ < go"])).success:
            pass  # there is no FIFO yet
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        while (await sandbox.exec(["pgrep", "-f", "sleep 1234"])).success:
            pass


async def test_a_sandbox_that_is_gone_is_unavailable(sandbox: SandboxEnvironment) -> None:
    await FastclawSandboxEnvironment.sample_cleanup("task", None, {"default": sandbox}, interrupted=True)
    with pytest.raises(SandboxUnavailableError):
        await sandbox.exec(["true"])
    with pytest.raises(SandboxUnavailableError):
        await sandbox.read_file("/etc/passwd")


async def test_what_the_image_cannot_be_made_of_is_told_by_the_task(tmp_path: Path) -> None:
    (tmp_path / "Containerfile").write_text("FROM scratch\nCOPY missing /\n")
    with pytest.raises(SandboxUnavailableError, match="missing"):
        await FastclawSandboxEnvironment.task_init("task", str(tmp_path))


async def test_an_option_that_there_is_not_is_told_by_the_task() -> None:
    with pytest.raises(InvalidParams, match="memry"):
        await FastclawSandboxEnvironment.task_init("task", FastclawSandbox(memry="1g"))


async def test_options_reach_the_sandbox(containerfiles: dict[str, str], sandboxes: Sandboxes) -> None:
    directory = str(Path(containerfiles["root"]).parent)
    config = FastclawSandbox(build=directory, user="nobody", env={"A": "1"}, working_dir="/tmp", pids=100)
    spec = SandboxEnvironmentSpec("fastclaw", config)
    assert SandboxEnvironmentSpec.model_validate(spec.model_dump()) == spec, "as it goes through a log"
    async with sandboxes(config) as sandbox:
        assert (await sandbox.exec(["sh", "-c", "id -un; pwd; echo $A"])).stdout == "nobody\n/tmp\n1\n"
        await sandbox.write_file("a/b", "text")
        assert (await sandbox.exec(["cat", "b"], cwd="a")).stdout == "text"
        assert await sandbox.read_file("/tmp/a/b") == "text"


COMPOSE = """
services:
  default:
    build: {directory}
    command: tail -f /dev/null
    init: true
    network_mode: none
    working_dir: /tmp
    environment: ["A=1", "B="]
    mem_limit: 512m
    cpus: 1.0
    x-fastclaw:
      pids: 200
"""


async def test_a_compose_file_with_one_service(
    containerfiles: dict[str, str], sandboxes: Sandboxes, tmp_path: Path
) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text(COMPOSE.format(directory=Path(containerfiles[USER]).parent))
    assert config_of(parse_compose_yaml(str(file))) == config_of(str(file))
    assert config_of(str(file)).model_extra == {"env": {"A": "1", "B": ""}, "memory": "512m", "pids": 200}
    async with sandboxes(str(file)) as sandbox:
        assert (await sandbox.exec(["sh", "-c", "pwd; echo $A; id -un"])).stdout == f"/tmp\n1\n{USER}\n"


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("volumes: ['.:/src']", "volumes"),
        ("network_mode: host", "network_mode"),
        ("privileged: true", "privileged"),
    ],
)
def test_what_a_compose_file_may_not_ask_for_is_named(tmp_path: Path, line: str, named: str) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text(f"services:\n  default:\n    image: an-image\n    {line}\n")
    with pytest.raises(ValueError, match=f"no {named} of a compose file"):
        config_of(str(file))


def test_a_compose_file_with_two_services_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "compose.yaml"
    file.write_text("services:\n  default: {image: one}\n  db: {image: two}\n")
    with pytest.raises(ValueError, match="default, db"):
        config_of(str(file))


def test_a_name_is_an_image_though_inspect_ai_takes_it_for_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("python:3.12", "registry.example.org:5000/a/b:1"):
        assert config_of(str(tmp_path / name)).image == name


async def test_a_shell_by_the_engine(containerfiles: dict[str, str], sandboxes: Sandboxes) -> None:
    config = FastclawSandbox(build=str(Path(containerfiles[USER]).parent), clone="never")
    async with sandboxes(config) as sandbox:
        there = await sandbox.connection()
        command = there.command.replace(" -it ", " ").removesuffix(" sh -l") + " sh -c 'id -un; pwd'"
        done = await asyncio.to_thread(
            subprocess.run, command, shell=True, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stdout == f"{USER}\n/work\n", done.stderr


async def test_no_shell_by_the_engine_in_a_clone(containerfiles: dict[str, str], sandboxes: Sandboxes) -> None:
    async with sandboxes(containerfiles[USER]), sandboxes(containerfiles[USER]) as second:
        with pytest.raises(ConnectionError, match="clone"):
            await second.connection()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_both_event_loops(containerfiles: dict[str, str], sandboxes: Sandboxes, backend: str) -> None:
    async def used() -> str:
        async with sandboxes(containerfiles[USER]) as sandbox:
            with anyio.move_on_after(0.5) as scope:
                await sandbox.exec(["sleep", "4321"])
            assert scope.cancelled_caught
            with anyio.fail_after(30):
                while (await sandbox.exec(["pgrep", "-f", "sleep 4321"])).success:
                    pass
            return (await sandbox.exec(["echo", "text"])).stdout

    call: Any = partial(anyio.run, used, backend=backend)
    assert call() == "text\n"
