"""Whom a request is for, and whether it is one at all: RFC 9112, 3.2 and 6.3.

h11 reads requests; what it lets pass and two readers could understand in two ways is refused here, since the second
reader would be the server behind this proxy (request smuggling, RFC 9112, 11.2).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from fastclaw.network.egress.addresses import Address, BadHost, parse_authority, show
from fastclaw.network.egress.policy import RULES_NAME

if TYPE_CHECKING:
    import h11

    from fastclaw.network.egress.policy import Reason

HTTP_PORT = 80
_ABSOLUTE = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)(.*)", re.DOTALL)
_VERSIONS = (b"1.0", b"1.1")
_NO_URL = f"this is a proxy: it wants an absolute URL or CONNECT; http://{RULES_NAME}/ shows where it leads"


class Rejected(Exception):
    """A request that is not carried out, or no further. Nobody has counted or written that down yet.

    Parameters:
        text: one line for people.
    """

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason: Reason = reason
        self.text = text


class Target(NamedTuple):
    """Whom a request is for.

    Parameters:
        path: what is asked of that server, in origin form.
    """

    host: str | Address
    port: int
    path: bytes

    @property
    def authority(self) -> bytes:
        """What its Host field says."""
        return show(self.host, self.port).removesuffix(f":{HTTP_PORT}").encode()

    @property
    def url(self) -> bytes:
        """How a proxy is asked for it."""
        return b"http://" + self.authority + (b"" if self.path == b"*" else self.path)


def check(request: h11.Request) -> None:
    """What h11 lets pass and a proxy must not.

    Raises:
        Rejected: the version is unknown, or where its body ends is not beyond doubt (RFC 9112, 6.1 and 11.2).
    """
    names = [name for name, _ in request.headers]
    if request.http_version not in _VERSIONS:
        raise Rejected("bad_request", "only HTTP/1.0 and HTTP/1.1 are spoken here")
    if b"transfer-encoding" in names and (b"content-length" in names or request.http_version == b"1.0"):
        raise Rejected("bad_request", "the length of the request's body is ambiguous")
    if request.method == b"CONNECT" and has_body(request):
        raise Rejected("bad_request", "CONNECT has no body")


def has_body(request: h11.Request) -> bool:
    """Whether a body follows the head."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0"))
        for name, value in request.headers
    )


def connect_target(request: h11.Request) -> Target:
    """Of `CONNECT host:port`.

    Raises:
        Rejected: it is none.
    """
    try:
        host, port = parse_authority(request.target.decode("ascii"), None)
    except BadHost as error:
        raise Rejected("bad_target", f"CONNECT wants host:port: {error}") from error
    return Target(host, port, b"")


def absolute_target(request: h11.Request) -> Target:
    """Of `GET http://host/path`, as a proxy is asked. Its Host field does not count (RFC 9112, 3.2.2).

    Raises:
        Rejected: it has another form, another scheme, or a part that no request target may have.
    """
    match = _ABSOLUTE.fullmatch(request.target)
    if match is None:
        raise Rejected("bad_target", _NO_URL)
    scheme, authority, path = match.groups()
    if scheme.lower() != b"http":
        raise Rejected("bad_target", "only http:// URLs are requested this way; use CONNECT host:port for all others")
    if b"@" in authority or b"#" in path:
        raise Rejected("bad_target", "a request target has neither a user nor a fragment")
    try:
        host, port = parse_authority(authority.decode("ascii"), HTTP_PORT)
    except BadHost as error:
        raise Rejected("bad_target", f"no host to send this to: {error}") from error
    return Target(host, port, _origin_form(request.method, path))


def _origin_form(method: bytes, path: bytes) -> bytes:
    if not path and method == b"OPTIONS":
        return b"*"
    return path if path.startswith(b"/") else b"/" + path


def origin_target(request: h11.Request, host: str | Address, port: int) -> Target:
    """Of a request that its sender believes to have sent to the server itself.

    Parameters:
        host, port: where the connection was going to, and what counts where the request names none.

    Raises:
        Rejected: it has no form that a server takes, or names another port.
    """
    if request.method == b"CONNECT":
        raise Rejected("bad_target", "CONNECT is for proxies, and this connection was to a server")
    if not request.target.startswith(b"/") and request.target != b"*":
        target = absolute_target(request)
    else:
        host, named = _named(request, host, port)
        target = Target(host, named, request.target)
    if target.port != port:
        raise Rejected("name_mismatch", f"the request names port {target.port} on a connection to port {port}")
    return target


def _named(request: h11.Request, host: str | Address, port: int) -> tuple[str | Address, int]:
    text = next((value for name, value in request.headers if name == b"host"), b"")
    if not text:
        return host, port
    try:
        return parse_authority(text.decode("ascii"), port)
    except (BadHost, UnicodeDecodeError) as error:
        raise Rejected("bad_target", f"the Host field names no host: {error}") from error
