"""`fastclaw check`: drive any runtime extension over stdio and say which promises of the contract it keeps."""

import sys
from typing import Any

import click

from fastclaw.cli.options import setting
from fastclaw.conformance import VOCABULARIES, check
from fastclaw.transport import loop


@click.command(name="check", context_settings={"ignore_unknown_options": True})
@click.option("--vocabulary", type=click.Choice(list(VOCABULARIES)), default="posix", show_default=True)
@click.option("--only", multiple=True, metavar="ID", help="Check this promise only; may be repeated.")
@click.option(
    "--option", "-o", "extra", multiple=True, metavar="NAME=JSON", help="Option of initialize; may be repeated."
)
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def check_command(
    vocabulary: str, only: tuple[str, ...], extra: tuple[str, ...], as_json: bool, command: tuple[str, ...]
) -> None:
    """Check the runtime that COMMAND serves on its stdin and stdout."""
    options: dict[str, Any] = dict(setting(entry) for entry in extra)
    report = loop.run(check(list(command), VOCABULARIES[vocabulary], options, set(only) or None))
    click.echo(report.to_json().decode() if as_json else report.to_text(), nl=False)
    if not report.ok:
        sys.exit(1)
