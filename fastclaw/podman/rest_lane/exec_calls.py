"""The three calls of one exec: create, start, inspect, with every failure turned into `ExecFailed`.

Owns the paths and bodies of Podman's libpod API for execs, and the one seam where OSError, TimeoutError and broken HTTP
become the contract's words. It does not know what a stream carries or what a session is good for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, TypeVar
from urllib.parse import quote

import msgspec
import orjson

from fastclaw.errors import ExecFailed, ProtocolError
from fastclaw.limits import PROGRAM_ARCHIVE_BYTES
from fastclaw.podman.rest_lane import engine_errors
from fastclaw.podman.rest_lane.http_client import HttpClient, Response, Upgraded

if TYPE_CHECKING:
    from fastclaw.processes.lane import StartSpec

T = TypeVar("T")

API = "/v4.3.1/libpod"
"""Any service from 4.0 on takes it; the prefix picks the dialect (pkg/api/server, VersionedPath)."""

DETACH_KEYS = ",".join(("ctrl-_", "ctrl-^", "ctrl-\\", "ctrl-]") * 4)
"""Podman always looks for a key sequence in stdin, and "" means its default. It compares reads of exactly one byte
(containers/common, pkg/util/copy.go): sixteen in a row do not happen. A lone 0x1f may wait for the next byte."""

_START_BODY = b'{"Detach":false,"Tty":false}'


class ExecState(msgspec.Struct, frozen=True, rename="pascal"):
    """What inspect says. `pid` is the host's number (of the engine's PID namespace); 0 before and after the run."""

    running: bool
    exit_code: int
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
        timeout_ms: deadline of each call.
    """

    __slots__ = ("_client", "_timeout_ms")

    def __init__(self, client: HttpClient, timeout_ms: int) -> None:
        self._client = client
        self._timeout_ms = timeout_ms

    async def create(self, container_id: str, body: bytes) -> str:
        """Register an exec session; its id.

        Raises:
            ExecFailed: `container_gone`, `engine_timeout`, `engine_unavailable`, `engine_error`.
        """
        answer = await self._call("POST", f"{API}/containers/{container_id}/exec", body)
        if answer.status != 201:
            _refuse(answer)
        return _decode(_CREATED, answer, "create").id

    async def start(self, session: str) -> Upgraded:
        """Run a session and attach to it. That it answers does not mean that the command started.

        Raises:
            ExecFailed: as `create`, and `unknown_user`.
        """
        try:
            answer = await self._client.upgrade("POST", f"{API}/exec/{session}/start", _START_BODY, self._timeout_ms)
        except (OSError, ProtocolError) as error:
            _translate(error, self._timeout_ms)
        if isinstance(answer, Response):
            _refuse(answer)
        return answer

    async def inspect(self, session: str) -> ExecState:
        """The session's state. During a start it waits for the start's end (the container's lock).

        Raises:
            SessionGone: the engine forgot it (`exit_command_delay` is over, or the container stopped).
            ExecFailed: as `create`.
        """
        answer = await self._call("GET", f"{API}/exec/{session}/json", None)
        if engine_errors.is_missing_session(answer.status, answer.body):
            raise SessionGone(session)
        if answer.status != 200:
            _refuse(answer)
        return _decode(_STATE, answer, "inspect")

    async def is_running(self, container_id: str) -> bool:
        """Whether the container itself runs.

        Raises:
            ExecFailed: as `create`.
        """
        answer = await self._call("GET", f"{API}/containers/{container_id}/json", None)
        if answer.status != 200:
            _refuse(answer)
        return _decode(_CONTAINER, answer, "inspect").state.running

    async def beginning_of(self, container_id: str, path: str) -> bytes | None:
        """The first `limits.PROGRAM_ARCHIVE_BYTES` of a tar archive of a file inside, whose links the engine follows;
        None where there is no such file.

        Raises:
            ExecFailed: as `create`.
        """
        query = f"{API}/containers/{container_id}/archive?path={quote(path, safe='')}"
        answer = await self._call("GET", query, None, enough=PROGRAM_ARCHIVE_BYTES)
        if answer.status == 404:
            return None
        if answer.status != 200:
            _refuse(answer)
        return answer.body

    async def _call(self, method: str, path: str, body: bytes | None, *, enough: int | None = None) -> Response:
        try:
            return await self._client.request(method, path, body, self._timeout_ms, enough=enough)
        except (OSError, ProtocolError) as error:
            _translate(error, self._timeout_ms)


def _decode(decoder: msgspec.json.Decoder[T], answer: Response, call: str) -> T:
    try:
        return decoder.decode(answer.body)
    except (ValueError, RecursionError) as error:  # msgspec's own is a ValueError, and so is broken UTF-8
        raise ExecFailed(f"the engine's answer to {call} makes no sense: {error}") from error


def _refuse(answer: Response) -> NoReturn:
    failure = engine_errors.refusal(answer.status, answer.body)
    raise ExecFailed(failure.message, failure.reason)


def _translate(error: OSError | ProtocolError, timeout_ms: int) -> NoReturn:
    if isinstance(error, ProtocolError):
        raise ExecFailed(f"the engine does not speak HTTP: {error}", "engine_error") from error
    if isinstance(error, TimeoutError):
        raise ExecFailed(f"the engine did not answer within {timeout_ms} ms", "engine_timeout") from error
    raise ExecFailed(f"the engine cannot be reached: {error.strerror or error}", "engine_unavailable") from error
