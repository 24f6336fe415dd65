"""The words between fastclaw and its relay workers."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw.errors import ProtocolError
from fastclaw.protocol import relays

if TYPE_CHECKING:
    from fastclaw.runtime import OnDisconnect

OPENED = relays.Opened(7, "hold", "/run/x/p-1.io", "/run/x/p-1.err")


@pytest.mark.parametrize("word", ["eof", "hold", "kill"])
@pytest.mark.parametrize("fds", [4, 5])
def test_opening_says_what_goes_along(word: OnDisconnect, fds: int) -> None:
    opened = OPENED._replace(on_disconnect=word)
    assert relays.parse(relays.opening(opened), fds) == opened


@pytest.mark.parametrize("kind", [relays.CLOSE, relays.ASK])
def test_an_order_is_a_kind_and_an_id(kind: int) -> None:
    assert relays.parse(relays.order(kind, 12), 0) == (kind, 12)


def test_an_event_is_three_numbers() -> None:
    assert relays.EVENT.unpack(relays.event(relays.PENDING, 3, 1)) == (relays.PENDING, 3, 1)


@pytest.mark.parametrize(
    ("frame", "fds"),
    [
        (b"", 0),
        (relays.opening(OPENED), 3),
        (relays.opening(OPENED), 6),
        (relays.opening(OPENED).replace(b"\0/run", b"/run"), 4),
        (relays.order(relays.OPEN, 1), 0),
        (relays.order(relays.CLOSE, 1), 1),
        (relays.order(99, 1), 0),
        (relays.event(relays.OPEN, 1, 9) + b"a\0b", 4),
    ],
)
def test_anything_else_is_a_broken_protocol(frame: bytes, fds: int) -> None:
    with pytest.raises(ProtocolError):
        relays.parse(frame, fds)


@given(st.binary(max_size=200), st.integers(0, 8))
def test_no_frame_does_more_than_be_refused(frame: bytes, fds: int) -> None:
    with contextlib.suppress(ProtocolError):
        relays.parse(frame, fds)
