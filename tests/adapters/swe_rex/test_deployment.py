"""What SWE-ReX's own suite does not ask of a deployment and its runtime, and what is otherwise in a sandbox."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from swerex.deployment.hooks.abstract import DeploymentHook
from swerex.exceptions import (
    BashIncorrectSyntaxError,
    CommandTimeoutError,
    DeploymentNotStartedError,
    DeploymentStartupError,
    NonZeroExitCodeError,
    SessionExistsError,
    SessionNotInitializedError,
    SwerexException,
)
from swerex.runtime.abstract import (
    BashAction,
    CloseBashSessionRequest,
    Command,
    CreateBashSessionRequest,
    ReadFileRequest,
    UploadRequest,
    WriteFileRequest,
)

from fastclaw.adapters.shared_host import shared_host
from fastclaw.adapters.swe_rex import OUTPUT_BYTES, Deployment, Runtime
from fastclaw.sandbox.loop_thread import loop_thread
from tests.adapters.suites import load_image, program_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

PAGE = Path(__file__).parents[3] / "docs" / "adapters" / "swe-rex.md"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    return load_image(tmp_path_factory.mktemp("image"))


@pytest.fixture
async def runtime(image: str) -> AsyncIterator[Runtime]:
    deployment = Deployment(image=image)
    await deployment.start()
    yield deployment.runtime
    await deployment.stop()


async def _sandboxes() -> int:
    async def count() -> int:
        return len(await (await shared_host()).list())

    return await loop_thread().bring(count())


async def test_a_deployment_is_started_once_and_stopped_as_often_as_one_likes(image: str) -> None:
    steps = []

    class Hook(DeploymentHook):
        def on_custom_step(self, message: str) -> None:
            steps.append(message)

    deployment = Deployment(image=image)
    deployment.add_hook(Hook())
    with pytest.raises(DeploymentNotStartedError):
        await deployment.is_alive()
    await deployment.start()
    assert steps == ["Starting sandbox"]
    assert await deployment.is_alive()
    with pytest.raises(DeploymentStartupError):
        await deployment.start()
    await deployment.runtime.create_session(CreateBashSessionRequest())
    before = await _sandboxes()
    await deployment.stop()
    await deployment.stop()
    assert await _sandboxes() == before - 1
    with pytest.raises(DeploymentNotStartedError):
        _ = deployment.runtime


def test_each_call_may_have_a_loop_of_its_own_as_in_swe_agent(image: str) -> None:
    deployment = Deployment(image=image, env={"GREETING": "hello"})
    asyncio.run(deployment.start())
    runtime = deployment.runtime
    asyncio.run(runtime.create_session(CreateBashSessionRequest(startup_source=["/etc/profile"])))
    asyncio.run(runtime.run_in_session(BashAction(command="cd /tmp && export A=1")))
    said = asyncio.run(runtime.run_in_session(BashAction(command="echo $PWD $A $GREETING")))
    assert (said.output, said.exit_code) == ("/tmp 1 hello\n", 0)
    asyncio.run(deployment.stop())


async def test_a_deployment_that_is_dropped_ends(image: str) -> None:
    deployment = Deployment(image=image)
    await deployment.start()
    before = await _sandboxes()
    del deployment
    gc.collect()
    async with asyncio.timeout(10):
        while await _sandboxes() == before:
            pass


async def test_a_sandbox_that_is_gone_is_not_alive(runtime: Runtime) -> None:
    assert await runtime.is_alive(timeout=10)
    await loop_thread().bring(runtime.box.close())
    gone = await runtime.is_alive()
    assert not gone
    assert gone.message


async def test_a_command_ends_as_one_of_subprocess(runtime: Runtime) -> None:
    async def run(*words: str, **more: object) -> tuple[str, str, int | None]:
        done = await runtime.execute(Command(command=list(words), **more))
        return done.stdout, done.stderr, done.exit_code

    assert await run("sh", "-c", "kill -9 $$") == ("", "", -9)
    assert await run("echo $0 $1", "a", "b", shell=True) == ("a b\n", "", 0)
    assert await run("sh", "-c", r"printf '\377'; echo $A; pwd", env={"A": "b"}, cwd="/tmp") == (
        "\\xffb\n/tmp\n",
        "",
        0,
    )
    assert (await runtime.execute(Command(command="pwd"))).stdout == "/work\n"
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        await run("no-such-program")
    with pytest.raises(FileNotFoundError, match="/nowhere"):
        await run("pwd", cwd="/nowhere")
    with pytest.raises(PermissionError):
        await run("/etc/passwd")
    with pytest.raises(NonZeroExitCodeError, match=r"it had to be.*exit code 3"):
        await run("sh", "-c", "exit 3", check=True, error_msg="it had to be")
    with pytest.raises(SwerexException, match="more than"):
        await run("head", "-c", str(OUTPUT_BYTES + 1), "/dev/zero")


async def test_a_command_that_takes_too_long_is_ended(runtime: Runtime) -> None:
    with pytest.raises(CommandTimeoutError):
        await runtime.execute(Command(command="echo $$ > pid; exec sleep 1000", shell=True, timeout=0.5))
    ended = await runtime.execute(Command(command="kill -0 $(cat pid)", shell=True))
    assert ended.exit_code != 0


async def test_text_is_read_as_path_read_text_reads_it(runtime: Runtime) -> None:
    await runtime.write_file(WriteFileRequest(path="deep/one", content="a\r\nü\n"))
    assert (await runtime.read_file(ReadFileRequest(path="/work/deep/one"))).content == "a\nü\n"
    with pytest.raises(UnicodeDecodeError):
        await runtime.read_file(ReadFileRequest(path="deep/one", encoding="ascii"))
    lenient = ReadFileRequest(path="deep/one", encoding="ascii", errors="replace")
    assert (await runtime.read_file(lenient)).content == "a\n\ufffd\ufffd\n"


async def test_a_directory_is_uploaded_beside_what_is_there(runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "program").write_text("#!/bin/sh\necho hello\n")
    (tmp_path / "sub" / "program").chmod(0o755)
    await runtime.upload(UploadRequest(source_path=str(tmp_path), target_path="/work"))
    assert (await runtime.execute(Command(command=["./sub/program"]))).stdout == "hello\n"
    with pytest.raises(FileNotFoundError):
        await runtime.upload(UploadRequest(source_path=str(tmp_path / "missing"), target_path="/work"))


async def test_a_command_of_a_session_cannot_reach_this_host(runtime: Runtime, tmp_path: Path) -> None:
    """SWE-ReX checks syntax by a document for a shell beside its runtime; the line that ends such a one is known."""
    await runtime.create_session(CreateBashSessionRequest())
    escape = tmp_path / "escape"
    command = f"true\nSOUNIQUEEOF\nmkdir -p {tmp_path} && touch {escape}\ntrue"
    await runtime.run_in_session(BashAction(command=command, check="silent"))
    assert not escape.exists()
    assert (await runtime.execute(Command(command=["test", "-e", str(escape)]))).exit_code == 0
    with pytest.raises(BashIncorrectSyntaxError) as wrong:
        await runtime.run_in_session(BashAction(command="(a"))
    assert "syntax error" in wrong.value.extra_info["bash_stderr"]


async def test_a_session_has_one_name_and_ends_with_what_it_runs(runtime: Runtime) -> None:
    await runtime.create_session(CreateBashSessionRequest())
    with pytest.raises(SessionExistsError):
        await runtime.create_session(CreateBashSessionRequest())
    with pytest.raises(CommandTimeoutError):
        await runtime.run_in_session(BashAction(command="sh -c 'echo $$ > pid; exec sleep 1000'", timeout=1))
    await runtime.close_session(CloseBashSessionRequest())
    assert (await runtime.execute(Command(command="kill -0 $(cat pid)", shell=True))).exit_code != 0
    await runtime.create_session(CreateBashSessionRequest())


async def test_many_sessions_run_at_once(runtime: Runtime) -> None:
    """Each takes as long as all: none waits for another. There are more than threads of a loop's own pool."""
    names = [f"session-{number}" for number in range(40)]
    await asyncio.gather(
        *(runtime.create_session(CreateBashSessionRequest(session=n, startup_timeout=30)) for n in names)
    )
    meet = "echo >> met; until [ $(wc -l < met) = 40 ]; do sleep 0.1; done"
    actions = [BashAction(command=meet, session=name, timeout=60) for name in names]
    await asyncio.gather(*map(runtime.run_in_session, actions))


async def test_a_cancelled_action_ends_its_session(runtime: Runtime) -> None:
    await runtime.create_session(CreateBashSessionRequest())
    command = "sh -c 'echo $$ > pid; exec sleep 1000'"
    running = asyncio.create_task(runtime.run_in_session(BashAction(command=command)))
    while (await runtime.execute(Command(command=["test", "-s", "pid"]))).exit_code != 0:
        assert not running.done()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await runtime.execute(Command(command="kill -0 $(cat pid)", shell=True))).exit_code != 0
    with pytest.raises(SessionNotInitializedError, match="'default' has ended"):
        await runtime.run_in_session(BashAction(command="echo"))
    await runtime.close_session(CloseBashSessionRequest())
    await runtime.create_session(CreateBashSessionRequest())


def test_the_program_of_the_page_runs(image: str, tmp_path: Path) -> None:
    program = tmp_path / "work.py"
    program.write_text(program_of(PAGE, image))
    ran = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.startswith("42\nanswer.py\n")  # swe-rex has its log behind it
