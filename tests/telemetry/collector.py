"""A collector of spans on loopback, by OTLP over HTTP (https://opentelemetry.io/docs/specs/otlp/)."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, NamedTuple, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from opentelemetry.proto.common.v1.common_pb2 import KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

DEADLINE_S = 30


class Received(NamedTuple):
    """A span as it came, and what sent it."""

    span: Span
    resource: dict[str, str | int]

    @property
    def attributes(self) -> dict[str, str | int]:
        return values(self.span.attributes)

    @property
    def ids(self) -> tuple[str, str, str]:
        """Its trace, its parent and its own."""
        return self.span.trace_id.hex(), self.span.parent_span_id.hex(), self.span.span_id.hex()

    @property
    def traceparent(self) -> str:
        """What its children are told."""
        trace, _, span = self.ids
        return f"00-{trace}-{span}-01"


def values(attributes: object) -> dict[str, str | int]:
    """Attributes by name: all of ours are strings and whole numbers."""
    found: dict[str, str | int] = {}
    pair: KeyValue
    for pair in attributes:  # type: ignore[attr-defined]  # protobuf's container has no public type
        which = pair.value.WhichOneof("value")
        found[pair.key] = pair.value.int_value if which == "int_value" else pair.value.string_value
    return found


class Collector:
    """Serves while it is entered.

    Parameters:
        answers: False takes a request and says nothing until it is left.
        status: of its answers.

    Attributes:
        endpoint: its URL.
        spans: that have come.
        requests: how many were begun.
    """

    def __init__(self, *, answers: bool = True, status: int = 200) -> None:
        self.spans: list[Received] = []
        self.requests = 0
        self._news = threading.Condition()
        self._ends = threading.Event()
        mine = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                mine._take(body if self.path == "/v1/traces" and status == 200 else b"")
                if not answers:
                    mine._ends.wait(DEADLINE_S)
                    return
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing: stderr is the test's."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        with self._news:
            self.requests += 1
            for of_resource in request.resource_spans:
                resource = values(of_resource.resource.attributes)
                for of_scope in of_resource.scope_spans:
                    self.spans += [Received(span, resource) for span in of_scope.spans]
            self._news.notify_all()

    def until(self, *, spans: int = 0, requests: int = 0) -> None:
        """Wait until so many have come."""
        with self._news:
            came = self._news.wait_for(lambda: len(self.spans) >= spans and self.requests >= requests, DEADLINE_S)
        assert came, f"{len(self.spans)} spans in {self.requests} requests"

    def named(self, name: str) -> list[Received]:
        """The spans of this name."""
        return [one for one in self.spans if one.span.name == name]


def now_ns() -> int:
    """As spans have their times."""
    return time.time_ns()
