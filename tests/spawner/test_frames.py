"""The frames to and from the spawner: what is written can be read. For the side in C see test_frames_c.py."""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw import limits, template
from fastclaw.errors import ExecFailed, ProtocolError
from fastclaw.params import NUMBERS
from fastclaw.processes.lane import Collection
from fastclaw.spawner import frames
from fastclaw.spawner.frames import (
    Hello,
    Identity,
    Strings,
    TemplateReady,
    WorkerFailed,
    WorkerForked,
    control,
    kept_bytes,
    parse_hello,
    parse_template,
    start,
    strings,
    template_request,
    welcome,
    worker,
)
from tests.spawner.start_frames import HEAD, read

if TYPE_CHECKING:
    from fastclaw.runtime import Keep

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=50)
"""What argv, environment and paths may hold; bytes that are no UTF-8 come as the surrogates of os.fsdecode."""

raw_texts = st.binary(max_size=50).map(lambda data: data.replace(b"\0", b"").decode("utf-8", "surrogateescape"))
either = texts | raw_texts
numbers = st.integers(0, 2**32 - 1)
ids = numbers.filter(bool)
identities = st.builds(Identity, numbers, numbers, st.lists(numbers, max_size=limits.SPAWN_GROUPS), texts)
rlimit_lists = st.lists(st.tuples(st.sampled_from(list(NUMBERS.values())), st.integers(0, 2**64 - 1)), max_size=16)
inputs = st.binary(max_size=200) | st.integers(1, 20_000).map(bytes)
collections = st.builds(
    Collection,
    input=inputs,
    output_limit=st.integers(0, limits.MAX_RUN_OUTPUT_BYTES),
    keep=st.sampled_from(["head", "tail", "ends"]),
    on_limit=st.sampled_from(["truncate", "kill"]),
    drain_ms=st.integers(0, 2**31),
)
flag_sets = st.sets(
    st.sampled_from([frames.FLAG_NULL_STDIN, frames.FLAG_MERGE, frames.FLAG_END_ORPHANS, frames.FLAG_HOLD])
).map(sum)


# --- strings ---


@given(st.lists(texts | raw_texts, max_size=20))
def test_strings_round_trip(listed: list[str]) -> None:
    data, number = strings(listed)
    assert number == len(listed)
    assert data.split(b"\0")[:-1] == [text.encode("utf-8", "surrogateescape") for text in listed]
    assert data.endswith(b"\0") == bool(listed)


def test_strings_take_what_can_be_read_once() -> None:
    assert strings(text for text in ("a", "", "b")) == Strings(b"a\0\0b\0", 3)
    assert strings([""]) == Strings(b"\0", 1)
    assert strings([]) == Strings(b"", 0)


@pytest.mark.parametrize("bad", ["a\0b", "\0", "\ud800", "a\udfffb"])
def test_a_text_that_no_process_can_be_given_is_refused(bad: str) -> None:
    for listed in ([bad], ["a", bad], [bad, ""]):
        with pytest.raises(ValueError, match=r"null byte|surrogates"):
            strings(listed)


# --- START ---


def test_a_template_says_so() -> None:
    flags = frames.FLAG_TEMPLATE | frames.FLAG_NULL_STDIN
    assert read(start(1, strings(["a"]), strings([]), flags=flags)).flags == flags


@given(
    ids,
    st.lists(texts | raw_texts, min_size=1, max_size=20),
    st.lists(texts | raw_texts, max_size=20),
    st.none() | texts.map("/{}".format),
    st.none() | identities,
    rlimit_lists,
    flag_sets,
    st.none() | collections,
    st.integers(1, 1_500),
)
def test_start_says_everything_and_keeps_to_the_bounds(
    id: int,
    argv: list[str],
    env: list[str],
    directory: str | None,
    identity: Identity | None,
    rlimits: list[tuple[int, int]],
    flags: int,
    collection: Collection | None,
    times: int,
) -> None:
    env *= times
    made = start(
        id,
        strings(argv),
        strings(env),
        directory=directory,
        flags=flags,
        identity=identity,
        rlimits=rlimits,
        collection=collection,
    )
    seen = read(made)
    assert seen.id == id
    assert seen.argv + seen.env == [text.encode("utf-8", "surrogateescape") for text in argv + env]
    assert seen.directory == (None if directory is None else directory.encode())
    assert seen.rlimits == [(which, value, value) for which, value in rlimits]
    assert seen.flags & flags == flags
    check_collection(seen.flags & ~flags, seen.input, seen[10:13], collection)
    if identity is None:
        assert not seen.flags & frames.FLAG_IDENTITY
        assert (seen.uid, seen.gid, seen.groups) == (0, 0, [])
    else:
        assert seen.flags & frames.FLAG_IDENTITY
        assert (seen.uid, seen.gid, seen.groups) == identity[:3]


