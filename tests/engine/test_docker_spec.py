"""The sandbox as Docker is told of it: all of what Podman is told, or a refusal."""

from __future__ import annotations

from typing import Any

import pytest

from fastclaw.engine.container_spec import OPEN_NETWORK, ContainerNetwork, InitPlan, container_spec
from fastclaw.engine.docker_spec import api_version, create_body, name_and_tag
from fastclaw.errors import StartFailed

SPAWNER = InitPlan(spawner="/s/spawner", socket="/s/1.init")


def spec(init: InitPlan = SPAWNER, **more: Any) -> dict[str, Any]:
    return container_spec(image="i", name="n", namespace="ns", owner="o", init=init, **more)


def host_config(**more: Any) -> dict[str, Any]:
    config: dict[str, Any] = create_body(spec(**more))["HostConfig"]
    return config


def test_what_confines_it_is_said() -> None:
    config = host_config(pids_limit=7, own_pids=3, shm_bytes=1024)
    assert {name: config[name] for name in config if name not in ("Mounts", "CapAdd")} == {
        "AutoRemove": True,
        "Init": False,
        "LogConfig": {"Type": "none"},
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "Privileged": False,
        "NetworkMode": "none",
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "PidsLimit": 10,
        "Memory": 0,
        "CpuQuota": 0,
        "CpuPeriod": 0,
        "CpusetCpus": "",
        "Ulimits": [],
        "StorageOpt": {},
        "ShmSize": 1024,
        "Runtime": "",
    }
    assert config["CapAdd"] == ["CAP_KILL", "CAP_SETGID", "CAP_SETUID"]


def test_what_it_is_called_and_what_runs_in_it() -> None:
    body = create_body(spec(number=3))
    assert {name: body[name] for name in ("Image", "Hostname", "User", "Entrypoint", "Cmd", "Env", "Healthcheck")} == {
        "Image": "i",
        "Hostname": "fastclaw",
        "User": "0",
        "Entrypoint": SPAWNER.command,
        "Cmd": [],
        "Env": [],
        "Healthcheck": {"Test": ["NONE"]},
    }
    assert body["Labels"] == spec(number=3)["labels"]


def test_an_init_of_the_image_is_the_user_that_was_asked_for() -> None:
    assert create_body(spec(InitPlan(), user="1000:5"))["User"] == "1000:5"
    assert create_body(spec(InitPlan()))["User"] == ""


def test_limits_and_the_runtime() -> None:
    config = host_config(memory_bytes=2**20, disk_bytes=2**21, oci_runtime="runsc", capabilities=("CAP_CHOWN",))
    assert (config["Memory"], config["StorageOpt"], config["Runtime"]) == (2**20, {"size": str(2**21)}, "runsc")
    assert "CAP_CHOWN" in config["CapAdd"]
    config = host_config(cpus=1.5, cpuset="0-1")
    assert (config["CpuQuota"], config["CpuPeriod"], config["CpusetCpus"]) == (150_000, 100_000, "0-1")


def test_mounts_and_volumes() -> None:
    network = ContainerNetwork(resolv_conf="/s/resolv.conf")
    mounts = host_config(workspace=("/home/w", "/work"), hosts="/s/hosts", network=network)["Mounts"]
    assert [(one["Source"], one["Target"], one["ReadOnly"]) for one in mounts] == [
        ("/s/spawner", "/run/fastclaw-init", True),
        ("/s/1.init", "/run/fastclaw-init.sock", True),
        ("/s/hosts", "/etc/hosts", False),
        ("/s/resolv.conf", "/etc/resolv.conf", True),
        ("/home/w", "/work", False),
    ]
    assert {(one["Type"], one["BindOptions"]["Propagation"]) for one in mounts} == {("bind", "rprivate")}
    *_, volume = host_config(workspace=("name", "/work"))["Mounts"]
    assert volume == {"Type": "volume", "Source": "name", "Target": "/work", "VolumeOptions": {"NoCopy": True}}


def test_an_open_network_is_the_default_bridge() -> None:
    assert host_config(network=OPEN_NETWORK)["NetworkMode"] == "bridge"


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"ids": 0x7000_0000}, "idmappings"),
        ({"workspace": ("/w", "/w"), "workspace_option": "idmap=uids=0-1-2"}, "idmap"),
    ],
)
def test_what_it_has_no_word_for_is_refused(more: dict[str, Any], what: str) -> None:
    with pytest.raises(StartFailed, match=what) as raised:
        create_body(spec(**more))
    assert raised.value.reason == "unsupported"


def test_a_field_that_is_new_is_refused() -> None:
    with pytest.raises(StartFailed, match="'brand_new'"):
        create_body({**spec(), "brand_new": 1})
    with pytest.raises(StartFailed, match="no limit 'brand_new'"):
        create_body({**spec(), "resource_limits": {"brand_new": {}, "pids": {"limit": 1}}})


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("busybox", ("busybox", "latest")),
        ("python:3.12", ("python", "3.12")),
        ("localhost:5000/a/b", ("localhost:5000/a/b", "latest")),
        ("localhost:5000/a/b:c", ("localhost:5000/a/b", "c")),
        ("a@sha256:00", ("a", "sha256:00")),
        ("a:1@sha256:00", ("a:1", "sha256:00")),
    ],
)
def test_the_name_and_the_tag_of_an_image(reference: str, expected: tuple[str, str]) -> None:
    assert name_and_tag(reference) == expected


@pytest.mark.parametrize(("newest", "spoken"), [("1.41", "1.41"), ("1.43", "1.43"), ("1.52", "1.44"), ("2.0", "1.44")])
def test_the_api_that_is_spoken(newest: str, spoken: str) -> None:
    assert api_version(newest) == spoken


def test_an_old_docker_is_refused() -> None:
    with pytest.raises(StartFailed, match=r"1\.40.*20\.10"):
        api_version("1.40")
