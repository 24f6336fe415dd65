"""What of a run's output is kept, given and counted, whatever its bytes; and that an answer fits its line."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, structs

from fastclaw import limits
from fastclaw.processes.lane import Collected, ExitStatus, Output
from fastclaw.processes.run_output import (
    OutputStore,
    fitted,
    json_length,
    may_be_too_long,
    result_of,
    result_without_output,
    whole_characters,
    without_output,
)
from fastclaw.runtime import ExitRecord, Keep, RunResult
from fastclaw.server.jsonrpc import encode_result

KEEPS: list[Keep] = ["head", "tail", "ends"]
RECORD = ExitRecord(process_id="p", state="exited", exit_code=0, reason="exited", timings={"run_us": 1})
STATUS = ExitStatus(reason="exited", exit_code=0)

words = st.text(
    st.sampled_from(['\0"\\\n\x7fa', "é", "\u0800", "\U0010ffff"]).flatmap(st.sampled_from)
    | st.characters(codec="utf-8")
)
pieces = st.lists(st.binary(max_size=40), max_size=12)


def kept(data: bytes, limit: int, keep: Keep, piece: int = 7) -> Output:
    store = OutputStore(limit, keep)
    for start in range(0, len(data), piece):
        store.add(data[start : start + piece])
    return store.output()


def answer(out: Output, keep: Keep = "ends", err: Output = Output()) -> RunResult:  # noqa: B008 - a value
    return result_of(RECORD, Collected(status=STATUS, stdout=out, stderr=err), keep)


def bytes_of(result: RunResult, name: str = "stdout") -> bytes:
    encoded = getattr(result, f"{name}_base64")
    if encoded is not UNSET:
        assert getattr(result, name) is None
        return base64.b64decode(encoded, validate=True)
    return getattr(result, name).encode()  # type: ignore[no-any-return]


# --- what is kept ---


@given(pieces, st.integers(0, 60), st.sampled_from(KEEPS))
def test_a_store_keeps_the_ends_within_its_limit(chunks: list[bytes], limit: int, keep: Keep) -> None:
    store, data = OutputStore(limit, keep), b"".join(chunks)
    for chunk in chunks:
        store.add(chunk)
        assert store.held <= 2 * limit
    head, tail, total = store.output()
    assert total == len(data)
    assert data.startswith(head)
    assert data.endswith(tail)
    assert len(head) + len(tail) == min(limit, total)
    if total > limit:
        assert (len(head), len(tail)) == {"head": (limit, 0), "tail": (0, limit)}.get(
            keep, ((limit + 1) // 2, limit // 2)
        )


# --- what is given ---


@given(words, st.integers(0, 60), st.sampled_from(KEEPS))
def test_a_text_comes_as_text_cut_between_characters(text: str, limit: int, keep: Keep) -> None:
    data = text.encode()
    result = answer(kept(data, limit, keep), keep)
    given_ = bytes_of(result)
    assert result.stdout is not None
    assert result.dropped == {"stdout": len(data) - len(given_), "stderr": 0}
    if len(data) <= limit:
        assert (result.stdout, result.gap_at) == (text, UNSET)
        return
    at = result.gap_at["stdout"] if keep == "ends" else len(given_) if keep == "head" else 0  # type: ignore[index]
    assert (result.gap_at is UNSET) is (keep != "ends")
    assert data.startswith(given_[:at])
    assert data.endswith(given_[at:])
    assert limit - 6 <= len(given_) <= limit


@given(st.binary(max_size=60), st.integers(0, 60), st.sampled_from(KEEPS))
def test_any_bytes_come_back(data: bytes, limit: int, keep: Keep) -> None:
    result = answer(kept(data, limit, keep), keep)
    given_ = bytes_of(result)
    at = len(given_) if keep == "head" or result.gap_at is UNSET else result.gap_at["stdout"]
    at = 0 if keep == "tail" else at
    assert data.startswith(given_[:at])
    assert data.endswith(given_[at:])
    assert len(given_) + result.dropped["stdout"] == len(data)
    assert result.dropped["stdout"] >= max(0, len(data) - limit)


@pytest.mark.parametrize("data", [b"\xff", b"caf\xc3", b"\xed\xa0\x80", bytes(range(256))])
def test_what_is_no_text_comes_whole_as_base64(data: bytes) -> None:
    result = answer(Output(data, b"", len(data)), err=Output(b"text", b"", 4))
    assert (result.stdout, bytes_of(result), result.stderr, result.stderr_base64) == (None, data, "text", UNSET)


def test_a_character_that_the_limit_has_cut_makes_no_binary() -> None:
    data = "é".encode() * 10
    for limit in range(20):
        for keep in KEEPS:
            assert answer(kept(data, limit, keep), keep).stdout is not None


def test_whole_characters_leaves_what_is_none_alone() -> None:
    for data in (b"", b"a", b"\xff", b"\x80\x80\x80\x80", "é".encode(), "\U0010ffff".encode()):
        assert whole_characters(data) == len(data)
    for text in ("é", "\u0800", "\U0010ffff"):
        for cut in range(1, len(text.encode())):
            assert whole_characters(b"a" + text.encode()[:cut]) == 1


def test_an_incomplete_answer_and_one_with_a_gap_say_so() -> None:
    collected = Collected(status=STATUS, stdout=Output(), stderr=Output(), incomplete=True)
    result = result_of(structs.replace(RECORD, gap=True), collected, "ends")
    assert (result.incomplete, result.gap) == (True, True)
    assert "incomplete" not in orjson.loads(encode_result(1, answer(Output())))["result"]


def test_a_later_answer_has_the_record_and_no_output() -> None:
    result = orjson.loads(encode_result(1, result_without_output(RECORD, (5, 7))))["result"]
    assert (result["stdout"], result["stderr"], result["dropped"]) == (None, None, {"stdout": 5, "stderr": 7})
    assert (result["process_id"], result["exit_code"], "stdout_base64" in result) == ("p", 0, False)


# --- whether it fits ---


@given(words)
def test_the_length_of_a_text_in_json(text: str) -> None:
    assert json_length(text.encode()) == len(orjson.dumps(text)) - 2


@given(words, words, st.integers(0, 60), st.sampled_from(KEEPS), st.integers(0, 600))
def test_a_cut_answer_fits_its_room(text: str, other: str, limit: int, keep: Keep, room: int) -> None:
    room += limits.RUN_ANSWER_SLACK_BYTES
    data = text.encode()
    before = answer(kept(data, limit, keep), keep, Output(other.encode(), b"", len(other.encode())))
    after = fitted(before, keep, room)
    for name in ("stdout", "stderr"):
        was, given_, total = bytes_of(before, name), bytes_of(after, name), len(bytes_of(before, name))
        assert len(given_) + after.dropped[name] == total + before.dropped[name]
        gap = None if after.gap_at is UNSET else after.gap_at.get(name)
        at = gap if gap is not None else len(given_) if keep != "tail" else 0
        assert was.startswith(given_[:at])
        assert was.endswith(given_[at:])
    sizes = [json_length(bytes_of(after, name)) for name in ("stdout", "stderr")]
    assert sum(sizes) <= room
    if sum(json_length(bytes_of(before, name)) for name in ("stdout", "stderr")) <= room - 256:
        assert after == before


@given(st.binary(max_size=400), st.integers(0, 400), st.sampled_from(KEEPS))
def test_a_cut_answer_of_bytes_fits_too(data: bytes, room: int, keep: Keep) -> None:
    data = b"\xff" + data + b"\xff"
    after = fitted(answer(Output(data, b"", len(data)), keep), keep, room + limits.RUN_ANSWER_SLACK_BYTES)
    assert after.stdout_base64 is not UNSET
    assert len(after.stdout_base64) <= room + limits.RUN_ANSWER_SLACK_BYTES
    assert len(bytes_of(after)) + after.dropped["stdout"] == len(data)


def test_the_stream_that_needs_little_leaves_the_rest_to_the_other() -> None:
    after = fitted(answer(Output(b"x" * 10_000, b"", 10_000), "head", Output(b"y" * 100, b"", 100)), "head", 5_000)
    assert after.dropped["stderr"] == 0
    assert len(after.stdout or "") == 5_000 - limits.RUN_ANSWER_SLACK_BYTES - 100


@pytest.mark.parametrize(
    ("data", "least"), [(bytes(16 << 20), 5.3), (b"\n" * (16 << 20), 15.9), (b"\xff" * (16 << 20), 12.5)]
)
@pytest.mark.parametrize("request_id", [7, "\0" * 1000])
def test_two_full_streams_of_the_worst_bytes_fit_a_line(data: bytes, least: float, request_id: Any) -> None:
    full = Output(data, b"", len(data))
    result = answer(full, "ends", full)
    assert may_be_too_long(result, request_id, limits.MAX_LINE_BYTES)
    around = len(encode_result(request_id, without_output(result)))
    line = encode_result(request_id, fitted(result, "ends", limits.MAX_LINE_BYTES - around))
    assert limits.MAX_LINE_BYTES * 0.99 < len(line) - 1 <= limits.MAX_LINE_BYTES
    told = orjson.loads(line)["result"]
    assert sum(told["dropped"].values()) <= 2 * len(data) - least * limits.MIB
    assert set(told["gap_at"]) == {"stdout", "stderr"}


@given(words, st.text(max_size=30), st.integers(1, 10_000))
def test_what_is_said_to_fit_does(text: str, request_id: str, room: int) -> None:
    data = text.encode()
    result = answer(Output(data, b"", len(data)), "ends", Output(b"\xff" + data, b"", 1 + len(data)))
    if not may_be_too_long(result, request_id, room):
        assert len(encode_result(request_id, result)) <= room
