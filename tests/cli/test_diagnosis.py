"""What doctor makes of a host."""

from typing import Any

import msgspec
import pytest

from fastclaw import limits
from fastclaw.cli.diagnosis import (
    Finding,
    capacity_finding,
    controllers_finding,
    disk_finding,
    docker_finding,
    engine_findings,
    image_finding,
    network_findings,
    quota_findings,
    quotas,
    shut_out_finding,
    spawner_finding,
    user_findings,
)
from fastclaw.engine.service.plan import CgroupMode, HostFacts
from fastclaw.processes.admission import Capacity

VERSIONS = {
    "podman": "4.3.1",
    "conmon": "conmon version 2.1.6, commit: unknown",
    "oci_runtime": "crun",
    "oci_runtime_version": "crun version 1.8.1",
    "storage_driver": "overlay",
}


def host(**facts: Any) -> HostFacts:
    given: dict[str, Any] = {"podman": "/usr/bin/podman", "conmon_version": "2.1.6", "catatonit": "/usr/bin/catatonit"}
    return HostFacts(cgroups="v2", nofile=1, nproc=1, **{"is_root": True} | given | facts)


def summary(found: list[Finding]) -> list[tuple[str, str, str, str | None]]:
    return [(one.subject, one.level, one.text, one.advice) for one in found]


INSTALL = "apt-get install podman crun netavark uidmap busybox-static"
PARTS = "podman 4.3.1, conmon 2.1.6, crun 1.8.1, overlay"
BROKEN = "2.2.0: it never ends an exec whose child keeps a pipe, and takes a whole CPU (conmon #632)"
NO_INIT = "no static catatonit: on the REST lane, images without /bin/sh cannot be used"


@pytest.mark.parametrize(
    ("facts", "unusable", "versions", "expected"),
    [
        ({}, None, {}, [("engine", "ok", PARTS, None)]),
        ({}, None, {"podman": "devel", "storage_driver": ""},
         [("engine", "ok", "podman devel, conmon 2.1.6, crun 1.8.1", None)]),
        ({"podman": None}, "it is silent", {}, [("engine", "problem", "it is silent", INSTALL)]),
        ({}, "it is silent", {}, [("engine", "problem", "it is silent", None)]),
        # Also that of an engine elsewhere, whatever this host has, and not this host's where the engine is elsewhere.
        ({}, None, {"conmon": "conmon version 2.2.0, commit: x"}, [
            ("engine", "ok", PARTS.replace("2.1.6", "2.2.0"), None),
            ("conmon", "problem", BROKEN, "install conmon 2.2.1, or later"),
        ]),
        ({"conmon_version": "2.2.0"}, None, {}, [("engine", "ok", PARTS, None)]),
        ({"conmon_version": "2.2.0"}, None, {"podman": "", "conmon": ""},
         [("engine", "ok", "crun 1.8.1, overlay", None)]),
        ({}, None, {"oci_runtime": "runc", "oci_runtime_version": "runc version 1.4.0"}, [
            ("engine", "ok", PARTS.replace("crun 1.8.1", "runc 1.4.0"), None),
            ("runc", "warning", "1.4.0: the start of a short command can hang for ever (runc #5208)",
             "install runc 1.3.6 or 1.4.2, or later"),
            ("runc", "warning", '1.4.0: a start can fail with "cannot start a container that has stopped" (runc #5153)',
             "install runc 1.3.5 or 1.4.1, or later"),
        ]),
        ({"catatonit": None}, None, {}, [
            ("engine", "ok", PARTS, None),
            ("init", "warning", NO_INIT, "apt-get install catatonit"),
        ]),
    ],
)  # fmt: skip
def test_the_engine(facts: dict[str, Any], unusable: str | None, versions: dict[str, str], expected: object) -> None:
    assert summary(engine_findings(host(**facts), unusable, VERSIONS | versions)) == expected


def test_where_docker_takes_its_place_a_missing_engine_is_no_problem() -> None:
    assert summary(engine_findings(host(podman=None), "podman is not installed", None, has_docker=True)) == [
        ("engine", "warning", "podman is not installed", "apt-get install podman crun netavark uidmap busybox-static")
    ]


