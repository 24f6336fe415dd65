"""What an answer of `run` gives, unpacked.

Owns the reading of `stdout`, `stderr`, `dropped` and `gap_at`. Knows no promise.
"""

import base64
import binascii
from typing import Any

from fastclaw.conformance.rig import expect
from fastclaw.conformance.wire import Broken

STREAMS = ("stdout", "stderr")


def given(ran: dict[str, Any], stream: str) -> bytes:
    """The bytes that are given of a stream.

    Raises:
        Broken: they come neither as text nor as base64, or as both.
    """
    text, encoded = ran.get(stream), ran.get(f"{stream}_base64")
    if isinstance(text, str) and encoded is None:
        return text.encode("utf-8", "surrogatepass")
    expect(text is None and isinstance(encoded, str), f"{stream} comes as {type(text)} and {type(encoded)}")
    try:
        data = base64.b64decode(str(encoded), validate=True)
    except binascii.Error as error:
        raise Broken(f"{stream}_base64 is no base64: {error}") from error
    expect(not _is_text(data), f"{stream} is text, and comes as base64")
    return data


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def outputs(ran: dict[str, Any]) -> tuple[bytes, bytes]:
    """Both streams of a run that lost nothing.

    Raises:
        Broken: something is said to be missing.
    """
    expect(ran.get("dropped") == {"stdout": 0, "stderr": 0}, f"`dropped` is {ran.get('dropped')}")
    expect(not ran.get("gap_at"), f"`gap_at` is {ran.get('gap_at')} where nothing is missing")
    expect(not ran.get("incomplete"), "the answer is `incomplete`")
    return given(ran, "stdout"), given(ran, "stderr")


def dropped(ran: dict[str, Any], stream: str) -> int:
    """How many bytes of a stream are said to be missing.

    Raises:
        Broken: nothing is said, or no number.
    """
    told = ran.get("dropped")
    number = told.get(stream) if isinstance(told, dict) else None
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise Broken(f"`dropped` is {told!r}")
    return number


def around_gap(ran: dict[str, Any], stream: str) -> tuple[bytes, bytes]:
    """What is given before the gap, and after it.

    Raises:
        Broken: `gap_at` is no place in what is given.
    """
    got, told = given(ran, stream), ran.get("gap_at")
    at = told.get(stream) if isinstance(told, dict) else None
    if not isinstance(at, int) or not 0 <= at <= len(got):
        raise Broken(f"`gap_at` is {told!r}, of {len(got)} bytes of {stream}")
    return got[:at], got[at:]


def has_no_gap(ran: dict[str, Any], stream: str) -> None:
    """Raise `Broken` where a middle is said to be missing."""
    expect(stream not in (ran.get("gap_at") or {}), f"`gap_at` is {ran.get('gap_at')} where no middle is missing")


def ending(ran: dict[str, Any]) -> tuple[Any, Any, Any]:
    """State, exit code and reason."""
    return ran.get("state"), ran.get("exit_code"), ran.get("reason")
