"""What the params of each method must look like, and how a violation is reported.

Owns shapes and their errors. Does not know what a method does.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import hashlib
import posixpath
import re
from signal import Signals
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from fastclaw import limits, telemetry_limits
from fastclaw.errors import ExecFailed, InvalidParams, ParseError
from fastclaw.runtime import (
    TRACEPARENT,
    TRACESTATE,
    EnvironmentRequest,
    ExecRequest,
    Extent,
    GroupLimits,
    Milliseconds,
    PoolKinds,
    RunRequest,
)
from fastclaw.stages import TraceContext

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping


Shape = TypeVar("Shape", bound=Struct)

_MAX_SIGNAL = 64
"""SIGRTMAX on Linux (signal(7))."""


class NoParams(Struct, frozen=True):
    """shutdown, environment_list."""


class HealthParams(Struct, frozen=True):
    """health: of one environment, or of the runtime."""

    environment: str | None = None


class ListParams(Struct, frozen=True):
    """list: at most `limit` processes, those that come after the process `after`."""

    after: str | None = None
    limit: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    environment: str | None = None


class EnvironmentParams(Struct, frozen=True):
    """environment_stop, environment_reset."""

    environment: str


class PoolParams(Struct, frozen=True):
    """pool_set."""

    pool: PoolKinds


class KillParams(Struct, frozen=True):
    """kill."""

    process_id: str
    grace_ms: Milliseconds | None = None


class WaitParams(Struct, frozen=True):
    """wait."""

    process_id: str
    timeout_ms: Milliseconds | None = None


class SignalParams(Struct, frozen=True):
    """signal: a number, or a name with or without its SIG; `group`: to the command's process group."""

    process_id: str
    signal: int | str
    group: bool = False


class ResizeParams(Struct, frozen=True):
    """resize."""

    process_id: str
    rows: Extent
    columns: Extent


class CancelParams(Struct, frozen=True):
    """cancel: the id of a request, exactly as it was sent."""

    id: int | str


NO_PARAMS = msgspec.Raw(b"{}")

_PLACE = re.compile(r" - at `(\$[^`]*)`\Z")
_MISSING = re.compile(r"missing required field `([^`]+)`")
_UNKNOWN = re.compile(r"contains unknown field `([^`]+)`")


def reader(shape: type[Shape]) -> Callable[[msgspec.Raw], Shape]:
    """For one method: makes its params, JSON as it came, the struct; once, with nothing in between.

    The function raises ParseError (a string cannot be decoded) and InvalidParams as `convert` does.
    """
    decode = msgspec.json.Decoder(shape).decode

    def read(params: msgspec.Raw) -> Shape:
        try:
            return decode(params)
        except msgspec.ValidationError as error:
            if bytes(params) == b"null":
                return read(NO_PARAMS)
            raise _explain(str(error), shape, "$") from error
        except msgspec.DecodeError as error:
            raise ParseError(f"not JSON: {error}") from error

    return read


def convert(params: Any, shape: type[Shape], root: str = "$") -> Shape:
    """Params that were decoded already → the struct.

    Parameters:
        root: JSON path of `params` itself, for the error.

    Raises:
        InvalidParams: with `data.path`; for an unknown option also `data.nearest`.
    """
    try:
        return msgspec.convert(params, shape)
    except msgspec.ValidationError as error:
        raise _explain(str(error), shape, root) from error


def _explain(message: str, shape: type[Struct], root: str) -> InvalidParams:
    place = _PLACE.search(message)
    path = root + place.group(1)[1:] if place else root
    text = message[: place.start()] if place else message
    if missing := _MISSING.search(text):
        path = f"{path}.{missing.group(1)}"
        return InvalidParams(f"{path} is missing", path=path)
    if unknown := _UNKNOWN.search(text):
        return _unknown_field(path, unknown.group(1), shape)
    return InvalidParams(f"{path}: {text[:1].lower()}{text[1:]}", path=path)


def _unknown_field(parent: str, name: str, shape: type[Struct]) -> InvalidParams:
    path = f"{parent}.{name}"
    known = {field for struct in _structs_within(shape) for field in struct.__struct_fields__}
    nearest = next(iter(difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)), None)
    hint = f"; did you mean {nearest!r}?" if nearest else ""
    return InvalidParams(f"unknown option {path}{hint}", "unknown_option", path=path, nearest=nearest)


def _structs_within(shape: type[Struct]) -> list[type[Struct]]:
    found = [shape]
    for field in msgspec.structs.fields(shape):
        for part in getattr(field.type, "__args__", (field.type,)):
            if isinstance(part, type) and issubclass(part, Struct):
                found += _structs_within(part)
    return found