MANY = limits.MAX_PROCESSES
DOCKER = {"docker": "20.10.24", "storage_driver": "overlay2"}
OTHER_DISK = "remove files there, or set XDG_STATE_HOME to a directory on another disk"
USERMOD = "usermod --add-subuids 300000-365535 --add-subgids 300000-365535 me; runuser -l me -c 'podman system migrate'"
QUOTAS = {"kernel.keys.root_maxkeys": 200, "fs.inotify.max_user_instances": 1}
REINSTALL = "pip install --force-reinstall fastclaw"
NO_SPAWNER = "no spawn lane and no local runtime, REST only"
IDS = "subordinate ids in /etc/subuid and /etc/subgid: "
NO_IDS = f"{IDS}none: only root can run inside, on the REST lane"
FEW_IDS = f"{IDS}only 999: no user inside, and no file of an image, can have a higher number"
BUSYBOX = "apt-get install busybox-static"


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([capacity_finding(Capacity(MANY, "x"))],
         [("capacity", "ok", f"{MANY} processes at a time; x binds first", None)]),
        ([capacity_finding(Capacity(100, "x"))],
         [("capacity", "warning", "100 processes at a time; x binds first", f"raise x to hold {MANY}")]),
        (quota_findings({"kernel.keys.maxkeys": None, "fs.pipe-user-pages-soft": 0}), []),
        (quota_findings(QUOTAS), [
            ("keyrings", "warning", "kernel.keys.root_maxkeys is 200",
             f"sysctl kernel.keys.root_maxkeys={limits.WANTED_KEYS}"),
            ("inotify", "warning", "fs.inotify.max_user_instances is 1",
             f"sysctl fs.inotify.max_user_instances={limits.WANTED_INOTIFY}"),
        ]),
        ([docker_finding("unix:///d", DOCKER, is_taken=True)],
         [("docker", "ok", "docker 20.10.24, overlay2 at unix:///d; runtime auto takes it", None)]),
        ([docker_finding("unix:///d", DOCKER)],
         [("docker", "ok", "docker 20.10.24, overlay2 at unix:///d; set options.runtime to docker to take it", None)]),
        ([docker_finding(why_none="it is Podman")],
         [("docker", "warning", "it is Podman", "unset DOCKER_HOST, or name a Docker there")]),
        ([shut_out_finding("unix:///d", "docker", "me")],
         [("docker", "warning", "the one at unix:///d is for members of the group docker, who are as good as root",
           "usermod --append --groups docker me; then log in anew")]),
        ([spawner_finding(None, 13_000, lists_children=True)], [("spawner", "ok", "13 KB, for the spawn lane", None)]),
        ([spawner_finding("not built", 0, lists_children=True)],
         [("spawner", "warning", f"not built: {NO_SPAWNER}", REINSTALL)]),
        ([spawner_finding(None, 0, lists_children=False)],
         [("spawner", "warning", f"this kernel has no CONFIG_PROC_CHILDREN: {NO_SPAWNER}", None)]),
        ([disk_finding("/s", 5 * limits.MIB, 64 * limits.MIB, None)],
         [("disk", "ok", "5 of 64 MiB are free at /s", None)]),
        ([disk_finding("/s", 0, 64 * limits.MIB, "it is full")], [("disk", "problem", "it is full", OTHER_DISK)]),
        ([image_finding("static /bin/busybox", None)],
         [("image", "ok", "the default one is made of static /bin/busybox", None)]),
        ([image_finding(None, "there is nothing; run: this, or set that")],
         [("image", "warning", "there is nothing: it would have to be pulled", BUSYBOX)]),
        (user_findings(is_root=True),
         [("users", "ok", "containers have user namespaces of their own: root inside is nobody here", None)]),
        (user_findings(is_root=True, why_none="an old kernel"),
         [("users", "warning", "root inside has no capabilities and no user namespace: an old kernel", None)]),
        (user_findings(is_root=False, why_none="it has one already"),
         [("users", "ok", "a rootless engine: root inside is you", None)]),
        (user_findings(is_root=False, ids=999, free_id=300_000, name="me"), [("users", "warning", FEW_IDS, USERMOD)]),
        (user_findings(is_root=False, forbidden="user.x=1", ids=0, free_id=300_000, name="me"), [
            ("users", "problem", "only root may make user namespaces (user.x=1)", "sysctl -w user.x=1"),
            ("users", "warning", NO_IDS, USERMOD),
        ]),
    ],
)  # fmt: skip
def test_the_rest_of_a_host(found: list[Finding], expected: object) -> None:
    assert summary(found) == expected


def test_quotas_that_suffice() -> None:
    values = dict(zip(quotas(is_root=False), (limits.WANTED_KEYS, limits.WANTED_INOTIFY, 16_384), strict=True))
    found = quota_findings(values)
    assert [(one.level, one.advice) for one in found] == [("ok", None)] * 3
    assert found[-1].text.startswith("64 streams ")


