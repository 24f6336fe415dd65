"""HTTP/1.1 as the hot path towards an engine needs it: render a request, parse one response, byte by byte or at once.

Owns the framing of RFC 9112 for a client that sends one request at a time: status line, header block,
Content-Length, chunked and until-close bodies, and the switch to a raw stream (101, or Podman's 200 without
a length). It does not know of sockets, pools, engines or JSON. h11 does the same and more, at several times the
cost per response; the tests hold this parser to h11's answers.
"""

from fastclaw.errors import ProtocolError
from fastclaw.limits import MAX_HTTP_BODY_BYTES, MAX_HTTP_HEADER_BYTES

Headers = dict[bytes, bytes]

_HEAD_END = b"\r\n\r\n"
_LINE_END = b"\r\n"
_HEX = frozenset(b"0123456789abcdefABCDEF")
_MAX_SIZE_LINE_BYTES = 4096  # a chunk-size line with extensions; Go's own reader stops at its 4 KiB buffer
_NO_BODY = frozenset((204, 304))


def render_request(method: str, path: str, body: bytes | None = None, *, upgrade: bool = False) -> bytes:
    """One request, ready to be sent.

    Parameters:
        path: origin form, already percent-encoded; a blank or a control character in it is a bug of the caller.
        body: JSON, sent with its exact Content-Length (a chunked body's trailer would be read as stdin by Podman
            after the switch; see register_exec.go and compat/exec.go of podman 4.3.1).
        upgrade: ask for a raw stream. Podman wants `Connection` to be exactly `Upgrade` for that.

    Raises:
        ValueError: the path cannot be put on a request line.
    """
    if not (path.isascii() and path.isprintable()) or " " in path:
        raise ValueError(f"not a request path: {path!r}")
    head = f"{method} {path} HTTP/1.1\r\nHost: engine\r\n"
    if upgrade:
        head += "Connection: Upgrade\r\nUpgrade: tcp\r\n"
    if body is None:
        return (head + "\r\n").encode()
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class ResponseParser:
    """One response. Feed what arrives; no byte is looked at twice and nothing grows past the bounds in `limits`.

    Parameters:
        upgrade: the request asked for a raw stream, so 101 (or 200 without a length) ends the response at its head.
        enough: bytes of the body, however long, after which the response counts as complete; its connection is of no
            use then.

    Attributes:
        status, headers, body: valid once `complete`. Header names are lower case; repeated ones are joined by commas.
        leftover: bytes after the response; after a switch they are the first bytes of the raw stream.
        upgraded: the connection is a raw stream now.
        keep_alive: the connection may carry another request.
        touched: at least one byte arrived.
    """

    __slots__ = (
        "_buffer",
        "_enough",
        "_kept",
        "_parts",
        "_position",
        "_remaining",
        "_scanned",
        "_size",
        "_step",
        "_wants_upgrade",
        "body",
        "complete",
        "headers",
        "keep_alive",
        "leftover",
        "status",
        "touched",
        "upgraded",
    )

    def __init__(self, *, upgrade: bool = False, enough: int | None = None) -> None:
        self._wants_upgrade = upgrade
        self._enough = enough
        self._kept = 0
        self._buffer = bytearray()
        self._position = 0
        self._scanned = 0
        self._remaining = 0
        self._size = 0
        self._parts: list[bytes] = []
        self._step = self._read_head
        self.status = 0
        self.headers: Headers = {}
        self.body = b""
        self.leftover = b""
        self.complete = False
        self.upgraded = False
        self.keep_alive = False
        self.touched = False

    def feed(self, data: bytes | bytearray | memoryview) -> bool:
        """Take what arrived; True once the response is complete.

        Raises:
            ProtocolError: not HTTP/1.x, or over a bound.
        """
        self.touched = self.touched or len(data) > 0
        self._buffer += data
        while not self.complete and self._step():
            pass
        if self.complete and self._position < len(self._buffer):
            self.leftover += self._take(len(self._buffer) - self._position)
        self._compact()
        return self.complete

    def feed_eof(self) -> None:
        """The peer closed. Completes a body that runs until the close.

        Raises:
            ProtocolError: the response is cut short.
        """
        if self.complete:
            return
        if self._step != self._read_until_close:
            raise ProtocolError("the engine closed the connection in the middle of an answer")
        self._finish()

    # Each step returns True when it moved on and another step may find work, False when it needs more bytes.

    def _read_head(self) -> bool:
        end = self._buffer.find(_HEAD_END, max(self._scanned - 3, self._position))
        self._scanned = len(self._buffer)
        if (end if end >= 0 else self._scanned) - self._position > MAX_HTTP_HEADER_BYTES:
            raise ProtocolError(f"the engine's answer has a header of more than {MAX_HTTP_HEADER_BYTES} bytes")
        if end < 0:
            return False
        lines = self._take(end - self._position).split(_LINE_END)
        self._position += len(_HEAD_END)
        self._scanned = self._position
        version = self._read_status(lines[0])
        if 100 <= self.status < 200 and self.status != 101:
            return True
        self.headers = _read_fields(lines[1:])
        self.keep_alive = _persists(version, self.headers)
        self._choose_body()
        return True

    def _read_status(self, line: bytes) -> bytes:
        version, _, rest = line.partition(b" ")
        code = rest[:3]
        if version not in (b"HTTP/1.1", b"HTTP/1.0") or len(code) != 3 or not code.isdigit() or rest[3:4].strip():
            raise ProtocolError(f"not an HTTP answer: {line[:80]!r}")
        self.status = int(code)
        return version

    def _choose_body(self) -> None:
        chunked = b"transfer-encoding" in self.headers
        length = self.headers.get(b"content-length")
        if self.status == 101 or (self._wants_upgrade and self.status == 200 and not chunked and length is None):
            self._switch()
        elif self.status in _NO_BODY:
            self._finish()
        elif chunked:
            self._expect_chunks()
        elif length is None:
            self.keep_alive = False
            self._step = self._read_until_close
        else:
            self._expect_length(length)

    def _switch(self) -> None:
        if not self._wants_upgrade:
            raise ProtocolError("the engine switched protocols without being asked")
        self.upgraded = True
        self.keep_alive = False
        self.complete = True

    def _expect_chunks(self) -> None:
        if self.headers[b"transfer-encoding"].lower() != b"chunked" or b"content-length" in self.headers:
            raise ProtocolError("the engine's answer has an ambiguous length")
        self._step = self._read_chunk_size

    def _expect_length(self, length: bytes) -> None:
        values = {value.strip() for value in length.split(b",")}
        value = values.pop()
        if values or not value.isdigit() or len(value) > len(str(MAX_HTTP_BODY_BYTES)) + 12:
            raise ProtocolError(f"not a length: {length[:80]!r}")
        self._remaining = int(value)
        self._count(self._remaining)
        self._step = self._read_length

    def _read_length(self) -> bool:
        self._remaining -= self._move(self._remaining)
        if self._remaining == 0:
            self._finish()
        return False

    def _read_until_close(self) -> bool:
        self._count(self._move(len(self._buffer) - self._position))
        return False

    def _read_chunk_size(self) -> bool:
        line = self._take_line()
        if line is None:
            return False
        digits = line.partition(b";")[0].rstrip(b" \t")
        if not 0 < len(digits) <= 16 or not _HEX.issuperset(digits):
            raise ProtocolError(f"not a chunk size: {line[:80]!r}")
        self._remaining = int(digits, 16)
        self._count(self._remaining)
        self._step = self._read_chunk if self._remaining else self._read_trailer
        return True

    def _read_chunk(self) -> bool:
        self._remaining -= self._move(self._remaining)
        if self._remaining:
            return False
        self._step = self._read_chunk_end
        return True

    def _read_chunk_end(self) -> bool:
        if len(self._buffer) - self._position < 2:
            return False
        if self._take(2) != _LINE_END:
            raise ProtocolError("a chunk of the engine's answer has the wrong length")
        self._scanned = self._position
        self._step = self._read_chunk_size
        return True

    def _read_trailer(self) -> bool:
        line = self._take_line()
        if line is None:
            return False
        self._size += len(line)
        if self._size > MAX_HTTP_BODY_BYTES:
            raise ProtocolError("the engine's answer has an endless trailer")
        if not line:
            self._finish()
        return bool(line)

    def _finish(self) -> None:
        if not self.complete:
            self.body = b"".join(self._parts)
            self._parts.clear()
            self.complete = True

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > MAX_HTTP_BODY_BYTES and self._enough is None:
            raise ProtocolError(f"the engine's answer is larger than {MAX_HTTP_BODY_BYTES} bytes")

    def _take(self, size: int) -> bytes:
        start = self._position
        self._position = start + size
        return bytes(memoryview(self._buffer)[start : self._position])

    def _move(self, size: int) -> int:
        """Up to `size` bytes from the buffer to the body."""
        available = min(size, len(self._buffer) - self._position)
        if available:
            self._parts.append(self._take(available))
            self._scanned = self._position
            self._kept += available
            if self._enough is not None and self._kept >= self._enough:
                self.keep_alive = False
                self._finish()
        return available

    def _take_line(self) -> bytes | None:
        end = self._buffer.find(_LINE_END, max(self._scanned - 1, self._position))
        if end < 0:
            self._scanned = len(self._buffer)
            if self._scanned - self._position > _MAX_SIZE_LINE_BYTES:
                raise ProtocolError("the engine's answer has an endless chunk line")
            return None
        line = self._take(end - self._position)
        self._position += len(_LINE_END)
        self._scanned = self._position
        return line

    def _compact(self) -> None:
        """Drop what is used. A bytearray gives up its front without moving the rest."""
        if self._position:
            del self._buffer[: self._position]
            self._scanned = max(self._scanned - self._position, 0)
            self._position = 0


def _read_fields(lines: list[bytes]) -> Headers:
    headers: Headers = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not name or name != name.strip() or b" " in name:
            raise ProtocolError(f"not a header line: {line[:80]!r}")
        key, text = name.lower(), value.strip(b" \t")
        headers[key] = headers[key] + b", " + text if key in headers else text
    return headers


def _persists(version: bytes, headers: Headers) -> bool:
    words = {word.strip() for word in headers.get(b"connection", b"").lower().split(b",")}
    return b"close" not in words and (version == b"HTTP/1.1" or b"keep-alive" in words)
