"""The words between fastclaw and its egress proxy, and the configuration with its secrets."""

from __future__ import annotations

import contextlib
import json
import traceback
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw.errors import ProtocolError
from fastclaw.network.egress import proxy_frames
from fastclaw.network.egress.proxy_frames import (
    Close,
    Closed,
    EgressConfig,
    Failed,
    Injection,
    Listen,
    Logged,
    Open,
    Ready,
    Role,
    Trouble,
    Unlisten,
)
from tests.strategies import JSON

SECRET = "Bearer s3cr3t-s3cr3t"
TEXT = st.text(max_size=20)
RULES = st.lists(TEXT, max_size=4)
COUNT = st.integers(1, 1 << 53)
ID = st.integers(0, 1 << 53)
ROLE = st.sampled_from(get_args(Role))
CONFIG = st.builds(
    EgressConfig,
    allow=RULES,
    deny=RULES,
    inject=st.lists(st.builds(Injection, host=TEXT, header=TEXT, value=TEXT), max_size=3),
    log=st.none() | TEXT,
    log_max_bytes=COUNT,
    max_connections=COUNT,
    max_connections_per_s=COUNT,
    max_bytes=st.none() | COUNT,
    idle_timeout_ms=COUNT,
    connect_timeout_ms=COUNT,
    subnet=st.none() | TEXT,
)


@given(
    st.builds(Open, environment=ID)
    | st.builds(Listen, environment=ID, id=ID, role=ROLE)
    | st.builds(Unlisten, environment=ID, id=ID)
    | st.builds(Close, environment=ID)
)
def test_an_order_arrives_as_it_was_given(order: proxy_frames.Order) -> None:
    assert proxy_frames.parse_order(proxy_frames.encode(order)) == order


def test_each_order_has_its_descriptors() -> None:
    assert set(proxy_frames.FDS) == set(get_args(proxy_frames.Order))


@given(
    st.builds(Ready, environment=ID)
    | st.builds(Trouble, environment=ID, text=TEXT)
    | st.builds(Failed, environment=ID, text=TEXT)
    | st.builds(Closed, environment=ID)
    | st.builds(Logged, text=TEXT)
)
def test_a_report_arrives_as_it_was_given(report: proxy_frames.Report) -> None:
    assert proxy_frames.parse_report(proxy_frames.encode(report)) == report


@given(CONFIG)
def test_a_configuration_arrives_as_it_was_given(config: EgressConfig) -> None:
    assert proxy_frames.parse_config(proxy_frames.encode(config)) == config


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"{}",
        b'{"type":"open"}',
        b'{"type":"open","environment":"1"}',
        b'{"type":"listen","environment":1,"id":1}',
        b'{"type":"listen","id":1,"role":"proxy"}',
        b'{"type":"listen","environment":1,"id":1,"role":"everything"}',
        b'{"type":"listen","environment":1,"id":"1","role":"proxy"}',
        b'{"type":"quit"}',
        b'{"type":"ready","environment":1}',
        b'{"type":"open","environment":1',
        b"\xff\xfe",
    ],
)
def test_anything_else_is_no_order(frame: bytes) -> None:
    with pytest.raises(ProtocolError, match="egress proxy"):
        proxy_frames.parse_order(frame)


@pytest.mark.parametrize(
    "frame",
    [b"", b'{"type":"trouble","text":"x"}', b'{"type":"open","environment":1}', b'{"type":"ready"}', b'"ready"', b"[]"],
)
def test_anything_else_is_no_report(frame: bytes) -> None:
    with pytest.raises(ProtocolError, match="egress proxy"):
        proxy_frames.parse_report(frame)


@given(st.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        proxy_frames.parse_order(data)
    with contextlib.suppress(ProtocolError):
        proxy_frames.parse_report(data)
    with contextlib.suppress(ProtocolError):
        proxy_frames.parse_config(data)


def secretive() -> dict[str, object]:
    """A whole configuration, as JSON, with a secret in it."""
    return {
        "allow": [],
        "deny": [],
        "inject": [{"host": "a.example", "header": "Authorization", "value": SECRET}],
        "log": None,
        "log_max_bytes": 1,
        "max_connections": 1,
        "max_connections_per_s": 1,
        "max_bytes": None,
        "idle_timeout_ms": 1,
        "connect_timeout_ms": 1,
    }


def test_what_may_be_left_out() -> None:
    assert proxy_frames.parse_config(json.dumps(secretive()).encode()).subnet is None


@pytest.mark.parametrize("field", ["allow", "inject", "log", "max_bytes", "connect_timeout_ms"])
def test_a_configuration_is_whole_or_refused(field: str) -> None:
    without = {name: value for name, value in secretive().items() if name != field}
    with pytest.raises(ProtocolError):
        proxy_frames.parse_config(json.dumps(without).encode())


@pytest.mark.parametrize(
    "broken",
    [
        json.dumps(secretive()).encode()[:-1],
        json.dumps({**secretive(), "inject": SECRET}).encode(),
        json.dumps({**secretive(), "inject": [{"host": 1, "header": "a", "value": SECRET}]}).encode(),
        json.dumps({**secretive(), "inject": {SECRET: SECRET}}).encode(),
        json.dumps({**secretive(), "max_bytes": SECRET}).encode(),
        SECRET.encode(),
    ],
)
def test_a_secret_is_in_no_message(broken: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        proxy_frames.parse_config(broken)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert "s3cr3t" not in json.dumps(caught.value.to_wire())
