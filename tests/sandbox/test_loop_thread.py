"""The loop of callers that have none: what is begun without waiting, and the end of the program."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING

import pytest

from fastclaw.sandbox import Sandbox
from fastclaw.sandbox.loop_thread import loop_thread

if TYPE_CHECKING:
    from fastclaw.sandbox import sync

WAIT_S = 10

pytestmark = pytest.mark.usefixtures("local_host")  # with it the loop is up, and stays so


def test_what_is_begun_is_done_and_not_waited_for() -> None:
    done, may_end = threading.Event(), asyncio.Event()

    async def work() -> None:
        await may_end.wait()
        done.set()

    thread = loop_thread()
    thread.begin(work())
    assert not done.is_set()
    thread.loop.call_soon_threadsafe(may_end.set)
    assert done.wait(WAIT_S)


def test_it_is_begun_from_the_loop_itself_too() -> None:
    done = threading.Event()

    async def work() -> None:
        done.set()

    async def collects_garbage() -> None:
        loop_thread().begin(work())

    loop_thread().call(collects_garbage())
    assert done.wait(WAIT_S)


def test_at_the_end_of_the_program_nobody_waits_for_a_loop_that_has_ended() -> None:
    program = """
        import asyncio, atexit
        from fastclaw.sandbox.loop_thread import loop_thread

        async def work():
            print("worked")

        def at_the_very_end():
            thread.begin(work())
            for calls in (lambda: thread.call(work()), lambda: asyncio.run(thread.bring(work()))):
                try:
                    calls()
                except RuntimeError as error:
                    print(error)

        atexit.register(at_the_very_end)  # the last one in is the first one out
        thread = loop_thread()
        thread.call(work())
    """
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=True,
    )
    refused = "the program is at its end, and with it fastclaw's event loop"
    assert ran.stdout.splitlines() == ["worked", refused, refused]
    assert ran.stderr == ""


def test_a_sandbox_without_await_has_the_one_with_it(podman_box: sync.Sandbox) -> None:
    box = podman_box.asynchronous
    assert isinstance(box, Sandbox)

    async def in_a_loop_of_its_own() -> bytes:
        return (await loop_thread().bring(box.run(["echo", "hello"]))).stdout

    assert asyncio.run(in_a_loop_of_its_own()) == b"hello\n"
