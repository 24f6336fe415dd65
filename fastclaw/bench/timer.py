"""A timer of the kernel's own (timerfd_create(2)) in the loop: the loop's are to the millisecond, and a run takes less.

It is the monotonic clock's: a clock that is set does not move it.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

_CLOCK_MONOTONIC = 1
_TFD_NONBLOCK, _TFD_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
_TFD_TIMER_ABSTIME = 1
_NS = 1_000_000_000
_SPEC = struct.Struct("@4l")
"""struct itimerspec: an interval, and when it is due first; seconds and nanoseconds each."""

_libc = ctypes.CDLL(None, use_errno=True)


class Timer:
    """Calls somebody at a moment, and at the next one that he names.

    Parameters:
        due: called when it is time; gives the next moment, or None.
    """

    def __init__(self, due: Callable[[], int | None]) -> None:
        self._due = due
        self._loop = asyncio.get_running_loop()
        self._fd = _libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC)
        if self._fd < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        self._loop.add_reader(self._fd, self._ring)

    def arm(self, at_ns: int) -> None:
        """Ring at a moment of the monotonic clock; at once where that has passed."""
        spec = _SPEC.pack(0, 0, *divmod(max(at_ns, 1), _NS))  # 0 would disarm it
        if _libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, spec, None) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))

    def _ring(self) -> None:
        os.read(self._fd, 8)
        following = self._due()
        if following is not None:
            self.arm(following)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
