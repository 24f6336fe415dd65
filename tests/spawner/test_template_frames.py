"""The frames to and from a template: what is written can be read, and nonsense is told as such."""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw import limits, template
from fastclaw.errors import ExecFailed, ProtocolError
from fastclaw.spawner.template_frames import CONTROL_FD, FD_VARIABLE, Failed, Forked, Ready, parse, request

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
    pairs = [list(pair) for pair in rlimits]
    assert json.loads(made) == {"id": id, "argv": argv, "env": env, "cwd": cwd, "limits": pairs}
    read = template._read(made, [5, 6, 7])
    assert (read.id, read.argv, read.env, read.cwd, read.fds) == (id, argv, env, cwd, [5, 6, 7])


def test_what_its_pump_hands_on_can_be_read() -> None:
    """A frame of the spawner is shorter than what a template reads at once; a longer request is a file and its size."""
    assert limits.SPAWN_FRAME_BYTES <= template.FRAME_BYTES
    made = request(1, ["x" * limits.SPAWN_FRAME_BYTES], {})
    file = os.memfd_create("spilled")
    os.write(file, made)
    read = template._read(b'{"spilled": %d}' % len(made), [5, 6, 7, file])
    assert (read.argv, read.fds) == (["x" * limits.SPAWN_FRAME_BYTES], [5, 6, 7])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.close(file)  # it has been read


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
        b'{"failed": 7, "errno": -1, "step": "fork"}',
        b'{"failed": 7, "errno": 4096, "step": "fork"}',
        b'{"failed": 7, "errno": 2147483648, "step": "fork"}',
        b'{"failed": 7, "errno": 4294967295, "step": "fork"}',
        b'{"failed": 7, "errno": 2}',
        b'{"failed": 7, "errno": 2, "step": 3}',
        b'{"failed": 7, "errno": 2, "step": "\\ud800"}',
        b'{"failed": 7, "errno": 2, "step": "a\\nb"}',
        b'{"failed": 7, "errno": 2, "step": "' + b"x" * 65 + b'"}',
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


@given(st.integers(), st.text(st.characters()))
def test_what_is_told_of_a_failure_has_words_and_can_be_passed_on(errno: int, step: str) -> None:
    """os.strerror wants a C int, and an answer is UTF-8."""
    with contextlib.suppress(ProtocolError):
        failed = parse(json.dumps({"failed": 1, "errno": errno, "step": step}).encode())
        assert isinstance(failed, Failed)
        assert os.strerror(failed.errno)
        failed.step.encode()


def test_what_is_quoted_of_nonsense_is_short() -> None:
    with pytest.raises(ProtocolError) as refused:
        parse(json.dumps({"forked": "x" * 60_000}).encode())
    assert len(str(refused.value)) < 200


def test_both_sides_have_the_same_words_and_bounds() -> None:
    assert template.FD_VARIABLE == FD_VARIABLE
    go_and_streams_and_file = 5
    assert go_and_streams_and_file == template.MAX_FDS
    assert CONTROL_FD == 3  # spawner/c/start.c, command()


def test_the_longest_word_fits_a_pump() -> None:
    """It drops what is longer (spawner/c/clients.c, SAID_BYTES)."""
    header = (Path(template.__file__).parent / "spawner" / "c" / "spawner.h").read_text()
    matched = re.search(r"SAID_BYTES = (\d+) << 10,", header)
    assert matched is not None
    failed = template.Request(2**32 - 1, [], {}, None, [], [])
    longest = template._failed(failed, template._Failed("\U0001f600" * limits.TEMPLATE_STEP_CHARS, limits.MAX_ERRNO))
    assert len(longest) <= int(matched[1]) * limits.KIB
