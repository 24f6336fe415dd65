"""The answer of a run as the client gives it, and the input as it is sent."""

from __future__ import annotations

import base64
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw.client.results import input_params, ran_of
from fastclaw.errors import ProtocolError
from fastclaw.params import check_run, convert
from fastclaw.runtime import RunRequest, RunResult


def a_result(**fields: Any) -> RunResult:
    record: dict[str, Any] = {"process_id": "p", "state": "exited", "exit_code": 0, "reason": "exited"}
    return RunResult(**record | fields)


def test_the_record_is_taken_over() -> None:
    timings, usage = {"run_us": 5}, {"user_us": 1}
    ran = ran_of(a_result(exit_code=None, signal=9, reason="killed", timings=timings, usage=usage))
    assert (ran.process_id, ran.exit_code, ran.signal, ran.reason) == ("p", None, 9, "killed")
    assert (ran.timings, ran.usage) == (timings, usage)


def test_text_and_base64_are_bytes() -> None:
    data = os.urandom(100)
    ran = ran_of(a_result(stdout="é\0", stderr=None, stderr_base64=base64.b64encode(data).decode()))
    assert (ran.stdout, ran.stderr) == ("é\0".encode(), data)


def test_nothing_is_no_bytes() -> None:
    ran = ran_of(a_result(stdout="", stderr=None))  # null: its run was answered before
    assert (ran.stdout, ran.stderr) == (b"", b"")


def test_what_is_missing() -> None:
    ran = ran_of(a_result(stdout="ab", dropped={"stdout": 3, "stderr": 0}, gap_at={"stdout": 1}, incomplete=True))
    assert (ran.dropped, ran.gap_at, ran.incomplete) == ({"stdout": 3, "stderr": 0}, {"stdout": 1}, True)


def test_what_is_not_said_is_not_missing() -> None:
    ran = ran_of(a_result(stdout="ab", stderr=""))
    assert (ran.gap_at, ran.incomplete, ran.usage) == ({}, False, None)


@pytest.mark.parametrize("stream", ["stdout_base64", "stderr_base64"])
@pytest.mark.parametrize("encoded", ["é", "YQ", "YQ==\n", "Y Q==", "YQ==YQ=="])
def test_base64_that_is_none(stream: str, encoded: str) -> None:
    with pytest.raises(ProtocolError, match="base64"):
        ran_of(a_result(**{stream: encoded}))


# --- input ---


def test_input_is_text_where_it_is_some() -> None:
    assert input_params(None) == {}
    assert input_params("é") == input_params("é".encode()) == {"input": "é"}
    assert input_params(b"") == {"input": ""}
    assert input_params(b"\xff") == {"input_base64": "/w=="}


@given(st.one_of(st.binary(max_size=50), st.text(st.characters(exclude_categories=["Cs"]), max_size=50)))
def test_the_runtime_gets_what_was_given(data: bytes | str) -> None:
    request = convert({"cmd": ["x"], **input_params(data)}, RunRequest)
    assert check_run(request) == (data.encode() if isinstance(data, str) else data)
