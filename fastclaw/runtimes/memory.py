"""The in-process runtime, for users' own tests: processes are coroutines, all above the lane is the real thing."""

from __future__ import annotations

import asyncio
import os
import signal
import traceback
from contextlib import AsyncExitStack, ExitStack, suppress
from typing import TYPE_CHECKING

from fastclaw import limits, stages
from fastclaw.errors import ExecFailed
from fastclaw.processes.lane import Collection, ExitStatus, Grace, Lane, LaneProcess, StartSpec
from fastclaw.processes.relayed_streams import Collector, OutputBudget, PipedProcess
from fastclaw.runtimes.memory_programs import BUILT_IN, Program, Writer
from fastclaw.runtimes.sandbox import Sandbox, SandboxFactory, SandboxFacts
from fastclaw.spawner.spawn_process import resources_refused
from fastclaw.spawner.spawner_host import resolve_user

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fastclaw.options import Options


class MemorySandbox(Sandbox):
    """Runs the programs of `fastclaw.runtimes.memory_programs`. No isolation, no processes."""

    is_alive = True

    async def _bring_up(self, setup: AsyncExitStack) -> SandboxFacts:
        options = self.options
        target = options.workspace.target if options.workspace else None
        lane = MemoryLane(directories=[target] if target else [], run_output_bytes=options.run_output_bytes)
        return SandboxFacts(
            lane=lane,
            workspace=target,
            directory=target or "/",
            user=options.user or f"{os.geteuid()}:{os.getegid()}",
            max_starting=options.max_starting or limits.MAX_STARTING_SPAWN,
        )


class MemorySandboxes(SandboxFactory):
    """Coroutines instead of processes, for users' own tests."""

    name = "memory"

    def make(self, options: Options) -> MemorySandbox:
        return MemorySandbox(options)


_ENDING = (signal.SIGTERM, signal.SIGKILL, signal.SIGINT)
_PREFIXES = ("/bin/", "/usr/bin/")


