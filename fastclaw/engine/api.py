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
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote_plus

import msgspec
from podman.api.client import APIClient, APIResponse
from podman.errors import APIError

from fastclaw import engine_limits, limits
from fastclaw.engine import builds
from fastclaw.engine.dialects import PODMAN, Dialect, EngineVersion
from fastclaw.engine.flights import Flights
from fastclaw.engine.gate import Gate, Place
from fastclaw.engine.images import ImageFacts, Images, Pull
from fastclaw.engine.lost_containers import LostContainers
from fastclaw.engine.pace import Pace
from fastclaw.engine.podman_client import (
    START_IT,
    ContainerState,
    Created,
    Inspected,
    InspectedFiles,
    Line,
    Listed,
    ListedVolume,
    Top,
    answer,
    check,
    has_stumbled,
    is_refusal,
    is_timeout,
    mapped_errors,
)
from fastclaw.engine.service.plan import FALLBACK_IMAGE
from fastclaw.engine.service.storage import give_up_reserve, has_room, keep_reserve
from fastclaw.engine.threads import EngineThreads
from fastclaw.errors import StartFailed
from fastclaw.images import BuildImage
from fastclaw.progress import Tell

logger = logging.getLogger(__name__)

T = TypeVar("T")


class EngineKeeper(Protocol):
    """What keeps an engine running: for an engine of our own a `service.service.ManagedService`.

    Attributes:
        reserve: a file that is given up where a container cannot be removed for want of room (`storage.keep_reserve`).
        in_doubt: the engine may have left more than it tells, as it ended, or a call broke off, in the middle.
    """

    reserve: Path | None
    in_doubt: bool

    async def is_back(self) -> bool:
        """Whether the engine answers, now or soon."""

    async def clear(self, container: str) -> None:
        """End what an engine that died has left of a container that has been removed since."""


