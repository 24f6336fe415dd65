"""Which engine is taken, and why there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastclaw.options import Options
from fastclaw.podman.service import facts
from fastclaw.podman.service.choice import engine_url, why_no_engine

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_the_named_engine_wins_over_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONTAINER_HOST", raising=False)
    assert engine_url(Options()) is None
    monkeypatch.setenv("CONTAINER_HOST", "")
    assert engine_url(Options()) is None
    monkeypatch.setenv("CONTAINER_HOST", "tcp://env:1")
    assert engine_url(Options()) == "tcp://env:1"
    assert engine_url(Options(url="unix:///x")) == "unix:///x"


def test_without_podman_it_says_so_unless_an_engine_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CONTAINER_HOST", "")
    monkeypatch.setattr(facts, "SYSTEM_PATH", "")
    monkeypatch.setattr(facts, "HELPER_DIRS", ())
    assert "apt-get install podman" in (why_no_engine(Options()) or "")
    assert why_no_engine(Options(url="unix:///x")) is None
