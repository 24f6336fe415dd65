"""What there is of a start, and what its failures are called."""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING

import pytest

from fastclaw.errors import ExecFailed, IoError
from fastclaw.processes.admission import Admission
from fastclaw.processes.begun import Begun, collection_of, explained, never_ran
from fastclaw.processes.lane import Collection, StartSpec
from fastclaw.runtime import RunRequest
from tests.processes.lanes import ScriptedProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def process() -> AsyncIterator[ScriptedProcess]:
    scripted = ScriptedProcess(StartSpec(process_id="p", cmd=["x"]))
    yield scripted
    scripted.close_theirs()
    scripted.close_streams()


def test_of_a_start_that_has_just_been_admitted_there_is_a_place() -> None:
    ticket = Admission(1, 1, 1, 1).request("who asks", 0.0)
    begun = Begun(ticket, 5)
    assert (begun.ticket, begun.asked_at) == (ticket, 5)
    assert (begun.lane_process, begun.process) == (None, None)
    assert Begun(ticket, 5).admitted_at >= begun.admitted_at


def test_what_a_run_wants_of_its_streams() -> None:
    request = RunRequest(cmd=["x"], output_limit=5, keep="tail", on_limit="kill", drain_ms=7)
    wanted = Collection(input=b"in", output_limit=5, keep="tail", on_limit="kill", drain_ms=7)
    assert collection_of(request, b"in") == wanted
    assert collection_of(RunRequest(cmd=["x"]), b"") == Collection()


async def test_only_what_the_lane_has_refused_never_ran(process: ScriptedProcess) -> None:
    assert not never_ran(process), "it runs already"
    started = process.started = asyncio.get_running_loop().create_future()
    assert not never_ran(process), "it may run at any moment"
    started.set_exception(ExecFailed("no", "not_found"))
    assert never_ran(process)


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_what_runs_or_was_given_up_may_have_run(process: ScriptedProcess, is_cancelled: bool) -> None:
    started = process.started = asyncio.get_running_loop().create_future()
    if is_cancelled:
        started.cancel()
    else:
        started.set_result(None)
    assert not never_ran(process)


@pytest.mark.parametrize(
    "number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ENOSPC, errno.EAGAIN]
)
def test_not_enough_now_may_be_tried_again(number: int) -> None:
    error = explained(OSError(number, os.strerror(number)))
    assert isinstance(error, ExecFailed)
    assert (error.reason, error.retryable) == ("overloaded", True)
    assert os.strerror(number) in str(error)
    assert "fastclaw doctor" in str(error)


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "No such file or directory"), OSError("of no number")])
def test_anything_else_is_an_error_of_the_sockets(error: OSError) -> None:
    found = explained(error)
    assert isinstance(found, IoError)
    assert str(error.strerror or error) in str(found)
