"""A run of an agent, whose model is a script: its tools work in a sandbox."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from agents import RunConfig, Runner
from agents.items import ToolCallOutputItem
from agents.sandbox import Manifest, SandboxAgent, SandboxRunConfig
from agents.sandbox.capabilities import Filesystem, Shell
from agents.sandbox.entries import File
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call

from fastclaw.adapters.openai_agents import FastclawSandboxClient
from fastclaw.adapters.shared_host import shared_host
from fastclaw.sandbox.loop_thread import loop_thread

if TYPE_CHECKING:
    from agents.items import TResponseOutputItem
    from agents.testing import ModelCall

    from fastclaw.runtime import ListedEnvironment

MANIFEST = Manifest(entries={"numbers.txt": File(content=b"20\n22\n")})


def test_an_agent_uses_the_shell_in_a_sandbox_that_ends_with_its_run() -> None:
    add = "read -r a; read -r b; echo sum $((a + b))"
    model = ScriptedModel(
        [
            [function_call("exec_command", {"cmd": f"{{ {add}; }} < numbers.txt; id -u"}, call_id="add")],
            [function_call("exec_command", {"cmd": add, "tty": True, "yield_time_ms": 250}, call_id="ask")],
            ModelStep.respond(answer_the_terminal),
            [assistant_message("done")],
        ]
    )
    agent = SandboxAgent(name="adder", model=model, default_manifest=MANIFEST, capabilities=[Shell(), Filesystem()])
    config = RunConfig(sandbox=SandboxRunConfig(client=FastclawSandboxClient()))
    before = loop_thread().call(sandboxes())
    result = Runner.run_sync(agent, "Add the numbers.", run_config=config)
    outputs = {item.call_id: str(item.output) for item in result.new_items if isinstance(item, ToolCallOutputItem)}
    assert "sum 42\n0" in outputs["add"]
    assert "sum 3" in outputs["tell"]
    assert result.final_output == "done"
    model.assert_complete()
    assert loop_thread().call(sandboxes()) == before


def answer_the_terminal(call: ModelCall) -> list[TResponseOutputItem]:
    """Talks to the process that the answers of the tools so far name."""
    found = re.search(r"session ID (\d+)", str(call.input))
    assert found is not None
    return [function_call("write_stdin", {"session_id": int(found[1]), "chars": "1\n2\n"}, call_id="tell")]


async def sandboxes() -> list[ListedEnvironment]:
    return await (await shared_host()).list()
