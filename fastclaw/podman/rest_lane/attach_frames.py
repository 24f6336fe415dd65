"""The multiplexed attach stream: which bytes are stdout and which are stderr.

Owns the frame layout `stream, 0, 0, 0, length (32 bits, big-endian), payload` that Docker defined and Podman speaks for
execs without a tty (libpod/oci_conmon_exec_common.go, moby's pkg/stdcopy). It does not know where bytes come from or
go to. The format also names 0 (stdin) and 3 (the daemon's own error); Podman sends neither, so both count as garbage
here: passing them on would put bytes into a stream that the command never wrote.
"""

from struct import Struct

from fastclaw.errors import ProtocolError

STDOUT = 1
STDERR = 2
HEADER_BYTES = 8

_HEADER = Struct(">II")
_STREAMS = {STDOUT << 24: STDOUT, STDERR << 24: STDERR}

Slices = list[tuple[int, memoryview]]


class Demultiplexer:
    """Splits the stream as it arrives. Payloads are handed on as slices of the caller's buffer, never copied.

    Attributes:
        stream: of the frame under way.
        remaining: payload bytes of that frame which are still to come.
    """

    __slots__ = ("_header", "remaining", "stream")

    def __init__(self) -> None:
        self._header = b""
        self.remaining = 0
        self.stream = 0

    def feed(self, data: memoryview) -> Slices:
        """The payload slices in `data`, in order; a frame cut by its end goes on with the next call.

        Raises:
            ProtocolError: no frame header where one must be.
        """
        slices: Slices = []
        position, size = 0, len(data)
        while position < size:
            if self.remaining == 0:
                position = self._read_header(data, position, size)
                continue
            end = min(position + self.remaining, size)
            slices.append((self.stream, data[position:end]))
            self.remaining -= end - position
            position = end
        return slices

    def feed_eof(self) -> None:
        """The stream ended.

        Raises:
            ProtocolError: in the middle of a frame.
        """
        if self.remaining or self._header:
            raise ProtocolError("the engine's stream ended in the middle of a frame")

    def _read_header(self, data: memoryview, position: int, size: int) -> int:
        if not self._header and size - position >= HEADER_BYTES:
            self._enter(*_HEADER.unpack_from(data, position))
            return position + HEADER_BYTES
        end = min(position + HEADER_BYTES - len(self._header), size)
        self._header += bytes(data[position:end])
        if len(self._header) == HEADER_BYTES:
            self._enter(*_HEADER.unpack(self._header))
            self._header = b""
        return end

    def _enter(self, word: int, length: int) -> None:
        stream = _STREAMS.get(word)
        if stream is None:
            raise ProtocolError(f"not a frame header: {word:08x} {length:08x}")
        self.stream = stream
        self.remaining = length
