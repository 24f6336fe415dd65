"""podman-py's HTTP client for one thread, and the shape of the engine's answers that are used.

Knows the API's spelling (Podman 4.3.1 and later). Makes no decisions and maps no errors.
"""

import errno
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import msgspec
import requests
from msgspec import Struct, field
from podman.api.client import APIClient, APIResponse
from podman.api.uds import UDSAdapter, UDSConnection, UDSConnectionPool, UDSSocket
from podman.errors import APIError
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool
from urllib3.exceptions import ReadTimeoutError

from fastclaw.errors import StartFailed

T = TypeVar("T")

JSON = {"Content-Type": "application/json"}


class Created(Struct, rename="pascal"):
    """Answer to `POST /containers/create`."""

    id: str


class _Labelled(Struct, rename="pascal", kw_only=True):
    given: dict[str, str] | None = field(name="Labels", default=None)

    @property
    def labels(self) -> dict[str, str]:
        """Podman leaves them out, or says null, where there are none."""
        return self.given or {}


class Listed(_Labelled, rename="pascal", kw_only=True):
    """One entry of `GET /containers/json`."""

    id: str
    state: str


class ListedVolume(_Labelled, rename="pascal", kw_only=True):
    """One entry of `GET /volumes/json`."""

    name: str


class Top(Struct, rename="pascal"):
    """Answer to `GET /containers/{name}/top`."""

    processes: list[list[str]]


class ContainerState(Struct, rename="pascal"):
    """A container now. `pid` is that of its init in the engine's PID namespace, 0 when it does not run."""

    pid: int
    running: bool


class Inspected(Struct, rename="pascal"):
    """Answer to `GET /containers/{name}/json`."""

    state: ContainerState
    oci_runtime: str = field(name="OCIRuntime", default="")


class GraphDriver(Struct, rename="pascal"):
    """Where a container's root is on the engine's host, by the words of the storage driver."""

    name: str
    data: dict[str, str] | None = None


class MountPoint(Struct, rename="pascal"):
    """One mount of a container. `name` is that of a volume."""

    source: str = ""
    name: str = ""


class InspectedFiles(Struct, rename="pascal", kw_only=True):
    """Answer to `GET /containers/{name}/json`: how the engine has made a container."""

    state: ContainerState
    config_path: str = field(name="OCIConfigPath")
    graph_driver: GraphDriver
    mounts: list[MountPoint]


class _ImageConfig(Struct, rename="pascal"):
    user: str = ""
    working_dir: str = ""
    env: list[str] | None = None


class InspectedImage(Struct, rename="pascal"):
    """Answer to `GET /images/{name}/json`."""

    id: str
    config: _ImageConfig = field(default_factory=_ImageConfig)


class _Refusal(Struct):
    """The body of a refusal."""

    message: str


class _Conmon(Struct):
    version: str


class _Runtime(Struct):
    name: str
    version: str


class _Security(Struct):
    rootless: bool


class _Program(Struct):
    executable: str = ""


class EngineHost(Struct, rename="camel"):
    """What an engine says of its host."""

    conmon: _Conmon
    oci_runtime: _Runtime
    security: _Security
    cgroup_version: str
    cgroup_manager: str = ""
    cgroup_controllers: list[str] | None = None
    rootless_network_cmd: str | None = None
    slirp4netns: _Program | None = None
    pasta: _Program | None = None
    hostname: str = ""
    mem_total: int = 0


class _Store(Struct, rename="camel"):
    graph_driver_name: str
    graph_root: str = ""
    run_root: str = ""


class _Version(Struct, rename="pascal"):
    version: str


class Info(Struct):
    """Answer to `GET /info`."""

    host: EngineHost
    store: _Store
    version: _Version


def make_client(url: str, timeout_s: float) -> APIClient:
    """A client for one thread: a requests session is not meant to be shared. It looks at no proxy variables."""
    client = APIClient(base_url=url, timeout=timeout_s)
    client.trust_env = False
    if client.base_url.scheme == "http+unix":
        client.mount("http://", _UnixAdapter(client.base_url.geturl(), timeout=timeout_s))
    return client


