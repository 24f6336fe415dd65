"""Which fields of a message go on through the proxy, and which it adds: RFC 9110, 7.6 ("Message Forwarding").

Fields of one hop end here, with whatever Connection names; the proxy writes its own for the next hop. h11 says how long
a body is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fastclaw.network.egress.addresses import parse_host
from fastclaw.network.egress.targets import has_body

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import h11

    from fastclaw.network.egress.addresses import Address
    from fastclaw.network.egress.proxy_frames import Injection
    from fastclaw.network.egress.targets import Target

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
