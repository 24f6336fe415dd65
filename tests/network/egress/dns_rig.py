"""DNS messages as a stub resolver writes and reads them, by other code than the one that is tested."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import NamedTuple

from fastclaw import network_limits

A, AAAA, HTTPS, TXT, ANY, AXFR, OPT = 1, 28, 65, 16, 255, 252, 41
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, REFUSED = 0, 1, 2, 3, 5
TRUNCATED = 0x0200


class Told(NamedTuple):
    """What an answer says."""

    flags: int
    code: int
    addresses: list[str]
    has_opt: bool

    @property
    def is_cut(self) -> bool:
        """Whether there is more, over TCP."""
        return bool(self.flags & TRUNCATED)


def wire_name(name: str) -> bytes:
    """Labels, without compression."""
    return b"".join(bytes([len(label)]) + label for label in name.encode("latin-1").split(b".")) + b"\0"


def opt(size: int = 4_096, *, version: int = 0, flags: int = 0, options: bytes = b"") -> bytes:
    """An OPT record."""
    return b"\0" + struct.pack(">2H2BHH", OPT, size, 0, version, flags, len(options)) + options


def query(
    name: bytes = wire_name("a.example"),
    type: int = A,
    *,
    klass: int = 1,
    flags: int = 0x0100,
    counts: tuple[int, int, int] = (1, 0, 0),
    additional: tuple[bytes, ...] = (),
    id: int = 77,
) -> bytes:
    """One question; by default a plain and proper one."""
    head = struct.pack(">6H", id, flags, *counts, len(additional))
    return head + name + struct.pack(">2H", type, klass) + b"".join(additional)


def read(message: bytes) -> Told:
    """An answer, to its last byte."""
    _, flags, questions, answers, authorities, additional = struct.unpack_from(">6H", message)
    assert (authorities, additional in (0, 1)) == (0, True)
    at, found = 12, []
    for _ in range(questions):
        while message[at]:
            at += 1 + message[at]
        at += 5
    for _ in range(answers):
        pointer, type, klass, ttl, length = struct.unpack_from(">3HIH", message, at)
        assert (pointer, klass, ttl) == (0xC00C, 1, network_limits.DNS_TTL_S)
        assert length == {A: 4, AAAA: 16}[type]
        found.append(str(ip_address(message[at + 12 : at + 12 + length])))
        at += 12 + length
    upper = 0
    if additional:
        assert message[at : at + 3] == b"\0" + OPT.to_bytes(2)
        upper = message[at + 5] << 4
        at += 11
    assert at == len(message)
    return Told(flags, flags & 0xF | upper, found, bool(additional))