@pytest.mark.parametrize(
    ("facts", "netavark", "works", "advice"),
    [
        ({"netavark": "/n/netavark", "iptables": "/i/iptables"}, "1.4.0", "works, with netavark and iptables", None),
        ({"netavark": "/n", "nft": "/nft"}, "1.9.0", "fails: no iptables", "apt-get install iptables"),
        ({"netavark": "/n", "nft": "/nft"}, None, "fails: no iptables", "apt-get install iptables"),
        ({"netavark": "/n/netavark", "nft": "/s/nft"}, "1.10.3", "works, with netavark and nft", None),
        ({"netavark": "/n", "iptables": "/i"}, "1.14.0", "works, with netavark and iptables", None),
        ({"netavark": "/n", "iptables": "/i"}, "2.0.0", "fails: no nft", "apt-get install nftables"),
        ({"netavark": "/n"}, "1.14.1", "fails: no nft", "apt-get install nftables"),
        ({}, None, "fails: no netavark and no iptables", "apt-get install netavark iptables"),
        ({"is_root": False, "netavark": "/n"}, "1.4.0", "fails: no slirp4netns", "apt-get install slirp4netns"),
    ],
)
def test_what_an_open_network_needs(
    facts: dict[str, str], netavark: str | None, works: str, advice: str | None
) -> None:
    """What fails was called ok."""
    _, finding = network_findings(host(**facts), None, None, netavark)
    assert (finding.level, finding.advice) == ("warning" if advice else "ok", advice)
    assert f"mode open {works}" in finding.text


@pytest.mark.parametrize(
    ("name", "is_there", "text", "advice"),
    [
        ("pasta", True, "mode open works, with pasta", None),
        ("slirp4netns", True, "mode open works, with slirp4netns", None),
        ("pasta", False, "mode open fails: no pasta", "apt-get install passt"),
        ("slirp4netns", False, "mode open fails: no slirp4netns", "apt-get install slirp4netns"),
    ],
)
def test_the_program_for_an_open_network_is_the_one_that_a_rootless_engine_names(
    name: str, is_there: bool, text: str, advice: str | None
) -> None:
    """The other one is of no use to it, and root's tools are none of an ordinary user's."""
    facts = host(is_root=False, netavark="/n", iptables="/i")
    egress, finding = network_findings(facts, None, "root only", "1.4.0", (name, is_there))
    assert (egress.level, egress.text) == ("ok", "modes proxy (the default) and none work; bridge needs root")
    assert (finding.text, finding.advice) == (text, advice)


@pytest.mark.parametrize(
    ("spawner", "bridge", "level", "modes"),
    [
        (None, None, "ok", "proxy (the default), bridge and none"),
        (None, "no nft", "warning", "only proxy and none can be had (bridge: no nft)"),
        ("not built", None, "warning", "only bridge and none can be had (proxy: not built)"),
        ("not built", "no nft", "warning", "only none can be had (proxy: not built; bridge: no nft)"),
    ],
)
def test_which_filtered_networks_there_are(spawner: str | None, bridge: str | None, level: str, modes: str) -> None:
    finding, _ = network_findings(host(), spawner, bridge)
    assert finding.level == level
    assert modes in finding.text


@pytest.mark.parametrize(
    ("controllers", "missing"),
    [({"cpu", "memory"}, "pids"), ({"pids"}, "memory"), (set(), "memory and no pids"), ({"pids", "memory"}, None)],
)
def test_limits_need_controllers(controllers: set[str], missing: str | None) -> None:
    for is_root in (True, False):
        finding = controllers_finding(controllers, host(is_root=is_root))
        assert finding.level == ("ok" if missing is None else "warning")
        assert missing is None or f"no cgroup controller {missing}: " in finding.text
        assert bool(finding.advice) is (missing is not None and not is_root)


@pytest.mark.parametrize(
    ("cgroups", "user_systemd", "of_host", "advice"),
    [
        ("hybrid", True, {"memory", "pids"}, "systemd.unified_cgroup_hierarchy=1"),
        ("v1", False, {"memory", "pids"}, "systemd.unified_cgroup_hierarchy=1"),
        ("v2", True, {"pids"}, "systemd.unified_cgroup_hierarchy=1"),
        ("v2", False, {"memory", "pids"}, "loginctl enable-linger me"),
        ("v2", True, {"memory", "pids"}, "systemctl daemon-reload"),
    ],
)
def test_how_a_user_comes_to_have_controllers(
    cgroups: CgroupMode, user_systemd: bool, of_host: set[str], advice: str
) -> None:
    facts = msgspec.structs.replace(host(is_root=False), cgroups=cgroups, user_systemd=user_systemd)
    assert advice in (controllers_finding((), facts, of_host, "me").advice or "")
