"""`fastclaw run`: one command in a sandbox, its exit code and this terminal's streams passed through, with backpressure
in every direction."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
import termios
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from tty import setraw
from typing import TYPE_CHECKING, Any

import click
from msgspec import UNSET

from fastclaw.cli.commands import NOT_STARTED, setting, size
from fastclaw.client import RuntimeClient
from fastclaw.client.remote_process import StreamEnds
from fastclaw.errors import ExecFailed, FastclawError, IoError
from fastclaw.linux import own_process
from fastclaw.linux.own_process import heeded
from fastclaw.options import RUNTIMES, HostOptions
from fastclaw.params import convert
from fastclaw.server.stdio import ByteSink, ByteSource, OwnedDescriptor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from fastclaw.client import RemoteProcess
    from fastclaw.runtime import ExitRecord


_SHELL_CODES = {"not_found": 127, "permission_denied": 126, "not_executable": 126, "file_busy": 126}
"""What a shell would return for a command that does not start; podman exec does the same."""

_SIGNALLED = 128
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--runtime", type=click.Choice(["auto", *RUNTIMES]), default="auto", show_default=True)
@click.option("--image", metavar="REFERENCE", help="Image of the containers; a small one of what is here by default.")
@click.option("--url", metavar="URL", help="Engine to use; a private one by default.")
@click.option(
    "--option",
    "-o",
    "extra",
    multiple=True,
    metavar="NAME=JSON",
    help="Any other option of initialize; may be repeated.",
)
@click.option(
    "--allow",
    multiple=True,
    metavar="HOST[:PORTS]",
    help="Let the command reach this through the egress proxy; may be repeated. Nothing else gets out.",
)
@click.option("--env", "-e", multiple=True, metavar="NAME=VALUE", help="Set a variable; may be repeated.")
@click.option("--workdir", "-w", metavar="PATH", help="Directory inside in which the command starts.")
@click.option("--user", "-u", metavar="NAME|UID[:GID]", help="User inside as which the command runs.")
@click.option(
    "--timeout", type=click.IntRange(min=1), metavar="MS", help="End the command after this many milliseconds."
)
@click.option("--memory", metavar="SIZE", callback=size, help="Memory of the command at most, as 2g.")
@click.option("--cpus", type=float, metavar="NUMBER", help="Processors that it may use at most, as 1.5.")
@click.option("--pids", type=click.IntRange(min=1), help="Processes and threads of it at most.")
@click.option(
    "--stdin/--no-stdin",
    "-i/-n",
    default=True,
    show_default=True,
    help="Pass our stdin on, or leave it alone: a command in a loop reads the loop's input else.",
)
@click.option("--tty", "-t", is_flag=True, help="Give the command a terminal, of this one's size where this is one.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    runtime: str,
    image: str | None,
    url: str | None,
    extra: tuple[str, ...],
    allow: tuple[str, ...],
    env: tuple[str, ...],
    workdir: str | None,
    user: str | None,
    timeout: int | None,
    memory: int | None,
    cpus: float | None,
    pids: int | None,
    stdin: bool,
    tty: bool,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND in a fresh environment, with this terminal's stdin, stdout and stderr.

    The exit code is the command's own, or 128 and the number of the signal that ended it. 127: it was not found,
    126: it cannot be executed, 125: fastclaw failed.
    """
    options = _options(runtime, image, url, extra)
    variables = dict(_pair(entry) for entry in env)
    limits = {"memory_bytes": memory, "cpus": cpus, "pids": pids}
    extensions: dict[str, Any] = {
        "working_dir": workdir,
        "user": user,
        "timeout_ms": timeout,
        "limits": {name: value for name, value in limits.items() if value is not None} or None,
    }
    if tty:
        extensions |= {"tty": True, "tty_size": own_size()}
        variables = _terminal_type() | variables
    if not stdin:
        extensions["stdin"] = False
        leave_stdin_alone()
    request = {name: value for name, value in extensions.items() if value is not None}
    if allow:
        options = {**options, "network": _allowing(options.get("network", {}), allow)}
    sys.exit(own_process.run(_run(list(command), options, variables, request)))


def _options(runtime: str, image: str | None, url: str | None, extra: tuple[str, ...]) -> dict[str, Any]:
    """The `options` of initialize, refused here where they are wrong, before anything starts."""
    named = {"runtime": runtime, "image": image, "url": url}
    options = {name: value for name, value in named.items() if value is not None} | dict(map(setting, extra))
    convert(options, HostOptions, "options")
    return options


