"""What a client of the protocol sees of `fastclaw mcp`, and what is left when it goes."""

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.shared.exceptions import MCPError

from fastclaw.adapters.mcp.one_sandbox import OneSandbox
from fastclaw.adapters.mcp.tools import LIST_ENTRIES, OUTPUT_BYTES, READ_BYTES, TOOLS
from fastclaw.errors import FastclawError
from tests.acceptance.homes import PATIENCE_S, Home, nothing_is_left

MCP = [sys.executable, "-m", "fastclaw", "mcp"]
ONE_LINE = 500


@asynccontextmanager
async def session(*options: str) -> AsyncIterator[ClientSession]:
    """A client whose server is started with these options."""
    server = StdioServerParameters(command=MCP[0], args=[*MCP[1:], *options], env=dict(os.environ))
    async with stdio_client(server, sys.__stderr__) as (read, write), ClientSession(read, write) as client:
        await client.initialize()
        yield client


async def call(client: ClientSession, tool: str, **arguments: Any) -> dict[str, Any]:
    """What a call brings that goes well. The client itself holds it against the tool's schema."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result
    assert json.loads(result.content[0].text) == result.structured_content
    return result.structured_content


async def refused(client: ClientSession, tool: str, **arguments: Any) -> str:
    """What a call says that does not."""
    result = await client.call_tool(tool, arguments)
    assert result.is_error, result
    text: str = result.content[0].text
    assert "\n" not in text
    assert len(text) < ONE_LINE
    return text


async def test_tools_are_described() -> None:
    async with session() as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert set(tools) == set(TOOLS) == {"run", "read", "write", "list"}
    for tool in tools.values():
        assert tool.description
        assert tool.input_schema["type"] == tool.output_schema["type"] == "object"
    hints = {name: tool.annotations.model_dump(exclude_none=True) for name, tool in tools.items()}
    assert hints["run"] == {
        "read_only_hint": False,
        "destructive_hint": True,
        "idempotent_hint": False,
        "open_world_hint": False,  # it reaches nothing
    }
    assert [name for name in hints if hints[name]["read_only_hint"]] == ["read", "list"]


async def test_what_it_may_reach_is_said() -> None:
    async with session("--allow", "api.example.com:443") as client:
        assert "api.example.com:443" in client.instructions
        rules = await call(client, "run", command="wget -qO - http://rules.fastclaw.internal/")
        assert json.loads(rules["stdout"])["allow"] == ["api.example.com:443"]
        (run,) = [tool for tool in (await client.list_tools()).tools if tool.name == "run"]
    assert run.annotations.open_world_hint


async def test_files_stay_from_call_to_call() -> None:
    async with session() as client:
        assert await call(client, "write", path="/work/a/b.txt", content="hällo\n") == {
            "path": "/work/a/b.txt",
            "size": 7,
        }
        done = await call(client, "run", command="cat b.txt; echo $A >&2; exit 3", cwd="/work/a", env={"A": "b"})
        assert (done["exit_code"], done["reason"], done["stdout"], done["stderr"]) == (3, "exited", "hällo\n", "b\n")
        assert await call(client, "read", path="/work/a/b.txt") == {"content": "hällo\n", "encoding": "utf-8"}
        (entry,) = (await call(client, "list", path="/work/a"))["entries"]
        assert entry == {"name": "b.txt", "type": "file", "size": 7}
        done = await call(client, "run", command=["tr", "a-z", "A-Z"], input="abc")
        assert done["stdout"] == "ABC"


async def test_bytes_go_as_base64() -> None:
    data = bytes(range(256))
    async with session() as client:
        encoded = base64.b64encode(data).decode()
        await call(client, "write", path="/work/b", content=encoded, encoding="base64")
        assert await call(client, "read", path="/work/b") == {"content": encoded, "encoding": "base64"}
        assert "base64" in await refused(client, "write", path="/work/b", content="?", encoding="base64")


async def test_what_a_command_does_is_no_error_and_what_cannot_be_done_is() -> None:
    async with session() as client:
        done = await call(client, "run", command=["no-such-program"])
        assert (done["exit_code"], done["reason"]) == (127, "not_found")
        assert "no-such-program" in done["stderr"]
        done = await call(client, "run", command="sleep 600", timeout=0.2)
        assert (done["exit_code"], done["reason"]) == (128 + signal.SIGTERM, "timeout")
        assert await refused(client, "read", path="/nowhere") == "/nowhere: No such file or directory"
        assert await refused(client, "read", path="/") == "/: Is a directory"
        assert "commando" in await refused(client, "run", commando="id")
        assert "timeout" in await refused(client, "run", command="id", timeout=-1)
        with pytest.raises(MCPError, match="no tool 'format'"):
            await client.call_tool("format", {})


async def test_what_is_long_is_cut_and_says_so() -> None:
    async with session() as client:
        done = await call(client, "run", command="seq 100000; echo end >&2")
        assert done["note"]
        head, note, tail = done["stdout"].partition("\n[…")
        assert (head.startswith("1\n2\n"), bool(note), tail.endswith("99999\n100000\n")) == (True, True, True)
        assert len(done["stdout"]) < OUTPUT_BYTES + ONE_LINE
        assert done["stderr"] == "end\n"

        many = f"mkdir /work/many; cd /work/many; seq {LIST_ENTRIES + 5} | xargs touch"
        await call(client, "run", command=many)
        listed = await call(client, "list", path="/work/many")
        assert (len(listed["entries"]), listed["note"]) == (LIST_ENTRIES, "5 more are not shown")


async def test_a_long_file_is_read_in_parts_without_cutting_a_character() -> None:
    text = "1" + "ä" * READ_BYTES
    async with session() as client:
        await call(client, "write", path="/work/long", content=text)
        parts, offset = [], 0
        while offset is not None:
            part = await call(client, "read", path="/work/long", offset=offset)
            parts.append(part["content"])
            offset = part.get("next_offset")
    assert len(parts) == 3
    assert "".join(parts) == text


async def test_progress_is_told_to_who_asks() -> None:
    told: list[str] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        told.append(message or "")

    async with session() as client:
        await client.call_tool("run", {"command": "sleep 2.5"}, progress_callback=hear)
    assert "at work" in told[-1]


async def test_a_call_that_is_taken_back_ends_with_its_tree() -> None:
    """Each wait is one of the sandbox's own shell; the pattern does not fit the shell that looks for it."""
    async with session() as client:
        async with anyio.create_task_group() as group:
            group.start_soon(client.call_tool, "run", {"command": "sleep 4321 & touch /work/up; sleep 4321"})
            await call(client, "run", command="until [ -e /work/up ]; do sleep 0.05; done")
            group.cancel_scope.cancel()
        gone = "while grep -qs 'sleep.43[2]1' /proc/[0-9]*/cmdline; do sleep 0.05; done"
        assert (await call(client, "run", command=gone, timeout=20))["exit_code"] == 0


