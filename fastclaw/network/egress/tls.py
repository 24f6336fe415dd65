"""The first things a TLS client says, in the clear: which server it wants.

Reads a ClientHello (RFC 8446, 4.1.2; RFC 5246, 7.4.1.2) out of the records that carry it (RFC 8446, 5.1), as far as its
server name (RFC 6066, 3). Nothing is decrypted and nothing else is looked at. Where a server might read it differently
from us (a name given twice, lengths that do not add up), it is refused: a name that was checked must be the name that
is served.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from fastclaw import network_limits
from fastclaw.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator

HANDSHAKE = 0x16
"""The first byte of every TLS connection: the record type `handshake`."""

_RECORDS = range(0x14, 0x18)
"""The types of TLS records (RFC 8446, 5.1). Some servers read on behind a record that they do not want."""

_BEFORE_RETRY = (0x14, 0x17)
"""What a client may say between its two ClientHellos: change_cipher_spec, and early data (RFC 8446, D.4 and 4.2.10)."""

_RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
"""The random of a ServerHello that is a HelloRetryRequest (RFC 8446, 4.1.3)."""

_CLIENT_HELLO = 1
_SERVER_HELLO = 2
_MAJOR = 3
_RECORD_HEAD_BYTES = 5
_MESSAGE_HEAD_BYTES = 4
_RECORD_BYTES = 1 << 14  # RFC 8446, 5.1: the length MUST NOT exceed 2^14 bytes
_VERSION_BYTES = 2
_VERSION_AND_RANDOM_BYTES = _VERSION_BYTES + len(_RETRY)
_SERVER_NAME = 0
_HOST_NAME = 0
_NAME = re.compile(rb"[0-9A-Za-z._:-]{1,254}")


class ClientHello(NamedTuple):
    """What a ClientHello says.

    Parameters:
        name: the server's name in lower case, without a trailing dot; None: it names none. Some clients put an
            address here, although RFC 6066 forbids it: it is passed on as its text.
        size: bytes of its records, and of what was before them.
    """

    name: str | None
    size: int


class _Message(NamedTuple):
    """A handshake message.

    Parameters:
        size: of the records that carry it.
        is_alone: nothing follows it in the last of them.
    """

    body: bytes
    size: int
    is_alone: bool


def may_be_tls(data: bytes) -> bool:
    """Whether a TLS server could read on from these first bytes; from one byte on, it may be too early to tell."""
    return data[:1] != b"" and data[0] in _RECORDS and data[1:_VERSION_BYTES] in (b"", _MAJOR.to_bytes())


def sniff(data: bytes | bytearray) -> ClientHello | None:
    """The ClientHello that a connection begins with; None: more bytes are needed. What follows it is ignored.

    Parameters:
        data: all that has come so far. No more than `network_limits.TLS_HELLO_BYTES` and the heads of
            `network_limits.TLS_HELLO_RECORDS` records are ever waited for.

    Raises:
        ProtocolError: it is none, or two readers might read it differently.
    """
    hello = _message(data, _CLIENT_HELLO)
    if hello is None:
        return None
    if not hello.is_alone:
        raise ProtocolError("a TLS ClientHello with something behind it in its record")
    return ClientHello(_server_name(hello.body), hello.size)


def asks_again(data: bytes) -> bool | None:
    """Whether a server answers with a HelloRetryRequest, so that another ClientHello comes; None: more is needed.

    Parameters:
        data: all that it has said so far.
    """
    try:
        answer = _message(data, _SERVER_HELLO)
    except ProtocolError:
        return False
    return None if answer is None else answer.body[_VERSION_BYTES:_VERSION_AND_RANDOM_BYTES] == _RETRY


def sniff_again(data: bytes) -> ClientHello | None:
    """The ClientHello after a HelloRetryRequest; None: more bytes are needed.

    Parameters:
        data: all that the client has said since its first one.

    Raises:
        ProtocolError: as for `sniff`.
    """
    position = 0
    while data[position : position + 1] and data[position] in _BEFORE_RETRY:
        position += _RECORD_HEAD_BYTES + int.from_bytes(data[position + 3 : position + _RECORD_HEAD_BYTES])
        if position > network_limits.TLS_EARLY_BYTES:
            raise ProtocolError(f"more than {network_limits.TLS_EARLY_BYTES} bytes between two TLS ClientHellos")
    hello = sniff(data[position:])
    return None if hello is None else ClientHello(hello.name, position + hello.size)


def _message(data: bytes | bytearray, kind: int) -> _Message | None:
    """A handshake message, put together from its records; None while a part is missing."""
    message, position, told = b"", 0, 0
    for _ in range(network_limits.TLS_HELLO_RECORDS):
        head = bytes(data[position : position + _RECORD_HEAD_BYTES])
        _check_record(head)
        if len(head) < _RECORD_HEAD_BYTES:
            return None
        start = position + _RECORD_HEAD_BYTES
        position = start + int.from_bytes(head[3:])
        told += position - start
        message += data[start:position]
        if (end := _message_end(message, kind)) <= len(message):
            return _Message(message[_MESSAGE_HEAD_BYTES:end], position, end == told)
    raise ProtocolError(f"a TLS ClientHello in more than {network_limits.TLS_HELLO_RECORDS} records")


def _check_record(head: bytes) -> None:
    """Refuse a record, or the beginning of one, that carries no part of a handshake message."""
    if head and (head[0] != HANDSHAKE or (len(head) > 1 and head[1] != _MAJOR)):
        raise ProtocolError("not a TLS handshake record")
    if len(head) == _RECORD_HEAD_BYTES and not 0 < int.from_bytes(head[3:]) <= _RECORD_BYTES:
        raise ProtocolError("a TLS record of a length that none may have")


def _message_end(message: bytes, kind: int) -> int:
    """Where the handshake message that begins here ends: behind what has come, while its head is incomplete."""
    if message and message[0] != kind:
        raise ProtocolError("the first TLS message is not a ClientHello")
    length = int.from_bytes(message[1:_MESSAGE_HEAD_BYTES])
    if length > network_limits.TLS_HELLO_BYTES:
        raise ProtocolError(f"a TLS ClientHello of {length} bytes; {network_limits.TLS_HELLO_BYTES} are read")
    return _MESSAGE_HEAD_BYTES + length


def _server_name(hello: bytes) -> str | None:
    position = _VERSION_AND_RANDOM_BYTES
    for width in (1, 2, 1):  # session id, cipher suites, compression methods
        _, position = _vector(hello, position, width)
    if position == len(hello):
        return None  # TLS 1.2 and older: a client without extensions leaves their list out
    found = [value for kind, value in _extensions(hello, position) if kind == _SERVER_NAME]
    if len(found) > 1:
        raise ProtocolError("a TLS ClientHello with two server_name extensions")
    return _host_name(found[0]) if found else None


def _extensions(hello: bytes, position: int) -> Iterator[tuple[int, bytes]]:
    """The type and content of each. Reserved types (RFC 8701) are among them."""
    position, end = _vector(hello, position, 2)
    if end != len(hello):
        raise ProtocolError("a TLS ClientHello with bytes after its end")
    while position < end:
        start, after = _vector(hello, position + 2, 2)
        yield int.from_bytes(hello[position : position + 2]), hello[start:after]
        position = after


def _host_name(extension: bytes) -> str:
    """The one name in a server_name extension. RFC 6066 allows one of each type, and has defined one type."""
    start, end = _vector(extension, 0, 2)
    name_start, name_end = _vector(extension, start + 1, 2)
    if end != len(extension) or name_end != end or extension[start] != _HOST_NAME:
        raise ProtocolError("a TLS server_name extension that is not one host name")
    name = extension[name_start:name_end].removesuffix(b".")
    if not _NAME.fullmatch(name):
        raise ProtocolError("a TLS server name that is no host name")
    return name.decode("ascii").lower()


def _vector(data: bytes, position: int, width: int) -> tuple[int, int]:
    """Where the content of a variable-length vector (RFC 8446, 3.4) starts and ends.

    Parameters:
        width: bytes of its length.
    """
    start = position + width
    end = start + int.from_bytes(data[position:start])
    if max(start, end) > len(data):
        raise ProtocolError("a TLS ClientHello that is shorter than it says")
    return start, end
