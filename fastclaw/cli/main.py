"""`fastclaw`: the commands, and how an error looks on a terminal: one line that says what to do next."""

import sys
from typing import Any

import click

from fastclaw import __version__
from fastclaw.cli import check, demo, doctor, engine, run, serve
from fastclaw.errors import FastclawError

_INTERRUPTED = 130
"""128 + SIGINT, as a shell reports it."""


class _Commands(click.Group):
    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except FastclawError as error:
            if context.params["debug"]:
                raise
            raise click.ClickException(str(error)) from error


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fastclaw")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Start and hold agent worker processes in a sandbox."""


for command in (serve.serve, run.run, doctor.doctor, engine.engine, check.check_command, demo.demo):
    cli.add_command(command)


def main() -> None:
    """Entry point of the `fastclaw` command."""
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
