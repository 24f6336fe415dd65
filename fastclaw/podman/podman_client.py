"""podman-py's HTTP client for one thread, and the shape of the engine's answers that are used.

Knows the API's spelling (Podman 4.3.1 and later). Makes no decisions and maps no errors.
"""

from typing import Any, TypeVar

import msgspec
from msgspec import Struct, field
from podman.api.client import APIClient, APIResponse
from podman.api.uds import UDSAdapter, UDSConnection, UDSConnectionPool, UDSSocket

T = TypeVar("T")


class Created(Struct, rename="pascal"):
    """Answer to `POST /containers/create`."""

    id: str


class Listed(Struct, rename="pascal"):
    """One entry of `GET /containers/json`."""

    id: str
    state: str
    labels: dict[str, str] | None = None


class ListedVolume(Struct, rename="pascal"):
    """One entry of `GET /volumes/json`."""

    name: str
    labels: dict[str, str] | None = None


class Top(Struct, rename="pascal"):
    """Answer to `GET /containers/{name}/top`."""

    processes: list[list[str]]


class _State(Struct, rename="pascal"):
    pid: int
    running: bool


class Inspected(Struct, rename="pascal"):
    """Answer to `GET /containers/{name}/json`."""

    state: _State
    oci_runtime: str = field(name="OCIRuntime", default="")


class _ImageConfig(Struct, rename="pascal"):
    user: str = ""
    working_dir: str = ""


class InspectedImage(Struct, rename="pascal"):
    """Answer to `GET /images/{name}/json`."""

    config: _ImageConfig = field(default_factory=_ImageConfig)


class _Conmon(Struct):
    version: str


class _Runtime(Struct):
    name: str
    version: str


class _Security(Struct):
    rootless: bool


class _Host(Struct, rename="camel"):
    conmon: _Conmon
    oci_runtime: _Runtime
    security: _Security
    cgroup_version: str


class _Store(Struct, rename="camel"):
    graph_driver_name: str
    graph_root: str = ""


class _Version(Struct, rename="pascal"):
    version: str


class Info(Struct):
    """Answer to `GET /info`."""

    host: _Host
    store: _Store
    version: _Version


def make_client(url: str, timeout_s: float) -> APIClient:
    """A client for one thread: a requests session is not meant to be shared. It looks at no proxy variables."""
    client = APIClient(base_url=url, timeout=timeout_s)
    client.trust_env = False
    if client.base_url.scheme == "http+unix":
        client.mount("http://", _UnixAdapter(client.base_url.geturl(), timeout=timeout_s))
    return client


def answer(response: APIResponse, kind: type[T]) -> T:
    """The checked body of an answer.

    Raises:
        podman.errors.APIError: the engine refused.
        msgspec.MsgspecError: the body is not what it should be.
    """
    response.raise_for_status()
    return msgspec.json.decode(response.content, type=kind)


class _UnixConnection(UDSConnection):
    """podman-py's own leaves the socket open until it is collected when connecting fails (5.8.0)."""

    def connect(self) -> None:
        sock = UDSSocket(self.uds)
        try:
            sock.settimeout(self.timeout)
            sock.connect()  # type: ignore[no-untyped-call] # podman-py leaves it untyped
        except BaseException:
            sock.close()
            raise
        self.sock = sock


class _UnixPool(UDSConnectionPool):
    ConnectionCls = _UnixConnection


class _UnixAdapter(UDSAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)  # type: ignore[no-untyped-call] # podman-py leaves it untyped
        if self.poolmanager is not None:
            self.poolmanager.pool_classes_by_scheme = {"http": _UnixPool}
