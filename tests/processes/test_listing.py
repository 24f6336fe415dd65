"""How much of a command line is shown, and kept."""

import sys

from hypothesis import given
from hypothesis import strategies as st

from fastclaw.answer_limits import SHOWN_COMMAND_BYTES, WORD_BYTES
from fastclaw.processes.listing import shown_command

words = st.text(st.characters(exclude_categories=()), max_size=40) | st.integers(0, 9_000).map("é".__mul__)


def size(cmd: list[str]) -> int:
    return sum(WORD_BYTES + len(word.encode("utf-8", "surrogatepass")) for word in cmd)


@given(st.lists(words, min_size=1, max_size=200))
def test_a_short_one_is_itself_and_a_long_one_its_beginning(cmd: list[str]) -> None:
    shown = shown_command(cmd)
    if size(cmd) <= SHOWN_COMMAND_BYTES:
        assert shown is cmd
        return
    assert shown
    assert shown is not cmd
    assert size(shown) <= SHOWN_COMMAND_BYTES
    *whole, last = shown
    assert whole == cmd[: len(whole)]
    assert cmd[len(whole)].startswith(last)
    # What is left out would not have had room.
    assert size(shown) > SHOWN_COMMAND_BYTES - WORD_BYTES - 4


def test_words_cost_what_python_keeps_of_them() -> None:
    assert sys.getsizeof("") <= WORD_BYTES
    assert len(shown_command([""] * 100_000)) == SHOWN_COMMAND_BYTES // WORD_BYTES
