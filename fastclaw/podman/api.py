"""Images and containers of one engine, asked for from the event loop and done by podman-py in threads.

Every call has a deadline, twice: the HTTP client's, so that no thread hangs for ever, and the loop's, so that the
caller does not. Knows no lanes or policies; `podman_client` turns what goes wrong into the product's errors.
"""

import asyncio
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote_plus

import msgspec
from msgspec import Struct
from podman.api.client import APIClient, APIResponse
from podman.errors import APIError

from fastclaw import engine_limits, limits
from fastclaw.errors import StartFailed
from fastclaw.podman.base_image import default_archive, make_image
from fastclaw.podman.podman_client import (
    ContainerState,
    Created,
    Info,
    Inspected,
    InspectedFiles,
    InspectedImage,
    Listed,
    ListedVolume,
    Top,
    answer,
    make_client,
    mapped_errors,
)
from fastclaw.podman.rest_lane.exec_calls import first_entry
from fastclaw.podman.service.plan import DEFAULT_IMAGE, FALLBACK_IMAGE
from fastclaw.podman.service.storage import give_up_reserve, has_room, keep_reserve

logger = logging.getLogger(__name__)

Pull = Literal["missing", "never", "always"]
T = TypeVar("T")

JSON = {"Content-Type": "application/json"}


class EngineVersion(Struct, frozen=True, kw_only=True):
    """What an engine is made of. `oci_runtime` is its default one, with the first line of its version."""

    podman: str
    conmon: str
    oci_runtime: str
    oci_runtime_version: str
    rootless: bool
    storage_driver: str
    storage: str
    cgroup_version: str


