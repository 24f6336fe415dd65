"""Commands without a process of their own, where they start nothing."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from fastclaw.cli.main import main

if TYPE_CHECKING:
    from tests.cli.programs import Call


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Call:
    """`fastclaw ARGUMENTS…` in this process."""

    def called(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        argv = ["fastclaw", *arguments]
        monkeypatch.setattr(sys, "argv", argv)
        try:
            main()
        except SystemExit as end:
            code = end.code
        else:
            code = 0
        assert isinstance(code, int)
        out, err = capfdbinary.readouterr()
        return subprocess.CompletedProcess(argv, code, out, err)

    return called
