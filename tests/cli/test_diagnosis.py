"""What doctor makes of a host."""

from typing import Any

import pytest

from fastclaw import limits
from fastclaw.cli.diagnosis import (
    Quotas,
    UserFacts,
    capacity_finding,
    controllers_finding,
    disk_finding,
    engine_findings,
    image_finding,
    network_findings,
    quota_findings,
    spawner_finding,
    user_findings,
)
from fastclaw.podman.service.plan import HostFacts
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


def test_an_engine_that_answers_is_told_in_one_line() -> None:
    [finding] = engine_findings(host(), None, VERSIONS)
    assert (finding.level, finding.text) == ("ok", "podman 4.3.1, conmon 2.1.6, crun 1.8.1, overlay")


def test_a_version_without_a_number_is_shown_as_it_is() -> None:
    [finding] = engine_findings(host(), None, VERSIONS | {"podman": "devel", "storage_driver": ""})
    assert finding.text == "podman devel, conmon 2.1.6, crun 1.8.1"


@pytest.mark.parametrize(("podman", "advises"), [(None, True), ("/usr/bin/podman", False)])
def test_an_engine_that_cannot_be_used_is_a_problem(podman: str | None, advises: bool) -> None:
    [finding] = engine_findings(host(podman=podman), "it does not answer", None)
    assert (finding.level, finding.text) == ("problem", "it does not answer")
    assert ("apt-get install podman" in (finding.advice or "")) is advises


def test_a_conmon_that_never_ends_execs_is_a_problem() -> None:
    """Also that of an engine elsewhere, whatever this host has."""
    versions = VERSIONS | {"conmon": "conmon version 2.2.0, commit: x"}
    _, finding = engine_findings(host(conmon_version="2.1.6"), None, versions)
    assert (finding.subject, finding.level) == ("conmon", "problem")
    assert finding.text.startswith("2.2.0 ")
    assert "2.2.1" in (finding.advice or "")


def test_this_hosts_conmon_does_not_speak_for_an_engine_elsewhere() -> None:
    assert [finding.subject for finding in engine_findings(host(conmon_version="2.2.0"), None, VERSIONS)] == ["engine"]


def test_without_catatonit_there_is_a_warning() -> None:
    _, finding = engine_findings(host(catatonit=None), None, VERSIONS)
    assert (finding.subject, finding.level) == ("init", "warning")
    assert finding.advice


def test_room_for_all_is_fine_and_for_fewer_a_warning() -> None:
    fine = capacity_finding(Capacity(limits.MAX_PROCESSES, "options.max_processes"))
    assert (fine.level, fine.advice) == ("ok", None)
    tight = capacity_finding(Capacity(100, "open files"))
    assert tight.level == "warning"
    assert tight.text == "100 processes at a time; open files binds first"
    assert tight.advice == f"raise open files to hold {limits.MAX_PROCESSES}"


def test_quotas_that_the_host_does_not_have_are_left_out() -> None:
    assert quota_findings(Quotas(keys=None, inotify_instances=None, pipe_pages=None)) == []
    assert quota_findings(Quotas(keys=None, inotify_instances=None, pipe_pages=0)) == []


def test_quotas_that_suffice() -> None:
    keys, inotify, pipes = quota_findings(
        Quotas(keys=limits.WANTED_KEYS, inotify_instances=limits.WANTED_INOTIFY, pipe_pages=16_384)
    )
    assert [finding.level for finding in (keys, inotify, pipes)] == ["ok"] * 3
    assert [finding.advice for finding in (keys, inotify, pipes)] == [None] * 3
    assert pipes.text.startswith("64 streams ")


def test_quotas_that_do_not() -> None:
    keys, inotify = quota_findings(
        Quotas(keys=200, keys_setting="kernel.keys.root_maxkeys", inotify_instances=1, pipe_pages=None)
    )
    assert (keys.level, keys.text) == ("warning", "kernel.keys.root_maxkeys is 200")
    assert keys.advice == f"sysctl kernel.keys.root_maxkeys={limits.WANTED_KEYS}"
    assert inotify.advice == f"sysctl fs.inotify.max_user_instances={limits.WANTED_INOTIFY}"


