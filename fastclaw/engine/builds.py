"""Images that are built from a directory or loaded from an archive: what the engine is sent, and what it says.

A build that is given up is ended to its last process. Podman 4.3.1 ends one whose client has left only after its step
(pkg/api/handlers/compat/images_build.go: the context of the request ends, the command of a RUN does not notice), so the
steps of a build have something by which they are known, and are killed; then the engine cleans up.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import os
import re
import secrets
import signal
import stat
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec
import requests
from podman.errors import APIError

from fastclaw import engine_limits
from fastclaw.engine.build_context import Archive, BuildContext
from fastclaw.engine.dialects import TAR
from fastclaw.engine.news import News, Output, lines_of
from fastclaw.engine.podman_client import check
from fastclaw.engine.service.janitor_main import STEPS, has_shm, shm_kib
from fastclaw.errors import IoError, StartFailed
from fastclaw.limits import KIB
from fastclaw.linux import proc
from fastclaw.linux.cgroups import CGROUPS
from fastclaw.linux.proc import this_process
from fastclaw.processes.file_helper import error_for
from fastclaw.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping

    from podman.api.client import APIClient

    from fastclaw.engine.dialects import Dialect
    from fastclaw.engine.podman_client import Line
    from fastclaw.images import BuildImage
    from fastclaw.progress import Tell

T = TypeVar("T")

GZIP = b"\x1f\x8b"

_ID = re.compile(r"^[0-9a-f]{64}$", re.MULTILINE)
_NO_NETWORK = re.compile(r"\b(netavark|cni|slirp4netns|pasta)\b", re.IGNORECASE)
"""Who makes the engine's networks, and is named where one cannot be made."""


class Calls(Protocol):
    """How the engine is asked."""

    @property
    def dialect(self) -> Dialect:
        """In which words."""

    async def read(self, call: Callable[[APIClient], T]) -> T:
        """Something short that changes nothing."""

    def line(self) -> Line:
        """A connection for one call that takes long."""

    async def build(self, line: Line, call: Callable[[], T]) -> T:
        """Such a call. Its connection is cut where nobody waits for it any more."""

    async def see_to(self, line: Line, end: Coroutine[Any, Any, None]) -> None:
        """See that something comes to its end, and wait for that as long as a caller may wait."""


async def build(calls: Calls, request: BuildImage, tell: Tell | None, *, steps: Steps | None) -> str:
    """Build an image; its id.

    Parameters:
        steps: what they are known by, where they run on this host.

    Raises:
        StartFailed: `build_failed`, besides the reasons of every call.
        IoError: what is in the directory cannot be read.
    """
    context = await asyncio.to_thread(BuildContext.open, request.directory, request.file)
    params = {**_params(request, context, steps), **calls.dialect.build_words(request)}
    news, line = News(tell), calls.line()
    others = await calls.read(calls.dialect.building)
    try:
        return await calls.build(line, lambda: _build(calls.dialect, line, params, context, news))
    except BaseException as error:
        if isinstance(error, StartFailed) and error.reason == "engine_unavailable":  # whose steps would go on alone
            await asyncio.to_thread(steps.end if steps is not None else bool)
        elif not line.is_through:
            await calls.see_to(line, _end(calls, line, others, steps))
        raise
    finally:
        if steps is not None:
            steps.remove()


def _params(request: BuildImage, context: BuildContext, steps: Steps | None) -> dict[str, str]:
    params = {
        "dockerfile": context.containerfile,
        "rm": "true",
        "forcerm": "true",
        "buildargs": msgspec.json.encode(request.args).decode(),
    }
    more = {"t": request.tag, "target": request.target, **({} if steps is None else steps.params)}
    return params | {name: value for name, value in more.items() if value is not None}


def _build(dialect: Dialect, line: Line, params: dict[str, str], context: BuildContext, news: News) -> str:
    """In the thread."""
    archive = context.archive(lambda: line.is_cut)
    try:
        return _built(dialect, line, params, archive, news)
    except (StartFailed, requests.RequestException) as error:
        if archive.error is not None:
            raise archive.error from error
        raise


def _built(dialect: Dialect, line: Line, params: dict[str, str], archive: Archive, news: News) -> str:
    """An engine that is sent something, or unpacks it, does not notice who leaves; and what it says of an archive that
    was spoiled is the proof that it has nothing of it any more."""
    line.put_off(True)
    body: Any = _sent(archive, news)  # an iterator, of which podman-py's annotations do not know
    response = line.client.post("/build", params=params, data=body, headers=TAR, stream=True)
    try:
        line.put_off(archive.is_spoiled)
        output, error, built = Output(news), dialect.why_no_build(response), ""
        if error:
            line.is_through = True
            raise _failed(error, output)
        check(response)
        for said in lines_of(response):
            output.add(said.stream)
            error, built = said.error or error, said.aux.id or built
        output.close()
        line.is_through = True
    finally:
        response.close()
    if error:
        raise _failed(error, output)
    found = [*_ID.findall(output.tail), *filter(None, [built])]
    if not found:
        raise StartFailed("the engine ended the build without a word; look at its log", "engine_error")
    return str(found[-1])


def _sent(chunks: Iterable[bytes], news: News) -> Iterator[bytes]:
    done = 0
    for chunk in chunks:
        yield chunk
        done += len(chunk)
        news(Progress(done=done))


