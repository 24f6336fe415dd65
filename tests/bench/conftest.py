"""Short floors: what the generator takes for itself is a test's own subject, and otherwise a moment of it will do."""

from __future__ import annotations

import pytest

from fastclaw import bench_limits


@pytest.fixture(autouse=True)
def _short_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_limits, "BENCH_FLOOR_MS", 50)
    monkeypatch.setattr(bench_limits, "BENCH_TIMER_SHOTS", 20)