@pytest.mark.parametrize(
    ("facts", "netavark", "works", "advice"),
    [
        ({"netavark": "/n/netavark", "iptables": "/i/iptables"}, "1.4.0", "works, with netavark and iptables", None),
        ({"netavark": "/n", "nft": "/nft"}, "1.9.0", "fails: no iptables", "apt-get install iptables"),
        ({"netavark": "/n", "nft": "/nft"}, None, "fails: no iptables", "apt-get install iptables"),
        ({"netavark": "/n/netavark", "nft": "/s/nft"}, "1.10.3", "works, with netavark and nft", None),
        ({"netavark": "/n", "iptables": "/i"}, "2.0", "works", None),
        ({"netavark": "/n"}, "1.14.1", "fails: no nftables", "apt-get install nftables"),
        ({}, None, "fails: no netavark and no iptables", "apt-get install netavark iptables"),
        ({"is_root": False, "user_network": "/usr/bin/pasta"}, None, "works, with pasta", None),
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


def test_a_spawner_that_is_there() -> None:
    found = spawner_finding(None, 13_000, lists_children=True)
    assert (found.level, found.text) == ("ok", "13 KB, for the spawn lane")


@pytest.mark.parametrize(
    ("missing", "children", "said"), [("not built", True, "not built"), (None, False, "CONFIG_PROC_CHILDREN")]
)
def test_without_one_there_is_rest_only(missing: str | None, children: bool, said: str) -> None:
    found = spawner_finding(missing, 0, lists_children=children)
    assert found.level == "warning"
    assert said in found.text
    assert (found.advice is not None) is (missing is not None)


def test_the_disk() -> None:
    there = disk_finding("/s", 5 * limits.MIB, 64 * limits.MIB, None)
    assert (there.level, there.text, there.advice) == ("ok", "5 of 64 MiB are free at /s", None)
    full = disk_finding("/s", 0, 64 * limits.MIB, "the disk of /s is full")
    assert (full.level, full.text) == ("problem", "the disk of /s is full")
    assert "XDG_STATE_HOME" in (full.advice or "")


def test_what_the_default_image_is_made_of() -> None:
    fine = image_finding("static /bin/busybox", None)
    assert (fine.level, fine.text) == ("ok", "the default one is made of static /bin/busybox")
    none = image_finding(None, "there is nothing to make it from; run: this, or set that")
    assert (none.level, none.text) == ("warning", "there is nothing to make it from: it would have to be pulled")
    assert none.advice


@pytest.mark.parametrize(
    ("controllers", "missing"),
    [({"cpu", "memory"}, "pids"), ({"pids"}, "memory"), (set(), "memory and no pids"), ({"pids", "memory"}, None)],
)
def test_limits_need_controllers(controllers: set[str], missing: str | None) -> None:
    for is_root in (True, False):
        finding = controllers_finding(frozenset(controllers), is_root)
        assert finding.level == ("ok" if missing is None else "warning")
        assert missing is None or f"no cgroup controller {missing}: " in finding.text
        assert bool(finding.advice) is (missing is not None and not is_root)


def test_whose_root_inside_is() -> None:
    [fine] = user_findings(UserFacts(is_root=True))
    assert (fine.level, "nobody here" in fine.text) == ("ok", True)
    [same] = user_findings(UserFacts(is_root=True, why_none="an old kernel"))
    assert (same.level, same.text.endswith(": an old kernel")) == ("warning", True)
    [user] = user_findings(UserFacts(is_root=False, why_none="it has one already"))
    assert user.level == "ok"


def test_what_an_ordinary_user_lacks() -> None:
    forbidden, ids = user_findings(UserFacts(is_root=False, forbidden="user.x=1", has_ids=False))
    assert (forbidden.level, forbidden.advice) == ("problem", "sysctl -w user.x=1")
    assert (ids.level, "--add-subuids" in (ids.advice or "")) == ("warning", True)
