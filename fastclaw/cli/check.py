"""`fastclaw check`: drive any runtime extension over stdio and say which promises of the contract it keeps."""

import difflib
import signal
import sys
from typing import Any

import click

from fastclaw import conformance, limits
from fastclaw.cli.commands import setting
from fastclaw.conformance import BY_ID, VOCABULARIES
from fastclaw.linux import own_process


def _known(context: click.Context, parameter: click.Parameter, ids: tuple[str, ...]) -> set[str] | None:
    """None for all. A typing error must not look like a runtime that breaks nothing."""
    for name in ids:
        if name not in BY_ID:
            nearest = difflib.get_close_matches(name.upper(), BY_ID, n=1, cutoff=0)
            raise click.BadParameter(f"no promise {name!r}; did you mean {nearest[0]!r}?", context, parameter)
    return set(ids) or None


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--vocabulary", type=click.Choice(list(VOCABULARIES)), default="posix", show_default=True)
@click.option("--only", multiple=True, metavar="ID", callback=_known, help="Check this promise only; may be repeated.")
@click.option(
    "--option", "-o", "extra", multiple=True, metavar="NAME=JSON", help="Option of initialize; may be repeated."
)
@click.option(
    "--jobs",
    "-j",
    type=click.IntRange(1, limits.CHECK_JOBS),
    default=1,
    show_default=True,
    help="Promises checked at a time, each with runtimes of its own.",
)
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def check(
    vocabulary: str, only: set[str] | None, extra: tuple[str, ...], jobs: int, as_json: bool, command: tuple[str, ...]
) -> None:
    """Check the runtime that COMMAND serves on its stdin and stdout."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) == signal.SIG_IGN:  # and shall be so here, but not in what is checked
            signal.signal(signum, lambda *_: None)
    options: dict[str, Any] = dict(setting(entry) for entry in extra)
    report = own_process.run(conformance.check(list(command), VOCABULARIES[vocabulary], options, only, jobs=jobs))
    click.echo(report.to_json().decode() if as_json else report.to_text(), nl=False)
    if not report.ok:
        sys.exit(1)
