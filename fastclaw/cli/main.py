"""`fastclaw`: the commands, and how an error looks on a terminal: one line that says what to do next."""

import sys

import click

from fastclaw import __version__
from fastclaw.cli import serve
from fastclaw.errors import FastclawError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="fastclaw")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Start and hold agent worker processes in a sandbox."""
    context.obj = {"debug": debug}


cli.add_command(serve.serve)


def main() -> None:
    """Entry point of the `fastclaw` command."""
    try:
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except FastclawError as error:
        if "--debug" in sys.argv:
            raise
        click.echo(f"fastclaw: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
