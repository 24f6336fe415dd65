"""What is asked of Podman and of Docker in other words: one class each, by the calls that differ.

All else (start, remove, list, inspect, top, archives) is the same path with the same answer, as far as it is used.
Methods that get a client block, in one of the engine's threads; they raise what podman-py raises.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import msgspec
from msgspec import Struct, field
from podman.errors import APIError

from fastclaw.engine import docker_spec
from fastclaw.engine.base_image import CHANGES, make_image
from fastclaw.engine.news import lines_of
from fastclaw.engine.podman_client import (
    JSON,
    EngineHost,
    Info,
    Inspected,
    ListedVolume,
    answer,
    check,
    make_client,
    mapped_errors,
    message_of,
)
from fastclaw.engine.traits import rootless_network
from fastclaw.errors import StartFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from podman.api.client import APIClient, APIResponse

    from fastclaw.engine.news import Line
    from fastclaw.images import BuildImage

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
        steps: what steps of builds on this host are known by, where we may end them: a control group named as asked, or
            the size of their /dev/shm; None where they are not, or it ends them itself.
    """

    version: EngineVersion
    image_list: Path | None = None
    steps: Literal["group", "shm"] | None = None


class Dialect(Protocol):
    """How one kind of engine is asked.

    Attributes:
        api: what the paths of execs begin with.
        keeps_pids: what is said of an exec that is over names its process still, and before a start is through it is
            asked in vain: an end without a process is a start that failed, and why is on stdout.
    """

    @property
    def api(self) -> str: ...

    @property
    def keeps_pids(self) -> bool: ...

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

    def build_words(self, request: BuildImage) -> dict[str, str]:
        """Parameters of a build."""

    def why_no_build(self, response: APIResponse) -> str:
        """What is wrong with the Containerfile, where a build is refused for that."""

    def building(self, client: APIClient) -> set[str]:
        """The containers in which builds work now, where they tell that one has come to its end."""

    def load(self, client: APIClient, archive: Any) -> list[str]:
        """Load images; a reference for each, or its id."""

    @property
    def bad_archive(self) -> re.Pattern[str]:
        """What it says of what is no archive of images."""


OCI = "application/vnd.oci.image.manifest.v1+json"
NETWORKS = {
    "none": {"networkmode": "1"},
    "default": {"networkmode": "0", "nsoptions": '[{"Name":"network","Host":false}]'},
    "host": {"networkmode": "0", "nsoptions": '[{"Name":"network","Host":true}]'},
}
"""buildah's NetworkDisabled and NetworkDefault by number (define/types.go); words it takes for the default, which over
the API is this host's network."""

_WORKING = ["buildah"]
"""The command of a container in which a build works, as the engine lists it."""


class _Working(Struct, rename="pascal"):
    """One entry of `GET /containers/json?external=true`."""

    id: str
    command: list[str] | None = None


class _Loaded(Struct, rename="pascal"):
    """Answer to `POST /images/load`."""

    names: list[str]


class Podman:
    """Podman's own API (libpod), 4.3.1 and later."""

    api = "/v4.3.1/libpod"
    """Any service from 4.0 on takes it; the prefix picks the dialect (pkg/api/server, VersionedPath)."""
    keeps_pids = False

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
            steps=_steps(host),
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

    def build_words(self, request: BuildImage) -> dict[str, str]:
        return {
            "layers": "true",
            "pullpolicy": "missing",
            "outputformat": OCI,  # without one Podman 4.3.1 finds nothing of earlier builds again
            # Podman takes `ENV A=$B` for the same step whatever the argument B is (4.3.1; buildah, issue 5501).
            "nocache": "true" if request.no_cache or request.args else "false",
            **NETWORKS[request.network],
        }

    def why_no_build(self, response: APIResponse) -> str:
        """It says so later, in one of its lines."""
        return ""

    def building(self, client: APIClient) -> set[str]:
        response = client.get("/containers/json", params={"all": "true", "external": "true"})
        return {one.id for one in answer(response, list[_Working]) if one.command == _WORKING}

    def load(self, client: APIClient, archive: Any) -> list[str]:
        loaded = answer(client.post("/images/load", data=archive, headers=TAR), _Loaded)
        return [name.removeprefix("sha256:") for name in loaded.names]

    bad_archive = re.compile("payload does not match")


PODMAN = Podman()


