"""What a report says."""

import json

import pytest

from fastclaw.conformance import BY_ID, Finding, Report

REPORT = Report(
    command=["serve"],
    vocabulary="posix",
    capabilities=["wait"],
    findings=[
        Finding(promise=BY_ID["W-LINE"], verdict="kept"),
        Finding(promise=BY_ID["W-PARSE"], verdict="broken", detail="it fell over", exchange=["-> {", "<- (gone)"]),
        Finding(promise=BY_ID["X-KEY"], verdict="not offered", detail="no capability"),
    ],
)


def test_text() -> None:
    lines = REPORT.to_text().splitlines()
    assert lines[0] == "wire:"
    assert lines[1].startswith("  ok   W-LINE ")
    assert lines[2].startswith("  FAIL W-PARSE ")
    assert [line.strip() for line in lines[3:6]] == ["broken: it fell over", "-> {", "<- (gone)"]
    assert lines[6] == "exec:"
    assert lines[8].strip() == "not offered: no capability"
    assert lines[-1] == "1 kept, 1 broken, 1 not offered"


def test_json() -> None:
    told = json.loads(REPORT.to_json())
    assert told["ok"] is False
    assert told["findings"][1]["promise"]["id"] == "W-PARSE"
    assert told["findings"][1]["exchange"] == ["-> {", "<- (gone)"]


def test_lookup() -> None:
    assert not REPORT.ok
    assert REPORT["X-KEY"].verdict == "not offered"
    with pytest.raises(KeyError):
        REPORT["W-BATCH"]
