"""Params and answers of the client."""

import pytest

from fastclaw.client.answers import given, shaped
from fastclaw.errors import ProtocolError
from fastclaw.runtime import ExecResult


def test_what_is_none_is_not_sent() -> None:
    assert given(a=None, b=0, c=False, d="") == {"b": 0, "c": False, "d": ""}


def test_an_answer_of_another_shape_is_the_runtimes_fault() -> None:
    told = {"process_id": "p", "stdio_addr": "/a", "stderr_addr": "/b"}
    assert shaped(told, ExecResult, "exec") == ExecResult(**told)
    with pytest.raises(ProtocolError, match="exec has the wrong shape"):
        shaped({}, ExecResult, "exec")