class EngineLifecycle:
    """An engine, asked for images, containers and volumes: one for all environments that use it.

    What changes something goes through a gate that is as wide as the engine is fast; short reads and fetches of images
    have gates of their own. Belongs to one loop.

    Parameters:
        url: `unix:///…` or `tcp://host:port`.
        timeout_s: deadline of one call from when it begins, in seconds; a call also fails when it waits for so long and
            none of its kind comes to an end meanwhile.
        keeper: of an engine of our own; None: that is the affair of another.
        dialect: how it is asked.
    """

    def __init__(
        self,
        url: str,
        timeout_s: float = limits.ENGINE_TIMEOUT_MS / 1000,
        keeper: EngineKeeper | None = None,
        dialect: Dialect = PODMAN,
    ) -> None:
        self.url: str = url
        self.dialect = dialect
        self._keeper = keeper
        self._advice = START_IT if keeper is None else "another one is being started; try again"
        self._half_started: set[str] = set()
        self._timeout_s = timeout_s
        self._threads = EngineThreads(lambda: dialect.client(url, timeout_s))
        self._changes = Gate(Pace(), timeout_s)
        self._reads = Gate(Pace((engine_limits.ENGINE_READS,)), timeout_s)
        self._fetches = Gate(Pace((engine_limits.ENGINE_FETCHES,)), engine_limits.PULL_TIMEOUT_MS / 1000)
        self._builds = Gate(Pace((engine_limits.ENGINE_BUILDS,)), engine_limits.IMAGE_TIMEOUT_MS / 1000)
        self._images = Images(self, dialect)
        self._lost = LostContainers(self._remove_whole)
        self._version: EngineVersion | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._steps: type[builds.StepGroup | builds.StepShm] | None = None  # of builds on this host
        self._asking: Flights[EngineVersion] = Flights()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}, {len(self._threads)} threads>"

    def health(self) -> dict[str, Any]:
        """The calls that change something: in flight, waiting, how many may be in flight now, how many in a second."""
        return {**self._changes.health(), "threads": len(self._threads), "lost": len(self._lost)}

    async def version(self) -> EngineVersion:
        """What the engine and its helpers are. Asked once: Podman runs three programs for it, one call at a time."""
        if self._version is None:
            self._version = await self._asking.share("version", self._ask_version)
        return self._version

    async def _ask_version(self) -> EngineVersion:
        is_socket = self.url.startswith("unix:")
        about = await self.read(lambda client: self.dialect.about(client, is_socket=is_socket))
        self._images.list_file = about.image_list
        self._steps = None if about.steps is None else builds.STEPS_BY[about.steps]
        return about.version

    async def ensure_image(
        self,
        reference: str,
        pull: Pull = "missing",
        tell: Tell | None = None,
        timeout_ms: int = engine_limits.PULL_TIMEOUT_MS,
    ) -> ImageFacts:
        """Return once the image is in the engine's storage, and what it is.

        Parameters:
            pull: `missing` pulls where it is not there, `always` asks the registry first, `never` neither. The default
                image is made, never pulled.
            tell: hears what the engine says of a pull.
            timeout_ms: of a pull.

        Raises:
            StartFailed: `image_not_found`, besides the reasons of every call.
        """
        return await self._images.ensure(reference, pull, tell, timeout_ms / 1000)

    async def build_image(self, request: BuildImage, tell: Tell | None = None) -> str:
        """Build an image; its id.

        Raises:
            StartFailed: `build_failed`, besides the reasons of every call.
            IoError: what is in the directory cannot be read.
        """
        await self.version()
        return await builds.build(self, request, tell, steps=None if self._steps is None else self._steps())

    async def load_images(self, archive: str, tell: Tell | None = None) -> list[str]:
        """Load the images of an archive on this host; a reference for each, or its id.

        Raises:
            IoError: `bad_archive`, or it cannot be read.
            StartFailed: the reasons of every call.
        """
        return await builds.load(self, archive, tell)

    async def make_image(self, reference: str, fallback: str = FALLBACK_IMAGE) -> None:
        """Make the default image under this name, of what is on this host.

        Parameters:
            fallback: pulled and taken where there is nothing.

        Raises:
            StartFailed: `image_not_found`: neither works; besides the reasons of every call.
        """
        await self._images.make(reference, fallback)

    async def image(self, reference: str) -> ImageFacts | None:
        """What an image in the engine's storage is now, or None where there is none of this name."""
        return await self._images.find(reference)

    async def image_id(self, reference: str) -> str:
        """The id of the image that has this name now.

        Raises:
            StartFailed: `image_not_found`, besides the reasons of every call.
        """
        found = await self.image(reference)
        if found is None:
            raise StartFailed(f"{reference}: no such image; pull it first or set options.pull", "image_not_found")
        return found.id

    async def image_files(self, image: ImageFacts, spec: Mapping[str, Any], paths: Sequence[str]) -> list[str]:
        """The texts of small files in an image, by way of a container that never runs; read once.

        Empty for what is not there, and for what is no file; links are followed inside the image.

        Parameters:
            spec: SpecGenerator JSON of such a container; its image is replaced.
            paths: absolute.
        """
        return await self._images.files(image, spec, paths)

    async def create_container(self, spec: Mapping[str, Any]) -> str:
        """Create a container and return its id. Cancelled or too late, what the engine still creates is removed again.

        Parameters:
            spec: SpecGenerator JSON, as from `container_spec.container_spec`.

        Raises:
            StartFailed: `image_not_found`, `bad_mount`; `engine_error` also where the engine takes another OCI runtime
                than `spec` names.
        """
        creation = _Creation(self.dialect, spec, self._remove, self._lost.add_from_thread)
        try:
            return await self.change("create", creation.run)
        except BaseException:
            created = creation.abandon()
            if created is not None:
                self._lost.add(created)
            raise

    async def start_container(self, container: str) -> None:
        """Start a container. Nothing happens for one that runs.

        Raises:
            StartFailed: `bad_mount`, `container_gone`, besides the reasons of every call.
        """
        path = f"/containers/{container}/start"
        self._half_started.add(container)
        await self.change("start", lambda client: check(client.post(path)), carries_on=True)
        self._half_started.discard(container)

    async def remove_container(self, container: str) -> None:
        """Kill and remove a container, by id or name, with its anonymous volumes; one that is gone is fine.

        Where no engine answers, it is removed as soon as one does, besides that this fails.
        """
        try:
            await self._surely(lambda: self._remove_whole(container))
        except StartFailed as error:
            if error.reason in {"engine_unavailable", "engine_timeout"}:
                self._lost.add(container)
            raise

    async def _surely(self, remove: Callable[[], Awaitable[object]]) -> None:
        """What fails since an engine of our own has ended is done by its successor: nobody would ask again."""
        try:
            await remove()
        except StartFailed as error:
            if error.reason != "engine_unavailable" or self._keeper is None or not await self._keeper.is_back():
                raise
            await remove()

    async def _remove_whole(self, container: str) -> bool:
        was_there = await self.change("remove", lambda client: self._remove(client, container))
        if container in self._half_started:
            self._half_started.discard(container)
            if self._keeper is not None and self._keeper.in_doubt:
                await self._keeper.clear(container)
        return was_there

    def _remove(self, client: APIClient, container: str) -> bool:
        """Whether there was one.

        A container with `remove` set may be on its way out by itself; a failure counts once it stays for long.

        Raises:
            StartFailed: the disk is full, and its files stay there although the engine knows it no longer.
        """
        with self._room_for(lambda: client.post(f"/containers/{container}/stop", params={"timeout": "0"})):
            deadline = time.monotonic() + engine_limits.CONTAINER_GONE_MS / 1000
            params = {"force": "true", "timeout": "0", "v": "true"}
            while (response := client.delete(f"/containers/{container}", params=params)).status_code >= 400:
                if not _exists(client, self.dialect.exists(container)):
                    if _says_full(response):
                        raise StartFailed(f"the disk is full, and files of container {container[:12]} stay on it")
                    return False
                if time.monotonic() > deadline:
                    check(response)
                time.sleep(engine_limits.ENGINE_READY_POLL_MS / 1000)  # the engine sends no event when it is done
            return True

    @contextmanager
    def _room_for(self, stop: Callable[[], object]) -> Iterator[None]:
        """On a full disk Podman loses a container before it can remove its layer (4.3.1), which then stays for ever. So
        there must be room before it begins, and nothing that uses it up: what runs in the container is stopped first.
        """
        reserve = None if self._keeper is None else self._keeper.reserve
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
        return await self.read(lambda client: answer(client.get("/containers/json", params=params), list[Listed]))

    async def inspect_container(self, container: str) -> ContainerState | None:
        """How a container is now, or None where there is none."""
        return await self.read(lambda client: _inspect(client, container, self.dialect.exists(container)))

    async def inspect_files(self, container: str) -> InspectedFiles:
        """How the engine has made a container: its OCI configuration, layers and mounts.

        Raises:
            StartFailed: `container_gone`, besides the reasons of every call.
        """
        path = f"/containers/{container}/json"
        return await self.read(lambda client: answer(client.get(path), InspectedFiles))

    async def create_volume(self, name: str, labels: Mapping[str, str], owner: str | None = None) -> None:
        """Make an empty named volume.

        Parameters:
            owner: `UID:GID` as the engine sees them; None is its root's.
        """
        await self.change("volume", lambda client: self.dialect.make_volume(client, name, labels, owner))

    async def remove_volume(self, name: str) -> None:
        """Remove a volume with what is in it; one that is gone is fine."""
        await self._surely(lambda: self.change("volume", lambda client: _remove_volume(client, name)))

    async def list_volumes(self, labels: Mapping[str, str]) -> list[ListedVolume]:
        """All volumes that carry every one of these labels."""
        return await self.read(lambda client: self.dialect.volumes(client, _label_filter(labels)))

    async def count_processes(self, container: str) -> int:
        """How many processes run in a container, its init included.

        Raises:
            StartFailed: it does not run, besides the reasons of every call.
        """
        path = f"/containers/{container}/top"
        top = await self.read(lambda client: answer(client.get(path, params={"stream": "false"}), Top))
        return len(top.processes)

    async def aclose(self) -> None:
        """Close connections and threads. Idempotent. A thread that waits for the engine goes on: see `join`."""
        if len(self._lost) and self._keeper is not None:
            self._keeper.in_doubt = True
        for task in self._ending:
            task.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)
        await self._lost.aclose()
        for gate in (self._changes, self._reads, self._fetches, self._builds):
            gate.close()
        self._threads.close()

    async def join(self) -> None:
        """Return when no thread waits for the engine any more; after `aclose`, and the end of an engine of our own.

        One that waits for longer than `engine_limits.ENGINE_THREADS_LEAVE_MS` ends with its own deadline.
        """
        await asyncio.to_thread(self._threads.join, engine_limits.ENGINE_THREADS_LEAVE_MS / 1000)

    # --- how the engine is asked ---

    async def read(self, call: Callable[[APIClient], T]) -> T:
        """Something short that changes nothing."""
        return await self._run(self._reads.enter("read"), _again(call), self._timeout_s)

    async def change(self, kind: str, call: Callable[[APIClient], T], *, carries_on: bool = False) -> T:
        """Something that changes what the engine has.

        Parameters:
            kind, carries_on: as for `Gate.enter`.
        """
        turn = self._changes.enter(kind, carries_on=carries_on)
        return await self._run(turn, _again(call), self._timeout_s)

    async def fetch(self, call: Callable[[APIClient], T]) -> T:
        """Something that may wait for another's disk."""
        return await self._run(self._fetches.enter("fetch"), call, self._timeout_s)

    def line(self, seconds: float = engine_limits.IMAGE_TIMEOUT_MS / 1000) -> Line:
        """A connection for one call that takes long, for so many seconds at the most."""
        return Line(self.dialect.client(self.url, seconds), seconds)

    async def pull(self, line: Line, call: Callable[[], T]) -> T:
        """A pull. Its connection is cut where nobody waits for it any more."""
        return await self._over(line, self._fetches.enter("fetch"), call)

    async def build(self, line: Line, call: Callable[[], T]) -> T:
        """A build or a load. Its connection is cut where nobody waits for it any more."""
        return await self._over(line, self._builds.enter("build"), call)

    async def see_to(self, line: Line, end: Coroutine[Any, Any, None]) -> None:
        """See that something comes to its end, and wait for that as long as a caller may wait."""
        task = asyncio.get_running_loop().create_task(_see_to(line, end))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        _, unfinished = await asyncio.wait((task,), timeout=engine_limits.BUILD_END_MS / 1000)
        if unfinished:
            logger.warning("the engine is still at a build that was given up")

    async def _over(self, line: Line, turn: Coroutine[Any, Any, Place], call: Callable[[], T]) -> T:
        try:
            return await self._run(turn, lambda _: _on_line(line, call), line.timeout_s)
        except BaseException:
            line.cut()
            raise

    async def _run(self, turn: Coroutine[Any, Any, Place], call: Callable[[APIClient], T], seconds: float) -> T:
        """One call in its turn, in a thread, with its errors mapped. Its place is taken until the thread is done."""
        with mapped_errors(self.url, seconds, self._advice):
            place = await turn
            try:
                future = self._threads.submit(partial(_in_time, call, seconds))
            except BaseException:
                place.leave(done=False)
                raise
            future.add_done_callback(partial(_leave_from_thread, asyncio.get_running_loop(), place))
            async with asyncio.timeout(seconds + engine_limits.LIFECYCLE_TIMEOUT_SLACK_MS / 1000):
                return await asyncio.wrap_future(future)


