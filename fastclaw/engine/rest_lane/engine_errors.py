"""Did the command start? From what the engine and its OCI runtime say, told apart from the command's own words.

Owns the texts of crun, runc and Podman. Podman sends the header of a start before the OCI runtime has run, so a
failure arrives as text on stderr and as exit code 125, 126 or 127 (libpod/oci_conmon_exec_common.go); a program may end
the same way. A text counts only when it is the whole output, in the exact form, with an exit code that fits, and
nothing proved that the command ran. It does not know of connections or processes.

The texts were taken from crun 1.8.1, runc 1.1.5 and Podman 4.3.1; the JSON form is crun's since 1.9.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import orjson


class Failure(NamedTuple):
    """Why a command did not start: a key of `errors.REASONS` and a line for people."""

    reason: str
    message: str


_OCI_EXIT_CODES = frozenset((125, 126, 127))
_EXEC_EXIT_CODES = frozenset((1, 126, 127, 255))

_HEADS = (b"Error: ", b"exec", b'{"msg":"exec container process `')

_TRAILER_HEADS = (b"Error: read unixpacket @->", b"Error: write unixpacket @->")
_TRAILER = re.compile(rb"Error: (?:read|write) unixpacket @->[^\n]{1,256}: (?:connection reset by peer|broken pipe)\n")
_TRAILER_BYTES = 320
_OCI_TEXT = re.compile(
    rb"Error: (?:crun|runc|krun|youki|kata-runtime): (?P<why>.{1,8192}?)"
    rb": OCI (?:runtime attempted to invoke a command that was not found|permission denied|runtime error)\n"
    rb"(?:Error: (?:read|write) unixpacket @->[^\n]{1,256}\n)*",
    re.DOTALL,
)
_CONMON_TEXT = re.compile(rb"Error: (?P<why>[^\n]{0,512}\bconmon\b[^\n]{0,4096})\n(?:Error: [^\n]{1,512}\n)*")
_ERRNO_TEXT = (
    rb"(?P<why>(?i:exec format error|no such file or directory|permission denied|argument list too long"
    rb"|operation not permitted|invalid argument|not a directory|text file busy|too many levels of symbolic links"
    rb"|file name too long|cannot allocate memory|input/output error|accessing a corrupted shared library))"
)
_EXEC_TEXT = re.compile(rb"exec(?: (?P<path>[^\n]{1,4096}))?: " + _ERRNO_TEXT + rb"\n")
_EXEC_JSON_TEXT = re.compile(
    rb"(?:\{\"msg\":\")?exec container process `(?P<path>[^\n]{0,4096}?)`: " + _ERRNO_TEXT + rb"(?:\"[^\n]{0,256}\})?\n"
)

_QUOTED = re.compile(r'`.*`|"(?:[^"\\]|\\.)*"', re.DOTALL)
_UNBALANCED = re.compile(r"[^`]*`")
"""Where a name has a newline in it, the text that Podman passes on begins behind that."""

_NO_SUCH_ID = re.compile(r"(setup user|cannot setres[ug]id to ): [Ii]nvalid argument")

_BY_WORDS: tuple[tuple[str, str], ...] = (
    # The first that is found decides, so the narrow ones come first.
    (r"unable to find (?:user|group)|no matching entries in (?:passwd|group) file", "unknown_user"),
    (r"chdir|[Cc]wd must be", "bad_working_dir"),
    (r"[Aa]rgument list too long", "too_long"),
    (r"contain null|[Ii]nvalid argument", "invalid_params"),
    (r"[Ee]xec format error", "not_executable"),
    (r"[Tt]ext file busy", "file_busy"),
    (r"[Rr]esource temporarily unavailable|[Cc]annot allocate memory", "overloaded"),
    (
        r"not running|stopped container|has stopped|state improper|no such container|no container with name",
        "container_gone",
    ),
    (r"[Ff]ile name too long", "too_long"),
    (
        r"not found in \$PATH|[Nn]o such file or directory|[Nn]ot a directory|[Tt]oo many levels of symbolic links",
        "not_found",
    ),
    (r"[Pp]ermission denied|[Oo]peration not permitted", "permission_denied"),
)
_PREFIXES = ("OCI runtime exec failed: ", "exec failed: ", "unable to start container process: ")
_WORDS = tuple((re.compile(pattern), reason) for pattern, reason in _BY_WORDS)


def start_failure(
    argv0: str, exit_code: int | None, stdout_seen: bool, stderr: bytes, *, had_pid: bool
) -> Failure | None:
    """Whether a command that ended at once never ran at all.

    Parameters:
        argv0: `cmd[0]` as it was asked for.
        stdout_seen: the stream carried stdout; only a command that ran writes there.
        stderr: everything that came on stderr until its end.
        had_pid: the engine named a process: then the OCI runtime's checks had passed, and only execve can have failed.

    Returns:
        The failure, or None where the command ran.
    """
    if stdout_seen or not stderr:
        return None
    if exit_code in _OCI_EXIT_CODES and not had_pid:
        match = _OCI_TEXT.fullmatch(stderr) or _CONMON_TEXT.fullmatch(stderr)
        return _name(argv0, _explain(match["why"], argv0)) if match else None
    return _execve_failure(argv0, exit_code, stderr)


def told_failure(argv0: str, text: bytes) -> Failure:
    """Why a command did not start, of which that is known: Docker says it on stdout."""
    return _name(argv0, _explain(text.strip().removesuffix(b": unknown") or b"the engine does not say why", argv0))


def may_be_failure(stderr: bytes) -> bool:
    """Whether stderr so far can still turn out to be an engine's text."""
    return any(stderr.startswith(head[: len(stderr)]) for head in _HEADS)