class Line:
    """The connection of one call that takes long, so that it can be cut from another thread, whatever it is at.

    Parameters:
        client: for that call alone.
        timeout_s: its deadline, in seconds.

    Attributes:
        is_closed: whether the call has come to its end.
        is_through: and the engine has said all that it had to say.
    """

    def __init__(self, client: APIClient, timeout_s: float) -> None:
        self.client, self.timeout_s = client, timeout_s
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_cut = self._is_put_off = self._has_begun = False
        self.is_closed = self.is_through = False
        for adapter in self.client.adapters.values():
            if isinstance(adapter, HTTPAdapter):
                pools = adapter.poolmanager
                pools.pool_classes_by_scheme = {
                    scheme: self._noting(pool) for scheme, pool in pools.pool_classes_by_scheme.items()
                }

    def _noting(self, pool: type[HTTPConnectionPool]) -> type[HTTPConnectionPool]:
        note = self._note

        class Connection(pool.ConnectionCls):  # type: ignore[name-defined,misc] # a base known at run time only
            def connect(self) -> None:
                super().connect()
                note(self.sock)

        return type(pool.__name__, (pool,), {"ConnectionCls": Connection})

    def _note(self, sock: socket.socket) -> None:
        with self._lock:
            self._socket = sock
            self._shut_if_due()

    def _shut_if_due(self) -> None:
        if self._is_cut and not self._is_put_off and self._socket is not None:
            with suppress(OSError):  # the other side was faster
                self._socket.shutdown(socket.SHUT_RDWR)

    def put_off(self, is_put_off: bool) -> None:
        """Whether a cut has to wait: for an engine that would not notice it now."""
        with self._lock:
            self._is_put_off = is_put_off
            self._shut_if_due()

    @property
    def is_cut(self) -> bool:
        """Whether nobody waits for it any more."""
        return self._is_cut

    def begin(self) -> bool:
        """In the thread: whether the call is still wanted."""
        with self._lock:
            self._has_begun = not self._is_cut
            return self._has_begun

    def cut(self) -> None:
        """End the call: who is at it finds its connection at its end, and who is not yet does not begin. Idempotent,
        from any thread."""
        with self._lock:
            self._is_cut = True
            self._shut_if_due()
            if not self._has_begun:
                self.is_closed = self.is_through = True

    def close(self) -> None:
        """In the thread that made the call: the connection is closed."""
        with self._lock:
            self._socket = None
            close_client(self.client)
            self.is_closed = True


def close_client(client: APIClient) -> None:
    """Close its connections now. By itself it leaves that to the collector, and an answer that is held holds one
    (urllib3 2.x, `PoolManager.clear`)."""
    for adapter in client.adapters.values():
        if isinstance(adapter, HTTPAdapter):
            pools = adapter.poolmanager.pools
            for key in list(pools.keys()):
                pools[key].close()
    client.close()


def check(response: APIResponse) -> None:
    """Raise what the engine refuses with.

    Raises:
        podman.errors.APIError: the engine refused.
        ValueError: in no words that podman-py can read (5.8.0: a TypeError for JSON that is no object).
    """
    try:
        response.raise_for_status()
    except TypeError as error:
        raise ValueError(f"status {response.status_code} with a body that is no object") from error


def answer(response: APIResponse, kind: type[T]) -> T:
    """The checked body of an answer.

    Raises:
        podman.errors.APIError: the engine refused.
        msgspec.MsgspecError: the body is not what it should be.
    """
    check(response)
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


IMAGE_WORDS = re.compile(r"no such image|image not known|image.*not found", re.IGNORECASE)
CONTAINER_WORDS = re.compile(r"no such container|no container with", re.IGNORECASE)
QUOTA_WORDS = re.compile(r"storage-opt", re.IGNORECASE)
FULL_WORDS = re.compile(re.escape(os.strerror(errno.ENOSPC)), re.IGNORECASE)
NETWORK_WORDS = re.compile(
    r"netavark|slirp4netns|\bpasta\b|setting up network|network namespace|rootless netns", re.IGNORECASE
)
TMPDIR_WORDS = re.compile(r"intermediate-mountpoint.*permission denied", re.IGNORECASE)
MOUNT_WORDS = re.compile(r"\bstatfs\b|\bmounts?(ing|ed)?\b|invalid (container|host) path", re.IGNORECASE)
"""Podman 4.3.1 gives no machine-readable cause for these: all are a 500 or 404 with a sentence."""

NO_PAGE = "page not found"
"""What Docker says of a path that is not its own."""


START_IT = "start it or change options.url"


