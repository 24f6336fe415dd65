"""What differs between engines and their helpers, told by what they say they are: facts in, traits out.

Whoever has to know what a program can do asks here, and compares no version itself. What is broken in which version is
in `known_bugs.py`.
"""

import re

Version = tuple[int, ...]


def version_of(text: str | None) -> Version | None:
    """The first dotted number of a program's own words, as `conmon version 2.1.12, commit: unknown`."""
    found = None if text is None else re.search(r"\d+(?:\.\d+)+", text)
    return None if found is None else tuple(map(int, found[0].split(".")))


PASTA_FIRST = (5, 0)
"""Since when pasta is what carries a rootless container's packets by default, and slirp4netns before
(containers/common, pkg/config/default.go: DefaultRootlessNetworkCmd, in Podman 4.9.4 and 5.0.0)."""


def rootless_network(podman: str, said: str | None) -> str:
    """The program that carries the packets of a rootless container.

    Parameters:
        podman: its version, as it says it.
        said: what the engine itself names (`host.rootlessNetworkCmd` of its information, since 5.1).
    """
    found = version_of(podman)
    return said or ("slirp4netns" if found is not None and found < PASTA_FIRST else "pasta")


NFT_SINCE, NFT_ONLY_SINCE = (1, 10), (2, 0)
"""netavark's nftables driver, and since when there is no other (its RELEASE_NOTES.md, v1.10.0 and v2.0.0)."""


def packet_filters(netavark: str | None) -> tuple[str, ...]:
    """The programs of which netavark needs one, what it likes best first.

    Parameters:
        netavark: its version, as it says it.
    """
    found = version_of(netavark)
    if found is None or found < NFT_SINCE:
        return ("iptables",)
    return ("nft",) if found >= NFT_ONLY_SINCE else ("nft", "iptables")


MAPS_WORKSPACES = "crun"
"""Takes a mapping of one's own with a mount (crun(1), "idmap mount options"); runc 1.1.5 ignores it."""

MAPS_SINCE = (1, 8, 1)
"""Before, crun read such a mapping the other way round (its NEWS, crun-1.8.1)."""


def maps_workspaces(oci_runtime: str, version: str) -> bool:
    """Whether an OCI runtime maps the ids of a mount as it is told to.

    Parameters:
        oci_runtime: its name.
        version: as it says it; empty where it is not known.
    """
    found = version_of(version)
    return oci_runtime == MAPS_WORKSPACES and (found is None or found >= MAPS_SINCE)


NEEDS_SINGLE_CGROUP = frozenset({"crun", "krun"})
"""Refuse a host that has cgroup v1 controllers and a cgroup2 mount at once (src/libcrun/cgroup.c of crun 1.8.1, and of
1.29.1 still)."""
