"""`fastclaw doctor`: can this host run it, how much of it, and what to change."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from fastclaw import limits
from fastclaw.cli.diagnosis import (
    Finding,
    capacity_finding,
    controllers_finding,
    disk_finding,
    docker_finding,
    engine_findings,
    gvisor_finding,
    image_finding,
    network_findings,
    quota_findings,
    quotas,
    shut_out_finding,
    spawner_finding,
    user_findings,
)
from fastclaw.cli.engine import a_docker, an_engine
from fastclaw.engine.gvisor import RUNTIME as GVISOR
from fastclaw.engine.rights import why_no_user_namespace
from fastclaw.engine.service.facts import (
    CGROUP_ROOT,
    container_controllers,
    docker_group,
    docker_url,
    find_program,
    free_subordinate_id,
    host_facts,
    program_version,
    subordinate_ids,
    user_name,
    version_line,
    why_no_docker,
    why_no_engine,
    why_no_user_namespaces,
)
from fastclaw.engine.service.storage import default_state_dir, disk_of, why_full
from fastclaw.errors import FastclawError, StartFailed
from fastclaw.linux import own_process, splice
from fastclaw.linux.own_process import host_limits, raise_file_limit
from fastclaw.network.bridge.bridge import why_no_bridge
from fastclaw.options import Options
from fastclaw.processes.admission import capacity
from fastclaw.spawner.spawner_host import find_spawner, why_no_spawner

if TYPE_CHECKING:
    from fastclaw.engine.dialects import EngineVersion
    from fastclaw.engine.service.plan import HostFacts

_COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}
_LEVEL_WIDTH = max(map(len, _COLOURS))
_MIN_TEXT_WIDTH = 20


@click.command()
@click.option("--url", metavar="URL", help="Look at this engine instead of a private one.")
@click.option("--json", "as_json", is_flag=True, help="Findings as JSON.")
def doctor(url: str | None, as_json: bool) -> None:
    """Check this host: engine, known bugs, limits, and how many processes it can hold."""
    findings = own_process.run(_examine(url))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(findings)).decode())
    else:
        click.echo(report(findings, shutil.get_terminal_size().columns))
    if any(finding.level == "problem" for finding in findings):
        sys.exit(1)


async def _examine(url: str | None) -> list[Finding]:
    raise_file_limit()
    facts = host_facts(default_state_dir())
    unusable, podman = None, None
    try:
        async with an_engine(url, facts) as engine:
            podman = await engine.version()
    except FastclawError as error:
        unusable = str(error)
    docker, about_docker = await _docker()
    taken = podman or docker
    netavark = facts.netavark and program_version(facts.netavark)
    is_here = (url or "unix:").startswith("unix:")
    return [
        *engine_findings(
            facts,
            unusable,
            _parts(podman),
            has_spawner=is_here and why_no_spawner() is None,
            has_docker=docker is not None,
        ),
        *about_docker,
        *_gvisor(),
        _image(),
        _spawner(),
        *_disk(default_state_dir()),
        *_rights(taken, facts, is_here=is_here),
        *network_findings(facts, why_no_spawner(), await why_no_bridge(), netavark, _user_network(taken)),
        capacity_finding(capacity(host_limits(), limits.MAX_PROCESSES)),
        *quota_findings({name: _number(name) for name in quotas(is_root=os.geteuid() == 0)}),
        Finding(subject="relay", level="ok", text=f"streams are moved by {splice.kind()}"),
    ]


async def _docker() -> tuple[EngineVersion | None, list[Finding]]:
    """What answers as Docker, if anything does."""
    options = Options()
    try:
        url = docker_url(options)
        group = docker_group(url)
        if group is not None:
            return None, [shut_out_finding(url, group, user_name(os.geteuid()))]
        if why_no_docker(options) is not None:
            return None, []
        async with a_docker(url) as engine:
            version = await engine.version()
    except FastclawError as error:
        return None, [docker_finding(why_none=str(error))]
    return version, [docker_finding(url, _parts(version), is_taken=why_no_engine(options) is not None)]


def _gvisor() -> list[Finding]:
    path = find_program(GVISOR)
    return [] if path is None else [gvisor_finding(version_line(path))]


def _spawner() -> Finding:
    binary = find_spawner()
    thread = f"/proc/self/task/{os.getpid()}/children"
    return spawner_finding(why_no_spawner(), binary.stat().st_size if binary else 0, os.path.exists(thread))


def _image() -> Finding:
    from fastclaw.engine.base_image import image_source  # not for help and completion: it takes a third of a second

    try:
        return image_finding(image_source(), None)
    except StartFailed as error:
        return image_finding(None, str(error).removeprefix(StartFailed.prefix))


def _user_network(version: EngineVersion | None) -> tuple[str, bool] | None:
    """As the engine says, else the first that is on this host; None of Docker."""
    if version is not None:
        return None if version.docker else (version.user_network, version.has_user_network)
    return next(((name, True) for name in ("pasta", "slirp4netns") if find_program(name)), ("slirp4netns", False))


def _rights(version: EngineVersion | None, facts: HostFacts, *, is_here: bool) -> list[Finding]:
    uid = os.geteuid()
    is_roots = uid == 0 or (version is not None and version.docker != "" and not version.rootless)
    controllers = container_controllers(CGROUP_ROOT, uid) if version is None else version.controllers
    whose = msgspec.structs.replace(facts, is_root=is_roots)
    return [
        controllers_finding(controllers, whose, container_controllers(CGROUP_ROOT, 0), user_name(uid)),
        *user_findings(
            is_root=is_roots,
            why_none=None if version is None else why_no_user_namespace(version, is_here=is_here),
            forbidden=why_no_user_namespaces(Path("/proc/sys")),
            ids=subordinate_ids(uid),
            free_id=free_subordinate_id(),
            name=user_name(uid),
        ),
    ]


def _parts(version: EngineVersion | None) -> dict[str, str]:
    names = ("podman", "docker", "conmon", "oci_runtime", "oci_runtime_version", "storage_driver")
    return {} if version is None else {name: getattr(version, name) for name in names}


def _disk(state_dir: Path) -> list[Finding]:
    disk = disk_of(next(path for path in (state_dir, *state_dir.parents) if os.path.exists(path)))
    return [disk_finding(disk["path"], disk["free_bytes"], disk["bytes"], why_full(disk))] if disk else []


def _number(name: str) -> int | None:
    try:
        return int(Path("/proc/sys", *name.split(".")).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def report(findings: list[Finding], width: int) -> str:
    """One finding per line, wrapped to `width` columns, with what to do below it."""
    subject_width = max(len(finding.subject) for finding in findings)
    return "\n".join(line for finding in findings for line in _lines(finding, subject_width, width))


def _lines(finding: Finding, subject_width: int, width: int) -> list[str]:
    level = f"{finding.level:<{_LEVEL_WIDTH}}"
    head = f"{level}  {finding.subject:<{subject_width}}  "
    text = textwrap.wrap(finding.text, max(width - len(head), _MIN_TEXT_WIDTH), break_long_words=False)
    # Not wrapped: it is there to be copied.
    text += [f"-> {finding.advice}"] if finding.advice else []
    first, *rest = [(" " * len(head) if number else head) + line for number, line in enumerate(text)]
    return [click.style(level, fg=_COLOURS[finding.level]) + first[len(level) :], *rest]
