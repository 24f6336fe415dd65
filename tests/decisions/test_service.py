"""The rules for starting a private Podman service, one case each."""

import subprocess
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastclaw import limits
from fastclaw.decisions.service import (
    HostFacts,
    ServicePaths,
    bound_argv,
    conf_text,
    plan_service,
    service_env,
    standing_argv,
)
from fastclaw.errors import StartFailed

FACTS = HostFacts(
    is_root=True,
    cgroups="v2",
    podman="/usr/bin/podman",
    crun="/usr/bin/crun",
    runc="/usr/sbin/runc",
    conmon="/usr/bin/conmon",
    conmon_version="2.1.6",
    setpriv="/usr/bin/setpriv",
    unshare="/usr/bin/unshare",
    nofile=20_000,
    nproc=32_768,
    storage_driver="overlay",
)
PATHS = ServicePaths(root="/s/root", runroot="/r/run", tmpdir="/r/tmp", socket="/r/p.sock", conf="/s/c.conf")


def facts(**changes: Any) -> HostFacts:
    """FACTS with changes."""
    return msgspec.structs.replace(FACTS, **changes)


@pytest.mark.parametrize(
    ("changes", "runtime", "private_mounts"),
    [
        ({}, "crun", False),
        ({"cgroups": "v1"}, "crun", False),
        ({"cgroups": "hybrid"}, "crun", True),
        ({"cgroups": "hybrid", "is_root": False}, "runc", False),
        ({"cgroups": "hybrid", "unshare": None}, "runc", False),
        ({"crun": None}, "runc", False),
        ({"runc": None}, "crun", False),
        ({"crun": None, "cgroups": "hybrid"}, "runc", False),
    ],
)
def test_chooses_the_oci_runtime(changes: dict[str, Any], runtime: str, private_mounts: bool) -> None:
    plan = plan_service(facts(**changes))
    assert (plan.oci_runtime, plan.private_mounts) == (runtime, private_mounts)


@pytest.mark.parametrize(
    ("changes", "oci_runtime", "private_mounts"),
    [
        ({}, "runc", False),
        ({}, "krun", False),
        ({"cgroups": "hybrid"}, "runc", False),
        ({"cgroups": "hybrid"}, "/opt/crun", True),
        ({"cgroups": "hybrid"}, "krun", True),
        ({"cgroups": "hybrid"}, "kata", False),
    ],
)
def test_the_users_oci_runtime_wins(changes: dict[str, Any], oci_runtime: str, private_mounts: bool) -> None:
    plan = plan_service(facts(**changes), oci_runtime=oci_runtime)
    assert plan.oci_runtime == oci_runtime
    assert plan.private_mounts is private_mounts
    assert tomllib.loads(conf_text(plan, "/c"))["engine"]["runtime"] == oci_runtime


@pytest.mark.parametrize(
    ("changes", "oci_runtime", "says"),
    [
        ({"podman": None}, None, "apt-get install podman"),
        ({"conmon": None}, None, "apt-get install conmon"),
        ({"conmon_version": "2.2.0"}, None, "conmon 2.2.1"),
        ({"crun": None, "runc": None}, None, "apt-get install crun"),
        ({"cgroups": "hybrid", "is_root": False, "runc": None}, None, "apt-get install runc"),
        ({"cgroups": "hybrid", "is_root": False}, "crun", "options.oci_runtime to runc"),
        ({"setpriv": None}, None, "apt-get install util-linux"),
    ],
)
def test_says_in_one_line_what_is_missing(changes: dict[str, Any], oci_runtime: str | None, says: str) -> None:
    with pytest.raises(StartFailed) as caught:
        plan_service(facts(**changes), oci_runtime=oci_runtime)
    assert caught.value.reason == "engine_unavailable"
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", ["2.1.13", "2.2.1", None])
def test_takes_every_other_conmon(version: str | None) -> None:
    assert plan_service(facts(conmon_version=version)).podman == "/usr/bin/podman"


def test_settings_file() -> None:
    plan = plan_service(facts(netavark="/usr/lib/podman/netavark"))
    conf = tomllib.loads(conf_text(plan, "/usr/bin/conmon"))
    assert conf == {
        "containers": {"default_ulimits": ["nofile=20000:20000", "nproc=32768:32768"]},
        "engine": {
            "runtime": "crun",
            "cgroup_manager": "cgroupfs",
            "events_logger": "none",
            "exit_command_delay": limits.EXIT_COMMAND_DELAY_S,
            "conmon_path": ["/usr/bin/conmon"],
        },
        "network": {"network_backend": "netavark"},
    }


