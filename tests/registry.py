"""A registry of images on this host, which serves one image out of an oci-archive, as slowly as a test wants.

As much of the OCI distribution specification as a pull needs.
"""

from __future__ import annotations

import io
import json
import tarfile
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Registry:
    """What is served, and what was asked for.

    Parameters:
        archive: an oci-archive with one image.

    Attributes:
        address: `HOST:PORT`.
        pulls: how often the manifest was asked for.
        gate: blobs are given once it is set.
    """

    def __init__(self, archive: bytes, address: str) -> None:
        self.address = address
        self.pulls = 0
        self.gate = threading.Event()
        self.gate.set()
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            self._files = {member.name: file.read() for member in tar if (file := tar.extractfile(member)) is not None}
        self._manifest = json.loads(self._files["index.json"])["manifests"][0]

    @property
    def image(self) -> str:
        """How the image is called."""
        return f"{self.address}/made/here:1"

    def conf(self) -> str:
        """registries.conf(5) that names it."""
        return f'[[registry]]\nlocation = "{self.address}"\ninsecure = true\n'

    def answer(self, path: str) -> tuple[str, bytes] | None:
        """Content type and content."""
        *_, kind, name = path.split("/")
        if kind == "manifests":
            self.pulls += 1
            return self._manifest["mediaType"], self._blob(self._manifest["digest"])
        if kind == "blobs":
            self.gate.wait()
            return "application/octet-stream", self._blob(name)
        return ("text/plain", b"") if path == "/v2/" else None

    def _blob(self, digest: str) -> bytes:
        return self._files[f"blobs/{digest.replace(':', '/')}"]


class _Server(ThreadingHTTPServer):
    registry: Registry
    daemon_threads = False


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        found = self.server.registry.answer(self.path)
        self.send_response(404 if found is None else 200)
        kind, data = found or ("text/plain", b"")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            self.wfile.write(data)
        except OSError:  # nobody waits for it any more
            self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def serving(archive: bytes) -> Iterator[Registry]:
    """One for the block, on a port of its own."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.registry = registry = Registry(archive, f"127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, name="registry")
        thread.start()
        try:
            yield registry
        finally:
            registry.gate.set()
            server.shutdown()
            thread.join()
