"""What came of it: a row for each thing that a host was put through, as a table and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from collections.abc import Iterable

COLUMNS = ("host", "engine", "user", "what", "kept", "broken", "not offered", "s", "why")
WHY_CHARS = 140
"""Of a reason in the table; the JSON has it whole."""


class Row(Struct, frozen=True, kw_only=True):
    """One part of a host.

    Parameters:
        engine, version: as it says itself; empty where the host cannot be had.
        lane: the part: `README`, a lane, `acceptance`; `-` is all of it.
        kept, broken, not_offered: how many commands, promises or tests.
        why: what is broken, or why something is not offered, one line each.
    """

    host: str
    engine: str = ""
    version: str = ""
    user: str = ""
    lane: str = "-"
    kept: int = 0
    broken: int = 0
    not_offered: int = 0
    seconds: float = 0.0
    why: list[str] = []


def to_json(rows: Iterable[Row]) -> str:
    """All rows, and whether nothing is broken."""
    rows = list(rows)
    told = {"ok": is_ok(rows), "rows": rows}
    return msgspec.json.format(msgspec.json.encode(told), indent=2).decode()


def is_ok(rows: Iterable[Row]) -> bool:
    """Whether nothing is broken."""
    return not any(row.broken for row in rows)


def to_text(rows: Iterable[Row]) -> str:
    """A table in Markdown."""
    table = [COLUMNS, tuple("---" for _ in COLUMNS), *(_cells(row) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)


def _cells(row: Row) -> tuple[str, ...]:
    why = "; ".join(row.why).replace("|", "/")
    short = why if len(why) <= WHY_CHARS else f"{why[: WHY_CHARS - 1]}…"
    counts = (str(row.kept), str(row.broken), str(row.not_offered))
    engine = f"{row.engine} {row.version}".strip()
    return (row.host, engine or "-", row.user or "-", row.lane, *counts, f"{row.seconds:.0f}", short or "-")
