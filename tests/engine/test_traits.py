"""What engines and their helpers can, by what they say they are."""

import pytest

from fastclaw.engine.traits import maps_workspaces, packet_filters, rootless_network, version_of


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("conmon version 2.1.12\ncommit: unknown", (2, 1, 12)),
        ("crun version 1.21", (1, 21)),
        ("5.5.0-rc1", (5, 5, 0)),
        ("4.3.1+ds1-8", (4, 3, 1)),
        ("devel", None),
        ("", None),
        (None, None),
    ],
)
def test_a_version_is_the_first_dotted_number(text: str | None, version: tuple[int, ...] | None) -> None:
    assert version_of(text) == version


@pytest.mark.parametrize(
    ("podman", "said", "program"),
    [
        ("4.3.1", None, "slirp4netns"),
        ("4.9.4", None, "slirp4netns"),
        ("5.0.0", None, "pasta"),
        ("5.4.2", "pasta", "pasta"),
        ("5.4.2", "slirp4netns", "slirp4netns"),  # containers.conf says so
        ("devel", None, "pasta"),
    ],
)
def test_who_carries_the_packets_of_a_rootless_container(podman: str, said: str | None, program: str) -> None:
    assert rootless_network(podman, said) == program


@pytest.mark.parametrize(
    ("netavark", "programs"),
    [
        ("1.4.0", ("iptables",)),
        ("1.9.0", ("iptables",)),
        (None, ("iptables",)),
        ("1.10.3", ("nft", "iptables")),
        ("netavark 1.14.0", ("nft", "iptables")),
        ("2.0.0", ("nft",)),
    ],
)
def test_by_what_netavark_filters(netavark: str | None, programs: tuple[str, ...]) -> None:
    assert packet_filters(netavark) == programs


@pytest.mark.parametrize(
    ("runtime", "version", "maps"),
    [
        ("crun", "crun version 1.8.1", True),
        ("crun", "crun version 1.21", True),
        ("crun", "", True),
        ("crun", "crun version 1.8", False),
        ("crun", "crun version 1.4.5", False),
        ("runc", "runc version 1.3.6", False),
    ],
)
def test_which_runtime_maps_a_workspace_the_right_way_round(runtime: str, version: str, maps: bool) -> None:
    assert maps_workspaces(runtime, version) is maps