class MemoryLane(Lane):
    """Runs coroutines.

    A program that returns has exited with that code; one that raises has exited with 1 and its traceback on stderr; one
    that lets BrokenPipeError through was ended by SIGPIPE. TERM, INT and KILL cancel it.

    Parameters:
        programs: by name, added to (and winning over) `programs.BUILT_IN`. A command under /bin or /usr/bin is found
            by its last part.
        directories: working directories that count as there beside those of this host.
        run_output_bytes: what all runs may hold together.
    """

    name = "memory"

    def __init__(
        self,
        programs: Mapping[str, Program] | None = None,
        directories: Iterable[str] = (),
        *,
        run_output_bytes: int = limits.RUN_OUTPUT_BYTES,
    ) -> None:
        self.capabilities = ["signal", "separate_eof", "signal_number"]
        self._programs = {**BUILT_IN, **(programs or {})}
        self._directories = frozenset(directories)
        self._budget = OutputBudget(run_output_bytes)
        self._live = 0

    async def start(self, spec: StartSpec, container_index: int) -> MemoryProcess:
        """Start one program. Nothing is awaited in here, so it cannot be cancelled half-way."""
        return self._start(spec)

    def _start(self, spec: StartSpec) -> MemoryProcess:
        spec.flight.reach(stages.SENT)
        _check_text(spec)
        program = self._find(spec.cmd[0])
        cwd = self._directory(spec.working_dir)
        if spec.user is not None:
            resolve_user(spec.user)
        process = MemoryProcess(spec, program, cwd)
        self._live += 1
        process.exited.add_done_callback(self._ended)
        return process

    async def run(self, spec: StartSpec, collection: Collection, container_index: int) -> MemoryProcess:
        process = self._start(spec)
        try:
            process.collect(collection, self._budget)
        except OSError:
            await process.end_tree(Grace(ends_at=0.0))
            raise
        return process

    def _find(self, command: str) -> Program:
        names = [command, *(command.removeprefix(prefix) for prefix in _PREFIXES if command.startswith(prefix))]
        for name in names:
            if name in self._programs:
                return self._programs[name]
        if command and os.path.isdir(command):
            raise ExecFailed(f"{command!r} is a directory", "permission_denied")
        raise ExecFailed(f"no program {command!r} in memory: {', '.join(sorted(self._programs))}", "not_found")

    def _directory(self, path: str | None) -> str:
        """One of this host's, so that programs may use it, or one that was promised; as getcwd(2) would give it."""
        if path is None:
            return "/"
        if os.path.isabs(path) and os.path.isdir(path):
            return os.path.realpath(path)
        if os.path.normpath(path) in self._directories:
            return os.path.normpath(path)
        raise ExecFailed(f"working directory {path!r}: no such directory", "bad_working_dir")

    async def end_all(self, processes: list[LaneProcess], grace: Grace) -> None:
        """End these programs.

        Raises:
            ExecFailed: `engine_timeout`, one does not let itself be cancelled; the others are ended all the same.
        """
        outcomes = await asyncio.gather(*(one.end_tree(grace) for one in processes), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    def _ended(self, _exited: asyncio.Future[ExitStatus]) -> None:
        self._live -= 1

    def health(self) -> dict[str, object]:
        return {"name": self.name, "isolation": "none", "live": self._live}


class MemoryProcess(PipedProcess):
    """A program that runs."""

    def __init__(self, spec: StartSpec, program: Program, cwd: str) -> None:
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[ExitStatus] = self._loop.create_future()
        self._signal = int(signal.SIGKILL)
        self._collector: Collector | None = None
        self._open(spec.stdin, merged=spec.merge_stderr)
        env = spec.variables
        self._task = self._loop.create_task(self._run(program, spec.cmd, env, cwd), name=f"memory-{spec.process_id}")
        self._task.add_done_callback(self._ended)

    def collect(self, collection: Collection, budget: OutputBudget) -> None:
        """Have its streams fed and collected here.

        Raises:
            OSError: they cannot be watched; they are closed then.
        """
        self._collector = Collector(self, collection, budget)
        self.collected, self.streams_ended = self._collector.collected, self._collector.streams_ended

    def _open(self, stdin: bool, *, merged: bool) -> None:
        with ExitStack() as opened:
            theirs, self.stdin_fd = _pipe(opened) if stdin else (None, None)
            self.stdout_fd, out = _pipe(opened)
            self.stderr_fd, err = _pipe(opened)
            opened.pop_all()
        self._source = None if theirs is None else PipeSource(theirs)
        self._out = self._err = PipeWriter(out)
        if merged:
            os.close(err)
        else:
            self._err = PipeWriter(err)

    async def _run(self, program: Program, argv: list[str], env: dict[str, str], cwd: str) -> ExitStatus:
        try:
            code = await program(list(argv), env, cwd, self._stdin(), self._out, self._err)
            await self._out.flush()
            await self._err.flush()
        except BrokenPipeError:
            return ExitStatus(reason="signaled", signal=int(signal.SIGPIPE))
        except SystemExit as left:
            return ExitStatus(reason="exited", exit_code=_exit_code(left))
        except Exception:
            await self._report(traceback.format_exc())
            return ExitStatus(reason="exited", exit_code=1)
        return ExitStatus(reason="exited", exit_code=code & 0xFF)

    def _stdin(self) -> asyncio.StreamReader:
        if self._source is not None:
            return self._source.reader
        empty = asyncio.StreamReader()
        empty.feed_eof()
        return empty

    async def _report(self, text: str) -> None:
        with suppress(BrokenPipeError):
            await self._out.flush()
        with suppress(BrokenPipeError):
            await self._err.drain()
            self._err.write(text.encode("utf-8", "replace"))
            await self._err.flush()

    def _ended(self, task: asyncio.Task[ExitStatus]) -> None:
        if self._source is not None:
            self._source.close()
        self._out.close()
        self._err.close()
        if not self.exited.done():
            cancelled = ExitStatus(reason="signaled", signal=self._signal)
            self.exited.set_result(cancelled if task.cancelled() else task.result())

    def signal(self, signum: int, *, group: bool = False) -> None:
        if signum in _ENDING and not self._task.done():
            self._signal = int(signum)
            self._task.cancel()

    async def end_tree(self, grace: Grace) -> None:
        if self._loop.time() < grace.ends_at:
            self.signal(signal.SIGTERM)
            while not self._task.done() and self._loop.time() < grace.ends_at:
                await self._wait(min(limits.GRACE_LOOK_MS / 1000, grace.ends_at - self._loop.time()))
        deadline = self._loop.time() + limits.TREE_DEADLINE_MS / 1000
        while not self._task.done() and self._loop.time() < deadline:
            self.signal(signal.SIGKILL)
            await self._wait(limits.GRACE_LOOK_MS / 1000)
        if not self._task.done():
            raise ExecFailed("the program does not let itself be cancelled", "engine_timeout")
        await asyncio.wait([self.exited])

    async def _wait(self, seconds: float) -> None:
        await asyncio.wait([self._task], timeout=seconds)

    def aclose(self) -> None:
        """Nothing is held once the program has ended, but for the streams of a run."""
        if self._collector is not None:
            self._collector.close()
            self._collector = None


def _pipe(opened: ExitStack) -> tuple[int, int]:
    """Both ends, non-blocking; closed by `opened` unless it is told to let them go."""
    try:
        ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise resources_refused(error) from error
    for fd in ends:
        opened.callback(os.close, fd)
    return ends


def _check_text(spec: StartSpec) -> None:
    """Refuse what no real process could be given, so that a test finds it here too."""
    for text in (*spec.cmd, *spec.variables, *spec.variables.values()):
        if "\0" in text:
            raise ExecFailed(f"{spec.cmd[0]!r}: embedded null byte", "invalid_params")
        if len(text.encode("utf-8", "surrogateescape")) > limits.MAX_ARG_BYTES:
            raise ExecFailed(f"{spec.cmd[0]!r}: an argument or variable over 128 KiB", "too_long")


def _exit_code(left: SystemExit) -> int:
    """As the interpreter does it: None is 0, a number is itself, anything else is 1."""
    if left.code is None:
        return 0
    return left.code & 0xFF if isinstance(left.code, int) else 1


class PipeSource(asyncio.ReadTransport):
    """Feeds a `StreamReader`, which stops it while it holds enough. Takes `fd` over; it must not block."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.reader = asyncio.StreamReader()
        self.reader.set_transport(self)
        self._fd: int | None = fd
        self._loop = asyncio.get_running_loop()
        self.resume_reading()

    def pause_reading(self) -> None:
        """Let what comes wait in the pipe."""
        if self._fd is not None:
            self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        """Read on; also how reading begins."""
        if self._fd is not None:
            self._loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        assert self._fd is not None
        try:
            data = os.read(self._fd, limits.PIPE_BYTES)
        except BlockingIOError:
            return
        if data:
            self.reader.feed_data(data)
        else:
            self.reader.feed_eof()
            self.pause_reading()

    def is_closing(self) -> bool:
        """Whether it is closed."""
        return self._fd is None

    def close(self) -> None:
        """Close the pipe. Idempotent."""
        self.pause_reading()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class PipeWriter(Writer):
    """Writes to a pipe with backpressure: `memory_programs.Writer`. Takes `fd` over; it must not block."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._moved = asyncio.Event()
        self._broken = False
        self._watching = False

    def write(self, data: bytes) -> None:
        self._check()
        if len(self._buffer) > limits.MEMORY_WRITER_BYTES:
            raise BufferError("the writer is full: await drain() first")
        self._buffer += data
        if not self._watching:
            self._push()

    async def drain(self) -> None:
        await self._until(limits.MEMORY_WRITER_BYTES)

    async def flush(self) -> None:
        """Wait until everything is in the pipe. Raises BrokenPipeError when the reader goes."""
        await self._until(0)

    async def _until(self, most: int) -> None:
        while len(self._buffer) > most:
            self._moved.clear()
            await self._moved.wait()
        self._check()

    def _check(self) -> None:
        if self._broken or self._fd is None:
            raise BrokenPipeError("nobody reads any more")

    def _push(self) -> None:
        assert self._fd is not None
        try:
            while self._buffer:
                del self._buffer[: os.write(self._fd, self._buffer[: limits.PIPE_BYTES])]
        except BlockingIOError:
            self._watch(True)
        except BrokenPipeError:
            self._broken = True
            self._buffer.clear()
        if not self._buffer:
            self._watch(False)
        self._moved.set()

    def _watch(self, wanted: bool) -> None:
        if wanted is self._watching or self._fd is None:
            return
        self._watching = wanted
        if wanted:
            self._loop.add_writer(self._fd, self._push)
        else:
            self._loop.remove_writer(self._fd)

    def close(self) -> None:
        """Close the pipe; what it did not take is dropped."""
        self._watch(False)
        self._buffer.clear()
        self._moved.set()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
