"""What is asked of Podman and of Docker in other words: one class each, by the calls that differ.

All else (start, remove, list, inspect, top, archives) is the same path with the same answer, as far as it is used.
Methods that get a client block, in one of the engine's threads; they raise what podman-py raises.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec
from msgspec import Struct, field
from podman.errors import APIError

from fastclaw.errors import StartFailed
from fastclaw.podman import docker_spec
from fastclaw.podman.base_image import CHANGES, make_image
from fastclaw.podman.engine_news import lines_of
from fastclaw.podman.podman_client import (
    JSON,
    Info,
    Inspected,
    ListedVolume,
    answer,
    check,
    make_client,
    mapped_errors,
    message_of,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from podman.api.client import APIClient, APIResponse

TAR = {"Content-Type": "application/x-tar"}


class EngineVersion(Struct, frozen=True, kw_only=True):
    """What an engine is made of.

    Parameters:
        podman, docker: one of them is empty.
        oci_runtime: its default one; of its version the first line, where it says it.
        controllers: of cgroups, that its containers can have.
        user_network: by which program containers reach a network where Podman is rootless.
        has_user_network: it is there.
    """

    podman: str = ""
    docker: str = ""
    conmon: str = ""
    oci_runtime: str
    oci_runtime_version: str = ""
    rootless: bool
    storage_driver: str
    storage: str
    cgroup_version: str
    controllers: tuple[str, ...]
    user_network: str = ""
    has_user_network: bool = False


class About(NamedTuple):
    """An engine's own account.

    Parameters:
        image_list: its list of images, where that is on this host and tells of every change.
        makes_groups: it makes control groups on this host, by any name.
    """

    version: EngineVersion
    image_list: Path | None = None
    makes_groups: bool = False


class Dialect(Protocol):
    """How one kind of engine is asked.

    Attributes:
        api: what the paths of execs begin with.
    """

    @property
    def api(self) -> str: ...

    def client(self, url: str, timeout_s: float) -> APIClient:
        """A client for one thread, which adds the beginning of each path."""

    def about(self, client: APIClient, *, is_socket: bool) -> About:
        """What the engine is. `is_socket`: it is asked over a Unix socket."""

    def create(self, client: APIClient, spec: Mapping[str, Any]) -> APIResponse:
        """Create a container."""

    def check_created(self, client: APIClient, container: str, spec: Mapping[str, Any]) -> None:
        """Refuse what the engine has made in another way than it was asked to, without a word."""

    def exists(self, container: str) -> str:
        """The path that says 404 where there is no such container."""

    def make_volume(self, client: APIClient, name: str, labels: Mapping[str, str], owner: str | None) -> None:
        """Make an empty volume, for `owner`: `UID:GID` as the engine sees them."""

    def volumes(self, client: APIClient, filters: str) -> list[ListedVolume]:
        """Those that match."""

    def import_image(self, client: APIClient, reference: str, archive: bytes) -> None:
        """Hand a root file system to the engine under a name."""

    def pull(self, client: APIClient, reference: str) -> APIResponse:
        """Begin a pull, whose lines follow."""


class Podman:
    """Podman's own API (libpod), 4.3.1 and later."""

    api = "/v4.3.1/libpod"
    """Any service from 4.0 on takes it; the prefix picks the dialect (pkg/api/server, VersionedPath)."""

    def client(self, url: str, timeout_s: float) -> APIClient:
        return make_client(url, timeout_s)

    def about(self, client: APIClient, *, is_socket: bool) -> About:
        info = answer(client.get("/info"), Info)
        if not (is_socket and _is_here(info.host.hostname, info.host.mem_total)):
            return About(_podman_version(info))
        store, host = info.store, info.host
        return About(
            _podman_version(info),
            image_list=Path(store.graph_root, f"{store.graph_driver_name}-images", "images.json"),
            makes_groups=host.cgroup_manager == "cgroupfs" and not host.security.rootless,
        )

    def create(self, client: APIClient, spec: Mapping[str, Any]) -> APIResponse:
        return client.post("/containers/create", data=msgspec.json.encode(spec), headers=JSON)

    def check_created(self, client: APIClient, container: str, spec: Mapping[str, Any]) -> None:
        """Podman 4.3.1 ignores the field without a word, and a microVM asked for must not become a namespace."""
        wanted: str | None = spec.get("oci_runtime")
        if wanted is None:
            return
        given = answer(client.get(f"/containers/{container}/json"), Inspected).oci_runtime
        if given.rpartition("/")[2] != wanted.rpartition("/")[2]:
            raise StartFailed(
                f"the engine takes the OCI runtime {given} and not {wanted}; make it the engine's default "
                "(containers.conf, [engine] runtime)",
                "engine_error",
            )

    def exists(self, container: str) -> str:
        return f"/containers/{container}/exists"

    def make_volume(self, client: APIClient, name: str, labels: Mapping[str, str], owner: str | None) -> None:
        options = {} if owner is None else {"o": "uid={},gid={}".format(*owner.split(":"))}
        body = msgspec.json.encode({"Name": name, "Label": dict(labels), "Options": options})
        check(client.post("/volumes/create", data=body, headers=JSON))

    def volumes(self, client: APIClient, filters: str) -> list[ListedVolume]:
        return answer(client.get("/volumes/json", params={"filters": filters}), list[ListedVolume])

    def import_image(self, client: APIClient, reference: str, archive: bytes) -> None:
        make_image(client, reference, archive)

    def pull(self, client: APIClient, reference: str) -> APIResponse:
        return client.post("/images/pull", params={"reference": reference}, stream=True)


