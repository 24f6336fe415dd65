"""The manual page: that it has all that --help has."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from fastclaw.cli.commands import cli
from fastclaw.cli.main import COMMANDS
from fastclaw.cli.man import page

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cli.programs import Call

REQUESTS = {".TH", ".SH", ".SS", ".TP", ".PP", ".BR"}
"""Those of man(7) that are used."""


def test_the_command_prints_it(call: Call) -> None:
    assert call("man").stdout.decode() == page() + "\n"


def test_what_looks_like_a_request_is_one() -> None:
    assert {line.split()[0] for line in page().splitlines() if line.startswith((".", "'"))} == REQUESTS


def plain() -> str:
    return re.sub(r"\\f[BR]", "", page()).replace("\\-", "-").replace("\\e", "\\")


def options(command: click.Command) -> Iterator[str]:
    for option in command.params:
        yield from [*option.opts, *option.secondary_opts] if isinstance(option, click.Option) else []


def test_every_command_and_every_option_is_in_it() -> None:
    text = plain()
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        below = [command, *(command.commands.values() if isinstance(command, click.Group) else ())]
        for one in below:
            words = f"fastclaw {name}" if one is command else f"fastclaw {name} {one.name}"
            section = text.split(f'.SS "{words}"\n')[1].split("\n.SS ")[0]
            assert [option for option in options(one) if option not in section] == []
            assert " ".join((one.help or "").split("\n")[0].split()) in section