def _allowing(network: dict[str, Any], allow: tuple[str, ...]) -> dict[str, Any]:
    """The network option with more rules; those of `--option network=…` stay."""
    return {**network, "allow": [*network.get("allow", []), *allow]}


def _terminal_type() -> dict[str, str]:
    """What programs must know of the terminal that shows their output: ours."""
    return {"TERM": os.environ["TERM"]} if os.environ.get("TERM") else {}


def _pair(entry: str) -> tuple[str, str]:
    name, equals, value = entry.partition("=")
    if not equals:
        raise click.BadParameter(f"{entry!r} has no '='; write NAME=VALUE", param_hint="--env")
    return name, value


async def _run(command: list[str], options: dict[str, Any], env: dict[str, str], request: dict[str, Any]) -> int:
    serve = [sys.executable, "-m", "fastclaw", "serve", "--log-level", "warning"]
    namespace = own_process.machine_namespace("run")
    ending = _Interrupt()
    with _handled(heeded(_SIGNALS), ending.ask):
        try:
            async with RuntimeClient.spawn(serve, namespace=namespace, options=options) as runtime:
                return await _run_in(runtime, ending, command, env, request)
        except asyncio.CancelledError:
            if ending.signum is None:
                raise
            return _SIGNALLED + ending.signum


async def _run_in(
    runtime: RuntimeClient, ending: _Interrupt, command: list[str], env: dict[str, str], request: dict[str, Any]
) -> int:
    try:
        process = await runtime.exec(command, env=env, **request)
    except ExecFailed as error:
        click.echo(f"fastclaw: {error}", err=True)
        return _SHELL_CODES.get(error.reason, NOT_STARTED)
    async with process:
        try:
            with _terminal(ending) if request.get("tty") else nullcontext():
                await _attend(process, ending, request)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group  # one failure cancels the rest
        record = await process.wait()
    return _exit_code(record) if ending.signum is None else _SIGNALLED + ending.signum


@contextmanager
def _terminal(ending: _Interrupt) -> Iterator[None]:
    """The command has this terminal meanwhile: no signal ends us without giving it back."""
    with _handled(heeded([signal.SIGQUIT]), ending.ask), raw(0):
        yield


@contextmanager
def _handled(signals: Iterable[int], handler: Callable[[int], object]) -> Iterator[None]:
    """The loop calls `handler` for these signals meanwhile."""
    running, signals = asyncio.get_running_loop(), list(signals)
    for signum in signals:
        running.add_signal_handler(signum, handler, signum)
    try:
        yield
    finally:
        for signum in signals:
            running.remove_signal_handler(signum)


async def _attend(process: RemoteProcess, ending: _Interrupt, request: dict[str, Any]) -> None:
    """Pass the streams through until both outputs have ended, or the command has and its last output is through."""
    await process.connect()
    ends = StreamEnds(process.wait)
    with own_streams() as (stdin, stdout, stderr):
        async with asyncio.TaskGroup() as group:
            with ending.of(process, group):
                aside = [group.create_task(feed_stdin(process, stdin)), group.create_task(ends.watch())]
                if request.get("tty"):
                    aside.append(group.create_task(follow_size(process, request.get("tty_size"))))
                await asyncio.gather(
                    pass_on(ends.of(process.stdout_read), stdout, ending.cut_off),
                    pass_on(ends.of(process.stderr_read), stderr, ending.cut_off),
                )
                for task in aside:
                    task.cancel()


class _Interrupt:
    """Ends the command early: for a signal to us, or because our output has no reader any more.

    Before the command runs, the start is given up; while it runs, the first time asks its tree to end and the second
    does not wait; once it has ended, the teardown, which has a deadline, goes on.

    Attributes:
        signum: the first signal, or what a shell would report for it.
    """

    def __init__(self) -> None:
        self._main = asyncio.current_task()
        self._kill: Callable[[int | None], object] | None = None
        self._is_over = False
        self.signum: int | None = None

    @contextmanager
    def of(self, process: RemoteProcess, group: asyncio.TaskGroup) -> Iterator[None]:
        """To end means to kill this process meanwhile; `group` owns the calls."""
        self._kill = lambda grace_ms: group.create_task(process.kill(grace_ms))
        try:
            yield
        finally:
            self._kill, self._is_over = None, True

    def cut_off(self, error: OSError) -> None:
        """End it, for our output cannot be written any more. A reader that left is told by the exit code alone."""
        if error.errno not in (errno.EPIPE, errno.ECONNRESET):
            with suppress(OSError):  # stderr may be on the same disk
                click.echo(f"fastclaw: output is lost: {error.strerror}", err=True)
        self.ask(signal.SIGPIPE)

    def ask(self, signum: int) -> None:
        """End it."""
        first, self.signum = self.signum is None, self.signum or signum
        if self._kill is not None:
            self._kill(None if first else 0)
        elif first and not self._is_over and self._main is not None:
            self._main.cancel()


