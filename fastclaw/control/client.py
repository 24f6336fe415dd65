"""The other side of a control socket: finds those of this user's runtimes, and asks one, with a deadline for each wait.

Blocking: who looks has nothing else to do.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from fastclaw import limits, telemetry_limits
from fastclaw.control.protocol import Killed, ProcessRows, Refusal, Snapshot, line_of, read_answer
from fastclaw.control.socket import CONTROL_NAME
from fastclaw.errors import IoError, ProtocolError
from fastclaw.linux.sockets import peer
from fastclaw.processes.listeners import is_trusted_peer, socket_directories

if TYPE_CHECKING:
    from fastclaw.control.protocol import Ask, AskKill, AskProcesses, AskSnapshot

Wanted = TypeVar("Wanted", Snapshot, ProcessRows, Killed)

HOW_TO_GET_ONE = "start it with fastclaw serve --control, or with options.control of initialize"
_AS_HE = "look as the user whose runtime it is"
"""Root has to as well: he could show what he likes, and be told what to kill."""


def find_sockets() -> list[str]:
    """The control sockets of this user's runtimes that are at their usual place."""
    return [str(path) for directory in socket_directories() if (path := directory / CONTROL_NAME).is_socket()]


class ControlClient:
    """A connection to a control socket.

    Parameters:
        path: where it is.

    Raises:
        IoError: nobody listens there, or who does is another user.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._rest = b""
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._connect()
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave. Idempotent."""
        self._socket.close()

    def _connect(self) -> None:
        self._socket.settimeout(telemetry_limits.CONTROL_ANSWER_MS / 1000)
        try:
            self._socket.connect(self.path)
        except ConnectionRefusedError:  # what is no socket refuses as well
            if os.path.exists(self.path) and not Path(self.path).is_socket():
                raise IoError(f"what is at {self.path} is no socket; {HOW_TO_GET_ONE}") from None
            raise IoError(f"nobody listens at {self.path}: its runtime has ended") from None
        except PermissionError:
            raise IoError(f"{self.path} is another user's; {_AS_HE}") from None
        except OSError as error:
            raise IoError(f"no control socket at {self.path}: {error.strerror or error}; {HOW_TO_GET_ONE}") from error
        if not is_trusted_peer(self._socket):
            raise IoError(f"who listens at {self.path} is another user, with uid {peer(self._socket)[1]}; {_AS_HE}")

    def snapshot(self, asked: AskSnapshot) -> Snapshot:
        """How the runtime is.

        Raises:
            IoError: no answer in time, or it has ended.
            ProtocolError: what answers is no fastclaw, or says why not.
        """
        return self._ask(asked, Snapshot, telemetry_limits.CONTROL_ANSWER_MS)

    def processes(self, asked: AskProcesses) -> ProcessRows:
        """A page of its processes. Raises as `snapshot`."""
        return self._ask(asked, ProcessRows, telemetry_limits.CONTROL_ANSWER_MS)

    def kill(self, asked: AskKill) -> None:
        """End one with its tree. Raises as `snapshot`."""
        self._ask(asked, Killed, telemetry_limits.CONTROL_KILL_MS + telemetry_limits.CONTROL_ANSWER_MS)

    def _ask(self, asked: Ask, wanted: type[Wanted], timeout_ms: int) -> Wanted:
        deadline = time.monotonic() + timeout_ms / 1000
        try:
            self._socket.settimeout(timeout_ms / 1000)
            with suppress(BrokenPipeError):  # who was cut off before he asked has an answer that says why
                self._socket.sendall(line_of(asked))
            answer = read_answer(self._line(deadline))
        except TimeoutError:
            raise IoError(f"no answer at {self.path} within {timeout_ms} ms", "no_answer") from None
        except OSError as error:
            raise IoError(f"the runtime at {self.path} has ended: {error.strerror}", "runtime_exited") from error
        if isinstance(answer, Refusal):
            raise ProtocolError(answer.message, answer.reason)
        if not isinstance(answer, wanted):
            raise ProtocolError(f"{self.path} answered something else than was asked for")
        return answer

    def _line(self, deadline: float) -> bytes:
        """The next line, without its end."""
        parts, size = [self._rest], len(self._rest)
        while b"\n" not in parts[-1]:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            part = self._socket.recv(limits.CLIENT_READ_BYTES)
            if not part:
                raise IoError(f"the runtime at {self.path} has ended", "runtime_exited")
            parts.append(part)
            size += len(part)
            if size > telemetry_limits.CONTROL_ANSWER_BYTES:
                raise ProtocolError(f"{self.path} answers without an end, and is no control socket")
        line, _, self._rest = b"".join(parts).partition(b"\n")
        return line