def _failed(error: str, output: Output) -> StartFailed:
    text = " ".join(error.split())
    last = output.last_line
    said = "" if not last or last.upper().startswith("STEP ") or text.endswith(last) else f": {last}"
    if _NO_NETWORK.search(text):
        said = f"{said}; see fastclaw doctor for network mode open, or give the build the network none or host"
    return StartFailed(f"the build failed: {text}{said}", "build_failed", output=output.tail)


async def _end(calls: Calls, line: Line, others: set[str], steps: Steps | None) -> None:
    """Return when the engine is through with a build that was given up: it says so, or a container of it was there and
    is gone, or for some time there is none. After a step that was ended there is no other, but one may begin as the
    client leaves.
    """
    seen: set[str] = set()
    calm_since = float("inf")
    loop = asyncio.get_running_loop()
    while not line.is_through:
        has_step = steps is not None and await asyncio.to_thread(steps.end)
        working = await _working_but(calls, others)
        seen |= working
        if line.is_closed and not has_step and (seen - working or not seen):
            calm_since = min(calm_since, loop.time())
            if seen or loop.time() >= calm_since + engine_limits.BUILD_CALM_MS / 1000:
                return
        else:
            calm_since = float("inf")
        await asyncio.sleep(engine_limits.BUILD_LOOK_MS / 1000)


async def _working_but(calls: Calls, others: set[str]) -> set[str]:
    with suppress(StartFailed, RuntimeError):  # the engine is gone, and works no more; or nobody asks it any more
        return await calls.read(calls.dialect.building) - others
    return set()


class Steps(Protocol):
    """What the steps of one build are known by on this host, also to a janitor.

    Attributes:
        params: how the engine is told.
    """

    params: Mapping[str, str]

    def end(self) -> bool:
        """Kill them; whether there were some."""

    def remove(self) -> None:
        """What was made for them, once nothing of them runs."""


class StepShm(Steps):
    """The size of their /dev/shm: where the engine puts them into no control group that we name."""

    _numbers = itertools.count()

    def __init__(self) -> None:
        self._kib = shm_kib(this_process().label, next(self._numbers))
        self.params = {"shmsize": str(self._kib * KIB)}

    def end(self) -> bool:
        """Kill those that have it; whether there were some."""
        found = [pid for pid in proc.pids() if has_shm(pid, {self._kib})]
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(found)

    def remove(self) -> None:
        """Nothing: it was its container's."""


class StepGroup(Steps):
    """A control group of their own."""

    def __init__(self) -> None:
        self.path = f"/{this_process().table_prefix}{STEPS}{secrets.token_hex(4)}"
        self.params = {"cgroupparent": self.path}

    def end(self) -> bool:
        """Kill what is in it, else remove it; whether there was something."""
        folders = self._folders()
        found = {pid for folder in folders for file in folder.rglob("cgroup.procs") for pid in _numbers(file)}
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            self.remove()
        return bool(found)

    def remove(self) -> None:
        """Crun does it too; runc, which Docker has, leaves the one above its own."""
        for folder in self._folders():
            with suppress(OSError):
                folder.rmdir()

    def _folders(self) -> list[Path]:
        hierarchies = (CGROUPS, *CGROUPS.iterdir())  # of version 1 there are several
        return [path for one in hierarchies if (path := Path(f"{one}{self.path}")).is_dir()]


STEPS_BY: Mapping[str, type[StepGroup | StepShm]] = {"group": StepGroup, "shm": StepShm}


def _numbers(file: Path) -> list[int]:
    try:
        return [int(line) for line in file.read_text().split()]
    except OSError:  # it is gone
        return []


# --- archives ---


async def load(calls: Calls, archive: str, tell: Tell | None) -> list[str]:
    """Load the images of an archive; a reference for each, or its id.

    Raises:
        IoError: `bad_archive`, or it cannot be read.
        StartFailed: the reasons of every call.
    """
    news, line = News(tell), calls.line()
    return await calls.build(line, lambda: _load(calls.dialect, line, Path(archive), news))


def _load(dialect: Dialect, line: Line, path: Path, news: News) -> list[str]:
    with _opened(path) as file:
        body: Any = _read(file, path, news)  # as in `_built`
        try:
            return dialect.load(line.client, body)
        except APIError as error:
            if not dialect.bad_archive.search(str(error.explanation or error)):
                raise
            raise _bad(path) from error


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """A regular file; what would keep its reader waiting is refused."""
    with _errors_of(path):
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise IoError(f"{path}: it is no regular file", "not_regular", path=str(path), errno=None)
    with open(fd, "rb", buffering=0) as file:
        yield file


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _bad(path) from error
    except OSError as error:
        raise error_for(error, str(path)) from error


def _read(file: IO[bytes], path: Path, news: News) -> Iterator[bytes]:
    """As it is sent: Podman 4.3.1 takes a docker-archive that xz or zstd has compressed, and not one of gzip's."""
    with _errors_of(path):
        total = os.fstat(file.fileno()).st_size
        is_gzip = os.pread(file.fileno(), len(GZIP), 0) == GZIP
        source = gzip.GzipFile(fileobj=file) if is_gzip else file
        while chunk := source.read(engine_limits.IMAGE_CHUNK_BYTES):
            yield chunk
            news(Progress(done=file.tell(), total=total))


def _bad(path: Path) -> IoError:
    text = f"{path}: it is neither a docker-archive nor an oci-archive"
    return IoError(text, "bad_archive", path=str(path), errno=None)
