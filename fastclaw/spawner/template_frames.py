"""The frames between fastclaw and a template, as fastclaw/template.py reads and writes them.

One SOCK_SEQPACKET socket, the template's descriptor 3, whose other end its pump has (spawner/c/clients.c): a template
could send descriptors of pipes that it has locked. One JSON object a packet:

    to it    {"id", "argv", "env", "cwd", "limits": [[resource, value], …]} with the worker's descriptors: `go` to read
             one byte from, stdin where it has one, stdout, stderr; a longer one as a file after them: {"spilled"}
    from it  {"ready": true} once; for each request {"forked": id, "pid"} or {"failed": id, "errno", "step"}

The template forks twice, so that the worker is not its child but its reaper's, and the worker waits for the byte: EOF
instead means that nobody wants it. The pid is as seen inside. JSON escapes what is no UTF-8, as os.fsdecode has it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from fastclaw import limits
from fastclaw.errors import ExecFailed, ProtocolError
from fastclaw.spawner import frames

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CONTROL_FD = 3
FD_VARIABLE = "FASTCLAW_TEMPLATE_FD"
GO = b"g"
_QUOTED = 80
"""Characters of nonsense that an error quotes."""


class Ready(NamedTuple):
    """It may be asked."""


class Forked(NamedTuple):
    """A worker that waits for its adoption and then for its byte."""

    id: int
    pid: int


class Failed(NamedTuple):
    """No worker: `step` names what did not work."""

    id: int
    errno: int
    step: str


def request(
    id: int,
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    cwd: str | None = None,
    rlimits: Sequence[tuple[int, int]] = (),
) -> bytes:
    """One worker to fork.

    Raises:
        ExecFailed: `too_long`.
        ValueError: a NUL inside, or a lone surrogate that no file name has.
    """
    frames.strings([*argv, *env, *env.values(), *(() if cwd is None else (cwd,))])
    told = {"id": id, "argv": list(argv), "env": dict(env), "cwd": cwd, "limits": list(rlimits)}
    data = json.dumps(told).encode("ascii")
    if len(data) > limits.TEMPLATE_REQUEST_BYTES:
        raise ExecFailed("arguments and environment are longer than the kernel takes", "too_long")
    return data


def parse(frame: bytes) -> Ready | Forked | Failed:
    """What a template said.

    Raises:
        ProtocolError: something else.
    """
    try:
        told = json.loads(frame)
    except (ValueError, RecursionError):
        told = None
    if isinstance(told, dict):
        if told.get("ready") is True:
            return Ready()
        if "forked" in told:
            return Forked(_number(told, "forked"), _number(told, "pid"))
        if "failed" in told:
            return Failed(_number(told, "failed"), _number(told, "errno", limits.MAX_ERRNO), _step(told))
    raise ProtocolError(f"a template said {frame[:_QUOTED]!r}, which means nothing")


def _number(told: dict[str, Any], name: str, most: int = frames.NO_USER) -> int:
    value = told.get(name)
    if type(value) is int and 0 < value <= most:
        return value
    raise ProtocolError(f"a template said {repr(value)[:_QUOTED]} where {name} is a number up to {most}")


def _step(told: dict[str, Any]) -> str:
    """Words for a message: JSON may escape lone surrogates, which no answer can hold."""
    value = told.get("step")
    if type(value) is str and len(value) <= limits.TEMPLATE_STEP_CHARS and value.isprintable():
        return value
    raise ProtocolError(f"a template said {repr(value)[:_QUOTED]} where step names what did not work")
