"""The sandbox's spec, and whose a container is. That Podman obeys is proven in tests/engine/test_sandbox.py."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from fastclaw import engine_limits, limits
from fastclaw.engine.container_spec import (
    HOSTS,
    INIT_TARGET,
    NO_NETWORK,
    OPEN_NETWORK,
    PYTHON_TARGET,
    SHELL_INIT,
    ContainerNetwork,
    InitPlan,
    container_spec,
)
from fastclaw.linux.proc import Owner

OWNER = Owner(12, 345, 7, "boot-a")


def spec(**changes: Any) -> dict[str, Any]:
    """A spec with the defaults and some changes."""
    given_: dict[str, Any] = {
        "image": "i",
        "name": "n",
        "namespace": "ns",
        "owner": OWNER.label,
        "number": 2,
        "init": InitPlan(),
    }
    return container_spec(**{**given_, **changes})


def test_the_safe_defaults() -> None:
    private = {"nsmode": "private"}
    assert spec() == {
        "image": "i",
        "name": "n",
        "labels": {
            "io.fastclaw.namespace": "ns",
            "io.fastclaw.owner": "12:345:boot-a:7",
            "io.fastclaw.shard": "2",
        },
        "hostname": "fastclaw",
        "manage_password": False,
        "env": {},
        "entrypoint": ["/bin/sh", "-c", SHELL_INIT],
        "command": [],
        "remove": True,
        "stop_timeout": engine_limits.CONTAINER_STOP_S,
        "systemd": "false",
        "log_configuration": {"driver": "none"},
        "healthconfig": {"Test": ["NONE"]},
        "cap_drop": ["ALL"],
        "no_new_privileges": True,
        "privileged": False,
        "pidns": private,
        "ipcns": private,
        "utsns": private,
        "cgroupns": private,
        "umask": "0022",
        "resource_limits": {"pids": {"limit": limits.PIDS_LIMIT}},
        "r_limits": [],
        "shm_size": limits.SHM_BYTES,
        "netns": {"nsmode": "none"},
        "mounts": [],
    }


def test_what_is_asked_for_is_added() -> None:
    asked = spec(user="1000:1000", oci_runtime="krun", memory_bytes=5)
    assert (asked["user"], asked["oci_runtime"]) == ("1000:1000", "krun")
    assert asked["resource_limits"]["memory"] == {"limit": 5}
    assert "cpu" not in asked["resource_limits"]
    assert spec(cpus=1.5)["resource_limits"]["cpu"] == {"quota": 150_000, "period": 100_000}
    assert spec(cpuset="0-3")["resource_limits"]["cpu"] == {"cpus": "0-3"}


def test_an_init_that_is_known_by_a_secret_has_it_in_its_environment() -> None:
    assert spec(init=InitPlan(spawner="/s", socket="/k", secret="x"))["env"] == {"FASTCLAW_INIT_SECRET": "x"}


def test_hosts_are_ours_but_on_the_engines_own_network() -> None:
    asked = spec(hosts="/run/fc/hosts")
    assert asked["use_image_hosts"] is True
    assert [(one["source"], one["destination"], one["options"][0]) for one in asked["mounts"]] == [
        ("/run/fc/hosts", "/etc/hosts", "rw")
    ]
    assert spec(hosts="/run/fc/hosts", network=OPEN_NETWORK) == spec(network=OPEN_NETWORK)
    assert spec(hosts="/run/fc/hosts", workspace=("v", "/w"))["use_image_hosts"] is True
    assert HOSTS.split() == ["127.0.0.1", "localhost", "fastclaw", "::1", "localhost", "ip6-localhost", "ip6-loopback"]


def test_open_network_is_the_engines_bridge() -> None:
    assert spec(network=OPEN_NETWORK)["netns"] == {"nsmode": "bridge"}
    assert spec(network=NO_NETWORK) == spec()


def test_a_network_of_its_own_begins_as_none_and_says_who_knows_names() -> None:
    asked = spec(network=ContainerNetwork(resolv_conf="/run/x.resolv"))
    assert asked["netns"] == {"nsmode": "none"}
    assert asked["mounts"] == [
        {
            "type": "bind",
            "source": "/run/x.resolv",
            "destination": "/etc/resolv.conf",
            "options": ["ro", "nosuid", "nodev", "rbind", "rprivate"],
        }
    ]


def test_a_workspace_with_a_source_is_a_bind_mount() -> None:
    assert spec(workspace=("/home/w", "/work"))["mounts"] == [
        {
            "type": "bind",
            "source": "/home/w",
            "destination": "/work",
            "options": ["rw", "nosuid", "nodev", "rbind", "rprivate"],
        }
    ]


def test_a_workspace_may_be_a_volume() -> None:
    asked = spec(workspace=("a-volume", "/work"))
    assert asked["mounts"] == []
    assert asked["volumes"] == [{"Name": "a-volume", "Dest": "/work", "Options": ["nosuid", "nodev"]}]


def test_the_template_module_is_mounted_read_only_where_there_are_templates() -> None:
    init = InitPlan(spawner="/s", socket="/x.init", template_module="/t.py")
    mounts = {mount["source"]: mount for mount in spec(init=init)["mounts"]}
    assert list(mounts) == ["/s", "/x.init", "/t.py"]
    assert mounts["/t.py"]["destination"] == f"{PYTHON_TARGET}/fastclaw/template.py"
    assert "ro" in mounts["/t.py"]["options"]
    assert len(InitPlan(spawner="/s", socket="/x.init").mounts) == 2


def test_catatonit_is_mounted_read_only() -> None:
    asked = spec(init=InitPlan(catatonit="/usr/bin/catatonit"))
    assert asked["entrypoint"] == [INIT_TARGET, "-P"]
    [mount] = asked["mounts"]
    assert (mount["source"], mount["destination"]) == ("/usr/bin/catatonit", INIT_TARGET)
    assert "ro" in mount["options"]


@given(image=st.text(), workspace=st.none() | st.tuples(st.text(), st.text()))
def test_nothing_weakens_the_sandbox(image: str, workspace: tuple[str, str] | None) -> None:
    asked = msgspec.json.decode(msgspec.json.encode(spec(image=image, workspace=workspace)))
    assert (asked["cap_drop"], asked["no_new_privileges"], asked["privileged"]) == (["ALL"], True, False)
    assert "seccomp_profile_path" not in asked


def test_a_bound_on_the_disk() -> None:
    assert spec(disk_bytes=1 << 20)["storage_opts"] == {"size": "1048576"}
    assert "storage_opts" not in spec()