PODMAN = Podman()


class _DockerInfo(Struct, rename="pascal"):
    """Answer to `GET /info`."""

    server_version: str
    driver: str
    docker_root_dir: str
    default_runtime: str
    cgroup_version: str = "1"
    security_options: list[str] = []
    memory_limit: bool = False
    pids_limit: bool = False


class _DockerVolume(Struct, rename="pascal"):
    """Answer to `POST /volumes/create`."""

    mountpoint: str


class _DockerVolumes(Struct, rename="pascal"):
    """Answer to `GET /volumes`."""

    volumes: list[ListedVolume] | None = None


class Docker:
    """Docker's API.

    Parameters:
        version: of the API, as from `docker_spec.api_version`.
    """

    def __init__(self, version: str) -> None:
        self.api = f"/v{version}"

    def client(self, url: str, timeout_s: float) -> APIClient:
        return _client_of(url, timeout_s, f"{self.api}/")

    def about(self, client: APIClient, *, is_socket: bool) -> About:
        info = answer(client.get("/info"), _DockerInfo)
        version = EngineVersion(
            docker=info.server_version,
            oci_runtime=info.default_runtime,
            rootless="name=rootless" in info.security_options,
            storage_driver=info.driver,
            storage=info.docker_root_dir,
            cgroup_version=f"v{info.cgroup_version}",
            controllers=(*["memory"] * info.memory_limit, *["pids"] * info.pids_limit),
        )
        return About(version)

    def create(self, client: APIClient, spec: Mapping[str, Any]) -> APIResponse:
        body = msgspec.json.encode(docker_spec.create_body(spec))
        return client.post("/containers/create", params={"name": spec["name"]}, data=body, headers=JSON)

    def check_created(self, client: APIClient, container: str, spec: Mapping[str, Any]) -> None:
        """It refuses an OCI runtime that it does not have."""

    def exists(self, container: str) -> str:
        return f"/containers/{container}/json"

    def make_volume(self, client: APIClient, name: str, labels: Mapping[str, str], owner: str | None) -> None:
        """Docker makes it root's; who is root here gives it away, before anything is in it."""
        body = msgspec.json.encode({"Name": name, "Labels": dict(labels)})
        made = answer(client.post("/volumes/create", data=body, headers=JSON), _DockerVolume)
        if owner is not None and os.geteuid() == 0 and os.path.isdir(made.mountpoint):
            os.chown(made.mountpoint, *map(int, owner.split(":")))

    def volumes(self, client: APIClient, filters: str) -> list[ListedVolume]:
        return answer(client.get("/volumes", params={"filters": filters}), _DockerVolumes).volumes or []

    def import_image(self, client: APIClient, reference: str, archive: bytes) -> None:
        name, tag = docker_spec.name_and_tag(reference)
        params = {"fromSrc": "-", "repo": name, "tag": tag, "changes": list(CHANGES)}
        response = client.post("/images/create", params=params, data=archive, headers=TAR, stream=True)
        try:
            check(response)
            for said in lines_of(response):
                if said.error:
                    raise APIError(said.error, response=response, explanation=said.error)
        finally:
            response.close()

    def pull(self, client: APIClient, reference: str) -> APIResponse:
        name, tag = docker_spec.name_and_tag(reference)
        response = client.post("/images/create", params={"fromImage": name, "tag": tag}, stream=True)
        if response.status_code >= 400:  # it asks the registry before it answers
            raise StartFailed(f"cannot pull {reference}: {message_of(response.text)}", "image_not_found")
        return response


class _Component(Struct, rename="pascal"):
    name: str


class _Version(Struct, rename="pascal"):
    """Answer to `GET /version`, which both engines give without the version of an API."""

    api_version: str
    components: list[_Component] = field(default_factory=list)


def find_docker(url: str, timeout_s: float) -> Docker:
    """How the Docker at a URL is asked. Blocks.

    Raises:
        StartFailed: `unsupported`: it is Podman, or too old; besides the reasons of every call.
    """
    with mapped_errors(url, timeout_s), _client_of(url, timeout_s, "/") as client:
        found = answer(client.get("/version"), _Version)
    if any("podman" in part.name.lower() for part in found.components):
        raise StartFailed(f"the engine at {url} is Podman; use runtime 'podman' with options.url", "unsupported")
    return Docker(docker_spec.api_version(found.api_version))


def _client_of(url: str, timeout_s: float, prefix: str) -> APIClient:
    client = make_client(url, timeout_s)
    client.path_prefix = prefix
    return client


def _is_here(hostname: str, memory: int) -> bool:
    """Whether an engine that is asked over a Unix socket is on this host, and not behind a forwarded socket."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return (hostname, memory) == (os.uname().nodename, pages * size)


def _podman_version(info: Info) -> EngineVersion:
    user_network = info.host.rootless_network_cmd or "slirp4netns"  # who names none has no other by default
    program = info.host.pasta if user_network == "pasta" else info.host.slirp4netns
    return EngineVersion(
        podman=info.version.version,
        conmon=info.host.conmon.version,
        oci_runtime=info.host.oci_runtime.name,
        oci_runtime_version=info.host.oci_runtime.version.partition("\n")[0],
        rootless=info.host.security.rootless,
        storage_driver=info.store.graph_driver_name,
        storage=info.store.graph_root,
        cgroup_version=info.host.cgroup_version,
        controllers=tuple(info.host.cgroup_controllers or ()),
        user_network=user_network,
        has_user_network=bool(program and program.executable),
    )
