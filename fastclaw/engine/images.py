"""Images of one engine, asked for once: what they are, how they get into its storage, which files are in them.

What is known of an image is believed for as long as it can be proven: on this host the engine's list of images
(`images.json` of containers/storage, written anew by every Podman that adds, removes or names an image) has not been
touched since. Where that list is not to be seen from here, as with a remote engine, the engine is asked each time.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar
from urllib.parse import quote_plus

from msgspec import Struct

from fastclaw import engine_limits, limits
from fastclaw.engine.base_image import default_archive
from fastclaw.engine.docker_spec import name_and_tag
from fastclaw.engine.flights import Flights
from fastclaw.engine.news import News, Output, lines_of
from fastclaw.engine.podman_client import Created, InspectedImage, answer, check
from fastclaw.engine.rest_lane.exec_calls import first_entry
from fastclaw.engine.service.plan import DEFAULT_IMAGE, FALLBACK_IMAGE
from fastclaw.errors import StartFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from podman.api.client import APIClient

    from fastclaw.engine.dialects import Dialect
    from fastclaw.engine.podman_client import Line
    from fastclaw.progress import Progress, Tell

logger = logging.getLogger(__name__)

Pull = Literal["missing", "never", "always"]
T = TypeVar("T")


class ImageFacts(Struct, frozen=True, kw_only=True):
    """An image, as it was when the engine was asked.

    Parameters:
        id: names this very image, whatever its tags come to mean.
        user: whom it names for its processes; empty where it names none.
        working_dir: where its processes start.
        env: `NAME=value` of its processes.
    """

    id: str
    user: str
    working_dir: str
    env: tuple[str, ...]


class Calls(Protocol):
    """How the engine is asked: each call in its turn, in a thread, with its errors mapped."""

    async def read(self, call: Callable[[APIClient], T]) -> T:
        """Something short that changes nothing."""

    async def change(self, kind: str, call: Callable[[APIClient], T]) -> T:
        """Something that changes what the engine has."""

    async def fetch(self, call: Callable[[APIClient], T]) -> T:
        """Something that may wait for another's disk."""

    def line(self, seconds: float) -> Line:
        """A connection for one call that takes long, for so many seconds at the most."""

    async def pull(self, line: Line, call: Callable[[], T]) -> T:
        """Such a call. Its connection is cut where nobody waits for it any more."""


class Images:
    """The images of an engine. Concurrent calls for the same are one.

    Parameters:
        calls: how the engine is asked.
        dialect: in which words.

    Attributes:
        list_file: the engine's list of images, once it is known to be on this host.
    """

    def __init__(self, calls: Calls, dialect: Dialect) -> None:
        self._calls, self._dialect = calls, dialect
        self._known: dict[str, tuple[_Stamp, ImageFacts]] = {}
        self._files: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        self._asking: Flights[ImageFacts | None] = Flights()
        self._fetching: Flights[None] = Flights()
        self._reading: Flights[list[str]] = Flights()
        self._hearers: dict[str, list[Tell]] = {}
        self.list_file: Path | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self._known)} known, {self._fetching!r}>"

    async def find(self, reference: str) -> ImageFacts | None:
        """What an image is now, or None where there is none of this name."""
        path = self.list_file
        stamp = None if path is None else _stamp_of(path)
        if path is None or stamp is None:
            return await self._asking.share_next(reference, lambda: self._ask(reference))
        known = self._known.get(reference)
        if known is not None and known[0] == stamp:
            return known[1]
        return await self._asking.share((reference, stamp), lambda: self._ask_and_keep(reference, path, stamp))

    async def _ask(self, reference: str) -> ImageFacts | None:
        return await self._calls.read(lambda client: _inspect(client, reference))

    async def _ask_and_keep(self, reference: str, path: Path, stamp: _Stamp) -> ImageFacts | None:
        """The stamp is older than the answer: a change in between makes the next call ask again."""

        def ask(client: APIClient) -> tuple[ImageFacts | None, bool]:
            facts = _inspect(client, reference)
            return facts, facts is not None and _lists(path, facts)

        facts, is_listed = await self._calls.read(ask)
        if facts is not None and is_listed:
            _keep(self._known, reference, (stamp, facts))
        return facts

    async def ensure(
        self,
        reference: str,
        pull: Pull,
        tell: Tell | None = None,
        seconds: float = engine_limits.PULL_TIMEOUT_MS / 1000,
    ) -> ImageFacts:
        """As `EngineLifecycle.ensure_image`. Who shares a pull shares the deadline of its first caller."""
        if (pull != "always" or reference == DEFAULT_IMAGE) and (found := await self.find(reference)) is not None:
            return found
        if pull == "never":
            raise StartFailed(
                f"image {reference} is not in the engine's storage and options.pull is never", "image_not_found"
            )
        with self._hearing(reference, tell):
            if pull == "always" and reference != DEFAULT_IMAGE:
                await self._fetching.share_next(reference, lambda: self._pull(reference, seconds))
            else:
                await self._fetching.share(reference, lambda: self._fetch_missing(reference, seconds))
        found = await self.find(reference)
        if found is None:
            raise StartFailed(f"image {reference} went as soon as it was there; try again", "image_not_found")
        return found

    @contextmanager
    def _hearing(self, reference: str, tell: Tell | None) -> Iterator[None]:
        """For the block: also this one is told of a pull, whoever began it."""
        hearers = self._hearers.setdefault(reference, [])
        hearers += [] if tell is None else [tell]
        try:
            yield
        finally:
            if tell is not None:
                hearers.remove(tell)
            if not hearers:
                self._hearers.pop(reference, None)

    def _tell(self, reference: str, told: Progress) -> None:
        for tell in tuple(self._hearers.get(reference, ())):
            tell(told)

    async def _fetch_missing(self, reference: str, seconds: float) -> None:
        if await self.find(reference) is not None:
            return  # another call has just fetched it
        if reference == DEFAULT_IMAGE:
            await self.make(reference)
        else:
            await self._pull(reference, seconds)

    async def make(self, reference: str, fallback: str = FALLBACK_IMAGE) -> None:
        """As `EngineLifecycle.make_image`."""
        try:
            with _told(f"making the image {reference}"):
                await self._calls.fetch(lambda client: self._dialect.import_image(client, reference, default_archive()))
        except StartFailed as nothing:
            if nothing.reason != "image_not_found":
                raise
            await self._take(fallback, reference, nothing)

    async def _take(self, fallback: str, reference: str, nothing: StartFailed) -> None:
        try:
            await self.ensure(fallback, "missing", partial(self._tell, reference))
        except StartFailed as error:
            words = [str(one).removeprefix(StartFailed.prefix) for one in (nothing, error)]
            raise StartFailed("; ".join(words), "image_not_found") from error
        name, tag = name_and_tag(reference)
        path, params = f"/images/{quote_plus(fallback)}/tag", {"repo": name, "tag": tag}
        await self._calls.change("tag", lambda client: check(client.post(path, params=params)))

    async def _pull(self, reference: str, seconds: float) -> None:
        line, news = self._calls.line(seconds), News(partial(self._tell, reference))
        with _told(f"pulling the image {reference}"):
            await self._calls.pull(line, lambda: _pull(self._dialect, line, reference, news))

    async def files(self, image: ImageFacts, spec: Mapping[str, Any], paths: Sequence[str]) -> list[str]:
        """As `EngineLifecycle.image_files`."""
        key = (image.id, tuple(paths))
        if key not in self._files:
            read = partial(_image_files, dialect=self._dialect, spec={**spec, "image": image.id}, paths=paths)
            _keep(self._files, key, await self._reading.share(key, lambda: self._calls.change("files", read)))
        return self._files[key]


