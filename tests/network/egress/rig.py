"""A proxy with a sandbox's rules, an origin server behind it, and clients that say exactly what a test wants.

The origin answers by the path that it is asked for (`_ANSWERS`), and keeps every byte of what it read.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, NamedTuple

import h11
import pytest

from fastclaw.network.egress.accounting import Counters
from fastclaw.network.egress.policy import Refused
from fastclaw.network.egress.proxy_frames import EgressConfig, Injection
from fastclaw.network.egress.sandbox_server import Commons, Server
from fastclaw.network.egress.shares import Pool, Share

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from fastclaw.network.egress.addresses import Address

PATIENCE_S = 20
"""How long a test waits for what comes at once."""

HERE = "127.0.0.1"


def config(allow: Sequence[str] = (), **options: Any) -> EgressConfig:
    """A sandbox's configuration, with defaults that bound nothing."""
    settings: dict[str, Any] = {
        "allow": list(allow),
        "deny": [],
        "inject": [],
        "log": None,
        "log_max_bytes": 1 << 20,
        "max_connections": 1_000,
        "max_connections_per_s": 10_000,
        "max_bytes": None,
        "idle_timeout_ms": 60_000,
        "connect_timeout_ms": 5_000,
    }
    return EgressConfig(**{**settings, **options})


def listening(host: str = HERE, family: int = socket.AF_INET) -> socket.socket:
    """A socket for a listener."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, 0))
    sock.listen(256)
    return sock


def many() -> Share:
    """As many descriptors as anybody wants."""
    return Share(Pool(1_000_000))


async def lookup(name: str) -> Sequence[Address]:
    """A resolver for tests: a few names are here, one is inside a cloud, and no other exists."""
    places = {"origin.test": HERE, "other.test": HERE, "localhost": HERE, "rebind.test": "169.254.169.254"}
    try:
        return [ip_address(places[name])]
    except KeyError:
        raise OSError("no such name") from None


def client_hello(name: str | None) -> bytes:
    """What a real TLS client says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = False
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


UNREADABLE = [
    b"\x16\x03\x01\x00\x05\x02\x00\x00\x01\x00",
    b"\x15\x03\x01\x00\x02\x01\x00" + client_hello("evil.test"),
    b"\x14\x03\x01\x00\x01\x01" + client_hello("evil.test"),
]
LENGTH_FIRST = b"\x16\x01\x00\x00" + bytes(0x112)
"""A message with its length of 278 in front, little-endian, as MongoDB's are."""


async def reason_of(attempt: Awaitable[object]) -> str:
    """Why it is refused."""
    with pytest.raises(Refused) as caught:
        await attempt
    return caught.value.reason


class Answer(NamedTuple):
    """An answer as a client saw it. Names of fields are in lower case."""

    status: int
    fields: dict[str, str]
    body: bytes
    trailers: dict[str, str]
    interim: list[int]

    @property
    def reason(self) -> str:
        return self.fields.get("x-fastclaw-reason", "")


