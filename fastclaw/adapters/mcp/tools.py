"""The tools of `fastclaw mcp`: what each takes and gives, as JSON Schema too, and what it does in a sandbox."""

import base64
import binascii
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct

from fastclaw import limits
from fastclaw.processes.run_output import whole_characters
from fastclaw.sandbox import Done, Sandbox

OUTPUT_BYTES = 32 * limits.KIB
"""Of each stream of a command: some 10 000 tokens, which a model can still read beside its work."""

READ_BYTES = 64 * limits.KIB
"""Of a file that is read without a limit: most sources are shorter."""

MAX_READ_BYTES = limits.MIB
"""Of a file at most in one answer: clients have limits of their own for what they give to a model."""

LIST_ENTRIES = 1_000
"""Of a directory in one answer: what more there is, is better looked at by a command."""

TIMEOUT_S = 120.0
"""Of a command that names none: as long as clients with the longest patience wait for a tool."""

MAX_TIMEOUT_S = 86_400.0
"""A day, for a mistyped number to be found."""

Encoding = Literal["utf-8", "base64"]
Argv = Annotated[list[str], Meta(min_length=1)]
Path = Annotated[str, Meta(min_length=1, description="A relative one starts from the sandbox's working directory.")]


class Run(Struct, forbid_unknown_fields=True):
    """What `run` asks for."""

    command: Annotated[str | Argv, Meta(description="Text for `sh -c`, or a program with its arguments.")]
    input: Annotated[str, Meta(description="What it reads on stdin.")] = ""
    cwd: Annotated[str | None, Meta(description="Directory in which it runs.")] = None
    env: Annotated[dict[str, str], Meta(description="Further variables.")] = {}
    timeout: Annotated[
        float, Meta(gt=0, le=MAX_TIMEOUT_S, description="Seconds after which it is ended with all that it started.")
    ] = TIMEOUT_S


class Ran(Struct, omit_defaults=True):
    """How a command ended, and what it wrote."""

    exit_code: Annotated[int, Meta(description="128 and the signal's number where a signal ended it.")]
    reason: Annotated[str, Meta(description="`exited`, `signaled`, `timeout`, `oom`, …; or why it did not start.")]
    stdout: str
    stderr: str
    duration: Annotated[float, Meta(description="Seconds that it ran.")]
    note: Annotated[str | None, Meta(description="What is missing here, and how to get it.")] = None


class Read(Struct, forbid_unknown_fields=True):
    """What `read` asks for."""

    path: Path
    offset: Annotated[int, Meta(ge=0, description="From which byte on.")] = 0
    limit: Annotated[int, Meta(ge=1, le=MAX_READ_BYTES, description="Bytes at most.")] = READ_BYTES


class Content(Struct, omit_defaults=True):
    """What is in a file, or in a part of it."""

    content: str
    encoding: Annotated[Encoding, Meta(description="base64 where it is no text.")]
    next_offset: Annotated[int | None, Meta(description="Where there is more: from here on.")] = None


class Write(Struct, forbid_unknown_fields=True):
    """What `write` asks for."""

    path: Path
    content: Annotated[str, Meta(description="The whole of it.")]
    encoding: Annotated[Encoding, Meta(description="What `content` is.")] = "utf-8"


class Written(Struct):
    """What was written."""

    path: str
    size: Annotated[int, Meta(description="Bytes.")]


class List(Struct, forbid_unknown_fields=True):
    """What `list` asks for."""

    path: Path = "."


class Entry(Struct, omit_defaults=True):
    """A name in a directory."""

    name: str
    type: Annotated[str, Meta(description="`file`, `directory`, `link`, …")]
    size: Annotated[int, Meta(description="Bytes.")]
    target: Annotated[str | None, Meta(description="Where a link leads.")] = None


class Entries(Struct, omit_defaults=True):
    """What is in a directory."""

    entries: list[Entry]
    note: Annotated[str | None, Meta(description="What is missing here.")] = None


async def _run(box: Sandbox, asked: Run) -> Ran:
    done = await box.run(
        asked.command,
        input=asked.input or None,
        cwd=asked.cwd,
        env=asked.env,
        timeout=asked.timeout,
        output_limit=OUTPUT_BYTES,
    )
    stderr = done.error if done.error is not None else _shown(done, "stderr")
    return Ran(done.exit_code, done.reason, _shown(done, "stdout"), stderr, round(done.duration, 3), _note(done))


def _shown(done: Done, stream: Literal["stdout", "stderr"]) -> str:
    """A stream as text, with a line where its middle is missing."""
    written: bytes = getattr(done, stream)
    gap = done.gap_at.get(stream)
    if gap is None:
        return written.decode(errors="replace")
    parts = (written[:gap].decode(errors="replace"), written[gap:].decode(errors="replace"))
    return f"\n[… {done.dropped[stream]} bytes are left out …]\n".join(parts)


def _note(done: Done) -> str | None:
    if not done.truncated:
        return None
    return "not all of the output is here; have the command write it to a file, and read parts of that"


async def _read(box: Sandbox, asked: Read) -> Content:
    found = await box.read(asked.path, offset=asked.offset, limit=asked.limit + 1)
    data = found[: asked.limit]
    if len(found) > asked.limit:
        data = data[: whole_characters(data)] or data
    more = asked.offset + len(data) if len(found) > len(data) else None
    try:
        return Content(data.decode(), "utf-8", more)
    except UnicodeDecodeError:
        return Content(base64.b64encode(data).decode(), "base64", more)


async def _write(box: Sandbox, asked: Write) -> Written:
    data = asked.content.encode() if asked.encoding == "utf-8" else _decoded(asked.content)
    await box.write(asked.path, data)
    return Written(asked.path, len(data))


def _decoded(content: str) -> bytes:
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error as error:
        raise ValueError(f"content is no base64: {error}") from error


async def _list(box: Sandbox, asked: List) -> Entries:
    found = await box.list(asked.path)
    more = len(found) - LIST_ENTRIES
    note = f"{more} more are not shown" if more > 0 else None
    shown = [Entry(one.name or "(no UTF-8)", one.type, one.size, one.target) for one in found[:LIST_ENTRIES]]
    return Entries(shown, note)


class Kind(NamedTuple):
    """A tool: what it takes, gives and does."""

    text: str
    takes: type[Struct]
    gives: type[Struct]
    call: Callable[[Sandbox, Any], Awaitable[Struct]]
    hints: dict[str, bool]


TOOLS = {
    "run": Kind(
        "Run a command in the sandbox to its end. Files stay for the next one; processes that it leaves in the "
        "background do too. A command that fails is no error: look at exit_code.",
        Run,
        Ran,
        _run,
        {"read_only_hint": False, "destructive_hint": True, "idempotent_hint": False},
    ),
    "read": Kind(
        "Read a file of the sandbox, or a part of it.",
        Read,
        Content,
        _read,
        {"read_only_hint": True, "open_world_hint": False},
    ),
    "write": Kind(
        "Write a file of the sandbox: its whole content. Missing directories are made.",
        Write,
        Written,
        _write,
        {"read_only_hint": False, "destructive_hint": True, "idempotent_hint": True, "open_world_hint": False},
    ),
    "list": Kind(
        "List a directory of the sandbox.", List, Entries, _list, {"read_only_hint": True, "open_world_hint": False}
    ),
}


def schema(kind: type[Struct]) -> dict[str, Any]:
    """Its JSON Schema, with the object itself at the root, as the protocol wants it."""
    _, parts = msgspec.json.schema_components((kind,), ref_template="#/$defs/{name}")
    root = parts.pop(kind.__name__)
    return {**root, "$defs": parts} if parts else root