def test_a_strange_path_stays_one_toml_string() -> None:
    strange = '/opt/"a"\\b\n#/crun'
    conf = tomllib.loads(conf_text(plan_service(FACTS, oci_runtime=strange), strange))
    assert conf["engine"]["conmon_path"] == [strange]
    assert conf["engine"]["runtime"] == strange


@pytest.mark.parametrize(
    ("is_root", "user_systemd", "manager"),
    [(True, True, "cgroupfs"), (True, False, "cgroupfs"), (False, True, "systemd"), (False, False, "cgroupfs")],
)
def test_cgroup_manager(is_root: bool, user_systemd: bool, manager: str) -> None:
    plan = plan_service(facts(is_root=is_root, user_systemd=user_systemd))
    conf = tomllib.loads(conf_text(plan, "/c"))
    assert conf["engine"]["cgroup_manager"] == manager


def test_bound_command_line() -> None:
    argv = bound_argv(plan_service(facts(cgroups="hybrid")), PATHS, 42)
    assert argv[:6] == ["/usr/bin/setpriv", "--pdeathsig", "KILL", "/usr/bin/unshare", "-m", "/bin/sh"]
    assert argv[argv.index("fastclaw-engine") + 1 :] == [
        "42",
        "/usr/bin/podman",
        "--root=/s/root",
        "--runroot=/r/run",
        "--tmpdir=/r/tmp",
        "--storage-driver=overlay",
        "system",
        "service",
        "--time=0",
        "unix:///r/p.sock",
    ]


def test_bound_without_setpriv_uses_python() -> None:
    argv = bound_argv(plan_service(facts(setpriv=None, python="/usr/bin/python3")), PATHS, 42)
    assert argv[:4] == ["/usr/bin/python3", "-I", "-S", "-c"]
    assert argv[5:7] == ["/bin/sh", "-c"]


def test_standing_command_line_has_no_death_signal() -> None:
    argv = standing_argv(plan_service(FACTS), PATHS, "/r/pid")
    assert argv[0] == "/bin/sh"
    assert argv[argv.index("fastclaw-engine") + 1 :][:3] == ["/r/pid", "/usr/bin/podman", "--log-level=error"]


def test_host_storage_gets_no_storage_flags() -> None:
    argv = bound_argv(plan_service(FACTS, storage="host"), PATHS, 42)
    assert argv[argv.index("42") + 1 :] == ["/usr/bin/podman", "system", "service", "--time=0", "unix:///r/p.sock"]


def test_podman_chooses_the_storage_driver_where_we_cannot() -> None:
    argv = bound_argv(plan_service(facts(storage_driver=None)), PATHS, 42)
    assert not any(word.startswith("--storage-driver") for word in argv)


def test_environment_names_the_settings_and_drops_redirections() -> None:
    inherited = {"PATH": "/bin", "CONTAINER_HOST": "tcp://other", "LISTEN_FDS": "1", "CONTAINERS_CONF": "/etc/x"}
    assert service_env(PATHS, inherited) == {"GOGC": "400", "PATH": "/bin", "CONTAINERS_CONF": "/s/c.conf"}
    assert service_env(PATHS, {"GOGC": "off"})["GOGC"] == "off"


@pytest.mark.parametrize(
    ("given", "passed_on"),
    [
        (["--version"], ["--version"]),
        (["-c", "1", "--exit-command", "p", "--exit-command-arg", "a"], ["-c", "1"]),
        (["-c", "1", "-e", "--exit-command", "p", "--exit-command-arg", "-e", "x y"], ["-c", "1", "-e", "x y"]),
        (["--exit-delay", "10", "-e", "", "$HOME", "'"], ["-e", "", "$HOME", "'"]),
        ([], []),
    ],
)
def test_conmon_gets_no_exit_command(tmp_path: Path, given: list[str], passed_on: list[str]) -> None:
    conmon = tmp_path / "con mon"
    conmon.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done\n')
    conmon.chmod(0o700)
    shim = plan_service(facts(conmon=str(conmon))).conmon_shim
    assert shim is not None
    done = subprocess.run(["/bin/sh", "-s", "--", *given], input=shim, capture_output=True, text=True, check=True)
    assert done.stdout == "".join(f"{word}\n" for word in passed_on)


def test_no_stand_in_for_conmon_where_programs_may_not_run() -> None:
    assert plan_service(facts(state_executable=False)).conmon_shim is None