def may_be_failed_execve(wait_status: int) -> bool:
    """Whether a wait status fits an OCI runtime's child that could not become the command."""
    return wait_status & 0x7F == 0 and wait_status >> 8 in _EXEC_EXIT_CODES


def _execve_failure(argv0: str, exit_code: int | None, stderr: bytes) -> Failure | None:
    """The OCI runtime reports a failed execve on the command's own stderr."""
    match = _EXEC_JSON_TEXT.fullmatch(stderr) or _EXEC_TEXT.fullmatch(stderr)
    if match is None or exit_code not in _EXEC_EXIT_CODES:
        return None
    path = match["path"]
    if path is not None and path.rpartition(b"/")[2] != argv0.encode().rpartition(b"/")[2]:
        return None
    return _name(argv0, _explain(match["why"]))


def refusal(status: int, body: bytes) -> Failure:
    """What an HTTP answer that is no success means: Podman puts `{"cause", "message", "response"}` into it."""
    message = _message(body) or f"the engine answered {status}"
    failure = _explain(message.encode())
    if failure.reason == "engine_error" and status == 404:
        return Failure("container_gone", message)
    return failure if failure.reason in _REFUSALS else Failure("engine_error", message)


_REFUSALS = frozenset(("unknown_user", "container_gone", "overloaded", "bad_working_dir", "invalid_params"))


def is_missing_session(status: int, body: bytes) -> bool:
    """The engine no longer knows the exec session, but does know its container."""
    text = _message(body)
    return status == 404 and ("exec session" in text or "exec instance" in text)


def _message(body: bytes) -> str:
    try:
        told = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ""
    return str(told.get("message", "")) if isinstance(told, dict) else ""


def _name(argv0: str, failure: Failure) -> Failure:
    """crun does not always say what it could not start."""
    return failure if argv0 in failure.message else Failure(failure.reason, f"{argv0}: {failure.message}")


def _explain(why: bytes, argv0: str = "") -> Failure:
    text = why.decode("utf-8", "replace").strip()
    for words in _PREFIXES:
        text = text.removeprefix(words)
    said = _own_words(text, argv0)
    if _NO_SUCH_ID.search(said):
        return Failure("unknown_user", f"{text}: the environment's user namespace has no such id")
    for pattern, reason in _WORDS:
        if pattern.search(said):
            return Failure(reason, text)
    return Failure("engine_error", text)


def _own_words(text: str, argv0: str) -> str:
    """What the engine says itself, without the names that it quotes: a program may be called `not running`."""
    text = text.replace(f"stat {argv0}:", "stat:")  # runc quotes it the first time only
    text = text.removeprefix(f"{argv0.rpartition(chr(10))[2]}`")
    text = _QUOTED.sub("", text.replace(f"`{argv0}`", ""))
    return _UNBALANCED.sub("", text)


def may_be_trailer(text: bytes, cut: bool) -> bool:
    """Whether stderr's last bytes so far may be the line that Podman adds of its own when the command ends with unread
    stdin (the reset of conmon's socket). `cut`: the frame goes on, so even its first few bytes may be."""
    if len(text) > _TRAILER_BYTES:
        return False
    if any(text.startswith(head) for head in _TRAILER_HEADS):
        return b"\n" not in text[:-1]
    return cut and any(head.startswith(text) for head in _TRAILER_HEADS)


def is_trailer(text: bytes) -> bool:
    """Whether stderr's last frame is that line: the engine's words, not the command's."""
    return _TRAILER.fullmatch(text) is not None
