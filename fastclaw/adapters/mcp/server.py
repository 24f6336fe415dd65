"""The server of `fastclaw mcp`: answers a client over stdio, by the official SDK of the Model Context Protocol."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from contextlib import AsyncExitStack, asynccontextmanager, closing
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, CallToolResult, ListToolsResult, TextContent, Tool, ToolAnnotations

from fastclaw import __version__, limits
from fastclaw.adapters.mcp.tools import TOOLS, Kind, schema
from fastclaw.errors import FastclawError, InvalidState
from fastclaw.linux.own_process import heeded
from fastclaw.params import convert
from fastclaw.sandbox import SandboxGone
from fastclaw.server.jsonrpc import LineFramer, Oversized
from fastclaw.server.stdio import ByteSink, ByteSource, StdioClaim

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from msgspec import Struct

    from fastclaw.adapters.mcp.one_sandbox import OneSandbox

log = logging.getLogger(__name__)

PROGRESS_S = 1.0
"""Between two notices of progress, which keep a client waiting that would give up within seconds."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ToolServer:
    """Answers what a client asks for.

    Parameters:
        sandbox: what the tools work on.
        network: in a few words, what it may reach; None is nothing.
    """

    def __init__(self, sandbox: OneSandbox, network: str | None) -> None:
        self._sandbox = sandbox
        self._network = network
        self.server = Server(
            "fastclaw",
            version=__version__,
            title="fastclaw sandbox",
            instructions="Tools on one Linux sandbox, which starts with the first call. Its files and processes stay "
            f"until the session ends. From inside, it reaches {network or 'no network'}.",
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
        )

    async def _list_tools(self, *_: object) -> ListToolsResult:
        return ListToolsResult(tools=[self._described(name, kind) for name, kind in TOOLS.items()])

    def _described(self, name: str, kind: Kind) -> Tool:
        return Tool(
            name=name,
            title=f"{name.capitalize()} in the sandbox",
            description=kind.text,
            input_schema=schema(kind.takes),
            output_schema=schema(kind.gives),
            annotations=ToolAnnotations(**{"open_world_hint": self._network is not None, **kind.hints}),
        )

    async def _call_tool(self, context: Any, params: Any) -> CallToolResult:
        kind = TOOLS.get(params.name)
        if kind is None:
            raise MCPError(INVALID_PARAMS, f"there is no tool {params.name!r}")
        async with _progress(context, self._sandbox):
            return await _uncut(self._answered(kind, params.arguments or {}))

    async def _answered(self, kind: Kind, arguments: dict[str, Any]) -> CallToolResult:
        try:
            asked = convert(arguments, kind.takes)
            given = msgspec.to_builtins(await self._done(kind, asked))
        except OSError as error:
            return _answer(f"{error.filename}: {error.strerror}" if error.filename else str(error), is_error=True)
        except (FastclawError, ValueError) as error:
            return _answer(str(error), is_error=True)
        return _answer(json.dumps(given, ensure_ascii=False), structured_content=given)

    async def _done(self, kind: Kind, asked: Struct) -> Struct:
        box = await self._sandbox.get()
        try:
            return await kind.call(box, asked)
        except InvalidState as error:  # it has ended, or is just ending
            self._sandbox.lost(box)
            raise SandboxGone(f"{error}; its files are gone with it, and the next call starts a new one") from error


def _answer(text: str, **more: Any) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=text)], **more)


async def _uncut(work: Any) -> Any:
    """What a coroutine brings; where this is cancelled, it is too, once, and its end is waited for.

    The SDK cancels whoever waits again and again, also what a cancelled call has to do last.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait((task,))
        raise


@asynccontextmanager
async def _progress(context: Any, sandbox: OneSandbox) -> AsyncIterator[None]:
    """Meanwhile the client is told how long it takes, if it asked to be."""
    if (context.meta or {}).get("progress_token") is None:
        yield
        return
    ticking = asyncio.create_task(_tick(context.session.report_progress, sandbox))
    try:
        yield
    finally:
        ticking.cancel()


async def _tick(report: Callable[..., Awaitable[None]], sandbox: OneSandbox) -> None:
    seconds = 0.0
    while True:
        await asyncio.sleep(PROGRESS_S)
        seconds += PROGRESS_S
        await report(seconds, None, f"{sandbox.doing}, {seconds:.0f} s")


# --- stdio ---


class _Input:
    """Lines of a descriptor, until its end or ours: the SDK's own are read by a thread, which nothing can interrupt."""

    def __init__(self, fd: int) -> None:
        self._chunks: asyncio.Queue[bytes] = asyncio.Queue()
        self._source = ByteSource(fd, self._take, self.end)

    def _take(self, data: bytes) -> None:
        self._source.pause()  # one chunk at a time
        self._chunks.put_nowait(data)

    def end(self, *_: object) -> None:
        """No more lines."""
        self._chunks.put_nowait(b"")

    def close(self) -> None:
        """Stop reading."""
        self._source.close()

    async def __aiter__(self) -> AsyncIterator[str]:
        framer = LineFramer()
        self._source.resume()
        while chunk := await self._chunks.get():
            for line in framer.feed(chunk):
                if isinstance(line, Oversized):
                    log.error("a message over %d bytes is left out", limits.MAX_LINE_BYTES)
                else:
                    yield line.decode(errors="replace")
            self._source.resume()


class _Output:
    """What the SDK writes to."""

    def __init__(self, fd: int, on_left: Callable[..., None]) -> None:
        self._sink = ByteSink(fd, lambda is_high: None, on_left)
        self.close = self._sink.close

    async def write(self, text: str) -> None:
        """Queue a message."""
        self._sink.write(text.encode())

    async def flush(self) -> None:
        """Until it is out, or the client gone."""
        await self._sink.drain()


async def serve(sandbox: OneSandbox, network: str | None) -> int | None:
    """Serve the client at stdin and stdout until it leaves, or a signal comes: its number."""
    loop, server = asyncio.get_running_loop(), ToolServer(sandbox, network).server
    ended_by: list[int] = []
    async with AsyncExitStack() as ends:
        claim = ends.enter_context(closing(StdioClaim()))
        ends.push_async_callback(sandbox.close)
        stdin = ends.enter_context(closing(_Input(claim.input_fd)))
        stdout = ends.enter_context(closing(_Output(claim.output_fd, stdin.end)))
        for signum in heeded(_SIGNALS):
            loop.add_signal_handler(signum, partial(_ended, ended_by, stdin, signum))
        async with stdio_server(stdin, stdout) as streams:
            await server.run(*streams, server.create_initialization_options())
    return ended_by[0] if ended_by else None


def _ended(by: list[int], stdin: _Input, signum: int) -> None:
    by.append(signum)
    stdin.end()