@contextmanager
def mapped_errors(url: str, seconds: float, advice: str = START_IT) -> Iterator[None]:
    """Turn what podman-py raises into `StartFailed`.

    Parameters:
        url: the engine's, for the message.
        seconds: the deadline of the call, for the message.
        advice: what to do where no engine answers, for the message.
    """
    try:
        yield
    except (requests.RequestException, TimeoutError, ValueError, msgspec.MsgspecError) as error:
        raise to_start_failed(error, url, seconds, advice) from error


def to_start_failed(error: Exception, url: str, seconds: float, advice: str = START_IT) -> StartFailed:
    """The product's error for one of podman-py's."""
    chain = list(_chain(error))
    if is_timeout(error):
        return StartFailed(
            f"the engine at {url} did not answer within {seconds:g} s; look at its log or restart it", "engine_timeout"
        )
    answer = next((one for one in chain if isinstance(one, APIError) and one.status_code is not None), None)
    if answer is not None:
        return _refused(answer)
    if isinstance(error, requests.RequestException):
        return StartFailed(f"no engine answers at {url} ({_root(chain)}); {advice}", "engine_unavailable")
    return StartFailed(f"the engine at {url} gave an answer that makes no sense: {_line(error)}", "engine_error")


def is_timeout(error: BaseException) -> bool:
    """Whether the engine did not answer in time."""
    return any(isinstance(one, TimeoutError | requests.Timeout | ReadTimeoutError) for one in _chain(error))


def has_stumbled(error: APIError) -> bool:
    """Whether the engine says that the call ended in a fault of its own: Go's word for one, which Podman's service
    survives and answers with (pkg/api/server/handler_panic.go).
    """
    return error.status_code == 500 and message_of(str(error.explanation or error)).startswith("runtime error: ")


def is_refusal(error: BaseException) -> bool:
    """Whether the engine has answered that it does not do what was asked, or could not be asked at all: all else leaves
    open whether it does."""
    return any(
        isinstance(one, ConnectionRefusedError | FileNotFoundError)
        or (isinstance(one, APIError) and (one.status_code or 0) >= 400)
        for one in _chain(error)
    )


def _refused(answer: APIError) -> StartFailed:
    text = message_of(str(answer.explanation or answer))
    if answer.status_code == 404 and text == NO_PAGE:
        return StartFailed("it is no Podman that answers; for Docker set options.runtime to docker", "unsupported")
    if QUOTA_WORDS.search(text):
        needs = "needs overlay on XFS that is mounted with pquota; leave it out or move options.state_dir"
        return StartFailed(f"the engine's storage keeps no quota: options.disk_bytes {needs}", "unsupported")
    if FULL_WORDS.search(text):
        return StartFailed(f"{text}; make room (fastclaw doctor says how full the disk is)", "engine_error")
    if NETWORK_WORDS.search(text):
        return StartFailed(f"{text}; fastclaw doctor says what mode open needs here", "network_failed")
    if IMAGE_WORDS.search(text):
        return StartFailed(f"{text}; pull it first or set options.pull to missing", "image_not_found")
    if CONTAINER_WORDS.search(text):
        return StartFailed(text, "container_gone")
    if TMPDIR_WORDS.search(text):
        return StartFailed(f"{text}; set TMPDIR to a directory that others may enter", "engine_error")
    if MOUNT_WORDS.search(text):
        return StartFailed(f"{text}; check options.workspace", "bad_mount")
    return StartFailed(text, "engine_error")


def message_of(text: str) -> str:
    """What an engine refuses with, in one line: Docker's body has a message and nothing else, which podman-py leaves as
    it is."""
    with suppress(msgspec.MsgspecError):
        text = msgspec.json.decode(text, type=_Refusal).message
    return _line(text)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it was raised from, and what urllib3 and requests pack into its arguments."""
    while error is not None:
        yield error
        yield from (part for part in getattr(error, "args", ()) if isinstance(part, BaseException))
        error = error.__cause__ or error.__context__


def _root(chain: list[BaseException]) -> str:
    system = next((one for one in reversed(chain) if isinstance(one, OSError) and one.strerror), None)
    broken = next((one for one in reversed(chain) if isinstance(one, ConnectionError)), chain[0])  # without a strerror
    return system.strerror if system is not None and system.strerror else _line(broken)


def _line(text: object) -> str:
    return " ".join(str(text).split())
