"""A helper process is watched, reaped, and killed where it does not end."""

from __future__ import annotations

import os
import sys

import pytest

from fastclaw.transport.child import Child
from tests.balance import balanced, children

WAITS_FOR_EOF = "import os, sys; os.read(int(sys.argv[1]), 1)"
NEVER_ENDS = "import signal; signal.sigwait([signal.SIGUSR1])"


async def test_it_ends_with_what_it_lives_on() -> None:
    async with balanced():
        theirs, ours = os.pipe()
        child = Child([sys.executable, "-c", WAITS_FOR_EOF, str(theirs)], theirs, quiet=True)
        os.close(theirs)
        assert child.pid in children()
        assert os.getsid(child.pid) == child.pid
        os.close(ours)
        await child.wait_ended(30)
        await child.wait_ended(0)


async def test_one_that_does_not_end_is_killed() -> None:
    async with balanced():
        theirs, ours = os.pipe()
        child = Child([sys.executable, "-c", NEVER_ENDS], theirs, quiet=True)
        os.close(theirs)
        os.close(ours)
        await child.wait_ended(0.05)


async def test_a_program_that_is_not_there() -> None:
    async with balanced():
        with pytest.raises(FileNotFoundError):
            Child(["/no/such/program"], 0, quiet=True)
