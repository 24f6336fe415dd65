"""A run of an agent, whose model is a script: its tools work in a sandbox."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents import RunConfig, Runner
from agents.items import ToolCallOutputItem
from agents.sandbox import Manifest, SandboxAgent, SandboxRunConfig
from agents.sandbox.capabilities import Filesystem, Shell
from agents.sandbox.entries import File
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call

from fastclaw.adapters.openai_agents import FastclawSandboxClient
from fastclaw.adapters.shared_host import shared_host
from fastclaw.sandbox.loop_thread import loop_thread
from tests.adapters.suites import program_of

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


def test_the_program_of_the_page_talks_to_a_model_and_works_in_a_sandbox(image: str) -> None:
    program = program_of(Path(__file__).parents[3] / "docs" / "adapters" / "openai-agents.md", image)
    asked: list[Any] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), answering(asked)) as server:
        threading.Thread(target=server.serve_forever).start()
        environ = {"OPENAI_BASE_URL": f"http://127.0.0.1:{server.server_port}/v1", "OPENAI_API_KEY": "none"}
        given = {**os.environ, **environ, "OPENAI_AGENTS_DISABLE_TRACING": "1"}
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False, env=given
        )
        server.shutdown()
    assert (done.returncode, done.stdout) == (0, "all is well\n"), done.stderr
    assert "in /workspace" in str(asked[1]["input"][-1])


def answering(asked: list[Any]) -> type[BaseHTTPRequestHandler]:
    """A model of OpenAI's Responses API that has one command run, and then is content."""
    command = {"cmd": "python3 -c 'import os; print(\"in\", os.getcwd())'"}
    call = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "exec_command"}
    text = {"type": "output_text", "text": "all is well", "annotations": []}
    outputs = [
        {**call, "arguments": json.dumps(command)},
        {"type": "message", "id": "m_1", "role": "assistant", "status": "completed", "content": [text]},
    ]
    fixed = {"object": "response", "created_at": 0, "model": "scripted", "parallel_tool_calls": False}

    class Model(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            output = [outputs[len(asked) - 1]]
            answer = {**fixed, "id": "r_1", "tool_choice": "auto", "tools": [], "output": output}
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Model


def answer_the_terminal(call: ModelCall) -> list[TResponseOutputItem]:
    """Talks to the process that the answers of the tools so far name."""
    found = re.search(r"session ID (\d+)", str(call.input))
    assert found is not None
    return [function_call("write_stdin", {"session_id": int(found[1]), "chars": "1\n2\n"}, call_id="tell")]


async def sandboxes() -> list[ListedEnvironment]:
    return await (await shared_host()).list()
