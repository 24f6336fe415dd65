"""How the checks read an answer of `run`: what is right is unpacked, what is wrong is said."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from fastclaw.conformance.run_results import STREAMS, around_gap, dropped, ending, given, has_no_gap, outputs
from fastclaw.conformance.wire import Broken


def an_answer(**fields: Any) -> dict[str, Any]:
    whole = {
        "state": "exited", "exit_code": 0, "reason": "exited", "stdout": "", "stderr": "",
        "dropped": {"stdout": 0, "stderr": 0},
    }  # fmt: skip
    return whole | fields


def binary(data: bytes, stream: str = "stdout") -> dict[str, Any]:
    return an_answer(**{stream: None, f"{stream}_base64": base64.b64encode(data).decode()})


@pytest.mark.parametrize("stream", STREAMS)
def test_text_and_bytes(stream: str) -> None:
    assert given(an_answer(**{stream: "é\0"}), stream) == "é\0".encode()
    assert given(binary(b"\xff\0", stream), stream) == b"\xff\0"
    assert given(an_answer(**{stream: "", f"{stream}_base64": None}), stream) == b""


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(
    ("text", "encoded", "said"),
    [
        (None, None, "NoneType"),
        ("a", "/w==", "comes as"),
        (7, None, "comes as"),
        (None, 7, "comes as"),
        (None, "/w", "is no base64"),
        (None, "YQ==", "is text, and comes as base64"),
        (None, "", "is text, and comes as base64"),
    ],
)
def test_what_comes_in_no_right_form(stream: str, text: Any, encoded: Any, said: str) -> None:
    with pytest.raises(Broken, match=f"{stream}.*{said}"):
        given(an_answer(**{stream: text, f"{stream}_base64": encoded}), stream)


def test_a_run_that_lost_nothing() -> None:
    assert outputs(an_answer(stdout="out", stderr="err")) == (b"out", b"err")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"dropped": {"stdout": 1, "stderr": 0}}, "`dropped` is"),
        ({"dropped": {"stdout": 0}}, "`dropped` is"),
        ({"dropped": None}, "`dropped` is"),
        ({"gap_at": {"stdout": 0}}, "`gap_at` is"),
        ({"incomplete": True}, "`incomplete`"),
    ],
)
def test_a_run_that_says_it_lost_something(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(Broken, match=said):
        outputs(an_answer(**fields))


def test_how_much_is_missing() -> None:
    answer = an_answer(dropped={"stdout": 3, "stderr": 0})
    assert [dropped(answer, stream) for stream in STREAMS] == [3, 0]


@pytest.mark.parametrize("told", [None, 3, {}, {"stderr": 1}, {"stdout": -1}, {"stdout": True}, {"stdout": "1"}])
def test_how_much_is_missing_is_a_number(told: Any) -> None:
    with pytest.raises(Broken, match="`dropped` is"):
        dropped(an_answer(dropped=told), "stdout")


@pytest.mark.parametrize("at", [0, 1, 4])
def test_both_sides_of_a_gap(at: int) -> None:
    answer = an_answer(stdout="abcd", gap_at={"stdout": at})
    assert around_gap(answer, "stdout") == (b"abcd"[:at], b"abcd"[at:])


@pytest.mark.parametrize("told", [None, 3, {}, {"stderr": 1}, {"stdout": -1}, {"stdout": 5}, {"stdout": "1"}])
def test_a_gap_is_somewhere_in_what_is_given(told: Any) -> None:
    with pytest.raises(Broken, match="`gap_at` is"):
        around_gap(an_answer(stdout="abcd", gap_at=told), "stdout")


@pytest.mark.parametrize("told", [{}, {"gap_at": None}, {"gap_at": {}}, {"gap_at": {"stderr": 1}}])
def test_no_gap(told: dict[str, Any]) -> None:
    has_no_gap(an_answer(**told), "stdout")


def test_a_gap_where_none_is() -> None:
    with pytest.raises(Broken, match="no middle is missing"):
        has_no_gap(an_answer(gap_at={"stdout": 0}), "stdout")


def test_how_it_ended() -> None:
    assert ending(an_answer(exit_code=3, reason="killed")) == ("exited", 3, "killed")
    assert ending({}) == (None, None, None)
