"""What the terminal of `fastclaw top` does beside drawing, which tests/cli/test_top.py tests on real ones."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from fastclaw import telemetry_limits
from fastclaw.cli.screen import Screen
from fastclaw.cli.terminal import Terminal
from fastclaw.errors import IoError
from tests.control.rig import Box, a_socket
from tests.waiting import until

if TYPE_CHECKING:
    from fastclaw.control.socket import ControlSocket


async def a_terminal(control: ControlSocket) -> tuple[Terminal, Screen]:
    screen = Screen()
    return await asyncio.to_thread(Terminal, control.path, screen, 1.0), screen


async def test_a_look_after_a_long_stop_connects_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-Z, and its connection was cut meanwhile."""
    async with a_socket() as control:
        terminal, screen = await a_terminal(control)
        monkeypatch.setattr(telemetry_limits, "CONTROL_IDLE_MS", 50)
        await asyncio.to_thread(terminal._look)
        await until(lambda: not control._clients)
        await asyncio.to_thread(terminal._look)
        assert screen.selected is not None
        await control.aclose()
        with pytest.raises(IoError):
            await asyncio.to_thread(terminal._look)
        terminal.close()


def told(terminal: Terminal, screen: Screen) -> str:
    terminal._end_wanted()
    return screen.message


async def test_how_an_end_came_out_is_told_while_the_look_goes_on() -> None:
    box = Box()
    box.release = asyncio.Event()
    async with a_socket(box) as control:
        terminal, screen = await a_terminal(control)
        for wanted in ("a-1", "b-1", "a-1"):
            screen.wants = wanted
            terminal._end_wanted()
        assert screen.wants is None
        await asyncio.to_thread(terminal._look)
        await until(lambda: "no process 'b-1'" in told(terminal, screen))
        assert box.killed == [("a-1", None)], "one end at a time of each"
        box.release.set()
        await until(lambda: told(terminal, screen) == "a-1 has ended")
        terminal.close()
