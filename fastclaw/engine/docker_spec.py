"""The sandbox in the words of Docker's API (1.41 and later), from Podman's, in which `container_spec` writes it.

Nothing is left out without a word: what is not known here is refused, and what is dropped is named in `_WITHOUT`.
"""

from collections.abc import Mapping
from typing import Any

from fastclaw.errors import StartFailed

OLDEST_API, NEWEST_API = (1, 41), (1, 44)
"""Of Docker 20.10 and 25 (docs.docker.com, "Docker Engine API version history"); 29 takes none before the second."""

_WITHOUT = frozenset(
    {
        "manage_password",  # it never adds a user
        "systemd",  # it knows no such mode
        "umask",  # runc's is 0022 (libcontainer, init_linux.go)
        "pidns",  # private where nothing else is said, as is
        "utsns",
        "use_image_hosts",  # what is mounted at /etc/hosts is there instead of its own
    }
)
_BOUNDS, _CPU = frozenset({"pids", "memory", "cpu"}), frozenset({"quota", "period", "cpus"})
_MOUNT_OPTIONS = frozenset({"rw", "ro", "nosuid", "nodev", "rbind", "rprivate"})
"""It has no `nosuid` and `nodev`: without new privileges and CAP_MKNOD, and with the devices that a container may open,
they forbid nothing more."""


def api_version(newest: str) -> str:
    """The version of the API that is spoken with a daemon.

    Parameters:
        newest: that it speaks, as `1.41`.

    Raises:
        StartFailed: `unsupported`: it is too old.
    """
    major, minor = (int(part) for part in newest.split("."))
    if (major, minor) < OLDEST_API:
        raise StartFailed(f"this Docker speaks API {newest}; 1.41 is needed, of Docker 20.10", "unsupported")
    return "{}.{}".format(*min((major, minor), NEWEST_API))


def name_and_tag(reference: str) -> tuple[str, str]:
    """An image's name, and the tag or digest that is meant: without one Docker would pull all that there are."""
    name, at, digest = reference.partition("@")
    if at:
        return name, digest
    name, _, tag = reference.rpartition(":")  # a colon may also come before a port
    return (name, tag) if name and "/" not in tag else (reference, "latest")


def create_body(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The body of `POST /containers/create`; the name is a parameter of the call.

    Parameters:
        spec: SpecGenerator JSON, as from `container_spec.container_spec`.

    Raises:
        StartFailed: `unsupported`: something in it cannot be said to Docker.
    """
    left = dict(spec)
    left.pop("name", None)
    body = {
        "Image": left.pop("image"),
        "Hostname": left.pop("hostname"),
        "Labels": left.pop("labels"),
        "Env": [f"{name}={value}" for name, value in left.pop("env").items()],
        "User": left.pop("user", ""),
        "Entrypoint": left.pop("entrypoint"),
        "Cmd": left.pop("command"),
        "StopTimeout": left.pop("stop_timeout"),
        "Healthcheck": left.pop("healthconfig"),
        "HostConfig": _host_config(left),
    }
    if unknown := sorted(left.keys() - _WITHOUT):
        raise StartFailed(f"Docker cannot be told {unknown[0]!r}; use runtime 'podman'", "unsupported")
    return body


def _host_config(left: dict[str, Any]) -> dict[str, Any]:
    bounds = left.pop("resource_limits")
    cpu = bounds.get("cpu", {})
    for known, given in ((_BOUNDS, bounds), (_CPU, cpu)):
        if unknown := sorted(given.keys() - known):
            raise StartFailed(f"Docker has no limit {unknown[0]!r}; use runtime 'podman'", "unsupported")
    return {
        "AutoRemove": left.pop("remove"),
        "Init": False,
        "LogConfig": {"Type": left.pop("log_configuration")["driver"]},
        "CapDrop": left.pop("cap_drop"),
        "CapAdd": left.pop("cap_add", []),
        "SecurityOpt": ["no-new-privileges"] if left.pop("no_new_privileges") else [],
        "Privileged": left.pop("privileged"),
        "NetworkMode": left.pop("netns")["nsmode"],
        "IpcMode": left.pop("ipcns")["nsmode"],
        "CgroupnsMode": left.pop("cgroupns")["nsmode"],
        "PidsLimit": bounds["pids"]["limit"],
        "Memory": bounds.get("memory", {}).get("limit", 0),
        "CpuQuota": cpu.get("quota", 0),
        "CpuPeriod": cpu.get("period", 0),
        "CpusetCpus": cpu.get("cpus", ""),
        "Ulimits": left.pop("r_limits"),
        "StorageOpt": left.pop("storage_opts", {}),
        "ShmSize": left.pop("shm_size"),
        "Runtime": left.pop("oci_runtime", ""),
        "Mounts": [*map(_mount, left.pop("mounts", ())), *map(_volume, left.pop("volumes", ()))],
    }


def _mount(mount: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := sorted(set(mount["options"]) - _MOUNT_OPTIONS):
        raise StartFailed(f"Docker has no mount option {unknown[0]!r}; use runtime 'podman'", "unsupported")
    return {
        "Type": "bind",
        "Source": mount["source"],
        "Target": mount["destination"],
        "ReadOnly": "ro" in mount["options"],
        "BindOptions": {"Propagation": "rprivate"},
    }


def _volume(volume: Mapping[str, Any]) -> dict[str, Any]:
    """An empty one, with no copy of what the image has there: that would give it another owner."""
    return {"Type": "volume", "Source": volume["Name"], "Target": volume["Dest"], "VolumeOptions": {"NoCopy": True}}
