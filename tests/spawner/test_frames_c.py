"""The words, structs and bounds of the frames, as spawner/c/ has them."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from fastclaw import limits, telemetry_limits
from fastclaw.params import NUMBERS
from fastclaw.spawner import frames

SOURCES = sorted((Path(frames.__file__).parent / "c").glob("*.[ch]"), key=lambda path: path.suffix != ".h")
"""The header first, on which the others build."""

CODE = re.sub(r"/\*.*?\*/", "", "".join(source.read_text() for source in SOURCES), flags=re.DOTALL)
WORD = re.compile(r"[A-Za-z_]\w*")
ARITHMETIC = re.compile(r"(?:\d+|<<|[-+*~()\s])+")
FORMATS = {"u32": "I", "u64": "Q", "int32_t": "i"}


def words_of_c() -> dict[str, int]:
    """Every enumerator whose value needs numbers and earlier ones only, or is one more than the last.

    Without those that two files have with values of their own."""
    found: dict[str, int] = {}
    differing = set()
    for body in re.findall(r"enum\s*\{([^}]*)\}", CODE):
        value: int | None = -1
        for item in filter(None, map(str.strip, body.split(","))):
            name, _, expression = map(str.strip, item.partition("="))
            value = (None if value is None else value + 1) if not expression else value_of(expression, found)
            if value is not None and found.setdefault(name, value) != value:
                differing.add(name)
    return {name: value for name, value in found.items() if name not in differing}


def value_of(expression: str, known: dict[str, int]) -> int | None:
    plain = re.sub(r"\b(0x[0-9a-f]+|\d+)u?\b", lambda matched: str(int(matched[1], 0)), expression)
    if not set(WORD.findall(plain)) <= set(known):
        return None
    plain = WORD.sub(lambda matched: str(known[matched[0]]), plain)
    return int(eval(plain)) % 2**32 if ARITHMETIC.fullmatch(plain) else None


def format_of_c(name: str) -> str:
    """A struct of fixed-width numbers, as the struct module writes it."""
    matched = re.search(rf"struct {name} \{{([^}}]*)\}};", CODE)
    assert matched is not None
    members = [member.split(None, 1) for member in filter(None, map(str.strip, matched[1].split(";")))]
    return "".join(FORMATS[kind] * sum(map(places, names.split(","))) for kind, names in members)


def places(name: str) -> int:
    """An array has several."""
    number = name.partition("[")[2].rstrip("] ") or "1"
    return int(number) if number.isdecimal() else WORDS[number]


def spelled_out(packed: struct.Struct) -> str:
    """`=2I2Q` is `IIQQ`."""
    return re.sub(r"(\d+)(\w)", lambda matched: int(matched[1]) * matched[2], packed.format.removeprefix("="))


WORDS = words_of_c()
ORDERS = WORD.findall(
    "HELLO WELCOME START RETIRE GROW SIGNAL END LISTEN READ PING ADOPT ATTACH RELEASE LOOK RESIZE FINISH HANGUP MEASURE"
)
EVENTS = WORD.findall(
    "STARTED REFUSED EXITED EMPTY LOST ANSWER DONE STORE ENDED LEFT FREE WAITING STUCK SAID GAP BLOCKED"
)
BESIDES = ["WITH_EMPTY", "WITH_FREE", "INCOMPLETE", "LIMITED", "OVERLOADED"]
AMONG_THEMSELVES = {"FORK", "LEVEL_FINISH", "FLAG_ALL"}
"""What pumps, reapers and main say to each other only."""


def test_the_enums_are_found() -> None:
    assert {"VERSION", "MAGIC", "HELLO", "ANSWER", "F_ALL", "STEP_EXEC", "LEVEL_KILL", "MAX_TREE"} <= set(WORDS)


@pytest.mark.parametrize("names", [ORDERS, EVENTS, BESIDES, ["VERSION", "MAGIC", "NO_USER", "NOWHERE"]])
def test_words_are_the_same(names: list[str]) -> None:
    assert {name: WORDS[name] for name in names} == {name: getattr(frames, name) for name in names}


def test_no_word_of_either_side_is_missing_on_the_other() -> None:
    ours = {name for name in vars(frames) if name.startswith(("FLAG_", "STEP_", "LEVEL_"))}
    theirs = {name.replace("F_", "FLAG_", 1) for name in WORDS if name.startswith(("F_", "STEP_", "LEVEL_"))}
    assert theirs - AMONG_THEMSELVES == ours
    bodies = re.findall(r"enum\s*\{([^}]*)\}", CODE)
    for first, names in (("HELLO", ORDERS), ("STARTED", EVENTS), ("WITH_EMPTY", BESIDES)):
        (body,) = (body for body in bodies if WORD.findall(body)[:1] == [first])
        assert set(WORD.findall(body)) - AMONG_THEMSELVES == set(names)


def test_steps_and_levels_are_the_same() -> None:
    steps = [name for name in vars(frames) if name.startswith(("STEP_", "LEVEL_"))]
    assert len(steps) == 11
    assert {name: WORDS[name] for name in steps} == {name: getattr(frames, name) for name in steps}


def test_flags_are_the_same() -> None:
    flags = {name: value for name, value in vars(frames).items() if name.startswith("FLAG_")}
    assert {name: WORDS[name.replace("FLAG_", "F_")] for name in flags} == flags
    assert sum(flags.values()) == WORDS["F_ALL"]
    assert WORDS["W_CONFINE"] == frames.CONFINE


def test_the_structs_are_the_same_and_have_no_gaps() -> None:
    ours = {
        "control": frames._CONTROL,
        "hello": frames._HELLO,
        "welcome": frames._WELCOME,
        "start": frames._START,
        "limit": frames._LIMIT,
        "event": frames.EVENT,
        "asked_usage": frames.ASKED_USAGE,
        "usage": frames._USAGE,
    }
    assert {name: format_of_c(name) for name in ours} == {name: spelled_out(packed) for name, packed in ours.items()}
    for packed in ours.values():
        assert packed.size == struct.calcsize("@" + spelled_out(packed)) == struct.calcsize(packed.format)


def test_what_follows_the_event_of_a_run_s_end_is_the_same() -> None:
    matched = re.search(r"struct done \{ struct event event; ([^}]*)\};", CODE)
    assert matched is not None
    assert matched[1].split(";")[:2] == ["u64 total[2]", " u32 given[2]"]
    assert spelled_out(frames.TOTALS) == "QQII"
    assert frames.EVENT.size % 8 == 0, "else there is a gap between the two"


def test_the_bounds_are_the_same() -> None:
    ours = {
        "FRAME_BYTES": limits.SPAWN_FRAME_BYTES,
        "HELLO_BYTES": limits.SPAWN_HELLO_BYTES,
        "MAX_STRINGS_BYTES": limits.SPAWN_STRINGS_BYTES,
        "MAX_STRINGS": limits.SPAWN_STRINGS,
        "MAX_GROUPS": limits.SPAWN_GROUPS,
        "MAX_LIMITS": len(NUMBERS),
        "MAX_FILE_BYTES": limits.SPAWN_FILE_BYTES,
        "MAX_OUTPUT_BYTES": limits.MAX_RUN_OUTPUT_BYTES,
        "STALLED_LOOKS": limits.STALLED_LOOKS,
        "INLINE_BYTES": limits.SPAWN_INLINE_BYTES,
        "MAX_USAGE_ROWS": telemetry_limits.USAGE_ROWS,
    }
    assert {name: WORDS[name] for name in ours} == ours
    assert frames._USAGE.size * telemetry_limits.USAGE_ROWS == telemetry_limits.USAGE_BYTES
    assert frames._CONTROL.size + frames.ASKED_USAGE.size * telemetry_limits.USAGE_ROWS <= limits.SPAWN_FRAME_BYTES


def test_the_longest_frames_that_come_back_are_read_whole() -> None:
    assert frames.EVENT.size + frames.TOTALS.size + 2 * WORDS["INLINE_BYTES"] == frames.EVENT_BYTES
    assert frames.EVENT.size + WORDS["SAID_BYTES"] <= frames.EVENT_BYTES


def test_a_slot_has_room_for_what_is_sent() -> None:
    argv_and_env_ends = 2
    pointers = (limits.SPAWN_INLINE_STRINGS + argv_and_env_ends) * struct.calcsize("P")
    assert pointers == WORDS["POINTER_BYTES"]
    alignment = struct.calcsize("P") - 1
    behind_the_stack = sum(WORDS[name] for name in ("FRAME_BYTES", "POINTER_BYTES", "PATH_BYTES"))
    assert WORDS["PUMP_STACK"] + behind_the_stack + alignment <= WORDS["STORE_AT"]
    assert WORDS["STORE_AT"] + 2 * WORDS["INLINE_BYTES"] <= WORDS["SLOT_BYTES"]
    assert WORDS["REAPER_STACK"] >= 16 * limits.KIB
    assert WORDS["PUMP_STACK"] - WORDS["REAPER_STACK"] >= 16 * limits.KIB
    assert WORDS["PUMP_STACK"] % 8 == 0, "a request begins there"
    assert WORDS["MAX_FDS"] == 5  # a worker's byte, three streams and a file
    assert WORDS["MAX_REAPERS"] >= limits.MAX_PROCESSES + limits.SPAWN_IDLE_REAPERS
    assert WORDS["MAX_WORKERS"] == WORDS["MAX_REAPERS"]
    assert WORDS["INLINE_BYTES"] <= WORDS["STORE_AT"]