class EngineLifecycle:
    """An engine, asked for images, containers and volumes.

    Parameters:
        url: `unix:///…` or `tcp://host:port`.
        timeout_s: deadline of one call, in seconds.
        reserve: a file that is given up where a container cannot be removed for want of room (`storage.keep_reserve`).
    """

    def __init__(
        self, url: str, timeout_s: float = limits.ENGINE_TIMEOUT_MS / 1000, reserve: Path | None = None
    ) -> None:
        self.url: str = url
        self._reserve = reserve
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(engine_limits.LIFECYCLE_THREADS, "fastclaw-engine")
        self._local = threading.local()
        self._clients: list[APIClient] = []
        self._clients_lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}, {len(self._clients)} clients>"

    async def version(self) -> EngineVersion:
        """What the engine and its helpers are."""
        return _version(await self._run(lambda client: answer(client.get("/info"), Info)))

    async def ensure_image(self, reference: str, pull: Pull = "missing") -> None:
        """Return once the image is in the engine's storage.

        Parameters:
            pull: `missing` pulls where it is not there, `always` asks the registry first, `never` neither. The default
                image is made, never pulled.

        Raises:
            StartFailed: `image_not_found`, besides the reasons of every call.
        """
        if (pull != "always" or reference == DEFAULT_IMAGE) and await self.has_image(reference):
            return
        if pull == "never":
            raise StartFailed(
                f"image {reference} is not in the engine's storage and options.pull is never", "image_not_found"
            )
        if reference == DEFAULT_IMAGE:
            await self.make_image(reference)
        else:
            await self._pull(reference)

    async def make_image(self, reference: str, fallback: str = FALLBACK_IMAGE) -> None:
        """Make the default image under this name, of what is on this host.

        Parameters:
            fallback: pulled and taken where there is nothing.

        Raises:
            StartFailed: `image_not_found`: neither works; besides the reasons of every call.
        """
        try:
            with _told(f"making the image {reference}"):
                await self._run(lambda client: make_image(client, reference, default_archive()))
        except StartFailed as nothing:
            if nothing.reason != "image_not_found":
                raise
            await self._take(fallback, reference, nothing)

    async def _take(self, fallback: str, reference: str, nothing: StartFailed) -> None:
        try:
            await self.ensure_image(fallback)
        except StartFailed as error:
            words = [str(one).removeprefix(StartFailed.prefix) for one in (nothing, error)]
            raise StartFailed("; ".join(words), "image_not_found") from error
        path, params = f"/images/{quote_plus(fallback)}/tag", _name_and_tag(reference)
        await self._run(lambda client: client.post(path, params=params).raise_for_status())

    async def _pull(self, reference: str) -> None:
        with _told(f"pulling the image {reference}"):
            await self._run(lambda client: _pull(client, reference), engine_limits.PULL_TIMEOUT_MS / 1000)

    async def has_image(self, reference: str) -> bool:
        """Whether the image is in the engine's storage."""
        return await self._run(lambda client: _exists(client, f"/images/{quote_plus(reference)}/exists"))

    async def image_user(self, reference: str) -> str:
        """The user that an image names for its processes; empty where it names none."""
        return (await self._inspect_image(reference)).config.user

    async def image_directory(self, reference: str) -> str:
        """The directory in which an image starts its processes."""
        return (await self._inspect_image(reference)).config.working_dir or "/"

    async def image_id(self, reference: str) -> str:
        """The id of the image that has this name now."""
        return (await self._inspect_image(reference)).id

    async def image_files(self, spec: Mapping[str, Any], paths: Sequence[str]) -> list[str]:
        """The texts of small files in an image, by way of a container that never runs.

        Empty for what is not there, and for what is no file; links are followed inside the image.

        Parameters:
            spec: SpecGenerator JSON of a container of the image.
            paths: absolute.
        """
        return await self._run(lambda client: _image_files(client, spec, paths))

    async def _inspect_image(self, reference: str) -> InspectedImage:
        path = f"/images/{quote_plus(reference)}/json"
        return await self._run(lambda client: answer(client.get(path), InspectedImage))

    async def create_container(self, spec: Mapping[str, Any]) -> str:
        """Create a container and return its id. Cancelled or too late, what the engine still creates is removed again.

        Parameters:
            spec: SpecGenerator JSON, as from `container_spec.container_spec`.

        Raises:
            StartFailed: `image_not_found`, `bad_mount`; `engine_error` also where the engine takes another OCI runtime
                than `spec` names.
        """
        creation = _Creation(spec, self._remove)
        try:
            return await self._run(creation.run)
        except BaseException:
            created = creation.abandon()
            if created is not None:
                with suppress(RuntimeError):  # closed: the next `initialize` of the namespace removes it
                    self._threads.submit(lambda: self._remove(self._client(), created))
            raise

    async def start_container(self, container: str) -> None:
        """Start a container. Nothing happens for one that runs.

        Raises:
            StartFailed: `bad_mount`, `container_gone`, besides the reasons of every call.
        """
        await self._run(lambda client: client.post(f"/containers/{container}/start").raise_for_status())

    async def remove_container(self, container: str) -> None:
        """Kill and remove a container, by id or name, with its anonymous volumes; one that is gone is fine."""
        await self._run(lambda client: self._remove(client, container))

    def _remove(self, client: APIClient, container: str) -> None:
        """A container with `remove` set may be on its way out by itself; a failure counts once it stays for long.

        Raises:
            StartFailed: the disk is full, and its files stay there although the engine knows it no longer.
        """
        with self._room_for(lambda: client.post(f"/containers/{container}/stop", params={"timeout": "0"})):
            deadline = time.monotonic() + engine_limits.CONTAINER_GONE_MS / 1000
            params = {"force": "true", "timeout": "0", "v": "true"}
            while (response := client.delete(f"/containers/{container}", params=params)).status_code >= 400:
                if not _exists(client, f"/containers/{container}/exists"):
                    if _says_full(response):
                        raise StartFailed(f"the disk is full, and files of container {container[:12]} stay on it")
                    return
                if time.monotonic() > deadline:
                    response.raise_for_status()
                time.sleep(engine_limits.ENGINE_READY_POLL_MS / 1000)  # the engine sends no event when it is done

    @contextmanager
    def _room_for(self, stop: Callable[[], object]) -> Iterator[None]:
        """On a full disk Podman loses a container before it can remove its layer (4.3.1), which then stays for ever. So
        there must be room before it begins, and nothing that uses it up: what runs in the container is stopped first.
        """
        reserve = self._reserve
        if reserve is None or has_room(reserve.parent):
            yield
            return
        stop()
        give_up_reserve(reserve)
        yield
        keep_reserve(reserve)

    async def list_containers(self, labels: Mapping[str, str]) -> list[Listed]:
        """All containers, in any state, that carry every one of these labels."""
        params = {"all": "true", "filters": _label_filter(labels)}
        return await self._run(lambda client: answer(client.get("/containers/json", params=params), list[Listed]))

    async def inspect_container(self, container: str) -> ContainerState | None:
        """How a container is now, or None where there is none."""
        return await self._run(lambda client: _inspect(client, container))

    async def inspect_files(self, container: str) -> InspectedFiles:
        """How the engine has made a container: its OCI configuration, layers and mounts.

        Raises:
            StartFailed: `container_gone`, besides the reasons of every call.
        """
        path = f"/containers/{container}/json"
        return await self._run(lambda client: answer(client.get(path), InspectedFiles))

    async def create_volume(self, name: str, labels: Mapping[str, str], owner: str | None = None) -> None:
        """Make an empty named volume.

        Parameters:
            owner: `UID:GID` as the engine sees them; None is its root's.
        """
        options = {} if owner is None else {"o": "uid={},gid={}".format(*owner.split(":"))}
        body = msgspec.json.encode({"Name": name, "Label": dict(labels), "Options": options})
        await self._run(lambda client: client.post("/volumes/create", data=body, headers=JSON).raise_for_status())

    async def remove_volume(self, name: str) -> None:
        """Remove a volume with what is in it; one that is gone is fine."""
        await self._run(lambda client: _remove_volume(client, name))

    async def list_volumes(self, labels: Mapping[str, str]) -> list[ListedVolume]:
        """All volumes that carry every one of these labels."""
        params = {"filters": _label_filter(labels)}
        return await self._run(lambda client: answer(client.get("/volumes/json", params=params), list[ListedVolume]))

    async def count_processes(self, container: str) -> int:
        """How many processes run in a container, its init included.

        Raises:
            StartFailed: it does not run, besides the reasons of every call.
        """
        path = f"/containers/{container}/top"
        top = await self._run(lambda client: answer(client.get(path, params={"stream": "false"}), Top))
        return len(top.processes)

    async def aclose(self) -> None:
        """Close connections and threads. Idempotent. A thread that waits for the engine ends with its own deadline."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._clients_lock:
            for client in self._clients:
                client.close()
            self._clients.clear()

    async def _run(self, call: Callable[[APIClient], T], timeout_s: float | None = None) -> T:
        """One call in a thread, with its errors mapped."""
        seconds = timeout_s or self._timeout_s
        with mapped_errors(self.url, seconds):
            future = self._submit(call, seconds)
            async with asyncio.timeout(seconds + engine_limits.LIFECYCLE_TIMEOUT_SLACK_MS / 1000):
                return await asyncio.wrap_future(future)

    def _submit(self, call: Callable[[APIClient], T], seconds: float) -> Future[T]:
        def in_thread() -> T:
            client = self._client()
            client.timeout = seconds
            return call(client)

        return self._threads.submit(in_thread)

    def _client(self) -> APIClient:
        """This thread's own client."""
        client: APIClient | None = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = make_client(self.url, self._timeout_s)
            with self._clients_lock:
                self._clients.append(client)
        return client


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Say on the log that this goes on, where it takes long, so that it is not taken for hanging."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def tell(seconds: int) -> None:
        nonlocal timer
        logger.warning("%s: %d s so far", what, seconds)
        timer = loop.call_later(engine_limits.TELL_AGAIN_S, tell, seconds + engine_limits.TELL_AGAIN_S)

    timer = loop.call_later(engine_limits.TELL_FIRST_S, tell, engine_limits.TELL_FIRST_S)
    try:
        yield
    finally:
        timer.cancel()


