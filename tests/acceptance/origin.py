"""A real origin in a network namespace of its own: HTTP, TLS, a banner, UDP. It tells on stdout what reaches it.

    python -m tests.acceptance.origin CERTIFICATE KEY

Prints one JSON line for each connection and datagram, `{"port", "data"}`, and `{"ready": true}` once all is served.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from functools import partial
from typing import Any

HTTP, TLS, BANNER, OTHER = (80, 8080), (443, 8443), (22,), (25, 6667)
UDP = (53, 443, 4444)


def tell(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def serve_http(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each request."""
    tell(port=port, data="")
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            tell(port=port, data=head.decode("latin-1"))
            writer.write(response(head))
            await writer.drain()
    except (asyncio.IncompleteReadError, OSError, ssl.SSLError):
        pass
    finally:
        writer.close()


def response(head: bytes) -> bytes:
    """Ten million bytes for /big, a redirect for /to/HOST:PORT, else the request's own head."""
    path = head.split(b" ", 2)[1]
    if path.startswith(b"/to/"):
        return b"HTTP/1.1 302 Found\r\nLocation: http://%s/\r\nContent-Length: 0\r\n\r\n" % path[4:]
    body = b"x" * 10_000_000 if path == b"/big" else head
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


async def serve_banner(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Speak first, then repeat what comes."""
    tell(port=port, data="")
    writer.write(b"banner\n")
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self, port: int) -> None:
        self._port = port

    def datagram_received(self, data: bytes, address: Any) -> None:
        tell(port=self._port, data=data.decode("latin-1"), udp=True)


async def main(certificate: str, key: str) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    for ports, serve, tls in (
        (HTTP, serve_http, None),
        (TLS, serve_http, context),
        (BANNER + OTHER, serve_banner, None),
    ):
        for port in ports:
            await asyncio.start_server(partial(serve, port), "0.0.0.0", port, ssl=tls)
    for port in UDP:
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(partial(Datagrams, port), local_addr=("0.0.0.0", port))
    tell(ready=True)
    await loop.run_in_executor(None, sys.stdin.read)  # until whoever started us closes it


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
