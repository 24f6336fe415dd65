"""What fastclaw and its egress proxy say to each other, over one SOCK_SEQPACKET socket: JSON frames.

    OPEN      to the proxy, with two descriptors: serve an environment; a file with its `EgressConfig`, and the memory
              of its counters
    LISTEN    to the proxy, with one descriptor: serve this socket of an environment
    UNLISTEN  to the proxy: no longer, and end what came over it
    CLOSE     to the proxy: an environment goes; end all that is its
    READY     from the proxy: it serves an environment
    TROUBLE   from the proxy: something lasting that the environment's `health` should say, in one line
    FAILED    from the proxy: it cannot serve an environment, and has nothing of it
    CLOSED    from the proxy: it has nothing of an environment any more
    LOGGED    from the proxy: one line for the log

`environment` is the number that OPEN gave; no number is given twice to one proxy. The configuration is in a file, since
it holds secrets (every user can read a command line) and may be long. Bytes in, values out; nothing here knows a
socket.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import Struct

from fastclaw.errors import ProtocolError

Role = Literal["proxy", "transparent", "dns_udp", "dns_tcp"]
"""What a listening socket is for: HTTP proxying asked for by the client, connections that a firewall has turned to us,
questions for addresses."""


class Injection(Struct, frozen=True, kw_only=True):
    """A header that the proxy adds to plain-HTTP requests for one host. `value` is a secret: never log it."""

    host: str
    header: str
    value: str

    def __repr__(self) -> str:
        return f"Injection(host={self.host!r}, header={self.header!r}, value=…)"


class Upstream(Struct, frozen=True, kw_only=True):
    """A proxy outside through which connections leave. `authorization` is a secret: never log it."""

    host: str
    port: int
    authorization: str | None = None

    def __repr__(self) -> str:
        return f"Upstream(host={self.host!r}, port={self.port}, …)"


class EgressConfig(Struct, frozen=True, kw_only=True):
    """What one environment may do.

    Parameters:
        allow, deny: rules, as `policy.Policy` reads them.
        log: path of the decision log; None: there is none.
        max_bytes: both directions together, for the environment's whole life; None is no limit.
        hint: what to say besides where nothing outside can be reached.
        closed_ports: of this host, closed also by its names.
        subnet: clients of a bridge come from here, as `a.b.c.d/n`; None: from anywhere.
    """

    allow: list[str]
    deny: list[str]
    inject: list[Injection]
    log: str | None
    log_max_bytes: int
    max_connections: int
    max_connections_per_s: int
    max_bytes: int | None
    idle_timeout_ms: int
    connect_timeout_ms: int
    hint: str = ""
    closed_ports: list[int] = []
    upstream: Upstream | None = None
    subnet: str | None = None


class Open(Struct, frozen=True, tag="open"):
    """OPEN."""

    environment: int


class Listen(Struct, frozen=True, tag="listen"):
    """LISTEN."""

    environment: int
    id: int
    role: Role


class Unlisten(Struct, frozen=True, tag="unlisten"):
    """UNLISTEN."""

    environment: int
    id: int


class Close(Struct, frozen=True, tag="close"):
    """CLOSE."""

    environment: int


class Ready(Struct, frozen=True, tag="ready"):
    """READY."""

    environment: int


class Trouble(Struct, frozen=True, tag="trouble"):
    """TROUBLE."""

    environment: int
    text: str


class Failed(Struct, frozen=True, tag="failed"):
    """FAILED."""

    environment: int
    text: str


class Closed(Struct, frozen=True, tag="closed"):
    """CLOSED."""

    environment: int


class Logged(Struct, frozen=True, tag="logged"):
    """LOGGED."""

    text: str


Order = Open | Listen | Unlisten | Close
Report = Ready | Trouble | Failed | Closed | Logged

FDS: dict[type[Struct], int] = {Open: 2, Listen: 1, Unlisten: 0, Close: 0}
"""How many descriptors come with an order."""

_ORDER = msgspec.json.Decoder(Order)
_REPORT = msgspec.json.Decoder(Report)
_CONFIG = msgspec.json.Decoder(EgressConfig)

encode = msgspec.json.encode


def parse_order(frame: bytes) -> Order:
    """An order to the proxy. Whether the descriptors came along (`FDS`) is for the reader to see.

    Raises:
        ProtocolError: it is none.
    """
    try:
        order: Order = _ORDER.decode(frame)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"the egress proxy got a frame that it does not know: {error}") from error
    return order


def parse_report(frame: bytes) -> Report:
    """What the proxy says.

    Raises:
        ProtocolError: it is nothing known.
    """
    try:
        report: Report = _REPORT.decode(frame)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"the egress proxy said something unknown: {error}") from error
    return report


def parse_config(text: bytes) -> EgressConfig:
    """The configuration.

    Raises:
        ProtocolError: it is none. The message has nothing of the text in it.
    """
    try:
        return _CONFIG.decode(text)
    except msgspec.DecodeError as error:
        raise ProtocolError("the egress proxy cannot read its configuration") from error
