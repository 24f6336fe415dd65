"""What the host grants this process, what it hears, and the loop that it runs on."""

import asyncio
import contextlib
import os
import re
import resource
import signal
from pathlib import Path

import pytest
import uvloop

from fastclaw.linux.own_process import (
    dumps_after_setuid,
    hard_limit,
    heeded,
    host_limits,
    machine_namespace,
    raise_file_limit,
    run,
)


def test_the_limits_are_those_of_this_machine() -> None:
    found = host_limits()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert found.nofile == hard_limit(resource.RLIMIT_NOFILE) == (None if hard == resource.RLIM_INFINITY else hard)
    assert found.pid_max is not None
    assert found.pid_max >= os.getpid()
    assert found.memory_bytes is not None
    assert found.memory_bytes > 2**26
    assert (found.nproc is None) or os.geteuid() != 0


def test_a_namespace_is_this_machines_and_does_not_tell_its_number() -> None:
    name = machine_namespace("run")
    assert name == machine_namespace("run") != machine_namespace("sandbox")
    assert re.fullmatch(r"run-[0-9a-f]{8}", name)
    with contextlib.suppress(FileNotFoundError):
        assert name.removeprefix("run-") not in Path("/etc/machine-id").read_text()


def test_the_file_limit_goes_up_to_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
    try:
        raise_file_limit()
        raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_this_machine_does_not_dump_who_changed_users() -> None:
    """On one that does there is no spawn lane, and its tests could not run."""
    assert dumps_after_setuid() is False


def test_what_is_ignored_at_the_start_is_not_heeded() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert heeded([signal.SIGTERM, signal.SIGHUP]) == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_program_runs_on_uvloop_to_its_result_or_error() -> None:
    async def main(error: Exception | None) -> object:
        if error is not None:
            raise error
        return asyncio.get_running_loop()

    assert isinstance(run(main(None)), uvloop.Loop)
    with pytest.raises(ValueError, match="x"):
        run(main(ValueError("x")))
