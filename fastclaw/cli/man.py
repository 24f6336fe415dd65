"""`fastclaw man`: the manual page, made of what `--help` shows (man(7)). The wheel has its output."""

import inspect
import re
from collections.abc import Iterator

import click

from fastclaw import __version__
from fastclaw.cli.commands import cli
from fastclaw.cli.main import SUMMARY

SEE_ALSO = "The contract with a supervisor, and all else: https://github.com/fastclaw/fastclaw/tree/main/docs"


@click.command()
def man() -> None:
    """Print the manual page as roff: fastclaw man | man -l -"""
    click.echo(page())


def page() -> str:
    """The whole page."""
    root = click.Context(cli, info_name="fastclaw")
    lines = [
        f'.TH FASTCLAW 1 "" "fastclaw {__version__}" "User Commands"',
        *(".SH NAME", rf"fastclaw \- {SUMMARY[:1].lower()}{SUMMARY[1:-1]}"),
        *(".SH SYNOPSIS", *_usage(root)),
        *(".SH OPTIONS", *_options(root)),
        *(".SH COMMANDS", *_commands(root)),
        *(".SH SEE ALSO", ".BR podman (1)", ".PP", _text(SEE_ALSO)),
    ]
    return "\n".join(lines)


def _commands(group: click.Context) -> Iterator[str]:
    """Those of a group and, behind each, those below it."""
    assert isinstance(group.command, click.Group)
    for name in group.command.list_commands(group):
        command = group.command.get_command(group, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=group)
        yield f'.SS "{_text(context.command_path)}"'
        yield from _usage(context)
        for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
            yield from (".PP", _text(" ".join(paragraph.split())))
        yield from _options(context)
        if isinstance(command, click.Group):
            yield from _commands(context)


def _usage(context: click.Context) -> Iterator[str]:
    yield rf"\fB{_text(context.command_path)}\fR {_text(' '.join(context.command.collect_usage_pieces(context)))}"


def _options(context: click.Context) -> Iterator[str]:
    """Without --help, which each has."""
    for option in context.command.params:
        record = option.get_help_record(context)
        if record is not None and isinstance(option, click.Option):
            yield from (".TP", rf"\fB{_text(record[0])}\fR", _text(record[1]))


def _text(words: str) -> str:
    r"""As it is to be read: `\` and `-` stand for something else in roff, and so do `.` and `'` as a line's first."""
    escaped = words.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"\A([.'])", r"\\&\1", escaped)