def _exit_code(record: ExitRecord) -> int:
    if record.reason == "oom":
        memory = {} if record.memory is UNSET else record.memory
        limit = f"; the limit is {memory['limit_bytes']} bytes" if "limit_bytes" in memory else ""
        click.echo(f"fastclaw: the command was killed: out of memory{limit}", err=True)
    if record.signal is not None:
        return _SIGNALLED + record.signal
    if record.exit_code is None:
        click.echo(f"fastclaw: how the command ended is not known ({record.reason})", err=True)
        return NOT_STARTED
    return record.exit_code


# --- Our own streams ---


def leave_stdin_alone() -> None:
    """Make fd 0 /dev/null, as ssh -n does: what was there is neither read nor changed."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


@contextmanager
def own_streams() -> Iterator[tuple[int, int, int]]:
    """Non-blocking descriptors for our stdin, stdout and stderr."""
    with ExitStack() as release:  # in reverse: where all are one socket, only the first saw its flag untouched
        streams = OwnedDescriptor.input(0), OwnedDescriptor.output(1), OwnedDescriptor.output(2)
        for owned in streams:
            release.callback(owned.close)
        yield streams[0].fd, streams[1].fd, streams[2].fd


async def feed_stdin(process: RemoteProcess, fd: int) -> None:
    """Send what `fd` gives to the process until its end, then end the process's stdin. Cancel it when the process has
    ended."""
    chunks: asyncio.Queue[bytes] = asyncio.Queue(1)
    source = ByteSource(fd, lambda data: _take(source, chunks, data), lambda: chunks.put_nowait(b""))
    try:
        source.resume()
        while chunk := await chunks.get():
            await process.write(chunk)
            source.resume()
        await process.write_eof()
    except IoError:
        pass  # the process reads no more: nothing to pass on
    finally:
        source.close()


def _take(source: ByteSource, chunks: asyncio.Queue[bytes], data: bytes) -> None:
    source.pause()  # one chunk at a time: what the process does not take stays where it comes from
    chunks.put_nowait(data)


async def pass_on(read: Callable[[], Awaitable[bytes]], fd: int, on_left: Callable[[OSError], None]) -> None:
    """Write what `read` gives to `fd` until its end.

    Parameters:
        on_left: called once when nothing can be written to `fd` any more, with why; what still comes is dropped.
    """
    sink = ByteSink(fd, lambda is_high: None, on_left)
    try:
        while chunk := await read():
            sink.write(bytes(chunk))
            await sink.drain()
    finally:
        sink.close()


# --- Our own terminal ---


Size = tuple[int, int]
"""Rows and columns."""


def own_size() -> Size | None:
    """Of whichever of stdin, stdout and stderr is a terminal that knows its size."""
    for fd in (0, 1, 2):
        with suppress(OSError):
            columns, rows = os.get_terminal_size(fd)
            if rows and columns:
                return rows, columns
    return None


@contextmanager
def raw(fd: int) -> Iterator[None]:
    """Have every byte passed on as it is typed, signals' too, until the block is left, however. Nothing where `fd` is
    no terminal."""
    if not os.isatty(fd):
        yield
        return
    before = termios.tcgetattr(fd)
    try:
        setraw(fd, termios.TCSANOW)
        yield
    finally:
        with suppress(termios.error):  # it was hung up
            termios.tcsetattr(fd, termios.TCSANOW, before)


async def follow_size(process: RemoteProcess, told: Size | None) -> None:
    """Have a process's terminal take the size of ours, again and again. Cancel it when the process has ended.

    Parameters:
        told: the size that it was started with.
    """
    changed = asyncio.Event()
    # An error: it ended, or the runtime did, which others notice.
    with _handled([signal.SIGWINCH], lambda _: changed.set()), suppress(FastclawError):
        while True:
            size = own_size()
            if size is not None and size != told:
                await process.resize(*size)
                told = size
            await changed.wait()
            changed.clear()