class _Creation:
    """One create call, whose container is removed where the caller has given it up, by the thread or by the loop."""

    def __init__(self, spec: Mapping[str, Any], remove: Callable[[APIClient, str], None]) -> None:
        self._remove = remove
        self._name: str = spec.get("name", "")
        self._body = msgspec.json.encode(spec)
        self._runtime: str | None = spec.get("oci_runtime")
        self._lock = threading.Lock()
        self._abandoned = False
        self._created: str | None = None

    def run(self, client: APIClient) -> str:
        """In the thread: create; remove it at once where it has been given up."""
        response = client.post("/containers/create", data=self._body, headers=JSON)
        if self._name and _says_full(response):
            self._remove(client, self._name)  # what is left of it would stay for ever: its id is unknown
        created = answer(response, Created).id
        with self._lock:
            self._created = created
            abandoned = self._abandoned
        if abandoned:
            self._remove(client, created)
        else:
            self._check_runtime(client, created)
        return created

    def _check_runtime(self, client: APIClient, container: str) -> None:
        """Podman 4.3.1 ignores the field without a word, and a microVM asked for must not become a namespace."""
        if self._runtime is None:
            return
        given = answer(client.get(f"/containers/{container}/json"), Inspected).oci_runtime
        if given.rpartition("/")[2] != self._runtime.rpartition("/")[2]:
            raise StartFailed(
                f"the engine takes the OCI runtime {given} and not {self._runtime}; make it the engine's default "
                "(containers.conf, [engine] runtime)",
                "engine_error",
            )

    def abandon(self) -> str | None:
        """On the loop: give it up. Returns what was created before."""
        with self._lock:
            self._abandoned = True
            return self._created