async def test_a_sandbox_that_has_ended_is_said_once_and_started_anew() -> None:
    async with session("--lifetime", "2s") as client:
        await call(client, "write", path="/work/a", content="")
        assert "its files are gone with it" in await refused(client, "run", command="sleep 600")
        assert (await call(client, "list", path="/work"))["entries"] == []


async def test_a_start_that_fails_is_said_and_tried_again() -> None:
    async with session("--image", "localhost/no-such-image:1") as client:
        for _ in range(2):
            assert "no-such-image" in await refused(client, "list")


async def test_limits_hold() -> None:
    async with session("--memory", "32m", "--user", "12345:12345") as client:
        assert (await call(client, "run", command="id -u"))["stdout"] == "12345\n"
        done = await call(client, "run", command=["sh", "-c", "exec tail /dev/zero"])
        assert done["reason"] == "oom"


# --- its end ---


def message(number: int, method: str, params: dict[str, Any]) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode() + b"\n"


HELLO = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "0"}}


@contextmanager
def server_at_work(home: Home) -> Iterator[subprocess.Popen[bytes]]:
    """A server in the middle of a command that has left its session."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(MCP, env=home.env, **pipes) as server:
        server.stdin.write(message(1, "initialize", HELLO))
        server.stdin.write(b'{"jsonrpc": "2.0", "method": "notifications/initialized"}\n')
        at_work = {"command": "setsid sleep 4321 & touch /work/up; sleep 4321"}
        up = {"command": "until [ -e /work/up ]; do sleep 0.05; done"}
        for number, arguments in ((2, at_work), (3, up)):
            server.stdin.write(message(number, "tools/call", {"name": "run", "arguments": arguments}))
        server.stdin.flush()
        assert json.loads(server.stdout.readline())["id"] == 1
        assert json.loads(server.stdout.readline())["id"] == 3
        yield server


@pytest.mark.parametrize("how", ["eof", "TERM", "INT", "KILL"])
async def test_nothing_is_left_whatever_ends_it(tmp_path: Path, how: str) -> None:
    home = Home(tmp_path)
    with server_at_work(home) as server:
        assert home.containers()
        if how == "eof":
            server.stdin.close()
        else:
            os.kill(server.pid, signal.Signals[f"SIG{how}"])
        code = await asyncio.to_thread(server.wait, PATIENCE_S)
        log = server.stderr.read() if how != "KILL" else b""
    assert code == {"eof": 0, "TERM": 143, "INT": 130, "KILL": -9}[how]
    assert all(" WARNING " in line for line in log.decode().splitlines()), log
    await nothing_is_left(home)


def test_the_death_of_what_holds_the_sandbox_is_said_once(tmp_path: Path) -> None:
    with server_at_work(Home(tmp_path)) as server:
        (serve,) = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        os.kill(int(serve), signal.SIGKILL)
        assert json.loads(server.stdout.readline())["result"]["isError"]
        server.stdin.write(message(4, "tools/call", {"name": "run", "arguments": {"command": "echo again"}}))
        server.stdin.flush()
        assert json.loads(server.stdout.readline())["result"]["structuredContent"]["stdout"] == "again\n"
        server.stdin.close()
        assert server.wait(PATIENCE_S) == 0


def test_the_wire_has_nothing_but_messages(tmp_path: Path) -> None:
    with server_at_work(Home(tmp_path)) as server:
        server.stdin.write(b"no message\n" + message(4, "ping", {}))
        server.stdin.close()
        lines = server.stdout.read().splitlines()
        server.wait(PATIENCE_S)
    assert all(json.loads(line)["jsonrpc"] == "2.0" for line in lines)


async def test_who_tells_of_a_lost_one_hears_nothing_of_the_start_of_the_next() -> None:
    start: dict[str, Any] = {}
    one = OneSandbox({"runtime": "local"}, start)
    try:
        box = await one.get()
        one.lost(box)
        start["no_such_option"] = True
        getting = asyncio.create_task(one.get())
        while not getting.done():
            one.lost(box)
            await asyncio.sleep(0)
        with pytest.raises(FastclawError):
            await getting
        del start["no_such_option"]
        assert (await (await one.get()).run(["true"])).exit_code == 0
    finally:
        await one.close()
