"""The frames to and from the spawner: what is written can be read, and spawner.c has the same words and bounds."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastclaw import limits
from fastclaw.decisions.rlimits import NUMBERS
from fastclaw.errors import ExecFailed, ProtocolError
from fastclaw.protocol import spawner as frames
from fastclaw.protocol.spawner import Hello, Identity, Start, Strings, control, parse_hello, start, strings, welcome

SOURCE = Path(frames.__file__).parent.parent / "spawn" / "spawner.c"

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=50)
"""What argv, environment and paths may hold; bytes that are no UTF-8 come as the surrogates of os.fsdecode."""

raw_texts = st.binary(max_size=50).map(lambda data: data.replace(b"\0", b"").decode("utf-8", "surrogateescape"))
numbers = st.integers(0, 2**32 - 1)
identities = st.builds(Identity, numbers, numbers, st.lists(numbers, max_size=limits.SPAWN_GROUPS), texts)
rlimit_lists = st.lists(st.tuples(st.sampled_from(list(NUMBERS.values())), st.integers(0, 2**64 - 1)), max_size=16)


# --- reading a START as spawner.c does ---


class Read(NamedTuple):
    """What the spawner finds in a START frame."""

    id: int
    flags: int
    argv: list[bytes]
    env: list[bytes]
    directory: bytes | None
    uid: int
    gid: int
    groups: list[int]
    rlimits: list[tuple[int, int, int]]
    window: bytes


def read(made: Start) -> Read:
    """`parse` and `lay_out` of spawner.c, with each of their conditions."""
    frame, spilled = made
    assert len(frame) <= limits.SPAWN_FRAME_BYTES
    op, id, flags, argc, envc, uid, gid, group_count, limit_count, size = struct.unpack_from("=10I", frame)
    assert (op, flags & ~63) == (frames.START, 0)
    assert 1 <= argc <= limits.SPAWN_STRINGS
    assert envc <= limits.SPAWN_STRINGS
    assert group_count <= limits.SPAWN_GROUPS
    assert limit_count <= len(NUMBERS)
    assert size <= limits.SPAWN_STRINGS_BYTES
    assert bool(flags & frames.FLAG_SPILLED) == (spilled is not None)
    at = 40 + 24 * limit_count
    rlimits = [(which, soft, hard) for which, _, soft, hard in struct.iter_unpack("=2I2Q", frame[40:at])]
    groups = list(struct.unpack_from(f"={group_count}I", frame, at))
    at += 4 * group_count
    data = frame[at : at + size] if spilled is None else spilled
    window = frame[at + (size if spilled is None else 0) :]
    assert len(window) == (8 if flags & frames.FLAG_TTY else 0)
    assert len(data) == size
    assert spilled is not None or argc + envc <= limits.SPAWN_INLINE_STRINGS
    parts = data.split(b"\0")
    directory = parts[argc + envc] if flags & frames.FLAG_DIRECTORY else None
    assert parts[argc + envc + (directory is not None) :] == [b""]
    env = parts[argc : argc + envc]
    return Read(id, flags, parts[:argc], env, directory, uid, gid, groups, rlimits, window)


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


def test_a_template_has_one_more_descriptor_and_says_so() -> None:
    made = start(1, strings(["a"]), strings([]), with_control=True, null_stdin=True)
    assert read(made).flags == frames.FLAG_CONTROL | frames.FLAG_NULL_STDIN


def test_an_order_for_a_worker_names_its_template() -> None:
    assert struct.unpack("=4I", control(frames.ADOPT, 1, 2, 3)) == (12, 1, 2, 3)


@given(
    numbers.filter(bool),
    st.lists(texts | raw_texts, min_size=1, max_size=20),
    st.lists(texts | raw_texts, max_size=20),
    st.none() | texts.map("/{}".format),
    st.none() | identities,
    rlimit_lists,
    st.booleans(),
    st.integers(1, 1_500),
)
def test_start_says_everything_and_keeps_to_the_bounds(
    id: int,
    argv: list[str],
    env: list[str],
    directory: str | None,
    identity: Identity | None,
    rlimits: list[tuple[int, int]],
    null_stdin: bool,
    times: int,
) -> None:
    env *= times
    made = start(
        id,
        strings(argv),
        strings(env),
        directory=directory,
        null_stdin=null_stdin,
        identity=identity,
        rlimits=rlimits,
    )
    seen = read(made)
    assert seen.id == id
    assert seen.argv + seen.env == [text.encode("utf-8", "surrogateescape") for text in argv + env]
    assert seen.directory == (None if directory is None else directory.encode())
    assert seen.rlimits == [(which, value, value) for which, value in rlimits]
    assert bool(seen.flags & frames.FLAG_NULL_STDIN) == null_stdin
    if identity is None:
        assert not seen.flags & frames.FLAG_IDENTITY
        assert (seen.uid, seen.gid, seen.groups) == (0, 0, [])
    else:
        assert seen.flags & frames.FLAG_IDENTITY
        assert (seen.uid, seen.gid, seen.groups) == identity[:3]


NOTHING = Strings(b"", 0)


@pytest.mark.parametrize("argument", ["x", "x" * limits.SPAWN_FRAME_BYTES])
def test_a_terminal_has_its_size(argument: str) -> None:
    seen = read(start(1, strings(["sh", argument]), NOTHING, tty=(24, 80)))
    assert seen.flags & ~frames.FLAG_SPILLED == frames.FLAG_TTY
    assert struct.unpack("=4H", seen.window) == (24, 80, 0, 0)


def test_a_frame_may_be_full_to_the_last_byte() -> None:
    room = limits.SPAWN_FRAME_BYTES - 40 - 1
    assert start(1, strings(["x" * room]), NOTHING).spilled is None
    frame, spilled = start(1, strings(["x" * (room + 1)]), NOTHING)
    assert (len(frame), spilled) == (40, b"x" * (room + 1) + b"\0")


def test_more_strings_than_a_keeper_has_pointers_for_go_as_a_file() -> None:
    most = limits.SPAWN_INLINE_STRINGS
    assert start(1, strings(["a"] * (most - 1)), strings(["b"])).spilled is None
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
    return struct.pack("=4I", op, magic, version, facts)


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
    assert parse_hello(hello() + tail) == Hello(env, True, True)
    assert parse_hello(hello(facts=0)) == Hello({}, False, False)
    assert parse_hello(hello(facts=1))[1:] == (True, False)
    assert parse_hello(hello(facts=2))[1:] == (False, True)


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
    assert struct.unpack("=4I", control(frames.END, 7, frames.LEVEL_KILL)) == (frames.END, 7, frames.LEVEL_KILL, 0)
    assert control(frames.READ, 1, tail=b"/etc\0") == struct.pack("=4I", frames.READ, 1, 0, 0) + b"/etc\0"
    confined = struct.unpack("=4I", welcome(confine=True, keeper_uid=5))
    assert confined == (frames.WELCOME, frames.VERSION, frames.CONFINE, 5)
    assert struct.unpack("=4I", welcome(confine=False)) == (frames.WELCOME, frames.VERSION, 0, frames.NO_USER)


# --- the other side: what spawner.c says of itself ---


CODE = re.sub(r"/\*.*?\*/", "", SOURCE.read_text(), flags=re.DOTALL)
ARITHMETIC = re.compile(r"(?:0x[0-9a-f]+u?|\d+|<<|[+()\s])+")
FORMATS = {"u32": "I", "u64": "Q", "int32_t": "i"}


def words_of_c() -> dict[str, int]:
    """Every enumerator whose value needs numbers only, or is one more than the last."""
    found: dict[str, int] = {}
    for body in re.findall(r"enum\s*\{([^}]*)\}", CODE):
        value: int | None = -1
        for item in filter(None, map(str.strip, body.split(","))):
            name, _, expression = map(str.strip, item.partition("="))
            if not expression:
                value = None if value is None else value + 1
            else:
                value = int(eval(expression.rstrip("u"))) if ARITHMETIC.fullmatch(expression) else None
            if value is not None:
                found[name] = value
    return found


def format_of_c(name: str) -> str:
    """A struct of fixed-width numbers, as the struct module writes it."""
    matched = re.search(rf"struct {name} \{{([^}}]*)\}};", CODE)
    assert matched is not None
    members = [member.split(None, 1) for member in filter(None, map(str.strip, matched[1].split(";")))]
    return "".join(FORMATS[kind] * len(names.split(",")) for kind, names in members)


def spelled_out(packed: struct.Struct) -> str:
    """`=2I2Q` is `IIQQ`."""
    return re.sub(r"(\d+)(\w)", lambda matched: int(matched[1]) * matched[2], packed.format.removeprefix("="))


WORDS = words_of_c()


def test_the_enums_are_found() -> None:
    assert {"VERSION", "MAGIC", "HELLO", "ANSWER", "F_ALL", "STEP_EXEC", "LEVEL_KILL", "MAX_TREE"} <= set(WORDS)


def test_orders_events_steps_and_levels_are_the_same() -> None:
    names = ["VERSION", "MAGIC", "NO_USER"]
    names += ["HELLO", "WELCOME", "START", "RETIRE", "GROW", "SIGNAL", "END", "LISTEN", "READ", "PING", "SHUTDOWN"]
    names += ["STARTED", "REFUSED", "EXITED", "EMPTY", "LOST", "ANSWER"]
    steps = [name for name in WORDS if name.startswith(("STEP_", "LEVEL_"))]
    assert len(steps) == 10
    assert {name: WORDS[name] for name in names + steps} == {name: getattr(frames, name) for name in names + steps}


def test_no_word_of_either_side_is_missing_on_the_other() -> None:
    ours = {name for name in vars(frames) if name.startswith(("FLAG_", "STEP_", "LEVEL_"))}
    theirs = {name.replace("F_", "FLAG_", 1) for name in WORDS if name.startswith(("F_", "STEP_", "LEVEL_"))}
    assert theirs - {"FLAG_ALL"} == ours


def test_flags_are_the_same() -> None:
    flags = {name: value for name, value in vars(frames).items() if name.startswith("FLAG_")}
    assert {name: WORDS[name.replace("FLAG_", "F_")] for name in flags} == flags
    assert sum(flags.values()) == WORDS["F_ALL"]
    assert WORDS["W_CONFINE"] == frames.CONFINE


def test_the_structs_are_the_same_and_have_no_gaps() -> None:
    ours = {"control": frames._CONTROL, "start": frames._START, "limit": frames._LIMIT, "event": frames.EVENT}
    assert {name: format_of_c(name) for name in ours} == {name: spelled_out(packed) for name, packed in ours.items()}
    assert format_of_c("hello") == format_of_c("control")
    for packed in ours.values():
        assert packed.size == struct.calcsize("@" + spelled_out(packed)) == struct.calcsize(packed.format)


def test_the_bounds_are_the_same() -> None:
    ours = {
        "FRAME_BYTES": limits.SPAWN_FRAME_BYTES,
        "HELLO_BYTES": limits.SPAWN_HELLO_BYTES,
        "MAX_STRINGS_BYTES": limits.SPAWN_STRINGS_BYTES,
        "MAX_STRINGS": limits.SPAWN_STRINGS,
        "MAX_GROUPS": limits.SPAWN_GROUPS,
        "MAX_LIMITS": len(NUMBERS),
        "MAX_FILE_BYTES": limits.SPAWN_FILE_BYTES,
        "MAX_BROOD": limits.SPAWN_BROOD,
    }
    assert {name: WORDS[name] for name in ours} == ours


def test_a_keeper_has_room_for_what_is_sent() -> None:
    argv_and_env_ends = 2
    pointers = (limits.SPAWN_INLINE_STRINGS + argv_and_env_ends) * struct.calcsize("P")
    assert pointers == WORDS["POINTER_BYTES"]
    alignment = struct.calcsize("P") - 1
    parts = (WORDS[name] for name in ("KEEPER_STACK", "FRAME_BYTES", "POINTER_BYTES", "PATH_BYTES"))
    assert sum(parts) + alignment <= WORDS["KEEPER_BYTES"]
    assert WORDS["KEEPER_STACK"] >= 16 * limits.KIB
    assert WORDS["MAX_FDS"] == 5  # three streams, a template's socket and a file
    assert WORDS["MAX_KEEPERS"] >= limits.MAX_PROCESSES + limits.SPAWN_IDLE_KEEPERS
