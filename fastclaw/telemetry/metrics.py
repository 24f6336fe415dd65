"""An endpoint for Prometheus: `GET /metrics` on a Unix socket or on loopback.

One answer for each connection, within a deadline; who is too slow or talks nonsense is disconnected.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
from typing import TYPE_CHECKING, NamedTuple

import h11

from fastclaw import telemetry_limits
from fastclaw.errors import InvalidParams, StartFailed
from fastclaw.linux.sockets import listen_anew

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Expose = Callable[[str], tuple[bytes, str]]

OPTION = "options.metrics"


class Counts(NamedTuple):
    """What there is now.

    Parameters:
        environments: by state.
        processes: that run.
        waiting, starting: starts that wait for their turn, and that are on their way.
        version: of fastclaw.
        egress: how often the egress proxy has decided so, by decision and reason.
    """

    environments: Mapping[str, int]
    processes: int
    waiting: int
    starting: int
    version: str
    egress: Mapping[tuple[str, str], int]


def parse(address: str) -> str | tuple[str, int]:
    """A path, or an address and a port.

    Raises:
        InvalidParams: it is neither, or is no loopback address.
    """
    if os.path.isabs(address):
        return address
    host, _, port = address.rpartition(":")
    try:
        number, is_loopback = int(port), ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        number, is_loopback = -1, False
    if not is_loopback or not 0 <= number <= 65_535:
        text = f"$.{OPTION}: {address!r} is neither an absolute path nor 127.0.0.1:PORT or [::1]:PORT"
        raise InvalidParams(text, path=f"$.{OPTION}")
    return host.strip("[]"), number


class MetricsEndpoint:
    """Answers who asks for the metrics of a runtime; made by `open`.

    Attributes:
        address: where.
    """

    def __init__(self, expose: Expose) -> None:
        self.address = ""
        self._expose = expose
        self._server: asyncio.Server | None = None
        self._path: str | None = None
        self._clients: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<MetricsEndpoint {self.address}>"

    @classmethod
    async def open(cls, address: str, expose: Expose) -> MetricsEndpoint:
        """Listen.

        Parameters:
            address: as for `parse`; port 0 takes a free one.
            expose: gives the text and its content type for a header `Accept`.

        Raises:
            InvalidParams: as `parse`.
            StartFailed: `io_error`: the port is taken, or the socket cannot be made.
        """
        where, endpoint = parse(address), cls(expose)
        try:
            await endpoint._listen(where)
        except OSError as error:
            await endpoint.aclose()
            why = os.strerror(error.errno) if error.errno else error
            text = f"{OPTION}: cannot listen at {address}: {why}; take another place"
            raise StartFailed(text, "io_error") from error
        return endpoint

    async def _listen(self, where: str | tuple[str, int]) -> None:
        if isinstance(where, tuple):
            self._server = await asyncio.start_server(self._serve, *where, limit=telemetry_limits.METRICS_REQUEST_BYTES)
            host, port, *_ = self._server.sockets[0].getsockname()
            self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            return
        listener = listen_anew(where, telemetry_limits.METRICS_CLIENTS)  # asyncio takes a living one's place
        self.address = self._path = where
        try:
            self._server = await asyncio.start_unix_server(
                self._serve, sock=listener, limit=telemetry_limits.METRICS_REQUEST_BYTES
            )
        except BaseException:
            listener.close()
            raise

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._clients) >= telemetry_limits.METRICS_CLIENTS:
            writer.transport.abort()
            return
        self._clients.add(task)
        try:
            async with asyncio.timeout(telemetry_limits.METRICS_MS / 1000):
                await self._answer(reader, writer)
        except (TimeoutError, OSError, h11.ProtocolError):
            writer.transport.abort()
        finally:
            self._clients.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = h11.Connection(h11.SERVER, max_incomplete_event_size=telemetry_limits.METRICS_REQUEST_BYTES)
        while (event := talk.next_event()) is h11.NEED_DATA:
            talk.receive_data(await reader.read(telemetry_limits.METRICS_REQUEST_BYTES))
        if not isinstance(event, h11.Request):
            return
        status, body, content_type = self._response(event)
        head = [("Content-Type", content_type), ("Content-Length", str(len(body))), ("Connection", "close")]
        sent = talk.send(h11.Response(status_code=status, headers=head)) or b""
        writer.write(sent + (b"" if event.method == b"HEAD" else body))
        await writer.drain()

    def _response(self, request: h11.Request) -> tuple[int, bytes, str]:
        if request.target.partition(b"?")[0] != b"/metrics":
            return 404, b"the metrics are at /metrics\n", "text/plain"
        if request.method not in {b"GET", b"HEAD"}:
            return 405, b"GET /metrics\n", "text/plain"
        accepted = dict(request.headers).get(b"accept", b"")
        return 200, *self._expose(accepted.decode("latin-1"))

    async def aclose(self) -> None:
        """End it. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
            for task in list(self._clients):
                task.cancel()
            await asyncio.gather(*self._clients, return_exceptions=True)
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            self._path = None