def _says_full(response: APIResponse) -> bool:
    return response.status_code >= 400 and os.strerror(errno.ENOSPC).lower() in response.text.lower()


def _exists(client: APIClient, path: str) -> bool:
    response = client.get(path)
    if response.status_code == 404:
        return False
    response.raise_for_status()
    return True


def _name_and_tag(reference: str) -> dict[str, str]:
    """A colon may also come before a port."""
    name, _, tag = reference.rpartition(":")
    return {"repo": name, "tag": tag} if name and "/" not in tag else {"repo": reference, "tag": "latest"}


def _inspect(client: APIClient, container: str) -> ContainerState | None:
    try:
        state = answer(client.get(f"/containers/{container}/json"), Inspected).state
    except APIError:
        if _exists(client, f"/containers/{container}/exists"):
            raise
        return None
    return state


def _label_filter(labels: Mapping[str, str]) -> str:
    return msgspec.json.encode({"label": [f"{name}={value}" for name, value in labels.items()]}).decode()


def _remove_volume(client: APIClient, name: str) -> None:
    response = client.delete(f"/volumes/{quote_plus(name)}", params={"force": "true"})
    if response.status_code != 404:
        response.raise_for_status()


def _pull(client: APIClient, reference: str) -> None:
    response = client.post("/images/pull", params={"reference": reference, "quiet": "true"})
    response.raise_for_status()
    problem = _pull_error(response)
    if problem is not None:
        built = "; what you have built is in your own engine: set options.storage to host, or options.url"
        hint = built if reference.startswith("localhost") else ""
        raise StartFailed(f"cannot pull {reference}: {problem}{hint}", "image_not_found")


def _pull_error(response: APIResponse) -> str | None:
    """The engine answers 200 before it pulls and reports a failure as one of its lines."""
    for line in response.content.splitlines():
        problem: str = msgspec.json.decode(line, type=dict[str, Any]).get("error", "")
        if problem:
            return " ".join(problem.split())
    return None


def _version(info: Info) -> EngineVersion:
    return EngineVersion(
        podman=info.version.version,
        conmon=info.host.conmon.version,
        oci_runtime=info.host.oci_runtime.name,
        oci_runtime_version=info.host.oci_runtime.version.partition("\n")[0],
        rootless=info.host.security.rootless,
        storage_driver=info.store.graph_driver_name,
        storage=info.store.graph_root,
        cgroup_version=info.host.cgroup_version,
    )


def _image_files(client: APIClient, spec: Mapping[str, Any], paths: Sequence[str]) -> list[str]:
    container = answer(client.post("/containers/create", data=msgspec.json.encode(spec), headers=JSON), Created).id
    try:
        return [_text_of(client, container, path) for path in paths]
    finally:
        client.delete(f"/containers/{container}", params={"force": "true", "v": "true"}).raise_for_status()


def _text_of(client: APIClient, container: str, path: str) -> str:
    response = client.get(f"/containers/{container}/archive", params={"path": path}, stream=True)
    try:
        if response.status_code == 404:
            return ""
        response.raise_for_status()
        archive: bytes = response.raw.read(limits.SPAWN_FILE_BYTES)
    finally:
        response.close()
    return first_entry(archive).head.decode("utf-8", "replace")
