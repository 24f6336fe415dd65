"""What a command that was run to its end has left: its exit record, and its output as bytes.

Knows the shape of the answer, not how it came.
"""

import base64
import binascii

from msgspec import UNSET, Struct, UnsetType

from fastclaw.errors import ProtocolError
from fastclaw.runtime import ExitReason, RunResult


class Ran(Struct, frozen=True, kw_only=True):
    """A command that has ended.

    Parameters:
        exit_code, signal, reason, timings, usage: as in the exit record.
        oom_kills, memory: as in the exit record; 0 and nothing where they are not in it.
        stdout, stderr: what is given of its output: nothing for a key whose run was answered before.
        dropped: bytes of `stdout` and `stderr` that are not given.
        gap_at: after which byte of a stream its missing middle was, for each stream that lacks it.
        incomplete: there may have been more output, which could not be had.
    """

    process_id: str
    exit_code: int | None
    signal: int | None
    reason: ExitReason | None
    timings: dict[str, int]
    usage: dict[str, int] | None
    oom_kills: int
    memory: dict[str, int]
    stdout: bytes
    stderr: bytes
    dropped: dict[str, int]
    gap_at: dict[str, int]
    incomplete: bool


def ran_of(result: RunResult) -> Ran:
    """The answer of a `run`, unpacked.

    Raises:
        ProtocolError: its base64 is none.
    """
    return Ran(
        process_id=result.process_id,
        exit_code=result.exit_code,
        signal=result.signal,
        reason=result.reason,
        timings=result.timings,
        usage=result.usage,
        oom_kills=0 if result.oom_kills is UNSET else result.oom_kills,
        memory={} if result.memory is UNSET else result.memory,
        stdout=_bytes(result.stdout, result.stdout_base64),
        stderr=_bytes(result.stderr, result.stderr_base64),
        dropped=result.dropped,
        gap_at={} if result.gap_at is UNSET else result.gap_at,
        incomplete=result.incomplete is True,
    )


def _bytes(text: str | None, encoded: str | UnsetType) -> bytes:
    if encoded is UNSET:
        return (text or "").encode()
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ProtocolError(f"the runtime's answer to run has base64 that is none: {error}") from error


def input_params(data: bytes | str | None) -> dict[str, str]:
    """The params that carry a command's input: as text where it is some."""
    if data is None:
        return {}
    if isinstance(data, str):
        return {"input": data}
    try:
        return {"input": str(data, "utf-8")}
    except UnicodeDecodeError:
        return {"input_base64": base64.b64encode(data).decode()}