def check_exec(request: ExecRequest | RunRequest) -> None:
    """Check what a struct's shape cannot say: bytes that no argv, environment or path can carry, unknown limits.

    Raises:
        InvalidParams: with the path of the value.
        ExecFailed: `too_long`, for a string over the kernel's limit for one argument.
    """
    if not request.cmd[0]:
        raise InvalidParams("$.cmd[0] is empty; name a program", path="$.cmd[0]")
    for index, word in enumerate(request.cmd):
        _check_string(word, f"$.cmd[{index}]")
    for name, value in request.env.items():
        _check_name(name)
        _check_string(value, f"$.env[{name!r}]", extra=len(name.encode()) + 1)
    for path, text in (("$.working_dir", request.working_dir), ("$.user", request.user)):
        if text is not None:
            _check_named(text, path)
    if request.limits:
        rlimits(request.limits)
        group_limits(request.limits)
    if request.template is not None:
        _check_forked(request)


def trace_of(request: ExecRequest | RunRequest | EnvironmentRequest) -> TraceContext | None:
    """The trace that a call belongs to; None: to none that it says.

    Raises:
        InvalidParams: it is malformed. W3C has receivers leave such a header out; a param was meant by somebody.
    """
    parent, state, most = request.traceparent, request.tracestate, telemetry_limits.TRACESTATE_BYTES
    if state is not None and (parent is None or len(state) > most or not re.fullmatch(TRACESTATE, state)):
        text = f"$.tracestate is no list of NAME=VALUE of W3C Trace Context, of up to {most} bytes"
        raise InvalidParams(f"{text}, with a traceparent", path="$.tracestate")
    if parent is None:
        return None
    if not re.fullmatch(TRACEPARENT, parent):
        form = (
            "VERSION-TRACE-PARENT-FLAGS in 2, 32, 16 and 2 lower-case hexadecimal digits, as W3C Trace Context has it"
        )
        raise InvalidParams(f"$.traceparent is not {form}", path="$.traceparent")
    return TraceContext(parent, state or "")


def _check_named(text: str, path: str) -> None:
    if not text:
        raise InvalidParams(f"{path} is empty; leave it out for the environment's own", path=path)
    _check_string(text, path)


def check_run(request: RunRequest) -> bytes:
    """As `check_exec`; and the command's whole input.

    Raises:
        InvalidParams: with the path of the value.
        ExecFailed: `too_long`.
    """
    check_exec(request)
    if request.input_base64 is not None:
        return _decoded(request)
    if request.input is None:
        return b""
    try:
        return request.input.encode()
    except UnicodeEncodeError as error:
        raise InvalidParams("$.input is no text; send it as $.input_base64", path="$.input") from error


def _decoded(request: RunRequest) -> bytes:
    path = "$.input_base64"
    if request.input is not None:
        raise InvalidParams("$.input and $.input_base64 are both given; one of them is the input", path=path)
    try:
        return base64.b64decode(request.input_base64 or "", validate=True)
    except (binascii.Error, ValueError) as error:  # the latter: a character beyond ASCII
        raise InvalidParams(f"{path} is no base64: {error}", path=path) from error


def has_input(request: RunRequest) -> bool:
    """Whether the command gets a stdin at all, be it an empty one."""
    return bool(request.input or request.input_base64)


def directory_of(working_dir: str | None, default: str | None, base: str) -> str | None:
    """Where a process starts, as an absolute path; None is what its lane takes for itself.

    Parameters:
        working_dir: what the request names, if anything.
        default: where one starts that names nothing.
        base: the absolute path of that directory.
    """
    if working_dir is None or working_dir.startswith("/"):
        return working_dir or default
    # `..` is left to the kernel, which knows where a symbolic link leads.
    return posixpath.join(base, *(part for part in working_dir.split("/") if part not in ("", ".")))


def fingerprint(request: ExecRequest | RunRequest) -> bytes:
    """Tells requests apart that name the same key, without being kept as long as they would be."""
    in_order = {name: dict(sorted(getattr(request, name).items())) for name in ("env", "limits")}
    one = msgspec.structs.replace(request, traceparent=None, tracestate=None, **in_order)  # who tries again has another
    text = repr(one)  # which begins with the kind of request it is
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _check_forked(request: ExecRequest | RunRequest) -> None:
    """Refuse what a forked worker cannot have: a user, a terminal or a control group of its own."""
    asked = {"user": request.user is not None, "tty": has_tty(request)}
    grouped = {f"limits.{name}": True for name in group_limits(request.limits).names}
    for name, is_asked in {**asked, **grouped}.items():
        if is_asked:
            raise InvalidParams(f"$.{name} cannot be had with a template", "unsupported", path=f"$.{name}")


def has_tty(request: ExecRequest | RunRequest) -> bool:
    """Whether the process has a terminal."""
    return isinstance(request, ExecRequest) and request.tty


