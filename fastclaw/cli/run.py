"""`fastclaw run`: one command in a sandbox, its streams and exit code passed through."""

import asyncio
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, Self

import click
from msgspec import UNSET

from fastclaw.cli.choices import runtime_options
from fastclaw.cli.commands import NOT_STARTED
from fastclaw.cli.passthrough import feed_stdin, leave_stdin_alone, own_streams, pass_on
from fastclaw.cli.terminal import follow_size, own_size, raw
from fastclaw.client import RemoteProcess, RuntimeClient
from fastclaw.client.remote_process import Ending
from fastclaw.errors import ExecFailed
from fastclaw.linux import loop
from fastclaw.linux.own_limits import heeded
from fastclaw.runtime import ExitRecord

_SHELL_CODES = {"not_found": 127, "permission_denied": 126, "not_executable": 126, "file_busy": 126}
"""What a shell would return for a command that does not start; podman exec does the same."""

_SIGNALLED = 128
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command(context_settings={"allow_interspersed_args": False})
@runtime_options
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
    options: dict[str, Any],
    allow: tuple[str, ...],
    env: tuple[str, ...],
    workdir: str | None,
    user: str | None,
    timeout: int | None,
    stdin: bool,
    tty: bool,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND in a fresh environment, with this terminal's stdin, stdout and stderr."""
    variables = dict(_pair(entry) for entry in env)
    extensions: dict[str, Any] = {"working_dir": workdir, "user": user, "timeout_ms": timeout}
    if tty:
        extensions |= {"tty": True, "tty_size": own_size()}
        variables = _terminal_type() | variables
    if not stdin:
        extensions["stdin"] = False
        leave_stdin_alone()
    request = {name: value for name, value in extensions.items() if value is not None}
    if allow:
        options = {**options, "network": _allowing(options.get("network", {}), allow)}
    sys.exit(loop.run(_run(list(command), options, variables, request)))


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
    namespace = f"run-{os.getpid()}"
    with _Ending() as ending:
        try:
            async with RuntimeClient.spawn(serve, namespace=namespace, options=options) as runtime:
                return await _run_in(runtime, ending, command, env, request)
        except asyncio.CancelledError:
            if ending.signum is None:
                raise
            return _SIGNALLED + ending.signum


async def _run_in(
    runtime: RuntimeClient, ending: "_Ending", command: list[str], env: dict[str, str], request: dict[str, Any]
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
def _terminal(ending: "_Ending") -> Iterator[None]:
    """The command has this terminal meanwhile: no signal ends us without giving it back."""
    running, signals = asyncio.get_running_loop(), heeded([signal.SIGQUIT])
    for signum in signals:
        running.add_signal_handler(signum, ending.ask, signum)
    try:
        with raw(0):
            yield
    finally:
        for signum in signals:
            running.remove_signal_handler(signum)


async def _attend(process: RemoteProcess, ending: "_Ending", request: dict[str, Any]) -> None:
    """Pass the streams through until both outputs have ended, or the command has and its last output is through."""
    await process.connect()
    end = Ending(process.wait)
    with own_streams() as (stdin, stdout, stderr):
        async with asyncio.TaskGroup() as group:
            with ending.of(process, group):
                aside = [group.create_task(feed_stdin(process, stdin)), group.create_task(end.watch())]
                if request.get("tty"):
                    aside.append(group.create_task(follow_size(process, request.get("tty_size"))))
                await asyncio.gather(
                    pass_on(end.of(process.stdout_read), stdout, ending.cut_off),
                    pass_on(end.of(process.stderr_read), stderr, ending.cut_off),
                )
                for task in aside:
                    task.cancel()


class _Ending:
    """Ends what is under way before its own end: for a signal to us, or because nobody reads our output any more.

    Before the command runs, the start is given up; while it runs, the first time asks its tree to end and the second
    does not wait; once it has ended, the teardown, which has a deadline, goes on.

    Attributes:
        signum: the first signal, or what a shell would report for it.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._main = asyncio.current_task()
        self._kill: Callable[[int | None], object] | None = None
        self._is_over = False
        self._signals = heeded(_SIGNALS)
        self.signum: int | None = None

    def __enter__(self) -> Self:
        for signum in self._signals:
            self._loop.add_signal_handler(signum, self.ask, signum)
        return self

    def __exit__(self, *_: object) -> None:
        for signum in self._signals:
            self._loop.remove_signal_handler(signum)

    @contextmanager
    def of(self, process: RemoteProcess, group: asyncio.TaskGroup) -> Iterator[None]:
        """Ending means this process meanwhile; `group` owns the calls."""
        self._kill = lambda grace_ms: group.create_task(process.kill(grace_ms))
        try:
            yield
        finally:
            self._kill, self._is_over = None, True

    def cut_off(self, error: OSError) -> None:
        """End it, for our output goes nowhere any more. That nobody reads it is told by the exit code alone."""
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
