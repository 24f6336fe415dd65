"""Rootless Podman 5 beside root's, in turn on one machine: how fast each is, and what of root's figure is left."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from bench.rates import Rates
from tests.hosts import debian, steps
from tests.hosts.bounds import UnavailableError
from tests.hosts.seat import Seat

if TYPE_CHECKING:
    from pathlib import Path

    from tests.hosts.bounds import Bounds

TURNS = 3
"""Of each user; the median counts."""
MEASURE_S = 180.0
"""For one turn. Measured: 20 s."""
USERS = ("root", "dev")
INSTALL = "git clone --quiet fastclaw.git fastclaw && make -C fastclaw install"


class Figure(NamedTuple):
    """One line of the table. `goal`: of the rootless engine's figure over root's."""

    what: str
    root: float
    rootless: float
    goal: str
    is_met: bool

    def line(self) -> str:
        """In Markdown."""
        ratio = f"{self.rootless / self.root:.2f}"
        verdict = "" if self.is_met else " **missed**"
        return f"| {self.what} | {self.root:.1f} | {self.rootless:.1f} | {ratio} | {self.goal}{verdict} |"


def compare(root: Path, place: Path, groups: Bounds, logs: Path) -> list[Figure]:
    """Boot the machine, install for the ordinary user, and measure that user and root in turn.

    Raises:
        UnavailableError: the machine cannot be had, or nothing can be measured on it.
    """
    with debian.booted(root, place, groups) as leader:
        seats = {user: _seat(user, place, leader, logs) for user in USERS}
        dev = seats["dev"]
        steps.provide_repository(dev)
        steps.provide_wheels(dev, root.parent)
        if dev.type(
            "install", "git clone --quiet fastclaw.git fastclaw && make -C fastclaw install", steps.LINE_S
        ).code:
            raise UnavailableError(f"nothing is installed: see {logs}")
        turns = [{user: _rates(seats[user], dev.home_inside) for user in USERS} for _ in range(TURNS)]
    return figures(turns)


def _seat(user: str, place: Path, leader: int, logs: Path) -> Seat:
    home = place / ("root" if user == "root" else f"home/{user}")
    return Seat(f"speed-{user}", user, home, debian.way_in(leader, user), logs)


def _rates(seat: Seat, checkout_in: str) -> Rates:
    line = f"cd {checkout_in}/fastclaw; PYTHONDONTWRITEBYTECODE=1 .venv/bin/python -m bench.rates"
    told = seat.type("rates", line, MEASURE_S)
    try:
        return msgspec.json.decode(told.text, type=Rates)
    except msgspec.DecodeError as error:
        raise UnavailableError(f"no figures of {seat.user}: see {told.log}") from error


def figures(turns: list[dict[str, Rates]]) -> list[Figure]:
    """The medians, and whether they are what the design asks for."""

    def of(user: str, at_once: int) -> float:
        return statistics.median(turn[user].execs_per_s[at_once] for turn in turns)

    def ready(user: str) -> float:
        return statistics.median(turn[user].ready_ms for turn in turns)

    found = [
        Figure(f"exec + wait, {at_once} at once, per second", root, dev, "≥ 0.9", dev >= LEAST_RATE * root)
        for at_once in turns[0]["root"].execs_per_s
        for root, dev in [(of("root", at_once), of("dev", at_once))]
    ]
    root, dev = ready("root"), ready("dev")
    return [*found, Figure("environment ready, by the engine, ms", root, dev, "≤ 1.3", dev <= MOST_READY * root)]


LEAST_RATE, MOST_READY = 0.9, 1.3
"""Of the rootless engine over root's: the least rate, the most time."""


def to_text(found: list[Figure]) -> str:
    """The table."""
    head = ["| what | root | rootless | rootless / root | goal |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*head, *(figure.line() for figure in found)])
