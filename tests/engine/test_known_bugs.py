"""Known bugs, by version."""

import re

import pytest

from fastclaw.engine.known_bugs import BUGS, Bug, known_bugs


def sources(versions: dict[str, str], *, has_spawner: bool = True) -> list[str]:
    return [bug.source for bug in known_bugs(versions, has_spawner=has_spawner)]


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ({"conmon": "conmon version 2.2.0, commit: x"}, ["conmon #632"]),
        ({"conmon": "2.1.13"}, []),
        ({"conmon": "2.2.1"}, []),
        ({"podman": "4.8.0"}, ["podman #20809"]),
        ({"podman": "4.8.1"}, []),
        ({"podman": "5.2.1"}, ["podman #25291", "podman #23685"]),
        ({"podman": "5.4.2"}, []),
        ({"podman": "5.6.2"}, ["podman #27356"]),
        ({"runc": "1.3.0"}, ["runc #5208"]),
        ({"runc": "1.3.4"}, ["runc #5208", "runc #5153"]),
        ({"runc": "1.3.6"}, []),
        ({"runc": "1.4.1"}, ["runc #5208"]),
        ({"runc": "1.4.2"}, []),
        ({"crun": "crun version 1.11.1"}, ["crun's NEWS, crun-1.11.2"]),
        ({"podman": "devel", "conmon": "", "unheard-of": "1.0"}, []),
        ({}, []),
        # What Debian 12, Ubuntu 24.04 and Debian 13 come with.
        ({"podman": "4.3.1", "conmon": "2.1.6", "crun": "1.8.1", "runc": "1.1.5"}, []),
        ({"podman": "4.9.3", "conmon": "2.1.10", "crun": "1.14.1", "runc": "1.1.12"}, []),
        ({"podman": "5.4.2", "conmon": "2.1.12", "crun": "1.21", "runc": "1.1.15"}, []),
    ],
)
def test_bugs_of_the_default_lane(versions: dict[str, str], expected: list[str]) -> None:
    assert sources(versions) == expected


def test_bugs_of_the_rest_lane_count_where_it_is_taken() -> None:
    found = ["podman #25104", "podman #28277", "crun's NEWS, crun-1.8.7", "crun #1538"]
    assert sources({"podman": "4.3.1", "crun": "1.8.1"}, has_spawner=False) == found
    assert sources({"podman": "5.8.2", "crun": "1.17"}, has_spawner=False) == []


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.source)
def test_each_bug_ends_where_it_is_said_to(bug: Bug) -> None:
    """A release that is to be installed must not have it, and the one before the first of them has it."""
    for release in re.findall(r"\d+(?:\.\d+)+", bug.fixed):
        assert bug not in known_bugs({bug.program: release}, has_spawner=False)
    assert [".".join(map(str, mended)) for _, mended in bug.affected] == bug.fixed.split(" or ")
    assert all(first < mended for first, mended in bug.affected)
    assert bug.text[0].islower() or bug.text.startswith("/")
