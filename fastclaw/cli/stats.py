"""`fastclaw stats`: what each environment takes, in the columns of `podman stats`."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Literal, NamedTuple

import click
import msgspec

from fastclaw import telemetry_limits
from fastclaw.cli import columns
from fastclaw.cli.numbers import NumberRange
from fastclaw.control.client import HOW_TO_GET_ONE, ControlClient, find_sockets
from fastclaw.control.protocol import AskSnapshot
from fastclaw.errors import IoError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fastclaw.control.protocol import EnvironmentRow


class Shown(NamedTuple):
    """An environment, and the runtime that it is one of: each runtime may have a `main`."""

    namespace: str
    pid: int
    row: EnvironmentRow


HEADINGS = (
    *("ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET IO", "BLOCK IO", "PIDS", "CPU TIME", "AVG CPU %"),
)
_CLEAR = "\x1b[H\x1b[J"
FIRST_LOOK_S = 0.5
"""Before the second look, which is the first that has rates."""


@click.command()
@click.argument("sockets", metavar="[SOCKET]...", nargs=-1)
@click.option("--no-stream", is_flag=True, help="Print once and leave.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("--interval", type=NumberRange(0.5, 60), default=5.0, show_default=True, help="Seconds.")
def stats(sockets: tuple[str, ...], no_stream: bool, form: Literal["table", "json"], interval: float) -> None:
    """Show what the environments of running runtimes take: those at these control sockets, or all of this user's."""
    with ExitStack() as clients:
        asked = [clients.enter_context(client) for client in connect(sockets)]
        _look(asked)
        pause = FIRST_LOOK_S
        while True:
            time.sleep(pause)
            rows = _look(asked)
            is_redrawn = form == "table" and not no_stream and sys.stdout.isatty() and has_screen()
            click.echo(_CLEAR * is_redrawn + _text(rows, form))
            if no_stream:
                return
            pause = interval


def connect(sockets: Sequence[str]) -> list[ControlClient]:
    """Connections to these, or to all that can be found and are alive.

    Raises:
        IoError: there is none.
    """
    if sockets:
        return [ControlClient(os.path.abspath(path)) for path in sockets]
    found: list[ControlClient] = []
    for path in find_sockets():
        try:
            found.append(ControlClient(path))
        except IoError as error:
            _leave_out(error)
    if not found:
        raise IoError(f"no runtime of this user has a control socket; {HOW_TO_GET_ONE}")
    return found


def _leave_out(error: IoError) -> None:
    click.echo(f"Left out: {str(error).removeprefix(IoError.prefix)}", err=True)


def has_screen() -> bool:
    """Whether the terminal is one that a cursor moves on, as far as this Python can tell."""
    try:
        import curses
    except ImportError:
        return False
    try:
        curses.setupterm()
    except curses.error:
        return False
    return curses.tigetstr("cup") is not None


def _look(clients: list[ControlClient]) -> list[Shown]:
    """All environments of all runtimes. One that has ended is looked at no more.

    Raises:
        IoError: the last one has.
    """
    rows: list[Shown] = []
    for client in list(clients):
        try:
            rows.extend(_rows(client))
        except IoError as error:
            clients.remove(client)
            if not clients:
                raise
            _leave_out(error)
    return rows


def _rows(client: ControlClient) -> Iterator[Shown]:
    """Of all environments of a runtime, page by page."""
    offset, total = 0, 1
    while offset < total:
        page = client.snapshot(AskSnapshot(offset=offset))
        yield from (Shown(page.namespace, page.pid, row) for row in page.environments)
        offset, total = offset + telemetry_limits.CONTROL_ROWS, page.total


def _text(rows: Sequence[Shown], form: Literal["table", "json"]) -> str:
    if form == "json":
        flat = [{"namespace": one.namespace, "pid": one.pid, **msgspec.structs.asdict(one.row)} for one in rows]
        return msgspec.json.encode(flat).decode()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return columns.table([HEADINGS, *(cells(row, time.time(), memory) for row in rows)])


def cells(one: Shown, now: float, host_bytes: int) -> list[str]:
    """A row of the table.

    Parameters:
        now: Unix time.
        host_bytes: the host's memory, which is the limit where there is no other.
    """
    row = one.row
    limit = None if row.memory_bytes is None else row.memory_limit_bytes or host_bytes
    age_us = max(now - row.started_at, 1e-6) * 1e6
    return [
        row.environment,
        row.container or one.namespace,
        columns.percent(row.cpu_percent),
        columns.pair(columns.size(row.memory_bytes), columns.size(limit)),
        columns.share(row.memory_bytes, limit),
        columns.pair(columns.size(row.network_in_bytes), columns.size(row.network_out_bytes)),
        columns.pair(columns.size(row.block_in_bytes), columns.size(row.block_out_bytes)),
        columns.UNKNOWN if row.pids is None else str(row.pids),
        columns.seconds(row.cpu_us),
        columns.percent(None if row.cpu_us is None else 100 * row.cpu_us / age_us),
    ]