def _again(call: Callable[[APIClient], T]) -> Callable[[APIClient], T]:
    """A call that is made again where the engine stumbled over it. Podman 4.3.1 does now and then, over its own files,
    where services of one storage work at the same time.
    """

    def called(client: APIClient) -> T:
        for wait_ms in engine_limits.STUMBLE_WAITS_MS:
            try:
                return call(client)
            except APIError as error:
                if not has_stumbled(error):
                    raise
                logger.warning("the engine stumbled, and is asked again: %s", error.explanation)
            time.sleep(wait_ms / 1000)  # nothing tells when the others are done
        return call(client)

    return called


def _in_time(call: Callable[[APIClient], T], seconds: float, client: APIClient) -> T:
    client.timeout = seconds
    return call(client)


async def _see_to(line: Line, end: Coroutine[Any, Any, None]) -> None:
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(engine_limits.BUILD_END_MOST_MS / 1000):
                await end
    finally:
        line.put_off(False)


def _on_line(line: Line, call: Callable[[], T]) -> T:
    if not line.begin():
        raise StartFailed("it was given up before it began", "engine_unavailable")
    try:
        return call()
    finally:
        line.close()


def _leave_from_thread(loop: asyncio.AbstractEventLoop, place: Place, future: Future[Any]) -> None:
    error = None if future.cancelled() else future.exception()
    hung = error is not None and is_timeout(error)
    with suppress(RuntimeError):  # the loop has ended, and with it whoever waits
        loop.call_soon_threadsafe(partial(place.leave, done=not hung))


