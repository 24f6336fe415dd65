"""The commands as click has them, and how an error looks on a terminal: one line that says what to do next.

A command's module is loaded when the command is called: none pays for what another one imports.
"""

import os
import sys
from importlib import import_module
from typing import Any

import click
import msgspec
from click.shell_completion import CompletionItem

from fastclaw import __version__
from fastclaw.cli.main import COMMANDS, OPTIONS, help_text, missing_text
from fastclaw.errors import FastclawError, InvalidParams
from fastclaw.linux.own_process import await_children

INTERRUPTED = 130
"""128 + SIGINT, as a shell reports it."""

NOT_STARTED = 125
"""Exit code of `fastclaw run` where the failure is not the command's, as of podman exec: any other may be its own."""


_PATH_VARIABLES = ("HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "CONTAINER_HOST")
"""Their values become paths in answers and in an engine's settings."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            self.add_command(getattr(import_module(f"fastclaw.cli.{cmd_name}"), cmd_name))
        return self.commands.get(cmd_name)

    def get_help(self, ctx: click.Context) -> str:
        return help_text()

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """By the table: click would load each command for its help."""
        names = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise  # click's own affairs, also that nobody reads our output any more
        except Exception as error:
            if ctx.params["debug"]:
                raise
            raise _one_line(error, ctx) from error


class _NotRun(click.ClickException):
    exit_code = NOT_STARTED


def _one_line(error: Exception, context: click.Context) -> click.ClickException:
    kind = _NotRun if context.invoked_subcommand == "run" else click.ClickException
    if isinstance(error, FastclawError):
        return kind(str(error))
    if isinstance(error, ModuleNotFoundError):
        return kind(missing_text(error.name))
    return kind(f"{type(error).__name__}: {error}; fastclaw --debug shows where")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fastclaw")
@click.option("--debug", is_flag=True, help=OPTIONS["--debug"])
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """The root of the commands, which `_Commands` loads."""
    if context.invoked_subcommand != "serve":  # which refuses closed ones
        complete_standard_descriptors()
    require_utf8()


def complete_standard_descriptors() -> None:
    """Open /dev/null for fd 0, 1 and 2 where they are closed. To be called before anything else takes a descriptor: an
    event loop's own would become stdin or stdout."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes `fd`, the lowest that is free


def require_utf8() -> None:
    """Refuse by name what could not be sent on: the protocol carries text."""
    words = {f"argument {number}": word for number, word in enumerate(sys.argv) if number}
    variables = [name for name in _PATH_VARIABLES if name in os.environ]
    for name, word in (words | {name: os.environ[name] for name in variables}).items():
        if not word.isascii() and any("\ud800" <= letter <= "\udfff" for letter in word):  # what decoding left
            raise InvalidParams(f"{name}, {os.fsencode(word)!r}, is no UTF-8, and nothing else can be passed on")


def run_command() -> None:
    """Run the command that `sys.argv` names, and leave with its exit code."""
    await_children()
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        said = " ".join(error.format_message().split())  # click puts each choice of a missing argument on a line
        click.echo(f"Error: {said}{_hint(error)}", err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)


def _hint(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f" Try: {context.command_path} --help" if context is not None else ""


def size(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """Callback of an option: bytes, as `2g`."""
    from fastclaw.sandbox.units import size_bytes  # here: most commands take no size, and the package is large

    try:
        return None if text is None else size_bytes(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def setting(entry: str) -> tuple[str, Any]:
    """A `--option NAME=JSON` as name and value; what is no JSON is taken as a string."""
    name, equals, text = entry.partition("=")
    if not equals:
        raise click.BadParameter(f"{entry!r} has no '='; write NAME=JSON", param_hint="--option")
    try:
        return name, msgspec.json.decode(text)
    except msgspec.DecodeError:
        return name, text