def _fields(fields: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in fields:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found


class Client:
    """One connection, raw: `say` what you like, read bytes, or an answer as h11 reads it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._left = b""

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def read(self, size: int) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.readexactly(size)

    async def rest(self) -> bytes:
        """All that comes until the other side closes; a reset is an end as well."""
        found = b""
        async with asyncio.timeout(PATIENCE_S):
            try:
                while data := await self.reader.read(1 << 16):
                    found += data
            except ConnectionError:
                pass
        return self._left + found

    async def until(self, end: bytes) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.readuntil(end)

    async def answer(self, method: str = "GET") -> Answer:
        """The next answer; what came behind it is kept for the next one."""
        http = h11.Connection(h11.CLIENT)
        http.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        http.send(h11.EndOfMessage())
        status, fields, body, interim = 0, {}, b"", []
        if self._left:
            http.receive_data(self._left)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                event = http.next_event()
                if event is h11.NEED_DATA:
                    http.receive_data(await self.reader.read(1 << 16))
                elif isinstance(event, h11.InformationalResponse):
                    interim.append(event.status_code)
                elif isinstance(event, h11.Response):
                    status, fields = event.status_code, _fields(event.headers)
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    self._left = http.trailing_data[0]
                    return Answer(status, fields, body, _fields(event.headers), interim)

    async def ask(self, head: str, body: bytes = b"") -> Answer:
        """Say a request (its lines as text) and read the answer."""
        await self.say(request(head) + body)
        return await self.answer(head.split(" ", 1)[0])

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


def request(head: str) -> bytes:
    """The bytes of a head that is written as lines of text."""
    return head.replace("\n", "\r\n").encode("latin-1") + b"\r\n\r\n"


class Seen(NamedTuple):
    """A request as the origin read it."""

    head: bytes
    body: bytes

    @property
    def line(self) -> str:
        return self.head.split(b"\r\n", 1)[0].decode()

    @property
    def fields(self) -> dict[str, str]:
        lines = self.head.split(b"\r\n")[1:]
        return _fields(line.split(b": ", 1) for line in lines if line)


class Origin:
    """A real HTTP/1.1 server.

    Attributes:
        seen: the requests, in order; one whose body is not read is there with what came.
        connections: how many were accepted.
        gone: set when a client has closed a connection.
        go: what `/slow` waits for.
    """

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.connections = 0
        self.gone = asyncio.Event()
        self.go = asyncio.Event()
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def start(self, sock: socket.socket) -> None:
        self.port: int = sock.getsockname()[1]
        self._server = await asyncio.start_server(self._on_client, sock=sock)

    async def aclose(self) -> None:
        self._server.close()
        self.go.set()
        for writer in self._open.values():
            writer.transport.abort()
        await asyncio.gather(*self._open)

    async def _on_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        self.connections += 1
        try:
            while (head := await reader.readuntil(b"\r\n\r\n")) and await self._respond(head[:-2], reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone.set()
        finally:
            writer.close()
            del self._open[task]

    async def _respond(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        path = head.split(b" ")[1].decode("latin-1").split("?")[0]
        early = _EARLY.get(path)
        if early is not None:
            writer.write(early)
        if path == "/refuses-body":
            self.seen.append(Seen(head, b""))
            return False
        body = await _read_body(head, reader)
        self.seen.append(Seen(head, body))
        if path == "/slow":
            await self.go.wait()
        if path == "/upgrade":
            writer.write(b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhi!")
            while data := await reader.read(1 << 16):
                writer.write(data.upper())
                await writer.drain()
            return False
        if path.startswith("/big/"):
            await _write_big(int(path.removeprefix("/big/")), writer)
        else:
            answer = _ANSWERS.get(path)
            shown = head + b"\r\n" + body
            writer.write(
                answer if answer is not None else b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(shown)
            )
            if answer is None and not head.startswith(b"HEAD "):
                writer.write(shown)
        await writer.drain()
        return path not in _LAST


async def _read_body(head: bytes, reader: asyncio.StreamReader) -> bytes:
    fields = Seen(head, b"").fields
    if fields.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(fields.get("content-length", "0")))
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readline()
    while (line := await reader.readline()) != b"\r\n":
        body += b"[" + line.strip() + b"]"
    return body


async def _write_big(size: int, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
    piece = b"x" * (1 << 16)
    while size:
        writer.write(piece[:size])
        await writer.drain()
        size -= min(size, len(piece))


_EARLY = {
    "/continue": b"HTTP/1.1 100 Continue\r\n\r\n",
    "/hints": b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n",
    "/refuses-body": b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno\n",
}
_ANSWERS = {
    "/chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
    b"3\r\nabc\r\n4;ext=1\r\ndefg\r\n0\r\nX-Sum: 7\r\nContent-Length: 99\r\n\r\n",
    "/until-close": b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nall of it",
    "/old": b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nold",
    "/hops": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: X-Secret-Hop, keep-alive\r\nX-Secret-Hop: 1\r\n"
    b"Keep-Alive: timeout=5\r\nProxy-Authenticate: Basic\r\nX-Stays: yes\r\nUpgrade: h2c\r\n\r\nok",
    "/both-lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "/204": b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
    "/304": b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\nContent-Length: 500\r\n\r\n',
    "/head": b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n",
    "/cut": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly ten..",
    "/cut-chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nonly ten..",
    "/silent": b"",
    "/garbage": b"SSH-2.0-whatever\r\n\r\n",
    "/bad-length": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "/unasked-101": b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n",
    "/huge-head": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n",
    "/redirect": b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/latest/\r\nContent-Length: 0\r\n\r\n",
    "/closes": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nend",
}
_LAST = frozenset(
    ("/until-close", "/old", "/cut", "/cut-chunk", "/silent", "/garbage", "/bad-length", "/unasked-101", "/closes")
)
"""After these the origin closes, said or not."""


class Rig:
    """A proxy, its origin, and clients.

    Attributes:
        said: what the proxy wanted a person to know.
    """

    def __init__(self, server: Server, counters: Counters, origin: Origin, port: int, said: list[str]) -> None:
        self.server, self.counters, self.origin, self.port, self.said = server, counters, origin, port, said
        self._clients: list[Client] = []

    @property
    def url(self) -> str:
        return f"http://{HERE}:{self.origin.port}"

    @property
    def denied(self) -> dict[str, int]:
        found: dict[str, int] = self.counters.snapshot()["denied"]
        return found

    @property
    def open(self) -> int:
        found: int = self.counters.snapshot()["open"]
        return found

    async def connect(self, port: int | None = None, source: str | None = None) -> Client:
        local = None if source is None else (source, 0)
        client = Client(*await asyncio.open_connection(HERE, port or self.port, local_addr=local))
        self._clients.append(client)
        return client

    async def tunnel(self, authority: str | None = None) -> Client:
        """A client with a tunnel to the origin, or to somebody else."""
        client = await self.connect()
        where = authority or f"{HERE}:{self.origin.port}"
        await client.say(request(f"CONNECT {where} HTTP/1.1\nHost: {where}"))
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        return client

    async def still_works(self) -> None:
        """The proxy serves whoever comes next."""
        client = await self.connect()
        answer = await client.ask(f"GET {self.url}/next HTTP/1.1\nHost: x")
        assert answer.status == 200

    async def aclose(self) -> None:
        for client in self._clients:
            await client.close()
        await self.server.aclose()
        await self.origin.aclose()
        self.counters.close()


class _Failures(logging.Handler):
    """What the proxy logs as an error is a bug of the proxy."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(self.format(record))


@asynccontextmanager
async def a_proxy(
    allow: Sequence[str] = ("127.0.0.1:*",),
    inject: Sequence[tuple[str, str, str]] = (),
    log: Path | None = None,
    lookup: Callable[[str], Awaitable[Sequence[Address]]] = lookup,
    commons: Commons | None = None,
    **options: Any,
) -> AsyncIterator[Rig]:
    """A proxy that allows all ports of this host, or what `allow` says.

    Parameters:
        commons: with other proxies; None: it is alone.
    """
    listener, backend = listening(), listening()
    injections = [Injection(host=host, header=header, value=value) for host, header, value in inject]
    said: list[str] = []
    counters = Counters.create()
    settings = config(allow, inject=injections, log=None if log is None else str(log), **options)
    shared = commons or Commons(10_000)
    server = Server(settings, counters, said.append, shared, lookup)
    server.add(1, "proxy", listener)
    origin = Origin()
    await origin.start(backend)
    rig = Rig(server, counters, origin, listener.getsockname()[1], said)
    failures = _Failures()
    logging.getLogger("fastclaw").addHandler(failures)
    try:
        yield rig
    finally:
        await rig.aclose()
        if commons is None:
            shared.close()
        logging.getLogger("fastclaw").removeHandler(failures)
    assert failures.found == []
