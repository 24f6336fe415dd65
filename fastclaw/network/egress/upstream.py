"""The proxy outside (a company's) through which a sandbox's connections leave, where one is given.

Policy comes first: what gets here is allowed. The proxy is asked for names, since its own rules know names, and since
often nobody else can resolve them. Its credentials are said to it and to nobody else.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from fastclaw import network_limits
from fastclaw.network.egress.policy import Refused

if TYPE_CHECKING:
    import socket

    from fastclaw.network.egress.proxy_frames import Upstream

_STATUS = re.compile(rb"HTTP/1\.[0-9] ([0-9]{3})[ \r]")
_END = b"\r\n\r\n"

NAMED = "the proxy outside (options.network.upstream)"
WANTS_CREDENTIALS = 407


def authorization(upstream: Upstream) -> list[tuple[bytes, bytes]]:
    """What is added to what is asked of it."""
    value = upstream.authorization
    return [] if value is None else [(b"Proxy-Authorization", value.encode())]


async def open_tunnel(sock: socket.socket, upstream: Upstream, target: str) -> None:
    """Ask for a tunnel (RFC 9110, 9.3.6). What comes behind the answer is left in the socket.

    Parameters:
        sock: connected to the proxy, non-blocking.
        target: `host:port`.

    Raises:
        Refused: `unreachable`: it opens none.
    """
    loop = asyncio.get_running_loop()
    fields = b"".join(b"%s: %s\r\n" % field for field in authorization(upstream))
    head = b""
    try:
        await loop.sock_sendall(sock, b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (*[target.encode()] * 2, fields))
        while not head.endswith(_END):
            byte = await loop.sock_recv(sock, 1)
            if not byte or len(head) > network_limits.EGRESS_HEAD_BYTES:
                raise Refused("unreachable", f"no answer to CONNECT {target}")
            head += byte
    except OSError as error:
        raise Refused("unreachable", f"the connection broke: {error.strerror}") from error
    status = _STATUS.match(head)
    if status is None or not status[1].startswith(b"2"):
        raise Refused("unreachable", answered(0 if status is None else int(status[1]), target))


def answered(status: int, target: str) -> str:
    """In words what it says instead: nothing of its own text.

    Parameters:
        status: 0: it spoke no HTTP.
    """
    why = ", and wants credentials or other ones" if status == WANTS_CREDENTIALS else ""
    return f"it answered {status or 'no HTTP'} for {target}{why}"
