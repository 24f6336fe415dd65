"""Notices of how a request comes on: at most so many in a second, and none while nobody reads."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from fastclaw import limits
from fastclaw.progress import Progress, ProgressBuffer
from fastclaw.server import jsonrpc

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastclaw.server.jsonrpc import RequestId

METHOD = "progress"


class Notices:
    """Those of one request.

    Parameters:
        request_id: of the request.
        send: takes each line; never blocks.
        is_held: as `hold` says.
    """

    def __init__(self, request_id: RequestId, send: Callable[[bytes], None], *, is_held: bool) -> None:
        self._id = request_id
        self._send = send
        self._is_held = is_held
        self._loop = asyncio.get_running_loop()
        self._buffer = ProgressBuffer()
        self._timer: asyncio.TimerHandle | None = None
        self._next = 0.0

    def tell(self, told: Progress) -> None:
        """Pass it on, by itself or with what else comes until the next notice is due."""
        self._buffer.add(told)
        self._send_soon()

    def hold(self, is_held: bool) -> None:
        """Send none, or go on: what is told meanwhile is coalesced."""
        self._is_held = is_held
        self._send_soon()

    def close(self) -> None:
        """Send what is left. Nothing is told any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._send_now()

    def _send_soon(self) -> None:
        if self._timer is None and not self._is_held:
            self._timer = self._loop.call_at(self._next, self._due)

    def _due(self) -> None:
        self._timer = None
        if not self._is_held:
            self._send_now()

    def _send_now(self) -> None:
        told = self._buffer.take()
        if told is not None:
            self._next = self._loop.time() + limits.PROGRESS_MS / 1000
            self._send(jsonrpc.encode_notice(METHOD, {"id": self._id, **msgspec.to_builtins(told)}))
