"""What LangChain's suite does not ask of a backend, and a whole agent on one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import deepagents
import pytest
from deepagents import create_deep_agent
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolMessage

from fastclaw.adapters.deepagents import OUTPUT_BYTES, FastclawSandbox
from fastclaw.sandbox.sync import Host, Sandbox
from tests.adapters.suites import load_image, program_of

if TYPE_CHECKING:
    from collections.abc import Iterator


PAGE = Path(__file__).parents[3] / "docs" / "adapters" / "deepagents.md"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    return load_image(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def box(image: str) -> Iterator[Sandbox]:
    with Host() as host, host.start(image, user="agent") as box:
        yield box


def test_each_file_has_its_own_error_and_its_place(box: Sandbox) -> None:
    backend = FastclawSandbox(box)
    wanted = ["/work/a", "relative", "/work/a/b", "/work", "/etc/x", "/work/nul\0", "/work/deep/c"]
    uploads = backend.upload_files([(path, b"content") for path in wanted])
    assert [(one.path, one.error) for one in uploads] == [
        ("/work/a", None),
        ("relative", "invalid_path"),
        ("/work/a/b", "invalid_path"),
        ("/work", "is_directory"),
        ("/etc/x", "permission_denied"),
        ("/work/nul\0", "invalid_path"),
        ("/work/deep/c", None),
    ]
    downloads = backend.download_files(["/work/deep/c", "/work/missing", "/etc/shadow", "/work/a"])
    assert [(one.content, one.error) for one in downloads] == [
        (b"content", None),
        (None, "file_not_found"),
        (None, "permission_denied"),
        (b"content", None),
    ]


def test_output_is_in_order_with_the_exit_code(box: Sandbox) -> None:
    done = FastclawSandbox(box).execute("echo out; echo err >&2; echo more; exit 3")
    assert (done.output, done.exit_code, done.truncated) == ("out\nerr\nmore\n", 3, False)


def test_a_command_that_takes_too_long_is_ended_and_its_output_kept(box: Sandbox) -> None:
    done = FastclawSandbox(box).execute("echo begun; sleep 1000", timeout=1)
    assert done.exit_code == 124
    assert done.output == "begun\n\nError: command timed out after 1 seconds"
    assert FastclawSandbox(box, timeout=0.2).execute("sleep 1000").exit_code == 124


def test_the_head_of_too_much_output_is_kept(box: Sandbox) -> None:
    done = FastclawSandbox(box).execute(f"head -c {OUTPUT_BYTES + 1} /dev/zero | tr '\\0' x; exit 5")
    assert (len(done.output), done.exit_code, done.truncated) == (OUTPUT_BYTES, 5, True)


async def test_a_command_ends_with_its_task(box: Sandbox) -> None:
    backend = FastclawSandbox(box)
    running = asyncio.create_task(backend.aexecute("echo $$ > /work/pid; exec sleep 1000"))
    while (await backend.aexecute("test -s /work/pid")).exit_code != 0:
        assert not running.done()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await backend.aexecute("kill -0 $(cat /work/pid)")).exit_code != 0


class Scripted(GenericFakeChatModel):
    """A model that says what it is given to say."""

    def bind_tools(self, tools: Any, **_: Any) -> Scripted:
        return self


def _calls(tool: str, **arguments: Any) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": tool, "args": arguments, "id": tool}])


def test_an_agent_writes_a_program_runs_it_and_reads_what_it_wrote(box: Sandbox) -> None:
    program = "print(6 * 7, file=open('/work/answer', 'w'))"
    says = [
        _calls("write_file", file_path="/work/program.py", content=program),
        _calls("execute", command="python3 /work/program.py && ls /work/answer"),
        _calls("read_file", file_path="/work/answer"),
        AIMessage("done"),
    ]
    agent = create_deep_agent(model=Scripted(messages=iter(says)), backend=FastclawSandbox(box))
    messages = agent.invoke({"messages": [("user", "compute")]})["messages"]
    results = {one.tool_call_id: str(one.content) for one in messages if isinstance(one, ToolMessage)}
    assert "/work/answer" in results["execute"]
    assert "42" in results["read_file"]
    assert box.read_text("answer") == "42\n"


def test_the_program_of_the_page_runs(
    image: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of it but the model, for which a network would be needed."""
    says = [_calls("execute", command="echo 2 3 5 > primes"), AIMessage("The primes are in a file.")]

    def create(model: str, backend: FastclawSandbox) -> Any:
        return create_deep_agent(model=Scripted(messages=iter(says)), backend=backend)

    monkeypatch.setattr(deepagents, "create_deep_agent", create)
    exec(program_of(PAGE, image), {})
    assert capsys.readouterr().out == "The primes are in a file.\n"
