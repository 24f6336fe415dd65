"""HTTP requests and answers as bytes and fields: which are let through, their target, and what goes on.

h11 reads requests; what it lets pass and two readers could understand in two ways is refused here, since the second
reader would be the server behind this proxy (request smuggling, RFC 9112, 11.2). h11 forgives what old clients do (a
bare LF ends a line, a line may be folded); a server behind a proxy may forgive other things. Nothing of that passes
(RFC 9112, 2.2 and 5.2), and what can be no request is not waited for.

Fields of one hop end here, with those that Connection names; the proxy writes its own for the next hop (RFC 9110, 7.6).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from fastclaw import network_limits
from fastclaw.network.egress.addresses import Address, BadHost, parse_authority, parse_host, show
from fastclaw.network.egress.policy import RULES_NAME, STATUS, Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import h11

    from fastclaw.network.egress.addresses import Address
    from fastclaw.network.egress.proxy_frames import Injection


HTTP_PORT = 80
_ABSOLUTE = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)(.*)", re.DOTALL)
_VERSIONS = (b"1.0", b"1.1")
_NO_URL = f"this is a proxy: it wants an absolute URL or CONNECT; http://{RULES_NAME}/ shows where it leads"


class Target(NamedTuple):
    """The server that a request is for.

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
        Refused: the version is unknown, or where its body ends is not beyond doubt (RFC 9112, 6.1 and 11.2).
    """
    names = [name for name, _ in request.headers]
    if request.http_version not in _VERSIONS:
        raise Refused("bad_request", "only HTTP/1.0 and HTTP/1.1 are spoken here")
    if b"transfer-encoding" in names and (b"content-length" in names or request.http_version == b"1.0"):
        raise Refused("bad_request", "the length of the request's body is ambiguous")
    if request.method == b"CONNECT" and has_body(request):
        raise Refused("bad_request", "CONNECT has no body")


def has_body(request: h11.Request) -> bool:
    """Whether a body follows the head."""
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0"))
        for name, value in request.headers
    )


def connect_target(request: h11.Request) -> Target:
    """Of `CONNECT host:port`.

    Raises:
        Refused: it is none.
    """
    return Target(*_authority(request.target, None, "CONNECT wants host:port"), b"")


def absolute_target(request: h11.Request) -> Target:
    """Of `GET http://host/path`, as a proxy is asked. Its Host field does not count (RFC 9112, 3.2.2).

    Raises:
        Refused: it has another form, another scheme, or a part that no request target may have.
    """
    match = _ABSOLUTE.fullmatch(request.target)
    if match is None:
        raise Refused("bad_target", _NO_URL)
    scheme, authority, path = match.groups()
    if scheme.lower() != b"http":
        raise Refused("bad_target", "only http:// URLs are requested this way; use CONNECT host:port for all others")
    if b"@" in authority or b"#" in path:
        raise Refused("bad_target", "a request target has neither a user nor a fragment")
    return Target(*_authority(authority, HTTP_PORT, "no host to send this to"), _origin_form(request.method, path))


def _origin_form(method: bytes, path: bytes) -> bytes:
    if not path and method == b"OPTIONS":
        return b"*"
    return path if path.startswith(b"/") else b"/" + path


def origin_target(request: h11.Request, host: str | Address, port: int) -> Target:
    """Of a request that its sender believes to have sent to the server itself.

    Parameters:
        host, port: where the connection was going to, and what counts where the request names none.

    Raises:
        Refused: it has no form that a server takes, or names another port.
    """
    if request.method == b"CONNECT":
        raise Refused("bad_target", "CONNECT is for proxies, and this connection was to a server")
    if not request.target.startswith(b"/") and request.target != b"*":
        target = absolute_target(request)
    else:
        named = next((value for name, value in request.headers if name == b"host"), b"")
        where = _authority(named, port, "the Host field names no host") if named else (host, port)
        target = Target(*where, request.target)
    if target.port != port:
        raise Refused("name_mismatch", f"the request names port {target.port} on a connection to port {port}")
    return target


def _authority(text: bytes, default_port: int | None, why: str) -> tuple[str | Address, int]:
    try:
        return parse_authority(text.decode("ascii"), default_port)
    except (BadHost, UnicodeDecodeError) as error:
        raise Refused("bad_target", f"{why}: {error}") from error


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
        Refused: no request begins like this.
    """
    while pending.startswith(b"\r\n"):
        del pending[:2]
    end = pending.find(_END)
    size = end if end >= 0 else len(pending)
    if size > network_limits.EGRESS_HEAD_BYTES:
        raise Refused("bad_request", f"the request's head is larger than {network_limits.EGRESS_HEAD_BYTES} bytes")
    # A CR at the very end may yet become the end of a line.
    if _BARE.search(pending, 0, size - (end < 0 and pending.endswith(b"\r"))):
        raise Refused("bad_request", "the request's head has a control character or a folded line")
    if _NO_REQUEST.match(pending) and pending != b"\r":
        raise Refused("bad_request", "this is no HTTP/1.1 request; this port is an HTTP proxy's")
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


Fields = list[tuple[bytes, bytes]]

