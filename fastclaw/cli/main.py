"""`fastclaw`: the commands, and how an error looks on a terminal: one line that says what to do next."""

import sys
from typing import Any

import click

from fastclaw import __version__
from fastclaw.cli import check, demo, doctor, engine, run, serve
from fastclaw.cli.passthrough import complete_standard_descriptors
from fastclaw.errors import FastclawError
from fastclaw.transport.host import await_children

_INTERRUPTED = 130
"""128 + SIGINT, as a shell reports it."""


class _Commands(click.Group):
    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise  # click's own affairs, also that nobody reads our output any more
        except Exception as error:
            if context.params["debug"]:
                raise
            raise _one_line(error, context) from error


class _NotRun(click.ClickException):
    """Of `fastclaw run`, whose other exit codes may be the command's."""

    exit_code = run.NOT_STARTED


def _one_line(error: Exception, context: click.Context) -> click.ClickException:
    kind = _NotRun if context.invoked_subcommand == "run" else click.ClickException
    if isinstance(error, FastclawError):
        return kind(str(error))
    return kind(f"{type(error).__name__}: {error}; fastclaw --debug shows where")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fastclaw")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Start and hold agent worker processes in a sandbox."""
    if context.invoked_subcommand != "serve":  # which refuses closed ones
        complete_standard_descriptors()


for command in (serve.serve, run.run, doctor.doctor, engine.engine, check.check_command, demo.demo):
    cli.add_command(command)


def main() -> None:
    """Entry point of the `fastclaw` command."""
    await_children()
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        click.echo(f"Error: {error.format_message()}{_hint(error)}", err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(_INTERRUPTED)


def _hint(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f" Try: {context.command_path} --help" if context is not None else ""


if __name__ == "__main__":
    main()
