"""The three calls of one exec (create, start, inspect), and confirmation that the command runs, or why it does not.

Owns the paths and bodies of the API for execs, and the one seam where OSError, TimeoutError and broken HTTP
become the contract's words. It does not know of pipes, relays or exit records.

Podman's header of a hijacked start proves nothing; what does:

- inspect names a pid: the OCI runtime's checks have passed. Inspect waits for the container's lock, so it answers once
  the start is through.
- on this host, the pid carries the exec's marker in its environment: execve has happened.
- stdout came, or stderr that is no engine text.

Where the command has ended before any of this was seen, its whole output is read (it has ended: the bytes are there)
and judged by `engine_errors`. What was read is handed on, so nothing is lost.

Where a start is refused for a file, the engine is asked for the beginning of that file and of those it needs as an
archive (what `podman cp` does), so a path is resolved inside, and nothing of the container's is opened here; on the
spawn lane program.c does that. It does not know of users: of rights it sees the mode only.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import os
import posixpath
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple, TypeVar
from urllib.parse import quote

import msgspec
import orjson

from fastclaw import engine_limits, limits
from fastclaw.engine.dialects import PODMAN
from fastclaw.engine.rest_lane import engine_errors
from fastclaw.engine.rest_lane.demux import STDERR, STDOUT, Demultiplexer
from fastclaw.engine.rest_lane.http_client import HttpClient, Response, Upgraded
from fastclaw.errors import ExecFailed, ProtocolError
from fastclaw.linux.executable import Finding, interpreter_of, loader_of, why_refused
from fastclaw.linux.proc import has_variable, wait_status
from fastclaw.linux.sockets import is_readable
from fastclaw.processes.lane import PROCESS_ID_VARIABLE

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from fastclaw.engine.dialects import Dialect
    from fastclaw.processes.lane import StartSpec

T = TypeVar("T")

DETACH_KEYS = ",".join(("ctrl-_", "ctrl-^", "ctrl-\\", "ctrl-]") * 4)
"""Podman always looks for a key sequence in stdin, and "" means its default. It compares reads of exactly one byte
(containers/common, pkg/util/copy.go): sixteen in a row do not happen. A lone 0x1f may wait for the next byte."""

_START_BODY = b'{"Detach":false,"Tty":false}'


class ExecState(msgspec.Struct, frozen=True, rename="pascal"):
    """What inspect says. `pid` is the host's number (of the engine's PID namespace); 0 before and, of Podman, after the
    run. `exit_code` before its end: Podman says a number, Docker none."""

    running: bool
    exit_code: int | None
    pid: int


class _Created(msgspec.Struct, frozen=True, rename="pascal"):
    id: str


class _ContainerState(msgspec.Struct, frozen=True, rename="pascal"):
    running: bool


class _Container(msgspec.Struct, frozen=True, rename="pascal"):
    state: _ContainerState


_STATE = msgspec.json.Decoder(ExecState)
_CONTAINER = msgspec.json.Decoder(_Container)
_CREATED = msgspec.json.Decoder(_Created)


class SessionGone(Exception):
    """The engine knows the container but no longer the exec session."""


def refuse_impossible(spec: StartSpec) -> None:
    """Refuse what crun would cut at the NUL, and what execve refuses only after the start was reported.

    Raises:
        ExecFailed: `invalid_params`, `too_long`, `not_found`.
    """
    strings = [*spec.cmd, *(f"{name}={value}" for name, value in spec.variables.items())]
    if any("\0" in text for text in (*strings, spec.working_dir or "", spec.user or "")):
        raise ExecFailed("a NUL byte cannot be passed to a process", "invalid_params")
    if sum(map(len, strings)) > limits.MAX_ARGS_BYTES:
        raise ExecFailed(f"command and environment are longer than {limits.MAX_ARGS_BYTES} bytes", "too_long")
    for text in strings:
        if len(text) >= limits.MAX_ARG_BYTES // 4 and len(text.encode(errors="surrogatepass")) >= limits.MAX_ARG_BYTES:
            raise ExecFailed(f"one argument or variable is longer than {limits.MAX_ARG_BYTES} bytes", "too_long")
    if not spec.cmd[0]:
        raise ExecFailed("the command is empty", "not_found")


def create_body(spec: StartSpec) -> bytes:
    """The create call's JSON for a spec.

    Raises:
        ExecFailed: `invalid_params`, where a string is no Unicode text (a lone surrogate).
    """
    body: dict[str, object] = {
        "AttachStdin": spec.stdin,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": False,
        "DetachKeys": DETACH_KEYS,
        "Cmd": spec.cmd,
        "Env": [f"{name}={value}" for name, value in spec.variables.items()],
    }
    if spec.working_dir is not None:
        body["WorkingDir"] = spec.working_dir
    if spec.user is not None:
        body["User"] = spec.user
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise ExecFailed("the engine takes only command lines and variables in UTF-8", "invalid_params") from error


class ExecCalls:
    """Calls on one engine.

    Parameters:
        url: as `HttpClient`.
        timeout_ms: deadline of each call.
        dialect: how the engine is asked.

    Attributes:
        keeps_pids: as `Dialect.keeps_pids`.
        exit_look_s: how often it is asked for the exit of a command whose streams are still held; None: not before they
            are at their end.

    Raises:
        ValueError: the URL has another form.
    """

    __slots__ = ("_api", "_client", "exit_look_s", "keeps_pids", "timeout_ms")

    def __init__(self, url: str, timeout_ms: int, dialect: Dialect = PODMAN) -> None:
        self._client = HttpClient(url)
        self._api, self.keeps_pids = dialect.api, dialect.keeps_pids
        self.exit_look_s = engine_limits.DOCKER_EXIT_LOOK_MS / 1000 if dialect.keeps_pids else None
        self.timeout_ms = timeout_ms

    def __repr__(self) -> str:
        return repr(self._client)

    def idle(self) -> int:
        """Connections that are kept for later."""
        return self._client.idle()

    def close(self) -> None:
        """Close the kept connections. Idempotent."""
        self._client.close()

    async def create(self, container_id: str, body: bytes) -> str:
        """Register an exec session; its id.

        Raises:
            ExecFailed: `container_gone`, `engine_timeout`, `engine_unavailable`, `engine_error`.
        """
        answer = await self._call("POST", f"{self._api}/containers/{container_id}/exec", body)
        return _decode(_CREATED, answer, 201, "create").id

    async def start(self, session: str) -> Upgraded:
        """Run a session and attach to it. That it answers does not mean that the command started.

        Raises:
            ExecFailed: as `create`, and `unknown_user`.
        """
        with _mapped_errors(self.timeout_ms):
            path = f"{self._api}/exec/{session}/start"
            answer = await self._client.upgrade("POST", path, _START_BODY, self.timeout_ms)
        if isinstance(answer, Response):
            raise _refusal(answer)
        return answer

    async def inspect(self, session: str) -> ExecState:
        """The session's state. During a start it waits for the start's end (the container's lock).

        Raises:
            SessionGone: the engine forgot it (`exit_command_delay` is over, or the container stopped).
            ExecFailed: as `create`.
        """
        answer = await self._call("GET", f"{self._api}/exec/{session}/json", None)
        if engine_errors.is_missing_session(answer.status, answer.body):
            raise SessionGone(session)
        return _decode(_STATE, answer, 200, "inspect")

    async def is_running(self, container_id: str) -> bool:
        """Whether the container itself runs.

        Raises:
            ExecFailed: as `create`.
        """
        answer = await self._call("GET", f"{self._api}/containers/{container_id}/json", None)
        return _decode(_CONTAINER, answer, 200, "inspect").state.running

    async def look_at(self, container_id: str, path: str) -> Seen:
        """What a file inside is, whose links the engine follows.

        Raises:
            ExecFailed: as `create`.
        """
        answer = await self._get(container_id, path, limits.PROGRAM_ARCHIVE_BYTES)
        if _is_nothing(answer):
            return Seen(errno.ENOENT, b"")
        if answer.status != 200:
            raise _refusal(answer)
        return first_entry(answer.body)

    async def get_archive(self, container_id: str, path: str, most: int) -> bytes | None:
        """What is there, as an archive, or so many bytes of it; None: there is nothing.

        Raises:
            ExecFailed: as `create`.
        """
        answer = await self._get(container_id, path, most)
        if _is_nothing(answer) and _NO_CONTAINER not in answer.body.lower():
            return None
        if answer.status != 200:
            raise _refusal(answer)
        return answer.body[:most]

    async def put_archive(self, container_id: str, directory: str, archive: bytes) -> int | None:
        """Unpack an archive there. What went wrong, as an errno; None: nothing.

        Raises:
            ExecFailed: as `create`.
        """
        answer = await self._call("PUT", self._archive(container_id, directory), archive)
        if answer.status == 200:
            return None
        text = answer.body.decode("utf-8", "replace").lower()
        found = [number for words, number in _PUT_ERRORS if words in text]
        if not found:
            raise _refusal(answer)
        return found[0]

    async def _get(self, container_id: str, path: str, most: int) -> Response:
        """Docker follows the links on the way to it, and says where the last one leads."""
        answer = await self._call("GET", self._archive(container_id, path), None, enough=most)
        if answer.status == 200 and _is_link(answer.body):
            target = _target_of(answer.headers.get(b"x-docker-container-path-stat", b""))
            return await self._call("GET", self._archive(container_id, target), None, enough=most)
        return answer

    def _archive(self, container_id: str, path: str) -> str:
        return f"{self._api}/containers/{container_id}/archive?path={quote(path, safe='')}"

    async def _call(self, method: str, path: str, body: bytes | None, *, enough: int | None = None) -> Response:
        with _mapped_errors(self.timeout_ms):
            return await self._client.request(method, path, body, self.timeout_ms, enough=enough)


_NO_CONTAINER = b"no such container"
_NO_DIRECTORY = b"not a directory"


class _PathStat(msgspec.Struct, frozen=True, rename="camel"):
    """What an engine says beside an archive (docs.docker.com, `GET /containers/{id}/archive`). The target is absolute,
    with no link in it."""

    link_target: str


def _target_of(header: bytes) -> str:
    try:
        return msgspec.json.decode(base64.b64decode(header), type=_PathStat).link_target
    except ValueError as error:
        raise ExecFailed(f"the engine does not say where a link leads: {error}") from error


def _is_nothing(answer: Response) -> bool:
    """Docker says 500 where something on the way is no directory."""
    return answer.status == 404 or (answer.status == 500 and _NO_DIRECTORY in answer.body)


def _is_link(archive: bytes) -> bool:
    return archive[156:157] == b"2"


_PUT_ERRORS = (
    ("no space left", errno.ENOSPC),
    ("disk quota", errno.EDQUOT),
    ("read-only file system", errno.EROFS),
    ("not a directory", errno.ENOTDIR),
    ("is a directory", errno.EISDIR),
    ("file name too long", errno.ENAMETOOLONG),
    ("no such file or directory", errno.ENOENT),
)


def _decode(decoder: msgspec.json.Decoder[T], answer: Response, expected: int, call: str) -> T:
    if answer.status != expected:
        raise _refusal(answer)
    try:
        return decoder.decode(answer.body)
    except (ValueError, RecursionError) as error:  # msgspec's own is a ValueError, and so is broken UTF-8
        raise ExecFailed(f"the engine's answer to {call} makes no sense: {error}") from error


def _refusal(answer: Response) -> ExecFailed:
    failure = engine_errors.refusal(answer.status, answer.body)
    return ExecFailed(failure.message, failure.reason)


@contextmanager
def _mapped_errors(timeout_ms: int) -> Iterator[None]:
    try:
        yield
    except ProtocolError as error:
        raise ExecFailed(f"the engine does not speak HTTP: {error}", "engine_error") from error
    except TimeoutError as error:
        raise ExecFailed(f"the engine did not answer within {timeout_ms} ms", "engine_timeout") from error
    except OSError as error:
        raise ExecFailed(f"the engine cannot be reached: {error.strerror or error}", "engine_unavailable") from error


# --- does it run? ---


class Started(NamedTuple):
    """A command that ran.

    Parameters:
        pid, pidfd: the command on this host, as long as it can be held; pidfd is None elsewhere.
        head: raw bytes of the stream read so far.
        exit_code: where it is known already.
        ended: it is over, as far as can be told.
    """

    pid: int
    pidfd: int | None
    head: bytes
    exit_code: int | None
    ended: bool


class _Head:
    """The beginning of a stream, read until it says enough."""

    def __init__(self, *, whole: bool) -> None:
        self._demultiplexer = Demultiplexer()
        self._whole = whole
        self.raw = self.stdout = self.stderr = b""
        self.stdout_seen = self.ended = False

    def feed(self, data: bytes) -> None:
        self.raw += data
        for stream, payload in self._demultiplexer.feed(memoryview(data)):
            self.stdout_seen = self.stdout_seen or stream == STDOUT
            if stream == STDERR:
                self.stderr += payload
            else:
                self.stdout += payload

    @property
    def says_enough(self) -> bool:
        """No engine text can come of this any more."""
        if self._whole:
            return self.ended
        return self.ended or self.stdout_seen or not engine_errors.may_be_failure(self.stderr)


async def confirm(
    calls: ExecCalls, session: str, sock: socket.socket, head: bytes, spec: StartSpec, *, local: bool
) -> Started:
    """Wait until the command is known to run or to have run.

    Parameters:
        sock, head: the hijacked connection and what was read of it; stays the caller's.
        local: the engine's pids are this host's.

    Raises:
        ExecFailed: it never ran, with the reason; or the engine failed; or `io_error`, where there is no descriptor for
            a pidfd. No pidfd is left open.
        SessionGone: as `ExecCalls.inspect`.
    """
    state = await _state_after_start(calls, session)
    if calls.keeps_pids and not state.pid:
        raise await _why_not_started(calls, sock, head, spec)
    had_pid = state.pid > 0 and (state.running or calls.keeps_pids)
    if had_pid and not local:
        return Started(0, None, head, None, ended=False)
    pidfd = _hold(state.pid) if had_pid and state.running else None
    try:
        if pidfd is not None and await _became_command(state.pid, pidfd, spec):
            return Started(state.pid, pidfd, head, None, ended=False)
        exit_code, raw = await _judge_ended(calls, session, sock, head, spec, had_pid=had_pid)
    except BaseException:
        if pidfd is not None:
            os.close(pidfd)
        raise
    return Started(state.pid, pidfd, raw, exit_code, ended=True)


async def _state_after_start(calls: ExecCalls, session: str) -> ExecState:
    """Podman answers once the start is through, Docker at any time."""
    state = await calls.inspect(session)
    try:
        async with asyncio.timeout(calls.timeout_ms / 1000):
            while not state.pid and state.exit_code is None:
                await asyncio.sleep(engine_limits.DOCKER_EXEC_LOOK_MS / 1000)
                state = await calls.inspect(session)
            return state
    except TimeoutError as error:
        raise ExecFailed(f"the engine did not start it within {calls.timeout_ms} ms", "engine_timeout") from error


async def _why_not_started(calls: ExecCalls, sock: socket.socket, leftover: bytes, spec: StartSpec) -> ExecFailed:
    head = await _read_head(sock, leftover, calls.timeout_ms, whole=True)
    failure = engine_errors.told_failure(spec.cmd[0], head.stdout)
    return ExecFailed(failure.message, failure.reason)


def _hold(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    except OSError as error:
        raise ExecFailed(f"no pidfd for the process: {error.strerror}", "io_error") from error


async def _became_command(pid: int, pidfd: int, spec: StartSpec) -> bool:
    """Whether execve has happened; False where the process ended before that was seen."""
    loop = asyncio.get_running_loop()
    entry = f"{PROCESS_ID_VARIABLE}={spec.process_id}".encode()
    give_up = loop.time() + limits.EXECVE_PROOF_MS / 1000
    while not has_variable(pid, entry):
        if is_readable(pidfd):
            status = wait_status(pidfd, pid)
            return status is not None and not engine_errors.may_be_failed_execve(status)
        if loop.time() > give_up:
            return True
        await asyncio.sleep(limits.EXECVE_POLL_MS / 1000)
    return True


async def _judge_ended(
    calls: ExecCalls, session: str, sock: socket.socket, leftover: bytes, spec: StartSpec, *, had_pid: bool
) -> tuple[int | None, bytes]:
    """The exit code, where it was asked for, and the stream so far."""
    head = await _read_head(sock, leftover, calls.timeout_ms)
    if head.stdout_seen or not head.stderr or not engine_errors.may_be_failure(head.stderr):
        return None, head.raw
    exit_code = (await calls.inspect(session)).exit_code
    failure = engine_errors.start_failure(spec.cmd[0], exit_code, head.stdout_seen, head.stderr, had_pid=had_pid)
    if failure is not None:
        raise ExecFailed(failure.message, failure.reason)
    return exit_code if head.ended else None, head.raw


async def _read_head(sock: socket.socket, leftover: bytes, timeout_ms: int, *, whole: bool = False) -> _Head:
    loop = asyncio.get_running_loop()
    head = _Head(whole=whole)
    try:
        head.feed(leftover)
        async with asyncio.timeout(timeout_ms / 1000):
            while not head.says_enough and len(head.raw) < limits.OCI_ERROR_BYTES:
                data = await loop.sock_recv(sock, limits.HTTP_READ_BYTES)
                head.ended = not data
                head.feed(data)
    except TimeoutError as error:
        raise ExecFailed("the engine does not end the stream of a command that ended", "engine_timeout") from error
    except OSError:
        head.ended = True
    except ProtocolError as error:
        raise ExecFailed(f"the engine's stream makes no sense: {error}", "engine_error") from error
    return head


# --- which file is in the way ---

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BLOCK = 512
_OF_THE_FILE = ("not_found", "permission_denied", "not_executable")


class Seen(NamedTuple):
    """One file: an errno for which it cannot be executed, or 0, and its first bytes."""

    error: int
    head: bytes


def first_entry(archive: bytes) -> Seen:
    """What the first file of a tar archive is (tar(5)), behind headers that only say more of it."""
    while archive[156:157] in b"xgLK" and len(archive) >= _BLOCK:
        size = _octal(archive[124:136])
        archive = archive[_BLOCK + -(-size // _BLOCK) * _BLOCK :]
    kind = archive[156:157]
    if kind == b"5":
        return Seen(errno.EISDIR, b"")
    if kind not in (b"0", b"\0") or not archive[0]:
        return Seen(errno.ENXIO, b"")  # a device or a FIFO; an archive without a file begins with zeros
    error = 0 if _octal(archive[100:108]) & 0o111 else errno.EACCES
    return Seen(error, archive[_BLOCK : _BLOCK + _octal(archive[124:136])])


def _octal(digits: bytes) -> int:
    text = digits.strip(b" \0")
    return int(text, 8) if text.isdigit() and not set(text) & set(b"89") else 0


class _Looks:
    """A bounded number of looks at files of one container."""

    def __init__(self, calls: ExecCalls, container: str) -> None:
        self._calls, self._container = calls, container
        self._left = limits.PROGRAM_LOOKS

    async def at(self, path: str) -> Seen:
        self._left -= 1
        if self._left < 0 or not posixpath.isabs(path):
            raise ExecFailed("not looked at")
        return await self._calls.look_at(self._container, path)


async def explained(refused: ExecFailed, calls: ExecCalls, container: str, spec: StartSpec) -> ExecFailed:
    """The same refusal, with what is in the way where that is seen; as it is in any other case."""
    if refused.reason not in _OF_THE_FILE:
        return refused
    is_format = refused.reason == "not_executable"
    words = None
    with suppress(ExecFailed, TimeoutError):
        async with asyncio.timeout(limits.PROGRAM_LOOK_MS / 1000):
            found = await _find_out(_Looks(calls, container), spec, is_format)
            words = why_refused(found, is_format=is_format)
    return refused if words is None else ExecFailed(f"{spec.cmd[0]!r}: {words}", refused.reason)


async def _find_out(looks: _Looks, spec: StartSpec, is_format: bool) -> Finding:
    name, seen = await _program(looks, spec)
    found = Finding(0, False, seen.error, name, seen.head)
    while not found.error and found.depth < limits.PROGRAM_DEPTH:
        following = interpreter_of(found.head)
        is_loader = following is None
        if is_loader and not found.is_loader and not is_format:  # else it is for another machine, and so is its loader
            following = loader_of(found.head)
        if following is None:
            break
        seen = await looks.at(following)
        found = Finding(found.depth + 1, is_loader, seen.error, following, seen.head)
    return found


async def _program(looks: _Looks, spec: StartSpec) -> tuple[str, Seen]:
    """As execvp(3) finds it, whatever it is."""
    command, directory = spec.cmd[0], spec.working_dir or ""
    if "/" in command:
        path = posixpath.join(directory, command)
        return path, await looks.at(path)
    for entry in spec.variables.get("PATH", _PATH).split(":"):
        path = posixpath.join(directory, entry, command)
        seen = await looks.at(path)
        if seen.error != errno.ENOENT:
            return path, seen
    return command, Seen(errno.ENOENT, b"")
