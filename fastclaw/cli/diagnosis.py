"""What `fastclaw doctor` makes of a host: findings, each with what to do about it.

Takes facts, gives findings; reads nothing itself.
"""

import re
from collections.abc import Collection, Mapping
from typing import Literal

from msgspec import Struct

from fastclaw import limits
from fastclaw.engine.gvisor import why_too_old
from fastclaw.engine.known_bugs import known_bugs
from fastclaw.engine.service.plan import HostFacts
from fastclaw.engine.traits import packet_filters
from fastclaw.processes.admission import Capacity

Level = Literal["ok", "warning", "problem"]


class Finding(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the report. `advice` says what to do where there is something to do."""

    subject: str
    level: Level
    text: str
    advice: str | None = None


def _ok(subject: str, text: str) -> Finding:
    return Finding(subject=subject, level="ok", text=text)


def _warning(subject: str, text: str, advice: str | None = None) -> Finding:
    return Finding(subject=subject, level="warning", text=text, advice=advice)


def _problem(subject: str, text: str, advice: str | None = None) -> Finding:
    return Finding(subject=subject, level="problem", text=text, advice=advice)


def engine_findings(
    host: HostFacts,
    unusable: str | None,
    versions: Mapping[str, str] | None,
    *,
    has_spawner: bool = True,
    has_docker: bool = False,
) -> list[Finding]:
    """Whether an engine is there, answers, and is free of known bugs.

    Parameters:
        unusable: why it is not, in one line; None where it answered.
        versions: what it says it is made of, by the names of `EngineVersion`'s fields.
        has_spawner: processes are started on the spawn lane.
        has_docker: there is one that takes its place.
    """
    if unusable is not None:
        found = _warning if has_docker else _problem
        return [found("engine", unusable, _INSTALL if host.podman is None else None)]
    parts = versions or {}
    findings = [_ok("engine", _parts(parts)), *_bugs(parts, has_spawner)]
    if host.catatonit is None:
        text = "no static catatonit: on the REST lane, images without /bin/sh cannot be used"
        findings.append(_warning("init", text, "apt-get install catatonit"))
    return findings


def docker_finding(
    url: str = "", parts: Mapping[str, str] | None = None, *, is_taken: bool = False, why_none: str = ""
) -> Finding:
    """Whether environments can be had in Docker's containers.

    Parameters:
        url: where it is asked, and answers.
        parts: what it says it is made of, as for `engine_findings`.
        is_taken: since Podman cannot be had.
        why_none: why what answers there is none, in one line.
    """
    if why_none:
        return _warning("docker", why_none, "unset DOCKER_HOST, or name a Docker there")
    how = "runtime auto takes it" if is_taken else "set options.runtime to docker to take it"
    return _ok("docker", f"{_parts(parts or {})} at {url}; {how}")


def shut_out_finding(url: str, group: str, name: str) -> Finding:
    """A Docker is there, and this user may not ask it.

    Parameters:
        url: where it is.
        group: whose members may.
        name: of this process's user.
    """
    text = f"the one at {url} is for members of the group {group}, who are as good as root"
    return _warning("docker", text, f"usermod --append --groups {group} {name}; then log in anew")


def _bugs(parts: Mapping[str, str], has_spawner: bool) -> list[Finding]:
    """What is known to be broken in these versions."""
    programs = {
        "podman": parts.get("podman", ""),
        "conmon": parts.get("conmon", ""),
        parts.get("oci_runtime", ""): parts.get("oci_runtime_version", ""),
    }
    return [
        Finding(
            subject=bug.program,
            level=bug.level,
            text=f"{_number(programs[bug.program])}: {bug.text} ({bug.source})",
            advice=bug.advice,
        )
        for bug in known_bugs(programs, has_spawner=has_spawner)
    ]


def gvisor_finding(version: str) -> Finding:
    """Whether gVisor, which is on this host, can be an OCI runtime of sandboxes.

    Parameters:
        version: the first line of `runsc --version`.
    """
    why = why_too_old(version)
    if why is None:
        return _ok("gvisor", f"{version}: for sandboxes with options.oci_runtime runsc")
    return _warning("gvisor", f"{version}: {why}")


def spawner_finding(missing: str | None, size: int, lists_children: bool) -> Finding:
    """Whether the spawn lane and the local runtime can work.

    Parameters:
        missing: why there is no spawner for this machine; None where there is.
        size: of its binary, in bytes.
        lists_children: the kernel has /proc/PID/task/TID/children (CONFIG_PROC_CHILDREN, proc_pid_task(5)).
    """
    if missing is None and lists_children:
        return _ok("spawner", f"{round(size / limits.KIB)} KB, for the spawn lane")
    text = f"{missing or 'this kernel has no CONFIG_PROC_CHILDREN'}: no spawn lane and no local runtime, REST only"
    return _warning("spawner", text, "pip install --force-reinstall fastclaw" if missing else None)


def image_finding(source: str | None, why_none: str | None) -> Finding:
    """What the default image is made of here.

    Parameters:
        source: it, in words.
        why_none: why there is nothing, in one line.
    """
    if source is not None:
        return _ok("image", f"the default one is made of {source}")
    text = f"{(why_none or '').partition(';')[0]}: it would have to be pulled"
    return _warning("image", text, "apt-get install busybox-static")


def controllers_finding(
    controllers: Collection[str], host: HostFacts, of_host: Collection[str] = (), name: str = ""
) -> Finding:
    """Whether limits of containers hold.

    Parameters:
        controllers: of cgroups, that the engine's containers can have.
        of_host: those that root's could have.
        name: of this process's user.
    """
    missing = sorted({"memory", "pids"}.difference(controllers))
    if not missing:
        return _ok("limits", "cgroups limit processes and memory of containers")
    what = f"no cgroup controller {' and no '.join(missing)}"
    text = f"{what}: what limits containers is not in force, and a fork bomb takes all that this user may have"
    return _warning("limits", text, None if host.is_root else _how_to_delegate(host, set(missing) <= {*of_host}, name))


def _how_to_delegate(host: HostFacts, is_there: bool, name: str) -> str:
    """An ordinary user's containers have those controllers that systemd delegates to the user's session
    (systemd.resource-control(5), Delegate=), on version 2 only."""
    if host.cgroups != "v2" or not is_there:
        return "boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line, for cgroup version 2"
    if not host.user_systemd:
        return f"loginctl enable-linger {name}; then log in anew, not by su or sudo"
    return (
        "mkdir -p /etc/systemd/system/user@.service.d; printf '[Service]\\nDelegate=cpu cpuset io memory pids\\n' "
        ">/etc/systemd/system/user@.service.d/delegate.conf; systemctl daemon-reload; then log in anew"
    )


def user_findings(
    *,
    is_root: bool,
    why_none: str | None = None,
    forbidden: str | None = None,
    ids: int = limits.IDS,
    free_id: int = 0,
    name: str = "",
) -> list[Finding]:
    """Whose root inside is, and whether an ordinary user can have containers at all.

    Parameters:
        is_root: this process is.
        why_none: why containers get no user namespace of their own (`user_namespace`); None where they do.
        forbidden: the sysctl by which this kernel lets only root make one; None where it does.
        ids: how many subordinate ids a user has in subuid(5) and subgid(5).
        free_id: from where on they are nobody's.
        name: of this process's user.
    """
    if is_root:
        if why_none is None:
            return [_ok("users", "containers have user namespaces of their own: root inside is nobody here")]
        return [_warning("users", f"root inside has no capabilities and no user namespace: {why_none}")]
    findings = []
    if forbidden is not None:
        text = f"only root may make user namespaces ({forbidden})"
        findings.append(_problem("users", text, f"sysctl -w {forbidden}"))
    if ids < limits.IDS:
        left = "no user inside, and no file of an image, can have a higher number"
        what = f"only {ids}: {left}" if ids else "none: only root can run inside, on the REST lane"
        text = f"subordinate ids in /etc/subuid and /etc/subgid: {what}"
        span = f"{free_id}-{free_id + limits.IDS - 1}"
        anew = f"runuser -l {name} -c 'podman system migrate'"  # it keeps the namespace that it has, with the old ids
        advice = f"usermod --add-subuids {span} --add-subgids {span} {name}; {anew}"
        findings.append(_warning("users", text, advice))
    return findings or [_ok("users", "a rootless engine: root inside is you")]


def network_findings(
    host: HostFacts,
    spawner: str | None,
    bridge: str | None,
    netavark: str | None = None,
    user_network: tuple[str, bool] | None = ("slirp4netns", False),
) -> list[Finding]:
    """Which modes of `options.network` can be had.

    Parameters:
        spawner: why there is no spawner, which mode `proxy` needs; None where there is one.
        bridge: why mode `bridge` cannot be had; None where it can. It was tried.
        netavark: its version.
        user_network: the program that a rootless engine names for it, and whether it is there; None where the
            engine is Docker, which has a network of its own.
    """
    return [_egress(host, spawner, bridge), _open(host, netavark, user_network)]


def _egress(host: HostFacts, spawner: str | None, bridge: str | None) -> Finding:
    if spawner is None and bridge is None:
        return _ok("network", "modes proxy (the default), bridge and none work")
    if spawner is None and not host.is_root:
        return _ok("network", "modes proxy (the default) and none work; bridge needs root")
    works = ["proxy"] * (spawner is None) + ["bridge"] * (bridge is None) + ["none"]
    reasons = [f"proxy: {spawner}"] * (spawner is not None) + [f"bridge: {bridge}"] * (bridge is not None)
    return _warning("network", f"of the modes only {' and '.join(works)} can be had ({'; '.join(reasons)})")


def _open(host: HostFacts, netavark: str | None, user_network: tuple[str, bool] | None) -> Finding:
    """Of each group of programs one has to be there; a rootless engine needs the one that it names."""
    if user_network is None:
        return _ok("network", "mode open takes Docker's default network, where it has one")
    name, is_there = user_network
    groups = [("netavark",), packet_filters(netavark)] if host.is_root else [(name,)]
    there = {"netavark": host.netavark, "nft": host.nft, "iptables": host.iptables, name: is_there}
    found = [next((program for program in group if there[program]), None) for group in groups]
    missing = [group[0] for group, program in zip(groups, found, strict=True) if program is None]
    if not missing:
        return _ok("network", f"mode open works, with {' and '.join(filter(None, found))}")
    advice = f"apt-get install {' '.join(_PACKAGES.get(program, program) for program in missing)}"
    return _warning("network", f"mode open fails: no {' and no '.join(missing)}", advice)


_PACKAGES = {"nft": "nftables", "pasta": "passt"}
"""Debian's, of programs that have other names."""


def disk_finding(path: str, free_bytes: int, size: int, full: str | None) -> Finding:
    """How much room there is for images and for what containers write.

    Parameters:
        path: of the state directory.
        full: why the disk counts as full, in one line; None where it does not.
    """
    if full is None:
        return _ok("disk", f"{free_bytes // limits.MIB} of {size // limits.MIB} MiB are free at {path}")
    return _problem("disk", full, "remove files there, or set XDG_STATE_HOME to a directory on another disk")


_INSTALL = "apt-get install podman crun netavark uidmap busybox-static"


def capacity_finding(room: Capacity) -> Finding:
    """How many processes fit, and which limit binds first."""
    text = f"{room.processes} processes at a time; {room.binds} binds first"
    if room.processes >= limits.MAX_PROCESSES:
        return _ok("capacity", text)
    return _warning("capacity", text, f"raise {room.binds} to hold {limits.MAX_PROCESSES}")


_QUOTAS = {
    "kernel.keys.maxkeys": ("keyrings", limits.WANTED_KEYS),
    "kernel.keys.root_maxkeys": ("keyrings", limits.WANTED_KEYS),  # root has one of its own (keyrings(7))
    "fs.inotify.max_user_instances": ("inotify", limits.WANTED_INOTIFY),
}
"""Each container takes a session keyring (Podman #13363), each waiting exit in the engine an inotify instance
(containerd #10309)."""

_PIPE_PAGES = "fs.pipe-user-pages-soft"


def quotas(*, is_root: bool) -> list[str]:
    """The sysctls that limit how many containers and execs fit."""
    if is_root:
        return ["kernel.keys.root_maxkeys", "fs.inotify.max_user_instances"]
    return ["kernel.keys.maxkeys", "fs.inotify.max_user_instances", _PIPE_PAGES]


def quota_findings(values: Mapping[str, int | None]) -> list[Finding]:
    """Kernel quotas, measured against what a full runtime takes.

    Parameters:
        values: of `quotas`; None where the host has no such file.
    """
    findings = []
    for setting, (subject, wants) in _QUOTAS.items():
        has = values.get(setting)
        if has is not None:
            text, advice = f"{setting} is {has}", f"sysctl {setting}={wants}"
            findings.append(_ok(subject, text) if has >= wants else _warning(subject, text, advice))
    if pages := values.get(_PIPE_PAGES):
        streams = pages * limits.PAGE_BYTES // limits.BULK_PIPE_BYTES
        text = f"{streams} streams at a time may have a large pipe ({_PIPE_PAGES} is {pages}; root is exempt)"
        findings.append(_ok("pipes", text))
    return findings


def _parts(versions: Mapping[str, str]) -> str:
    """`podman 4.3.1, conmon 2.1.6, crun 1.8.1, overlay`: the engine's own texts also carry commits and build flags."""
    numbered = (
        ("podman", versions.get("podman")),
        ("docker", versions.get("docker")),
        ("conmon", versions.get("conmon")),
        (versions.get("oci_runtime") or "OCI runtime", versions.get("oci_runtime_version")),
    )
    parts = [f"{name} {_number(text) or text}" for name, text in numbered if text]
    return ", ".join([*parts, *filter(None, [versions.get("storage_driver")])])


def _number(text: str) -> str | None:
    """The first dotted number in a version text."""
    found = re.search(r"\d+(?:\.\d+)+", text)
    return found and found[0]
