"""Which processes are asked whether an output is full, and which are not waited for again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from fastclaw.processes.blocked import BlockedOutputs
from tests.waiting import turns

if TYPE_CHECKING:
    from fastclaw.processes.process import Process

LONG_MS = 10_000


class Held:
    """A process, as far as it is looked at.

    Parameters:
        bits: what its streams answer; None: nothing.
    """

    def __init__(self, bits: int | None, *, is_running: bool = True, is_run: bool = False) -> None:
        self.is_running, self.is_run, self.streams = is_running, is_run, self
        self.answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.was_asked = 0
        if bits is not None:
            self.answer.set_result(bits)

    def blocked(self) -> asyncio.Future[int]:
        self.was_asked += 1
        return self.answer


def held(bits: int | None, **state: bool) -> Process:
    return cast("Process", Held(bits, **state))


@pytest.mark.parametrize(("bits", "names"), [(1, ["stdout"]), (2, ["stderr"]), (3, ["stdout", "stderr"])])
async def test_its_full_outputs_by_name(bits: int, names: list[str]) -> None:
    process = held(bits)
    assert await BlockedOutputs().look([process, held(0)], 2, LONG_MS) == {process: names}


async def test_only_so_many_that_live_and_are_no_runs() -> None:
    others = [held(1, is_running=False), held(1, is_run=True)]
    first, second = held(1), held(1)
    assert await BlockedOutputs().look([*others, first, second], 1, LONG_MS) == {first: ["stdout"]}
    assert [cast("Held", one).was_asked for one in (*others, second)] == [0, 0, 0]


async def test_one_that_did_not_answer_is_not_waited_for_again() -> None:
    looks, silent = BlockedOutputs(), held(None)
    assert await looks.look([silent], 1, 1) == {}
    async with asyncio.timeout(LONG_MS / 2000):
        assert await looks.look([silent], 1, LONG_MS) == {}
    cast("Held", silent).answer.set_result(2)
    await turns()
    assert await looks.look([silent], 1, LONG_MS) == {silent: ["stderr"]}