_LOADED = re.compile(r"^Loaded image(?: ID)?: (\S+)$", re.MULTILINE)
"""What it says of each image of an archive (image/tarexport/load.go)."""


class _DockerInfo(Struct, rename="pascal"):
    """Answer to `GET /info`."""

    server_version: str
    driver: str
    docker_root_dir: str
    default_runtime: str
    name: str = ""
    mem_total: int = 0
    cgroup_driver: str = ""
    cgroup_version: str = "1"
    security_options: list[str] = []
    memory_limit: bool = False
    pids_limit: bool = False
    cpu_cfs_quota: bool = False
    cpu_set: bool = field(name="CPUSet", default=False)


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

    keeps_pids = True

    def __init__(self, version: str) -> None:
        self.api = f"/v{version}"

    def client(self, url: str, timeout_s: float) -> APIClient:
        return _client_of(url, timeout_s, f"{self.api}/")

    def about(self, client: APIClient, *, is_socket: bool) -> About:
        info = answer(client.get("/info"), _DockerInfo)
        controllers = {
            "memory": info.memory_limit,
            "pids": info.pids_limit,
            "cpu": info.cpu_cfs_quota,
            "cpuset": info.cpu_set,
        }
        version = EngineVersion(
            docker=info.server_version,
            oci_runtime=info.default_runtime,
            rootless="name=rootless" in info.security_options,
            storage_driver=info.driver,
            storage=info.docker_root_dir,
            cgroup_version=f"v{info.cgroup_version}",
            controllers=tuple(name for name, is_there in controllers.items() if is_there),
        )
        is_ours = is_socket and _is_here(info.name, info.mem_total) and not version.rootless and os.geteuid() == 0
        return About(version, steps="group" if is_ours and info.cgroup_driver == "cgroupfs" else None)

    def create(self, client: APIClient, spec: Mapping[str, Any]) -> APIResponse:
        body = msgspec.json.encode(docker_spec.create_body(spec))
        if spec["netns"]["nsmode"] != "none" and client.get("/networks/bridge").status_code == 404:
            raise StartFailed("this Docker has no default network (dockerd --bridge=none)", "network_failed")
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
            for _ in _good_lines(response):
                pass
        finally:
            response.close()

    def pull(self, client: APIClient, reference: str) -> APIResponse:
        name, tag = docker_spec.name_and_tag(reference)
        response = client.post("/images/create", params={"fromImage": name, "tag": tag}, stream=True)
        if response.status_code >= 400:  # it asks the registry before it answers
            raise StartFailed(f"cannot pull {reference}: {message_of(response.text)}", "image_not_found")
        return response

    def build_words(self, request: BuildImage) -> dict[str, str]:
        return {"networkmode": request.network, "nocache": "true" if request.no_cache else "false"}

    def why_no_build(self, response: APIResponse) -> str:
        return message_of(response.text) if response.status_code == 400 else ""

    def building(self, client: APIClient) -> set[str]:
        """It ends a step with the client that leaves; the container of that is like any other."""
        return set()

    def load(self, client: APIClient, archive: Any) -> list[str]:
        response = client.post("/images/load", data=archive, headers=TAR, stream=True)
        try:
            return _LOADED.findall("".join(said.stream for said in _good_lines(response)))
        finally:
            response.close()

    bad_archive = re.compile(r"\b(tar|EOF|manifest)\b|docker-import")


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


def _good_lines(response: APIResponse) -> Iterator[Line]:
    """The lines of Docker's answer; one that is an error is raised, as its refusal would be."""
    check(response)
    for said in lines_of(response):
        if said.error:
            raise APIError(said.error, response=response, explanation=said.error)
        yield said


def _client_of(url: str, timeout_s: float, prefix: str) -> APIClient:
    client = make_client(url, timeout_s)
    client.path_prefix = prefix
    return client


def _is_here(hostname: str, memory: int) -> bool:
    """Whether an engine that is asked over a Unix socket is on this host, and not behind a forwarded socket."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return (hostname, memory) == (os.uname().nodename, pages * size)


def _steps(host: EngineHost) -> Literal["group", "shm"] | None:
    """By the size alone root would find the processes of others, too."""
    if os.geteuid() != 0:
        return "shm" if host.security.rootless else None
    return "group" if host.cgroup_manager == "cgroupfs" and not host.security.rootless else None


def _podman_version(info: Info) -> EngineVersion:
    user_network = rootless_network(info.version.version, info.host.rootless_network_cmd)
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
