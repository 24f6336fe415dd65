"""Questions for the addresses of a name, and their answers: the DNS as far as a stub resolver needs it.

Reads one query (RFC 1035, 4; EDNS: RFC 6891) and writes answers with A and AAAA records. The question is echoed byte
for byte, since clients hide nonces in its case. Bytes in, values out; nothing here knows a socket.
"""

from __future__ import annotations

import re
from enum import IntEnum
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from fastclaw import network_limits
from fastclaw.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Address, IPv6Address


class Rcode(IntEnum):
    """What became of a query (RFC 1035, 4.1.1; BADVERS: RFC 6891, 9)."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16


A, AAAA = 1, 28
_OPT, _TRANSFERS = 41, range(251, 255)  # IXFR, AXFR, MAILB, MAILA
_IN = 1

_HEAD = Struct(">6H")
_QUESTION = Struct(">2H")
_RECORD = Struct(">2HIH")
"""type, class, time to live, length of the data"""
_ANSWER = Struct(">3HIH")
"""a pointer to the name, and the same"""

_QR, _OPCODE, _TC, _RD, _RA, _CD = 0x8000, 0x7800, 0x0200, 0x0100, 0x0080, 0x0010
_DO = 0x8000  # among the flags of OPT
_NAME_POINTER = 0xC000 | _HEAD.size
_LABEL = re.compile(rb"[0-9A-Za-z_-]{1,63}")
_LONGEST_LABEL = 63
_POINTER = 0xC0
_NAME_BYTES = 255
_ADDITIONAL = 2  # OPT and a signature


class Query(NamedTuple):
    """One question.

    Parameters:
        id, flags: of its head.
        question: as it was asked; empty if it cannot be read.
        name: in lower case, without a trailing dot; None: it is no host name.
        type: A, AAAA, or another record type.
        fault: it cannot be answered but with this; None: it can.
        edns: None: the client does not speak EDNS.
    """

    id: int
    flags: int
    question: bytes = b""
    name: str | None = None
    type: int = 0
    fault: Rcode | None = None
    edns: Edns | None = None


class Edns(NamedTuple):
    """What OPT says.

    Parameters:
        payload_bytes: the largest answer over UDP that the client takes.
        flags: DO and those that have no meaning yet.
    """

    payload_bytes: int
    version: int
    flags: int


def parse(message: bytes) -> Query:
    """A query, be it one that can only be refused: then `fault` says how.

    Raises:
        ProtocolError: it is none, and must not be answered: two servers could answer each other for ever.
    """
    if len(message) < _HEAD.size:
        raise ProtocolError("a DNS message without a head")
    id, flags, *counts = _HEAD.unpack_from(message)
    if flags & _QR:
        raise ProtocolError("a DNS answer that nobody asked for")
    query = Query(id, flags)
    if flags & _OPCODE:
        return query._replace(fault=Rcode.NOTIMP)
    try:
        return _read(query, message, counts)
    except ProtocolError:
        return query._replace(fault=Rcode.FORMERR)


def _read(query: Query, message: bytes, counts: list[int]) -> Query:
    questions, answers, authorities, additional = counts
    if (questions, answers, authorities) != (1, 0, 0) or additional > _ADDITIONAL:
        raise ProtocolError("a DNS query that is not one question")
    labels, end = _labels(message, _HEAD.size)
    type, klass = _unpack(_QUESTION, message, end)
    end += _QUESTION.size
    question = message[_HEAD.size : end]
    edns = None
    for _ in range(additional):
        found, end = _additional(message, end)
        if found and edns:
            raise ProtocolError("a DNS query with two OPT records")
        edns = edns or found
    if end != len(message):
        raise ProtocolError("a DNS query with bytes after its end")
    fault = _fault(type, klass, edns)
    return query._replace(question=question, name=_host_name(labels), type=type, fault=fault, edns=edns)


def _fault(type: int, klass: int, edns: Edns | None) -> Rcode | None:
    if edns and edns.version:
        return Rcode.BADVERS
    if klass != _IN or type in _TRANSFERS:
        return Rcode.REFUSED
    return Rcode.FORMERR if type == _OPT else None


def _labels(message: bytes, position: int) -> tuple[list[bytes], int]:
    """The labels of a name without compression (there is nothing before it to point to), and where it ends."""
    start, labels = position, []
    while (length := _byte(message, position)) != 0:
        if length > _LONGEST_LABEL:
            raise ProtocolError("a DNS name with a pointer")
        labels.append(message[position + 1 : position + 1 + length])
        position += 1 + length
        if position - start >= _NAME_BYTES:
            raise ProtocolError("a DNS name of more than 255 bytes")
    return labels, position + 1


def _additional(message: bytes, position: int) -> tuple[Edns | None, int]:
    """One record after the question: an OPT, or None for another one; and where it ends."""
    is_root = _byte(message, position) == 0
    if message[position] >= _POINTER:
        position += 2
    else:
        _, position = _labels(message, position)
    type, klass, ttl, length = _unpack(_RECORD, message, position)
    end = position + _RECORD.size + length
    if end > len(message) or (type == _OPT and not is_root):
        raise ProtocolError("a DNS record that is cut off")
    return Edns(klass, ttl >> 16 & 0xFF, ttl & 0xFFFF) if type == _OPT else None, end


def _byte(message: bytes, position: int) -> int:
    if position >= len(message):
        raise ProtocolError("a DNS message that is cut off")
    return message[position]


def _unpack(layout: Struct, message: bytes, position: int) -> tuple[int, ...]:
    if position + layout.size > len(message):
        raise ProtocolError("a DNS message that is cut off")
    return layout.unpack_from(message, position)


def _host_name(labels: list[bytes]) -> str | None:
    """Letters, digits, hyphens and underscores; None for anything else, the root too."""
    if not labels or not all(map(_LABEL.fullmatch, labels)):
        return None
    return b".".join(labels).decode("ascii").lower()


def udp_bytes(query: Query) -> int:
    """How large an answer over UDP may be."""
    if query.edns is None:
        return network_limits.DNS_PLAIN_BYTES
    return min(max(query.edns.payload_bytes, network_limits.DNS_PLAIN_BYTES), network_limits.DNS_UDP_BYTES)


def answer(query: Query, addresses: Sequence[IPv4Address | IPv6Address], max_bytes: int) -> bytes:
    """The name exists, and these are its addresses of the type that was asked for; none is an answer as well.

    Parameters:
        addresses: of both families; those that were not asked for are left out, and those beyond
            `network_limits.DNS_ANSWERS`.
        max_bytes: of the answer. Addresses that do not fit are left out, and the client is told to ask over TCP.
    """
    version = {A: 4, AAAA: 6}.get(query.type)
    wanted = [address.packed for address in addresses if address.version == version][: network_limits.DNS_ANSWERS]
    room = max_bytes - len(_message(query, Rcode.NOERROR))
    size = _ANSWER.size + (len(wanted[0]) if wanted else 0)
    records = [
        _ANSWER.pack(_NAME_POINTER, query.type, _IN, network_limits.DNS_TTL_S, len(data)) + data for data in wanted
    ]
    return _message(query, Rcode.NOERROR, records[: room // size], is_cut=len(records) > room // size)


def failure(query: Query, rcode: Rcode) -> bytes:
    """There are no addresses, for this reason."""
    return _message(query, rcode)


def _message(query: Query, rcode: Rcode, records: Sequence[bytes] = (), *, is_cut: bool = False) -> bytes:
    flags = _QR | _RA | query.flags & (_OPCODE | _RD | _CD) | (_TC if is_cut else 0) | rcode & 0xF
    opt = b"" if query.edns is None else _opt(query.edns, rcode)
    head = _HEAD.pack(query.id, flags, 1 if query.question else 0, len(records), 0, 1 if opt else 0)
    return b"".join((head, query.question, *records, opt))


def _opt(edns: Edns, rcode: Rcode) -> bytes:
    """Ours: the upper bits of the code, version 0, and DO as the client has it (RFC 3225, 3)."""
    ttl = rcode >> 4 << 24 | edns.flags & _DO
    return b"\0" + _RECORD.pack(_OPT, network_limits.DNS_UDP_BYTES, ttl, 0)