def check_collection(flags: int, given: bytes, told: tuple[int, ...], wanted: Collection | None) -> None:
    """What a frame says of it. `flags`: but those that were asked for; `told`: head, limit and drain_ms."""
    assert bool(flags & frames.FLAG_RUN) == (wanted is not None)
    assert given == (b"" if wanted is None else wanted.input)
    if wanted is None:
        assert told == (0, 0, 0)
        assert not flags & (frames.FLAG_LIMIT_KILLS | frames.FLAG_INPUT_FILE | frames.FLAG_NULL_STDIN)
    else:
        assert told == (*kept_bytes(wanted), wanted.drain_ms)
        assert bool(flags & frames.FLAG_LIMIT_KILLS) == (wanted.on_limit == "kill")


def test_a_run_without_input_has_no_stdin() -> None:
    for data, expected in ((b"", frames.FLAG_NULL_STDIN), (b"x", 0)):
        seen = read(start(1, strings(["a"]), strings([]), collection=Collection(input=data)))
        assert seen.flags == frames.FLAG_RUN | expected


@pytest.mark.parametrize(("keep", "head"), [("head", 9), ("tail", 0), ("ends", 5)])
def test_what_is_kept_of_the_beginning(keep: Keep, head: int) -> None:
    more = frames.INLINE_BYTES
    assert kept_bytes(Collection(output_limit=9, keep=keep, on_limit="kill")) == (head, 9)
    assert kept_bytes(Collection(output_limit=9 + more, keep=keep))[1] == 9 + more
    least = {"head": more, "tail": 0, "ends": more // 2}[keep]
    assert kept_bytes(Collection(output_limit=9, keep=keep)) == (least, more), "not a few bytes at a time"


@pytest.mark.parametrize("spare", [-1, 0, 1])
@pytest.mark.parametrize("is_worker", [False, True])
def test_input_goes_along_as_long_as_there_is_room(spare: int, is_worker: bool) -> None:
    room = limits.SPAWN_FRAME_BYTES - HEAD.size - len(b"a\0")
    collection = Collection(input=bytes(room + spare))
    made = (
        worker(1, 0, b"{}", collection=collection)
        if is_worker
        else start(1, strings(["a"]), strings([]), collection=collection)
    )
    seen = read(made)
    assert seen.input == collection.input
    assert bool(seen.flags & frames.FLAG_INPUT_FILE) == (is_worker or spare > 0)


def test_a_large_command_and_a_large_input_are_two_files() -> None:
    text = "x" * limits.SPAWN_FRAME_BYTES
    made = start(1, strings(["a", text]), NOTHING, collection=Collection(input=text.encode() * 2))
    assert [len(file) for file in made.files] == [2 * limits.SPAWN_FRAME_BYTES, limits.SPAWN_FRAME_BYTES + 3]
    assert read(made).input == text.encode() * 2


# --- a worker ---


@given(ids, st.integers(0, 4_000), st.binary(min_size=1), flag_sets, st.none() | identities, st.none() | collections)
def test_a_worker_has_its_template_s_place_and_request(
    id: int,
    place: int,
    request: bytes,
    flags: int,
    identity: Identity | None,
    collection: Collection | None,
) -> None:
    made = worker(id, place, request, flags=flags, identity=identity, collection=collection)
    seen = read(made)
    assert (seen.id, seen.place, seen.data) == (id, place, request)
    assert seen.flags & (flags | frames.FLAG_WORKER) == flags | frames.FLAG_WORKER
    assert (seen.uid, seen.gid) == ((0, 0) if identity is None else identity[:2])
    check_collection(seen.flags & ~flags, seen.input, seen[10:13], collection)


@pytest.mark.parametrize("spare", [0, 1])
def test_a_long_request_for_a_template_goes_as_a_file(spare: int) -> None:
    request = bytes(limits.SPAWN_FRAME_BYTES - HEAD.size + spare)
    made = worker(1, 0, request)
    assert made.files == ((request,) if spare else ())
    assert read(made).data == request


def test_an_order_for_a_worker_names_its_template() -> None:
    assert struct.unpack("=5I", control(frames.ADOPT, 1, 2, 3, 4)) == (11, 1, 2, 3, 4)


NOTHING = Strings(b"", 0)


@pytest.mark.parametrize("argument", ["x", "x" * limits.SPAWN_FRAME_BYTES])
def test_a_terminal_has_its_size(argument: str) -> None:
    seen = read(start(1, strings(["sh", argument]), NOTHING, tty=(24, 80)))
    assert seen.flags & ~frames.FLAG_SPILLED == frames.FLAG_TTY
    assert struct.unpack("=4H", seen.window) == (24, 80, 0, 0)


def test_a_frame_may_be_full_to_the_last_byte() -> None:
    room = limits.SPAWN_FRAME_BYTES - HEAD.size - 1
    assert start(1, strings(["x" * room]), NOTHING).files == ()
    frame, files = start(1, strings(["x" * (room + 1)]), NOTHING)
    assert (len(frame), files) == (HEAD.size, (b"x" * (room + 1) + b"\0",))


def test_more_strings_than_a_pump_has_pointers_for_go_as_a_file() -> None:
    most = limits.SPAWN_INLINE_STRINGS
    assert start(1, strings(["a"] * (most - 1)), strings(["b"])).files == ()
    assert read(start(1, strings(["a"] * (most - 1)), strings(["b"] * 2))).flags == frames.FLAG_SPILLED


def test_more_than_the_kernel_takes_is_too_long() -> None:
    most = limits.SPAWN_STRINGS_BYTES
    assert read(start(1, Strings(b"x" * (most - 1) + b"\0", 1), NOTHING)).flags == frames.FLAG_SPILLED
    for argv, env, directory in (
        (Strings(b"x" * most + b"\0", 1), NOTHING, None),
        (Strings(b"x" * (most - 1) + b"\0", 1), Strings(b"\0", 1), None),
        (Strings(b"x" * (most - 1) + b"\0", 1), NOTHING, "/"),
        (Strings(b"\0" * (limits.SPAWN_STRINGS + 1), limits.SPAWN_STRINGS + 1), NOTHING, None),
    ):
        with pytest.raises(ExecFailed) as refused:
            start(1, argv, env, directory=directory)
        assert refused.value.reason == "too_long"


def test_a_working_directory_with_a_nul_is_refused() -> None:
    with pytest.raises(ValueError, match="null byte"):
        start(1, strings(["true"]), NOTHING, directory="/tmp\0/x")


def test_more_groups_than_the_spawner_takes_are_never_sent() -> None:
    made = start(1, strings(["true"]), NOTHING, identity=Identity(1, 1, list(range(limits.SPAWN_GROUPS + 1))))
    assert len(read(made).groups) == limits.SPAWN_GROUPS


# --- the greeting ---


def hello(op: int = frames.HELLO, magic: int = frames.MAGIC, version: int = frames.VERSION, facts: int = 3) -> bytes:
    return struct.pack("=4IQ", op, magic, version, facts, 7)


@given(st.binary(max_size=200) | st.builds(bytes.__add__, st.builds(hello, facts=numbers), st.binary(max_size=200)))
def test_a_greeting_is_understood_or_a_protocol_error(frame: bytes) -> None:
    try:
        said = parse_hello(frame)
    except ProtocolError:
        assert not frame.startswith(hello()[:12])
    else:
        assert isinstance(said, Hello)
        assert all("=" not in name and "\0" not in name + value for name, value in said.env.items())


def test_a_greeting_tells_the_environment_and_the_facts() -> None:
    tail = b"PATH=/bin\0EMPTY=\0TWO=a=b\0no variable\0\xff=\xfe\0"
    env = {"PATH": "/bin", "EMPTY": "", "TWO": "a=b", "\udcff": "\udcfe"}
    assert parse_hello(hello() + tail) == Hello(env, True, True, 7)
    assert parse_hello(hello(facts=0)) == Hello({}, False, False, 7)
    assert parse_hello(hello(facts=1))[1:] == (True, False, 7)
    assert parse_hello(hello(facts=2))[1:] == (False, True, 7)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (b"", "cut short"),
        (hello()[:-1], "cut short"),
        (hello(op=frames.WELCOME), "no spawner"),
        (hello(magic=1), "no spawner"),
        (hello(version=frames.VERSION + 1), "install fastclaw anew"),
    ],
)
def test_a_wrong_greeting_says_what_is_wrong(frame: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        parse_hello(frame)


def test_orders_and_the_welcome() -> None:
    order = (frames.END, 7, frames.LEVEL_KILL, 0, frames.NOWHERE)
    assert struct.unpack("=5I", control(frames.END, 7, frames.LEVEL_KILL)) == order
    read_file = struct.pack("=5I", frames.READ, 1, 0, 0, frames.NOWHERE) + b"/etc\0"
    assert control(frames.READ, 1, tail=b"/etc\0") == read_file
    confined = struct.unpack("=4IQ2I", welcome(confine=True, reaper_uid=5, collect_bytes=2**40, capabilities=3))
    assert confined == (frames.WELCOME, frames.VERSION, frames.CONFINE, 5, 2**40, 3, 0)
    free = struct.unpack("=4IQ2I", welcome(confine=False, reaper_uid=frames.NO_USER, collect_bytes=1))
    assert free == (frames.WELCOME, frames.VERSION, 0, frames.NO_USER, 1, 0, 0)


# --- templates ---


@given(
    ids,
    st.lists(either, min_size=1, max_size=10),
    st.dictionaries(either, either, max_size=10),
    st.none() | either,
    st.lists(st.tuples(st.integers(0, 15), st.integers(0, 2**64 - 1)), max_size=16),
)
def test_a_request_of_a_template_says_everything(
    id: int, argv: list[str], env: dict[str, str], cwd: str | None, rlimits: list[tuple[int, int]]
) -> None:
    made = template_request(id, argv, env, cwd=cwd, rlimits=rlimits)
    pairs = [list(pair) for pair in rlimits]
    assert json.loads(made) == {"id": id, "argv": argv, "env": env, "cwd": cwd, "limits": pairs}
    read = template._read(made, [5, 6, 7])
    assert (read.id, read.argv, read.env, read.cwd, read.fds) == (id, argv, env, cwd, [5, 6, 7])


def test_what_its_pump_hands_on_can_be_read() -> None:
    """A frame of the spawner is shorter than what a template reads at once; a longer request is a file and its size."""
    assert limits.SPAWN_FRAME_BYTES <= template.FRAME_BYTES
    made = template_request(1, ["x" * limits.SPAWN_FRAME_BYTES], {})
    file = os.memfd_create("spilled")
    os.write(file, made)
    read = template._read(b'{"spilled": %d}' % len(made), [5, 6, 7, file])
    assert (read.argv, read.fds) == (["x" * limits.SPAWN_FRAME_BYTES], [5, 6, 7])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.close(file)  # it has been read


def test_a_request_that_is_too_long_is_refused() -> None:
    with pytest.raises(ExecFailed) as refused:
        template_request(1, ["x" * limits.TEMPLATE_REQUEST_BYTES], {})
    assert refused.value.reason == "too_long"


@pytest.mark.parametrize("bad", ["a\0b", "\ud800"])
def test_a_text_of_a_request_that_no_process_can_be_given_is_refused(bad: str) -> None:
    for argv, env, cwd in (([bad], {}, None), (["a"], {bad: "a"}, None), (["a"], {"a": bad}, None), (["a"], {}, bad)):
        with pytest.raises(ValueError, match=r"null byte|surrogates"):
            template_request(1, argv, env, cwd=cwd)


def test_what_a_template_says() -> None:
    assert parse_template(b'{"ready": true}') == TemplateReady()
    assert parse_template(b'{"forked": 7, "pid": 8}') == WorkerForked(7, 8)
    failed = template.Request(7, [], {}, None, [], [])
    assert parse_template(template._failed(failed, template._Failed("cwd", 2))) == WorkerFailed(7, 2, "cwd")


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
def test_nonsense_of_a_template_is_told(nonsense: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_template(nonsense)


@given(st.binary(max_size=200))
def test_bytes_of_a_template_are_a_frame_or_an_error(data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        parse_template(data)


@given(st.integers(), st.text(st.characters()))
def test_what_is_told_of_a_failure_has_words_and_can_be_passed_on(errno: int, step: str) -> None:
    """os.strerror wants a C int, and an answer is UTF-8."""
    with contextlib.suppress(ProtocolError):
        failed = parse_template(json.dumps({"failed": 1, "errno": errno, "step": step}).encode())
        assert isinstance(failed, WorkerFailed)
        assert os.strerror(failed.errno)
        failed.step.encode()


def test_what_is_quoted_of_nonsense_is_short() -> None:
    with pytest.raises(ProtocolError) as refused:
        parse_template(json.dumps({"forked": "x" * 60_000}).encode())
    assert len(str(refused.value)) < 200


def test_a_template_has_the_same_words_and_bounds() -> None:
    assert template.FD_VARIABLE == frames.TEMPLATE_FD_VARIABLE
    go_and_streams_and_file = 5
    assert go_and_streams_and_file == template.MAX_FDS
    assert frames.TEMPLATE_FD == 3  # spawner/c/start.c, command()


def test_the_longest_word_fits_a_pump() -> None:
    """It drops what is longer (spawner/c/clients.c, SAID_BYTES)."""
    header = (Path(template.__file__).parent / "spawner" / "c" / "spawner.h").read_text()
    matched = re.search(r"SAID_BYTES = (\d+) << 10,", header)
    assert matched is not None
    failed = template.Request(2**32 - 1, [], {}, None, [], [])
    longest = template._failed(failed, template._Failed("\U0001f600" * limits.TEMPLATE_STEP_CHARS, limits.MAX_ERRNO))
    assert len(longest) <= int(matched[1]) * limits.KIB
