"""A start that is under way: what there is of it so far, and what its failures mean.

Knows no pool: who takes back what, and when, is decided there.
"""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

from fastclaw.errors import ExecFailed, IoError, RuntimeSdkError
from fastclaw.processes.lane import Collection

if TYPE_CHECKING:
    from fastclaw.processes.admission import Ticket
    from fastclaw.processes.lane import LaneProcess
    from fastclaw.processes.process import Process
    from fastclaw.runtime import RunRequest

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC, errno.EAGAIN})
"""What the kernel says when there is not enough of something now: trying later may help."""


class Begun:
    """What there is of a start so far: all that is to be taken back where nothing comes of it."""

    __slots__ = ("admitted_at", "asked_at", "lane_process", "process", "ticket")

    def __init__(self, ticket: Ticket, asked_at: int) -> None:
        self.ticket = ticket
        self.asked_at = asked_at
        self.admitted_at = time.monotonic_ns()
        self.lane_process: LaneProcess | None = None
        self.process: Process | None = None


def collection_of(request: RunRequest, data: bytes) -> Collection:
    """What a run wants of its streams. `data`: its whole input."""
    return Collection(
        input=data,
        output_limit=request.output_limit,
        keep=request.keep,
        on_limit=request.on_limit,
        drain_ms=request.drain_ms,
    )


def never_ran(lane_process: LaneProcess) -> bool:
    """The lane has said so, and has seen to it that nothing is left."""
    started = lane_process.started
    return started is not None and started.done() and not started.cancelled() and started.exception() is not None


def explained(error: OSError) -> RuntimeSdkError:
    """What the kernel refused, in the contract's words."""
    text = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in _EXHAUSTED:
        return ExecFailed(f"{text}; fewer processes at a time, or a higher limit (fastclaw doctor)", "overloaded")
    return IoError(f"the process's sockets: {text}")
