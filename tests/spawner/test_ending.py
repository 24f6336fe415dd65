"""TERM, a grace that may be cut short, KILL, and an end that is proven or said not to be."""

from __future__ import annotations

import asyncio

import pytest

from fastclaw import limits
from fastclaw.errors import ExecFailed
from fastclaw.processes.lane import Grace
from fastclaw.spawner import ending
from fastclaw.spawner.frames import LEVEL_KILL, LEVEL_TERM


class Tree:
    """Something that ends with the order that it heeds."""

    def __init__(self, heeds: int) -> None:
        self.gone = asyncio.Event()
        self.orders: list[int] = []
        self._heeds = heeds

    def order(self, level: int) -> None:
        self.orders.append(level)
        if level == self._heeds:
            self.gone.set()


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_who_heeds_term_is_not_killed() -> None:
    tree = Tree(LEVEL_TERM)
    await ending.end(tree.order, tree.gone, Grace(now() + 60))
    assert tree.orders == [LEVEL_TERM]


async def test_who_does_not_is_killed_once_the_grace_is_over() -> None:
    tree, grace = Tree(LEVEL_KILL), Grace(now() + 0.05)
    await ending.end(tree.order, tree.gone, grace)
    assert tree.orders == [LEVEL_TERM, LEVEL_KILL]
    assert now() >= grace.ends_at


async def test_without_a_grace_it_is_killed_at_once() -> None:
    tree = Tree(LEVEL_KILL)
    await ending.end(tree.order, tree.gone, Grace(0.0))
    assert tree.orders == [LEVEL_KILL]


async def test_a_grace_can_be_cut_short_while_it_runs() -> None:
    tree, grace = Tree(LEVEL_KILL), Grace(now() + 3600)
    running = asyncio.create_task(ending.end(tree.order, tree.gone, grace))
    await asyncio.sleep(0)
    grace.ends_at = 0.0
    async with asyncio.timeout(10):
        await running
    assert tree.orders == [LEVEL_TERM, LEVEL_KILL]


async def test_what_does_not_end_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TREE_DEADLINE_MS", 20)
    tree = Tree(0)
    with pytest.raises(ExecFailed) as raised:
        await ending.end(tree.order, tree.gone, Grace(0.0))
    assert raised.value.reason == "engine_timeout"
