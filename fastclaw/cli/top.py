"""`fastclaw top`: the processes of a running runtime, as htop shows those of a host."""

from __future__ import annotations

import os
import shutil
import sys
import time
import typing

import click

from fastclaw.cli.numbers import NumberRange
from fastclaw.cli.stats import FIRST_LOOK_S, connect, has_screen
from fastclaw.control.client import ControlClient
from fastclaw.control.protocol import AskProcesses, AskSnapshot, Sort
from fastclaw.errors import IoError

SORTS = typing.get_args(Sort)
_PLAIN_COLUMNS = 120
"""Of a line where there is no terminal, and COLUMNS says nothing."""


@click.command()
@click.argument("socket", metavar="[SOCKET]", required=False)
@click.option("--sort", type=click.Choice(SORTS), default="age", show_default=True)
@click.option("--interval", type=NumberRange(0.5, 60), default=2.0, show_default=True, help="Seconds.")
def top(socket: str | None, sort: Sort, interval: float) -> None:
    """Look at the processes of a running runtime: the one at this control socket, or the only one of this user's.

    ? shows the keys. Without a terminal, it prints once and leaves.
    """
    path = os.path.abspath(socket) if socket else _only_one()
    if not (sys.stdin.isatty() and sys.stdout.isatty() and has_screen()):
        _print(path, sort)
        return
    from fastclaw.cli.screen import Screen  # not for help and completion: it loads rich
    from fastclaw.cli.terminal import Terminal  # not every Python has curses

    Terminal(path, Screen(sort), interval).run()


def _only_one() -> str:
    """The path of the only one that is alive.

    Raises:
        IoError: there is none, or there are several.
    """
    clients = connect([])
    for client in clients:
        client.close()
    if len(clients) > 1:
        listed = " ".join(client.path for client in clients)
        raise IoError(f"{len(clients)} runtimes can be looked at; name one of their sockets: {listed}")
    return clients[0].path


def _print(path: str, sort: Sort) -> None:
    from fastclaw.cli.screen import plain  # as above

    asked = AskProcesses(sort=sort)
    with ControlClient(path) as client:
        client.processes(asked)
        time.sleep(FIRST_LOOK_S)
        rows, snapshot = client.processes(asked), client.snapshot(AskSnapshot(limit=0))
    click.echo(plain(snapshot, rows, shutil.get_terminal_size((_PLAIN_COLUMNS, 0)).columns))
