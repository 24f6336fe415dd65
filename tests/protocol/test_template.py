"""The frames to and from a template: what is written can be read, and nonsense is told as such."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw import limits, template
from fastclaw.errors import ExecFailed, ProtocolError
from fastclaw.protocol.template import CONTROL_FD, FD_VARIABLE, Failed, Forked, Ready, parse, request

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
raw_texts = st.binary(max_size=30).map(lambda data: data.replace(b"\0", b"").decode("utf-8", "surrogateescape"))
either = texts | raw_texts
numbers = st.integers(1, 2**32 - 1)


@given(
    numbers,
    st.lists(either, min_size=1, max_size=10),
    st.dictionaries(either, either, max_size=10),
    st.none() | either,
    st.lists(st.tuples(st.integers(0, 15), st.integers(0, 2**64 - 1)), max_size=16),
)
def test_a_request_says_everything(
    id: int, argv: list[str], env: dict[str, str], cwd: str | None, rlimits: list[tuple[int, int]]
) -> None:
    made = request(id, argv, env, cwd=cwd, rlimits=rlimits)
    assert made.spilled is None
    pairs = [list(pair) for pair in rlimits]
    assert json.loads(made.frame) == {"id": id, "argv": argv, "env": env, "cwd": cwd, "limits": pairs}
    read = template._read(made.frame, [5, 6, 7])
    assert (read.id, read.argv, read.env, read.cwd, read.fds) == (id, argv, env, cwd, [5, 6, 7])


def test_a_long_request_goes_as_a_file() -> None:
    made = request(1, ["x" * limits.TEMPLATE_FRAME_BYTES], {})
    assert made.spilled is not None
    assert json.loads(made.frame) == {"spilled": len(made.spilled)}
    assert json.loads(made.spilled)["argv"] == ["x" * limits.TEMPLATE_FRAME_BYTES]
    empty = len(request(1, [""], {}).frame)
    assert request(1, ["x" * (limits.TEMPLATE_FRAME_BYTES - empty)], {}).spilled is None
    assert request(1, ["x" * (limits.TEMPLATE_FRAME_BYTES - empty + 1)], {}).spilled is not None


def test_a_request_that_is_too_long_is_refused() -> None:
    with pytest.raises(ExecFailed) as refused:
        request(1, ["x" * limits.TEMPLATE_REQUEST_BYTES], {})
    assert refused.value.reason == "too_long"


@pytest.mark.parametrize("bad", ["a\0b", "\ud800"])
def test_a_text_that_no_process_can_be_given_is_refused(bad: str) -> None:
    for argv, env, cwd in (([bad], {}, None), (["a"], {bad: "a"}, None), (["a"], {"a": bad}, None), (["a"], {}, bad)):
        with pytest.raises(ValueError, match=r"null byte|surrogates"):
            request(1, argv, env, cwd=cwd)


def test_what_a_template_says() -> None:
    assert parse(b'{"ready": true}') == Ready()
    assert parse(b'{"forked": 7, "pid": 8}') == Forked(7, 8)
    failed = template.Request(7, [], {}, None, [], [])
    assert parse(template._failed(failed, template._Failed("cwd", 2))) == Failed(7, 2, "cwd")


@pytest.mark.parametrize(
    "nonsense",
    [
        b"",
        b"\xff",
        b"[1]",
        b"{}",
        b'{"ready": 1}',
        b'{"forked": 7}',
        b'{"forked": 7, "pid": true}',
        b'{"forked": 7, "pid": 0}',
        b'{"forked": "7", "pid": 8}',
        b'{"forked": 4294967296, "pid": 8}',
        b'{"failed": 7, "errno": -1}',
        b"[" * 60_000,
    ],
)
def test_nonsense_is_told(nonsense: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse(nonsense)


@given(st.binary(max_size=200))
def test_bytes_are_a_frame_or_an_error(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        parse(data)


def test_both_sides_have_the_same_words_and_bounds() -> None:
    assert (template.FD_VARIABLE, template.FRAME_BYTES) == (FD_VARIABLE, limits.TEMPLATE_FRAME_BYTES)
    go_and_streams_and_file = 5
    assert go_and_streams_and_file == template.MAX_FDS
    assert CONTROL_FD == 3  # spawner.c, command()
