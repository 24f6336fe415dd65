"""The part of `openai_agents` that starts commands: to their ends, or as processes that a model goes on talking to."""

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from agents.sandbox import errors
from agents.sandbox.session import BaseSandboxSession, pty_types
from agents.sandbox.session.pty_output import collect_pty_output
from agents.sandbox.types import ExecResult, User

from fastclaw import FastclawError
from fastclaw.sandbox import Process, Sandbox
from fastclaw.sandbox.loop_thread import loop_thread

OUTPUT_LIMIT = "16m"
"""Of each stream of a command, as much as one answer has; of a longer one, its first and last half."""

HELD_BYTES = 1 << 20
"""Of a process's output that the model has not asked for: far more than it is shown at a time."""

Who = str | User | None  # a User has a name
Shell = bool | list[str]


class CommandSession(BaseSandboxSession):
    """A session whose commands run in a fastclaw sandbox."""

    def __init__(self, box: Sandbox) -> None:
        self.box = box
        self._bring = loop_thread().bring
        self._terminals: dict[int, _Terminal] = {}

    async def exec(
        self, *command: str | Path, timeout: float | None = None, shell: Shell = True, user: Who = None
    ) -> ExecResult:
        argv, how = self._prepare_exec_command(*command, shell=shell, user=None), await self._how(user)
        with failing(errors.ExecTransportError, command=command):
            done = await self._bring(self.box.run(argv, timeout=timeout, output_limit=OUTPUT_LIMIT, **how))
        if done.reason == "timeout":
            raise errors.ExecTimeoutError(command=command, timeout_s=timeout)
        said = done.stderr or (done.error or "").encode()
        return ExecResult(stdout=done.stdout, stderr=said, exit_code=done.exit_code)

    async def _exec_internal(self, *command: str | Path, timeout: float | None = None) -> ExecResult:
        return await self.exec(*command, timeout=timeout, shell=False)

    async def _how(self, user: Who) -> dict[str, Any]:
        manifest = self.state.manifest
        return {"cwd": manifest.root, "env": await manifest.environment.resolve(), "user": getattr(user, "name", user)}

    def supports_pty(self) -> bool:
        return True

    async def pty_exec_start(
        self,
        *command: str | Path,
        timeout: float | None = None,
        shell: Shell = True,
        user: Who = None,
        tty: bool = False,
        yield_time_s: float | None = None,
        max_output_tokens: int | None = None,
    ) -> pty_types.PtyExecUpdate:
        argv, how = self._prepare_exec_command(*command, shell=shell, user=None), await self._how(user)
        with failing(errors.ExecTransportError, command=command):
            process = await self._bring(self.box.exec(argv, tty=tty, stdin=tty, merge_stderr=not tty, **how))
        number = pty_types.allocate_pty_process_id(set(self._terminals))
        self._terminals[number] = _Terminal(process, tty)
        if len(self._terminals) > pty_types.PTY_PROCESSES_MAX:
            known = [(key, one.used, one.pump.done()) for key, one in self._terminals.items()]
            if (oldest := pty_types.process_id_to_prune_from_meta(known)) is not None:
                await self._bring(self._terminals.pop(oldest).end())
        wait_ms = 10_000 if yield_time_s is None else int(yield_time_s * 1000)
        return await self._update(number, pty_types.clamp_pty_yield_time_ms(wait_ms), max_output_tokens)

    async def pty_write_stdin(
        self, *, session_id: int, chars: str, yield_time_s: float | None = None, max_output_tokens: int | None = None
    ) -> pty_types.PtyExecUpdate:
        terminal = self._resolve_pty_session_entry(pty_processes=self._terminals, session_id=session_id)
        if chars and not terminal.tty:
            raise RuntimeError("stdin is not available for this process")
        with suppress(BrokenPipeError):  # it has just ended, as its update says
            await self._bring(terminal.process.stdin.write(chars))
        wait_ms = 250 if yield_time_s is None else int(yield_time_s * 1000)
        wait_ms = pty_types.resolve_pty_write_yield_time_ms(yield_time_ms=wait_ms, input_empty=not chars)
        return await self._update(session_id, wait_ms, max_output_tokens)

    async def _update(self, number: int, wait_ms: int, max_tokens: int | None) -> pty_types.PtyExecUpdate:
        terminal = self._terminals[number]
        output, tokens, is_done = await collect_pty_output(
            output_chunks=terminal.chunks,
            output_lock=asyncio.Lock(),
            output_notify=asyncio.Event(),
            is_done=terminal.pump.done,
            yield_time_ms=wait_ms,
            max_output_tokens=max_tokens,
            wait_for_output=lambda seconds: self._bring(terminal.wait(seconds)),
        )
        terminal.used = time.monotonic()
        if not is_done:
            return pty_types.PtyExecUpdate(number, output, None, tokens)
        self._terminals.pop(number, None)
        await self._bring(terminal.process.leave())
        with failing(errors.ExecTransportError, command=terminal.process.cmd):
            return pty_types.PtyExecUpdate(None, output, terminal.pump.result(), tokens)

    async def pty_terminate_all(self) -> None:
        while self._terminals:
            await self._bring(self._terminals.popitem()[1].end())


class _Terminal:
    """A process that a model talks to, and the output that it has not seen. Its pump is on fastclaw's own loop."""

    def __init__(self, process: Process, tty: bool) -> None:
        self.process, self.tty, self.used = process, tty, time.monotonic()
        self.chunks: deque[bytes] = deque()
        self._is_ending = False
        self._more, self._taken = asyncio.Event(), asyncio.Event()
        self.pump = asyncio.run_coroutine_threadsafe(self._pump(), loop_thread().loop)
        self.pump.add_done_callback(lambda _: self._more.set())

    async def _pump(self) -> int:
        while piece := await self.process.stdout.read(1 << 16):
            self.chunks.append(piece)
            self._more.set()
            while sum(map(len, tuple(self.chunks))) > HELD_BYTES and not self._is_ending:
                self._taken.clear()
                await self._taken.wait()  # meanwhile it blocks, as with a terminal that nobody looks at
        return (await self.process.wait()).exit_code

    async def wait(self, seconds: float) -> None:
        self._taken.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._more.wait(), seconds)
        self._more.clear()

    async def end(self) -> None:
        self._is_ending = True
        self._taken.set()
        with suppress(FastclawError):  # gone with its sandbox
            await self.process.kill(0)
        await asyncio.wait((asyncio.wrap_future(self.pump),))
        await self.process.leave()


@contextmanager
def failing(kind: type[errors.SandboxError], **about: Any) -> Iterator[None]:
    """Within it, what fails is told as the SDK tells it."""
    try:
        yield
    except (OSError, FastclawError) as error:
        is_missing = kind is errors.WorkspaceArchiveReadError and isinstance(error, FileNotFoundError)
        raise (errors.WorkspaceReadNotFoundError if is_missing else kind)(cause=error, **about) from error
