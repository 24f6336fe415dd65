"""The bytes of a request's head before h11 reads them, and of the answer to one that is refused.

h11 forgives what old clients do (a bare LF ends a line, a line may be folded); a server behind a proxy may forgive
other things. Nothing of that passes here (RFC 9112, 2.2 and 5.2), and what can be no request is not waited for.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fastclaw import network_limits
from fastclaw.network.egress.policy import RULES_NAME, STATUS
from fastclaw.network.egress.targets import Rejected

if TYPE_CHECKING:
    from fastclaw.network.egress.policy import Refused

_END = b"\r\n\r\n"
_BARE = re.compile(rb"\r(?!\n)|(?<!\r)\n|\r\n[ \t]|\0")
_NO_REQUEST = re.compile(rb"[^!-~]|[^\r]*(?<! HTTP/1\.[01])\r")
_LINE_END = re.compile(rb"[\r\n]")
_REQUEST_LINE = re.compile(rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+(?: [\t -~\x80-\xff]*)?")
_SPEAKS_HTTP = re.compile(rb"GET |.* HTTP/", re.IGNORECASE)
_UNFIT = re.compile(r"[^ -~]+")
_BY_RULE = frozenset({"not_allowed", "denied", "special_address", "no_name", "name_mismatch"})


def has_head(pending: bytearray) -> bool:
    """Whether a request's head is there, to its end.

    Parameters:
        pending: what came so far; empty lines before the request are taken away (RFC 9112, 2.2).

    Raises:
        Rejected: no request begins like this.
    """
    while pending.startswith(b"\r\n"):
        del pending[:2]
    end = pending.find(_END)
    size = end if end >= 0 else len(pending)
    if size > network_limits.EGRESS_HEAD_BYTES:
        raise Rejected("bad_request", f"the request's head is larger than {network_limits.EGRESS_HEAD_BYTES} bytes")
    # A CR at the very end may yet become the end of a line.
    if _BARE.search(pending, 0, size - (end < 0 and pending.endswith(b"\r"))):
        raise Rejected("bad_request", "the request's head has a control character or a folded line")
    if _NO_REQUEST.match(pending) and pending != b"\r":
        raise Rejected("bad_request", "this is no HTTP/1.1 request; this port is an HTTP proxy's")
    return end >= 0


def is_request(words: bytes) -> bool | None:
    """Whether a server could take these first bytes of a connection for a request; None: more are needed.

    Yes for more than what `has_head` lets pass: bare LFs, HTTP/0.9 and HTTP/2 among it.
    """
    line, *rest = _LINE_END.split(words.lstrip(b"\r\n"), 1)
    if line and not _REQUEST_LINE.fullmatch(line):
        return False
    return bool(_SPEAKS_HTTP.match(line)) if rest else None


def refusal(refused: Refused, *, has_body: bool) -> bytes:
    """The answer to a request that is not carried out: its reason in a field; for people in the body, and in the status
    line, which is all that most clients show of an answer to CONNECT.

    Parameters:
        has_body: False as the answer to HEAD.
    """
    hint = f"; http://{RULES_NAME}/ lists the rules" if refused.reason in _BY_RULE else ""
    body = (refused.text.replace("\n", " ") + hint).encode("utf-8", "replace") + b"\n"
    phrase = _UNFIT.sub(" ", f"{refused.reason}: {refused.text}")[: network_limits.EGRESS_PHRASE_CHARS]
    head = (
        f"HTTP/1.1 {STATUS[refused.reason]} {phrase}\r\nX-Fastclaw-Reason: {refused.reason}\r\n"
        f"Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (body if has_body else b"")
