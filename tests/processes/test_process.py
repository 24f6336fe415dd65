"""One process as the runtime holds it: states, records, and what its sockets mean for both."""

import asyncio
import os
import socket
import sys

from hypothesis import given
from hypothesis import strategies as st

from fastclaw.lifecycle import ProcessState
from fastclaw.limits import SHOWN_COMMAND_BYTES, WORD_BYTES
from fastclaw.processes.lane import ExitStatus
from fastclaw.processes.pool import ProcessPool
from fastclaw.processes.process import shown_command
from fastclaw.runtime import ExecRequest
from tests.processes.lanes import ScriptedLane
from tests.waiting import turns, until


async def test_its_line_in_the_list(lane: ScriptedLane, pool: ProcessPool) -> None:
    result = await pool.exec(ExecRequest(cmd=["a", "b"]))
    process = pool.table.find(result.process_id)
    assert (process.info().state, process.info().cmd) == ("running", ["a", "b"])
    assert repr(process) == f"<Process {process.id} running 'a'>"
    lane.processes[0].exited.set_result(ExitStatus(reason="signaled", signal=11))
    await turns()
    info = process.info()
    assert (info.state, info.exit_code, info.signal, info.reason) == ("exited", None, 11, "signaled")
    assert repr(process) == f"<Process {process.id} lingering 'a'>"
    assert repr(pool.table) == "<ProcessTable live=0 lingering=1 kept=1>"


async def test_output_left_unread_shows_in_the_record_even_after_the_exit(
    lane: ScriptedLane, pool: ProcessPool
) -> None:
    result = await pool.exec(ExecRequest(cmd=["x"]))
    process = pool.table.find(result.process_id)
    lane.processes[0].exited.set_result(ExitStatus(reason="exited", exit_code=0))
    await turns()
    assert process.record().gap is not True
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(result.stdio_addr)
        os.write(lane.processes[0].their_stdout, b"unread")
        client.setblocking(False)
        assert await asyncio.get_running_loop().sock_recv(client, 1) == b"u"
    await until(lambda: process.record().gap is True)


async def test_a_cancelled_exit_is_unknown(lane: ScriptedLane, pool: ProcessPool) -> None:
    result = await pool.exec(ExecRequest(cmd=["x"]))
    lane.processes[0].exited.cancel()
    assert (await pool.wait(result.process_id, None)).reason == "unknown"
    assert pool.table.find(result.process_id).state is ProcessState.LINGERING


words = st.text(st.characters(exclude_categories=()), max_size=40) | st.integers(0, 9_000).map("é".__mul__)


def size(cmd: list[str]) -> int:
    return sum(WORD_BYTES + len(word.encode("utf-8", "surrogatepass")) for word in cmd)


@given(st.lists(words, min_size=1, max_size=200))
def test_a_short_one_is_itself_and_a_long_one_its_beginning(cmd: list[str]) -> None:
    shown = shown_command(cmd)
    if size(cmd) <= SHOWN_COMMAND_BYTES:
        assert shown is cmd
        return
    assert shown
    assert shown is not cmd
    assert size(shown) <= SHOWN_COMMAND_BYTES
    *whole, last = shown
    assert whole == cmd[: len(whole)]
    assert cmd[len(whole)].startswith(last)
    # What is left out would not have had room.
    assert size(shown) > SHOWN_COMMAND_BYTES - WORD_BYTES - 4


def test_words_cost_what_python_keeps_of_them() -> None:
    assert sys.getsizeof("") <= WORD_BYTES
    assert len(shown_command([""] * 100_000)) == SHOWN_COMMAND_BYTES // WORD_BYTES
