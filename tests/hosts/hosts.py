"""The hosts that there are, by name; each from nothing to its rows, and to nothing again."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from tests.hosts import debian, docker, here, speed, steps
from tests.hosts.bounds import PREFIX, Bounds, UnavailableError, bounds
from tests.hosts.report import Row
from tests.hosts.seat import Seat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    Enter = Callable[[list[str]], list[str]]

PLACES = Path("/var/tmp")
"""On a disk, as a home and an engine's storage are."""
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastclaw" / "hosts"
"""Roots and wheels, which are made once, and the logs of the last run."""


class Host(NamedTuple):
    """A kind of host.

    Parameters:
        what: it is, for `--help`.
        user: who logs in.
        opened: brings it up in a directory and within bounds, and gives the way in.
        runtime: of fastclaw, whose promises are checked there.
        engine: the command that tells name and version of the engine.
    """

    what: str
    user: str
    opened: Callable[[str, Path, Bounds], AbstractContextManager[Enter]]
    runtime: str = "podman"
    engine: str = "podman --version"


@contextmanager
def _debian(user: str, place: Path, groups: Bounds) -> Iterator[Enter]:
    root = debian.the_root(CACHE, groups)
    with debian.booted(root, place, groups) as leader:
        yield debian.way_in(leader, user)


@contextmanager
def _here(user: str, place: Path, groups: Bounds) -> Iterator[Enter]:
    with here.enclosed(place, groups) as init:
        yield here.way_in(init, user, groups, {})


@contextmanager
def _docker(user: str, place: Path, groups: Bounds) -> Iterator[Enter]:
    with here.enclosed(place, groups) as init:
        enter = here.way_in(init, user, groups, {"DOCKER_HOST": docker.SOCKET})
        with docker.daemon(place, groups.name, enter):
            yield enter


HOSTS = {
    "debian13": Host("Debian 13 with systemd, an ordinary user's login session, rootless Podman 5", "dev", _debian),
    "debian13-root": Host("the same, as root", "root", _debian),
    "this-user": Host("this machine's system and Podman, an ordinary user without a session", "dev", _here),
    "docker": Host(
        "this machine's system with Docker and no Podman, as root", "root", _docker, "docker",
        "dockerd --version | cut -d, -f1",
    ),
}  # fmt: skip
"""By the name that HOSTS= takes."""


def put_through(name: str, parts: Sequence[str]) -> list[Row]:
    """Bring a host up, put fastclaw through these of `steps.PARTS` on it, and leave nothing behind."""
    host = HOSTS[name]
    try:
        with _place() as place, bounds() as groups, host.opened(host.user, place, groups) as enter:
            home = place / ("root" if host.user == "root" else "home/dev")
            return _rows(host, Seat(name, host.user, home, enter, CACHE / "logs"), parts)
    except UnavailableError as reason:
        return [Row(host=name, user=host.user, why=[f"not offered: {reason}"])]


def compare_users() -> list[speed.Figure]:
    """How fast Debian's Podman is for an ordinary user, beside root.

    Raises:
        UnavailableError: it cannot be measured on this machine.
    """
    with _place() as place, bounds() as groups:
        return speed.compare(debian.the_root(CACHE, groups), place, groups, CACHE / "logs")


def _rows(host: Host, seat: Seat, parts: Sequence[str]) -> list[Row]:
    steps.provide_repository(seat)
    steps.provide_wheels(seat, CACHE)
    told = seat.type("engine", host.engine, steps.LINE_S)
    if told.code:
        raise UnavailableError(f"{host.engine}: {told.text.strip()}")
    engine, *_, version = told.text.split()
    rows = [steps.readme(seat, host.runtime)]
    if (seat.home / steps.COMMAND).exists():
        rows += [steps.check(seat, host.runtime, lane) for lane in steps.LANES if lane in parts]
        rows += [steps.acceptance(seat)] if "acceptance" in parts else []
    return [replace(row, engine=engine.lower(), version=version) for row in rows]


# --- What a host leaves ---


@contextmanager
def _place() -> Iterator[Path]:
    """A directory for what the host writes, and nothing of it afterwards; of a run that was killed before, neither."""
    for old in PLACES.glob(f"{PREFIX}*"):
        pid = int(old.name.removeprefix(PREFIX))
        if not Path(f"/proc/{pid}").exists():
            Bounds(pid).end()
            shutil.rmtree(old, ignore_errors=True)  # its owner may have been about to
    place = PLACES / f"{PREFIX}{os.getpid()}"
    place.mkdir(mode=0o755)
    try:
        yield place
    finally:
        print(f"{place}: removing what was written", flush=True)
        shutil.rmtree(place)