class _Creation:
    """One create call, whose container is removed where the caller has given it up, by the thread or by the loop."""

    def __init__(
        self,
        dialect: Dialect,
        spec: Mapping[str, Any],
        remove: Callable[[APIClient, str], object],
        lose: Callable[[str], None],
    ) -> None:
        self._dialect, self._spec = dialect, spec
        self._remove, self._lose = remove, lose
        self._name: str = spec.get("name", "")
        self._lock = threading.Lock()
        self._abandoned = self._has_begun = False
        self._created: str | None = None

    def run(self, client: APIClient) -> str:
        """In the thread: create; remove it at once where it has been given up. Called a second time, anew."""
        if self._has_begun and self._name:
            self._remove(client, self._name)
        self._has_begun = True
        created = self._create(client)
        with self._lock:
            self._created = created
            abandoned = self._abandoned
        if abandoned:
            self._give_back(client, created)
        else:
            self._dialect.check_created(client, created, self._spec)
        return created

    def _create(self, client: APIClient) -> str:
        try:
            response = self._dialect.create(client, self._spec)
            if self._name and _says_full(response):
                self._remove(client, self._name)  # what is left of it would stay for ever: its id is unknown
            return answer(response, Created).id
        except Exception as error:
            if self._name and not is_refusal(error):
                self._lose(self._name)
            raise

    def _give_back(self, client: APIClient, created: str) -> None:
        try:
            self._remove(client, created)
        except Exception:
            self._lose(created)
            raise

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
    check(response)
    return True


def _inspect(client: APIClient, container: str, exists: str) -> ContainerState | None:
    try:
        state = answer(client.get(f"/containers/{container}/json"), Inspected).state
    except APIError:
        if _exists(client, exists):
            raise
        return None
    return state


def _label_filter(labels: Mapping[str, str]) -> str:
    return msgspec.json.encode({"label": [f"{name}={value}" for name, value in labels.items()]}).decode()


def _remove_volume(client: APIClient, name: str) -> None:
    response = client.delete(f"/volumes/{quote_plus(name)}", params={"force": "true"})
    if response.status_code != 404:
        check(response)
