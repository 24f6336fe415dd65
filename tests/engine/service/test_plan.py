"""The rules for starting a private Podman service, one case each."""

import subprocess
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fastclaw import engine_limits
from fastclaw.engine.service.plan import (
    HostFacts,
    JanitorOrder,
    ServicePaths,
    ServicePlan,
    Storage,
    bound_argv,
    conf_text,
    daemon_argv,
    janitor_argv,
    plan_service,
    podman_says,
    runtime_argv,
    service_env,
    tool_argv,
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
PATHS = ServicePaths(
    root="/s/root", runroot="/r/run", tmpdir="/r/tmp", socket="/r/p.sock", reserve="/s/k/reserve", conf="/s/c.conf"
)


STORAGE = ["--root=/s/root", "--runroot=/r/run", "--tmpdir=/r/tmp", "--storage-driver=overlay"]
SERVE = ["system", "service", "--time=0", "unix:///r/p.sock"]


def hides_cgroup2(plan: ServicePlan) -> bool:
    """Whether the service sees no cgroup2 mount."""
    return any("umount" in word for word in plan.tool_launcher)


def facts(**changes: Any) -> HostFacts:
    """FACTS with changes."""
    return msgspec.structs.replace(FACTS, **changes)


@pytest.mark.parametrize(
    ("changes", "runtime", "hide_cgroup2"),
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
def test_chooses_the_oci_runtime(changes: dict[str, Any], runtime: str, hide_cgroup2: bool) -> None:
    plan = plan_service(facts(**changes))
    assert (plan.oci_runtime, hides_cgroup2(plan)) == (runtime, hide_cgroup2)


@pytest.mark.parametrize(
    ("changes", "oci_runtime", "hide_cgroup2"),
    [
        ({}, "runc", False),
        ({}, "krun", False),
        ({"cgroups": "hybrid"}, "runc", False),
        ({"cgroups": "hybrid"}, "/opt/crun", True),
        ({"cgroups": "hybrid"}, "krun", True),
        ({"cgroups": "hybrid"}, "kata", False),
    ],
)
def test_the_users_oci_runtime_wins(changes: dict[str, Any], oci_runtime: str, hide_cgroup2: bool) -> None:
    plan = plan_service(facts(**changes), oci_runtime=oci_runtime)
    assert plan.oci_runtime == oci_runtime
    assert hides_cgroup2(plan) is hide_cgroup2
    assert tomllib.loads(conf_text(plan, "/c"))["engine"]["runtime"] == oci_runtime


@pytest.mark.parametrize(
    ("changes", "storage", "private_mounts"),
    [
        ({}, "private", True),
        ({}, "host", False),
        ({"is_root": False}, "private", False),
        ({"unshare": None}, "private", False),
        ({"cgroups": "hybrid"}, "host", True),
    ],
)
def test_mounts_are_kept_out_of_the_hosts_namespace(
    changes: dict[str, Any], storage: Storage, private_mounts: bool
) -> None:
    plan = plan_service(facts(**changes), storage=storage)
    for launcher in (plan.bind_launcher, plan.free_launcher, plan.tool_launcher):
        assert ("/usr/bin/unshare" in launcher) is private_mounts


@pytest.mark.parametrize(
    ("changes", "oci_runtime", "says"),
    [
        ({"podman": None}, None, "apt-get install podman"),
        ({"podman": "/\udcff/podman"}, None, r"podman was found at b'/\xff/podman'"),
        ({"python": "/\udcff/python"}, None, r"python was found at b'/\xff/python'"),
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
            "exit_command_delay": engine_limits.EXIT_COMMAND_DELAY_S,
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
    assert argv[:3] == ["/usr/bin/setpriv", "--pdeathsig", "TERM"]
    assert argv[3:8] == ["/usr/bin/unshare", "-m", "--propagation", "slave", "/bin/sh"]
    assert argv[argv.index("fastclaw-engine") + 1 :] == ["42", "/r", "/usr/bin/podman", *STORAGE, *SERVE]


def test_flags_go_to_whatever_calls_the_runtime() -> None:
    plan = plan_service(FACTS, oci_runtime="/opt/runsc", flags=["platform=kvm", "debug"])
    flags = ["host-uds=open", "network=none", "platform=kvm", "debug"]
    words = [f"--runtime-flag={flag}" for flag in flags]
    for argv in (bound_argv(plan, PATHS, 42), daemon_argv(plan, PATHS, "/r/pid"), tool_argv(plan, PATHS)):
        assert [word for word in argv if "runtime-flag" in word] == words
    assert runtime_argv(plan)[-5:] == ["/opt/runsc", *(f"--{flag}" for flag in flags)]
    assert plan_service(FACTS, flags=["debug"]).runtime_flags == ["debug"]


@pytest.mark.parametrize("is_root", [True, False])
def test_gvisor_makes_no_cgroups_but_for_root(is_root: bool) -> None:
    plan = plan_service(facts(is_root=is_root), oci_runtime="/opt/runsc", flags=["ignore-cgroups=false"])
    own = [] if is_root else ["ignore-cgroups"]
    assert plan.runtime_flags == ["host-uds=open", "network=none", *own, "ignore-cgroups=false"]


def test_podman_chooses_the_storage_driver_where_we_cannot() -> None:
    assert tool_argv(plan_service(facts(storage_driver=None)), PATHS)[-3:] == STORAGE[:3]


def test_bound_without_setpriv_uses_python() -> None:
    argv = bound_argv(plan_service(facts(setpriv=None, python="/usr/bin/python3", unshare=None)), PATHS, 42)
    assert argv[:4] == ["/usr/bin/python3", "-I", "-S", "-c"]
    assert argv[5:7] == ["/bin/sh", "-c"]


def test_the_command_line_of_a_daemon_has_no_death_signal() -> None:
    argv = daemon_argv(plan_service(FACTS), PATHS, "/r/pid")
    assert argv[:5] == ["/usr/bin/unshare", "-m", "--propagation", "slave", "/bin/sh"]
    assert argv[argv.index("fastclaw-engine") + 1 :][:4] == ["/r/pid", "/r", "/usr/bin/podman", "--log-level=error"]


def test_host_storage_gets_no_storage_flags() -> None:
    argv = bound_argv(plan_service(FACTS, storage="host"), PATHS, 42)
    assert argv[argv.index("42") + 1 :] == ["/r", "/usr/bin/podman", *SERVE]


@pytest.mark.parametrize(("cgroups", "hides"), [("v2", False), ("hybrid", True)])
def test_a_command_beside_the_service_has_its_storage_and_its_view_of_the_host(cgroups: str, hides: bool) -> None:
    argv = tool_argv(plan_service(facts(cgroups=cgroups)), PATHS)
    at = argv.index("fastclaw-engine") + 1
    assert hides_cgroup2(plan_service(facts(cgroups=cgroups))) is hides
    assert argv[at:] == ["/usr/bin/podman", *STORAGE]


def test_a_command_beside_the_service_runs_as_it_is_written() -> None:
    plan = plan_service(facts(unshare=None, podman="/bin/echo"), oci_runtime="/bin/echo", storage="host")
    for argv in (tool_argv(plan, PATHS), runtime_argv(plan)):
        done = subprocess.run([*argv, "a b", "$c"], capture_output=True, text=True, check=True)
        assert done.stdout == "a b $c\n"


def test_the_janitor_is_told_everything_at_its_start() -> None:
    order = JanitorOrder(owner=1, service=2, own_dir="/r/o", podman=["podman", "--x"], runtime=["crun"], label="l=v")
    argv = janitor_argv("/usr/bin/python3", "/lib/janitor.py", order)
    assert argv[:4] == ["/usr/bin/python3", "-I", "-S", "/lib/janitor.py"]
    assert msgspec.json.decode(argv[4]) == msgspec.to_builtins(order)


def test_environment_names_the_settings_and_drops_redirections() -> None:
    inherited = {"PATH": "/bin", "CONTAINER_HOST": "tcp://other", "LISTEN_FDS": "1", "CONTAINERS_CONF": "/etc/x"}
    assert service_env(PATHS, inherited) == {
        "GOGC": "400",
        "PATH": "/bin",
        "LC_ALL": "C.UTF-8",
        "CONTAINERS_CONF": "/s/c.conf",
    }
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


@pytest.mark.parametrize(("is_root", "seen"), [(True, ""), (False, "/run/user/1")])
def test_a_command_of_the_runtime_looks_where_the_service_does(is_root: bool, seen: str) -> None:
    plan = plan_service(facts(is_root=is_root, unshare=None), oci_runtime="/bin/sh")
    argv = [*runtime_argv(plan), "-c", 'echo "$XDG_RUNTIME_DIR"']
    env = {"XDG_RUNTIME_DIR": "/run/user/1"}
    assert subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout == f"{seen}\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Error: no space left", "no space left"),
        ('time="2026" level=error msg="a \\"b\\" c"', 'a "b" c'),
        ('time="2026" level=error msg="exec: \\"newuidmap\\": not found"',
         'exec: "newuidmap": not found; run: apt-get install uidmap'),
        ("Error: cannot re-exec process to join the existing user namespace",
         "cannot re-exec process to join the existing user namespace; run: podman system migrate"),
        ('Error: default OCI runtime "runsc" not found: invalid argument',
         'default OCI runtime "runsc" not found: invalid argument; docs/gvisor.md says where it is to be had'),
    ],
)  # fmt: skip
def test_what_podman_says_is_a_line_with_what_to_do(line: str, said: str) -> None:
    assert podman_says(line) == said
