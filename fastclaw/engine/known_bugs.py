"""Bugs of Podman, conmon, crun and runc that a user of fastclaw meets, by version.

Pure data and one function. A bug is here only where something of fastclaw's goes wrong by it. Security advisories are
not: distributions mend those under the old number, and a list by version would be wrong about most hosts.
"""

from collections.abc import Iterator, Mapping
from typing import Literal

from msgspec import Struct

from fastclaw.engine.traits import Version, version_of


class Bug(Struct, frozen=True, kw_only=True):
    """One bug of one program.

    Parameters:
        program: `podman`, `conmon`, or the name of an OCI runtime.
        affected: versions, each from the first one that has it up to the one that is mended, which may be None.
        level: a `problem` makes the program unusable here.
        lane: the only lane on which it is met; None: on any.
        text: what happens.
        fixed: the version to install, at least.
        source: where it was reported or mended.
    """

    program: str
    affected: tuple[tuple[Version, Version], ...]
    level: Literal["warning", "problem"] = "warning"
    lane: Literal["rest"] | None = None
    text: str
    fixed: str
    source: str

    @property
    def advice(self) -> str:
        """What to do."""
        return f"install {self.program} {self.fixed}, or later"


SINCE_EVER: Version = (0,)

BUGS = (
    Bug(
        program="podman",
        affected=(((4, 3, 0), (4, 3, 1)),),
        text="two calls that look at containers at once can wait for each other for ever",
        fixed="4.3.1",
        source="podman's RELEASE_NOTES.md, 4.3.1",
    ),
    Bug(
        program="podman",
        affected=(((4, 8, 0), (4, 8, 1)),),
        text='many starts at once fail with "database is locked"',
        fixed="4.8.1",
        source="podman #20809",
    ),
    Bug(
        program="podman",
        affected=(((5, 0, 0), (5, 4, 1)),),
        text="each container leaves a file and a directory behind below the engine's own, often in memory",
        fixed="5.4.1",
        source="podman #25291",
    ),
    Bug(
        program="podman",
        affected=(((5, 2, 0), (5, 2, 3)),),
        text="in network mode open a container's end can hang for ever",
        fixed="5.2.3",
        source="podman #23685",
    ),
    Bug(
        program="podman",
        affected=(((5, 6, 0), (5, 7, 0)),),
        text="where /proc/sys/fs/binfmt_misc is not there it crashes when it is asked what it is, so nothing starts",
        fixed="5.7.0",
        source="podman #27356",
    ),
    Bug(
        program="podman",
        affected=((SINCE_EVER, (5, 6, 0)),),
        lane="rest",
        text="a container's removal can kill a process of this host that has the number of an exec that has ended",
        fixed="5.6.0",
        source="podman #25104",
    ),
    Bug(
        program="podman",
        affected=((SINCE_EVER, (5, 8, 2)),),
        lane="rest",
        text="the engine can crash at the end of an exec, and takes the streams of all others with it",
        fixed="5.8.2",
        source="podman #28277",
    ),
    Bug(
        program="conmon",
        affected=(((2, 2, 0), (2, 2, 1)),),
        level="problem",
        text="it never ends an exec whose child keeps a pipe, and takes a whole CPU",
        fixed="2.2.1",
        source="conmon #632",
    ),
    Bug(
        program="crun",
        affected=(((1, 11, 1), (1, 11, 2)),),
        text="on cgroup v1 it crashes where a container has no CPU limit",
        fixed="1.11.2",
        source="crun's NEWS, crun-1.11.2",
    ),
    Bug(
        program="crun",
        affected=(((1, 29), (1, 29, 1)),),
        text="only root can write to /dev/shm in an environment that is a clone",
        fixed="1.29.1",
        source="crun's NEWS, crun-1.29.1",
    ),
    Bug(
        program="crun",
        affected=((SINCE_EVER, (1, 8, 7)),),
        lane="rest",
        text="an exec right after its container's start can fail",
        fixed="1.8.7",
        source="crun's NEWS, crun-1.8.7",
    ),
    Bug(
        program="crun",
        affected=((SINCE_EVER, (1, 17)),),
        lane="rest",
        text="it can crash when an exec ends",
        fixed="1.17",
        source="crun #1538",
    ),
    Bug(
        program="runc",
        affected=(((1, 3, 0), (1, 3, 6)), ((1, 4, 0), (1, 4, 2))),
        text="the start of a short command can hang for ever",
        fixed="1.3.6 or 1.4.2",
        source="runc #5208",
    ),
    Bug(
        program="runc",
        affected=(((1, 3, 1), (1, 3, 5)), ((1, 4, 0), (1, 4, 1))),
        text='a start can fail with "cannot start a container that has stopped"',
        fixed="1.3.5 or 1.4.1",
        source="runc #5153",
    ),
)


def known_bugs(versions: Mapping[str, str], *, has_spawner: bool = True) -> Iterator[Bug]:
    """The bugs that these programs have.

    Parameters:
        versions: of programs by name, as each says it itself.
        has_spawner: processes are started on the spawn lane; else what is met on the REST lane only counts too.
    """
    for bug in BUGS:
        version = version_of(versions.get(bug.program))
        if version is not None and _has(bug, version) and not (has_spawner and bug.lane == "rest"):
            yield bug


def _has(bug: Bug, version: Version) -> bool:
    return any(first <= version < mended for first, mended in bug.affected)
