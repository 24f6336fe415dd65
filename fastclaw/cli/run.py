"""`fastclaw run`: one command in a sandbox, its streams and exit code passed through."""

import asyncio
import os
import signal
import sys
from typing import Any

import click

from fastclaw.cli.options import runtime_options
from fastclaw.cli.passthrough import feed_stdin, pass_on
from fastclaw.client import RemoteProcess, RuntimeClient
from fastclaw.errors import ExecFailed
from fastclaw.runtime import ExitRecord
from fastclaw.transport import loop

_SHELL_CODES = {"not_found": 127, "permission_denied": 126, "not_executable": 126}
"""What a shell would return for a command that does not start; podman exec does the same."""

_NOT_STARTED = 125
_SIGNALLED = 128


@click.command(context_settings={"ignore_unknown_options": True})
@runtime_options
@click.option("--env", "-e", multiple=True, metavar="NAME=VALUE", help="Set a variable; may be repeated.")
@click.option("--workdir", "-w", metavar="PATH", help="Directory inside in which the command starts.")
@click.option("--user", "-u", metavar="NAME|UID[:GID]", help="User inside as which the command runs.")
@click.option(
    "--timeout", type=click.IntRange(min=1), metavar="MS", help="End the command after this many milliseconds."
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    options: dict[str, Any],
    env: tuple[str, ...],
    workdir: str | None,
    user: str | None,
    timeout: int | None,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND in a fresh environment, with this terminal's stdin, stdout and stderr."""
    extensions = {"working_dir": workdir, "user": user, "timeout_ms": timeout}
    request = {name: value for name, value in extensions.items() if value is not None}
    sys.exit(loop.run(_run(list(command), options, dict(_pair(entry) for entry in env), request)))


def _pair(entry: str) -> tuple[str, str]:
    name, equals, value = entry.partition("=")
    if not equals:
        raise click.BadParameter(f"{entry!r} has no '='; write NAME=VALUE", param_hint="--env")
    return name, value


async def _run(command: list[str], options: dict[str, Any], env: dict[str, str], request: dict[str, Any]) -> int:
    serve = [sys.executable, "-m", "fastclaw", "serve", "--log-level", "warning"]
    namespace = f"run-{os.getpid()}"
    async with RuntimeClient.spawn(serve, namespace=namespace, options=options) as runtime:
        try:
            process = await runtime.exec(command, env=env, **request)
        except ExecFailed as error:
            click.echo(f"fastclaw: {error}", err=True)
            return _SHELL_CODES.get(error.reason, _NOT_STARTED)
        async with process:
            return await _attend(process)


async def _attend(process: RemoteProcess) -> int:
    """Pass the streams through until both outputs have ended, then give back the exit code."""
    await process.connect()
    interrupted: list[int] = []
    async with asyncio.TaskGroup() as group:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(signum, _interrupt, signum, process, interrupted, group)
        feeding = group.create_task(feed_stdin(process))
        await asyncio.gather(pass_on(process.stdout_read, 1), pass_on(process.stderr_read, 2))
        feeding.cancel()
    record = await process.wait()
    return _SIGNALLED + interrupted[0] if interrupted else _exit_code(record)


def _interrupt(signum: int, process: RemoteProcess, seen: list[int], group: asyncio.TaskGroup) -> None:
    """The first signal asks the tree to end, a second one does not wait."""
    seen.append(signum)
    group.create_task(process.kill(None if len(seen) == 1 else 0))


def _exit_code(record: ExitRecord) -> int:
    if record.signal is not None:
        return _SIGNALLED + record.signal
    if record.exit_code is None:
        click.echo(f"fastclaw: how the command ended is not known ({record.reason})", err=True)
        return _NOT_STARTED
    return record.exit_code
