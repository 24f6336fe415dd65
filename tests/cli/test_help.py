"""The table of commands as text."""

from __future__ import annotations

from fastclaw.cli.help import COMMANDS, OPTIONS, help_text


def test_everything_is_in_it_and_fits_a_terminal() -> None:
    lines = help_text().splitlines()
    assert all(len(line) <= 80 for line in lines)
    for name, text in (COMMANDS | OPTIONS).items():
        [line] = [line for line in lines if line.strip().startswith(f"{name} ")]
        assert line.endswith(f"  {text}")
