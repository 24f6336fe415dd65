"""`fastclaw completion`: click's own scripts for shells, which ask `fastclaw` itself what fits."""

import click
from click.shell_completion import get_completion_class

from fastclaw.cli.commands import cli

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print what makes SHELL complete commands and options, for a file that it reads."""
    made = get_completion_class(shell)
    assert made is not None
    click.echo(made(cli, {}, "fastclaw", "_FASTCLAW_COMPLETE").source())