_NAME = b"fastclaw"
_HOP_BY_HOP = frozenset((b"connection", b"keep-alive", b"te", b"transfer-encoding", b"upgrade"))
_KEPT = frozenset((b"host", b"content-length"))
_FIELD_NAME = re.compile(rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")
_FIELD_VALUE = re.compile(rb"[\x21-\x7e\x80-\xff]+(?:[ \t]+[\x21-\x7e\x80-\xff]+)*")
_NO_CONTENT = 204
_NO_LETTER = re.compile(rb"[^0-9a-z]")


def request_fields(request: h11.Request, target: Target, injected: Sequence[tuple[bytes, bytes]]) -> Fields:
    """Those that go on to the server.

    Parameters:
        injected: fields that the proxy adds; the client's own of the same names are left out.
    """
    kept = _not_ours(request.headers.raw_items(), injected)
    fields = [(b"Host", target.authority), *_end_to_end(kept, {b"host"})]
    fields += [(b"Via", request.http_version + b" " + _NAME), *injected]
    if _listed(request.headers, b"transfer-encoding"):
        fields.append((b"Transfer-Encoding", b"chunked"))
    return fields + _hop_fields(request)


def _hop_fields(request: h11.Request) -> Fields:
    """What we say for our own next hop, since the client said it for its: a wish to switch, and that trailers are
    welcome. No switch to HTTP/2: its requests would pass unread."""
    connection = _listed(request.headers, b"connection")
    wishes = [word for word in _listed(request.headers, b"upgrade") if word != b"h2c"]
    fields: Fields = []
    if wishes and b"upgrade" in connection and request.http_version == b"1.1" and not has_body(request):
        fields.append((b"Upgrade", b", ".join(_raw_upgrades(request))))
    if b"trailers" in _listed(request.headers, b"te"):
        fields.append((b"TE", b"trailers"))
    if fields:
        fields.append((b"Connection", b", ".join(name for name, _ in fields)))
    return fields


def _raw_upgrades(request: h11.Request) -> list[bytes]:
    """As the client wrote them: servers compare some of them with their case."""
    words = b",".join(value for name, value in request.headers if name == b"upgrade").split(b",")
    return [word.strip() for word in words if word.strip() and word.strip().lower() != b"h2c"]


def response_fields(response: h11.Response | h11.InformationalResponse) -> Fields:
    """Those that go on to the client. h11 says how long the body is, and whether the connection stays."""
    dropped = {b"content-length"} if response.status_code == _NO_CONTENT else set()
    if _listed(response.headers, b"transfer-encoding"):
        dropped.add(b"content-length")  # RFC 9112, 6.3: the other one counts
    return [*_end_to_end(response.headers.raw_items(), dropped), (b"Via", response.http_version + b" " + _NAME)]


def switch_fields(response: h11.InformationalResponse) -> Fields:
    """Those of a 101."""
    upgrade = [(b"Upgrade", value) for name, value in response.headers if name == b"upgrade"]
    return [*response_fields(response), *upgrade, (b"Connection", b"Upgrade")]


def trailer_fields(trailers: Iterable[tuple[bytes, bytes]], injected: Sequence[tuple[bytes, bytes]]) -> Fields:
    """Those after a body, which change neither its framing nor what the proxy has added (RFC 9110, 6.5.1)."""
    return list(_end_to_end(_not_ours(trailers, injected), {b"host", b"content-length"}))


def _not_ours(
    fields: Iterable[tuple[bytes, bytes]], injected: Sequence[tuple[bytes, bytes]]
) -> Iterable[tuple[bytes, bytes]]:
    """Without those that a server could take for one that the proxy adds: to CGI and what descends from it `X_Key` and
    `X-Key` are one name (RFC 3875, 4.1.18), to some servers `X.Key` as well."""
    ours = {_folded(name) for name, _ in injected}
    return [field for field in fields if _folded(field[0]) not in ours] if ours else fields


def _folded(name: bytes) -> bytes:
    return _NO_LETTER.sub(b"_", name.lower())


def _end_to_end(fields: Iterable[tuple[bytes, bytes]], dropped: set[bytes]) -> Fields:
    """All but `dropped`, those of one hop, and those that Connection names. Their names keep their case."""
    known = [(name.lower(), name, value) for name, value in fields]
    named = {word for key, _, value in known if key == b"connection" for word in _words(value)} - _KEPT
    gone = _HOP_BY_HOP | named | dropped
    return [(name, value) for key, name, value in known if key not in gone and not key.startswith(b"proxy-")]


def _listed(fields: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    """The members of a list field, in lower case."""
    return [word for key, value in fields if key == name for word in _words(value)]


def _words(value: bytes) -> list[bytes]:
    return [word for part in value.lower().split(b",") if (word := part.strip())]


class Injections:
    """The fields that the proxy adds, by host.

    Parameters:
        injections: each for a name, for all names below `*.suffix`, or for an address.

    Raises:
        ValueError: one of them is no field. The message has nothing of its value in it.
    """

    def __init__(self, injections: Sequence[Injection]) -> None:
        self._exact: dict[str, Fields] = {}
        self._below: dict[str, Fields] = {}
        for injection in injections:
            wild = injection.host.startswith("*.")
            host = str(parse_host(injection.host.removeprefix("*.")))
            place = self._below if wild else self._exact
            place.setdefault(host, []).append(_field(injection))

    def of(self, host: str | Address) -> Fields:
        """Those for this host; of two with the same name, the one that names it more closely."""
        name = str(host)
        found = list(self._exact.get(name, ()))
        while self._below and name:
            name = name.partition(".")[2]
            known = {field.lower() for field, _ in found}
            found += [field for field in self._below.get(name, ()) if field[0].lower() not in known]
        return found


def _field(injection: Injection) -> tuple[bytes, bytes]:
    name, value = injection.header.encode(), injection.value.encode()
    if not _FIELD_NAME.fullmatch(name) or not _FIELD_VALUE.fullmatch(value):
        raise ValueError(f"what is to be added for {injection.host} is no header field")
    if name.lower() in _HOP_BY_HOP | _KEPT:
        raise ValueError(f"{injection.header} cannot be added: the proxy itself says it")
    return name, value