_Stamp = tuple[int, int, int]


def _stamp_of(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _lists(path: Path, facts: ImageFacts) -> bool:
    """Whether it is this list that has the image, and not that of another storage (`additionalimagestores`)."""
    try:
        return facts.id.encode() in path.read_bytes()
    except OSError:
        return False


K = TypeVar("K")


def _keep(known: dict[K, T], key: K, value: T) -> None:
    """In the place of the oldest where there are too many."""
    if len(known) >= engine_limits.KNOWN_IMAGES:
        del known[next(iter(known))]
    known[key] = value


def _inspect(client: APIClient, reference: str) -> ImageFacts | None:
    response = client.get(f"/images/{quote_plus(reference)}/json")
    if response.status_code == 404:
        return None
    found = answer(response, InspectedImage)
    config = found.config
    return ImageFacts(id=found.id, user=config.user, working_dir=config.working_dir or "/", env=tuple(config.env or ()))


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


def _pull(dialect: Dialect, line: Line, reference: str, news: News) -> None:
    """The engine answers 200 before it pulls and reports a failure as one of its lines."""
    response = dialect.pull(line.client, reference)
    try:
        check(response)
        output, problem = Output(news), ""
        for said in lines_of(response):
            output.add(said.text)
            problem = problem or " ".join(said.error.split())
        output.close()
    finally:
        response.close()
    if problem:
        built = "; what you have built is in your own engine: set options.storage to host, or options.url"
        hint = built if reference.startswith("localhost") or "short-name" in problem else ""
        raise StartFailed(f"cannot pull {reference}: {problem}{hint}", "image_not_found")


def _image_files(client: APIClient, dialect: Dialect, spec: Mapping[str, Any], paths: Sequence[str]) -> list[str]:
    container = answer(dialect.create(client, spec), Created).id
    try:
        return [_text_of(client, container, path) for path in paths]
    finally:
        check(client.delete(f"/containers/{container}", params={"force": "true", "v": "true"}))


def _text_of(client: APIClient, container: str, path: str) -> str:
    response = client.get(f"/containers/{container}/archive", params={"path": path}, stream=True)
    try:
        if response.status_code == 404:
            return ""
        check(response)
        archive: bytes = response.raw.read(limits.SPAWN_FILE_BYTES, decode_content=True)  # Docker sends gzip
    finally:
        response.close()
    return first_entry(archive).head.decode("utf-8", "replace")
