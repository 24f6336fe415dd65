"""What a runtime opens of a journal and metrics, and closes again."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from fastclaw.errors import StartFailed
from fastclaw.options import HostOptions
from fastclaw.telemetry.metrics import Counts
from fastclaw.telemetry.telemetry import Telemetry

if TYPE_CHECKING:
    from pathlib import Path


def telemetry() -> Telemetry:
    return Telemetry(lambda: Counts({}, 0, 0, 0, "1", {}), lambda _: None)


async def test_without_options_there_are_histograms_only() -> None:
    one = telemetry()
    await one.open(HostOptions())
    assert one.health() == {"latency": {}}
    assert one.ledger is one.latency
    await one.aclose()


async def test_what_was_opened_is_closed_where_the_rest_cannot_be_had(short_dir: Path) -> None:
    one = telemetry()
    options = HostOptions(journal=str(short_dir / "journal"), metrics=str(short_dir / "no" / "metrics"))
    with pytest.raises(StartFailed, match=r"options\.metrics"):
        await one.open(options)
    assert repr(one) == f"<Telemetry <Journal {short_dir}/journal>, no metrics, no traces>"
    await one.aclose()
    await one.aclose()
    assert repr(one) == "<Telemetry no journal, no metrics, no traces>"


async def test_without_the_library_the_command_is_named(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastclaw.telemetry.telemetry.find_spec", lambda name: None)
    one = telemetry()
    with pytest.raises(StartFailed, match=r"pip install 'fastclaw\[metrics\]'") as raised:
        await one.open(HostOptions(metrics=str(short_dir / "metrics")))
    assert raised.value.reason == "unsupported"
    await one.aclose()


async def test_without_the_sdk_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "fastclaw.telemetry.traces", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    one = telemetry()
    with pytest.raises(
        StartFailed, match=r"opentelemetry\.sdk\.trace is not .*; pip install 'fastclaw\[otel\]'$"
    ) as raised:
        await one.open(HostOptions(traces="env"))
    assert raised.value.reason == "unsupported"
    await one.aclose()