def check_offered(
    request: ExecRequest | RunRequest,
    lane: str,
    capabilities: Collection[str],
    templates: Collection[str],
    refused: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Refuse what this lane does not offer.

    Parameters:
        lane: its name.
        capabilities: what it offers.
        templates: names of those that there are.
        refused: of limits for which it has no control groups, why.

    Raises:
        InvalidParams: `unsupported`, or there is no such template (`data.nearest`).
    """
    asked = {
        "tty": has_tty(request),
        "limits": any(name in NUMBERS for name in request.limits),
        "user": request.user is not None,
        "template": request.template is not None,
    }
    for name, is_asked in asked.items():
        if is_asked and name not in capabilities:
            path = f"$.{name}"
            raise InvalidParams(f"{path} is not offered by the {lane} lane; leave it out", "unsupported", path=path)
    for name in group_limits(request.limits).names:
        if name not in capabilities:
            path, why = f"$.limits.{name}", refused.get(name, f"it is not offered by the {lane} lane")
            raise InvalidParams(f"{path} cannot be had: {why}", "unsupported", path=path)
    wanted = request.template
    if wanted is not None and wanted not in templates:
        known = sorted(templates)
        nearest = next(iter(difflib.get_close_matches(wanted, known, n=1)), None)
        hint = f"did you mean {nearest!r}?" if nearest else f"options.templates has {', '.join(known) or 'none'}"
        raise InvalidParams(f"$.template: no template {wanted!r}; {hint}", path="$.template", nearest=nearest)


def _check_name(name: str) -> None:
    if not name or "=" in name or "\0" in name:
        path = f"$.env[{name!r}]"
        raise InvalidParams(f"{path} is no name for an environment variable", path=path)


def _check_string(text: str, path: str, extra: int = 0) -> None:
    if "\0" in text:
        raise InvalidParams(f"{path} holds a NUL byte", path=path)
    # Four bytes per character at most, so short strings need no encoding to be known good.
    length = len(text) + extra
    if 4 * length >= limits.MAX_ARG_BYTES and len(text.encode()) + extra >= limits.MAX_ARG_BYTES:
        raise ExecFailed(
            f"{path} is longer than the kernel's {limits.MAX_ARG_BYTES} bytes for one string; pass it by file or stdin",
            "too_long",
            path=path,
        )


def signal_number(value: int | str) -> int:
    """`15`, `"TERM"` or `"SIGTERM"` → 15.

    Raises:
        InvalidParams: no such signal.
    """
    if isinstance(value, int):
        if 1 <= value <= _MAX_SIGNAL:
            return value
    else:
        name = value.upper()
        found = Signals.__members__.get(name) or Signals.__members__.get("SIG" + name)
        if found is not None:
            return int(found)
    raise InvalidParams(f"$.signal: no signal {value!r}; use a number up to {_MAX_SIGNAL} or a name", path="$.signal")


NUMBERS = {
    "cpu": 0,
    "fsize": 1,
    "data": 2,
    "stack": 3,
    "core": 4,
    "rss": 5,
    "nproc": 6,
    "nofile": 7,
    "memlock": 8,
    "as": 9,
    "locks": 10,
    "sigpending": 11,
    "msgqueue": 12,
    "nice": 13,
    "rtprio": 14,
    "rttime": 15,
}
"""getrlimit(2). Times are seconds (rttime: microseconds), sizes bytes."""

_MAX = 2**64 - 1
"""RLIM_INFINITY."""


def rlimits(limits: Mapping[str, int | float]) -> list[tuple[int, int]]:
    """Number and value of each that is one.

    Raises:
        InvalidParams: an unknown name (`data.nearest`), or a value that is no limit.
    """
    return [(_number(name), _value(name, value)) for name, value in limits.items() if name not in GROUP_LIMITS]


GROUP_LIMITS = {"memory_bytes": limits.MIB, "cpus": 0.01, "pids": 1}
"""Of a control group of the command's own, each with the least that makes sense: the kernel gives out processors by
hundredths (cgroup-v2.rst, cpu.max), and less memory than this takes no program."""

_MOST = 2**53
"""What every JSON library can say."""


def group_limits(limits: Mapping[str, int | float]) -> GroupLimits:
    """Those for a control group.

    Raises:
        InvalidParams: a value that is no limit.
    """
    given = {name: value for name, value in limits.items() if name in GROUP_LIMITS}
    for name, value in given.items():
        least, path = GROUP_LIMITS[name], f"$.limits.{name}"
        if not least <= value <= _MOST:
            raise InvalidParams(f"{path} must be a number from {least} on", path=path)
        if name != "cpus" and value != int(value):
            raise InvalidParams(f"{path} must be a whole number", path=path)
    cpus = given.pop("cpus", None)
    return GroupLimits(cpus=cpus, **{name: int(value) for name, value in given.items()})


def _number(name: str) -> int:
    number = NUMBERS.get(name)
    if number is None:
        known = [*NUMBERS, *GROUP_LIMITS]
        nearest = next(iter(difflib.get_close_matches(name, known, n=1)), None)
        hint = f"did you mean {nearest!r}?" if nearest else f"there are {', '.join(known)}"
        path = f"$.limits.{name}"
        raise InvalidParams(f"{path}: no resource limit {name!r}; {hint}", path=path, nearest=nearest)
    return number


def _value(name: str, value: float) -> int:
    if not isinstance(value, int) or not 0 <= value <= _MAX:
        path = f"$.limits.{name}"
        raise InvalidParams(f"{path} must be a whole number, 0 to 2^64-1", path=path)
    return value
